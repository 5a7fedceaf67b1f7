package script

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"stapbox/core/privilege"
	"stapbox/core/script/diag"
)

var opts = Options{Release: "7.2.13+deb14-cloud-amd64", Arch: "x86_64"}

// say runs the passes up to n and returns what stap would print.
func say(text string, n int, o Options) string {
	var out bytes.Buffer
	r := &diag.Renderer{W: &out}
	fail := func(err error) string {
		var l *diag.List
		if !errors.As(err, &l) {
			return "unexpected error type: " + err.Error()
		}
		r.Failure(l)
		r.Close()
		return out.String()
	}
	p, err := Parse(Source{"<input>", text}, o)
	if err != nil {
		return fail(err)
	}
	if n == 1 {
		p.Dump(&out)
		return out.String()
	}
	prog, err := p.Check()
	r.Warnings(prog.Warnings)
	if err != nil {
		return fail(err)
	}
	prog.Dump(&out, false)
	r.Close()
	return out.String()
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var countLines = regexp.MustCompile(`Number of similar error messages suppressed: \d+\.\nRerun with -v to see them\.\n`)

func TestMessagesLikeUpstream(t *testing.T) {
	files, _ := filepath.Glob("testdata/bad/*.stp")
	if len(files) < 40 {
		t.Fatalf("%d scripts in testdata/bad, want 40 and more", len(files))
	}
	for _, f := range files {
		text := strings.TrimSuffix(read(t, f), "\n")
		want := read(t, strings.TrimSuffix(f, ".stp")+".err")
		pass := 1
		if strings.HasPrefix(filepath.Base(f), "p2-") {
			pass = 2
		}
		got := say(text, pass, opts)
		if pass == 2 {
			got, want = countLines.ReplaceAllString(got, ""), countLines.ReplaceAllString(want, "")
		}
		if strings.TrimRight(got, "\n") != strings.TrimRight(want, "\n") {
			t.Errorf("%s: %s\ngot\n%s\nwant\n%s", f, text, got, want)
		}
	}
}

func TestListingsLikeUpstream(t *testing.T) {
	for _, ext := range []string{"p1", "p2"} {
		files, _ := filepath.Glob("testdata/listing/*." + ext)
		if len(files) == 0 {
			t.Fatalf("no %s listings", ext)
		}
		for _, f := range files {
			o := opts
			o.Guru = ext == "p1"
			text := strings.TrimSuffix(read(t, strings.TrimSuffix(f, ext)+"stp"), "\n")
			got := say(text, int(ext[1]-'0'), o)
			want := countLines.ReplaceAllString(read(t, f), "")
			if countLines.ReplaceAllString(got, "") != want {
				t.Errorf("%s: got\n%s\nwant\n%s", f, got, want)
			}
		}
	}
}

// What this translator reads and gives no meaning names the construct.
func TestConstructsWithoutMeaning(t *testing.T) {
	const by = " is not supported by the built-in translator"
	for _, test := range []struct{ script, want string }{
		{`global a probe begin { a <<< 1 println(@variance(a)) }`, "statistics extraction @variance" + by},
		{`global a probe begin { a <<< 1 println(5 in @hist_log(a)) }`, "in of a histogram" + by},
		{`global a probe begin { a[1] <<< 1 foreach (k in a @variance+) println(k) }`, "sorting by @variance" + by},
		{`probe kernel.function("vfs_read") { println(1) }`, `probe point kernel.function("vfs_read")` + by},
		{`probe process("x").begin { println(1) }`, "probe point process" + "(\"x\").begin" + by},
		{`probe begin { println($foo) }`, "context variable $foo" + by},
		{`probe begin { println(@var("x@y.c")) }`, "context variable @var" + by},
		{`probe begin { println(@cast(1, "task_struct")->pid) }`, "@cast" + by},
		{`probe begin { x = 1 println(x->y) }`, "dereference of a pointer" + by},
		{`probe begin { println(&$foo) }`, "address operator &" + by},
		{`probe begin { println("a" =~ "b") }`, "regular expression operator =~" + by},
		{`probe begin { println(@defined(@cast(1, "task_struct")->pid)) }`, "@defined" + by},
		{`probe begin { println(@enum("X")) }`, "@enum" + by},
	} {
		o := opts
		o.Guru = true
		if got := say(test.script, 2, o); !strings.Contains(got, "semantic error: ") || !strings.Contains(got, test.want) {
			t.Errorf("%s: got\n%s\nwant %q", test.script, got, test.want)
		}
	}
}

func TestStatistics(t *testing.T) {
	for _, test := range []struct{ script, want string }{
		{`global a probe begin { a <<< "x" }`, "type mismatch: expected long but found string"},
		{`global a probe begin { a <<< 1; a = 3 }`, "type was first inferred here (stats)"},
		{`global a=3 probe begin { a <<< 1 }`, "type mismatch"},
		{`probe begin { println(@count(z)) }`, "stat locals not supported, missing global declaration? "},
		{`global a probe begin { a <<< 1 print(@hist_log(a)) print(@hist_linear(a, 0, 1, 1)) }`, "multiple histogram types declared on 'a': operator '@hist_linear'"},
		{`global a probe begin { a <<< 1 print(@hist_linear(a, 0, 1, 0)) }`, "interval of a histogram must be greater than 0"},
		{`global a probe begin { a <<< 1 print(@hist_linear(a, 5, 1, 1)) }`, "must not be less than its start"},
		{`global a probe begin { a <<< 1 print(@hist_linear(a, 0, 1000000, 1)) }`, "at most"},
		{`global a probe begin { a[1] <<< 1 println(@count(a[*])) }`, "wildcard not allowed in array index"},
		{`global a probe begin { a[1] <<< 1 foreach (v = k in a) println(k, v) }`, "invalid type stats: identifier 'v'"},
		{`global a probe begin { println(@count(a + 1)) }`, "semantic error: "},
	} {
		if got := say(test.script, 2, opts); !strings.Contains(got, "semantic error: ") || !strings.Contains(got, test.want) {
			t.Errorf("%s: got\n%s\nwant %q", test.script, got, test.want)
		}
	}
	got := say(`global a, b, u probe begin { a <<< 1; b["x"] <<< a_count(); u <<< 3 foreach (k in b @sum- limit 2) println(@avg(b[k])) foreach (i in @hist_log(a)) println(@hist_log(a)[i]) } function a_count() { return @count(a) }`, 2, opts)
	if !strings.HasPrefix(got, "# globals\na:stats\nb:stats [string]\nu:stats\n# functions\na_count:long ()\n# probes\n") || !strings.Contains(got, "end /*") {
		t.Errorf("got\n%s", got)
	}
}

// The texts but those of the last group are upstream's.
func TestProcfsProbes(t *testing.T) {
	for _, test := range []struct{ script, want string }{
		{`probe procfs("").read { $value = "" }`, "procfs path cannot end with a '/': identifier 'procfs' at :1:7"},
		{`probe procfs("a/").read { $value = "" }`, "procfs path cannot end with a '/'"},
		{`probe procfs("/a").read { $value = "" }`, "procfs path cannot start with a '/'"},
		{`probe procfs("a/../b").read { $value = "" }`, "procfs path cannot be relative (and contain '.' or '..')"},
		{`probe procfs(".").read { $value = "" }`, "procfs path cannot be relative (and contain '.' or '..')"},
		{`probe procfs("x").read.maxsize(0) { $value = "" }`, "maxsize must be greater than 0"},
		{`probe procfs("x").maxsize(10).read { $value = "" }`, "identifier 'maxsize' at :1:19"},
		{`probe procfs("x").write.maxsize(10) { print($value) }`, "invalid suffix for probe: identifier 'maxsize' at :1:25"},
		{`probe procfs("x").read.umask(0) { $value = "" }`, "invalid suffix for probe: identifier 'umask' at :1:24"},
		{`probe procfs("x") { println(1) }`, "probe point truncated (follow:  read umask(number) write): identifier 'procfs' at :1:7"},
		{`probe procfs(1).read { println(1) }`, "probe point mismatch"},
		{`probe procfs("x").foo { println(1) }`, "probe point mismatch (similar: read, umask, write): identifier 'foo' at :1:19"},
		{`probe procfs("x").write { $value = "a" }`, "procfs $value variable is read-only in a procfs write probe: identifier '$value' at <input>:1:27"},
		{`probe procfs("x").read { println($value) $value = "a" }`, "procfs $value variable cannot be read in a procfs read probe: identifier '$value' at <input>:1:34"},
		{`probe procfs("x").read { println($foo) }`, "invalid target symbol for procfs probe, $value expected: identifier '$foo' at <input>:1:34"},
		{`probe procfs.read { $value = 1 }`, "type mismatch: expected string but found long: number '1' at <input>:1:30"},
		{`probe procfs.read { $value++ }`, "Only the following assign operators are implemented on procfs read target variables: '=', '.=': identifier '$value' at <input>:1:21"},
		{`probe procfs.read { $value += 1 }`, "Only the following assign operators are implemented"},
		{`probe begin { println($value) }`, "context variable $value"},

		{`probe procfs("a//b").read { $value = "" }`, "procfs path cannot contain '//'"},
		{"probe procfs(\"a\\nb\").read { $value = \"\" }", "procfs path cannot contain control characters"},
		{`probe procfs("` + strings.Repeat("x", 256) + `").read { $value = "" }`, "procfs path is longer than 255 bytes"},
		{`probe procfs(".cmd").read { $value = "" }`, `procfs path ".cmd" is a file of the runtime`},
		{`probe procfs("trace12").read { $value = "" }`, `procfs path "trace12" is a file of the runtime`},
		{`probe procfs("monitor_status").read { $value = "" }`, `procfs path "monitor_status" is a file of the runtime`},
		{`probe procfs("a").read { $value = "" } probe procfs("a/b").read { $value = "" }`, `procfs path "a" is a file and a directory`},
		{`probe procfs("x").umask(01000).read { $value = "" }`, "umask 01000 is not between 0 and 0777"},
		{`probe procfs("x").read.maxsize(16777217) { $value = "" }`, "maxsize must not be greater than 16777216"},
	} {
		if got := say(test.script, 2, opts); !strings.Contains(got, "semantic error: ") || !strings.Contains(got, test.want) {
			t.Errorf("%s: got\n%s\nwant %q", test.script, got, test.want)
		}
	}
	for _, good := range []string{
		`probe procfs.read { $value = "a" $value .= "b" } probe procfs.write { println($value) }`,
		`probe procfs("a/b").umask(0).read.maxsize(9), procfs("a/c").umask(0777).read { $value = sprint(pid()) }`,
		`probe procfs("trace").read, procfs("tracex1").read { $value = "" }`,
		`probe input.char { print(char) } probe input.line { print(line) }`,
	} {
		if got := say(good, 2, opts); !strings.HasPrefix(got, "# ") {
			t.Errorf("%s: got\n%s", good, got)
		}
	}
}

func TestPrivilege(t *testing.T) {
	usr, sys := privilege.StapUsr, privilege.StapUsr|privilege.StapSys
	all := `begin, end, error, never, timer.s(1), timer.ms(1), timer.us(100), timer.ns(100000), timer.jiffies(1), timer.hz(1)`
	for _, test := range []struct {
		level  privilege.Level
		script string
		want   string // part of the message; "" for accepted
	}{
		{usr, `probe ` + all + ` { println(pid(), execname(), uid(), tokenize("a", "b")) exit() }`, ""},
		{usr, `probe begin { println(ctime(1)) }`, "function may not be used when --privilege=stapusr is specified: identifier 'ctime'"},
		{usr, `probe begin { println(ctime()) }`, "function may not be used when --privilege=stapusr is specified: identifier 'ctime'"},
		{sys, `probe begin { println(ctime(1)) }`, ""},
		{usr, `probe begin { printf("%m", 1) }`, "print conversion %m may not be used when --privilege=stapusr"},
		{sys, `probe begin { printf("%M", 1) }`, "print conversion %M may not be used when --privilege=stapsys"},
		{privilege.All, `probe begin { printf("%m", 1) }`, ""},
		{usr, `probe kernel.function("x") { println(1) }`, "probe point is not allowed for --privilege=stapusr"},
		{usr, `probe timer.profile { println(1) }`, "probe point is not allowed for --privilege=stapusr: identifier 'profile'"},
		{usr, `probe begin { system("ls") println(tz_name(), tz_gmtoff()) }`, ""},
		{usr, `probe begin { println(tz_ctime(1)) }`, "function may not be used when --privilege=stapusr is specified: identifier 'ctime'"},
		{usr, `probe procfs("x").read { $value = "" }`, "probe point is not allowed for --privilege=stapusr: identifier 'read'"},
		{usr, `probe procfs.umask(0).write { print($value) }`, "probe point is not allowed for --privilege=stapusr: identifier 'write'"},
		{usr, `probe input.char { print(char) }`, "probe point is not allowed for --privilege=stapusr"},
		{usr, `probe begin { println(_stdin_line()) }`, "function may not be used when --privilege=stapusr"},
		{sys, `probe input.line { print(line) } probe procfs("x").read { $value = "" }`, ""},
		{usr, `function f() %{ %} probe begin { f() }`, "embedded code in unprivileged script; need stap -g"},
		{usr, `probe begin { println(%{ 1 %}) }`, "embedded expression code in unprivileged script; need stap -g"},
	} {
		o := opts
		o.Privilege = test.level
		got := say(test.script, 2, o)
		if test.want == "" && strings.Contains(got, "error:") || !strings.Contains(got, test.want) {
			t.Errorf("%v %s: got\n%s\nwant %q", test.level, test.script, got, test.want)
		}
	}
}

// Hostile input ends with a message, soon.
func TestLimits(t *testing.T) {
	rep := strings.Repeat
	for _, test := range []struct{ name, script, want string }{
		{"parentheses", "probe begin { x = " + rep("(", 100000) + "1" + rep(")", 100000) + " }", "nested too deeply"},
		{"blocks", "probe begin " + rep("{", 100000), "nested too deeply"},
		{"unary", "probe begin { x = " + rep("-", 1) + rep(" -", 100000) + " 1 }", "nested too deeply"},
		{"chain", "probe begin { x = 1" + rep(" + 1", 100000) + " println(x) }", "expression is too long"},
		{"else if", "probe begin { " + rep("if (1) ; else ", 100000) + " ; }", "nested too deeply"},
		{"macros", "@define a %( 1 1 1 1 1 1 1 1 1 1 %) @define b %( @a @a @a @a @a @a @a @a @a @a %) @define c %( @b @b @b @b @b @b @b @b @b @b %)" +
			" @define d %( @c @c @c @c @c @c @c @c @c @c %) @define e %( @d @d @d @d @d @d @d @d @d @d %) @define f %( @e @e @e @e @e @e @e @e @e @e %)" +
			" @define g %( @f @f @f @f @f @f @f @f @f @f %) probe begin { @g }", "macro expansion is too large"},
		{"macro loop", "@define x %( @x %) probe begin { y = @x }", "recursive invocation of macro '@x'"},
		{"conditionals", rep("%( 1 == 1 %? ", 10000) + "probe begin {}", "conditionals are nested too deeply"},
		{"points", "probe " + rep("{a,a,a,a,a,a,a,a,a,a}.", 9) + "b {}", "too many probe points"},
		{"patterns", "probe begin" + func() string {
			var b strings.Builder
			for i := range 9000 {
				fmt.Fprintf(&b, ", *x%d.**?", i)
			}
			return b.String()
		}() + " { println(1) }", "stand for too many probe points"},
		{"patterns that all match", "probe begin" + func() string {
			var b strings.Builder
			for i := range 9000 {
				b.WriteString(", *" + rep("*", i%200) + ".*" + rep("*", i/200) + "?")
			}
			return b.String()
		}() + " { println(1) }", "is not supported"},
		{"aliases with errors", "probe a0 = kernel.function(\"f\") {}" + func() string {
			var b strings.Builder
			for i := range 50000 {
				fmt.Fprintf(&b, " probe a%d = a%d {}", i+1, i)
			}
			return b.String()
		}() + " probe a50000, a3 { println(1) }", "is not supported"},
		{"source", rep(" ", 5<<20), "is larger than"},
		{"aliases", "probe a0 = begin {}" + func() string {
			s := ""
			for i := 1; i < 50; i++ {
				s += " probe a" + itoa(i) + " = a" + itoa(i-1) + ", a" + itoa(i-1) + " {}"
			}
			return s
		}() + " probe a49 { println(1) }", "too"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := say(test.script, 2, opts); !strings.Contains(got, test.want) {
				t.Errorf("got\n%.300s\nwant %q", got, test.want)
			}
		})
	}
	o := opts
	o.Args = []string{rep("x", 1<<20)}
	if got := say("probe begin { "+rep("$1 ", 1000)+"}", 1, o); !strings.Contains(got, "script arguments are inserted too often") {
		t.Errorf("arguments: got %.200s", got)
	}
}

// The time for large scripts must not explode.
func TestLargeScripts(t *testing.T) {
	many := func(n int, f func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(f(i))
		}
		return b.String()
	}
	for name, text := range map[string]string{
		"globals":   many(10000, func(i int) string { return fmt.Sprintf("global g%d\n", i) }) + "probe begin {" + many(10000, func(i int) string { return fmt.Sprintf("g%d = %d ", i, i) }) + "}",
		"locals":    "probe begin {" + many(10000, func(i int) string { return fmt.Sprintf("println(v%d) ", i) }) + "}",
		"backwards": "probe begin {" + many(5000, func(i int) string { return fmt.Sprintf("a%d = a%d println(a%d) ", i, i+1, i) }) + "a5000 = 1 }",
		"functions": many(5000, func(i int) string { return fmt.Sprintf("function f%d(x) { return f%d(x) }\n", i, (i+1)%5000) }) + "probe begin { f1(1) println(f2(2)) }",
		"dead":      "probe begin {" + many(5000, func(i int) string { return fmt.Sprintf("a%d = a%d ", i, i+1) }) + "println(1) }",
		"aliases":   many(2000, func(i int) string { return fmt.Sprintf("probe a%d = begin {}\n", i) }) + many(2000, func(i int) string { return fmt.Sprintf("probe a%d { println(1) }\n", i) }),
	} {
		t.Run(name, func(t *testing.T) {
			start := processorTime(t)
			say(text, 2, opts)
			if d := processorTime(t) - start; d > 20*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// processorTime is what this process has used, whatever else the machine does.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func itoa(n int) string { return string([]byte{byte('0' + n/10), byte('0' + n%10)}) }

func TestArguments(t *testing.T) {
	o := opts
	o.Args = []string{"12", `a"b\`}
	got := say(`probe begin { x = $1 y = @2 z = $# w = @# v = "$1" }`, 1, o)
	for _, want := range []string{"(x) = (12);", `(y) = ("a\"b\\");`, "(z) = (2);", `(w) = ("2");`, `(v) = ("$1");`} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant %s", got, want)
		}
	}
}

func TestConditionals(t *testing.T) {
	o := opts
	o.Config = map[string]string{"CONFIG_SMP": "y"}
	o.Args = []string{"5"}
	o.Guru = true
	for _, test := range []struct {
		cond string
		want bool
	}{
		{`kernel_v >= "2.6.30"`, true},
		{`kernel_v < "7.2.2"`, false},
		{`kernel_v == "7.*"`, true},
		{`kernel_vr == "7.2.13*amd64"`, true},
		{`kernel_vr != "7.2.13*amd64"`, false},
		{`arch == "x86_*"`, true},
		{`arch != "arm64"`, true},
		{`CONFIG_SMP == "y"`, true},
		{`CONFIG_NONE == ""`, true},
		{`systemtap_v >= "5.0"`, true},
		{`systemtap_v < "4.10"`, false},
		{`systemtap_privilege == "stapdev"`, true},
		{`runtime == "kernel"`, true},
		{`guru_mode == 1`, true},
		{`"a" < "b"`, true},
		{`1 == 2`, false},
		{`$1 == 5`, true},
		{`@1 == "5"`, true},
		{`$# == 1`, true},
		{`1 == 2 && 1 == 1 || 2 == 2`, true},
		{`1 == 1 || 1 == 1 && 1 == 2`, true},
	} {
		got := say(`probe begin { x = %( `+test.cond+` %? 111 %: 222 %) }`, 1, o)
		want := "222"
		if test.want {
			want = "111"
		}
		if !strings.Contains(got, want) || strings.Contains(got, "333") {
			t.Errorf("%s: got\n%s\nwant %s", test.cond, got, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, dir := range []string{"bad", "listing"} {
		files, _ := filepath.Glob("testdata/" + dir + "/*.stp")
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(b))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		// A script that keeps the passes busy is a failure too.
		stuck := time.AfterFunc(20*time.Second, func() { panic("no end in sight for: " + text) })
		defer stuck.Stop()
		o := opts
		o.Guru = true
		o.Args = []string{"1", "x"}
		say(text, 1, o)
		say(text, 2, o)
	})
}
