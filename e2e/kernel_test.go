package e2e

import (
	"regexp"
	"strings"
	"testing"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

const controlDir = "/proc/systemtap/e2e_test_module_with_long_name"

var taken = regexp.MustCompile(`^[1-9]\d* calls, (\d+) messages taken\n$`)

// TestHostileOwner lets the owner of a module's files do to them what he can.
// The kernel must not notice, and the module must still be removable.
func TestHostileOwner(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		id, _ := signers(t)
		s.trustSigner(t, id)
		defer s.forgetSigners(t)
		m := module(t, s.kernel, "stapusr", `global n probe begin { println("up") } probe timer.ms(1) { printf("%d\n", n++) } probe end { println("down") }`)
		s.put(t, "/tmp/owned.ko", lab.Root, 0o644, m)
		s.put(t, "/tmp/owned.ko.sgn", lab.Root, 0o644, sign(t, m, id))
		t.Run("while it runs", func(t *testing.T) {
			// Whoever owns the trace files may read them away from his own
			// stapio: what is left must still be in order and end.
			r := lab.Shell(lab.Usr, printing("staprun /tmp/owned.ko")+"/agent hammer "+controlDir+" 3 1; kill -INT $!; wait $!; echo status $?; tail -1 out")
			a := s.do(t, r)
			calls, rest, _ := strings.Cut(string(a.Stdout), "status")
			if !taken.MatchString(calls) || rest != " 0\ndown\n" && rest != " 1\ndown\n" {
				t.Errorf("got %q, %q", a.Stdout, a.Stderr)
			}
		})
		t.Run("while nobody is attached", func(t *testing.T) {
			r := lab.Command(lab.Usr, "staprun", "/tmp/owned.ko")
			r.Signals = []request.Signal{{Number: 19, After: 200}, {Number: 9, After: 300}}
			s.do(t, r)
			a := s.do(t, lab.Command(lab.Usr, "/agent", "hammer", controlDir, "3", "2"))
			if m := taken.FindSubmatch(a.Stdout); m == nil || string(m[1]) == "0" {
				t.Errorf("got %q, %q", a.Stdout, a.Stderr)
			}
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", "-d", "e2e_test_module_with_long_name")), 0, "")
		})
	})
}
