package check

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/parser"
	"stapbox/core/script/tapset"
	"stapbox/core/script/token"
)

func program(t *testing.T, text string, o Options) *Program {
	t.Helper()
	po := parser.Options{Release: "6.1.0", Arch: "x86_64"}
	f, err := parser.Parse(&token.File{Name: "<input>", Text: text}, po)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	lib, err := tapset.Parse(po)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Check([]*ast.File{f}, lib, o)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return p
}

func names(list []*ast.Var) string {
	var out []string
	for _, v := range list {
		out = append(out, v.Unique)
	}
	return strings.Join(out, ",")
}

func TestProbes(t *testing.T) {
	for _, test := range []struct{ point, want string }{
		{"begin", "begin prio=0 0/0 begin begin"},
		{"begin(-3)", "begin prio=-3 0/0 begin(-3) begin(-3)"},
		{"end(7)?", "end prio=7 0/0 end(7)? end(7)?"},
		{"error", "error prio=0 0/0 error error"},
		{"never", "never prio=0 0/0 never never"},
		{"timer.s(2)", "timer prio=0 2000000000/0ns timer.s(2) timer.s(2)"},
		{"timer.msec(5).randomize(2)", "timer prio=0 5000000/2000000ns timer.msec(5).randomize(2) timer.msec(5).randomize(2)"},
		{"timer.us(100)", "timer prio=0 100000/0ns timer.us(100) timer.us(100)"},
		{"timer.ns(100000)", "timer prio=0 100000/0ns timer.ns(100000) timer.ns(100000)"},
		{"timer.hz(100)", "timer prio=0 10000000/0ns timer.hz(100) timer.hz(100)"},
		{"timer.jiffies(10).randomize(3)", "timer prio=0 10/3jiffies timer.jiffies(10).randomize(3) timer.jiffies(10).randomize(3)"},
		{"al.ias", "begin prio=4 0/0 begin(4) al.ias"},
	} {
		p := program(t, "probe al.ias = begin(4) { x = 1 } probe "+test.point+" { println(1) }", Options{}).Probes[0]
		unit := ""
		if p.Kind == Timer {
			unit = [...]string{"jiffies", "ns"}[p.Unit]
		}
		got := fmt.Sprintf("%s prio=%d %d/%d%s %s %s", p.Kind, p.Priority, p.Interval, p.Randomize, unit, p.Point, p.Name)
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.point, got, test.want)
		}
	}
}

func TestReadsAndWrites(t *testing.T) {
	p := program(t, `global a, b, c, d, e
		function f() { b = a  return g() }
		function g() { return h() }
		function h() { if (c++ > 3) return g()  return 1 }
		function alone() { delete e }
		probe begin if (d) { println(f()) }
		probe end { alone() a = d  e[1] = 2 println(b) }`, Options{})
	for i, want := range []string{"a,c,d -> b,c", "b,d -> a,e"} {
		q := p.Probes[i]
		if got := names(q.Reads) + " -> " + names(q.Writes); got != want {
			t.Errorf("probe %d: got %s, want %s", i, got, want)
		}
	}
	if got := names(p.Probes[0].CondReads); got != "d" {
		t.Errorf("condition reads %s, want d", got)
	}
	for _, f := range p.Functions {
		if want := f.Name == "g" || f.Name == "h"; f.Recursive != want {
			t.Errorf("%s recursive: got %v", f.Name, f.Recursive)
		}
	}
}

func TestTypes(t *testing.T) {
	p := program(t, `global n, s, m%[7], k = "x"
		function cat(x, y) { return x . y }
		function twice(x) { return x * 2 }
		probe begin { n = twice(3) s = cat("a", k) m[n, s] = 1 foreach ([i, j] in m) println(i, j) println(n, s, m[1, "a"]) }`, Options{})
	var got []string
	for _, g := range p.Globals {
		got = append(got, varString(g))
	}
	for _, f := range p.Functions {
		got = append(got, fmt.Sprintf("%s:%s(%s,%s)", f.Unique, f.Ret, f.Params[0].Type, f.Params[len(f.Params)-1].Type))
	}
	want := "n:long s:string m%[7]:long [long, string] k:string cat:string(string,string) twice:long(long,long)"
	if strings.Join(got, " ") != want {
		t.Errorf("got %s\nwant %s", strings.Join(got, " "), want)
	}
	for _, g := range p.Globals {
		if want := !g.IsArray(); g.Settable != want {
			t.Errorf("%s settable: got %v", g.Name, g.Settable)
		}
	}
	ast.Walk(p.Probes[0].Body, nil, func(x ast.Expr) {
		if x.Type() == ast.Unknown {
			t.Errorf("%s has no type", ast.ExprString(x))
		}
		if s, ok := x.(*ast.Symbol); ok && s.Var == nil {
			t.Errorf("%s is not resolved", s.Name)
		}
	})
}

func TestOverloads(t *testing.T) {
	p := program(t, `function f(x):2 { return 1 } function f(x):1 { if (x) next return 2 } function f(x):3 { return 3 }
		function f() { return 4 } probe begin { println(f(1), f()) }`, Options{})
	var got []string
	ast.Walk(p.Probes[0].Body, nil, func(x ast.Expr) {
		if c, ok := x.(*ast.Call); ok {
			for _, f := range c.Funcs {
				got = append(got, fmt.Sprint(f.Priority))
			}
			got = append(got, ";")
		}
	})
	if s := strings.Join(got, " "); s != "1 2 ; 0 ;" {
		t.Errorf("got %q", s)
	}
	seen := map[string]bool{}
	for _, f := range p.Functions {
		if seen[f.Unique] {
			t.Errorf("two functions are called %s", f.Unique)
		}
		seen[f.Unique] = true
	}
}

func TestPrintParts(t *testing.T) {
	p := program(t, `probe begin { printdln("|", 1, "a") printf("%*d %.*s\n", 5, 6, 7, "x") }`, Options{})
	var got []string
	ast.Walk(p.Probes[0].Body, nil, func(x ast.Expr) {
		pr, ok := x.(*ast.Print)
		if !ok {
			return
		}
		for _, q := range pr.Parts {
			if q.Conv == 0 {
				got = append(got, fmt.Sprintf("%q", q.Literal))
			} else {
				got = append(got, fmt.Sprintf("%c(%d,%d,%d)", q.Conv, q.WidthExpr, q.PrecExpr, q.Arg))
			}
		}
	})
	want := `d(-1,-1,0) "|" s(-1,-1,1) "\n" d(0,-1,1) " " s(-1,2,3) "\n"`
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %s\nwant %s", s, want)
	}
}

func TestDisplayOfUnreadGlobals(t *testing.T) {
	text := `global n, s, m probe begin { n = 1 s = "a" m["k", 2] = 3 }`
	p := program(t, text, Options{})
	var got []string
	for _, q := range p.Probes[1:] {
		got = append(got, ast.StmtString(q.Body))
		if !q.Synthetic || q.Kind != End {
			t.Errorf("%s is not a synthetic end probe", q.Point)
		}
	}
	want := []string{
		"{\nprintf(\"n=%d\\\\n\", __global_n);\n}",
		"{\nprintf(\"s=\\\"%#s\\\"\\\\n\", __global_s);\n}",
		"{\nforeach (__val = [__idx0, __idx1] in __global_m-) printf(\"m[\\\"%#s\\\",%#d]=%d\\\\n\", __idx0, __idx1, __val);\n}",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if n := len(program(t, text, Options{NoGlobalDisplay: true}).Probes); n != 1 {
		t.Errorf("without display: %d probes, want 1", n)
	}
}

func TestUnoptimized(t *testing.T) {
	p := program(t, `probe begin { x = 1 }`, Options{Unoptimized: true})
	if len(p.Probes) != 1 || len(p.Warnings) != 0 || len(p.Probes[0].Locals) != 1 {
		t.Errorf("got %d probes, %d warnings", len(p.Probes), len(p.Warnings))
	}
}

func TestProbeWrite(t *testing.T) {
	p := program(t, `probe foo = begin { v = 0 }, { if (@probewrite(v)) println(v) if (@probewrite(w)) println("w") } probe foo { v = 1 }`, Options{})
	if s := ast.StmtString(p.Probes[0].Body); !strings.Contains(s, "if (1) println(v)") || !strings.Contains(s, "if (0) println") {
		t.Errorf("got %s", s)
	}
}

func TestErrorType(t *testing.T) {
	f, err := parser.Parse(&token.File{Name: "<input>", Text: "probe begin { f() }"}, parser.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Check([]*ast.File{f}, nil, Options{})
	var l *diag.List
	if !errors.As(err, &l) || l.Pass != 2 || len(l.Errors) != 1 {
		t.Errorf("got %v", err)
	}
}
