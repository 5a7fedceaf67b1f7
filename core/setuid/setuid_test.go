package setuid

import (
	"os"
	"testing"
)

// A process that has no more rights than its caller keeps its environment and
// its name.
func TestEnterWithoutPrivilege(t *testing.T) {
	if Secure() {
		t.Skip("the test itself runs with AT_SECURE set")
	}
	t.Setenv("SETUID_TEST", "kept")
	c, err := Enter([]string{"anything"})
	if err != nil || len(c.Environ) == 0 || c.Umask != -1 || os.Getenv("SETUID_TEST") != "kept" {
		t.Errorf("got %+v, %v; SETUID_TEST is %q", c, err, os.Getenv("SETUID_TEST"))
	}
	if _, err := Enter(nil); err != nil {
		t.Errorf("without a name: %v", err)
	}
}
