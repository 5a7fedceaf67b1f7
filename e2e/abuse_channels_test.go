package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"stapbox/core/wire"
	"stapbox/e2e/lab"
)

// channel is a way by which a request might have a file of the server read, or
// anything else done to it. FILE stands for the file.
type channel struct {
	name   string
	script string
	args   []string
	locale []string
	files  []wire.File
}

// channels are those of C in scripts, of words, of variables and of uploads. What
// they ask for is in the answer, or an error in the text of the file is, or
// PRESENT_9f3a tells that it is there.
func channels() []channel {
	top := func(name, text string) channel {
		return channel{name: name, script: "%{\n" + text + "\n%}\nprobe begin { exit() }"}
	}
	asm := func(name, text string) channel {
		return top(name, `asm("`+strings.ReplaceAll(strings.ReplaceAll(text, `"`, `\"`), "\n", `\n`)+`");`)
	}
	tapset := func(text string) []wire.File { return []wire.File{{Name: "tapset/t/t.stp", Data: []byte(text)}} }
	return []channel{
		top("include", `#include "FILE"`),
		top("include of system files", `#include <FILE>`),
		top("include upwards", `#include "../../../../../../../../../../../../FILE"`),
		top("include through /proc", `#include "/proc/self/root/FILE"`),
		top("include through the parent", `#include "/proc/1/root/FILE"`),
		top("include by macro", "#define F \"FILE\"\n#include F"),
		top("include_next", `#include_next "FILE"`),
		top("has_include", "#if __has_include(\"FILE\")\n#error PRESENT_9f3a\n#endif"),
		top("a dependency", `#pragma GCC dependency "FILE"`),
		top("a precompiled header", `#pragma GCC pch_preprocess "FILE"`),
		top("an image", "char x[] = {\n#embed \"FILE\"\n};"),
		top("a line marker", "#line 1 \"FILE\"\nint x = ;"),
		top("options for one function", "__attribute__((optimize(\"-fplugin=FILE\"))) void f(void) {}"),
		top("options by pragma", "#pragma GCC optimize (\"-specs=FILE\", \"-imacros FILE\", \"@FILE\")\nint x;"),
		top("options of the target", "#pragma GCC target (\"-B/tmp,@FILE\")\nint x;"),
		top("an option of the linker", "#pragma comment(lib, \"FILE\")\nint x __attribute__((section(\".drectve\")));"),
		asm("incbin", `.incbin "FILE"`),
		asm("incbin upwards", `.incbin "../../../../../../../../../../../..FILE"`),
		asm("include of the assembler", `.include "FILE"`),
		asm("a listing", ".list\n.include \"FILE\"\n.title \"x\""),
		asm("a file name", ".file \"FILE\"\n.print \"x\""),
		asm("end and another file", "\n#APP\n.incbin \"FILE\"\n#NO_APP"),
		asm("a plugin of the linker", ".section .gnu.lto_.opts,\"e\"\n.string \"-fplugin=FILE -specs=FILE\""),
		asm("a script of the linker", ".section .deplibs,\"MS\",@0x6fff4c04,1\n.asciz \"FILE\""),
		asm("options for the linker", ".section .linker-options,\"e\",@0x6fff4c01\n.asciz \"-T\"\n.asciz \"FILE\""),
		{name: "-I of the host", script: "probe begin { exit() }", args: []string{"-IFILE"}},
		{name: "-I and include", script: "probe begin { f() }", args: []string{"-Itapset/t"}, files: tapset("%{\n#include \"FILE\"\n%}\nfunction f() %{ %}")},
		{name: "-I and incbin", script: "probe begin { f() }", args: []string{"-Itapset/t"}, files: tapset(`function f() %{ asm(".incbin \"FILE\""); %}`)},
		{name: "-I upwards", script: "probe begin { exit() }", args: []string{"-Itapset/../../../../../../../FILE"}, files: tapset("")},
		{name: "-B", script: "probe begin { exit() }", args: []string{"-BCC=cat FILE"}},
		{name: "-R", script: "probe begin { exit() }", args: []string{"-RFILE"}},
		{name: "-D", script: "probe begin { exit() }", args: []string{"-DX=1 -include FILE"}},
		{name: "-D with a line", script: "probe begin { exit() }", args: []string{"-DX=1\n#include \"FILE\""}},
		{name: "-r", script: "probe begin { exit() }", args: []string{"-rFILE"}},
		{name: "-m", script: "probe begin { exit() }", args: []string{"-mFILE"}},
		{name: "-o", script: "probe begin { exit() }", args: []string{"-oFILE"}},
		{name: "-c", script: "probe begin { exit() }", args: []string{"-c", "cat FILE"}},
		{name: "--tmpdir", script: "probe begin { exit() }", args: []string{"--tmpdir=FILE"}},
		{name: "--sysroot", script: "probe begin { exit() }", args: []string{"--sysroot=FILE"}},
		{name: "--translator", script: "probe begin { exit() }", args: []string{"--translator=FILE"}},
		{name: "a response file", script: "probe begin { println(@1) }", args: []string{"@FILE"}},
		{name: "a script of the server", args: []string{"FILE"}},
		{name: "a script through the request", args: []string{"script/../../../../../../..FILE"}},
		{name: "-E", script: "probe begin { exit() }", args: []string{"-EFILE"}},
		{name: "a process", script: `probe process("FILE").begin { exit() }`},
		{name: "a function of a process", script: `probe process("FILE").function("main") { println($$vars) }`},
		{name: "variables", script: "%{\n#include <stap.key>\n#include <shadow>\n#include <file>\n%}\nprobe begin { exit() }", locale: []string{
			"CPATH=FILE", "C_INCLUDE_PATH=FILE", "COMPILER_PATH=FILE", "GCC_EXEC_PREFIX=FILE", "GCC_SPECS=FILE", "LD_PRELOAD=FILE", "LD_LIBRARY_PATH=FILE",
			"DEPENDENCIES_OUTPUT=FILE", "SUNPRO_DEPENDENCIES=FILE", "TMPDIR=FILE", "MAKEFLAGS=-f FILE", "SYSTEMTAP_DIR=FILE", "HOME=FILE", "PATH=FILE", "LANG=FILE", "LC_ALL=FILE", "LC_MESSAGES=../../FILE",
			"STAPBOX_WORKER_READABLE=FILE",
		}},
	}
}

// serveWithoutNamespaces is serve for a server in a user namespace that can have no
// further ones, as on a host where an administrator forbids them.
func serveWithoutNamespaces(t *testing.T, name string, args ...string) *serving {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skipf("forbidding namespaces needs unshare: %v", err)
	}
	script := filepath.Join(t.TempDir(), "stap-serverd")
	text := fmt.Sprintf("#!/bin/sh\nexec %s --user --map-current-user --keep-caps sh -c 'echo 0 > /proc/sys/user/max_user_namespaces || exit 1\nexec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all %s \"$@\"' sh \"$@\"\n",
		unshare, stage.programs.Applet("stap-serverd"))
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	programs := *stage.programs
	programs.Dir = filepath.Dir(script)
	for dir := programs.Dir; dir != "/"; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&0o5 != 0o5 {
			os.Chmod(dir, st.Mode().Perm()|0o5)
		}
	}
	return serveBy(t, &programs, name, args...)
}

// TestServerChannels has a real server asked for files that are not the
// client's, through each channel: a file of root, the server's key, and a file of
// another request. None is shown, and none is harmed. It does so as confined as
// this host allows, and on one without namespaces, where each channel is asked for
// one of the files.
func TestServerChannels(t *testing.T) {
	few(t)
	for _, host := range []struct {
		name  string
		serve func(*testing.T, string, ...string) *serving
		files int // of the three, for each channel
		log   []string
	}{
		{"sandboxed", serve, 3, []string{"Workers are confined by namespaces, Landlock, seccomp"}},
		{"no-namespaces", serveWithoutNamespaces, 1, []string{"Workers are confined by Landlock, seccomp", "WARNING: workers are less confined than they could be, this host lacks namespaces"}},
	} {
		t.Run(host.name, func(t *testing.T) {
			s := host.serve(t, "channels-"+host.name, "--max-compressed-request=200000", "--max-request-size=2000000", "--cache-size=0")
			for _, w := range host.log {
				if !strings.Contains(s.Log(), w) {
					t.Fatalf("the log lacks %q:\n%s", w, s.Log())
				}
			}
			key := filepath.Join(s.Dir, "ssl", "server", "stap.key")
			other := filepath.Join(s.Dir, "tmp", "stap-server.1", "request", "script", "file")
			if err := os.MkdirAll(filepath.Dir(other), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(other, []byte(secretOfOthers+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("chown", "-R", fmt.Sprint(lab.ServerUID), filepath.Join(s.Dir, "tmp")).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			a := &abuser{serving: s, t: t, secret: keyLine(t, s)}
			state := func() (all []string) {
				for _, f := range []string{key, other, "/etc/shadow"} {
					var st syscall.Stat_t
					if err := syscall.Stat(f, &st); err != nil {
						t.Fatal(err)
					}
					all = append(all, fmt.Sprintf("%s %o %d %d %d %d", f, st.Mode, st.Size, st.Uid, st.Mtim.Nano(), st.Ctim.Nano()))
				}
				return all
			}
			before := state()
			all, answered := 0, 0
			for i, c := range channels() {
				secrets := []string{key, other, "/etc/shadow"}
				for n := range host.files {
					file := secrets[(i+n)%len(secrets)]
					fill := func(list []string) (filled []string) {
						for _, w := range list {
							filled = append(filled, strings.ReplaceAll(w, "FILE", file))
						}
						return filled
					}
					r := &wire.Request{Version: wire.Version, Release: s.kernel.Release, Arch: "x86_64", HasLocale: true, Args: []string{"-p4", "-g"}, Locale: fill(c.locale)}
					if c.script != "" {
						r.Args = append(r.Args, "-e"+strings.ReplaceAll(c.script, "FILE", file))
					}
					r.Args = append(r.Args, fill(c.args)...)
					for _, f := range c.files {
						r.Files = append(r.Files, wire.File{Name: f.Name, Data: bytes.ReplaceAll(f.Data, []byte("FILE"), []byte(file))})
					}
					archive, err := encodeAny(r)
					if err != nil {
						t.Fatal(err)
					}
					raw, err := a.inTLS(frameOf(archive), false)
					if err != nil || len(raw) == 0 {
						t.Errorf("%s of %s: %d octets, %v", c.name, file, len(raw), err)
						continue
					}
					got, err := wire.DecodeResponse(raw)
					if err != nil {
						t.Fatal(err)
					}
					all++
					if got.RC == 0 {
						answered++
					}
					shown := bytes.Join([][]byte{got.Stdout, got.Stderr}, nil)
					for _, f := range got.Files {
						shown = append(shown, f.Data...)
					}
					for _, secret := range []string{string(a.secret), "PRIVATE KEY", secretOfOthers, "root:", "error: #error PRESENT_9f3a", "error: PRESENT_9f3a"} {
						if bytes.Contains(shown, []byte(secret)) {
							t.Errorf("%s of %s shows %q:\n%.2000s%.2000s", c.name, file, secret, got.Stdout, got.Stderr)
						}
					}
				}
			}
			for i, now := range state() {
				if now != before[i] {
					t.Errorf("%s became %s", before[i], now)
				}
			}
			if err := syscall.Kill(s.PID, 0); err != nil {
				t.Errorf("the server: %v", err)
			}
			t.Logf("%d requests by %d channels, %d of them compiled", all, len(channels()), answered)
			if got, err := s.send(s.frame(t, "-p4", "--privilege=stapusr", "-e"+hello), false); err != nil || got.RC != 0 {
				t.Errorf("an honest request: %+v, %v", got, err)
			}
		})
	}
}

// TestServerChannelsOpen shows that the channels are some: without a sandbox, C
// of a member of stapdev brings files of the server's user.
// Requirements: R-000-019
func TestServerChannelsOpen(t *testing.T) {
	few(t)
	s := serve(t, "channels-open", "--sandbox=off", "--cache-size=0")
	if !strings.Contains(s.Log(), "WARNING: workers are not confined (--sandbox=off)") {
		t.Errorf("the log has no warning:\n%s", s.Log())
	}
	file := filepath.Join(s.Dir, "tmp", "file")
	if err := os.WriteFile(file, []byte(secretOfOthers+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range channels() {
		if c.name != "include" && c.name != "incbin" && c.name != "has_include" {
			continue
		}
		got, err := s.send(s.frame(t, "-p4", "-g", "-e"+strings.ReplaceAll(c.script, "FILE", file)), false)
		if err != nil {
			t.Fatal(err)
		}
		shown := append(got.Stdout, got.Stderr...)
		for _, f := range got.Files {
			shown = append(shown, f.Data...)
		}
		if !bytes.Contains(shown, []byte(secretOfOthers)) && !bytes.Contains(shown, []byte("error: #error PRESENT_9f3a")) {
			t.Errorf("%s: got %d, %.1000s", c.name, got.RC, shown)
		}
	}
}

// TestServerRefusesOwnFiles is about an administrator who lets scripts name what
// is the server's own: it does not start.
func TestServerRefusesOwnFiles(t *testing.T) {
	few(t)
	s := serve(t, "own-files")
	for _, own := range []string{s.Dir, filepath.Join(s.Dir, "ssl"), filepath.Join(s.Dir, "answers"), filepath.Join(s.Dir, "tmp"), filepath.Dir(s.Dir)} {
		n, err := stage.programs.StartServer(s.net, s.Dir, []*lab.Kernel{s.kernel}, "--allow-path="+own)
		if err == nil {
			n.Stop()
			t.Errorf("--allow-path=%s is accepted", own)
		} else if !strings.Contains(err.Error(), "scripts may name files in") {
			t.Errorf("--allow-path=%s: %v", own, err)
		}
	}
}
