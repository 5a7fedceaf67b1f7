package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Programs are the executables under test, built from the tree.
type Programs struct {
	Dir   string
	Box   string // stapbox
	Agent string // e2e/agent
}

// buildFlags are those of the one file. It is a megabyte smaller where only what
// runs often is inlined: the runtime, the arithmetic of keys, system calls, and
// of stapbox itself the relay. The last pattern that matches a package counts.
// Functions begin at multiples of 16, as those of other compilers, not of 32,
// which is another 150 kB.
var buildFlags = []string{"-tags", "urfave_cli_no_docs", "-trimpath", "-ldflags", "-s -w -funcalign=16",
	"-gcflags=all=-l", "-gcflags=runtime/...=", "-gcflags=internal/runtime/...=", "-gcflags=internal/bytealg=",
	"-gcflags=crypto/internal/...=", "-gcflags=os=", "-gcflags=syscall=", "-gcflags=internal/poll=",
	"-gcflags=golang.org/x/sys/...=", "-gcflags=stapbox/core/transport=", "-gcflags=stapbox/applets/relay="}

// BuildBox builds the one file.
func BuildBox(path string) error { return build(path, "stapbox", buildFlags) }

func build(path, pkg string, flags []string) error {
	cmd := exec.Command("go", append(append([]string{"build"}, flags...), "-o", path, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Build builds the programs into dir, with a link for each applet beside the
// box.
func Build(dir string) (*Programs, error) {
	p := &Programs{dir, filepath.Join(dir, "stapbox"), filepath.Join(dir, "agent")}
	if err := BuildBox(p.Box); err != nil {
		return nil, err
	}
	if err := build(p.Agent, "stapbox/e2e/agent", []string{"-trimpath"}); err != nil {
		return nil, err
	}
	out, err := exec.Command(p.Box, "--list").Output()
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(string(out)) {
		if err := os.Symlink("stapbox", filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
			return nil, err
		}
	}
	return p, nil
}

// Applet is the path of an applet.
func (p *Programs) Applet(name string) string { return filepath.Join(p.Dir, name) }

// ServerUID is the unprivileged user that test servers run as.
const ServerUID = 65534

// Server is a running stap-serverd.
type Server struct {
	Port int
	Dir  string // its data directory ($SYSTEMTAP_DIR)
	PID  int

	cmd  *exec.Cmd
	mu   sync.Mutex
	log  bytes.Buffer
	done chan struct{}
}

var listening = regexp.MustCompile(`Using network address \[?[^\]]*\]?:(\d+)`)

// StartServer starts a compile server in a network for the given kernels and
// waits until it accepts connections. Its data directory may be reused.
func (p *Programs) StartServer(n *Network, dir string, kernels []*Kernel, args ...string) (*Server, error) {
	for _, d := range []string{dir, filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
		if err := os.Chown(d, ServerUID, ServerUID); err != nil {
			return nil, err
		}
	}
	argv := []string{p.Applet("stap-serverd")}
	for _, k := range kernels {
		argv = append(argv, "-r", k.Headers)
	}
	return startServer(n.Command(ServerUID, []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "SYSTEMTAP_DIR=" + dir, "TMPDIR=" + filepath.Join(dir, "tmp"),
	}, append(argv, args...)...), dir)
}

// StartServerIn starts a compile server in the peer's tree, which has the
// compiler for its kernel. The server's data directory is below dir.
func (p *Programs) StartServerIn(ctx context.Context, peer *Peer, n *Network, dir string) (*Server, error) {
	data := filepath.Join(dir, "data")
	for _, d := range []string{filepath.Join(data, "tmp"), filepath.Join(dir, "bin")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{data, filepath.Join(data, "tmp")} {
		if err := os.Chown(d, ServerUID, ServerUID); err != nil {
			return nil, err
		}
	}
	b, err := os.ReadFile(p.Box)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "stap-serverd"), b, 0o755); err != nil {
		return nil, err
	}
	return startServer(peer.Command(ctx, Inside{
		Net: n, UID: ServerUID, Work: dir, Env: []string{"HOME=/mnt/data", "SYSTEMTAP_DIR=/mnt/data", "TMPDIR=/mnt/data/tmp", "USER=nobody"},
	}, "/mnt/bin/stap-serverd", "-r", peer.Kernel.Release), data)
}

// startServer starts a server's command and waits until it accepts connections.
func startServer(cmd *exec.Cmd, dir string) (*Server, error) {
	s := &Server{Dir: dir, cmd: cmd, done: make(chan struct{})}
	s.cmd.Stderr = s
	s.cmd.Stdout = s
	if err := startLocked(s.cmd); err != nil {
		return nil, err
	}
	s.PID = s.cmd.Process.Pid // ip and setpriv execute the server in their own process
	go func() {
		s.cmd.Wait()
		close(s.done)
	}()
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		if m := listening.FindStringSubmatch(s.Log()); m != nil {
			fmt.Sscan(m[1], &s.Port)
			return s, nil
		}
		select {
		case <-s.done:
			return nil, fmt.Errorf("the server ended:\n%s", s.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
	s.Stop()
	return nil, fmt.Errorf("the server does not listen:\n%s", s.Log())
}

// Write collects the server's log.
func (s *Server) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

// Log is what the server has logged so far.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// cannotPrepare is in the log when a kernel's runtime could not be built: what waits
// for that kernel would wait in vain.
var cannotPrepare = regexp.MustCompile(`(preparing kernel \S+: status .*)`)

// WaitLog waits for a line of the log, or for the end of hope for one.
func (s *Server) WaitLog(pattern string, wait time.Duration) error {
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		log := s.Log()
		if re.MatchString(log) {
			return nil
		}
		if m := cannotPrepare.FindStringSubmatch(log); m != nil {
			return fmt.Errorf("the server: %s", strings.ReplaceAll(m[1], `\n`, "\n"))
		}
	}
	return fmt.Errorf("the server's log does not show %q after %v:\n%s", pattern, wait, s.Log())
}

// Stop ends the server as an administrator does and waits for it.
func (s *Server) Stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(15 * time.Second):
		s.cmd.Process.Kill()
		<-s.done
	}
}

// Certificate is the server's certificate file (DER).
func (s *Server) Certificate() string { return filepath.Join(s.Dir, "ssl", "server", "stap.cert") }
