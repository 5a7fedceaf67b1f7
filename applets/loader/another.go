package loader

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"stapbox/core/version"
)

// Root going on as another user must not become that user's process: the user may
// trace it, and whatever the process has from root is then the user's. So root's
// staprun stays root, as parent, and stapio is a new program that gets nothing of
// root's:
//
//	terminal     a session of its own, pipes for 0 to 2; root's process copies
//	environment  made anew
//	descriptors  the module's control directory only
//	memory       stapio is executed after its process has become the user's
//	directory    the working directory if there is one and the user can get there
//	             himself, else /
//	keys         the session keyring is a new one (session-keyring(7))

// delegate runs stapio as another user and gives its exit status. Signals that
// root's process gets go to stapio: QUIT detaches, INT, TERM and HUP end.
func (l *loader) delegate(program, module string, dir *os.File, who *another, stop *interrupts) (status int, err error) {
	if err := l.rootAgain(); err != nil {
		return exitError, err
	}
	var theirs [3]*os.File // ends of stapio
	var ours [3]*os.File
	for fd := range theirs {
		if fd == 0 && !l.opts.Input && !l.opts.HasCommand {
			// What root types belongs to root's next command, not to the script's.
			if theirs[fd], err = os.Open(os.DevNull); err != nil {
				return exitError, err
			}
			defer theirs[fd].Close()
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return exitError, os.NewSyscallError("pipe", err)
		}
		defer r.Close()
		defer w.Close()
		theirs[fd], ours[fd] = w, r
		if fd == 0 {
			theirs[fd], ours[fd] = r, w
		}
		// Or stapio's commands could not open /dev/stdout.
		if err := theirs[fd].Chown(who.uid, who.gid); err != nil {
			return exitError, err
		}
	}
	argv := append([]string{program}, l.opts.Relay(3, module)...)
	if l.opts.Verbose >= 2 {
		fmt.Fprintf(l.Stderr, "execing: %s \n", strings.Join(argv, " "))
	}
	l.restoreLimits()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return exitError, fmt.Errorf("unblocking signals: %w", err)
	}
	environ := l.othersEnvironment(module)
	forward := make(chan os.Signal, 16)
	signal.Notify(forward, unix.SIGTERM, unix.SIGQUIT, unix.SIGUSR2)
	if stop.handOver(false) {
		environ = append(environ, version.Interrupted+"=1")
	}
	// Root's working directory has no name when somebody has removed it. Without a
	// name the child would keep root's.
	directory := l.Dir
	if directory == "" {
		directory = "/"
	}
	attr := &os.ProcAttr{
		Dir: directory, Env: environ, Files: []*os.File{theirs[0], theirs[1], theirs[2], dir},
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Credential: &syscall.Credential{Uid: uint32(who.uid), Gid: uint32(who.gid), Groups: ids(who.groups)},
			// Nobody would read the output of a stapio without this process.
			Pdeathsig: unix.SIGHUP,
		},
	}
	// Root's own stapio may have root's descriptors, this one may not (Linux 5.11).
	if err := unix.CloseRange(3, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 1, fmt.Errorf("marking inherited descriptors: %w", err)
	}
	// The child takes its directory with the user's rights.
	child, err := os.StartProcess(program, argv, attr)
	if err != nil && directory != "/" {
		attr.Dir = "/"
		child, err = os.StartProcess(program, argv, attr)
	}
	if err != nil {
		return exitError, err
	}
	dir.Close() // the module is to be removable
	for _, f := range theirs {
		f.Close()
	}
	signal.Reset(unix.SIGTSTP)
	signal.Notify(forward, unix.SIGINT, unix.SIGHUP)
	l.Handles(unix.SIGQUIT)
	go func() {
		for s := range forward {
			child.Signal(s)
		}
	}()
	if ours[0] != nil {
		go feed(ours[0])
	}
	ended := make(chan struct{})
	var copied sync.WaitGroup
	for fd := 1; fd <= 2; fd++ {
		copied.Go(func() { relayOutput(ours[fd], fd, ended) })
	}
	state, err := child.Wait()
	close(ended)
	copied.Wait()
	if err != nil {
		return exitError, err
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		l.report.Errorf("stapio of user %d was ended by a signal: %v", who.uid, ws.Signal())
		l.report.Hintf("staprun -d %s removes the module if it is still loaded", module)
		return 128 + int(ws.Signal()), nil
	}
	return state.ExitCode(), nil
}

// rootAgain takes the user's ids off root's process, which he could send signals
// to otherwise, and empties what the child would have of root's credentials
// although its ids are the user's.
func (l *loader) rootAgain() error {
	if err := unix.Setresuid(0, 0, 0); err != nil {
		return fmt.Errorf("taking uid 0 back: %w", err)
	}
	if err := unix.Setresgid(0, 0, 0); err != nil {
		return fmt.Errorf("taking gid 0 back: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	caps[0].Inheritable, caps[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("clearing inheritable capabilities: %w", err)
	}
	if err := dropSecurebits(); err != nil {
		return err
	}
	// A kernel without keys, or a container that forbids the call, has none to give.
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && err != unix.ENOSYS && err != unix.EPERM {
		return fmt.Errorf("leaving root's session keyring: %w", err)
	}
	return nil
}

// <linux/securebits.h>
const (
	noRoot        = 1 << 0
	noSetuidFixup = 1 << 2
	keepCaps      = 1 << 4
)

// dropSecurebits clears the bits that would give the user more than he has
// (capabilities(7)): with noSetuidFixup and keepCaps root's capabilities outlive the
// change of ids, and with noSetuidFixup and noRoot, which stapio's children inherit,
// setuid programs that the user runs cannot give up root as they mean to. Where the
// kernel does not let it, as when these bits are locked or CAP_SETPCAP is missing,
// root does not go on as another.
//
// The bits that are left are locks and noCapAmbientRaise: these take rights away.
// The kernel refuses every PR_SET_SECUREBITS of a process without CAP_SETPCAP, such
// as one in a container, even one that changes nothing; so where there is nothing to
// clear the kernel is not asked.
func dropSecurebits() error {
	const harmful = noRoot | noSetuidFixup | keepCaps
	bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("reading securebits: %w", err)
	}
	if bits&harmful == 0 {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(bits&^harmful), 0, 0, 0); err != nil {
		return fmt.Errorf("clearing securebits %#x: %w", bits, err)
	}
	return nil
}

// plain reports whether a value of the environment can be the name of a terminal,
// of a locale or of a time zone.
func plain(v string) bool {
	const signs = "_.,@+-/"
	return len(v) <= 64 && !strings.HasPrefix(v, "/") && strings.IndexFunc(v, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune(signs, r)
	}) < 0
}

// fromRoot are the variables that another user's stapio gets from root.
var fromRoot = []string{"TERM", "LANG", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "LC_TIME", "TZ", "SYSTEMTAP_COLORS", "SYSTEMTAP_VERBOSE"}

// othersEnvironment is the environment of another user's stapio. SYSTEMTAP_STAPRUN
// names the program that removes the module; the user can see it in any case.
func (l *loader) othersEnvironment(module string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range fromRoot {
		if v, ok := l.LookupEnv(name); ok && plain(v) {
			env = append(env, name+"="+v)
		}
	}
	if v, ok := l.LookupEnv("SYSTEMTAP_STAPRUN"); ok {
		env = append(env, "SYSTEMTAP_STAPRUN="+v)
	}
	if _, ok := l.LookupEnv("SYSTEMTAP_VERBOSE"); !ok {
		env = append(env, fmt.Sprintf("SYSTEMTAP_VERBOSE=%d", l.opts.Verbose))
	}
	return append(env, "SYSTEMTAP_MODULE="+module, version.Handover+"="+version.Version)
}

func ids(list []int) []uint32 {
	out := make([]uint32, len(list))
	for i, n := range list {
		out[i] = uint32(n)
	}
	return out
}

// feed copies standard input, which root means for the script or the command.
func feed(to *os.File) {
	defer to.Close()
	buf := make([]byte, 4096)
	for {
		n, err := os.Stdin.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// relayOutput copies a pipe of stapio's to one of this process's descriptors,
// until nobody can write to the pipe any more; or, when stapio has ended and a
// command of the script keeps the pipe, until what is in the pipe by then is copied.
func relayOutput(from *os.File, to int, ended <-chan struct{}) {
	defer from.Close() // stapio notices at its next write
	_, err := unix.IoctlGetTermios(to, unix.TCGETS)
	clean := cleaner{terminal: err == nil}
	in := int(from.Fd())
	// Whoever has the other end can open this one too, and take what was polled for.
	unix.SetNonblock(in, true)
	defer runtime.KeepAlive(from)
	buf := make([]byte, 64<<10)
	left := -1 // bytes still to be copied, -1: no limit
	for left != 0 {
		if left < 0 {
			select {
			case <-ended:
				if left, err = unix.IoctlGetInt(in, unix.TIOCINQ); err != nil {
					return
				}
				continue
			default:
			}
		}
		fds := []unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 50); err != nil && err != unix.EINTR {
			return
		} else if n <= 0 {
			if n == 0 && left > 0 {
				break // another reader has taken it
			}
			continue
		}
		n, err := unix.Read(in, buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if n <= 0 {
			break
		}
		if left > 0 {
			left = max(left-n, 0)
		}
		if !writeAll(to, clean.text(buf[:n])) {
			return
		}
	}
	writeAll(to, clean.rest())
}

func writeAll(fd int, b []byte) bool {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
		case err != nil:
			return false
		default:
			b = b[n:]
		}
	}
	return true
}

// cleaner makes another user's bytes harmless for a terminal: whatever is neither
// printable nor a line end or a tab becomes a backslash and three octal digits.
type cleaner struct {
	terminal bool
	cut      []byte // the beginning of a character
}

func (c *cleaner) text(b []byte) []byte {
	if !c.terminal {
		return b
	}
	b = append(c.cut, b...)
	c.cut = nil
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		if !utf8.FullRune(b) {
			c.cut = append(c.cut, b...)
			break
		}
		r, n := utf8.DecodeRune(b)
		if r == '\n' || r == '\t' || unicode.IsPrint(r) && !(r == utf8.RuneError && n == 1) {
			out = append(out, b[:n]...)
		} else {
			out = appendOctal(out, b[:n])
		}
		b = b[n:]
	}
	return out
}

// rest is what the output ended with in the middle of a character.
func (c *cleaner) rest() []byte { return appendOctal(nil, c.cut) }

func appendOctal(out, b []byte) []byte {
	for _, x := range b {
		out = fmt.Appendf(out, `\%03o`, x)
	}
	return out
}
