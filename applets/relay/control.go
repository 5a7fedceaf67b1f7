package relay

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/transport"
	"stapbox/core/version"
)

// poll is how long the control channel is waited on before signals that were
// not answered are sent on once more.
const poll = 250 * time.Millisecond

// forced is the number of signals after which nothing is waited for any more.
const forced = 3

// dedupLimit bounds the texts remembered to show each warning once.
const dedupLimit = 1024

// outcome is how a conversation ended.
type outcome int

const (
	exited   outcome = iota // the module has exited: all its output is readable
	aborted                 // it is not waited for any more
	detached                // it goes on without us
)

// received is what came from the control channel.
type received struct {
	message transport.Message
	err     error
}

// conversation is the exchange of control messages with the module, from READY
// to EXIT or to detaching.
type conversation struct {
	*relay
	writes  chan transport.Message
	written chan error
	pending int // writes under way

	interrupts int  // signals, and other reasons to end
	exiting    bool // EXIT has been sent since the module last could have ignored it
	started    bool // the module has answered START
	deadline   <-chan time.Time
	result     outcome
	over       bool
}

// converse carries on the conversation until it is over.
func (r *relay) converse(signals <-chan os.Signal) outcome {
	c := &conversation{relay: r, writes: make(chan transport.Message, 8), written: make(chan error, 8)}
	if _, ok := r.LookupEnv(version.Interrupted); ok {
		c.interrupts = 1
	}
	messages, stop := r.receive()
	defer stop()
	// Writes block while begin and end probes run: they have their own
	// goroutine, in order. Modules act on the thread that writes, and may leave
	// it in another mount namespace (-N): it is not used for anything else.
	go func() {
		runtime.LockOSThread()
		if err := withoutSignals(); err != nil {
			c.written <- err
			return
		}
		for m := range c.writes {
			c.written <- r.ch.Send(m)
		}
	}()
	defer close(c.writes)
	if c.interrupts > 0 {
		r.passScreen()
	}
	if r.opts.Attach {
		c.started = true
		err := r.startTrace()
		if err == nil && r.daemon {
			err = r.background()
		}
		if err != nil {
			c.fail("%v", err)
			c.abort()
		} else {
			c.showScreen()
		}
	}
	again := time.NewTicker(poll)
	defer again.Stop()
	for !c.over {
		c.step(signals, messages, again.C)
	}
	return c.result
}

// step waits for one thing to happen, and acts on it.
func (c *conversation) step(signals <-chan os.Signal, messages <-chan received, again <-chan time.Time) {
	var broken chan struct{}
	if c.output != nil && !c.exiting {
		broken = c.output.broken
	}
	select {
	case s := <-signals:
		c.signal(s)
	case <-broken:
		c.failed = true
		c.end()
	case <-c.screenEnded():
		// Nobody could quit: the terminal is gone.
		c.passScreen()
		c.fail("%v", c.screen.err)
		c.end()
	case <-c.deadline:
		c.abort()
	case err := <-c.relay.targetEnded():
		c.targetEnded(err)
	case <-again:
		if c.interrupts > 0 {
			c.askExit()
		}
	case err := <-c.written:
		c.wrote(err)
	case got := <-messages:
		// A select takes any of the channels that are ready. An interrupt that came
		// before the answer to START keeps the command of -c from running.
		if got.err == nil && got.message.Type == transport.Start {
			c.allSignals(signals)
		}
		c.take(got)
	}
}

// withoutSignals keeps the signals that stapio acts on from this thread. The one that
// is in the kernel for seconds, for START, would take them only afterwards, and so
// would the reader that is bound to its CPU.
func withoutSignals() error {
	var set unix.Sigset_t
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR2} {
		set.Val[0] |= 1 << (s - 1)
	}
	return os.NewSyscallError("pthread_sigmask", unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil))
}

func (c *conversation) finishAs(o outcome) { c.result, c.over = o, true }
func (c *conversation) abort()             { c.finishAs(aborted) }

func (c *conversation) fail(format string, args ...any) {
	c.report.Errorf(format, args...)
	c.failed = true
}

func (c *conversation) send(m transport.Message) {
	if c.pending < cap(c.writes) {
		c.pending++
		c.writes <- m
	}
}

// askExit sends EXIT unless a write is under way: then that one will do, or
// START is running and EXIT comes after it.
func (c *conversation) askExit() {
	if c.pending == 0 {
		c.send(transport.Message{Type: transport.Exit})
		c.exiting = true
	}
}

// end makes the module exit, now or as soon as it listens.
func (c *conversation) end() {
	if c.interrupts == 0 && c.screen.viewing() {
		c.screen.view.Refresh()
	}
	c.interrupts = max(c.interrupts, 1)
	c.askExit()
}

// allSignals takes the signals that have arrived.
func (c *conversation) allSignals(signals <-chan os.Signal) {
	for !c.over {
		select {
		case s := <-signals:
			c.signal(s)
		default:
			return
		}
	}
}

func (c *conversation) signal(s os.Signal) {
	if s != unix.SIGUSR2 && c.screen != nil {
		// The view ends at once, and soon everything.
		if c.screen.viewing() {
			c.deadline = time.After(orderly)
		}
		c.passScreen()
	}
	switch s {
	case unix.SIGQUIT:
		c.finishAs(detached)
	case unix.SIGUSR2:
		if c.trace != nil {
			c.trace.turn()
		}
	default:
		c.interrupts++
		if c.interrupts >= forced {
			c.abort()
			return
		}
		c.askExit()
	}
}

// targetEnded is told that the command of -c is over.
func (c *conversation) targetEnded(err error) {
	c.target.gone = true
	if text := endText(err); text != "" {
		c.report.Warningf("%s", text)
		c.failed = true
	}
	c.end()
}

// wrote is told that a message was sent.
func (c *conversation) wrote(err error) {
	c.pending--
	if err != nil && !(c.exiting && errors.Is(err, unix.EINVAL)) {
		c.fail("%v", err)
		c.abort()
		return
	}
	if c.interrupts > 0 && c.started && !c.exiting {
		c.askExit()
	}
}

// take acts on what came from the control channel, unless all is over.
func (c *conversation) take(got received) {
	switch {
	case c.over:
	case got.err != nil:
		c.fail("Unexpected EOF in read: %v", got.err)
		c.abort()
	default:
		c.message(got.message)
	}
}

func (c *conversation) message(m transport.Message) {
	switch m.Type {
	case transport.Transport:
		if err := c.begin(); err != nil {
			c.fail("%v", err)
			c.abort()
			return
		}
		c.send(transport.StartMessage(c.targetPID()))
	case transport.Start:
		c.startAnswered(m)
	case transport.RequestExit:
		c.end()
	case transport.Exit:
		c.finishAs(exited)
	case transport.OOBData:
		c.show(string(m.Payload))
	case transport.System:
		c.system(strings.TrimRight(string(m.Payload), "\x00"))
	default:
		c.report.Warningf("Ignored message of type %v", m.Type)
	}
}

// startAnswered reads the module's answer to START. A negative result means
// that it could not start; its errors came before.
func (c *conversation) startAnswered(m transport.Message) {
	result, err := transport.StartResult(m)
	if err != nil || result != 0 {
		c.failed = true
		c.finishAs(exited)
		return
	}
	c.started = true
	if c.input != nil {
		c.input.started.Store(true)
	}
	if c.target != nil && c.interrupts == 0 {
		c.target.run()
	}
	c.showScreen()
	switch {
	case c.opts.Detach:
		c.finishAs(detached)
	case c.interrupts > 0:
		c.askExit()
	}
}

// begin is everything between TRANSPORT and START.
func (c *conversation) begin() error {
	if c.trace == nil && !c.opts.Detach {
		if err := c.startTrace(); err != nil {
			return err
		}
	}
	if c.daemon {
		if err := c.background(); err != nil {
			return err
		}
	}
	if c.target != nil {
		c.target.await()
	}
	if err := c.enterNamespaces(); err != nil {
		return err
	}
	if c.trace != nil {
		c.trace.await()
	}
	return nil
}

// enterNamespaces tells the module whose namespaces -N means. Modules of 4.x
// know no mount namespaces, older ones no namespaces at all; that is no reason
// to stop.
func (r *relay) enterNamespaces() error {
	if r.opts.Namespaces == 0 {
		return nil
	}
	if err := r.ch.Send(transport.NamespacesMessage(r.opts.Namespaces)); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("Unable to send STP_NAMESPACES_PID: %w", err)
	}
	var fds [2]int32
	for i, path := range []string{fmt.Sprintf("/proc/%d/ns/mnt", r.opts.Namespaces), "/proc/self/ns/mnt"} {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("Failed to open file '%s': %w", path, errors.Unwrap(err))
		}
		r.namespaces = append(r.namespaces, f) // the module uses them until it exits
		fds[i] = int32(f.Fd())
	}
	if err := r.ch.Send(transport.MountNamespacesMessage(fds[0], fds[1])); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("Unable to send STP_MNT_NS_FDS: %w", err)
	}
	return nil
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

// startTrace opens the trace files and the output, and starts the readers. A
// module that accepts BULK writes one file for each CPU.
func (r *relay) startTrace() error {
	bulk := true
	switch err := r.ch.Send(transport.BulkMessage()); {
	case errors.Is(err, unix.EINVAL):
		bulk = false
	case err != nil:
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
	defer func() {
		if r.trace == nil {
			for _, f := range files {
				if f != nil {
					f.Close()
				}
			}
		}
	}()
	streams := []int{allCPUs}
	if bulk {
		streams = nil
		for cpu, f := range files {
			if f != nil {
				streams = append(streams, cpu)
			}
		}
	}
	if r.output, err = openOutput(r.destination(), streams); err != nil {
		return err
	}
	r.trace, err = startReaders(files, r.ch.Generation, time.Duration(r.opts.ReadWait)*time.Millisecond, r.output, bulk, !r.opts.Attach)
	return err
}

// finish ends the readers: after an orderly exit with all that is there, after
// detaching with all that was read.
func (r *relay) finish(how outcome, signals <-chan os.Signal) {
	if r.trace == nil {
		return
	}
	end := map[outcome]ending{exited: drain, detached: leave, aborted: discard}[how]
	// A reader of ours that is slow, or stuck, need not be waited for.
	giveUp, over := make(chan struct{}), make(chan struct{})
	go func() {
		for n := 0; ; {
			select {
			case s := <-signals:
				if n++; s != unix.SIGUSR2 && n >= forced-1 {
					close(giveUp)
					return
				}
			case <-over:
				return
			}
		}
	}()
	loss, warnings := r.trace.finish(end, giveUp)
	close(over)
	for _, w := range warnings {
		r.report.Warningf("%v", w)
	}
	if how != aborted && loss != (accounting{}) {
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
