package diag

import (
	"bytes"
	"testing"

	"stapbox/core/script/token"
)

func TestColors(t *testing.T) {
	f := &token.File{Name: "<input>", Text: "\tx = }"}
	tok := &token.Token{Kind: token.Operator, Text: "}", Pos: token.Pos{File: f, Line: 1, Col: 6}}
	l := &List{Pass: 1, Errors: []*Diagnostic{{Severity: ParseError, Message: "what", Tok: tok, Saw: true}}}
	var plain, colour bytes.Buffer
	(&Renderer{W: &plain}).Failure(l)
	want := "parse error: what\n        saw: operator '}' at <input>:1:6\n     source: \tx = }\n             \t    ^\n\n" +
		"1 parse error.\nPass 1: parse failed.  [man error::pass1]\n"
	if plain.String() != want {
		t.Errorf("got %q\nwant %q", plain.String(), want)
	}
	(&Renderer{W: &colour, Colors: DefaultColors}).Failure(l)
	const on, off = "\033[01;31m\033[K", "\033[m\033[K"
	if got := colour.String(); got[:len(on)] != on || !bytes.Contains(colour.Bytes(), []byte("'\033[01m\033[K}"+off+"'")) {
		t.Errorf("got %q", got)
	}
	if l.Error() != "parse error: what at <input>:1:6" {
		t.Errorf("got %q", l.Error())
	}
}

func TestParseColors(t *testing.T) {
	for spec, want := range map[string]Colors{
		"":                           {},
		"error=31:caret=1":           {"31", DefaultColors.Warning, DefaultColors.Source, "1", DefaultColors.Token},
		"nonsense":                   {},
		"error=red":                  {},
		"nobody=1":                   {},
		"warning=1:source=2:token=3": {DefaultColors.Error, "1", "2", DefaultColors.Caret, "3"},
	} {
		if got := ParseColors(spec); got != want {
			t.Errorf("%q: got %v, want %v", spec, got, want)
		}
	}
}
