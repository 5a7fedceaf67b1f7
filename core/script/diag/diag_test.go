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
	(&Renderer{W: &colour, Colors: Colors{"01;31", "00;33", "00;34", "01", "01"}}).Failure(l)
	const on, off = "\033[01;31m\033[K", "\033[m\033[K"
	if got := colour.String(); got[:len(on)] != on || !bytes.Contains(colour.Bytes(), []byte("'\033[01m\033[K}"+off+"'")) {
		t.Errorf("got %q", got)
	}
	if l.Error() != "parse error: what at <input>:1:6" {
		t.Errorf("got %q", l.Error())
	}
}
