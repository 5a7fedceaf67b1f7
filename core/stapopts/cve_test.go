package stapopts

import (
	"strings"
	"testing"
)

// The historical vulnerabilities of the compile server (loader-relay 10.1).

// Arguments of a client reached a shell.
func TestCVE_2009_4273_NoShell(t *testing.T) {
	for _, args := range [][]string{
		{"-D", "X=1;id"}, {"-D", "X=$(id)"}, {"-m", "a;b"}, {"-r", "6.1`id`"}, {"-a", "x|y"}, {"-S", "1;id"}, {"-G", "a=b;c"},
	} {
		_, err := Parse(append(append([]string{"--client-options"}, args...), "-e", "probe begin {}"))
		if err == nil || !strings.Contains(err.Error(), "Safety pattern mismatch") {
			t.Errorf("%q: got %v", args, err)
		}
	}
	const words = "a;id $(id) `id` | & > <"
	o, err := Parse([]string{"--client-options", "-e", "probe begin { println(@1) }", words})
	if err != nil || len(o.Args) != 1 || o.Args[0] != words {
		t.Errorf("an argument of the script: got %+v, %v", o, err)
	}
}

// -B gave make variables to the build.
func TestCVE_2010_0412_NoMakeVariables(t *testing.T) {
	for _, arg := range []string{"-BCC=/tmp/cc", "-BM=/tmp", "-B", "-R/tmp", "--sysroot=/tmp"} {
		_, err := Parse([]string{"--client-options", arg, "-e", "probe begin {}"})
		if err == nil || !strings.Contains(err.Error(), "invalid with --client-options") {
			t.Errorf("%s: got %v", arg, err)
		}
	}
}
