package compile

import (
	"fmt"
	"strings"
	"testing"

	"stapbox/core/stapopts"
)

// Which translator a request gets, and what is refused.
func TestServiceTranslator(t *testing.T) {
	for _, tt := range []struct {
		own  string
		sign bool
		args []string
		want string
	}{
		{"", false, nil, "builtin"},
		{"", false, []string{"--translator=builtin"}, "builtin"},
		{"", false, []string{"--translator=systemtap"}, "--translator=systemtap is refused: this server has --translator=builtin"},
		{"systemtap", false, []string{"--translator=auto"}, "--translator=auto is refused"},
		{"systemtap", false, nil, "systemtap"},
		{"auto", false, nil, "auto"},
		{"auto", false, []string{"--translator=systemtap"}, "systemtap"},
		{"auto", false, []string{"--privilege=stapusr"}, "builtin"},
		{"auto", true, []string{"--privilege=stapusr"}, "auto"},
		{"auto", false, []string{"--translator=systemtap", "--privilege=stapusr"}, "--sign-systemtap would allow it"},
		{"systemtap", false, []string{"--privilege=stapsys"}, "not signed for stapsys"},
		{"systemtap", true, []string{"--privilege=stapsys"}, "systemtap"},
	} {
		o, err := stapopts.Parse(append([]string{"--client-options", "-e", "x"}, tt.args...))
		if err != nil {
			t.Fatal(err)
		}
		got, err := (&Service{Translator: tt.own, SignSystemtap: tt.sign}).translator(o)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
	if _, err := stapopts.Parse([]string{"--translator=gcc", "-e", "x"}); err == nil {
		t.Error("--translator=gcc")
	}
}

// What the worker says about who made the module is in the log, and what
// SystemTap made is not kept.
func TestServiceTellsTranslator(t *testing.T) {
	l := newCached(t)
	l.Translator = stapopts.TranslatorAuto
	for _, tt := range []struct{ made, second string }{{stapopts.TranslatorBuiltin, madeHit}, {stapopts.TranslatorSystemtap, madeMiss}} {
		for i, want := range []string{madeMiss, tt.second} {
			if _, made := l.do(t, req61("-p4", fmt.Sprintf("-emodule stapdev %s", tt.made))); made != want {
				t.Errorf("%s, request %d: got %s, want %s", tt.made, i, made, want)
			}
		}
		if !strings.Contains(l.lines.String(), "translator="+tt.made) {
			t.Errorf("the log lacks %s:\n%s", tt.made, l.lines)
		}
	}
}
