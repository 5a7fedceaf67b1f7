package relay

import (
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/report"
)

// patience is how long the session has, after the signal that says that nothing
// is to be waited for any more.
const patience = 2 * time.Second

// insistence ends a session that cannot end itself: one that waits in a system
// call for somebody else, who opens the other end of a FIFO or reads what we
// write. Without it only SIGKILL would, which leaves the module behind.
type insistence struct {
	signals chan os.Signal
	over    chan struct{}
	taken   atomic.Bool // who removes the module has been decided
}

// insist begins to count signals.
func (r *relay) insist() *insistence {
	i := &insistence{make(chan os.Signal, 16), make(chan struct{}), atomic.Bool{}}
	signal.Notify(i.signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		for range forced {
			select {
			case <-i.signals:
			case <-i.over:
				return
			}
		}
		select {
		case <-time.After(patience):
		case <-i.over:
			return
		}
		// A message being sent is waited for, whoever closes first: the module
		// cannot be removed before. Then it is the session's turn once more.
		r.ch.Close()
		select {
		case <-time.After(patience / 4):
		case <-i.over:
			return
		}
		if i.taken.CompareAndSwap(false, true) {
			os.Exit(r.withoutSession())
		}
	}()
	return i
}

// mine is called by the session before it removes the module or leaves it alone.
func (i *insistence) mine() {
	close(i.over)
	if !i.taken.CompareAndSwap(false, true) {
		select {} // the process is about to end
	}
}

// withoutSession removes the module while the session is stuck. Nothing is
// written anywhere: that may be what it is stuck in.
func (r *relay) withoutSession() int {
	if r.input != nil {
		r.input.restore()
	}
	inv := *r.Invocation
	inv.Stdout, inv.Stderr = nil, nil
	quiet := &relay{Invocation: &inv, opts: r.opts, report: report.New(io.Discard, r.opts.Color, inv.LookupEnv), failed: r.failed}
	return quiet.removeModule(r.name)
}
