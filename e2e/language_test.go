package e2e

import (
	"regexp"
	"strings"
	"testing"

	"stapbox/core/wire"
	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// TestServerLibraries has a server build what needs files of the request: a
// script in a file, tapsets with macros, C with the kernel's headers.
func TestServerLibraries(t *testing.T) {
	s := serve(t, "libraries", "--max-request-size=1000000", "--max-compressed-request=1000000")
	ask := func(args []string, files ...wire.File) *wire.Response {
		t.Helper()
		archive, err := (&wire.Request{Version: wire.Version, Release: s.kernel.Release, Arch: "x86_64", HasLocale: true, Args: args, Files: files}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := s.send(frameOf(archive), false)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	file := func(name, text string) wire.File { return wire.File{Name: name, Data: []byte(text)} }
	script := file("script/home/u/main.stp", "probe begin { println(add(@TWO, 3)) exit() }")
	tapset := []wire.File{
		script, file("tapset/home/u/ts/add.stp", "function add:long(a:long, b:long) %{ STAP_RETVALUE = STAP_ARG_a + STAP_ARG_b + (current->pid == 0); %}"),
		file("tapset/home/u/ts/"+s.kernel.Release+"/x86_64/two.stpm", "@define TWO %( 2 %)"),
	}
	two := []string{"script/home/u/main.stp", "-I", "tapset/home/u/ts", "-p4"}
	for _, tt := range []struct {
		name   string
		args   []string
		files  []wire.File
		module bool
		want   string // in stdout or stderr
	}{
		{"two files", two, tapset, true, ""},
		{"guru", []string{"-g", "-p4", "-e%{\n#include <linux/utsname.h>\n%} probe begin { println(%{ /* string */ utsname()->release %}) exit() }"}, nil, true, ""},
		{"guru with a header of the server", []string{"-g", "-p4", "-e%{\n#include \"/etc/shadow\"\n%} probe begin { exit() }"}, nil, false, "/etc/shadow: No such file or directory"},
		{"C without guru", []string{"-p4", "-e%{ int x; %} probe begin { exit() }"}, nil, false, "need stap -g"},
		{"without the macro", two, tapset[:2], false, "unknown operator @TWO"},
		{"without the tapset", two, tapset[:1], false, "unknown operator @TWO"},
		{"error in the script", two, []wire.File{file(script.Name, "probe begin { add( }")}, false, "at script/home/u/main.stp:1:20"},
		{"below stapdev", append(two, "--privilege=stapusr"), tapset, false, "You can't specify -I when --privilege=stapusr is specified."},
		{"tapset of the server", []string{"-I", "/usr/share", "-p2", "-eprobe begin { exit() }"}, nil, false, "is not part of the request"},
		{"missing script", []string{"script/home/u/none.stp", "-p2"}, nil, false, "Input file 'script/home/u/none.stp' is missing."},
		{"listing", []string{"-lbeg*"}, nil, false, "begin\n"},
		{"listing of nothing", []string{"-Lnosuch*"}, nil, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := ask(tt.args, tt.files...)
			modules, _ := r.Modules()
			if (len(modules) == 1) != tt.module || tt.module != (r.RC == 0) && tt.name != "listing" {
				t.Errorf("status %d, %d modules", r.RC, len(modules))
			}
			if !strings.Contains(string(r.Stdout)+string(r.Stderr), tt.want) || t.Failed() {
				t.Errorf("got %q, %q, want %q", r.Stdout, r.Stderr, tt.want)
			}
		})
	}
}

const (
	smallGaps = `
global s, u, n, off = 0, on = 1
probe init { printf("first, with %d arguments\n", argc) }
probe begin(-5) { printf("%d: %s %s [%s] [%s] %d\n", argc, argv[1], argv_2, argv_3, argv[32], NULL) }
probe begin {
	printf("%ld %lu %lx %#lx %-8ld|\n", -1, 7, 255, 255, 5)
	s <<< 1
	u <<< 5
	h = sprint(@hist_log(s))
	printf("%d bytes\n%s", strlen(h), h)
	println(strlen(sprint(@hist_linear(u, 0, 1000, 1)) . sprint(@hist_log(s))))
	println(@choose_defined($a, "not defined"), @defined($b) ? user_string($b) : ", nor this")
	argc == 2 && log("two")
	argc == 2 ? log("then") : warn("else")
	try { println("not printed" . error("caught")) } catch (e) { println(e) }
	println(system("true") + 1)
}
probe timer.ms(20) if (off), timer.ms(30) if (on) { println(pp()); (++n == 2) && exit() }
`
	smallGapsOutput = `first, with 2 arguments
2: 500 b [] [] 0
-1 7 ff 0xff 5       |
305 bytes
value |-------------------------------------------------- count
    0 |                                                   0
    1 |@                                                  1
    2 |                                                   0
    4 |                                                   0

511
not defined, nor this
two
then
caught
1
timer.ms(30)
timer.ms(30)
`
)

// TestSmallGapsRun runs what public scripts use and once stopped them: library
// variables, formats, histograms as strings, conditions of single points,
// functions without a value, options for how a script runs.
func TestSmallGapsRun(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		run := func(script string, staprun []string, stap ...string) request.Answer {
			t.Helper()
			s.put(t, "/tmp/gaps.ko", lab.Root, 0o644, built(t, s, "gaps", script, stap...))
			r := lab.Command(lab.Root, append(append([]string{"staprun"}, staprun...), "/tmp/gaps.ko")...)
			r.Timeout = 60
			return s.do(t, r)
		}
		want(t, run(smallGaps, nil, "500", "b"), 0, smallGapsOutput)
		want(t, run(`probe oneshot { println("once") } probe end { println("end") }`, nil), 0, "once\nend\n")
		want(t, run(`probe begin { println("up") } probe end { println("down") }`, []string{"-c", "sleep 40"}, "-T1"), 0, "up\ndown\n")
		want(t, run(`probe begin { println("up ", target()) } probe end { println("down") }`, []string{"-x", "1"}, "-T", "0.5"), 0, "up 1\ndown\n")
		want(t, run(`probe begin { println(%{ FOO + BAR %}) exit() }`, nil, "-g", "-DFOO=41", "-DBAR"), 0, "42\n")
		want(t, run(`global n probe timer.ms(10) { if (++n == 5) exit(); error("quiet") } probe end { println(n) }`, nil, "--suppress-handler-errors"), 0, "5\n", "WARNING: Number of errors: 5, skipped probes: 0\n")
		want(t, run(`probe begin { for (i = 0; i < 100000; i++) n += i; println(n) exit() }`, nil, "-g", "--suppress-time-limits"), 0, "4999950000\n")
		a := run(`global n probe timer.ms(10) { if (++n == 3) exit() } probe never { println("x") } probe end { println("end") }`, nil, "-t")
		if report := regexp.MustCompile(`^end
----- probe hit report:
end, \(<input>:1:\d+\), hits: 1, cycles: \d+min/\d+avg/\d+max, from: end, index: 0
timer.ms\(10\), \(<input>:1:10\), hits: [34], cycles: \d+min/\d+avg/\d+max, from: timer.ms\(10\), index: 1
$`); a.Status != 0 || !report.Match(a.Stdout) {
			t.Errorf("-t: status %d\n%s%s", a.Status, a.Stdout, a.Stderr)
		}
	})
}
