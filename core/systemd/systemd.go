// Package systemd is the part of a service that talks to its service manager:
// it says how the service is, and takes over sockets that the manager opened.
//
// Notification (sd_notify(3)): one datagram of lines NAME=VALUE to the socket
// named by NOTIFY_SOCKET, a path, or "@" and a name in the abstract namespace.
//
//	READY=1                           started, or finished reloading
//	RELOADING=1 + MONOTONIC_USEC=N    reloading since CLOCK_MONOTONIC N
//	STOPPING=1                        ending
//	STATUS=text                       for people
//	WATCHDOG=1                        alive; due every WATCHDOG_USEC, if that is
//	                                  set and WATCHDOG_PID is this process or unset
//
// Sockets (sd_listen_fds(3)): descriptors 3 to 3+LISTEN_FDS-1, if LISTEN_PID is
// this process; LISTEN_FDNAMES has their names with ":" between.
package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The states of a service.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Watchdog = "WATCHDOG=1"
)

const (
	firstSocket = 3 // SD_LISTEN_FDS_START
	maxSockets  = 64
	sendTime    = time.Second
)

// Reloading is the state of a service that begins to reload now. The time is
// what tells its READY=1 from one that was sent before (Type=notify-reload).
func Reloading() (string, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return "", fmt.Errorf("reading the monotonic clock: %w", err)
	}
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", t.Nano()/1000), nil
}

// Status is a line for people.
func Status(format string, args ...any) string {
	return "STATUS=" + strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, fmt.Sprintf(format, args...))
}

// Notifier sends states. A nil Notifier sends nothing: there is no manager.
type Notifier struct{ address *net.UnixAddr }

// NewNotifier takes the value of NOTIFY_SOCKET.
func NewNotifier(socket string) (*Notifier, error) {
	switch {
	case socket == "":
		return nil, nil
	case len(socket) < 2 || socket[0] != '/' && socket[0] != '@':
		return nil, fmt.Errorf("NOTIFY_SOCKET=%q is neither an absolute path nor an abstract name", socket)
	case len(socket) > len(unix.RawSockaddrUnix{}.Path):
		return nil, fmt.Errorf("NOTIFY_SOCKET has %d octets, more than the name of a socket may have", len(socket))
	}
	return &Notifier{&net.UnixAddr{Name: socket, Net: "unixgram"}}, nil
}

// Send sends states, as one datagram.
func (n *Notifier) Send(states ...string) error {
	if n == nil {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, n.address)
	if err != nil {
		return fmt.Errorf("notifying the service manager: %w", err)
	}
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(sendTime))
	if _, err := c.Write([]byte(strings.Join(states, "\n"))); err != nil {
		return fmt.Errorf("notifying the service manager: %w", err)
	}
	return nil
}

// WatchdogTime reads WATCHDOG_USEC and WATCHDOG_PID: how often the manager wants
// to hear from process self, 0 for never.
func WatchdogTime(usec, pid string, self int) (time.Duration, error) {
	if usec == "" || pid != "" && pid != strconv.Itoa(self) {
		return 0, nil
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(24*time.Hour/time.Microsecond) {
		return 0, fmt.Errorf("WATCHDOG_USEC=%q is not a number of microseconds up to a day", usec)
	}
	return time.Duration(n) * time.Microsecond, nil
}

// Listener is a socket that the manager opened.
type Listener struct {
	Name string // "" without LISTEN_FDNAMES, and for "unknown"
	net.Listener
}

// Listeners takes over the sockets of LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES,
// of which there are none if they are meant for another process. Each must be a
// listening stream socket. The descriptors are not inherited by programs that
// this one executes.
func Listeners(pid, fds, names string, self int) ([]Listener, error) {
	return listeners(pid, fds, names, self, firstSocket)
}

func listeners(pid, fds, names string, self, first int) (list []Listener, err error) {
	n, words, err := parse(pid, fds, names, self)
	if err != nil || n == 0 {
		return nil, err
	}
	for fd := first; fd < first+n; fd++ {
		unix.CloseOnExec(fd)
	}
	defer func() {
		if err != nil {
			for _, l := range list {
				l.Close()
			}
		}
	}()
	for i := range n {
		l, err := listener(first + i)
		if err != nil {
			return list, fmt.Errorf("taking over socket %d of %d (%q) from the service manager: %w", i+1, n, words[i], err)
		}
		list = append(list, Listener{words[i], l})
	}
	return list, nil
}

// parse gives the number of sockets and a name for each.
func parse(pid, fds, names string, self int) (int, []string, error) {
	if pid == "" || fds == "" {
		return 0, nil, nil
	}
	p, err := strconv.ParseUint(pid, 10, 31)
	if err != nil || p == 0 {
		return 0, nil, fmt.Errorf("LISTEN_PID=%q is not a process id", pid)
	}
	if int(p) != self {
		return 0, nil, nil
	}
	n, err := strconv.ParseUint(fds, 10, 31)
	if err != nil || n > maxSockets {
		return 0, nil, fmt.Errorf("LISTEN_FDS=%q is not a number of sockets up to %d", fds, maxSockets)
	}
	list := make([]string, n)
	if names != "" && n > 0 {
		words := strings.Split(names, ":")
		if len(words) != int(n) {
			return 0, nil, fmt.Errorf("LISTEN_FDNAMES has %d names for LISTEN_FDS=%d sockets", len(words), n)
		}
		for i, w := range words {
			if w != "unknown" {
				list[i] = w
			}
		}
	}
	return int(n), list, nil
}

// listener makes a listener of an inherited descriptor, which is closed.
func listener(fd int) (net.Listener, error) {
	defer unix.Close(fd)
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not a socket: %w", fd, err)
	}
	accepting, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case err != nil:
		return nil, os.NewSyscallError("getsockopt", err)
	case kind != unix.SOCK_STREAM:
		return nil, errors.New("it is not a stream socket (ListenStream=)")
	case accepting == 0:
		return nil, errors.New("it does not listen (Accept=no)")
	}
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(copied), "socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the file is the manager's
	}
	return l, err
}
