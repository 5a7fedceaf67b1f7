package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is a program that will run in a sandbox. Of the fields of exec.Cmd those
// for standard descriptors may be set.
type Cmd struct {
	*exec.Cmd
	sandbox *Sandbox
	order   order
	own     *os.File // our end of the channel
	work    *os.Root // what replaced Private
	proc    *os.File // its processes
	over    atomic.Pointer[string]
}

// Command prepares a process. When ctx ends it ends, with all it has started.
func (s *Sandbox) Command(ctx context.Context, spec Spec) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, s.Program[0]), sandbox: s, order: order{Spec: spec, layers: s.Layers}}
	o := &c.order
	if o.Size == 0 {
		o.Size = DefaultSize
	}
	o.Limits = slices.Clone(o.Limits)
	c.Cmd.Args = s.Program[1:2:2]
	c.Cmd.Env = []string{Variable + "=init"}
	c.Cmd.Dir = "/"
	c.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if s.Layers&Namespaces != 0 {
		c.namespaces()
	}
	// Cancel ends the group; the first process of a pid namespace takes all others with
	// it, whatever group they are in.
	c.Cmd.Cancel = func() error { return killGroup(c.Cmd.Process) }
	c.Cmd.WaitDelay = 2 * time.Second
	return c
}

func (c *Cmd) namespaces() {
	a, o := c.Cmd.SysProcAttr, &c.order
	a.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	// What making namespaces needs, until they are made.
	a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP}
	if os.Geteuid() == 0 {
		foreign := syscall.SysProcIDMap{ContainerID: foreignID, HostID: foreignID, Size: 1}
		a.UidMappings, a.GidMappings = append(a.UidMappings, foreign), append(a.GidMappings, foreign)
		a.GidMappingsEnableSetgroups = true
		a.AmbientCaps = append(a.AmbientCaps, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_CHOWN)
		if o.Private != "" {
			o.uid = foreignID
		}
	}
	// Counted in the user namespace: other processes of this user do not matter.
	if !slices.ContainsFunc(o.Limits, func(l Limit) bool { return l.Name == "nproc" }) {
		o.Limits = append(o.Limits, Limit{"nproc", DefaultProcesses})
	}
}

// Run starts the program and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Start starts the program. The sandbox is complete when it returns.
func (c *Cmd) Start() error {
	message, err := c.order.encode()
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making a channel: %w", err)
	}
	c.own = os.NewFile(uintptr(pair[0]), "channel")
	their := os.NewFile(uintptr(pair[1]), "channel")
	c.Cmd.ExtraFiles = []*os.File{their} // descriptor 3
	err = c.Cmd.Start()
	their.Close()
	if err != nil {
		c.own.Close()
		return err
	}
	if err := c.handshake(message); err != nil {
		c.own.Close()
		killGroup(c.Cmd.Process)
		c.Cmd.Wait()
		c.Close()
		return fmt.Errorf("setting up a sandbox: %w", err)
	}
	c.own.Close()
	return nil
}

// handshake hands over the order and takes the answer.
func (c *Cmd) handshake(message []byte) error {
	if _, err := c.own.Write(message); err != nil {
		return err
	}
	var text [4096]byte
	control := make([]byte, unix.CmsgSpace(2*4))
	n, controls, _, _, err := unix.Recvmsg(int(c.own.Fd()), text[:], control, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, controls, _, _, err = unix.Recvmsg(int(c.own.Fd()), text[:], control, unix.MSG_CMSG_CLOEXEC)
	}
	switch {
	case err != nil:
		return err
	case n == 0:
		return errors.New("the new process ended without a word")
	case string(text[:n]) != "ok":
		return errors.New(string(text[:n]))
	}
	if controls == 0 {
		return nil
	}
	list, err := unix.ParseSocketControlMessage(control[:controls])
	if err != nil || len(list) != 1 {
		return fmt.Errorf("reading an answer: %v", err)
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 2 {
		return fmt.Errorf("reading descriptors of an answer: %v", err)
	}
	c.proc = os.NewFile(uintptr(fds[1]), "proc")
	defer unix.Close(fds[0])
	c.work, err = os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fds[0]))
	return err
}

// Wait waits for the end of the program and ends what it left behind.
func (c *Cmd) Wait() error {
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.watch(done)
	}()
	err := c.Cmd.Wait()
	killGroup(c.Cmd.Process)
	close(done)
	<-watched
	return err
}

// Close forgets what the program left in its work directory.
func (c *Cmd) Close() {
	if c.work != nil {
		c.work.Close()
	}
	if c.proc != nil {
		c.proc.Close()
	}
}

// Exceeded says which of the limits of all processes together has ended the
// program, "" for none.
func (c *Cmd) Exceeded() string {
	if s := c.over.Load(); s != nil {
		return *s
	}
	return ""
}

// How often sizes are looked at.
const watchInterval = 100 * time.Millisecond

// watch holds all processes together to the limits that the kernel has only for
// one, and a work directory on disk to its size.
func (c *Cmd) watch(done <-chan struct{}) {
	t := time.NewTicker(watchInterval)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		var why string
		if m := c.order.Memory; c.proc != nil && m > 0 && resident(c.proc) > m {
			why = fmt.Sprintf("more than %d bytes of memory in all processes together", m)
		}
		if c.work == nil && c.order.Private != "" && occupied(c.order.Private) > c.order.Size {
			why = fmt.Sprintf("more than %d bytes in its directory", c.order.Size)
		}
		if why != "" {
			c.over.Store(&why)
			killGroup(c.Cmd.Process)
			return
		}
	}
}

// resident is the memory of all processes that a procfs shows, pages that are
// shared counted for each.
func resident(proc *os.File) (bytes uint64) {
	dir := fmt.Sprintf("/proc/self/fd/%d", proc.Fd())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0 // all have ended
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), "statm"))
		if err != nil {
			continue
		}
		if f := strings.Fields(string(b)); len(f) > 1 {
			pages, _ := strconv.ParseUint(f[1], 10, 63)
			bytes += pages * uint64(os.Getpagesize())
		}
	}
	return bytes
}

// occupied is what a directory takes on disk.
func occupied(dir string) (bytes uint64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				bytes += uint64(st.Blocks) * 512
			}
		}
		return nil
	})
	return bytes
}

// maxFetched is how many files Fetch brings.
const maxFetched = 1024

// Fetch brings the regular files of a directory below Private whose names match
// to where they would be without a sandbox. Those that are something else, or
// have more than limit bytes, are an error, and so are more than there is room
// for: a file may have holes, which take no room in there but do here, and
// several names.
func (c *Cmd) Fetch(dir, pattern string, limit int64) error {
	if c.work == nil {
		return nil
	}
	from, err := c.work.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("fetching from the sandbox: %w", err)
	}
	defer from.Close()
	list, err := fs.ReadDir(from.FS(), ".")
	if err != nil {
		return fmt.Errorf("fetching from the sandbox: %w", err)
	}
	left, files := int64(min(c.order.Size, math.MaxInt64)), 0
	for _, e := range list {
		if ok, _ := filepath.Match(pattern, e.Name()); !ok {
			continue
		}
		if files++; files > maxFetched {
			return fmt.Errorf("fetching from the sandbox: %q has more than %d files", dir, maxFetched)
		}
		n, err := fetch(from, e.Name(), filepath.Join(c.order.Private, dir, e.Name()), min(limit, left))
		if err != nil {
			return fmt.Errorf("fetching from the sandbox: %w", err)
		}
		left -= n
	}
	return nil
}

func fetch(from *os.Root, name, to string, limit int64) (int64, error) {
	r, err := from.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return 0, fmt.Errorf("%q is not a regular file of at most %d bytes", name, limit)
	}
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(w, io.LimitReader(r, limit))
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	return n, err
}

// killGroup ends a process and its group.
func killGroup(p *os.Process) error {
	if err := syscall.Kill(-p.Pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return err
	}
	return nil
}
