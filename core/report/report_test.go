package report

import (
	"bytes"
	"testing"
)

func env(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

// TestTagged holds loader-relay 8.2: only the tag is coloured.
func TestTagged(t *testing.T) {
	for _, tt := range []struct {
		when When
		vars map[string]string
		in   string
		want string
	}{
		{Always, nil, "ERROR: no luck\n", "\x1b[01;31m\x1b[KERROR:\x1b[m\x1b[K no luck\n"},
		{Always, nil, "WARNING: careful\n", "\x1b[00;33m\x1b[KWARNING:\x1b[m\x1b[K careful\n"},
		{Always, nil, "plain ERROR: x\n", "plain ERROR: x\n"},
		{Always, map[string]string{"TERM": "dumb"}, "ERROR: x", "\x1b[01;31m\x1b[KERROR:\x1b[m\x1b[K x"},
		{Never, nil, "ERROR: x", "ERROR: x"},
		{Auto, nil, "ERROR: x", "ERROR: x"}, // a buffer is no terminal
		{Always, map[string]string{"SYSTEMTAP_COLORS": ""}, "ERROR: x", "ERROR: x"},
		{Always, map[string]string{"SYSTEMTAP_COLORS": "error=07"}, "ERROR: x", "\x1b[07m\x1b[KERROR:\x1b[m\x1b[K x"},
		{Always, map[string]string{"SYSTEMTAP_COLORS": "error=07"}, "WARNING: x", "WARNING: x"},
		{Always, map[string]string{"SYSTEMTAP_COLORS": "warning=x:error=07"}, "ERROR: x", "ERROR: x"},
		{Always, map[string]string{"SYSTEMTAP_COLORS": "error=07:junk"}, "ERROR: x", "\x1b[07m\x1b[KERROR:\x1b[m\x1b[K x"},
		{Always, map[string]string{"SYSTEMTAP_COLORS": "error=1;\x1b[2J"}, "ERROR: x", "ERROR: x"},
	} {
		var b bytes.Buffer
		New(&b, tt.when, env(tt.vars)).Tagged(tt.in)
		if b.String() != tt.want {
			t.Errorf("%s %v: got %q, want %q", tt.when, tt.vars, b.String(), tt.want)
		}
	}
}

func TestLines(t *testing.T) {
	var b bytes.Buffer
	p := New(&b, Never, env(nil))
	p.Errorf("what %q", "x")
	p.Warningf("hm")
	p.Hintf("do %s", "this")
	if got, want := b.String(), "ERROR: what \"x\"\nWARNING: hm\nhint: do this\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzColors(f *testing.F) {
	f.Add("error=01;31:warning=00;33")
	f.Add("=:==;:error")
	f.Fuzz(func(t *testing.T, list string) {
		for key, sgr := range Colors(env(map[string]string{"SYSTEMTAP_COLORS": list})) {
			for _, c := range sgr {
				if c != ';' && (c < '0' || c > '9') {
					t.Errorf("%q: %s is %q", list, key, sgr)
				}
			}
		}
	})
}
