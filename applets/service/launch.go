package service

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/service"
)

// How long a server may take to start.
const (
	readyTime = 10 * time.Second
	keyTime   = 30 * time.Second // when it has to make its key
)

// launched is a server that accepts connections.
type launched struct {
	pid         int
	port        int
	fingerprint string
}

// launcher starts one server.
type launcher struct {
	executable string
	args       []string
	environ    []string
	account    *account // to become, nil for none
	limit      time.Duration
}

// run starts the server in a session of its own, in the root directory, and
// waits until it says that it accepts connections. The error is what the server
// told, or how it ended. A server that is not ready in time is ended.
func (l launcher) run(ctx context.Context) (*launched, error) {
	// The server is in a session of its own: what ends this process from a
	// terminal must end the server that nobody knows yet.
	ctx, stopSignals := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stopSignals()
	socket, err := listenReady()
	if err != nil {
		return nil, fmt.Errorf("making a socket for the server's answer: %w", err)
	}
	defer socket.Close()
	cmd := &exec.Cmd{
		Path: l.executable, Args: append([]string{service.ServerName}, l.args...), Dir: "/",
		Env:         append(slices.Clone(l.environ), "NOTIFY_SOCKET="+socket.LocalAddr().String()),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if l.account != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{
			Uid: uint32(l.account.uid), Gid: uint32(l.account.gid), Groups: l.account.groups,
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	ended := make(chan string, 1)
	go func() {
		cmd.Wait()
		ended <- cmd.ProcessState.String()
	}()
	heard := make(chan []string)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		defer close(heard)
		for {
			states, err := receive(socket, pid)
			if err != nil {
				return
			}
			select {
			case heard <- states:
			case <-stop:
				return
			}
		}
	}()

	limit := time.NewTimer(l.limit)
	defer limit.Stop()
	reason := ""
	for {
		select {
		case states, ok := <-heard:
			if !ok {
				heard = nil
				if reason != "" {
					return nil, fmt.Errorf("%s", reason)
				}
				continue
			}
			if got := parseReady(states); got != nil {
				got.pid = pid
				return got, nil
			}
			for _, s := range states {
				if text, ok := strings.CutPrefix(s, "STATUS="); ok {
					reason = text
				}
			}
		case state := <-ended:
			// What it said before is on the socket.
			if reason == "" {
				reason = "it ended with " + state
			}
			socket.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			for states := range heard {
				for _, s := range states {
					if text, ok := strings.CutPrefix(s, "STATUS="); ok {
						reason = text
					}
				}
			}
			return nil, fmt.Errorf("%s", reason)
		case <-ctx.Done():
			end(cmd.Process)
			return nil, ctx.Err()
		case <-limit.C:
			end(cmd.Process)
			return nil, fmt.Errorf("it was not ready after %v", l.limit)
		}
	}
}

// end ends a server that is not ready.
func end(p *os.Process) {
	p.Signal(unix.SIGTERM)
	time.AfterFunc(100*time.Millisecond, func() { p.Kill() })
	time.Sleep(200 * time.Millisecond)
}

// listenReady opens the socket. It has no file, so that any user's server finds
// it; who sends is known from the kernel.
func listenReady() (*net.UnixConn, error) {
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@stap-server-" + rand.Text(), Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	raw, err := socket.SyscallConn()
	if err == nil {
		controlled := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		if err == nil {
			err = controlled
		}
	}
	if err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

// receive is the next message of process pid; those of others are dropped.
func receive(socket *net.UnixConn, pid int) ([]string, error) {
	// There is room for who sends, which comes first, and for no descriptor.
	data, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, m, _, _, err := socket.ReadMsgUnix(data, rights)
		if err != nil {
			return nil, err
		}
		messages, err := unix.ParseSocketControlMessage(rights[:m])
		if err != nil {
			continue
		}
		for i := range messages {
			if c, err := unix.ParseUnixCredentials(&messages[i]); err == nil && int(c.Pid) == pid {
				return strings.Split(string(data[:n]), "\n"), nil
			}
		}
	}
}

// parseReady reads the message of a server that is ready, nil for another one.
func parseReady(states []string) *launched {
	if !slices.Contains(states, "READY=1") {
		return nil
	}
	var got launched
	for _, s := range states {
		if v, ok := strings.CutPrefix(s, service.PortFact); ok {
			if n, err := strconv.ParseUint(v, 10, 16); err == nil {
				got.port = int(n)
			}
		}
		if v, ok := strings.CutPrefix(s, service.CertificateFact); ok && len(v) == 64 && strings.Trim(v, "0123456789abcdef") == "" {
			got.fingerprint = v
		}
	}
	return &got
}

// passedOn reports whether a variable is one that another user's server
// gets.
func passedOn(name string) bool {
	switch name {
	case "TMPDIR", "LANG", "TZ", "http_proxy", "https_proxy", "no_proxy",
		"SYSTEMTAP_STAP", "SYSTEMTAP_SIGN_KEY_TYPE", "SYSTEMTAP_MOK_KEY_TYPE":
		return true
	}
	return strings.HasPrefix(name, "LC_") || strings.HasPrefix(name, "DEBUGINFOD_")
}

// environ is the environment of a server: the caller's, or for another user
// some of it. What a service manager told the caller is not for the server.
func environ(own []string, other *account) []string {
	var env []string
	if other != nil {
		env = []string{
			"HOME=" + other.home, "SHELL=/bin/sh", "USER=" + other.name, "LOGNAME=" + other.name,
			"PATH=/usr/local/bin:/usr/bin:/bin",
		}
	}
	for _, e := range own {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case name == "NOTIFY_SOCKET", strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "WATCHDOG_"):
		case other == nil, name == "TERM", passedOn(name):
			env = append(env, e)
		}
	}
	return env
}

// needsKey reports whether a server has to make its key before it is ready.
func needsKey(ssl, systemtapDir string, a account) bool {
	if ssl == "" {
		data := hostpaths.UserDir(systemtapDir, a.home)
		if data == "" {
			return true
		}
		ssl = hostpaths.ServerIdentity(data)
	}
	_, err := os.Stat(filepath.Join(ssl, "stap.cert"))
	return err != nil
}
