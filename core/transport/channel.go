package transport

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Dirs are the places a module's control directory may be, in the order they
// are tried: procfs since 4.5, debugfs for modules built to use it.
var Dirs = []string{"/proc/systemtap", "/sys/kernel/debug/systemtap"}

// ErrAttached means that another process holds the control channel.
var ErrAttached = errors.New("another process is attached to the module")

// OpenDir opens the control directory of a loaded module, read-only and close
// on exec. The name must be one path element.
func OpenDir(module string) (*os.File, error) {
	if err := CheckName(module); err != nil {
		return nil, err
	}
	var first error
	for _, d := range Dirs {
		path := d + "/" + module
		fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if first == nil {
			first = &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
	return nil, first
}

// MaxName is the longest module name the kernel takes on 64-bit machines.
const MaxName = 55

// CheckName refuses what cannot be the name of a loaded module: nothing, a path,
// or more than MaxName bytes.
func CheckName(module string) error {
	if module == "" || module == "." || module == ".." || len(module) > MaxName+1 {
		return fmt.Errorf("%q is not a module name", module)
	}
	for i := 0; i < len(module); i++ {
		if c := module[i]; c == '/' || c <= ' ' || c == 0x7f {
			return fmt.Errorf("%q is not a module name", module)
		}
	}
	return nil
}

// Channel is an open control channel. Its methods may be called from several
// goroutines; writes are serialised because the module acts inside write(2).
type Channel struct {
	Generation Generation

	name string
	fd   int // not an os.File: its Fd method would make the descriptor blocking
	mu   sync.Mutex
}

// OpenChannel attaches to the module whose control directory dir is. With the
// caller's real ids the file must be readable and writable: that proves that
// the module belongs to the caller. EBUSY is returned as ErrAttached.
func OpenChannel(dir *os.File) (*Channel, error) {
	const name = ".cmd"
	at := int(dir.Fd())
	if err := unix.Faccessat(at, name, unix.R_OK|unix.W_OK, 0); err != nil {
		return nil, &os.PathError{Op: "access", Path: dir.Name() + "/" + name, Err: err}
	}
	fd, err := unix.Openat(at, name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == unix.EBUSY {
		return nil, ErrAttached
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	c := &Channel{name: dir.Name() + "/" + name, fd: fd}
	for _, g := range []Generation{Gen5, Gen4} {
		c.Generation = g
		err = c.Send(Message{Type: Ready})
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	c.Close()
	return nil, fmt.Errorf("sending READY to %q: %w", dir.Name(), err)
}

// Send writes one message. The module acts on it before write(2) returns: START
// blocks while begin probes run, EXIT while end probes run. Modules answer with
// the full count, very old ones with four less.
func (c *Channel) Send(m Message) error {
	b := c.Generation.Encode(m)
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		n, err := unix.Write(c.fd, b)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case err != nil:
			return fmt.Errorf("sending %v: %w", m.Type, err)
		case n < len(b)-4 || n == 0 && len(b) > 4:
			return fmt.Errorf("sending %v: the module took %d of %d bytes", m.Type, n, len(b))
		}
		return nil
	}
}

// Receive waits at most the given time for one message. ok is false when there
// was none.
func (c *Channel) Receive(wait time.Duration) (m Message, ok bool, err error) {
	for i := 0; ; i++ {
		buf := make([]byte, MaxMessage)
		n, err := unix.Read(c.fd, buf)
		switch {
		case err == nil:
			m, err := c.Generation.Decode(buf[:n])
			return m, err == nil, err
		case err != unix.EAGAIN && err != unix.EINTR:
			return m, false, fmt.Errorf("reading control channel: %w", err)
		case i > 0:
			return m, false, nil
		}
		// POLLPRI and POLLOUT are always set by modules: ask for POLLIN only.
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(wait.Milliseconds())); err != nil && err != unix.EINTR {
			return m, false, fmt.Errorf("waiting on control channel: %w", err)
		}
	}
}

// Owner is the user the module was loaded for.
func (c *Channel) Owner() (uid int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(c.fd, &st); err != nil {
		return -1, &os.PathError{Op: "stat", Path: c.name, Err: err}
	}
	return int(st.Uid), nil
}

// Close detaches from the module, which goes on running. A Send under way is
// waited for. Closing once more does nothing.
func (c *Channel) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return os.NewSyscallError("close "+c.name, unix.Close(fd))
}

// TraceFile is one CPU's open trace file, in non-blocking mode.
type TraceFile struct {
	Name string
	FD   int
}

// Close closes the file.
func (t *TraceFile) Close() error { return unix.Close(t.FD) }

// OpenTrace opens the trace files of the directory: one for each CPU that was
// online when the module was inserted. The result is indexed by CPU, nil where
// there is none.
func OpenTrace(dir *os.File, cpus int) ([]*TraceFile, error) {
	files := make([]*TraceFile, cpus)
	found := false
	var first error
	for cpu := range files {
		name := "trace" + strconv.Itoa(cpu)
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			if first == nil {
				first = &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
			}
			continue
		}
		files[cpu] = &TraceFile{dir.Name() + "/" + name, fd}
		found = true
	}
	if !found {
		return nil, first
	}
	return files, nil
}
