package backend

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stapbox/core/privilege"
	"stapbox/core/stapopts"
)

// fakeStap stands for an installed stap: it writes down its words and its
// standard input, and leaves a module.
func fakeStap(t *testing.T) (path string, words func() []string, input func() string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "stap")
	text := `#!/bin/sh
if [ "$1" = -V ]; then echo 'Systemtap translator/driver (version 4.8/0.188, fake)' >&2; exit 0; fi
for w; do printf '%s\n' "$w"; done > ` + dir + `/words
cat > ` + dir + `/input
for w; do case $w in --tmpdir=*) d=${w#--tmpdir=};; esac; done
if grep -q broken ` + dir + `/input; then echo 'semantic error: upstream says so' >&2; exit 1; fi
echo module > $d/stap_fake.ko
echo stap_fake.ko
`
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return path, func() []string { return strings.Split(strings.TrimSuffix(read("words"), "\n"), "\n") }, func() string { return read("input") }
}

func TestSystemtapArguments(t *testing.T) {
	path, words, input := fakeStap(t)
	for _, tt := range []struct {
		name   string
		change func(*Job)
		want   string // between --client-options and the script
	}{
		{"plain", func(*Job) {}, "-p4"},
		{"all of it", func(j *Job) {
			j.Verbose, j.Guru, j.Suppress, j.Name, j.Defines, j.Globals, j.Target, j.Command = 2, true, 1, "x", []string{"A=1", "B"}, []string{"g=1"}, 7, "ls"
		}, "-p4 -v -v -g -w -m x -D A=1 -D B -G g=1 -x 7 -c ls"},
		{"scripts and libraries beside the script", func(j *Job) {
			j.Scripts, j.Tapsets, j.Compatible = []Source{{"<input1>", []byte("probe\tend{}")}}, []Tapset{{"lib", "/w/lib"}}, "4.8"
		}, "-p4 --compatible=4.8 -I /w/lib -E probe\tend{}"},
		{"a level", func(j *Job) { j.Privilege = privilege.StapUsr }, "-p4 --privilege=stapusr"},
		{"words that look like options", func(j *Job) { j.Args = []string{"-B", "CC=x", "--sysroot=/", "-R/tmp", "; id"} }, "-p4"},
	} {
		j, stdout, stderr := job(t, "probe begin { exit() }")
		j.Kernel = "6.1.0"
		tt.change(j)
		a, rc := Systemtap{Path: path, Environ: []string{"PATH=/usr/bin:/bin"}}.Translate(context.Background(), j)
		if rc != 0 || a.Name != "stap_fake" || a.Translator != stapopts.TranslatorSystemtap || stdout.Len() != 0 {
			t.Errorf("%s: got %+v, %d, %q, %q", tt.name, a, rc, stdout, stderr)
		}
		var own []string
		if j.Name == "" {
			own = []string{"-m", jobName(j)}
		}
		want := append([]string{"--tmpdir=" + j.TempDir, "--disable-cache", "-r", "6.1.0"}, own...)
		want = append(append(want, "--client-options"), strings.Split(tt.want, " ")...)
		want = append(append(want, "-", "--"), j.Args...)
		if got := words(); !slices.Equal(got, want) {
			t.Errorf("%s: got\n%q, want\n%q", tt.name, got, want)
		}
		if input() != "probe begin { exit() }" {
			t.Errorf("%s: the script was %q", tt.name, input())
		}
	}
}

// A listing asks for the pattern: the text of Source is a script, which would be
// shown instead.
func TestSystemtapLists(t *testing.T) {
	path, words, _ := fakeStap(t)
	j, _, stderr := job(t, `probe process("/bin/x").* {}`)
	j.List, j.Pattern, j.LastPass, j.Args = 'L', `process("/bin/x").*`, 2, []string{"a"}
	if _, rc := (Systemtap{Path: path, Environ: []string{"PATH=/usr/bin:/bin"}}).Translate(context.Background(), j); rc != 0 {
		t.Fatalf("status %d: %s", rc, stderr)
	}
	got := words()
	if i := slices.Index(got, "--client-options"); !slices.Equal(got[i:], []string{"--client-options", "-L", j.Pattern, "--", "a"}) {
		t.Errorf("got %q", got)
	}
}

func TestAuto(t *testing.T) {
	path, _, _ := fakeStap(t)
	lookup := func(p string) func(string) (string, bool) {
		return func(name string) (string, bool) { return p, name == SystemtapVariable }
	}
	for _, tt := range []struct {
		name, script, path string
		rc                 int
		made, want         string
	}{
		{"what the built-in translator knows", "probe begin { exit() }", path, 0, stapopts.TranslatorBuiltin, "Pass 3"},
		{"a probe it lacks", `probe kernel.function("vfs_read") { exit() }`, path, 0, stapopts.TranslatorSystemtap, "trying SystemTap"},
		{"a function it lacks", `probe begin { nosuchfunction() }`, path, 0, stapopts.TranslatorSystemtap, "Translated by SystemTap"},
		{"a function that is known to be SystemTap's", `probe begin { println(thread_indent(1)) }`, path, 0, stapopts.TranslatorSystemtap, "function thread_indent is not supported"},
		{"a macro it lacks", `probe begin { println(@json_output_data_end()) }`, path, 0, stapopts.TranslatorSystemtap, "macro @json_output_data_end is not supported"},
		{"a macro nobody knows", `probe begin { println(@nosuchmacro(1)) }`, path, 0, stapopts.TranslatorSystemtap, "unknown operator @nosuchmacro"},
		{"C for SystemTap's runtime", `function f:long(a:long) %{ /* unmangled */ THIS->__retvalue = THIS->a; %} probe begin { println(f(1)) }`, path, 0, stapopts.TranslatorSystemtap, "/* unmangled */ is not supported"},
		{"an optional point it lacks", `probe begin, kernel.function("vfs_read")? { exit() }`, path, 0, stapopts.TranslatorSystemtap, "trying SystemTap"},
		{"a variable misspelt", `probe begin { println(5 . argv_40) }`, path, 1, "", "no variable argv_40"},
		{"an error of the script", `probe begin { `, path, 1, "", "parse error"},
		{"an error of upstream", `probe kernel.function("broken") { exit() }`, path, 1, "", "upstream says so"},
		{"no upstream", `probe kernel.function("vfs_read") { exit() }`, "/nosuch/stap", 1, "", `hint: SystemTap might know it, but asking "/nosuch/stap"`},
		{"not upstream", `probe kernel.function("vfs_read") { exit() }`, "/bin/true", 1, "", `"/bin/true" is not the stap of SystemTap`},
		{"this program", `probe kernel.function("vfs_read") { exit() }`, "/proc/self/exe", 1, "", "is this program"},
	} {
		b, err := New(stapopts.TranslatorAuto, lookup(tt.path), []string{"PATH=/usr/bin:/bin"})
		if err != nil {
			t.Fatal(err)
		}
		j, _, stderr := job(t, tt.script)
		j.Verbose = 1
		if tt.made == stapopts.TranslatorBuiltin {
			j.LastPass = 3 // without headers
		}
		j.Guru = strings.Contains(tt.script, "%{")
		a, rc := b.Translate(context.Background(), j)
		if rc != tt.rc || a.Translator != tt.made || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%s: got %+v, %d\n%s", tt.name, a, rc, stderr)
		}
	}
	if _, err := New("x", nil, nil); err == nil {
		t.Error("translator x")
	}
}

// The real thing, where it is installed, does by way of this package what it does by
// itself: it builds the module, or says why not (4.8 does not build on the kernels of
// its own distribution).
func TestSystemtapItself(t *testing.T) {
	path, err := FindSystemtap(context.Background(), os.LookupEnv)
	dirs := filepath.SplitList(os.Getenv("STAPBOX_KERNEL_HEADERS"))
	if err != nil || len(dirs) == 0 {
		t.Skipf("missing: an installed SystemTap (%v) and STAPBOX_KERNEL_HEADERS", err)
	}
	j, _, stderr := job(t, "probe begin { exit() }")
	j.Kernel = dirs[0]
	alone := exec.Command(path, "-p4", "-r", j.Kernel, "-e", "probe begin { exit() }")
	alone.Dir = t.TempDir()
	out, err := alone.CombinedOutput()
	a, rc := (Systemtap{Path: path, Environ: os.Environ()}).Translate(context.Background(), j)
	if (rc == 0) != (err == nil) || (rc == 0) != (a.Path != "") {
		t.Errorf("status %d\n%s\nalone: %v\n%s", rc, stderr, err, out)
	}
	if last := lastError(out); err != nil && (last == "" || !strings.Contains(stderr.String(), last)) {
		t.Errorf("alone it says %q, by way of this package:\n%s", last, stderr)
	}
}

// lastError is the last line of a compiler's output that tells of an error, from
// the line number on: the rest names a temporary directory.
func lastError(out []byte) (last string) {
	for line := range strings.Lines(string(out)) {
		if _, text, ok := strings.Cut(line, " error: "); ok {
			last = strings.TrimSpace(text)
		}
	}
	return last
}
