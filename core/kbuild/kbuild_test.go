package kbuild

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// kernels are the kernels whose headers are at hand: the build directories in
// $STAPBOX_KERNEL_HEADERS, which e2e/run sets, or those that are installed.
func kernels(t *testing.T) []Kernel {
	t.Helper()
	var list []Kernel
	dirs := filepath.SplitList(os.Getenv("STAPBOX_KERNEL_HEADERS"))
	if len(dirs) == 0 {
		dirs, _ = filepath.Glob("/lib/modules/*/build") // the pattern is good
	}
	for _, d := range dirs {
		k, err := FindKernel(d)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, k)
	}
	if len(list) == 0 {
		t.Skip("no kernel headers: set STAPBOX_KERNEL_HEADERS to a build directory, or use e2e/run test")
	}
	return list
}

// tiny is a runtime of one function.
var tiny = Runtime{
	Version: "tiny",
	Files: map[string][]byte{
		"tiny.h":   []byte("const char *tiny_text(void);\nconst char *tiny_extra(void);\nvoid tiny_say(const char *);\n"),
		"kernel.h": []byte("#pragma once\n#include <linux/module.h>\n#include <linux/slab.h>\n#include \"tiny.h\"\n#ifdef WANTED\n#define GIVEN\n#endif\n"),
		"tiny.c": []byte(`#include "kernel.h"
#ifndef GIVEN
#error the common header does not see definitions
#endif
void tiny_say(const char *s) { printk("%s\n", s); }
#ifndef HAVE_KMALLOC
#error the probe that must compile did not
#endif
#ifdef HAVE_NONSENSE
#error the probe that cannot compile did
#endif
static int __init start(void) { void *p = kmalloc(8, GFP_KERNEL); kfree(p); tiny_say(tiny_text()); return 0; }
static void __exit stop(void) { }
module_init(start);
module_exit(stop);
MODULE_LICENSE("Dual MIT/GPL");
`),
		"extra.c": []byte("#include \"kernel.h\"\nconst char *tiny_extra(void) { return \"extra\"; }\n"),
	},
	Headers: []string{"tiny.h"},
	Always:  []string{"tiny.c"},
	Common:  "kernel.h",
	Defines: []string{"WANTED"},
	Probes: []Probe{
		{"HAVE_KMALLOC", "#include <linux/slab.h>\nvoid *f(void); void *f(void) { return kmalloc(1, GFP_KERNEL); }\n"},
		{"HAVE_NONSENSE", "#include <linux/slab.h>\nint f(void) { return no_such_function(); }\n"},
	},
}

// odd is a name with characters that make, sh or the linker mind.
const odd = "a b#c:d$e%f'g\"h,i=j(k)&;l*m\\n~o@p"

// TestOddPaths prepares and builds where the state directory, the directory for
// temporary files, that of the module and the build tree have such a name.
func TestOddPaths(t *testing.T) {
	k := kernels(t)[0]
	base := filepath.Join(t.TempDir(), odd)
	// The tree as a root of unpacked packages: kbuild's programs are beside it.
	root := k.BuildDir
	for !fileExists(filepath.Join(root, "usr/src")) {
		if root = filepath.Dir(root); root == "/" {
			t.Skipf("the headers in %q were not unpacked below a directory of their own", k.BuildDir)
		}
	}
	rel, err := filepath.Rel(root, k.BuildDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(base, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", filepath.Join(root, "usr"), base).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	t.Setenv("TMPDIR", filepath.Join(base, "tmp"))
	moved, err := FindKernel(filepath.Join(base, rel))
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]Kernel{"tree": moved, "state": k} {
		t.Run(name, func(t *testing.T) {
			state := filepath.Join(base, "state-"+name)
			p, err := Prepare(context.Background(), state, k, tiny, func(s string) { t.Log(s) })
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(base, "module-"+name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, u := range []Unit{
				{Name: "light", Source: []byte("#include \"tiny.h\"\nconst char *tiny_text(void) { return \"hi\"; }\n")},
				{Name: "with_headers", Source: []byte("#include <linux/slab.h>\n#include \"tiny.h\"\nconst char *tiny_text(void) { return kmalloc(1, GFP_KERNEL) ? \"a\" : \"b\"; }\n"), KernelHeaders: true},
				{Name: "own_crcs", Source: []byte("#include \"tiny.h\"\nint sscanf(const char *, const char *, ...);\nconst char *tiny_text(void) { int i; sscanf(\"1\", \"%d\", &i); return i ? \"a\" : \"b\"; }\n")},
			} {
				at := filepath.Join(dir, u.Name)
				if err := os.Mkdir(at, 0o755); err != nil {
					t.Fatal(err)
				}
				ko, err := p.Build(context.Background(), u, at)
				if err != nil {
					t.Fatal(err)
				}
				checkModule(t, ko, u.Name, k.Release)
			}
			if left, err := filepath.Glob(filepath.Join(escaped(state), ".preparing-*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// escaped is a path as a pattern of filepath.Glob that matches only it.
func escaped(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func TestPlain(t *testing.T) {
	for path, want := range map[string]bool{
		"/usr/src/linux-headers-6.12.117+deb12-cloud-amd64": true, "": false, "/a b": false, "/a#b": false, "/a:b": false, "/a$b": false,
		"/a%b": false, "/a'b": false, `/a"b`: false, "/a,b": false, "/a\\b": false, "/a\nb": false, "/\u00e4": false,
	} {
		if got := Plain(path); got != want {
			t.Errorf("Plain(%q) is %v", path, got)
		}
	}
}

func TestPrepareAndBuild(t *testing.T) {
	for _, k := range kernels(t) {
		t.Run(k.Release, func(t *testing.T) {
			state := t.TempDir()
			ctx := context.Background()
			if _, err := Open(state, k, tiny); !errors.Is(err, ErrNotPrepared) {
				t.Fatalf("Open before Prepare: got %v, want ErrNotPrepared", err)
			}
			if _, err := Prepare(ctx, state, k, tiny, func(s string) { t.Log(s) }); err != nil {
				t.Fatal(err)
			}
			p, err := Open(state, k, tiny)
			if err != nil {
				t.Fatal(err)
			}
			build := func(name, source string) (string, error) {
				return p.Build(ctx, Unit{Name: name, Source: []byte(source)}, t.TempDir())
			}
			ko, err := build("hello_unit", "#include \"tiny.h\"\nconst char *tiny_text(void) { return \"hi\"; }\n")
			if err != nil {
				t.Fatal(err)
			}
			checkModule(t, ko, "hello_unit", k.Release)
			// The text that stands for a name in what is prepared is the script's
			// own where a script has it.
			ko, err = build("with_slot", "#include \"tiny.h\"\nconst char *tiny_text(void) { return \"name="+nameSlot+"\"; }\n")
			if err != nil {
				t.Fatal(err)
			}
			checkModule(t, ko, "with_slot", k.Release)
			if slot, err := os.ReadFile(ko); err != nil || !bytes.Contains(slot, []byte("name="+nameSlot+"\x00")) {
				t.Errorf("a string of the script was changed, error %v", err)
			}
			if ko, err = build("hello_unit", "#include \"tiny.h\"\nconst char *tiny_text(void) { return \"hi\"; }\n"); err != nil {
				t.Fatal(err)
			}
			small, err := os.ReadFile(ko)
			if err != nil {
				t.Fatal(err)
			}
			if ko, err = build("with_extra", "#include \"tiny.h\"\nconst char *tiny_text(void) { return tiny_extra(); }\n"); err != nil {
				t.Fatal(err)
			}
			big, err := os.ReadFile(ko)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(small, []byte("tiny_extra")) || !bytes.Contains(big, []byte("tiny_extra")) {
				t.Error("parts of the runtime are not linked as needed")
			}
			// A symbol outside the prepared table: modpost makes a new one.
			ko, err = build("slow_path", "#include \"tiny.h\"\nint sscanf(const char *, const char *, ...);\nconst char *tiny_text(void) { int i; sscanf(\"1\", \"%d\", &i); return i ? \"a\" : \"b\"; }\n")
			if err != nil {
				t.Fatal(err)
			}
			checkModule(t, ko, "slow_path", k.Release)
			var tool *ToolError
			if _, err = build("bad", "this is not C\n"); !errors.As(err, &tool) || !strings.Contains(tool.Output, "bad.c:1") {
				t.Errorf("compile error: got %v", err)
			}
			if _, err = build("unknown", "#include \"tiny.h\"\nint no_such_symbol(void);\nconst char *tiny_text(void) { return no_such_symbol() ? \"\" : \"x\"; }\n"); !errors.As(err, &tool) || !strings.Contains(tool.Output, "no_such_symbol") {
				t.Errorf("unresolved symbol: got %v", err)
			}
			if _, err = build(strings.Repeat("n", MaxName+1), ""); err == nil {
				t.Error("a name that is too long was accepted")
			}
			// A file that is not what was prepared is not used.
			if err := os.WriteFile(filepath.Join(p.Dir, runtimeName), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(state, k, tiny); !errors.Is(err, ErrNotPrepared) {
				t.Errorf("Open with a changed runtime: got %v, want ErrNotPrepared", err)
			}
		})
	}
}

func checkModule(t *testing.T, path, name, release string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info := f.Section(".modinfo")
	if info == nil || f.Section(".gnu.linkonce.this_module") == nil {
		t.Fatalf("%s: not a module", path)
	}
	b, err := info.Data()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name=" + name + "\x00", "vermagic=" + release + " ", "license=Dual MIT/GPL\x00"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s: .modinfo %q lacks %q", path, b, want)
		}
	}
}

func TestFindKernelRefusesWhatIsNoRelease(t *testing.T) {
	for _, spec := range []string{"../../etc", "6.1;true", "-r", ".", "6.1 x", "/proc/nonexistent"} {
		if k, err := FindKernel(spec); err == nil {
			t.Errorf("%q: got %v, want an error", spec, k)
		}
	}
	if _, err := FindKernel("9.9.9-none"); !errors.Is(err, ErrNoHeaders) {
		t.Errorf("got %v, want ErrNoHeaders", err)
	}
}

func TestRelocateIncludes(t *testing.T) {
	root := t.TempDir()
	common := filepath.Join(root, "usr/src/common-for-test/Makefile")
	if err := os.MkdirAll(filepath.Dir(common), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(common, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	in := "include /usr/src/common-for-test/Makefile\ninclude /no/such/Makefile\n"
	want := "include " + common + "\ninclude /no/such/Makefile\n"
	if got := string(relocateIncludes([]byte(in), filepath.Join(root, "usr/src/flavour"))); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A tool that says a lot does not cost its memory.
func TestCommandOutput(t *testing.T) {
	err := command(t.Context(), t.TempDir(), "/bin/sh", "-c", "echo first; head -c 20000000 /dev/zero; exit 3")
	var tool *ToolError
	if !errors.As(err, &tool) {
		t.Fatalf("got %v", err)
	}
	said := fmt.Sprintf("%v", err)
	if len(said) > maxSaid+1000 || !strings.Contains(said, "first") || !strings.Contains(said, "[output cut here]") {
		t.Errorf("%d bytes", len(said))
	}
}
