package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"stapbox/core/invocation"
)

func TestIs(t *testing.T) {
	for _, tt := range []struct {
		args []string
		pid  int
		want bool
	}{
		{nil, 1, true}, {nil, 2, false}, {[]string{"entrypoint"}, 2, true},
		{[]string{"entrypoint", "--port=1"}, 1, true}, {[]string{"--version"}, 1, false}, {[]string{"staprun", "entrypoint"}, 1, false},
	} {
		if Is(tt.args, tt.pid) != tt.want {
			t.Errorf("%q as process %d: %v", tt.args, tt.pid, !tt.want)
		}
	}
}

func TestChoose(t *testing.T) {
	known := func(string) (*user.User, error) { return &user.User{Uid: "7", Gid: "8"}, nil }
	unknown := func(string) (*user.User, error) { return nil, errors.New("unknown") }
	for _, tt := range []struct {
		name   string
		env    string
		args   string
		self   int
		lookup func(string) (*user.User, error)
		want   string // UID:GID words, or an error
	}{
		{"root", "", "--port=1", 0, known, "7:8 --port=1"},
		{"root, no account", "", "", 0, unknown, "65532:65532 "},
		{"user", "", "--port=1", 5, known, "self --port=1"},
		{"variable", "9", "", 0, known, "9:9 "},
		{"option before variable", "9", "--uid=10:11 -v", 0, known, "10:11 -v"},
		{"option later is the server's", "", "-v --uid=3", 0, known, "7:8 -v --uid=3"},
		{"himself", "", "--uid=5", 5, known, "self "},
		{"another", "", "--uid=6", 5, known, "option '--uid': user 5 cannot become user 6"},
		{"root asked for", "0", "", 0, known, "STAPBOX_UID: a compile server does not run as root"},
		{"name", "", "--uid=bob", 0, known, `option '--uid': "bob" is not UID or UID:GID, in numbers`},
		{"huge", "", "--uid=4294967295", 0, known, `option '--uid': "4294967295" is not UID or UID:GID, in numbers`},
	} {
		inv := &invocation.Invocation{Environ: []string{"STAPBOX_UID=" + tt.env}}
		who, args, err := choose(inv, strings.Fields(tt.args), tt.self, tt.lookup)
		got := "self "
		switch {
		case err != nil:
			got = err.Error()
		case who != nil:
			got = fmt.Sprintf("%d:%d ", who.uid, who.gid)
		}
		if got += strings.Join(args, " "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestMain lets this test's executable be a supervisor whose server is a shell
// script: every signal and child is then of that process alone.
func TestMain(m *testing.M) {
	if script := os.Getenv("TEST_SERVER"); script != "" {
		inv := invocation.FromProcess("stapbox", []string{Command}, os.Environ(), nil)
		s := &supervisor{inv: inv, program: script}
		status, err := s.run([]string{"word"})
		if err != nil {
			inv.Errorf("%v", err)
			status = 126
		}
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// supervise starts a supervisor and waits until its server says ready.
func supervise(t *testing.T, script string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_SERVER="+path)
	var out bytes.Buffer
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { r.Close(); cmd.Process.Kill() })
	b := make([]byte, 64)
	n, err := r.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), "ready") {
		t.Fatalf("%q, %v, %s", b[:n], err, out.String())
	}
	return cmd, &out
}

func exitStatus(t *testing.T, cmd *exec.Cmd, within time.Duration) int {
	t.Helper()
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(within):
		t.Fatalf("it still runs after %v", within)
	}
	return cmd.ProcessState.ExitCode()
}

func TestStatus(t *testing.T) {
	for script, want := range map[string]int{
		"echo ready; exit 7":                        7,
		"echo ready; exit 0":                        0,
		"echo ready; kill -SEGV $$":                 128 + 11,
		"echo ready; kill -KILL $$":                 128 + 9,
		`echo ready; test "$1" = word && exit 42`:   42,
		"(sleep 0.2 & ) ; echo ready; exit 3":       3,
		"echo ready; setsid sleep 0.1 & sleep 0.3;": 0,
	} {
		cmd, out := supervise(t, script)
		if got := exitStatus(t, cmd, 10*time.Second); got != want {
			t.Errorf("%s: status %d, want %d; %s", script, got, want, out.String())
		}
	}
}

func TestSignals(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{
		syscall.SIGTERM: 11, syscall.SIGINT: 12, syscall.SIGHUP: 13, syscall.SIGUSR1: 14, syscall.SIGQUIT: 15,
	} {
		cmd, _ := supervise(t, "trap 'exit 11' TERM; trap 'exit 12' INT; trap 'exit 13' HUP; trap 'exit 14' USR1; trap 'exit 15' QUIT\n"+
			"echo ready; while :; do sleep 0.02; done")
		cmd.Process.Signal(sig)
		if got := exitStatus(t, cmd, 10*time.Second); got != want {
			t.Errorf("%v: status %d, want %d", sig, got, want)
		}
	}
}

// A server that does not listen is killed some time after the second signal.
func TestInsist(t *testing.T) {
	cmd, _ := supervise(t, "trap '' TERM; echo ready; while :; do sleep 0.05; done")
	cmd.Process.Signal(syscall.SIGTERM)
	time.Sleep(50 * time.Millisecond)
	began := time.Now()
	cmd.Process.Signal(syscall.SIGTERM)
	if got := exitStatus(t, cmd, 2*patience); got != 128+9 {
		t.Errorf("status %d", got)
	}
	if d := time.Since(began); d < patience/2 {
		t.Errorf("killed after %v", d)
	}
}

// Orphans come to the supervisor and do not stay as zombies.
func TestOrphans(t *testing.T) {
	cmd, _ := supervise(t, "for i in 1 2 3 4 5; do (sleep 0.1 & ) ; done; echo ready; sleep 5")
	defer cmd.Process.Kill()
	time.Sleep(400 * time.Millisecond)
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid))
	if err != nil || len(lists) == 0 {
		t.Skip("the kernel does not list children (CONFIG_PROC_CHILDREN)")
	}
	var b []byte
	for _, list := range lists {
		more, _ := os.ReadFile(list)
		b = append(append(b, more...), ' ')
	}
	for _, pid := range strings.Fields(string(b)) {
		st, err := os.ReadFile("/proc/" + pid + "/stat")
		if err == nil && strings.Contains(string(st), ") Z ") {
			t.Errorf("a zombie: %s", st)
		}
	}
}

func TestBecome(t *testing.T) {
	err := become([]string{"A=b", stageVariable + "=/proc/nonexistent"}, nil)
	if err == nil || err.Error() != "exec /proc/nonexistent: no such file or directory" {
		t.Errorf("got %v", err)
	}
}

// The first HOME of an environment is the one that counts.
func TestEnviron(t *testing.T) {
	self, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	var who ids
	if _, err := fmt.Sscan(self.Uid, &who.uid); err != nil {
		t.Fatal(err)
	}
	for home, want := range map[string]string{"": self.HomeDir, "/": self.HomeDir, "/root": self.HomeDir, "/srv": "/srv"} {
		s := &supervisor{inv: &invocation.Invocation{Environ: []string{"HOME=" + home, "A=B"}}, who: &who}
		var homes []string
		for _, e := range s.environ() {
			if h, ok := strings.CutPrefix(e, "HOME="); ok {
				homes = append(homes, h)
			}
		}
		if len(homes) != 1 || homes[0] != want {
			t.Errorf("HOME %q: homes %q, want %q", home, homes, want)
		}
	}
}
