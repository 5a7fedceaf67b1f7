package parser

import (
	"testing"

	"stapbox/core/script/ast"
	"stapbox/core/script/token"
)

func TestCompareVersions(t *testing.T) {
	// The first six are the examples of strverscmp(3).
	order := []string{"000", "00", "01", "010", "09", "0", "1", "9", "10"}
	for i := range order {
		for j := range order {
			got := CompareVersions(order[i], order[j])
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s against %s: got %d", order[i], order[j], got)
			}
		}
	}
	for _, test := range []struct{ a, b string }{{"2.6.9", "2.6.10"}, {"6.1.192", "6.12.107"}, {"5.6", "5.6-1"}, {"a", "b"}} {
		if CompareVersions(test.a, test.b) >= 0 || CompareVersions(test.b, test.a) <= 0 {
			t.Errorf("%s is not less than %s", test.a, test.b)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, name string
		want          bool
	}{{"a*c", "abc", true}, {"a?c", "abc", true}, {"[ab]", "b", true}, {"*", "a/b", true}, {"a", "b", false}, {"[", "[", false}} {
		if got := Match(test.pattern, test.name); got != test.want {
			t.Errorf("%q %q: got %v", test.pattern, test.name, got)
		}
	}
}

func TestParseNumber(t *testing.T) {
	for _, test := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"0", 0, true}, {"10", 10, true}, {"010", 8, true}, {"0xFf", 255, true}, {"18446744073709551615", -1, true},
		{"9223372036854775808", -1 << 63, true}, {"18446744073709551616", 0, false}, {"08", 0, false}, {"0x", 0, false}, {"1x", 0, false},
	} {
		got, ok := parseNumber(test.text)
		if ok != test.ok || ok && got != test.want {
			t.Errorf("%s: got %d %v", test.text, got, ok)
		}
	}
}

func TestParseFormat(t *testing.T) {
	none := ast.FormatPart{Width: -1, Prec: -1, Arg: -1, WidthExpr: -1, PrecExpr: -1}
	conv := func(c byte, f func(*ast.FormatPart)) ast.FormatPart {
		p := none
		p.Conv = c
		if f != nil {
			f(&p)
		}
		return p
	}
	lit := func(s string) ast.FormatPart { p := none; p.Literal = s; return p }
	for _, test := range []struct {
		format string
		want   []ast.FormatPart
		msg    string
	}{
		{"a%d%%b", []ast.FormatPart{lit("a"), conv('d', nil), lit("%b")}, ""},
		{"%#08.3x", []ast.FormatPart{conv('x', func(p *ast.FormatPart) {
			p.Alt, p.Width, p.Prec = true, 8, 3
		})}, ""},
		{"%*.*s", []ast.FormatPart{conv('s', func(p *ast.FormatPart) { p.WidthArg, p.PrecArg = true, true })}, ""},
		{"%4b", []ast.FormatPart{conv('b', func(p *ast.FormatPart) { p.Width = 4 })}, ""},
		{"%.s", []ast.FormatPart{conv('s', func(p *ast.FormatPart) { p.Prec = 0 })}, ""},
		{"%-+5d", nil, "invalid or missing conversion specifier"},
		{"%z", nil, "invalid or missing conversion specifier"},
		{"%", nil, "invalid or missing conversion specifier"},
		{"%n", nil, "invalid or missing conversion specifier"},
		{"%5", nil, "trailing incomplete print format conversion"},
	} {
		got, msg := ParseFormat(test.format)
		if msg != test.msg || len(got) != len(test.want) {
			t.Errorf("%q: got %v %q", test.format, got, msg)
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%q part %d: got %+v, want %+v", test.format, i, got[i], test.want[i])
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("@define x(a) %( @a %) probe begin { %( 1 == 1 %? @x(1) %: 2 %) }", "1")
	f.Add("probe a.{b,c}*(1)? if (x) { foreach ([k+,l] in a[*,1] limit 3) delete a }", "x")
	f.Add("global a%[3], b = -1 function f:long(x:string):3 { return x ? 1 : $1 }", "y")
	f.Fuzz(func(t *testing.T, text, arg string) {
		file, err := Parse(&token.File{Name: "f", Text: text}, Options{Args: []string{arg}, Release: "6.1.0", Guru: true})
		if (file == nil) == (err == nil) {
			t.Fatalf("file %v, error %v", file, err)
		}
	})
}
