package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stapbox/e2e/lab"
)

// service is the demo's compile server: stap-server manages it, as an
// unprivileged user in a network of its own.
type service struct {
	programs *lab.Programs
	net      *lab.Network
	dir      string
	port     int
	checked  int
}

// startService starts a server for a kernel and waits until it is warm.
func startService(programs *lab.Programs, net *lab.Network, dir string, kernel *lab.Kernel) (*service, error) {
	s := &service{programs: programs, net: net, dir: dir}
	for _, d := range []string{dir, filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
		if err := os.Chown(d, lab.ServerUID, lab.ServerUID); err != nil {
			return nil, err
		}
	}
	err := s.manage([]string{"start", "-n", "demo", "-r", kernel.Headers, "--log=" + s.logFile()}, "Starting", "OK")
	if err != nil {
		return s, err
	}
	out, err := s.output("status", "--json")
	if err != nil {
		return s, err
	}
	var shown []struct{ Port int }
	if err := json.Unmarshal(out, &shown); err != nil || len(shown) != 1 || shown[0].Port == 0 {
		return s, fmt.Errorf("the status of one server with a port was expected: %s", out)
	}
	s.port = shown[0].Port
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(s.log(), "is ready after"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return s, fmt.Errorf("the server is not ready:\n%s", s.log())
		}
	}
	fmt.Print("$ cat server.log\n", s.log())
	return s, s.manage([]string{"status"}, "running")
}

// stop ends the server and shows that it is gone.
func (s *service) stop() error {
	if err := s.manage([]string{"stop", "-n", "demo"}, "Stopping", "OK"); err != nil {
		return err
	}
	return s.manage([]string{"status"}, "No managed stap-server is running", "exit status 3")
}

func (s *service) logFile() string { return filepath.Join(s.dir, "server.log") }

func (s *service) log() string {
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (s *service) output(args ...string) ([]byte, error) {
	cmd := s.net.Command(lab.ServerUID, []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "TMPDIR=" + filepath.Join(s.dir, "tmp"),
	}, append([]string{s.programs.Applet("stap-server")}, args...)...)
	cmd.Dir = s.dir
	return cmd.CombinedOutput()
}

// manage shows a stap-server command, which must print the texts. A status other
// than 0 is shown as one of them.
func (s *service) manage(args []string, expect ...string) error {
	fmt.Printf("$ stap-server %s\n", strings.Join(args, " "))
	out, err := s.output(args...)
	if err != nil {
		out = fmt.Appendf(out, "%v\n", err)
	}
	os.Stdout.Write(out)
	for _, text := range expect {
		if !strings.Contains(string(out), text) {
			return fmt.Errorf("stap-server %q does not print %q", args, text)
		}
		s.checked++
	}
	return nil
}
