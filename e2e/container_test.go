package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"stapbox/e2e/lab"
)

// contain starts stapbox entrypoint as the first process of fresh namespaces
// (process ids, mounts, network with loopback, host name, IPC), as root with the
// server as another user. o.cmd is unshare(1), which ends as that process does;
// o.PID is that process.
func contain(t *testing.T, name string, args ...string) *operated {
	t.Helper()
	o := operation(t, "contained-"+name)
	o.unshare(t, o.environ(fmt.Sprintf("STAPBOX_UID=%d", lab.ServerUID)), append([]string{"--mount-proc", stage.programs.Box, "entrypoint", "--key-type=ecdsa", "-r", o.kernel.Headers}, args...)...)
	return o
}

// unshare starts a command in fresh namespaces and waits until it serves.
func (o *operated) unshare(t *testing.T, env []string, argv ...string) {
	t.Helper()
	o.cmd = o.net.Command(0, env, append([]string{"unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc"}, argv...)...)
	o.start(t)
	t.Cleanup(func() {
		o.cmd.Process.Kill()
		<-o.ended
	})
	o.Port, _ = strconv.Atoi(o.wait(t, `Using network address \[?[^\]]*\]?:(\d+)`)[1])
	if o.PID = child(o.cmd.Process.Pid); o.PID == 0 {
		t.Fatal("unshare has no child")
	}
}

// child is the first child of a process, whichever of its threads it is of; 0 if
// it has none.
func child(pid int) int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		if f := strings.Fields(string(b)); len(f) > 0 {
			n, _ := strconv.Atoi(f[0])
			return n
		}
	}
	return 0
}

func (o *operated) kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("no process to send %v to\n%s", sig, o.text())
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// ends waits for the end and gives the status.
func (o *operated) ends(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-o.ended:
		// unshare ends by the signal its child ended by.
		if ws := o.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return o.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("it still runs after %v:\n%s", within, o.text())
	}
	return 0
}

// processes are those of the container, their states by process id there.
func (o *operated) processes(t *testing.T) map[string]string {
	t.Helper()
	root := fmt.Sprintf("/proc/%d/root/proc", o.PID)
	names, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, n := range names {
		if _, err := strconv.Atoi(n.Name()); err != nil {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(root, n.Name(), "stat")); err == nil {
			_, rest, _ := strings.Cut(string(b), ") ")
			found[n.Name()] = rest[:1]
		}
	}
	return found
}

// As the first process the box serves a request, takes orphans in, drains on
// SIGTERM while a request is under way, and leaves no zombie.
func TestContainer(t *testing.T) {
	few(t)
	o := contain(t, "serves", "--drain-time=60")
	raw := o.frame(t, "-p4", "--privilege=stapusr", "-e"+hello)
	if got, err := o.send(raw, false); err != nil || got.RC != 0 {
		t.Fatalf("got %+v, %v\n%s", got, err, o.text())
	} else if modules, signatures := got.Modules(); len(modules) != 1 || len(signatures[0].Data) == 0 {
		t.Errorf("%d modules", len(modules))
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", child(o.PID)))
	if err != nil || !strings.Contains(string(status), fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", lab.ServerUID)) {
		t.Errorf("the server's user: %v\n%s", err, status)
	}

	// Twenty orphans, half of which end before their parent is gone.
	orphans := exec.Command("nsenter", "-t", fmt.Sprint(o.PID), "-p", "-m", "sh", "-c",
		"for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sleep 2 >/dev/null 2>&1 &) ; (true &) ; done")
	if out, err := orphans.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	most := 0
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		all := o.processes(t)
		if most = max(most, len(all)); len(all) <= 2 {
			break
		}
	}
	if most < 5 {
		t.Errorf("no orphan was seen, only %d processes", most)
	}
	if all := o.processes(t); len(all) != 2 || all["1"] == "" {
		t.Errorf("processes that are left: %v", all)
	}
	for pid, state := range o.processes(t) {
		if state == "Z" {
			t.Errorf("process %s is a zombie", pid)
		}
	}

	// Another script: the first is in the cache.
	under := o.later(o.frame(t, "-p4", "--privilege=stapusr", "-e"+strings.Replace(hello, "probe", "probe timer.s(9) { exit() } probe", 1)))
	for end := time.Now().Add(20 * time.Second); strings.Count(o.text(), "Options passed from the client") < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the request does not come:\n%s", o.text())
		}
	}
	o.kill(t, o.PID, syscall.SIGTERM)
	if got := <-under; got.err != nil || got.RC != 0 {
		t.Errorf("the request under way: %+v", got)
	}
	if got := o.ends(t, 10*time.Second); got != 0 {
		t.Errorf("status %d\n%s", got, o.text())
	}
	for line := range strings.Lines(o.text()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %q", line)
		}
	}
}

// A second SIGTERM does not wait for what is under way; SIGHUP reloads.
func TestContainerSecondTerm(t *testing.T) {
	o := contain(t, "second", "--drain-time=600")
	o.kill(t, o.PID, syscall.SIGHUP)
	o.wait(t, "Reloaded: ")
	under := o.later(o.frame(t, "-p4", "--privilege=stapusr", "-e"+hello))
	o.wait(t, "Options passed from the client")
	o.kill(t, o.PID, syscall.SIGTERM)
	o.wait(t, "Received signal 15, exiting")
	began := time.Now()
	o.kill(t, o.PID, syscall.SIGTERM)
	if got := o.ends(t, 6*time.Second); got != 0 || !strings.Contains(o.text(), "Received another signal 15, exiting (forced)") {
		t.Errorf("status %d after %v\n%s", got, time.Since(began), o.text())
	}
	<-under
}

// The container ends as its server does.
func TestContainerCrash(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGKILL: 128 + 9, syscall.SIGSEGV: 128 + 11} {
		o := contain(t, fmt.Sprintf("crash%d", sig))
		o.kill(t, child(o.PID), sig)
		if got := o.ends(t, 10*time.Second); got != want {
			t.Errorf("%v: status %d, want %d\n%s", sig, got, want, o.text())
		}
	}
	o := contain(t, "quit")
	o.kill(t, o.PID, syscall.SIGQUIT)
	if got := o.ends(t, 10*time.Second); got != 128+3 || strings.Contains(o.text(), "goroutine") {
		t.Errorf("SIGQUIT: status %d\n%s", got, o.text())
	}
}

// Wrong words end the start.
func TestContainerRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		"stapbox: ERROR: option '--uid': a compile server does not run as root\n":     {"--uid=0"},
		"stapbox: ERROR: option '--uid': \"bob\" is not UID or UID:GID, in numbers\n": {"--uid=bob"},
		"stap-serverd: option '--port=x': \"x\" is not a number\n":                    {"--port=x"},
	} {
		cmd := exec.Command(stage.programs.Box, append([]string{"entrypoint"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.HasSuffix(string(out), want) && !strings.HasPrefix(want, "stap-serverd") {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
}
