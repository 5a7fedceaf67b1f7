package translate

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stapbox/core/kruntime"
	"stapbox/core/privilege"
	"stapbox/core/script"
	"stapbox/core/script/check"
)

var update = flag.Bool("update", false, "rewrite the expected outputs in testdata")

func load(t testing.TB, name, text string) (*check.Program, error) {
	t.Helper()
	_, p, err := script.Load(script.Source{Name: name, Text: text}, script.Options{Release: "6.1.0", Arch: "x86_64"})
	return p, err
}

func defines(text string) []string {
	line, _, _ := strings.Cut(text, "\n")
	opts, ok := strings.CutPrefix(line, "//opts: ")
	if !ok {
		return nil
	}
	var out []string
	for _, d := range strings.Fields(opts) {
		out = append(out, strings.TrimPrefix(d, "-D"))
	}
	return out
}

func unit(t testing.TB, text string, o Options) string {
	t.Helper()
	p, err := load(t, "t.stp", text)
	if err != nil {
		t.Fatalf("checking %q: %v", text, err)
	}
	c, err := Translate(p, o)
	if err != nil {
		t.Fatalf("translating %q: %v", text, err)
	}
	return string(c)
}

// toolchain compiles the portable part of the runtime for user space once.
type toolchain struct{ gcc, dir string }

func newToolchain(t *testing.T) *toolchain {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is missing")
	}
	tc := &toolchain{gcc, t.TempDir()}
	shim := filepath.Join("..", "kruntime", "testdata", "user")
	if err := os.CopyFS(tc.dir, os.DirFS(shim)); err != nil {
		t.Fatal(err)
	}
	sources := kruntime.Sources()
	files := []string{"harness.c"}
	for _, name := range []string{"context.c", "limit.c", "print.c", "number.c", "format.c", "string.c", "text.c", "map.c", "stat.c", "log.c"} {
		if err := os.WriteFile(filepath.Join(tc.dir, name), sources[name], 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, name)
	}
	if err := os.WriteFile(filepath.Join(tc.dir, kruntime.HeaderName), kruntime.Header(), 0o600); err != nil {
		t.Fatal(err)
	}
	tc.run(t, append([]string{"-c", "-O1", "-I."}, files...)...)
	tc.run(t, append([]string{"-r", "-nostdlib", "-o", "runtime.o"}, objects(files)...)...)
	return tc
}

func objects(files []string) []string {
	var out []string
	for _, f := range files {
		out = append(out, strings.TrimSuffix(f, ".c")+".o")
	}
	return out
}

func (tc *toolchain) run(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(tc.gcc, args...)
	cmd.Dir = tc.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// build compiles a unit and answers the program.
func (tc *toolchain) build(t *testing.T, c string) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(tc.dir, "unit.c"), []byte(c), 0o600); err != nil {
		t.Fatal(err)
	}
	tc.run(t, append(slices.Clone(Flags), "-O2", "-Wall", "-Werror", "-I.", "-o", "unit", "unit.c", "runtime.o")...)
	return filepath.Join(tc.dir, "unit")
}

// The scripts of testdata, run in user space with the runtime's own sources.
// Their output was compared with what upstream 5.6 prints for them.
func TestScripts(t *testing.T) {
	tc := newToolchain(t)
	scripts, err := filepath.Glob("testdata/*.stp")
	if err != nil || len(scripts) < 20 {
		t.Fatalf("%d scripts in testdata, error %v", len(scripts), err)
	}
	for _, path := range scripts {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			p, err := load(t, name, string(text))
			if err != nil {
				t.Fatal(err)
			}
			c, err := Translate(p, Options{Defines: defines(string(text))})
			if err != nil {
				t.Fatal(err)
			}
			got, err := exec.Command(tc.build(t, string(c))).Output()
			var exit *exec.ExitError
			if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
				t.Fatalf("running: %v", err)
			}
			golden := strings.TrimSuffix(path, ".stp") + ".out"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestSnippets(t *testing.T) {
	for _, tt := range []struct{ name, script, want string }{
		{"addition wraps", "global g probe begin { g += 3 println(g) }", "g_g = stp_add(g_g, 3LL);"},
		{"division is guarded", "global g probe begin { println(1 / g) g = 1 }", `stp_div(c, 1LL, g_g, "operator '/' at t.stp:1:34")`},
		{"smallest number", "global g probe begin { g = -9223372036854775807 - 1 println(g) }", "9223372036854775807LL"},
		{"begin priority", "probe begin(-3) { println(1) }", `{ STP_BEGIN, 0, 0, 0, (-3LL), 0LL, "begin(-3)", "begin(-3)" }`},
		{"timer", "probe timer.ms(2).randomize(1) { println(1) }", "{ STP_TIMER, 0, 0, 0, 2000000LL, 1000000LL,"},
		{"jiffies", "probe timer.jiffies(7) { println(1) }", "{ STP_TIMER, STP_JIFFIES, 0, 0, 7LL, 0LL,"},
		{"profile", "probe timer.profile { println(1) }", "{ STP_TIMER, STP_JIFFIES | STP_EVERY_CPU, 0, 0, 1LL, 0LL,"},
		{"parameter", "global g = 4 probe begin { println(g) }", `STP_PARAM_LONG(g_g, "g");`},
		{"string parameter", `global g = "x" probe begin { println(g) }`, `STP_PARAM_STRING(g_g, "g");`},
		{"array", `global a%[7] probe begin { a["x", 1] = "y" println(a["x", 1]) }`, `{ "a", &g_a, 7, 1, 1, 2, { STP_STRING, STP_STRING, STP_LONG } }`},
		{"sorting locks for writing", `global a probe timer.s(1) { foreach (k+ in a) println(k) } probe begin { a[1] = 1 }`, "0 | STP_LOCK_WRITE,\n\t0 | STP_LOCK_WRITE,"},
		{"reading locks for reading", `global a probe timer.s(1) { println(a) } probe begin { a = 1 }`, "0 | STP_LOCK_WRITE,\n\t0,"},
		{"parts", "global a probe timer.s(1) { a[1] = 1 println(a[1]) }", "STP_SCRIPT_PARTS(1, 1, 0, 0, NULL, NULL)"},
		{"no parts", "probe begin { println(1) }", "STP_SCRIPT_PARTS(0, 0, 0, 0, NULL, NULL)"},
		{"call site", "function f() { println(1) return 1 } probe begin { println(f()) }", `fn_f(c, "identifier 'f' at t.stp:1:60")`},
	} {
		if got := unit(t, tt.script, Options{}); !strings.Contains(got, tt.want) {
			t.Errorf("%s: no %q in\n%s", tt.name, tt.want, got)
		}
	}
}

func TestPrivilege(t *testing.T) {
	for level, want := range map[privilege.Level]string{privilege.StapUsr: "STP_PRIVILEGE(2);", privilege.StapSys: "STP_PRIVILEGE(4);", privilege.StapDev: "STP_PRIVILEGE(8);", privilege.None: "STP_PRIVILEGE(8);"} {
		_, p, err := script.Load(script.Source{Name: "t.stp", Text: "probe begin { println(1) }"}, script.Options{Release: "6.1.0", Arch: "x86_64", Privilege: level})
		if err != nil {
			t.Fatal(err)
		}
		c, err := Translate(p, Options{})
		if err != nil || !strings.Contains(string(c), want) {
			t.Errorf("level %v: no %q, error %v", level, want, err)
		}
	}
}

// Texts and names of a script must not be able to leave their place in the C
// text: neither as string, nor as comment, nor as trigraph.
func TestInjection(t *testing.T) {
	tc := newToolchain(t)
	text := `global g = "\"; int evil; char *x = \"" probe begin { printf("%s*/ int evil;\n", "a\"b\\c\n??/\" ??= %d \x01\377") println(g) }`
	p, err := load(t, "*/ int evil; /*\n#include \"/etc/passwd\"\n.stp", text)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Translate(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(c), "??") || strings.Contains(string(c), "\n#include \"/etc") {
		t.Errorf("unescaped text in\n%s", c)
	}
	got, err := exec.Command(tc.build(t, string(c))).Output()
	want := "a\"b\\c\n??/\" ??= %d \x01\xff*/ int evil;\n\"; int evil; char *x = \"\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q, want %q, error %v", got, want, err)
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct{ define, want string }{
		{"MAXACTION=7", "\t\t{ 7, 10000000LL, \"MAXTIME exceeded (10 ms)\" },\n\t\t{ 70, 100000000LL, \"MAXTIME_INTERRUPTIBLE exceeded (100 ms)\" },\n\t\t{ 70, 1000000000LL, \"MAXTIME_SESSION exceeded (1000 ms)\" },\n"},
		{"MAXACTION_INTERRUPTIBLE=7", "\t\t{ 1000, 10000000LL, \"MAXTIME exceeded (10 ms)\" },\n\t\t{ 7, 1"},
		{"MAXTIME=20", "\t\t{ 1000, 20000000LL, \"MAXTIME exceeded (20 ms)\" },"},
		{"MAXTIME_INTERRUPTIBLE=0", "\t\t{ 10000, 0LL, \"MAXTIME_INT"},
		{"MAXTIME_SESSION=3", "\t\t{ 10000, 3000000LL, \"MAXTIME_SESSION exceeded (3 ms)\" },"},
		{"MAXSTRINGLEN=64", "#define STP_MAXSTRINGLEN 64\n"},
		{"MAXERRORS=0x10", ".max_errors = 16,"},
		{"MAXSKIPPED=5UL", ".max_skipped = 5,"},
		{"MAXTRYLOCK=(3)", ".max_trylock = 3,"},
		{"TRYLOCKDELAY=2", ".trylock_delay = 2,"},
		{"MAXNESTING=33", ".max_nesting = 33,"},
		{"STP_OVERLOAD_THRESHOLD=9LL", ".overload_threshold = 9,"},
		{"STP_OVERLOAD_INTERVAL=8LL", ".overload_interval = 8,"},
		{"STP_NO_OVERLOAD", ".overload_threshold = 0,"},
		{"MINSTACKSPACE=2048", ".min_stack = 6144,"},
		{"SOMETHING_ELSE=x", "\t\t{ 1000, 1"},
	} {
		if got := unit(t, "probe begin { println(1) }", Options{Defines: []string{tt.define}}); !strings.Contains(got, tt.want) {
			t.Errorf("-D %s: no %q", tt.define, tt.want)
		}
	}
	got := unit(t, "probe begin { println(1) }", Options{SuppressTimeLimits: true, Defines: []string{"MAXACTION=5", "MAXTIME=5"}})
	for _, want := range []string{"\t\t{ 0, 0LL, ", ".max_trylock = 9223372036854775807,", ".overload_threshold = 0,"} {
		if !strings.Contains(got, want) {
			t.Errorf("--suppress-time-limits: no %q", want)
		}
	}
	for _, d := range []string{"MAXACTION=x", "MAXTIME=-1", "MAXSTRINGLEN=0", "MAXSTRINGLEN=1000000", "MAXNESTING=-1", "MAXNESTING=100000",
		"MAXMAPENTRIES=0", "STP_BUFFER_SIZE=1", "MAXERRORS=99999999999999999999"} {
		p, err := load(t, "t.stp", "probe begin { println(1) }")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Translate(p, Options{Defines: []string{d}}); err == nil || !strings.Contains(err.Error(), "-D MAX") && !strings.Contains(err.Error(), "-D STP_") {
			t.Errorf("-D %s: error %v does not name the limit", d, err)
		}
	}
}

// A member of stapusr made a frame of 24 KB on a kernel stack of 16 KB, past its
// guard page, with 3000 calls in one statement.
func TestScriptCannotExceedTheKernelStack(t *testing.T) {
	tc := newToolchain(t)
	many := func(what, between string, n int) string {
		return strings.TrimSuffix(strings.Repeat(what+between, n), between)
	}
	for _, tt := range []struct{ name, script, want string }{
		{"calls", "function f() { return 1 } probe begin { println(" + many("f()", ",", 3000) + ") }", strings.Repeat("1", 3000) + "\n"},
		{"increments", "global g probe begin { println(" + many("g++", "+", 500) + ") }", "124750\n"},
		{"assignments", "global a probe begin { x = 1 " + many("a[x, x] = x", " ", 1500) + " println(a[1, 1]) }", "1\n"},
		{"reads", "global a probe begin { x = 1 a[1, x] = 1 " + many("y += a[x, x]", " ", 600) + " println(y) }", "600\n"},
		{"reads in one", "global a probe begin { x = 1 a[1, x] = 1 println(" + many("a[x, x]", ",", 1500) + ") }", strings.Repeat("1", 1500) + "\n"},
		{"membership", "global a probe begin { x = 1 a[x] = 1 println(" + many("([x] in a)", ",", 500) + ") }", strings.Repeat("1", 500) + "\n"},
		{"deletion", "global a probe begin { x = 1 a[x, 2] = 1 " + many("delete a[x, x]", " ", 600) + " println([1, 2] in a) }", "1\n"},
		{"divisions", "global g = 1 probe begin { println(" + many("8/g", ",", 2000) + ") }", strings.Repeat("8", 2000) + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := exec.Command(tc.build(t, unit(t, tt.script, Options{Defines: []string{"MAXACTION=100000"}}))).Output()
			if err != nil || !strings.HasPrefix(string(got), tt.want) {
				t.Errorf("got %q, error %v", got, err)
			}
		})
	}
	// What still needs too much is refused by the compiler.
	c := unit(t, "probe begin { println(1) }", Options{}) +
		"long stp_more(long *);\nlong stp_large(void) { long a[300]; return stp_more(a) + a[0]; }\n"
	if err := os.WriteFile(filepath.Join(tc.dir, "large.c"), []byte(c), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tc.gcc, "-O2", "-c", "-I.", "large.c")
	cmd.Dir = tc.dir
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "frame size") {
		t.Errorf("a frame of 2400 bytes: %v\n%s", err, out)
	}
}

// 8 sorts of 300,000 elements took a member of stapusr 5 s with interrupts off
// and counted as 24 statements; MAXACTION would have allowed thousands.
func TestWorkOnLargeArraysCounts(t *testing.T) {
	tc := newToolchain(t)
	for _, work := range []string{
		"if ([-1, *] in a) n++", "delete a[-1, *]", "foreach ([p, q-] in a limit 0) n++", "foreach ([p, q] in a[-1, *]) n++",
	} {
		// Filling it takes 160,000 of the 200,000 statements allowed.
		script := "global a[100000], n probe begin { for (i = 0; i < 40000; i++) a[i, i] = 1 for (i = 0; i < 6000; i++) { " + work + " } println(\"all\") }"
		got, err := exec.Command(tc.build(t, unit(t, script, Options{Defines: []string{"MAXACTION=20000"}}))).CombinedOutput()
		if err == nil || strings.Contains(string(got), "all") || !strings.Contains(string(got), "MAXACTION exceeded") {
			t.Errorf("%s: got %q, error %v", work, got, err)
		}
		small := strings.ReplaceAll(script, "40000", "900")
		got, err = exec.Command(tc.build(t, unit(t, small, Options{Defines: []string{"MAXACTION=20000"}}))).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(got), "all") {
			t.Errorf("%s of a small array: got %q, error %v", work, got, err)
		}
	}
}

func TestTooMuchMemory(t *testing.T) {
	p, err := load(t, "t.stp", `function f:string(s:string, n) { return n > 0 ? f(s . "x", n - 1) : s } probe begin { println(f("", 3)) }`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Translate(p, Options{Defines: []string{"MAXNESTING=10000", "MAXSTRINGLEN=65536"}}); err == nil || !strings.Contains(err.Error(), "MAXNESTING") {
		t.Errorf("error %v does not say what to lower", err)
	}
}

// Whatever the checker lets through is translated or refused with an error.
func FuzzTranslate(f *testing.F) {
	scripts, _ := filepath.Glob("testdata/*.stp")
	for _, path := range scripts {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(`probe begin { x <<< 1 println(@count(x)) }`)
	f.Add(`global a probe begin { a <<< 1 println(@hist_log(a)) }`)
	f.Add(`probe begin { if ("a" =~ "b") println(1) }`)
	f.Add(`global a, b probe begin { a["x"] <<< 3 foreach (k in a @avg- limit 1) print(@hist_linear(a[k], -5, 5, 2)) foreach (v = i in @hist_log(b)) println(v, @hist_log(b)[i]) delete b }`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := load(t, "t.stp", text)
		if err != nil {
			return
		}
		c, err := Translate(p, Options{})
		if err == nil && !strings.Contains(string(c), "const struct stp_script stp_script = {") {
			t.Errorf("no script in the unit of %q", text)
		}
	})
}

func TestUnsupported(t *testing.T) {
	for _, tt := range []struct{ script, want string }{
		{`probe begin { if ("a" =~ "b") println(1) }`, "regular expression"},
		{`global a probe begin { a <<< 1 println(a) }`, "statistics have no value"},
		{`global a probe begin { a[1] <<< 1 println(a[1]) }`, "statistics have no value"},
	} {
		p, err := load(t, "t.stp", tt.script)
		if err == nil {
			_, err = Translate(p, Options{})
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v does not say %q", tt.script, err, tt.want)
		}
	}
}
