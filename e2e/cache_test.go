package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stapbox/core/wire"
	"stapbox/e2e/lab"
)

// executions traces a server until the function it returns is called, which
// answers the programs that were executed: all of them, and the workers.
func executions(t *testing.T, s *lab.Server) (end func() (all, workers int)) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skipf("counting executions needs strace: %v", err)
	}
	pid := regexp.MustCompile(`compile server pid (\d+) `).FindStringSubmatch(s.Log())
	if pid == nil {
		t.Fatalf("the server does not tell its pid:\n%s", s.Log())
	}
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-o", out, "-p", pid[1])
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	traced := func() bool {
		status, err := os.ReadFile("/proc/" + pid[1] + "/status")
		return err == nil && !strings.Contains(string(status), "TracerPid:\t0\n")
	}
	for range 500 {
		if traced() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !traced() {
		cmd.Process.Kill()
		cmd.Wait()
		t.Skipf("strace cannot trace the server: %s", said.Bytes())
	}
	time.Sleep(200 * time.Millisecond) // its other threads
	return func() (all, workers int) {
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), " execve("), strings.Count(string(b), ` execve("/proc/self/exe", ["stap"`)
	}
}

// Fifty clients that ask for the same new script at once cost one compilation,
// and a known request costs no process at all, also after a restart.
func TestServerCache(t *testing.T) {
	s := serve(t, "cache")
	raw := s.frame(t, "-p4", "--privilege=stapusr", "-e", `probe begin { printf("cached\n"); exit() }`)
	ask := func(clients int) []*wire.Response {
		t.Helper()
		answers := make([]*wire.Response, clients)
		var all sync.WaitGroup
		for i := range answers {
			all.Go(func() {
				var err error
				if answers[i], err = s.send(raw, false); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if t.Failed() {
			t.FailNow()
		}
		return answers
	}
	count := executions(t, s.Server)
	first := ask(50)
	all, workers := count()
	if workers != 1 || all < 3 {
		t.Errorf("50 clients at once: %d workers, %d executions", workers, all)
	}
	modules, signatures := first[0].Modules()
	if first[0].RC != 0 || len(modules) != 1 || len(signatures[0].Data) == 0 {
		t.Fatalf("got %d, %d modules, %s", first[0].RC, len(modules), first[0].Stderr)
	}
	for _, r := range first {
		if m, sig := r.Modules(); len(m) != 1 || !bytes.Equal(m[0].Data, modules[0].Data) || !bytes.Equal(sig[0].Data, signatures[0].Data) {
			t.Error("two answers differ")
		}
	}

	count = executions(t, s.Server)
	ask(20)
	if all, _ := count(); all != 0 {
		t.Errorf("20 known requests: %d executions", all)
	}

	var times []time.Duration
	for range 30 {
		began := time.Now()
		got := ask(1)[0]
		times = append(times, time.Since(began))
		if m, _ := got.Modules(); len(m) != 1 || !bytes.Equal(m[0].Data, modules[0].Data) {
			t.Error("another answer")
		}
	}
	slices.Sort(times)
	t.Logf("a known request over TLS: median %v, best %v, worst %v", times[len(times)/2], times[0], times[len(times)-1])

	// What is kept outlives the server; the box can look at it.
	s.Stop()
	out, err := exec.Command(stage.programs.Applet("stapbox"), "cache", "verify", "--dir", filepath.Join(s.Dir, "answers")).CombinedOutput()
	if err != nil || string(out) != "whole 1, damaged 0\n" {
		t.Errorf("verify: %v\n%s", err, out)
	}
	if s.Server, err = stage.programs.StartServer(s.net, s.Dir, []*lab.Kernel{s.kernel}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	got := ask(1)[0]
	if m, _ := got.Modules(); len(m) != 1 || !bytes.Equal(m[0].Data, modules[0].Data) || s.WaitLog("cache=hit", time.Second) != nil {
		t.Errorf("after a restart:\n%s", s.Log())
	}
}
