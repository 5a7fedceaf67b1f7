package loader

import (
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// interrupts are the signals that end staprun before it becomes stapio: before
// the module is in the kernel at once, from then on by undoing the insertion.
// Handlers end with exec(2), so that stapio begins with none.
type interrupts struct {
	c     chan os.Signal
	state atomic.Int32 // of the states below
}

// Until insertion begins a signal may end the process, afterwards none does:
// whichever of the two comes first takes the state from waiting.
const (
	waiting int32 = iota
	inserting
	ending
)

// catch begins to handle signals. SIGPIPE and the user signals are caught and
// mean nothing: a caller who closes the pipe behind standard error must not end
// staprun between insertion and hand-over.
func catch(exit func(os.Signal)) *interrupts {
	i := &interrupts{c: make(chan os.Signal, 8)}
	first := make(chan os.Signal, 8)
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
	signal.Notify(first, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT,
		unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGSEGV, unix.SIGXCPU, unix.SIGXFSZ)
	go func() {
		for s := range first {
			if i.state.CompareAndSwap(waiting, ending) {
				exit(s)
			}
			select {
			case i.c <- s:
			default: // one is enough
			}
		}
	}()
	return i
}

// insert says that from now on there is something to undo.
func (i *interrupts) insert() {
	if !i.state.CompareAndSwap(waiting, inserting) {
		select {} // the process is ending
	}
}

// pending is an error if a signal has come since insert.
func (i *interrupts) pending() error {
	select {
	case s := <-i.c:
		return fmt.Errorf("stopped by signal: %v", s)
	default:
		return nil
	}
}

// ended is what staprun does about a signal that comes before it has inserted
// anything (loader-relay 1.3).
func (l *loader) ended(s os.Signal) {
	switch s {
	case unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT:
	default:
		fmt.Fprintf(l.Stderr, "\nUNEXPECTED FATAL ERROR in staprun. Please file a bug report.\n%v\n", s)
	}
	os.Exit(exitError)
}
