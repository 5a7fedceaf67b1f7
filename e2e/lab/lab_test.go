package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"stapbox/e2e/agent/request"
)

// TestGuest boots each kernel of the matrix with the agent and looks around.
func TestGuest(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace and a tap device")
	}
	l, err := Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(t.TempDir(), "agent")
	build := exec.Command("go", "build", "-o", agent, "stapbox/e2e/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}
	net, err := l.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	for _, v := range Versions() {
		t.Run(v, func(t *testing.T) {
			k, err := l.FetchKernel(v)
			if err != nil {
				t.Fatal(err)
			}
			g, err := l.Boot(GuestConfig{Kernel: k, Agent: agent, Net: net})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Kill()
			for _, tt := range []struct {
				name   string
				r      request.Request
				stdout string
				status int
			}{
				{"release", Shell(Root, "uname -r"), k.Release + "\n", 0},
				{"user", Shell(Usr, "id -u; id -G"), "1002\n1002 156\n", 0},
				{"status", Shell(Usr, "exit 7"), "", 7},
				{"network", Shell(Root, "ping -c 1 -W 5 10.77.0.1 >/dev/null && echo yes"), "yes\n", 0},
				{"signal", func() request.Request {
					r := Shell(Usr, "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
					r.Signals = []request.Signal{{Number: 15, After: 200}}
					return r
				}(), "ready\ngot it\n", 3},
			} {
				a, err := g.Do(tt.r)
				if err != nil || string(a.Stdout) != tt.stdout || a.Status != tt.status {
					t.Errorf("%s: got %q, stderr %q, status %d, %v; want %q, %d", tt.name, a.Stdout, a.Stderr, a.Status, err, tt.stdout, tt.status)
				}
			}
			if err := g.Console.Type("id\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := g.Console.Expect("uid=0(root)", 20*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}
