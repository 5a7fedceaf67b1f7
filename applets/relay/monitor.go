package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
	"stapbox/core/monitor"
	"stapbox/core/report"
)

// screen stands between the session and the terminal in monitor mode
// (loader-relay 9.1). The files of the monitor come with START, so that what is
// said before its answer is held back, and then goes to the view; or, of a module
// that could not start or has no monitor, to the terminal as without -M. After
// the view is closed everything goes to the terminal.
type screen struct {
	stdout io.Writer       // of the process
	plain  *report.Printer // for its standard error
	keys   *os.File        // the terminal that keys are read from
	dir    *os.File        // of the module: a descriptor of our own
	guard  *guard

	// Commands write here: it is no terminal.
	commands *os.File
	copied   chan struct{}

	ended chan struct{} // the view has ended, for err
	err   error

	over atomic.Bool // the module has exited

	mu    sync.Mutex
	room  *sync.Cond // something is not held back any more
	state screenState
	view  *monitor.View
	early []piece
	held  int
	wrong []string // errors that only the view has shown
}

type screenState int

const (
	undecided screenState = iota
	viewing
	passing
)

// piece is output or a message that was held back.
type piece struct {
	message bool
	text    []byte
}

// maxWrong is how many errors are shown again after the view.
const maxWrong = 20

// maxHeld is how much is held back before its writers have to wait.
const maxHeld = 1 << 20

// orderly is how long a module may take to exit after a signal in monitor mode.
const orderly = time.Second

// newScreen makes the screen that -M asks for, nil where there is none: without
// a terminal, with the output in a file, in the background, and for -L.
func (r *relay) newScreen() (*screen, error) {
	term, _ := r.LookupEnv("TERM")
	if r.opts.Monitor == 0 || r.opts.Output != "" || r.opts.Detach || r.daemon || term == "dumb" || !report.IsTerminal(r.Stdout) {
		return nil, nil
	}
	s := &screen{stdout: r.Stdout, plain: r.report, ended: make(chan struct{}), copied: make(chan struct{})}
	s.room = sync.NewCond(&s.mu)
	var err error
	if in, ok := r.Stdin.(*os.File); ok && report.IsTerminal(in) {
		s.keys = in
	} else if s.keys, err = os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
		return nil, nil // nobody could press q
	}
	fd, err := unix.FcntlInt(r.dir.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	s.dir = os.NewFile(uintptr(fd), r.dir.Name())
	from, to, err := os.Pipe()
	if err != nil {
		return nil, os.NewSyscallError("pipe", err)
	}
	s.commands = to
	go func() {
		defer close(s.copied)
		io.Copy(screenOutput{s}, from)
	}()
	r.Stdout, r.Stderr = screenOutput{s}, screenMessages{s}
	r.report = &report.Printer{W: r.Stderr}
	return s, nil
}

// keysAreInput reports whether standard input is what the view reads.
func (r *relay) keysAreInput() bool { return r.screen != nil && r.screen.keys == r.Stdin }

// screenOutput and screenMessages are the two ways to a screen.
type (
	screenOutput   struct{ *screen }
	screenMessages struct{ *screen }
)

func (w screenOutput) Write(p []byte) (int, error)   { return w.put(false, p) }
func (w screenMessages) Write(p []byte) (int, error) { return w.put(true, p) }

// put takes a text. While nothing is decided it is held back; messages are few
// and never wait for that.
func (s *screen) put(message bool, p []byte) (int, error) {
	s.mu.Lock()
	for s.state == undecided && !message && s.held >= maxHeld {
		s.room.Wait()
	}
	state, view := s.state, s.view
	if state == undecided {
		s.early = append(s.early, piece{message, bytes.Clone(p)})
		s.held += len(p)
	}
	if state != passing && message && len(s.wrong) < maxWrong && strings.HasPrefix(string(p), "ERROR: ") {
		s.wrong = append(s.wrong, string(p))
	}
	s.mu.Unlock()
	switch {
	case state == passing:
		return s.pass(message, p)
	case state == viewing && message:
		view.Message(string(p))
	case state == viewing:
		return view.Write(p)
	}
	return len(p), nil
}

func (s *screen) pass(message bool, p []byte) (int, error) {
	if message {
		s.plain.Tagged(string(p))
		return len(p), nil
	}
	return s.stdout.Write(p)
}

// release ends the holding back: everything goes to the view, or past it.
func (s *screen) release(to screenState) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == viewing {
		for _, text := range s.wrong {
			s.plain.Tagged(text)
		}
	}
	s.state = to
	for _, e := range s.early {
		switch {
		case to == passing:
			if _, werr := s.pass(e.message, e.text); err == nil {
				err = werr
			}
		case e.message:
			s.view.Message(string(e.text))
		default:
			s.view.Write(e.text)
		}
	}
	s.early, s.held = nil, 0
	s.room.Broadcast()
	return err
}

// showScreen begins the view: the module runs. Why there is none, it tells as a
// message; after a signal there is none either.
func (r *relay) showScreen() {
	s := r.screen
	if s == nil || s.current() != undecided {
		return
	}
	if err := s.begin(r); err != nil {
		r.report.Warningf("There is no monitor: %v", err)
		r.passScreen()
		if r.opts.Input && r.input == nil {
			r.forward()
		}
	} else if r.opts.Input && r.input == nil {
		r.report.Warningf("The keys of this terminal are the monitor's: they do not go to the script.")
	}
}

// The files of the monitor.
const (
	statusFile  = "monitor_status"
	controlFile = "monitor_control"
)

func (s *screen) begin(r *relay) (err error) {
	if _, err := s.status(); errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("module %s was not compiled with --monitor, or ends at once", r.name)
	} else if err != nil {
		return err
	}
	if s.guard, err = r.startGuard(s.keys); err != nil {
		return err
	}
	s.view, err = monitor.New(monitor.Config{
		In: s.keys, Out: s.stdout.(*os.File), Status: s.status, Control: s.control, Interval: time.Duration(r.opts.Monitor) * time.Second,
	})
	if err != nil {
		s.guard.stop()
		return err
	}
	s.release(viewing)
	go func() {
		defer close(s.ended)
		s.err = s.view.Run(context.Background())
	}()
	return nil
}

// status reads monitor_status: its next byte too, so that one which is too long
// is seen to be.
func (s *screen) status() ([]byte, error) {
	f, err := s.open(statusFile, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, monitor.MaxStatus+1))
}

func (s *screen) control(word string) error {
	if s.over.Load() {
		return errors.New("the module has exited")
	}
	f, err := s.open(controlFile, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.WriteString(f, word)
	return err
}

// open opens a file of the module. The runtime's poller does not need to know
// it: its reads end at once.
func (s *screen) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(s.dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (s *screen) current() screenState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// viewing reports whether the view is there.
func (s *screen) viewing() bool { return s != nil && s.current() == viewing }

// screenEnded is closed when the view has ended by itself; without a view it
// never is.
func (r *relay) screenEnded() <-chan struct{} {
	if !r.screen.viewing() {
		return nil
	}
	return r.screen.ended
}

// passScreen gives the terminal back, if the view has it, and makes everything
// go to it from now on.
func (r *relay) passScreen() {
	s := r.screen
	if s == nil {
		return
	}
	if s.viewing() {
		s.view.Close()
		<-s.ended // also when it had not begun
		s.guard.stop()
	}
	if err := s.release(passing); err != nil && r.output != nil {
		r.output.fail(err)
	}
}

// exitScreen tells the view that the module has exited and all its output is
// there.
func (r *relay) exitScreen() {
	s := r.screen
	if s == nil {
		return
	}
	s.commands.Close()
	select {
	case <-s.copied:
	case <-time.After(100 * time.Millisecond): // a command goes on
	}
	if s.viewing() {
		s.view.Exited()
		s.over.Store(true)
	}
}

// holdScreen keeps the view until its user has seen enough: q, or any signal.
func (r *relay) holdScreen(signals <-chan os.Signal) {
	if r.screen.viewing() {
		select {
		case <-r.screen.ended:
		case <-signals:
		}
		r.passScreen()
	}
}

// guard is a process that gives the terminal back when this one dies without
// having done so.
type guard struct {
	cmd   *exec.Cmd
	alive *os.File
}

// guardMark is the environment variable that makes stapio be a guard: the pid of
// its parent.
const guardMark = "STAPBOX_GUARD"

// Descriptors of the guard.
const (
	guardTerminal = 3
	guardAlive    = 4
	guardReady    = 5
)

// startGuard starts the guard of a terminal and waits until it knows its
// settings.
func (r *relay) startGuard(tty *os.File) (*guard, error) {
	aliveRead, aliveWrite, err := os.Pipe()
	if err != nil {
		return nil, os.NewSyscallError("pipe", err)
	}
	defer aliveRead.Close()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		aliveWrite.Close()
		return nil, os.NewSyscallError("pipe", err)
	}
	defer readyRead.Close()
	g := &guard{r.self(guardMark, nil), aliveWrite}
	g.cmd.ExtraFiles = []*os.File{tty, aliveRead, readyWrite}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal of the terminal reaches it
	err = g.cmd.Start()
	readyWrite.Close()
	if err != nil {
		aliveWrite.Close()
		return nil, fmt.Errorf("starting the guard of the terminal: %w", err)
	}
	if n, _ := readyRead.Read(make([]byte, 1)); n != 1 {
		aliveWrite.Close()
		g.cmd.Wait()
		return nil, errors.New("the guard of the terminal has ended")
	}
	return g, nil
}

// stop ends the guard: the terminal has been given back.
func (g *guard) stop() {
	g.alive.Write([]byte{1})
	g.alive.Close()
	g.cmd.Wait()
}

// runGuard is the guard.
func runGuard(inv *invocation.Invocation) int {
	tty, alive, ready := os.NewFile(guardTerminal, "terminal"), os.NewFile(guardAlive, "alive"), os.NewFile(guardReady, "ready")
	give, err := monitor.Remember(tty)
	if err != nil {
		inv.Errorf("%v", err)
		return exitError
	}
	ready.Write([]byte{1})
	ready.Close()
	if n, _ := alive.Read(make([]byte, 1)); n != 0 {
		return exitOK
	}
	if err := give(); err != nil {
		return exitError
	}
	return exitOK
}
