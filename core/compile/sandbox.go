package compile

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// WorkerVariable marks the environment of a server's worker.
const WorkerVariable = "STAPBOX_WORKER"

// Confine is the first thing a worker does: it takes from itself, and from the
// compiler it will start, what a translation does not need. The parent has put
// it into a process group of its own with a scrubbed environment, standard
// descriptors only, and a wall-clock limit.
func Confine(limits []Rlimit) error {
	for _, l := range limits {
		if err := setLimit(l); err != nil {
			return err
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	// For every thread: a compiler is forked from whichever runs then.
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		// A binary with C code in it has threads the runtime does not know.
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("setting no_new_privs: %w", err)
		}
	}
	return nil
}

func setLimit(l Rlimit) error {
	resource, ok := map[string]int{
		"as": unix.RLIMIT_AS, "cpu": unix.RLIMIT_CPU, "nproc": unix.RLIMIT_NPROC,
		"stack": unix.RLIMIT_STACK, "fsize": unix.RLIMIT_FSIZE,
	}[l.Name]
	if !ok {
		return fmt.Errorf("resource limit %q is unknown", l.Name)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(resource, &old); err != nil {
		return fmt.Errorf("reading resource limit %s: %w", l.Name, err)
	}
	// A hard limit that is lower already stays.
	value := min(l.Value, old.Max)
	if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
		return fmt.Errorf("setting resource limit %s to %d: %w", l.Name, value, err)
	}
	return nil
}

// workerAttr is how the parent starts a worker: as leader of a process group,
// so that a compiler ends with it, and not outliving the server.
func workerAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// killGroup ends a worker and whatever it started.
func killGroup(p *os.Process) error {
	if err := syscall.Kill(-p.Pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return err
	}
	return nil
}
