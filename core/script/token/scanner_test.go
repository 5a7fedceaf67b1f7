package token

import (
	"strings"
	"testing"
)

func scan(text string, args ...string) string {
	s := NewScanner(&File{Name: "t", Text: text}, args, nil)
	var out []string
	for {
		t := s.Next()
		if t.Kind == EOF {
			return strings.Join(out, " ")
		}
		out = append(out, t.Kind.String()[:2]+":"+t.Text+t.Err)
	}
}

func TestScanner(t *testing.T) {
	for _, test := range []struct {
		text string
		args []string
		want string
	}{
		{"probe begin", nil, "ke:probe id:begin"},
		{"<<<b <<= >>= << ->", nil, "op:<<< id:b op:<<= op:>>= op:<< op:->"},
		{"x=~y x!~y x.=y", nil, "id:x op:=~ id:y id:x op:!~ id:y id:x op:.= id:y"},
		{"1 0x1f 017 1x", nil, "nu:1 nu:0x1f nu:017 nu:1x"},
		{"$foo @bar $$vars b$", nil, "id:$foo op:@bar id:$$vars id:b$"},
		{`"a\n\q\"\x41"`, nil, `st:a\nq\"\x41`},
		{"# x\n// y\n/* z\n */ a", nil, "id:a"},
		{"$1 @1 $# @#", []string{"p q"}, "id:p id:q st:p q nu:1 st:1"},
		{"$1x", []string{"z"}, "id:zx"},
		{"$2", []string{"z"}, "ju:command line argument out of range [1-1]"},
		{`"abc`, nil, `ju:"abcCould not find matching closing quote`},
		{"%{ a %} %( %? %: %)", nil, "em: a  op:%( op:%? op:%: op:%)"},
		{"%{ a", nil, "ju:%{ aCould not find matching '%}' to close embedded function block"},
		{"a \x00\xff", nil, `id:a ju:\x00 ju:\xff`},
		{"“x”\u00a0\ufeff", nil, `ju:“ id:x ju:” ju:\xc2\xa0 ju:\xef\xbb\xbf`},
		{"$1", []string{"$2"}, "ju:invalid nested substitution of command line arguments"},
		{"@1", []string{"$2"}, "st:$2"},
	} {
		if got := scan(test.text, test.args...); got != test.want {
			t.Errorf("%q: got %q, want %q", test.text, got, test.want)
		}
	}
}

func TestPositions(t *testing.T) {
	s := NewScanner(&File{Name: "f", Text: "a\n  $1 b"}, []string{"x y"}, nil)
	want := []string{"f:1:1", "f:2:3", "f:2:3", "f:2:6"} // inserted text stands where its $ is
	for i, w := range want {
		if got := s.Next().Pos.String(); got != w {
			t.Errorf("token %d: got %s, want %s", i, got, w)
		}
	}
}

func TestUnquote(t *testing.T) {
	for raw, want := range map[string]string{
		`a\nb`: "a\nb", `\x41\101`: "AA", `\\\"`: `\"`, `a\0b`: "a", `\1234`: "S4", `\x`: "x", `tab\t`: "tab\t", `\`: `\`,
	} {
		if got := Unquote(raw); got != want {
			t.Errorf("%q: got %q, want %q", raw, got, want)
		}
	}
}

func FuzzScanner(f *testing.F) {
	f.Add("probe begin { println(\"x\\n\", $1 @1 $#) } # c\n%{ c %}", "arg")
	f.Add("$1", "\"")
	f.Add("/*", "%{")
	f.Fuzz(func(t *testing.T, text, arg string) {
		s := NewScanner(&File{Name: "f", Text: text}, []string{arg}, nil)
		for n := 0; ; n++ {
			tok := s.Next()
			if tok.Kind == EOF {
				return
			}
			Unquote(tok.Text)
			if n > (len(text)+1)*(len(arg)+2) {
				t.Fatalf("%d tokens of %d bytes", n, len(text))
			}
		}
	})
}
