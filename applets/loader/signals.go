package loader

import (
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
)

// interrupts are the signals that end staprun before it becomes stapio: before
// the module is in the kernel at once, from then on by undoing the insertion.
// Handlers end with exec(2), so that stapio begins with none.
type interrupts struct {
	c             chan os.Signal
	insert, ended chan struct{}
}

// caught end staprun; the others than those of the first line are what upstream calls
// unexpected.
func caught() []os.Signal {
	return append([]os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGTERM,
		unix.SIGXCPU, unix.SIGXFSZ,
	}, invocation.Fatal()...)
}

// catch begins to handle signals. SIGPIPE and the user signals are caught and
// mean nothing: a caller who closes the pipe behind standard error must not end
// staprun between insertion and hand-over. Neither does ^Z stop it there, where
// it would hold the user's lock.
func catch(exit func(os.Signal)) *interrupts {
	i := &interrupts{make(chan os.Signal, 16), make(chan struct{}), make(chan struct{})}
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTSTP)
	signal.Notify(i.c, caught()...)
	go func() {
		defer close(i.ended)
		select {
		case s := <-i.c:
			exit(s)
		case <-i.insert:
		}
	}()
	return i
}

// inserting says that from now on there is something to undo.
func (i *interrupts) inserting() {
	close(i.insert)
	<-i.ended
}

// pending is an error if a signal has come since inserting.
func (i *interrupts) pending() error {
	// Stop waits until signals whose handler has run are in their channels; as i.c
	// wants the same ones they stay handled.
	barrier := make(chan os.Signal, 16)
	signal.Notify(barrier, caught()...)
	signal.Stop(barrier)
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

// handOver has the terminal's signals ignored until stapio listens to them: the
// Go runtime leaves them so (os/signal). The others have their default action
// again, so that none is taken by a handler that exec(2) then ends: for some
// milliseconds they end staprun or stapio and leave the module, which staprun -d
// removes; stap does so by itself. Where root stays beside stapio (exec is false) the
// caller listens to them already. It says whether a signal has come before.
func (i *interrupts) handOver(exec bool) (interrupted bool) {
	terminal := make(chan os.Signal, 16)
	signal.Notify(terminal, unix.SIGHUP, unix.SIGINT)
	signal.Stop(i.c) // and waits, as in pending
	if exec {
		for _, s := range invocation.Fatal() {
			invocation.Default(s.(unix.Signal)) // not the runtime's
		}
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT)
	return len(i.c)+len(terminal) > 0
}
