package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"stapbox/e2e/lab"
)

// TestSandboxOnKernel runs the tests of the sandbox on kernels with an older
// Landlock, as a server's user and as root.
func TestSandboxOnKernel(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sandbox.test")
	build := exec.Command("go", "test", "-c", "-ldflags=-s -w", "-o", program, "stapbox/core/sandbox")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	onKernel(t, lab.Versions()[0], func(t *testing.T, s *scene) {
		s.put(t, "/tmp/sandbox.test", lab.Root, 0o755, data)
		s.do(t, lab.Shell(lab.Root, "busybox --install -s /bin; echo 'root:x:1:' > /etc/shadow; chmod 600 /etc/shadow"))
		for u, tests := range map[*lab.User]string{&lab.Nobody: "Honest|Fetch$|Sparse|Outside|SystemCalls|Refuses", &lab.Root: "Honest|Fetch$|Sparse|SystemCalls"} {
			r := lab.Command(*u, "/tmp/sandbox.test", "-test.v", "-test.run="+tests)
			r.Dir = "/tmp"
			r.Timeout = 300
			a := s.do(t, r)
			if a.Status != 0 || strings.Contains(string(a.Stdout), "missing:") || strings.Count(string(a.Stdout), "--- PASS") != strings.Count(tests, "|")+1 {
				t.Errorf("%s: status %d\n%s%s", u.Name, a.Status, a.Stdout, a.Stderr)
			}
		}
	})
}
