package script

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"stapbox/core/privilege"
	"stapbox/core/script/diag"
)

// A library file that nothing needs is not part of the script; one that is needed
// is, as a whole, with what it needs itself.
func TestLibraryBySymbol(t *testing.T) {
	o := opts
	o.Library = []Source{
		{"l/fn.stp", `function fn() { return other } probe timer.s(11) { other = 2 } %{ int fn_c; %}`},
		{"l/global.stp", `global other probe timer.s(12) { exit() }`},
		{"l/alias.stp", `probe al = begin, end { v = 1 }`},
		{"l/unused.stp", `probe timer.s(13) { exit() } function nobody() { return 1 } %{ int unused_c; %}`},
		{"l/late.stp", `function fn() { return "late" }`},
		{"l/pid.stp", `function pid() { return -1 }`},
		{"l/private.stp", `private function hidden() { return 1 } private global secret = 1`},
	}
	for _, test := range []struct {
		script    string
		want, not []string
	}{
		{`probe begin { exit() }`, []string{"begin"}, []string{"timer.s", "fn_c", "other"}},
		{`probe begin { println(fn()) }`, []string{"fn:long", "other:long", "timer.s(11)", "timer.s(12)", "%{ int fn_c; %}"}, []string{"timer.s(13)", "unused_c", "late"}},
		{`probe begin { other = 1 println(other) }`, []string{"other:long", "timer.s(12)"}, []string{"timer.s(11)"}},
		{`probe al { println(v) }`, []string{"begin /*  <- al = begin, end", "v:long"}, []string{"timer.s"}},
		{`function fn() { return 3 } probe begin { println(fn()) }`, []string{"fn:long"}, []string{"timer.s", "other"}},
		{`probe begin { println(pid()) }`, []string{"pid:long"}, nil},
		{`probe begin { println(hidden()) }`, []string{"unresolved function hidden"}, nil},
		{`probe begin { println(secret) }`, []string{"unresolved type"}, nil},
	} {
		got := say(test.script, 2, o)
		for _, w := range test.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: got\n%s\nwant %q", test.script, got, w)
			}
		}
		for _, w := range test.not {
			if strings.Contains(got, w) {
				t.Errorf("%s: got\n%s\nwhich has %q", test.script, got, w)
			}
		}
	}
}

// C of a library may be for every level or not; that of a script never is.
func TestLibraryPrivilege(t *testing.T) {
	o := opts
	o.Library = []Source{{"l.stp", `function all:long() %{ /* unprivileged */ %} function dev:long() %{ %} function inl() { return %{ 1 %} }
function stm() { %{ ; %} return 1 } function via() { return dev() }`}}
	for name, want := range map[string]string{
		"all": "", "dev": "function may not be used", "inl": "embedded expression may not be used",
		"stm": "embedded expression may not be used", "via": "function may not be used",
	} {
		script := "probe begin { println(" + name + "()) }"
		if got := say(script, 2, o); strings.Contains(got, "error:") {
			t.Errorf("%s: got\n%s", name, got)
		}
		usr := o
		usr.Privilege = privilege.StapUsr
		if got := say(script, 2, usr); strings.Contains(got, "error:") != (want != "") || !strings.Contains(got, want) {
			t.Errorf("%s below stapdev: got\n%s\nwant %q", name, got, want)
		}
	}
}

func FuzzLibrary(f *testing.F) {
	f.Add(`probe begin { println(@M(1), g, fn(1)) }`, `@define M(a) %( @a %)`, `global g = 1 function fn(x) %{ /* pure */ STAP_RETVALUE = 1; %}`)
	f.Add(`probe al.* { v++ }`, `%( 1 == 1 %? @define A %( 1 %) %: @define A %( 2 %) %)`, `probe al.one = timer.s(1)!, begin { v = 1 } probe al.two.three = al.one {}`)
	f.Add(`probe begin { println(@choose_defined($a, @M($1)), argv[1], argv_2, argc, NULL) } probe oneshot, init? if (g), timer.profile.* { x[1]$$ }`, `@define M(a) %( %( CONFIG_HZ >= 250 %? @a %: @2 %) %)`, `global g probe al = kernel.function("x")!, begin if (g) { thread_indent(1) @json_output_data_end }`)
	f.Add(`probe al {} # “`, `%( CONFIG_A == CONFIG_B %? %? %: %: %)`, `%( 1 == 2 %? function f() {} %)`)
	f.Add(`probe **, al.** {}`, `@define A %( @B %) @define B %( @A %)`, `probe al = al {} %{ /* pragma:read:g */ %}`)
	f.Add(`global v probe begin { v = %{ /* string */ /* pragma:write:v */ "x" %} %{ f() %} }`, ``, `function f() %{ /* pragma:read: */ /* pragma:write:v`)
	f.Fuzz(func(t *testing.T, text, macros, library string) {
		o := opts
		o.Guru = true
		o.Args, o.Timeout = []string{"1", "$1 x"}, time.Second
		o.Library, o.Macros = []Source{{"a.stp", library}, {"b.stp", "function b() { return 1 }"}}, []Source{{"a.stpm", macros}}
		for _, list := range []bool{false, true} {
			p, err := Parse(Source{"<input>", text}, o)
			var out bytes.Buffer
			r := &diag.Renderer{W: &out}
			for _, q := range p.Problems {
				r.Problem(q.List, q.Macros)
			}
			var l *diag.List
			if err != nil && !errors.As(err, &l) {
				t.Fatalf("error of type %T", err)
			}
			switch {
			case err != nil:
			case list:
				p.List()
			default:
				if prog, err := p.Check(); err == nil {
					prog.Dump(&out, true)
				}
			}
		}
	})
}
