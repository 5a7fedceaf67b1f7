package backend

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stapbox/core/kmod"
	"stapbox/core/privilege"
)

// job is a run of a script whose outputs are collected.
func job(t *testing.T, script string) (*Job, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	return &Job{
		Source: Source{"<input>", []byte(script)}, LastPass: 4, Privilege: privilege.StapDev,
		TempDir: t.TempDir(), StateDir: filepath.Join(t.TempDir(), "kernels"), Stdout: &stdout, Stderr: &stderr,
	}, &stdout, &stderr
}

const hello = `probe begin { printf ("Hello\n"); exit (); }`

// Requirements: R-000-028
func TestBuiltinBuildsModules(t *testing.T) {
	dirs := filepath.SplitList(os.Getenv("STAPBOX_KERNEL_HEADERS"))
	if len(dirs) == 0 {
		t.Skip("no kernel headers: set STAPBOX_KERNEL_HEADERS to a build directory, or use e2e/run test")
	}
	for _, dir := range dirs {
		j, _, stderr := job(t, hello)
		j.Kernel, j.Verbose, j.Privilege = dir, 1, privilege.StapUsr
		a, rc := Builtin{}.Translate(context.Background(), j)
		if rc != 0 {
			t.Fatalf("%s: status %d\n%s", dir, rc, stderr)
		}
		image, err := os.ReadFile(a.Path)
		if err != nil {
			t.Fatal(err)
		}
		if name, err := kmod.Name(image); err != nil || name != a.Name || !strings.HasPrefix(name, "stap_") {
			t.Errorf("%s: the module is named %q, %v; the artifact %q", dir, name, err, a.Name)
		}
		if l, ok, err := kmod.RequiredLevel(image); l != privilege.StapUsr || !ok || err != nil {
			t.Errorf("%s: required level %v, %v, %v", dir, l, ok, err)
		}
		if !kmod.Own(image) {
			t.Errorf("%s: the module does not say that it is ours", dir)
		}
		const budget = 64 << 10 // design, section 8
		if len(image) > budget {
			t.Errorf("%s: hello.ko has %d bytes, more than %d", dir, len(image), budget)
		}
		for _, pass := range []string{"Pass 1: parsed user script", "Pass 2: analyzed script: 1 probe", "Pass 3: translated to C into", "Pass 4: compiled C into"} {
			if !strings.Contains(stderr.String(), pass) {
				t.Errorf("%s: -v does not show %q:\n%s", dir, pass, stderr)
			}
		}
		t.Logf("%s: %d bytes\n%s", dir, len(image), stderr)
	}
}

// Requirements: R-000-016
func TestBuiltinRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script string
		change func(*Job)
		want   []string
	}{
		{"syntax", "probe begin {", nil, []string{"parse error:", "Pass 1: parse failed."}},
		{"unknown function", "probe begin { nosuch() }", nil, []string{"semantic error:", "nosuch", "Pass 2: analysis failed."}},
		{"unknown release", hello, func(j *Job) { j.Kernel = "9.9.9-none" }, []string{`"9.9.9-none"`, "kernel headers are not installed", "hint:", "Pass 4: compilation failed."}},
		{"no release at all", hello, func(j *Job) { j.Kernel = "../../etc" }, []string{`kernel release "../../etc"`}},
		{"-G without global", hello, func(j *Job) { j.Globals = []string{"x=1"} }, []string{`-G x=1: the script has no global scalar "x"`}},
		{"limit out of range", hello, func(j *Job) { j.Defines = []string{"MAXSTRINGLEN=1"} }, []string{"MAXSTRINGLEN"}},
	} {
		j, stdout, stderr := job(t, tt.script)
		if tt.change != nil {
			tt.change(j)
		}
		_, rc := Builtin{}.Translate(context.Background(), j)
		if rc != 1 || stdout.Len() != 0 {
			t.Errorf("%s: status %d, stdout %q", tt.name, rc, stdout)
		}
		for _, w := range tt.want {
			if !strings.Contains(stderr.String(), w) {
				t.Errorf("%s: %q lacks %q", tt.name, stderr, w)
			}
		}
	}
}

// The passes up to the third need no kernel at all.
func TestBuiltinStopsWhereAsked(t *testing.T) {
	for pass, want := range map[int]string{1: "probe begin{", 2: "# probes", 3: "stp_script"} {
		j, stdout, stderr := job(t, hello)
		j.LastPass = pass
		if _, rc := (Builtin{}).Translate(context.Background(), j); rc != 0 || !strings.Contains(stdout.String(), want) {
			t.Errorf("-p%d: status %d, stderr %q; %q is not in\n%s", pass, rc, stderr, want, stdout)
		}
	}
}

// In a directory of --tmpdir whatever has the name of the C file is neither followed
// nor written to.
func TestSecurity12SourceIsNew(t *testing.T) {
	for name, prepare := range map[string]func(other, path string) error{"link": os.Symlink, "hard link": os.Link} {
		j, _, stderr := job(t, hello)
		j.LastPass, j.Name = 3, "m"
		other := filepath.Join(t.TempDir(), "other")
		if err := os.WriteFile(other, []byte("precious"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := prepare(other, filepath.Join(j.TempDir, "m_src.c")); err != nil {
			t.Fatal(err)
		}
		_, rc := Builtin{}.Translate(context.Background(), j)
		if text, err := os.ReadFile(other); rc != 0 || err != nil || string(text) != "precious" {
			t.Errorf("%s: status %d, %s; the other has %.20q, %v", name, rc, stderr, text, err)
		}
	}
}

// Another translator, or a host with another one, is worth asking where the
// script is not to blame, and nowhere else. Not the words of a message tell, which
// may be the script's.
func TestElsewhere(t *testing.T) {
	for script, want := range map[string]bool{
		`probe begin { exit() }`:                                                             true, // there are no headers
		`probe kernel.function("f") { exit() }`:                                              true,
		`probe begin { println(thread_indent(1)) }`:                                          true,
		`probe begin { x = "Pass 4: compilation failed." + 1 println(x) }`:                   false,
		`probe begin { x = " is not supported by the built-in translator" + 1; println(x) }`: false,
		`probe begin { foo() }`:                                                              false,
		`probe begin { `:                                                                     false,
	} {
		j, _, stderr := job(t, script)
		j.Kernel = "9.9.9-nosuch"
		a, rc := Builtin{}.Translate(context.Background(), j)
		if rc != 1 || a.Elsewhere != want {
			t.Errorf("%s: status %d, elsewhere %t\n%s", script, rc, a.Elsewhere, stderr)
		}
	}
}

// Whatever a script uses that this translator lacks is named in one run, also
// where a point is optional and where a function is called.
func TestEverythingMissingIsNamed(t *testing.T) {
	j, _, stderr := job(t, `
probe kernel.function("inet_csk_accept").return? { println(user_string($p), @cast(1, "x")->y) }
probe begin, syscall.open? { f(5 . "") }
probe timer.profile.freq.hz(100) { println(@json_output_data_start) }
function f(x) { print_backtrace() if (x =~ "a") println(@variance(s)) }
function unused() { println(ubacktrace()) }
probe mine = kernel.trace("sched_switch") { name = kernel_string($prev) }
probe mine? { println(name) }
probe other = begin { x = user_int($nobody_uses_this) println(x) }
global s`)
	j.LastPass = 2
	if _, rc := (Builtin{}).Translate(context.Background(), j); rc != 1 {
		t.Errorf("status %d", rc)
	}
	for _, what := range []string{
		`probe point kernel.function("inet_csk_accept").return`, "function user_string", "context variable $p", "@cast", "probe point syscall.open",
		"probe point timer.profile.freq.hz(100)", "macro @json_output_data_start", "function print_backtrace", "regular expression operator =~",
		"statistics extraction @variance", `probe point kernel.trace("sched_switch")`, "function kernel_string", "context variable $prev",
	} {
		if !strings.Contains(stderr.String(), what+" is not supported by the built-in translator") {
			t.Errorf("not named: %s", what)
		}
	}
	if strings.Contains(stderr.String(), "ubacktrace") || strings.Contains(stderr.String(), "user_int") || t.Failed() {
		t.Errorf("got\n%s", stderr)
	}
}

// A -D that changes nothing is a warning, for it may be a limit that is misspelt;
// not what a server defines for all scripts.
func TestDefinesWithoutEffect(t *testing.T) {
	for _, tt := range []struct {
		defines []string
		server  int
		script  string
		guru    bool
		want    string
	}{
		{[]string{"MAXSKIPED=1", "MAXACTION=5", "STP_NO_OVERLOAD"}, 0, hello, false, "WARNING: -D MAXSKIPED has no effect: it is no limit, and the script has no C\n"},
		{[]string{"A=1", "B"}, 1, hello, false, "WARNING: -D B has no effect: it is no limit, and the script has no C\n"},
		{[]string{"A=1"}, 0, `probe begin { println(%{ A %}) exit() }`, true, ""},
	} {
		j, _, stderr := job(t, tt.script)
		j.LastPass, j.Defines, j.ServerDefines, j.Guru = 3, tt.defines, tt.server, tt.guru
		if _, rc := (Builtin{}).Translate(context.Background(), j); rc != 0 || stderr.String() != tt.want {
			t.Errorf("%q: status %d, got %q, want %q", tt.defines, rc, stderr, tt.want)
		}
	}
}
