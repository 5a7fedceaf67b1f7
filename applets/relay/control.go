package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/transport"
)

// poll is how long the control channel is waited on before signals that were
// not answered are sent on once more.
const poll = 250 * time.Millisecond

// forced is the number of signals after which nothing is waited for any more.
const forced = 3

// dedupLimit bounds the texts remembered to show each warning once.
const dedupLimit = 1024

type received struct {
	message transport.Message
	err     error
}

// converse carries on the conversation with the module until it has exited, or
// until a third signal.
func (r *relay) converse(ctx context.Context, signals <-chan os.Signal) {
	messages, stop := r.receive()
	defer stop()
	// Writes block while begin and end probes run: they have their own
	// goroutine, in order.
	writes := make(chan transport.Message, 8)
	written := make(chan error, 8)
	go func() {
		for m := range writes {
			written <- r.ch.Send(m)
		}
	}()
	defer close(writes)

	interrupts := 0
	exiting := false // EXIT has been sent since the module last could have ignored it
	started := false // the module has answered START
	pending := 0     // writes under way
	send := func(m transport.Message) {
		if pending < cap(writes) {
			pending++
			writes <- m
		}
	}
	askExit := func() {
		if pending == 0 { // else the one under way will do, or START is running
			send(transport.Message{Type: transport.Exit})
			exiting = true
		}
	}
	again := time.NewTicker(poll)
	defer again.Stop()
	done := ctx.Done()
	for {
		select {
		case <-done:
			done = nil
			interrupts++
			askExit()
		case <-signals:
			interrupts++
			if interrupts >= forced {
				r.finish(false)
				return
			}
			askExit()
		case <-r.output.broken:
			r.failed = true
			r.output.broken = nil
			interrupts = max(interrupts, 1)
			askExit()
		case <-again.C:
			if interrupts > 0 {
				askExit()
			}
		case err := <-written:
			pending--
			if err != nil && !(exiting && errors.Is(err, unix.EINVAL)) {
				r.report.Errorf("%v", err)
				r.failed = true
				r.finish(false)
				return
			}
			if interrupts > 0 && started {
				askExit()
			}
		case got := <-messages:
			if got.err != nil {
				r.report.Errorf("Unexpected EOF in read: %v", got.err)
				r.failed = true
				r.finish(false)
				return
			}
			switch m := got.message; m.Type {
			case transport.Transport:
				if err := r.startTrace(); err != nil {
					r.report.Errorf("%v", err)
					r.failed = true
					r.finish(false)
					return
				}
				send(transport.StartMessage(r.opts.Target))
			case transport.Start:
				result, err := transport.StartResult(m)
				if err != nil || result != 0 {
					r.failed = true
					r.finish(true)
					return
				}
				started = true
				if interrupts > 0 {
					askExit()
				}
			case transport.RequestExit:
				interrupts = max(interrupts, 1)
				askExit()
			case transport.Exit:
				r.finish(true)
				return
			case transport.OOBData:
				r.show(string(m.Payload))
			case transport.System:
				r.report.Errorf("system(\"%s\"): running commands is not supported by this version.", strings.TrimRight(string(m.Payload), "\x00"))
				r.failed = true
			default:
				r.report.Warningf("Ignored message of type %v", m.Type)
			}
		}
	}
}

// receive reads the control channel on a goroutine of its own; stop waits for
// it to end.
func (r *relay) receive() (messages <-chan received, stop func()) {
	c := make(chan received)
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			m, ok, err := r.ch.Receive(poll)
			if err == nil && !ok {
				select {
				case <-quit:
					return
				default:
					continue
				}
			}
			select {
			case c <- received{m, err}:
				if err != nil || m.Type == transport.Exit {
					return // nothing comes after it, and stop need not wait for a poll
				}
			case <-quit:
				return
			}
		}
	}()
	return c, func() { close(quit); <-ended }
}

// startTrace opens the trace files and starts their readers. A module that
// accepts BULK writes one file per CPU, which this version does not.
func (r *relay) startTrace() error {
	switch err := r.ch.Send(transport.BulkMessage()); {
	case err == nil:
		return errors.New("The module was compiled for bulk mode, which is not supported by this version.")
	case !errors.Is(err, unix.EINVAL):
		return err
	}
	cpus, err := cpuCount()
	if err != nil {
		return err
	}
	files, err := transport.OpenTrace(r.dir, cpus)
	if err != nil {
		return err
	}
	r.trace, err = startReaders(files, r.ch.Generation, time.Duration(r.opts.ReadWait)*time.Millisecond, r.output)
	return err
}

// finish ends the readers: with drain after reading all that is there, which is
// everything once the module has exited.
func (r *relay) finish(drain bool) {
	if r.trace == nil {
		return
	}
	loss, warnings := r.trace.finish(drain)
	for _, w := range warnings {
		r.report.Warningf("%v", w)
	}
	if drain && loss != (accounting{}) {
		r.report.Warningf("There were %d lost messages, %d lost bytes, and %d unexpected sequences.", loss.records, loss.bytes, loss.unexpected)
	}
}

// show prints a text of the module. Without -v each warning is shown once.
func (r *relay) show(text string) {
	text = strings.TrimRight(text, "\x00")
	warning := strings.HasPrefix(text, "WARNING: ")
	if warning && r.opts.NoWarnings {
		return
	}
	if strings.HasPrefix(text, "ERROR: ") {
		r.failed = true
	}
	if r.opts.Verbose == 0 {
		if r.shown[text] {
			return
		}
		switch {
		case len(r.shown) < dedupLimit:
			r.shown[text] = true
		case len(r.shown) == dedupLimit:
			r.shown[""] = true
			r.report.Warningf("WARNING deduplication table full")
		}
	}
	r.report.Tagged(text)
}

func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// Error text of a CPU whose reader could not be bound to it.
func affinityError(cpu int, err error) error {
	return fmt.Errorf("reader of CPU %d runs elsewhere: sched_setaffinity: %w", cpu, err)
}
