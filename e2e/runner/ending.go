package main

import (
	"bytes"
	"context"
	"errors"
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
	dir   string // the run's TMPDIR, in which it and its children make theirs
	older family // children that this process had before the run

	signals chan os.Signal
	watched chan struct{} // closed when watch has returned

	mu    sync.Mutex
	taker *taker // nil if signals end the run
}

// taker gets signals in place of the run's end.
type taker struct {
	signals chan<- os.Signal
	restore func() // what to do before the run ends all the same
}

// afterwards is argv[0] of the process that takes away what a run has left.
const afterwards = "stapbox-afterwards"

// endingSignals end a run: those of a terminal, that of kill(1), and SIGPIPE, which
// "run build | true" gets.
var endingSignals = []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE}

// Times for the end of an interrupted run.
const (
	gentleTime  = 3 * time.Second  // for processes, after SIGTERM and before SIGKILL
	killTime    = 10 * time.Second // for processes, after SIGKILL
	insistTime  = time.Second      // for SIGINT or SIGTERM after the one before
	contextTime = 15 * time.Second // for a command whose context ends
)

// begin makes the directory of a run. From then on a signal ends the run, unless
// somebody takes it.
func begin() (*ending, error) {
	e := &ending{older: children(), signals: make(chan os.Signal, 8), watched: make(chan struct{})}
	for _, s := range endingSignals {
		if !signal.Ignored(s) { // nohup(1)
			signal.Notify(e.signals, s)
		}
	}
	base, err := filepath.Abs(os.TempDir())
	if err != nil {
		return nil, err
	}
	if e.dir, err = os.MkdirTemp(base, "stapbox-"); err != nil {
		return nil, err
	}
	go e.watch()
	if err := os.Chmod(e.dir, 0o777|os.ModeSticky); err != nil { // as /tmp: servers run as other users
		return e, err
	}
	return e, os.Setenv("TMPDIR", e.dir)
}

// watch ends the run when a signal comes, or hands the signal to the taker. It waits
// for no taker: that may wait for a guest, and the guest for ever. So SIGINT or SIGTERM
// ends the run if either comes again within insistTime.
func (e *ending) watch() {
	defer close(e.watched)
	var last time.Time // when SIGINT or SIGTERM came
	for s := range e.signals {
		if s == syscall.SIGPIPE && !unread() {
			continue
		}
		e.mu.Lock()
		t := e.taker
		e.mu.Unlock()
		if t == nil {
			e.end(s)
		}
		if s == syscall.SIGINT || s == syscall.SIGTERM {
			now := time.Now()
			if now.Sub(last) < insistTime {
				t.restore()
				e.end(s)
			}
			last = now
		}
		select {
		case t.signals <- s:
		default: // it has enough to do
		}
	}
}

// settle waits until a signal that has come is seen to, if only by ending the run.
func (e *ending) settle() {
	signal.Stop(e.signals) // waits for those that are on their way to the channel
	close(e.signals)
	<-e.watched
}

// unread says whether somebody who read standard output or error does so no more.
// Once SIGPIPE is caught, a write to any pipe or socket that nobody reads raises it: to
// a child, or to a guest. Those writes have an error to return, which is enough.
func unread() bool {
	for _, fd := range []int32{1, 2} {
		p := []unix.PollFd{{Fd: fd}} // asks for POLLERR and POLLHUP only
		if n, err := unix.Poll(p, 0); err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0 {
			return true
		}
	}
	return false
}

// take has signals go to a channel in place of ending the run, until release is
// called. The channel needs room for those that come at once. If the run ends all the
// same, restore is called before.
func (e *ending) take(signals chan<- os.Signal, restore func()) (release func()) {
	set := func(t *taker) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.taker = t
	}
	set(&taker{signals, restore})
	return func() { set(nil) }
}

// cancelling has a signal end the context of what is done, which removes its own
// directories in the cache. A second signal ends the run at once.
func (e *ending) cancelling(do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 1)
	release := e.take(signals, func() {})
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
			of, _ := processes(e.dir, e.older)
			for _, p := range of {
				p.signal(syscall.SIGTERM)
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
	for _, s := range endingSignals {
		mask.Val[(s-1)/64] |= 1 << ((s - 1) % 64)
	}
	_, spared := processes(e.dir, e.older) // before their orphans become children of this process
	err := unix.PthreadSigmask(unix.SIG_BLOCK, &mask, nil)
	if err == nil {
		// The children of those that end become children of this process.
		err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	if err == nil {
		err = syscall.Exec("/proc/self/exe", append([]string{afterwards, e.dir, strconv.Itoa(status)}, spared.words()...), os.Environ())
	}
	fmt.Fprintf(os.Stderr, "e2e: executing the runner to end this run: %v\n", err)
	takeAway(e.dir, spared)
	os.Exit(status)
}

// takeAway ends the processes of a run that is this process's, but no spared ones,
// and removes what they have left.
func takeAway(dir string, spared family) {
	if err := endProcesses(dir, spared); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
	}
	lab.RemoveNetworks()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
	}
}

// endProcesses ends the processes of a run and waits for their end.
func endProcesses(dir string, spared family) error {
	told := map[process]bool{}
	// A process that is no more than an entry would keep its namespaces' names.
	defer reap()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		reap() // before the list: the id of a child that is reaped is free for another process
		var left []process
		left, spared = processes(dir, spared)
		took := time.Since(start)
		if len(left) == 0 {
			return nil
		}
		if took > gentleTime+killTime {
			return fmt.Errorf("processes that do not end: %v", left)
		}
		for _, p := range left {
			if took > gentleTime {
				p.signal(syscall.SIGKILL)
			} else if id := (process{pid: p.pid, start: p.start}); !told[id] {
				told[id] = true
				p.signal(syscall.SIGTERM)
			}
		}
	}
}

// reap removes the entries of children that have ended.
func reap() {
	for {
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.EINTR && pid <= 0 {
			return
		}
	}
}

// process is one that was there when somebody looked.
type process struct {
	pid, parent int
	start       uint64 // in ticks since the machine's start: another process with this pid has another
	ended       bool   // it is no more than an entry for its parent
}

func (p process) String() string { return strconv.Itoa(p.pid) }

// signal signals the process, and not another one that has its id now.
func (p process) signal(s syscall.Signal) {
	// FindProcess opens a pidfd (Linux 5.3), which stays that of one process. Whose it
	// is can only be seen after that.
	handle, err := os.FindProcess(p.pid)
	if err != nil {
		return
	}
	defer handle.Release()
	if now, err := look(p.pid); err == nil && now.start == p.start {
		handle.Signal(s) // it may have ended
	}
}

// look reads /proc/PID/stat, see proc_pid_stat(5): PID (NAME) STATE PPID ..., where
// a name may have parentheses in it, and the start is field 22.
func look(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return process{}, fmt.Errorf("/proc/%d/stat is %q", pid, b)
	}
	p := process{pid: pid, ended: f[0] == "Z"}
	var errs [2]error
	p.parent, errs[0] = strconv.Atoi(f[1])
	p.start, errs[1] = strconv.ParseUint(f[19], 10, 64)
	return p, errors.Join(errs[:]...)
}

// everybody looks at all processes.
func everybody() map[int]process {
	all := map[int]process{}
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		if p, err := look(pid); err == nil { // else it has just ended
			all[pid] = p
		}
	}
	return all
}

// family is processes by their ids, with their starts.
type family map[int]uint64

func (f family) has(p process) bool {
	start, ok := f[p.pid]
	return ok && start == p.start
}

// words are a family as arguments of a process, which familyOf reads.
func (f family) words() (words []string) {
	for pid, start := range f {
		words = append(words, fmt.Sprintf("%d:%d", pid, start))
	}
	return words
}

func familyOf(words []string) family {
	f := family{}
	for _, w := range words {
		var pid int
		var start uint64
		if n, _ := fmt.Sscanf(w, "%d:%d", &pid, &start); n == 2 {
			f[pid] = start
		}
	}
	return f
}

// children are those that this process has now.
func children() family {
	f := family{}
	for pid, p := range everybody() {
		if p.parent == os.Getpid() {
			f[pid] = p.start
		}
	}
	return f
}

// processes lists the other processes of a run: those that descend from this one,
// and daemons, whose program or TMPDIR is in the run's directory. Older children of
// this process are not of the run, nor is what descends from those. The older ones
// that are there, with their descendants, are spared: a descendant whose parent ends
// becomes a child of this process, and is known by nothing else then.
func processes(dir string, older family) (of []process, spared family) {
	spared = family{}
	all, self := everybody(), os.Getpid()
	for pid, p := range all {
		if pid == self || p.ended {
			continue
		}
		below, old := false, false
		above := p
		for range all { // ids that are used again while this looks could make a circle
			old = old || older.has(above)
			below = above.parent == self
			if below || above.parent == 0 {
				break
			}
			above = all[above.parent]
		}
		switch {
		case old:
			spared[pid] = p.start
		case below || marked(pid, dir):
			of = append(of, p)
		}
	}
	return of, spared
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
