package stapopts

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// How a script runs is a server's business too: these options go there.
func TestRunOptionsGoToTheServer(t *testing.T) {
	o, err := Parse(strings.Fields("-T 1.5 -t -u -W -q -g --suppress-handler-errors --suppress-time-limits -e x"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"-T1.5", "-t", "-u", "-W", "-g", "--suppress-handler-errors", "--suppress-time-limits", "-ex"}; !slices.Equal(o.Forward, want) {
		t.Errorf("forwarded: got %q, want %q", o.Forward, want)
	}
	if o.Timeout != 1500*time.Millisecond || !o.Timing || !o.Unoptimized || !o.Strict || !o.Coverage || !o.QuietErrors || !o.NoTimeLimits {
		t.Errorf("got %+v", o)
	}
}

// What a server defines for every script is told from what its client asks for.
func TestDefinesOfAServer(t *testing.T) {
	o, err := Parse(strings.Fields("-DA=1 -b --client-options -DB=2 -e x"))
	if err != nil || o.ServerDefines != 2 || !slices.Equal(o.Defines, []string{"A=1", "STP_BULKMODE", "B=2"}) {
		t.Errorf("got %+v, %v", o, err)
	}
}
