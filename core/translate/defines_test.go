package translate

import (
	"strings"
	"testing"

	"stapbox/core/script"
	"stapbox/core/script/check"
)

func TestDefinesThatAreRefused(t *testing.T) {
	for _, tt := range []struct {
		defines []string
		want    string
	}{
		{[]string{"RELAY_HOST=a", "RELAY_GUEST=b"}, "cannot be given together"},
		{[]string{"RELAY_HOST=a/b"}, `"a/b" is not a name`},
		{[]string{"RELAY_GUEST="}, `"" is not a name`},
		{[]string{"RELAY_GUEST=" + strings.Repeat("x", 57)}, "is not a name"},
		{[]string{"STP_PROCFS_BUFSIZE=0"}, "not between 1 and"},
		{[]string{"STP_PROCFS_BUFSIZE=16777217"}, "not between 1 and"},
	} {
		if _, err := parseLimits(Options{Defines: tt.defines}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.defines, err, tt.want)
		}
	}
	l, err := parseLimits(Options{Defines: []string{"RELAY_HOST", "STP_BULKMODE", "STP_MONITOR", "MAXSTRINGLEN=100"}})
	if err != nil || l.relayHost != "default" || !l.bulk || !l.monitor || l.procfsSize != 100 {
		t.Errorf("got %+v, %v", l, err)
	}
}

// -D reaches the C of a script as it would as an option of the compiler: the last
// one of a name counts, and nothing but a name and a number or name becomes C.
func TestDefinesReachC(t *testing.T) {
	compile := func(text string) *check.Program {
		t.Helper()
		_, prog, err := script.Load(script.Source{Name: "<input>", Text: text}, script.Options{Release: "6.1.0", Arch: "x86_64", Guru: true})
		if err != nil {
			t.Fatal(err)
		}
		return prog
	}
	prog := compile(`%{ int x = FOO; %} probe begin { println(1) }`)
	text, err := Translate(prog, Options{Defines: []string{"FOO=1", "BAR", "MAXACTION=5", "FOO=-2", "STP_NO_OVERLOAD"}})
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(text), "#include")
	if !strings.Contains(before, "#define FOO -2\n#define BAR 1\n") || strings.Contains(before, "MAXACTION") || strings.Contains(before, "OVERLOAD") {
		t.Errorf("got\n%s", before)
	}
	for _, d := range []string{"A=1 2", "A=", "A=-", "1A", "A(x)=x", "=1", "A=x\n#include", "A=--1"} {
		if _, err := Translate(compile(`%{ %} probe begin { println(1) }`), Options{Defines: []string{d}}); err == nil || !strings.Contains(err.Error(), "is no NAME or NAME=VALUE") {
			t.Errorf("-D %q: got %v", d, err)
		}
	}
	text, err = Translate(compile(`probe begin { println(1) }`), Options{Defines: []string{"FOO=1"}})
	if err != nil || strings.Contains(string(text), "FOO") {
		t.Errorf("a script without C: %v\n%s", err, text)
	}
}
