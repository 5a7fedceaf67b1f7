package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// runGuest is ./e2e/run guest with the files of a directory.
func runGuest(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	return runCommand(t, dir, append([]string{"guest"}, args...)...)
}

// runCommand is ./e2e/run in a directory.
func runCommand(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("guests need root, for a network namespace with a tap device")
	}
	runner, err := builtRunner()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(runner, args...)
	cmd.Env = append(os.Environ(), "STAPBOX_CWD="+dir)
	return cmd
}

// builtRunner is the path of the program behind ./e2e/run, built once.
var builtRunner = sync.OnceValues(func() (string, error) {
	runner := filepath.Join(stage.dir, "runner")
	if out, err := exec.Command("go", "build", "-o", runner, "stapbox/e2e/runner").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the runner: %w\n%s", err, out)
	}
	return runner, nil
})

// A command's output and exit status are those of ./e2e/run guest; the scripts
// are in the current directory or in the command, and a server compiles them.
func TestGuestCommand(t *testing.T) {
	bootsGuest(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "own.stp"), []byte(`probe begin { printf("from a file, %d\n", uid()) exit() }`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".hidden"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := runGuest(t, dir, "-k", "6.12", "-u", "usr", "--server", "--", "sh", "-c",
		`stap -e 'probe begin { println("hi") exit() }' && stap own.stp && stap - && echo to stderr >&2; exit 3`)
	cmd.Stdin = strings.NewReader(`probe begin { println("from standard input") exit() }`)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != 3 {
		t.Errorf("status %d, %v, want 3", got, err)
	}
	if want := "hi\nfrom a file, 1002\nfrom standard input\n"; stdout.String() != want {
		t.Errorf("stdout %q, want %q", &stdout, want)
	}
	for _, w := range []string{"left out", ".hidden", "to stderr\n"} {
		if !strings.Contains(stderr.String(), w) {
			t.Errorf("stderr %q lacks %q", &stderr, w)
		}
	}
}

// Without a command there is a shell on this terminal: with its size, ^C that
// ends what runs, and the shell's exit status.
func TestGuestDialogue(t *testing.T) {
	bootsGuest(t)
	x := newTerminal(t)
	cmd := runGuest(t, "", "-k", "6.1", "-u", "dev")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = x.slave, x.slave, x.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	say := func(keys, shows string) {
		t.Helper()
		x.press(keys)
		for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(x.text.String(), shows); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%q is not on the terminal after %q:\n%s", shows, keys, x.text.String())
			}
		}
	}
	say("", "dev@production$ ")
	say("id -un; stty size; tty\r", "\r\ndev\r\n24 80\r\n/dev/pts/0\r\n")
	say("sh -c 'echo sleeps; exec sleep 1000'\r", "\r\nsleeps\r\n")
	say("\x03", "^C")
	say("echo status $?\r", "\r\nstatus 130\r\n")
	x.press("exit 5\r")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 5 {
			t.Errorf("ended with %v, want status 5; the terminal:\n%s", err, x.text.String())
		}
	case <-time.After(time.Minute):
		t.Fatalf("no end after exit; the terminal:\n%s", x.text.String())
	}
	if after := x.settings(t); after != x.before {
		t.Errorf("the terminal's settings are %+v, were %+v", after, x.before)
	}
}

// What the command line says wrong is named, before anything is booted.
func TestGuestRefuses(t *testing.T) {
	few(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-k", "5.10"}, "-k 5.10: kernels are 6.1, 6.12, 7.2\n"},
		{[]string{"-u", "alice"}, "-u alice: users are usr, sys, dev and root\n"},
		{nil, "a shell needs a terminal; name a COMMAND after --\n"},
		{[]string{"--frobnicate"}, "flag provided but not defined: -frobnicate\n"},
	} {
		cmd := runGuest(t, "", tt.args...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%v: %v, %q; want %q", tt.args, err, out, tt.want)
		}
	}
}

// A signal that comes before the command runs, or while there is none, ends the
// runner with 128 and its number, and so does output that nobody reads. Processes,
// network namespaces and files go with it, whether the terminal sends the signal to
// all of its processes or not. Processes of others stay.
func TestRunEndedBySignal(t *testing.T) {
	bootsGuest(t)
	for _, tt := range []struct {
		name, args string
		when       string // what the command line of a process of the run has in it
		signal     syscall.Signal
		all        bool
	}{
		{"guest, build", "guest -- sleep 1000", "go build ", syscall.SIGINT, true},
		{"guest, quit", "guest -- sleep 1000", "go build ", syscall.SIGQUIT, true},
		{"build, pipe", "build /dev/null", "go build ", syscall.SIGPIPE, false},
		{"guest, server", "guest --server -- sleep 1000", "stap-serverd -r ", syscall.SIGTERM, false},
		{"guest, boot", "guest -- sleep 1000", "qemu-system-x86_64 ", syscall.SIGHUP, false},
		{"guest, terminal", "guest --server -- sleep 1000", "qemu-system-x86_64 ", syscall.SIGINT, true},
		{"demo", "demo --short", "qemu-system-x86_64 ", syscall.SIGINT, true},
		{"test", "test -run ^TestGuest$ stapbox/e2e/lab", "qemu-system-x86_64 ", syscall.SIGINT, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "s") // short: sockets are below
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := os.Chmod(dir, 0o755); err != nil { // servers run as other users
				t.Fatal(err)
			}
			x := startOlder(t, dir, strings.Fields(tt.args))
			ofRun := x.until(t, tt.when)
			inside := startInside(t, dir)
			switch {
			case tt.signal == syscall.SIGPIPE:
				x.stdout.Close()
			case tt.all:
				syscall.Kill(-x.cmd.Process.Pid, tt.signal)
			default:
				syscall.Kill(x.cmd.Process.Pid, tt.signal)
			}
			hung := time.AfterFunc(time.Minute, func() { x.cmd.Process.Kill() })
			<-x.ended
			hung.Stop()
			if got, want := x.cmd.ProcessState.ExitCode(), 128+int(tt.signal); got != want {
				t.Errorf("%v, want status %d:\n%s", x.cmd.ProcessState, want, &x.stderr)
			}
			for pid, command := range processesWith(dir) {
				if pid != x.older && pid != inside {
					t.Errorf("process %d is left: %s", pid, command)
				}
			}
			left, _ := filepath.Glob(filepath.Join(dir, "*"))
			for _, pid := range append(ofRun, x.cmd.Process.Pid) { // other runs may be killed just now
				namespaces, _ := filepath.Glob(fmt.Sprintf("/run/netns/stapbox-%d-*", pid))
				left = append(left, namespaces...)
			}
			if len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			for what, pid := range map[string]int{"an older child": x.older, "a process in the run's directory": inside} {
				if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || bytes.Contains(b, []byte(") Z ")) {
					t.Errorf("%s has ended, %v", what, err)
				}
			}
		})
	}
}

// interrupted is a run that a signal is to end.
type interrupted struct {
	cmd    *exec.Cmd
	dir    string   // its TMPDIR
	older  int      // its child that is older than the run
	stdout *os.File // to read from
	stderr bytes.Buffer
	ended  chan struct{}
}

// startOlder starts a run by a shell that executes it, and has a child before.
func startOlder(t *testing.T, dir string, args []string) *interrupted {
	t.Helper()
	x := &interrupted{cmd: runCommand(t, "", args...), dir: dir, ended: make(chan struct{})}
	file := filepath.Join(t.TempDir(), "older")
	// The child has a group of its own: the terminal's signals are not for it.
	const script = `setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >"$0"; exec "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, file}, x.cmd.Args...)...)
	cmd.Env = append(x.cmd.Env, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	x.cmd = cmd
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	x.stdout = r
	go io.Copy(io.Discard, r)
	cmd.Stdout, cmd.Stderr = w, &x.stderr
	cmd.WaitDelay = 5 * time.Second // others keep the pipe
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait() // its status says what there is to say
		close(x.ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-x.ended
		r.Close()
		for pid := range processesWith(dir) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); x.older == 0; time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(file)
		if x.older, _ = strconv.Atoi(strings.TrimSpace(string(b))); time.Now().After(deadline) {
			t.Fatal("the shell does not say what its child is")
		}
	}
	return x
}

// until waits for a process of the run, and gives those that there are then.
func (x *interrupted) until(t *testing.T, command string) (pids []int) {
	t.Helper()
	for deadline := time.After(2 * time.Minute); ; {
		found := processesWith(x.dir)
		delete(found, x.older)
		for _, c := range found {
			if strings.Contains(c, command) {
				return slices.Collect(maps.Keys(found))
			}
		}
		select {
		case <-x.ended:
			t.Fatalf("%v, before there is a process %q:\n%s", x.cmd.ProcessState, command, &x.stderr)
		case <-deadline:
			x.cmd.Process.Kill()
			<-x.ended
			t.Fatalf("no process %q:\n%s", command, &x.stderr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// startInside starts a process in the directory that a run has made below its TMPDIR,
// as from a shell that somebody has led there.
func startInside(t *testing.T, dir string) (pid int) {
	t.Helper()
	made, err := filepath.Glob(filepath.Join(dir, "stapbox-*"))
	if err != nil || len(made) != 1 {
		t.Fatalf("the run's directory is one of %q, %v", made, err)
	}
	cmd := exec.Command("sleep", "1000")
	cmd.Dir, cmd.Env = made[0], []string{"PWD=" + made[0]}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

// processesWith gives the command lines of processes in whose command line or
// environment a directory is.
func processesWith(dir string) map[int]string {
	found := map[int]string{}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		command, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(p, "environ"))
		if strings.Contains(string(command)+string(environ), dir) {
			pid, _ := strconv.Atoi(filepath.Base(p))
			found[pid] = strings.ReplaceAll(string(command), "\x00", " ")
		}
	}
	return found
}

// flood is input without end, and counts its bytes.
type flood struct{ atomic.Int64 }

func (f *flood) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = "y\n"[i%2]
	}
	f.Add(int64(len(b)))
	return len(b), nil
}

// ^C reaches a command that does not read its input, however much of that there
// is. The terminal sends it to all processes of the runner; the guest outlives that.
func TestGuestSignalPassesInput(t *testing.T) {
	bootsGuest(t)
	cmd := runGuest(t, "", "-k", "6.12", "--", "sh", "-c", `trap 'echo got it; exit 7' INT; echo up; while :; do sleep 1; done`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var input flood
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = &input, &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	hung := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() })
	defer hung.Stop()
	stdout := bufio.NewReader(pipe)
	if line, err := stdout.ReadString('\n'); line != "up\n" {
		t.Errorf("first it prints %q, %v", line, err)
	}
	for before := int64(-1); before != input.Load(); time.Sleep(2 * time.Second) {
		before = input.Load()
	}
	if got := input.Load(); got > 1<<20 {
		t.Errorf("%d bytes of input are read ahead", got)
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	rest, err := io.ReadAll(stdout)
	if string(rest) != "got it\n" {
		t.Errorf("then it prints %q, %v", rest, err)
	}
	err = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("status %d, %v, want 7:\n%s", got, err, &stderr)
	}
}
