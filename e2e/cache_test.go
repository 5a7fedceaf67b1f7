package e2e

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stapbox/core/signing"
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
	pid := strconv.Itoa(s.PID)
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-o", out, "-p", pid)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	traced := func() bool {
		threads, err := filepath.Glob("/proc/" + pid + "/task/*/status")
		return err == nil && len(threads) > 0 && !slices.ContainsFunc(threads, func(path string) bool {
			status, err := os.ReadFile(path)
			return err == nil && strings.Contains(string(status), "TracerPid:\t0\n")
		})
	}
	for deadline := time.Now().Add(time.Minute); !traced(); time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			t.Skipf("strace cannot trace the server: %s", &said)
		default:
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			<-ended
			t.Fatalf("strace does not trace all threads of the server: %s", &said)
		}
	}
	return func() (all, workers int) {
		cmd.Process.Signal(syscall.SIGINT)
		<-ended
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
	few(t)
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

// TestServerKilled ends a server by SIGKILL at random moments under load. Each
// answer that comes is the right one, and the cache stays whole.
func TestServerKilled(t *testing.T) {
	few(t)
	s := serve(t, "killed")
	const scripts, clients = 12, 6
	kills := rounds(12, 50)
	cert, err := os.ReadFile(s.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	modules := make(map[int][]byte) // what each script became, by the first answer
	hits, answered := 0, 0
	var frames [][]byte
	for round := range kills {
		// New ones each time, so that answers are also being made and stored.
		for range scripts {
			frames = append(frames, s.frame(t, "-p4", "--privilege=stapusr", "-e", fmt.Sprintf(`probe begin { printf("%d\n"); exit() }`, len(frames))))
		}
		stop := make(chan struct{})
		var all sync.WaitGroup
		for range clients {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					i := rand.IntN(len(frames))
					if rand.IntN(2) == 0 {
						i = len(frames) - 1 - rand.IntN(scripts)
					}
					got, err := s.send(frames[i], false)
					if err != nil || !got.HasRC {
						time.Sleep(10 * time.Millisecond) // the server is gone
						continue
					}
					m, sig := got.Modules()
					if got.RC != 0 || len(m) != 1 {
						t.Errorf("script %d: status %d, %s", i, got.RC, got.Stderr)
						return
					}
					if r := signing.Verify(m[0].Data, sig[0].Data, []signing.Signer{{Certificate: signer}}, signing.Policy{Now: time.Now()}); r.Verdict != signing.OK {
						t.Errorf("script %d: %v, %s", i, r.Verdict, r.Reason)
					}
					mu.Lock()
					answered++
					if want, ok := modules[i]; !ok {
						modules[i] = m[0].Data
					} else if !bytes.Equal(m[0].Data, want) {
						t.Errorf("script %d: another module than the first time", i)
					}
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(1200)) * time.Millisecond)
		// Not every server is killed before it has answered from the cache.
		for deadline := time.Now().Add(time.Minute); round%2 == 1 && !strings.Contains(s.Log(), "cache=hit") && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		syscall.Kill(s.PID, syscall.SIGKILL)
		close(stop)
		all.Wait()
		hits += strings.Count(s.Log(), "cache=hit")
		s.Stop()
		out, err := exec.Command(stage.programs.Applet("stapbox"), "cache", "verify", "--dir", filepath.Join(s.Dir, "answers")).CombinedOutput()
		if err != nil || !strings.HasSuffix(string(out), "damaged 0\n") {
			t.Fatalf("verify: %v\n%s", err, out)
		}
		next, err := stage.programs.StartServer(s.net, s.Dir, []*lab.Kernel{s.kernel})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(next.Stop)
		s.Server = next
	}
	if got, err := s.send(frames[0], false); err != nil || got.RC != 0 {
		t.Errorf("after the last one: %+v, %v", got, err)
	}
	if answered == 0 || hits == 0 {
		t.Errorf("%d answers, %d from the cache", answered, hits)
	}
	t.Logf("%d answers of %d scripts in spite of %d kills, %d from the cache", answered, len(modules), kills, hits)
}
