package service

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ServerName is the name of a server's process (comm).
const ServerName = "stap-serverd"

// Proc is a process, from /proc/PID/stat (proc(5)):
//
//	PID (NAME) STATE PPID ... 22: STARTTIME ...
//
// NAME may have any character.
type Proc struct {
	PID    int
	Name   string
	State  byte
	Parent int
	Start  uint64 // ticks since the boot
}

// Server reports whether the process is a server that lives.
func (p Proc) Server() bool { return p.Name == ServerName && p.State != 'Z' && p.State != 'X' }

// Process reads about a process.
func Process(proc string, pid int) (Proc, error) {
	data, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "stat"))
	if err != nil {
		return Proc{}, err
	}
	return ParseProc(data)
}

// ParseProc reads /proc/PID/stat.
func ParseProc(data []byte) (Proc, error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return Proc{}, fmt.Errorf("no name in %q", data)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data[:open])))
	fields := strings.Fields(string(data[end+1:]))
	if err != nil || len(fields) < 20 {
		return Proc{}, fmt.Errorf("no process in %q", data)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Proc{}, fmt.Errorf("no start in %q", data)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return Proc{}, fmt.Errorf("no parent in %q", data)
	}
	return Proc{pid, string(data[open+1 : end]), fields[0][0], parent, start}, nil
}

// Owner is the user id that a process runs as.
func Owner(proc string, pid int) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(proc, strconv.Itoa(pid)), &st); err != nil {
		return 0, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return int(st.Uid), nil
}

// Children is how many processes a process has started that are still there.
// Those of a server are translations.
func Children(proc string, pid int) (n int, err error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		child, ok := ParsePID(e.Name())
		if !ok {
			continue
		}
		if p, err := Process(proc, child); err == nil && p.Parent == pid && p.State != 'Z' {
			n++
		}
	}
	return n, nil
}

// Handle is a server that cannot become another process while it is held.
type Handle struct{ fd int }

// Hold takes hold of a server's process. It is nil, without an error, if the
// process is gone or is no server.
func Hold(proc string, pid int, start uint64) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	// What is read now is of the process that the descriptor is of.
	p, err := Process(proc, pid)
	if err != nil || !p.Server() || start != 0 && p.Start != start {
		unix.Close(fd)
		return nil, nil
	}
	return &Handle{fd}, nil
}

// Signal sends a signal.
func (h *Handle) Signal(sig unix.Signal) error { return unix.PidfdSendSignal(h.fd, sig, nil, 0) }

// Wait waits for the end, up to a time, and reports whether it came.
func (h *Handle) Wait(limit time.Duration) bool {
	for end := time.Now().Add(limit); ; {
		left := max(time.Until(end), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if n > 0 {
			return true
		}
		if err != unix.EINTR && left == 0 {
			return false
		}
	}
}

// Close lets go of it.
func (h *Handle) Close() { unix.Close(h.fd) }

// What a server adds to its READY=1 (sd_notify(3)): the port it has, and the
// SHA-256 of its certificate.
const (
	PortFact        = "X_STAPBOX_PORT="
	CertificateFact = "X_STAPBOX_CERTIFICATE="
)
