package compile

import (
	"context"
	"strings"
	"testing"
)

// A small archive does not make a large log.
func TestServiceComplainsBriefly(t *testing.T) {
	s := newService(t)
	r := req61("-p4", "-emodule stapdev")
	r.Locale = make([]string, 5000)
	r.MOK = strings.Fields(strings.Repeat("x ", 5000))
	got := s.ask(t, context.Background(), r)
	for _, want := range []string{
		"Server: Localization key=value line '' cannot be parsed\n", "Server: 4992 more lines are like these\n",
		"Server: MOK fingerprint value 'x' isn't in the correct format\n",
	} {
		if !strings.Contains(string(got.Stderr), want) {
			t.Errorf("got %.300q, want %q", got.Stderr, want)
		}
	}
	if n := len(s.log); n > 40 {
		t.Errorf("the log has %d lines", n)
	}
}
