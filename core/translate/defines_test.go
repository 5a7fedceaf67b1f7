package translate

import (
	"strings"
	"testing"
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
