package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"stapbox/e2e/lab"
)

// roleVariable names what the test binary does in place of tests: it plays a run.
const roleVariable = "STAPBOX_TEST_ROLE"

// roles are runs, by what they do once they have begun. Each prints its directory.
var roles = map[string]func(e *ending) error{
	"child":    func(e *ending) error { return withChild(e, "sleep", "1000") },
	"stubborn": func(e *ending) error { return withChild(e, "sh", "-c", `trap "" TERM; while :; do sleep 0.1; done`) },
	"taker": func(e *ending) error { // of signals, with which it does nothing
		defer e.take(make(chan os.Signal, 2), func() { fmt.Println("restored") })()
		return withChild(e, "sleep", "1000")
	},
	"peer": func(e *ending) error {
		fmt.Println(e.dir)
		l, err := lab.Open(io.Discard)
		if err != nil {
			return err
		}
		return (&guestOptions{kernel: lab.PeerVersion}).play(context.Background(), e, l, nil)
	},
	"printer": func(e *ending) error {
		fmt.Println(e.dir)
		io.Copy(io.Discard, os.Stdin)
		fmt.Println("more")
		return nil
	},
	"teller": func(e *ending) error { // tells a child that does not listen
		fmt.Println(e.dir)
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		r.Close()
		if _, err := w.WriteString("x"); !errors.Is(err, syscall.EPIPE) {
			return fmt.Errorf("writing to nobody: %w", err)
		}
		return exitStatus(5)
	},
}

func withChild(e *ending, argv ...string) error {
	child := exec.Command(argv[0], argv[1:]...)
	if err := child.Start(); err != nil {
		return err
	}
	fmt.Println(e.dir, child.Process.Pid)
	return child.Wait()
}

func TestMain(m *testing.M) {
	if os.Args[0] == afterwards {
		main()
	}
	if do := roles[os.Getenv(roleVariable)]; do != nil {
		os.Exit(play(nil, "role", func(e *ending, _ *lab.Lab, _ []string) error { return do(e) }, nil))
	}
	os.Exit(m.Run())
}

// played is a run that plays a role.
type played struct {
	cmd    *exec.Cmd
	dir    string    // its directory
	child  int       // its child, in the role that has one
	stdin  io.Closer // its standard input, in which nothing is
	stdout *os.File  // its standard output, after the first line
	ended  chan struct{}
}

// begun starts a run in a role, by a shell script that executes it as "$@".
func begun(t *testing.T, role, script string) *played {
	t.Helper()
	// Under nohup(1), and in the background of a shell, these are ignored, by what a
	// test starts too. What a Go program catches has its default effect after exec.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
	t.Cleanup(func() { signal.Stop(caught) })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &played{cmd: exec.Command("/bin/sh", "-c", script, "sh", os.Args[0]), stdout: r, ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), roleVariable+"="+role, "TMPDIR="+t.TempDir())
	p.cmd.Stdout, p.cmd.Stderr = w, os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	go func() {
		p.cmd.Wait() // its status says what there is to say
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() && p.child != 0 {
			syscall.Kill(p.child, syscall.SIGKILL)
		}
		r.Close()
	})
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("the run says %q, %v", line, err)
	}
	fmt.Sscan(line, &p.dir, &p.child)
	return p
}

// ends waits for the run's end, and checks its status and that its directory is gone.
func (p *played) ends(t *testing.T, want int) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the run does not end")
	}
	if got := p.cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("%v, want status %d", p.cmd.ProcessState, want)
	}
	if _, err := os.Stat(p.dir); err == nil {
		t.Errorf("%q is left", p.dir)
	}
}

// bystander starts a process that sleeps.
func bystander(t *testing.T, dir string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir, cmd.Env = dir, env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

// lives says whether a process is there and has not ended.
func lives(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.HasPrefix(string(b[strings.LastIndexByte(string(b), ')')+1:]), " Z")
}

// Each signal by which people end programs ends the run with 128 and its number, and
// takes its directory away.
func TestEndStatus(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		t.Run(s.String(), func(t *testing.T) {
			p := begun(t, "child", `exec "$@" 2>/dev/null`)
			p.cmd.Process.Signal(s)
			p.ends(t, 128+int(s))
		})
	}
}

// Output that nobody reads ends the run like a signal, also when it is the last
// thing that the run does.
func TestEndBrokenOutput(t *testing.T) {
	p := begun(t, "printer", `exec "$@"`)
	p.stdout.Close()
	p.stdin.Close()
	p.ends(t, 128+int(syscall.SIGPIPE))
}

// A child or a guest that ends while the runner writes to it does not end the run,
// nor does somebody who sends the signal.
func TestOtherBrokenPipe(t *testing.T) {
	p := begun(t, "teller", `exec "$@"`)
	p.ends(t, 5)
	p = begun(t, "printer", `exec "$@"`)
	p.cmd.Process.Signal(syscall.SIGPIPE)
	time.Sleep(50 * time.Millisecond)
	p.stdin.Close()
	p.ends(t, 0)
}

// A command in a guest gets the signals, and may do nothing with them. Two in a second
// end the run all the same, however many came before. Two that are further apart do not.
func TestEndInsistent(t *testing.T) {
	p := begun(t, "taker", `exec "$@"`)
	send := func(s syscall.Signal, then time.Duration) {
		p.cmd.Process.Signal(s)
		time.Sleep(then)
	}
	for range 12 {
		send(syscall.SIGQUIT, 10*time.Millisecond)
		send(syscall.SIGHUP, 10*time.Millisecond)
	}
	send(syscall.SIGINT, 1200*time.Millisecond)
	send(syscall.SIGINT, 1200*time.Millisecond)
	if !lives(p.cmd.Process.Pid) || !lives(p.child) {
		t.Fatal("the run has ended")
	}
	send(syscall.SIGINT, 100*time.Millisecond)
	send(syscall.SIGTERM, 0)
	p.ends(t, 128+int(syscall.SIGTERM))
	if got, err := io.ReadAll(p.stdout); string(got) != "restored\n" {
		t.Errorf("it prints %q, %v, want that the terminal is restored", got, err)
	}
	if lives(p.child) {
		t.Error("the run's child lives")
	}
}

// debootstrap mounts things in the tree that it unpacks, in the cache. Neither is left
// when it is interrupted.
func TestEndUnpacking(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the peer needs root")
	}
	bin, cache := t.TempDir(), t.TempDir()
	const debootstrap = `#!/bin/sh
mkdir -p "$4/proc" && mount -t tmpfs tmpfs "$4/proc" && : >"$4/proc/mounted" && exec sleep 1000
`
	if err := os.WriteFile(filepath.Join(bin, "debootstrap"), []byte(debootstrap), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("STAPBOX_LAB", cache)
	tree := filepath.Join(cache, "peer", ".unpacking")
	t.Cleanup(func() { syscall.Unmount(filepath.Join(tree, "proc"), syscall.MNT_DETACH) })
	p := begun(t, "peer", `exec "$@"`)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(tree, "proc", "mounted")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("debootstrap is not executed")
		}
	}
	p.cmd.Process.Signal(syscall.SIGINT)
	p.ends(t, 128+int(syscall.SIGINT))
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), tree) {
		t.Errorf("something is mounted below %q, or %v", tree, err)
	}
	if _, err := os.Stat(tree); err == nil {
		t.Errorf("%q is left", tree)
	}
}

// A signal ends children of the run, and daemons whose TMPDIR is in its directory.
// Others may name that directory in their environment: a shell does once its user
// has looked around there.
func TestEndMarks(t *testing.T) {
	p := begun(t, "child", `exec "$@"`)
	sub := filepath.Join(p.dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env  string
		ends bool
	}{
		{"TMPDIR=" + p.dir, true},
		{"TMPDIR=" + sub, true},
		{"TMPDIR=" + p.dir + "0", false},
		{"PWD=" + sub, false},
		{"OLDPWD=" + p.dir, false},
		{"X=TMPDIR=" + p.dir, false},
	} {
		cmd := bystander(t, sub, tt.env)
		defer func() {
			if got := !lives(cmd.Process.Pid); got != tt.ends {
				t.Errorf("%s: has ended is %v, want %v", tt.env, got, tt.ends)
			}
		}()
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.ends(t, 128+15)
	if lives(p.child) {
		t.Error("the run's child lives")
	}
}

// exec keeps the process id: children of the shell that has executed the runner are
// the runner's. They live on, and so does what they have started, also when it becomes
// a child of the process that ends the run.
func TestEndSparesOlder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pids")
	p := begun(t, "stubborn", `sh -c 'sleep 1000 & echo $$ $! >'"`+file+`; wait" >/dev/null & while ! [ -s `+file+` ]; do sleep 0.01; done; exec "$@"`)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var older, below int
	fmt.Sscan(string(b), &older, &below)
	t.Cleanup(func() {
		syscall.Kill(older, syscall.SIGKILL)
		syscall.Kill(below, syscall.SIGKILL)
	})
	p.cmd.Process.Signal(syscall.SIGTERM)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.cmd.Process.Pid)); err != nil || strings.HasPrefix(string(b), afterwards) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the runner does not execute itself")
		}
	}
	time.Sleep(gentleTime / 2)
	if !lives(older) {
		t.Error("the older child has ended")
	}
	syscall.Kill(older, syscall.SIGKILL)
	p.ends(t, 128+15)
	if !lives(below) {
		t.Error("the older child's child has ended")
	}
	if lives(p.child) {
		t.Error("the run's child lives")
	}
}

// A process that has got the id of one that was listed is not signalled.
func TestSignalSameProcess(t *testing.T) {
	cmd := bystander(t, "")
	listed, err := look(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := listed
	other.start--
	other.signal(syscall.SIGKILL)
	time.Sleep(50 * time.Millisecond)
	if !lives(listed.pid) {
		t.Fatal("a process is killed that started at another time than the one that was listed")
	}
	listed.signal(syscall.SIGKILL)
	for deadline := time.Now().Add(5 * time.Second); lives(listed.pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process that was listed lives")
		}
	}
}
