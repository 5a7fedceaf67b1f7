package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/e2e/lab"
)

// guestOptions are those of ./e2e/run guest.
type guestOptions struct {
	kernel  string
	user    lab.User
	server  bool
	command []string // nothing for a shell
}

const guestUsage = `usage: ./e2e/run guest [-k 6.1|6.12|7.2] [-u usr|sys|dev|root] [--server] [-- COMMAND...]

Boots the production host of the demo: a stock Debian kernel, stapbox installed, no compiler. Without
COMMAND its user gets a shell on this terminal; the host ends with the shell. COMMAND runs without one,
and its output and exit status are those of this command. A copy of the files in the current directory
is in the user's home directory. A signal goes to COMMAND while that runs; before that, or to a shell,
it ends the host. So does SIGINT or SIGTERM twice in a second.
`

// errUsage is a wrong command line, which has been told already.
var errUsage = errors.New("usage")

// exitStatus is the status of a COMMAND.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func parseGuest(args []string) (*guestOptions, error) {
	o := &guestOptions{}
	f := flag.NewFlagSet("guest", flag.ContinueOnError)
	f.SetOutput(os.Stderr)
	f.StringVar(&o.kernel, "k", "6.12", "`kernel`: "+strings.Join(append(lab.Versions(), lab.PeerVersion), ", "))
	user := f.String("u", "usr", "`user`: usr (stapusr), sys (stapsys), dev (stapdev), root")
	f.BoolVar(&o.server, "server", false, "a compile server for its kernel, trusted by the host, on a network with it")
	f.Usage = func() {
		fmt.Fprint(f.Output(), guestUsage)
		f.PrintDefaults()
	}
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil, err
	case err != nil:
		return nil, errUsage
	}
	o.command = f.Args()
	if !slices.Contains(append(lab.Versions(), lab.PeerVersion), o.kernel) {
		return nil, fmt.Errorf("-k %s: kernels are %s", o.kernel, strings.Join(append(lab.Versions(), lab.PeerVersion), ", "))
	}
	users := []lab.User{lab.Usr, lab.Sys, lab.Dev, lab.Root}
	i := slices.IndexFunc(users, func(u lab.User) bool { return u.Name == *user })
	if i < 0 {
		return nil, fmt.Errorf("-u %s: users are usr, sys, dev and root", *user)
	}
	o.user = users[i]
	return o, nil
}

// guest boots a production host for one's own scripts.
func guest(e *ending, l *lab.Lab, args []string) error {
	o, err := parseGuest(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, _, ok := terminal(); !ok && len(o.command) == 0 {
		return errors.New("a shell needs a terminal; name a COMMAND after --")
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, for a network namespace with a tap device: sudo ./e2e/run guest")
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	return withPrograms(l, func(p *lab.Programs) error { return o.play(ctx, e, l, p) })
}

func (o *guestOptions) play(ctx context.Context, e *ending, l *lab.Lab, programs *lab.Programs) error {
	var kernel *lab.Kernel
	var peer *lab.Peer
	var err error
	if o.kernel == lab.PeerVersion {
		err = e.cancelling(func(ctx context.Context) (err error) {
			peer, err = l.FetchPeer(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if kernel = peer.Kernel; !strings.HasPrefix(kernel.Release, o.kernel+".") {
			return fmt.Errorf("-k %s: Debian sid has kernel %s now", o.kernel, kernel.Release)
		}
	} else if kernel, err = l.FetchKernel(o.kernel); err != nil {
		return err
	}
	image := lab.NewImage()
	if err := o.files(image, os.Getenv("STAPBOX_CWD")); err != nil {
		return err
	}
	net, err := l.NewNetwork()
	if err != nil {
		return err
	}
	defer net.Close()
	var server *lab.Server
	if o.server {
		if peer != nil {
			server, err = programs.StartServerIn(ctx, peer, net, filepath.Join(programs.Dir, "server"))
		} else {
			server, err = programs.StartServer(net, filepath.Join(programs.Dir, "server"), []*lab.Kernel{kernel})
		}
		if err != nil {
			return err
		}
		defer server.Stop()
	}
	fmt.Fprintf(os.Stderr, "guest: booting kernel %s\n", kernel.Release)
	g, err := l.Boot(lab.GuestConfig{Kernel: kernel, Image: image, Agent: programs.Agent, Box: programs.Box, Net: net})
	if err != nil {
		return err
	}
	defer g.Kill()
	if server != nil {
		if err := trusted(g, server); err != nil {
			return err
		}
	}
	return o.run(e, g)
}

// trusted makes the host trust the server as a peer and as a signer, when it is
// ready.
func trusted(g *lab.Guest, server *lab.Server) error {
	if err := server.WaitLog("is ready after", 2*time.Minute); err != nil {
		return err
	}
	der, err := os.ReadFile(server.Certificate())
	if err != nil {
		return err
	}
	a, err := g.Do(lab.Shell(lab.Root, fmt.Sprintf("stap --trust-servers=ssl,signer,all-users,no-prompt --use-server=sha256:%x", sha256.Sum256(der))))
	if err == nil && !strings.Contains(string(a.Stdout)+string(a.Stderr), "Adding trust in the following servers") {
		err = fmt.Errorf("stap --trust-servers: status %d\n%s%s", a.Status, a.Stdout, a.Stderr)
	}
	return err
}

// most is how many bytes of files a guest is given.
const most = 32 << 20

// files puts those of a directory and below into the user's home directory, but
// no hidden ones. What is left out is said.
func (o *guestOptions) files(im *lab.Image, dir string) error {
	if dir == "" {
		return nil
	}
	home := lab.Home(o.user)
	owner := func(name string) (string, uint32, uint32) {
		return filepath.Join(home, name), uint32(o.user.UID), uint32(o.user.GID)
	}
	var sum int64
	var left []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		at, uid, gid := owner(name)
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(d.Name(), "."):
			left = append(left, name)
			if d.IsDir() {
				return fs.SkipDir
			}
		case d.IsDir():
			im.DirOf(at, 0o755, uid, gid)
		case d.Type().IsRegular() && sum+info.Size() <= most:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum += int64(len(b))
			im.FileOf(at, uint32(info.Mode().Perm()), uid, gid, b)
		default:
			left = append(left, name)
		}
		return nil
	})
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "guest: left out (hidden, no plain files, or beyond %d MB in all): %s\n", most>>20, strings.Join(left, " "))
	}
	return err
}

// run runs the command, or a shell, on a terminal if there is one here.
func (o *guestOptions) run(e *ending, g *lab.Guest) error {
	argv := o.command
	if len(argv) == 0 {
		argv = []string{"/bin/sh", "-l"}
	}
	// The shell finds programs as at the user's prompt, and says what it does not find.
	r := lab.Command(o.user, append([]string{"/bin/sh", "-c", `exec "$@"`, "sh"}, argv...)...)
	r.Env = append(r.Env, "PS1=\\u@production$ ")
	restore, raw := func() {}, func() error { return nil }
	if rows, columns, ok := terminal(); ok {
		r.Terminal, r.Rows, r.Columns = true, rows, columns
		r.Env = slices.DeleteFunc(r.Env, func(s string) bool { return strings.HasPrefix(s, "TERM=") })
		r.Env = append(r.Env, "TERM="+os.Getenv("TERM"))
		var err error
		if restore, raw, err = modes(); err != nil {
			return err
		}
	}
	// Signals that come now wait for the command: a terminal in raw mode must not be left.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGWINCH)
	defer signal.Stop(signals)
	release := e.take(signals, restore)
	defer release()
	if err := raw(); err != nil {
		return err
	}
	defer restore()
	s, err := g.Stream(r, os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	go s.Input(os.Stdin)
	go func() {
		for got := range signals {
			if got == syscall.SIGWINCH {
				if rows, columns, ok := terminal(); ok {
					s.Resize(rows, columns)
				}
				continue
			}
			if len(o.command) == 0 || got == syscall.SIGPIPE {
				// A shell for a dialogue ignores SIGTERM. SIGPIPE is this process's own.
				restore()
				e.end(got)
			}
			s.Signal(int(got.(syscall.Signal)))
		}
	}()
	status, err := s.Wait()
	if err == nil && status != 0 {
		err = exitStatus(status)
	}
	return err
}

// terminal is the size of the terminal that people see and type at, if standard
// input and output are one.
func terminal() (rows, columns int, ok bool) {
	if !isTerminal(os.Stdin) || !isTerminal(os.Stdout) {
		return 0, 0, false
	}
	w, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ)
	if err != nil || w.Row == 0 || w.Col == 0 {
		return 24, 80, true
	}
	return int(w.Row), int(w.Col), true
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// modes are ways to set the terminal: restore as it is now, and raw to hand keys and
// output on as they are. The terminal in the guest does then what a terminal does.
func modes() (restore func(), raw func() error, err error) {
	fd := int(os.Stdin.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, nil, os.NewSyscallError("ioctl", err)
	}
	t := *before
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	restore = func() { unix.IoctlSetTermios(fd, unix.TCSETS, before) }
	raw = func() error { return os.NewSyscallError("ioctl", unix.IoctlSetTermios(fd, unix.TCSETS, &t)) }
	return restore, raw, nil
}
