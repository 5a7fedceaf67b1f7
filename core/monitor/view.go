// Package monitor is the view of a running script in a terminal (stapio -M):
// what the module tells about its probes and globals above, the script's output
// and the messages below (loader-relay 9.1).
//
// The module has two files. monitor_status is nearly JSON and read by Parse;
// monitor_control takes one word: clear, pause, resume, quit, or the index of a
// probe to switch on or off.
//
// Drawing is a pure function from the state and a size to rows of text; the View
// around it owns the terminal. Everything that comes from the script or the
// module is made visible before it is drawn: no escape sequence of theirs
// reaches the terminal.
package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Config is what a View needs.
type Config struct {
	In, Out  *os.File                // the terminal
	Status   func() ([]byte, error)  // reads monitor_status
	Control  func(word string) error // writes monitor_control
	Interval time.Duration           // between two readings of the status
}

// View is a script shown in a terminal. Write, Message and Exited may be called
// from any goroutine, before, during and after Run.
type View struct {
	config Config
	in     int
	out    int

	mu       sync.Mutex
	state    state
	shown    []row // on the screen
	saved    *unix.Termios
	restored bool

	changed chan struct{}
	closed  chan struct{}
	once    sync.Once
	ended   chan struct{} // Run has returned
	running bool
}

// ErrNoTerminal means that there is nothing to draw on: output is to be passed
// through.
var ErrNoTerminal = errors.New("not a terminal")

// New makes a View. Nothing is drawn before Run.
func New(c Config) (*View, error) {
	v := &View{config: c, in: int(c.In.Fd()), out: int(c.Out.Fd()),
		changed: make(chan struct{}, 1), closed: make(chan struct{}), ended: make(chan struct{})}
	for _, f := range []*os.File{c.In, c.Out} {
		if !term.IsTerminal(int(f.Fd())) {
			return nil, fmt.Errorf("%q: %w", f.Name(), ErrNoTerminal)
		}
	}
	if c.Interval <= 0 {
		v.config.Interval = time.Second
	}
	return v, nil
}

func (v *View) update(f func(s *state)) {
	v.mu.Lock()
	f(&v.state)
	v.mu.Unlock()
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// Write adds output of the script. It never fails and never waits for the
// terminal.
func (v *View) Write(p []byte) (int, error) {
	v.update(func(s *state) { s.out.write(p) })
	return len(p), nil
}

// Message adds a warning or an error.
func (v *View) Message(text string) { v.update(func(s *state) { s.out.message(text) }) }

// Refresh reads the status now: the module is about to exit, after which it has
// none.
func (v *View) Refresh() {
	if b, err := v.config.Status(); err == nil {
		v.update(func(s *state) { s.update(b, nil) })
	}
}

// Exited tells that the module has exited. The screen stays until q is pressed.
func (v *View) Exited() {
	v.update(func(s *state) {
		s.exited, s.paused, s.prompting = true, false, false
		s.notice = ""
	})
}

// Close ends Run and gives the terminal back. It may be called at any time, and
// again.
func (v *View) Close() error {
	v.once.Do(func() { close(v.closed) })
	v.mu.Lock()
	running := v.running
	v.mu.Unlock()
	if running {
		<-v.ended
	}
	return v.restore()
}

// Sequences of the terminal (ECMA-48 and xterm): the alternate screen, the
// cursor, wrapping at the right edge.
const (
	enter   = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[m\x1b[2J"
	leave   = "\x1b[m\x1b[?7h\x1b[?25h\x1b[?1049l"
	reverse = "\x1b[7m"
	normal  = "\x1b[m"
)

// prepare switches the terminal: keys come at once and unseen; those that send
// signals still do, but for the one that stops the process.
func (v *View) prepare() error {
	saved, err := unix.IoctlGetTermios(v.in, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("reading the terminal's settings: %w", err)
	}
	t := *saved
	t.Lflag &^= unix.ICANON | unix.ECHO
	t.Cc[unix.VMIN], t.Cc[unix.VTIME], t.Cc[unix.VSUSP] = 1, 0, 0
	v.mu.Lock()
	v.saved, v.restored = saved, false
	v.mu.Unlock()
	if err := unix.IoctlSetTermios(v.in, unix.TCSETS, &t); err != nil {
		return fmt.Errorf("changing the terminal's settings: %w", err)
	}
	return v.print([]byte(enter))
}

// restore gives the terminal back as it was, once.
func (v *View) restore() error {
	v.mu.Lock()
	saved, again := v.saved, v.restored
	v.restored = true
	v.mu.Unlock()
	if saved == nil || again {
		return nil
	}
	err := v.print([]byte(leave))
	if serr := unix.IoctlSetTermios(v.in, unix.TCSETS, saved); err == nil && serr != nil {
		err = fmt.Errorf("restoring the terminal: %w", serr)
	}
	return err
}

// Remember takes note of a terminal's settings. give returns it to them, and to
// the screen and cursor that everybody has: for a process that outlives the View.
func Remember(terminal *os.File) (give func() error, err error) {
	fd := int(terminal.Fd())
	saved, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("reading the terminal's settings: %w", err)
	}
	return func() error {
		return errors.Join(unix.IoctlSetTermios(fd, unix.TCSETS, saved), write(fd, []byte(leave)))
	}, nil
}

func (v *View) print(b []byte) error { return write(v.out, b) }

func write(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 1000)
		case err != nil:
			return fmt.Errorf("writing to the terminal: %w", err)
		default:
			b = b[n:]
		}
	}
	return nil
}

// frameTime is the least time between two frames.
const frameTime = 40 * time.Millisecond

// Run draws until q is pressed after the module has exited, until Close, or until
// the context ends. The terminal is given back however it ends, by a panic too.
func (v *View) Run(ctx context.Context) error {
	v.mu.Lock()
	v.running = true
	v.mu.Unlock()
	defer close(v.ended)
	defer v.restore()
	if err := v.prepare(); err != nil {
		return err
	}
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	defer signal.Stop(winch)

	typed, stopKeys, err := v.readKeys()
	if err != nil {
		return err
	}
	defer stopKeys()
	statuses := make(chan func(*state), 1)
	reading := false
	readStatus := func() {
		v.mu.Lock()
		exited := v.state.exited
		v.mu.Unlock()
		if reading || exited {
			return
		}
		reading = true
		// On its own: a status that takes long must not hold up the keys.
		go func() {
			defer v.restoreOnPanic()
			b, err := v.config.Status()
			statuses <- func(s *state) { s.update(b, err) }
		}()
	}
	readStatus()
	ticker := time.NewTicker(v.config.Interval)
	defer ticker.Stop()
	var soon <-chan time.Time
	var drawn time.Time
	for first := true; ; first = false {
		dirty := first
		select {
		case <-ctx.Done():
			return nil
		case <-v.closed:
			return nil
		case <-winch:
			v.mu.Lock()
			v.shown = nil
			v.mu.Unlock()
			dirty = true
		case <-ticker.C:
			readStatus()
		case f := <-statuses:
			reading = false
			v.update(f)
		case <-v.changed:
			dirty = true
		case <-soon:
			soon, dirty = nil, true
		case b, ok := <-typed:
			if !ok {
				return errors.New("the terminal has hung up")
			}
			if v.act(b) {
				return nil
			}
			dirty = true
		}
		if !dirty || soon != nil {
			continue
		}
		if wait := frameTime - time.Since(drawn); wait > 0 {
			soon = time.After(wait)
			continue
		}
		if err := v.draw(); err != nil {
			return err
		}
		drawn = time.Now()
	}
}

func (v *View) restoreOnPanic() {
	if r := recover(); r != nil {
		v.restore()
		panic(r)
	}
}

// act acts on keys; true ends the view.
func (v *View) act(b []byte) (over bool) {
	_, height := v.size()
	for _, k := range keys(b) {
		v.mu.Lock()
		_, probes, output := v.state.layout(height)
		page := output
		if v.state.focus == probeWindow {
			page = probes
		}
		word, over := v.state.press(k, max(page-1, 1))
		v.mu.Unlock()
		if over {
			return true
		}
		if word != "" {
			if err := v.config.Control(word); err != nil {
				v.update(func(s *state) { s.notice = visible(err.Error()) })
			}
		}
	}
	return false
}

// size is that of the terminal, or 80x24 where it does not say.
func (v *View) size() (width, height int) {
	width, height, err := term.GetSize(v.out)
	if err != nil || width < 1 || height < 1 {
		return 80, 24
	}
	return min(width, 1000), min(height, 1000)
}

// draw writes those rows that have changed.
func (v *View) draw() error {
	width, height := v.size()
	v.mu.Lock()
	frame := render(&v.state, width, height)
	old := v.shown
	v.shown = frame
	v.mu.Unlock()
	return v.print(paint(old, frame))
}

// paint gives what turns one frame into another; without an old one the screen
// is cleared first.
func paint(old, frame []row) []byte {
	var b bytes.Buffer
	if len(old) != len(frame) {
		old = nil
		b.WriteString(normal + "\x1b[2J")
	}
	for i, r := range frame {
		if old != nil && old[i] == r {
			continue
		}
		fmt.Fprintf(&b, "\x1b[%d;1H\x1b[2K", i+1)
		if r.reverse {
			b.WriteString(reverse + r.text + normal)
		} else {
			b.WriteString(r.text)
		}
	}
	return b.Bytes()
}

// readKeys reads the terminal until stop is called. The channel is closed when
// the terminal has hung up.
func (v *View) readKeys() (typed <-chan []byte, stop func(), err error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, nil, os.NewSyscallError("eventfd", err)
	}
	c, quit, ended := make(chan []byte), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer v.restoreOnPanic()
		buf := make([]byte, 256)
		for {
			fds := []unix.PollFd{{Fd: int32(v.in), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err == unix.EINTR {
				continue
			}
			if fds[1].Revents != 0 {
				return
			}
			n, err := unix.Read(v.in, buf)
			if err == unix.EINTR || err == unix.EAGAIN {
				continue
			}
			if n <= 0 {
				close(c)
				return
			}
			select {
			case c <- bytes.Clone(buf[:n]):
			case <-quit:
				return
			}
		}
	}()
	return c, func() {
		close(quit)
		unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-ended
		unix.Close(wake)
	}, nil
}
