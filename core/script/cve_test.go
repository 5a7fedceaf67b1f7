package script

import (
	"strings"
	"testing"
)

// A historical vulnerability of the translator (loader-relay 10.1).

// The helper behind the arguments of an execve had a sign error. There is none
// here.
func TestCVE_2010_0411_NoArgumentHelper(t *testing.T) {
	for _, call := range []string{"__get_argv(0, 0)", "__get_compat_argv(0, 0)"} {
		_, _, err := Load(Source{Name: "<input>", Text: "probe begin { println(" + call + ") }"}, Options{Release: "6.1.0", Arch: "x86_64"})
		if err == nil || !strings.Contains(err.Error(), "unresolved function") {
			t.Errorf("%s: got %v", call, err)
		}
	}
}
