package kbuild

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
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
	if installed, err := filepath.Glob("/lib/modules/*/build"); err == nil {
		dirs = append(dirs, installed...)
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
	for _, spec := range []string{"../../etc", "6.1;true", "-r", ".", "6.1 x", "/nonexistent"} {
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
