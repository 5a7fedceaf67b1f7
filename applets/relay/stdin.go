package relay

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// forwarder sends standard input to the script, through the file __stdin of its
// directory, one byte a write(2): each is one event of input.char (loader-relay
// 9.2).
type forwarder struct {
	started atomic.Bool // START was answered: a file that is not there will not come
	stop    atomic.Bool
	tty     int           // the terminal to be restored, -1: none
	saved   *unix.Termios // its settings
}

// forwardInput begins to forward. A terminal gives its characters at once and
// does not show them, until restore.
func forwardInput(dir *os.File, in io.Reader, missing func()) *forwarder {
	f := &forwarder{tty: -1}
	if file, ok := in.(*os.File); ok {
		fd := int(file.Fd())
		if old, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			set := *old
			set.Lflag &^= unix.ICANON | unix.ECHO
			set.Cc[unix.VMIN], set.Cc[unix.VTIME] = 1, 0
			if unix.IoctlSetTermios(fd, unix.TCSETS, &set) == nil {
				f.tty, f.saved = fd, old
			}
		}
	}
	go f.copy(int(dir.Fd()), in, missing)
	return f
}

func (f *forwarder) restore() {
	f.stop.Store(true)
	if f.tty >= 0 {
		unix.IoctlSetTermios(f.tty, unix.TCSETS, f.saved)
	}
}

func (f *forwarder) copy(dir int, in io.Reader, missing func()) {
	out := f.open(dir, missing)
	if out < 0 {
		return
	}
	defer unix.Close(out)
	buf := make([]byte, 4096)
	for !f.stop.Load() {
		n, err := in.Read(buf)
		for i := range n {
			for {
				_, err := unix.Write(out, buf[i:i+1])
				if err == unix.EINTR || err == unix.EAGAIN {
					continue
				}
				if err != nil {
					return // the module is going
				}
				break
			}
		}
		if err != nil {
			return
		}
	}
}

// open waits for the file, which some modules make when they start.
func (f *forwarder) open(dir int, missing func()) int {
	for !f.stop.Load() {
		started := f.started.Load()
		fd, err := unix.Openat(dir, "__stdin", unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		switch {
		case err == nil:
			return fd
		case !errors.Is(err, unix.ENOENT) && err != unix.EINTR:
			return -1
		case started:
			missing()
			return -1
		}
		time.Sleep(2 * time.Millisecond)
	}
	return -1
}
