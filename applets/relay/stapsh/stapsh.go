// Package stapsh is the helper that stap --remote runs on another host: it takes
// a module over standard input and runs staprun on it (loader-relay 9.3).
//
// A command is a line of at most 4095 bytes, split at space, tab, CR and LF:
//
//	stap VERSION          stapsh VERSION MACHINE RELEASE
//	option data|verbose   OK | ERROR: Invalid option | ERROR: Could not parse option
//	file SIZE NAME        SIZE bytes follow the line; OK | ERROR: text
//	run ARG...            OK | ERROR: text; each ARG is quoted-printable (=XX)
//	quit                  no answer
//
// Other commands have no answer. Commands need not wait for the answer of the
// one before. NAME starts with a letter or digit and has [A-Za-z0-9._] after it;
// files are kept in a private directory, in which staprun is run.
//
// With "option data" what staprun prints is framed, and its end is told:
//
//	data stdout N LF N bytes
//	data stderr N LF N bytes
//	quit LF
//
// The end of input, quit and signals send SIGHUP to staprun, which then ends in
// order. The helper ends when staprun has, after all its output, with its status.
package stapsh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
	"stapbox/core/invocation"
	"stapbox/core/version"
)

// Exit statuses beside staprun's own.
const (
	exitOK       = 0
	exitUsage    = 1
	exitInternal = 2
)

// Bounds on what the other side may ask for.
const (
	maxLine  = 4095
	maxArgs  = 255
	maxFile  = 32000000
	maxFiles = 64
	chunk    = 1 << 15 // of framed output
)

// portDir is where virtio ports are by name.
const portDir = "/dev/virtio-ports"

const usage = "stapsh [-v] [-l PORT]\n"

// Main runs stapsh.
func Main(ctx context.Context, inv *invocation.Invocation) int {
	spec := getopt.Short("vl:hV")
	spec.Defs = append(spec.Defs, getopt.Def{Long: "help"}, getopt.Def{Long: "version"})
	opts, words, err := getopt.Parse(spec, inv.Args)
	s := &shell{inv: inv, in: inv.Stdin, out: inv.Stdout, staprun: hostpaths.Staprun()}
	port := ""
	if err == nil {
		for _, o := range opts {
			switch o.Name {
			case "v":
				s.verbose.Store(true)
			case "l":
				if port = o.Value; port == "" {
					err = errors.New("option '-l' has an empty name")
				}
			case "h", "help":
				io.WriteString(inv.Stdout, usage)
				return exitOK
			case "V", "version":
				fmt.Fprintln(inv.Stdout, "stapsh "+version.Version)
				return exitOK
			}
		}
		if len(words) > 0 {
			err = fmt.Errorf("unknown argument %q", words[0])
		}
	}
	if err != nil {
		inv.Errorf("%v", err)
		io.WriteString(inv.Stderr, usage)
		return exitUsage
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	inv.Handles(unix.SIGQUIT)
	signal.Ignore(unix.SIGPIPE)
	if port != "" {
		f, err := openPort(ctx, port, signals)
		if err != nil {
			inv.Errorf("%v", err)
			return exitInternal
		}
		defer f.Close()
		s.in, s.out = f, f
	}
	status, err := s.run(ctx, signals)
	if err != nil {
		inv.Errorf("%v", err)
		if status == exitOK {
			status = exitInternal
		}
	}
	return status
}

// openPort opens a virtio port and waits until a program on the host has opened
// its other end.
func openPort(ctx context.Context, port string, signals <-chan os.Signal) (*os.File, error) {
	if !filepath.IsAbs(port) {
		if filepath.Base(port) != port || port == ".." || port == "." {
			return nil, fmt.Errorf("port %q is neither a name nor an absolute path", port)
		}
		port = filepath.Join(portDir, port)
	}
	f, err := os.OpenFile(port, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening port: %w", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening port %q: %w", port, err)
	}
	for {
		connected := false
		if err := raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, err := unix.Poll(fds, 0)
			connected = err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) == 0
		}); err != nil {
			f.Close()
			return nil, fmt.Errorf("waiting on port %q: %w", port, err)
		}
		if connected {
			return f, nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case s := <-signals:
			f.Close()
			return nil, fmt.Errorf("stopped by signal: %v", s)
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		}
	}
}

// shell is one session.
type shell struct {
	inv     *invocation.Invocation
	in      io.Reader
	out     io.Writer
	staprun string
	verbose atomic.Bool

	mu     sync.Mutex // output, and the fields below
	data   bool       // output is framed
	broken bool       // nobody reads the output any more
	dir    string     // "" before the first file and after the end
	ended  bool
	files  int
	child  *exec.Cmd
	over   chan result
}

// result is how staprun ended.
type result struct {
	status int
	err    error
}

func (s *shell) debugf(format string, args ...any) {
	if s.verbose.Load() {
		fmt.Fprintf(s.inv.Stderr, "stapsh: "+format+"\n", args...)
	}
}

// run carries a session to its end. The directory is gone after it, whatever
// happened.
func (s *shell) run(ctx context.Context, signals <-chan os.Signal) (int, error) {
	s.over = make(chan result, 1)
	defer s.cleanUp()
	commands := make(chan error, 1)
	go func() { commands <- s.commands(bufio.NewReaderSize(s.in, maxLine+1)) }()
	var failed error
	for commands, done := commands, ctx.Done(); ; {
		select {
		case r := <-s.over:
			s.mu.Lock()
			if s.data {
				s.write("quit\n", nil)
			}
			s.mu.Unlock()
			return r.status, errors.Join(r.err, failed)
		case failed = <-commands:
			s.debugf("end of commands")
			commands = nil
			if !s.hangUp() {
				return exitOK, failed
			}
		case sig := <-signals:
			s.debugf("signal: %v", sig)
			if !s.hangUp() {
				return 128 + int(sig.(unix.Signal)), nil
			}
		case <-done:
			done = nil
			if !s.hangUp() {
				return exitInternal, ctx.Err()
			}
		}
	}
}

// hangUp tells staprun to end; false when there is none.
func (s *shell) hangUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child == nil {
		s.ended = true // nothing is started any more
		return false
	}
	s.child.Process.Signal(unix.SIGHUP)
	return true
}

func (s *shell) cleanUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.dir != "" {
		if err := os.RemoveAll(s.dir); err != nil {
			s.inv.Errorf("%v", err)
		}
		s.dir = ""
	}
}

// write sends a line and data to the other side. The lock is held.
func (s *shell) write(line string, data []byte) {
	if s.broken {
		return
	}
	if _, err := s.out.Write(append([]byte(line), data...)); err != nil {
		s.debugf("writing: %v", err)
		s.broken = true
	}
}

func (s *shell) reply(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(fmt.Sprintf(format, args...)+"\n", nil)
}

// commands obeys the other side until its input ends. The end of input and quit
// are no errors.
func (s *shell) commands(in *bufio.Reader) error {
	for {
		line, err := in.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			s.reply("ERROR: Line longer than %d bytes", maxLine)
			return fmt.Errorf("a command is longer than %d bytes", maxLine)
		}
		if err != nil && len(line) == 0 {
			if err == io.EOF || errors.Is(err, unix.EIO) { // EIO: the host closed its port
				return nil
			}
			return fmt.Errorf("reading commands: %w", err)
		}
		words := split(line)
		if len(words) == 0 {
			continue
		}
		s.debugf("command %q", words)
		switch words[0] {
		case "stap":
			s.reply("stapsh %s %s %s", version.Protocol, machine(), hostpaths.KernelRelease())
		case "option":
			s.option(words[1:])
		case "file":
			if err := s.file(words[1:], in); err != nil {
				return err
			}
		case "run":
			if err := s.start(words[1:]); err != nil {
				s.reply("ERROR: %v", err)
			}
		case "quit":
			return nil
		}
	}
}

// split gives the words of a command.
func split(line []byte) []string {
	var words []string
	start := -1
	for i := 0; i <= len(line); i++ {
		space := i == len(line) || line[i] == ' ' || line[i] == '\t' || line[i] == '\r' || line[i] == '\n'
		switch {
		case space && start >= 0:
			words = append(words, string(line[start:i]))
			start = -1
		case !space && start < 0:
			start = i
		}
	}
	return words
}

func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Machine[:])
}

// option knows no dyninst and no bpf: there are no such backends here, and the
// other side then does without.
func (s *shell) option(words []string) {
	if len(words) != 1 {
		s.reply("ERROR: Could not parse option")
		return
	}
	switch words[0] {
	case "data":
		s.mu.Lock()
		s.data = true
		s.mu.Unlock()
	case "verbose":
		s.verbose.Store(true)
	default:
		s.reply("ERROR: Invalid option")
		return
	}
	s.reply("OK")
}

// checkName gives the first character of a file name that it may not have.
func checkName(name string) (byte, bool) {
	for i := 0; i < len(name); i++ {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_') {
			return c, false
		}
	}
	return 0, true
}

// file takes a file. When only its name is refused its bytes are read all the
// same, since they are on their way; an error means that the place in the input
// is lost.
func (s *shell) file(words []string, in *bufio.Reader) error {
	var size int64
	if len(words) > 0 {
		var err error
		if size, err = strconv.ParseInt(words[0], 10, 64); err != nil {
			size = 0
		}
	}
	if size < 1 || size > maxFile {
		s.reply("ERROR: Bad file size %d", size)
		return nil
	}
	var f *os.File
	refused := ""
	if len(words) < 2 {
		refused = "Missing file name"
	} else if c, ok := checkName(words[1]); !ok {
		refused = fmt.Sprintf("Bad character '%s' in file name", visible(c))
	} else {
		var err error
		if f, err = s.create(words[1]); err != nil {
			refused = err.Error()
		}
	}
	to := io.Discard
	if f != nil {
		to = diskWriter{f, &refused}
	}
	n, err := io.CopyN(to, in, size)
	if f != nil {
		if cerr := f.Close(); cerr != nil && refused == "" {
			refused = cerr.Error()
		}
	}
	if err != nil {
		return fmt.Errorf("the input ends after %d of the %d bytes of a file", n, size)
	}
	if refused != "" {
		s.reply("ERROR: %s", refused)
		return nil
	}
	s.reply("OK")
	return nil
}

// diskWriter remembers the first failure and takes the rest without writing it.
type diskWriter struct {
	f       *os.File
	refused *string
}

func (d diskWriter) Write(p []byte) (int, error) {
	if *d.refused == "" {
		if _, err := d.f.Write(p); err != nil {
			*d.refused = err.Error()
		}
	}
	return len(p), nil
}

// visible is a character as it can be shown.
func visible(c byte) string {
	if c < ' ' || c >= 0x7f {
		return fmt.Sprintf("\\x%02x", c)
	}
	return string(rune(c))
}

// directory makes the private directory. The lock is held.
func (s *shell) directory() error {
	if s.ended {
		return errors.New("The session has ended")
	}
	if s.dir != "" {
		return nil
	}
	parent := s.inv.Getenv("TMPDIR")
	if parent == "" {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "stapsh.") // mode 0700
	if err == nil {
		s.dir = dir
	}
	return err
}

// create opens a new file in the directory; a name can be given again.
func (s *shell) create(name string) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.directory(); err != nil {
		return nil, err
	}
	if s.files++; s.files > maxFiles {
		return nil, fmt.Errorf("More than %d files", maxFiles)
	}
	return os.OpenFile(filepath.Join(s.dir, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
}

// start runs staprun, and nothing else, with the decoded words.
func (s *shell) start(words []string) error {
	if len(words) == 0 {
		return errors.New("Missing arguments")
	}
	if len(words) > maxArgs {
		return errors.New("Too many arguments")
	}
	args := make([]string, len(words))
	for i, w := range words {
		var err error
		if args[i], err = decode(w); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child != nil {
		return errors.New("staprun is running")
	}
	if err := s.directory(); err != nil {
		return err
	}
	cmd := exec.Command(s.staprun, args...)
	cmd.Dir, cmd.Env = s.dir, s.inv.Environ
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer outW.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outR.Close()
		return err
	}
	defer errW.Close()
	cmd.Stdout, cmd.Stderr = outW, errW
	s.debugf("running %q", cmd.Args)
	if err := cmd.Start(); err != nil {
		outR.Close()
		errR.Close()
		return err
	}
	s.write("OK\n", nil)
	s.child = cmd
	go s.await(cmd, outR, errR)
	return nil
}

// linger is how long processes that staprun left behind, and that hold its
// output open, are listened to.
const linger = time.Second

// await passes on what staprun prints and waits for its end, and then for what
// it printed last.
func (s *shell) await(cmd *exec.Cmd, stdout, stderr *os.File) {
	var readers sync.WaitGroup
	readers.Go(func() { s.forward("stdout", stdout) })
	readers.Go(func() { s.forward("stderr", stderr) })
	err := cmd.Wait()
	stdout.SetReadDeadline(time.Now().Add(linger))
	stderr.SetReadDeadline(time.Now().Add(linger))
	readers.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		s.over <- result{status: exitOK}
	case errors.As(err, &exit):
		status := exit.ExitCode()
		if ws, ok := exit.Sys().(interface {
			Signaled() bool
			Signal() unix.Signal
		}); ok && ws.Signaled() {
			status = 128 + int(ws.Signal())
		}
		s.over <- result{status: status}
	default:
		s.over <- result{exitInternal, err}
	}
}

// forward passes on one of staprun's outputs, framed if that was asked for. When
// nobody reads it any more it is still taken, so that staprun can end.
func (s *shell) forward(name string, from *os.File) {
	defer from.Close()
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		s.mu.Lock()
		switch {
		case n == 0:
		case s.data:
			s.write(fmt.Sprintf("data %s %d\n", name, n), buf[:n])
		case name == "stderr":
			s.inv.Stderr.Write(buf[:n])
		default:
			s.write("", buf[:n])
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// decode reads a quoted-printable word: =XX is a byte, every other character
// itself. A word cannot hold NUL, which no argument can.
func decode(word string) (string, error) {
	var b []byte
	for i := 0; i < len(word); i++ {
		if word[i] != '=' {
			b = append(b, word[i])
			continue
		}
		if i+2 >= len(word) {
			return "", errors.New("Bad quoted-printable encoding")
		}
		v, err := strconv.ParseUint(word[i+1:i+3], 16, 8)
		if err != nil || v == 0 {
			return "", errors.New("Bad quoted-printable encoding")
		}
		b = append(b, byte(v))
		i += 2
	}
	return string(b), nil
}
