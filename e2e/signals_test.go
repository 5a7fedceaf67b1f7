package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/applets"
)

// Whatever signal comes, from whomever: no applet shows the stacks of its goroutines.
// Each is caught while it writes its help into a pipe that nobody reads.
func TestNoSignalShowsStacks(t *testing.T) {
	few(t)
	for _, applet := range applets.Table {
		if applet.Name == "stap-find-servers" {
			continue // it has no help to write; its Main is that of stap
		}
		t.Run(applet.Name, func(t *testing.T) {
			for _, sig := range []unix.Signal{unix.SIGQUIT, unix.SIGABRT, unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS, unix.SIGSTKFLT} {
				help := "--help"
				if applet.Name == "staprun" || applet.Name == "stapio" {
					help = "-h" // the only one they have
				}
				stderr, err := signalled(stage.programs.Applet(applet.Name), sig, help)
				var exit *exec.ExitError
				if errors.Is(err, errGoesOn) && sig == unix.SIGQUIT && len(stderr) == 0 {
					continue // it listens to ^\ itself, and waits for its output
				}
				if !errors.As(err, &exit) || len(stderr) > 0 {
					t.Errorf("%v: %v, stderr %.300q", sig, err, stderr)
				} else if ws := exit.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != sig || ws.CoreDump() {
					t.Errorf("%v: ended with %v, core dump %v", sig, exit, ws.CoreDump())
				}
			}
		})
	}
}

// signalled starts a program whose output nobody reads, and sends it a signal when it
// waits for that.
func signalled(program string, sig unix.Signal, args ...string) (stderr []byte, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()
	fd := int(w.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	for err == nil {
		_, err = unix.Write(fd, make([]byte, 4096))
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &errs
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(20 * time.Second); !writes(cmd.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			cmd.Process.Kill()
			return nil, fmt.Errorf("%s does not write: %v", program, cmd.Wait())
		}
	}
	if err := cmd.Process.Signal(sig); err != nil {
		return nil, err
	}
	alive := time.AfterFunc(3*time.Second, func() { cmd.Process.Kill() })
	err = cmd.Wait()
	if !alive.Stop() {
		err = errGoesOn
	}
	return errs.Bytes(), err
}

var errGoesOn = errors.New("the signal does not end it")

// writes reports whether a thread of a process is in a write(2) to its standard
// output (proc_pid_syscall(5)).
func writes(pid int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), fmt.Sprintf("%d 0x1 ", unix.SYS_WRITE)) {
			return true
		}
	}
	return false
}
