package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/e2e/lab"
)

// ending ends a run that a signal interrupts. The runner then executes itself by
// the name of afterwards, with the same process id: no goroutine is left that could
// begin something new, and the children are still its children. That process ends
// them, and removes the network namespaces and the directory of the run.
type ending struct {
	dir string // the run's TMPDIR, in which it and its children make theirs

	mu    sync.Mutex
	taker chan<- os.Signal // nil if signals end the run
}

// afterwards is argv[0] of the process that takes away what a run has left.
const afterwards = "stapbox-afterwards"

// Times for the end of an interrupted run.
const (
	gentleTime  = 3 * time.Second  // for processes, after SIGTERM and before SIGKILL
	killTime    = 10 * time.Second // for processes, after SIGKILL
	contextTime = 15 * time.Second // for a command whose context ends
)

// begin makes the directory of a run. From then on a signal ends the run, unless
// somebody takes it.
func begin() (*ending, error) {
	signals := make(chan os.Signal, 8)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // nohup(1)
			signal.Notify(signals, s)
		}
	}
	base, err := filepath.Abs(os.TempDir())
	if err != nil {
		return nil, err
	}
	e := &ending{}
	if e.dir, err = os.MkdirTemp(base, "stapbox-"); err != nil {
		return nil, err
	}
	go e.watch(signals)
	if err := os.Chmod(e.dir, 0o777|os.ModeSticky); err != nil { // as /tmp: servers run as other users
		return e, err
	}
	return e, os.Setenv("TMPDIR", e.dir)
}

func (e *ending) watch(signals <-chan os.Signal) {
	for s := range signals {
		e.mu.Lock()
		taker := e.taker
		e.mu.Unlock()
		if taker == nil {
			e.end(s)
		}
		taker <- s
	}
}

// take has signals go to a channel in place of ending the run, until release is
// called.
func (e *ending) take(signals chan<- os.Signal) (release func()) {
	set := func(c chan<- os.Signal) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.taker = c
	}
	set(signals)
	return func() { set(nil) }
}

// cancelling has a signal end the context of what is done, which removes its own
// directories in the cache. A second signal ends the run at once.
func (e *ending) cancelling(do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 1)
	release := e.take(signals)
	defer release()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	var got os.Signal
	select {
	case err := <-done:
		return err
	case got = <-signals:
	}
	cancel()
	release()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(contextTime); ; {
		select {
		case <-tick.C: // Boot and Do wait for their guest, not for the context
			for _, pid := range processes(e.dir) {
				syscall.Kill(pid, syscall.SIGTERM)
			}
			continue
		case <-done:
		case <-late:
		}
		e.end(got)
	}
}

// end ends the run because of a signal. It does not return.
func (e *ending) end(s os.Signal) {
	status := 128 + int(s.(syscall.Signal))
	// A second signal must not end what takes away. The mask outlives exec, what is
	// caught or ignored does not in a Go program.
	runtime.LockOSThread()
	var mask unix.Sigset_t
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		mask.Val[(s-1)/64] |= 1 << ((s - 1) % 64)
	}
	err := unix.PthreadSigmask(unix.SIG_BLOCK, &mask, nil)
	if err == nil {
		// The children of those that end become children of this process.
		err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	if err == nil {
		err = syscall.Exec("/proc/self/exe", []string{afterwards, e.dir, strconv.Itoa(status)}, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "e2e: executing the runner to end this run: %v\n", err)
	takeAway(e.dir)
	os.Exit(status)
}

// takeAway ends the processes of a run that is this process's, and removes what
// they have left.
func takeAway(dir string) {
	if err := endProcesses(dir); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
	}
	lab.RemoveNetworks()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
	}
}

// endProcesses ends the processes of a run and waits for their end.
func endProcesses(dir string) error {
	told := map[int]bool{}
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		left := processes(dir)
		for { // reap: a process that is no more than an entry would keep its namespaces' names
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.EINTR && pid <= 0 {
				break
			}
		}
		took := time.Since(start)
		if len(left) == 0 {
			return nil
		}
		if took > gentleTime+killTime {
			return fmt.Errorf("processes that do not end: %v", left)
		}
		for _, pid := range left {
			if took > gentleTime {
				syscall.Kill(pid, syscall.SIGKILL)
			} else if !told[pid] {
				told[pid] = true
				syscall.Kill(pid, syscall.SIGTERM)
			}
		}
	}
}

// processes lists the other processes of a run: those that descend from this one,
// and daemons, whose program or TMPDIR is in the run's directory.
func processes(dir string) (pids []int) {
	parent := map[int]int{}
	entries, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range entries {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		var state string
		var ppid int
		// PID (NAME) STATE PPID ..., and a name may have parentheses in it.
		if _, err := fmt.Sscan(string(b[bytes.LastIndexByte(b, ')')+1:]), &state, &ppid); err == nil && state != "Z" {
			parent[pid] = ppid
		}
	}
	self := os.Getpid()
	for pid := range parent {
		above := pid
		for range parent { // ids that are used again while this looks could make a circle
			if above == self || above == 0 {
				break
			}
			above = parent[above]
		}
		if pid != self && (above == self || marked(pid, dir)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// marked says whether a process's program is in a directory, or its TMPDIR is. Other
// variables say nothing: a shell that its user has led into a directory keeps that in
// PWD, and so does all that it starts.
func marked(pid int, dir string) bool {
	below := dir + string(filepath.Separator)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(exe, below) {
		return true
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && slices.ContainsFunc(strings.Split(string(environ), "\x00"), func(v string) bool {
		path, ok := strings.CutPrefix(v, "TMPDIR=")
		return ok && (path == dir || strings.HasPrefix(path, below))
	})
}
