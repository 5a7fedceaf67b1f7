package e2e

import (
	"strings"
	"testing"

	"stapbox/e2e/lab"
)

// What staprun's -N and -r tell a script.
func TestSessionFunctions(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/session.ko", lab.Root, 0o644, module(t, s.kernel, "", `probe begin {
	printf("%s, pid %s, parent %s, tid %s, user %d %d, group %d %d, part %d of [%s]\n",
		pid() == ns_pid() ? "here" : "elsewhere", ns_pid() ? ns_pid() == 1 ? "1" : "some" : "0",
		ns_ppid() ? "some" : "0", ns_tid() ? "some" : "0", ns_uid(), ns_euid(), ns_gid(), ns_egid(), remote_id(), remote_uri())
	exit()
}`))
		run := func(script, stdout string, stderr ...string) {
			t.Helper()
			a := s.do(t, lab.Shell(lab.Root, script))
			if string(a.Stdout) != stdout {
				t.Errorf("%s: stdout %q, stderr %q, want %q", script, a.Stdout, a.Stderr, stdout)
			}
			for _, w := range stderr {
				if !strings.Contains(string(a.Stderr), w) {
					t.Errorf("%s: stderr %q lacks %q", script, a.Stderr, w)
				}
			}
		}
		run("staprun /tmp/session.ko", "here, pid some, parent some, tid some, user 0 0, group 0 0, part -1 of []\n")
		run("staprun -r 3:ssh://host /tmp/session.ko", "here, pid some, parent some, tid some, user 0 0, group 0 0, part 3 of [ssh://host]\n")
		run("unshare -p -f staprun /tmp/session.ko", "elsewhere, pid 1, parent 0, tid some, user 0 0, group 0 0, part -1 of []\n")
		// From inside the namespace of another process stapio cannot be seen.
		run(`unshare -p -f sleep 30 & until pidof sleep >/dev/null; do kill -0 $! || break; done; p=$(pidof sleep | cut -d' ' -f1); staprun -N $p /tmp/session.ko; kill $p`,
			"elsewhere, pid 0, parent 0, tid 0, user 0 0, group 0 0, part -1 of []\n")
		run("staprun -N 999999 /tmp/session.ko; echo $?", "1\n", "Unable to send STP_NAMESPACES_PID", "no such process")
	})
}
