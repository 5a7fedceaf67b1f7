package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	runner := filepath.Join(t.TempDir(), "runner")
	if out, err := exec.Command("go", "build", "-o", runner, "stapbox/e2e/runner").CombinedOutput(); err != nil {
		t.Fatalf("building the runner: %v\n%s", err, out)
	}
	cmd := exec.Command(runner, args...)
	cmd.Env = append(os.Environ(), "STAPBOX_CWD="+dir)
	return cmd
}

// A command's output and exit status are those of ./e2e/run guest; the scripts
// are in the current directory or in the command, and a server compiles them.
func TestGuestCommand(t *testing.T) {
	few(t)
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
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-k", "5.10"}, "-k 5.10: kernels are 6.1, 6.12, 7.2\n"},
		{[]string{"-u", "alice"}, "-u alice: users are usr, sys, dev and root\n"},
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
// runner with 128 and its number. Processes, network namespaces and files go with
// it, whether the terminal sends the signal to all of its processes or not.
func TestRunEndedBySignal(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		when       string // what the command line of a process of the run has in it
		signal     syscall.Signal
		all        bool
	}{
		{"guest, build", "guest", "go build ", syscall.SIGINT, true},
		{"guest, server", "guest --server -- true", "stap-serverd -r ", syscall.SIGTERM, false},
		{"guest, boot", "guest", "qemu-system-x86_64 ", syscall.SIGHUP, false},
		{"guest, terminal", "guest --server -- true", "qemu-system-x86_64 ", syscall.SIGINT, true},
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
			cmd := runCommand(t, "", strings.Fields(tt.args)...)
			cmd.Env = append(cmd.Env, "TMPDIR="+dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.WaitDelay = 5 * time.Second // others keep the pipe
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				for pid := range processesWith(dir) {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			})
			for deadline := time.Now().Add(2 * time.Minute); !slices.ContainsFunc(slices.Collect(maps.Values(processesWith(dir))), func(s string) bool { return strings.Contains(s, tt.when) }); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					cmd.Process.Kill()
					cmd.Wait()
					t.Fatalf("no process %q:\n%s", tt.when, &out)
				}
			}
			to := cmd.Process.Pid
			if tt.all {
				to = -to
			}
			syscall.Kill(to, tt.signal)
			hung := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
			err = cmd.Wait()
			hung.Stop()
			if got, want := cmd.ProcessState.ExitCode(), 128+int(tt.signal); got != want {
				t.Errorf("status %d, %v, want %d:\n%s", got, err, want, &out)
			}
			for pid, command := range processesWith(dir) {
				t.Errorf("process %d is left: %s", pid, command)
			}
			left, _ := filepath.Glob(filepath.Join(dir, "*"))
			namespaces, _ := filepath.Glob("/run/netns/stapbox-*-*")
			for _, n := range namespaces {
				if _, err := os.Stat("/proc/" + strings.Split(filepath.Base(n), "-")[1]); err != nil {
					left = append(left, n)
				}
			}
			if len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
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
	few(t)
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
