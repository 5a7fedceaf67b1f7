package client

import (
	"bytes"
	"strings"
	"testing"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\n":           "plain\ttext\n",
		"\x1b]0;title\x07\x1b[2J": "?]0;title??[2J",
		"over\rwritten\b\x7f":     "over?written??",
		"\x9b2J \u009b2J":         "?2J ?2J",
		"\u00e4\u4e2d \xe4 \xff":  "\u00e4\u4e2d \xe4 \xff", // UTF-8 and Latin-1
		"\x00\x01":                "??",
	} {
		if got := string(printable([]byte(in))); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// What a server says gives no orders to a terminal, and is as it is elsewhere.
func TestShow(t *testing.T) {
	const text = "a\x1b]52;c;aGk=\x07b\n"
	p := newPTY(t, 80)
	show(p.slave, []byte(text))
	if got := p.all(); strings.ContainsAny(got, "\x1b\x07") || !strings.Contains(got, "a?]52;c;aGk=?b") {
		t.Errorf("the terminal got %q", got)
	}
	var b bytes.Buffer
	if show(&b, []byte(text)); b.String() != text {
		t.Errorf("the file got %q", b.String())
	}
}
