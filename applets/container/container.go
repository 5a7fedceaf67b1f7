// Package container is the first process of a container: stapbox entrypoint. It
// runs stap-serverd in the foreground, with its log as JSON on standard error,
// and does for it what a container has nobody else for:
//
//	reaps   every process that lost its parent (wait4(2); a first process gets
//	        them, any other asks for them with PR_SET_CHILD_SUBREAPER)
//	passes  SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGQUIT on: the server drains,
//	        reloads, opens its log again. Who asks twice for the end and does not
//	        get it within some seconds gets SIGKILL
//	gives   root's rights up: the server runs as --uid, $STAPBOX_UID, the user
//	        stap-server of /etc/passwd, or 65532, whichever is there first
//	ends    with the server's status, or 128 and the number of its signal
//
// Sockets and states of a service manager (sd_listen_fds(3), sd_notify(3)) are
// for the server. They are meant for one process by its id, which only that
// process knows beforehand; so it is started as "stapbox entrypoint" once more,
// with stageVariable set, writes its id into LISTEN_PID and WATCHDOG_PID and
// executes the server.
package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
)

// Command is the word after stapbox.
const Command = "entrypoint"

const (
	serverName    = "stap-serverd"
	uidVariable   = "STAPBOX_UID"
	stageVariable = "STAPBOX_ENTRYPOINT_STAGE"
	accountName   = "stap-server"
	defaultUID    = 65532
	firstSocket   = 3 // SD_LISTEN_FDS_START
	maxSockets    = 64
	patience      = 5 * time.Second // between the second signal to end and SIGKILL
)

const usage = `Usage: stapbox entrypoint [--uid=UID[:GID]] [STAP-SERVERD OPTIONS...]
Run stap-serverd as the first process of a container does.
`

// Is reports whether an invocation of the box is for this applet: it is named,
// or the box is the first process and has nothing else to do.
func Is(args []string, pid int) bool {
	return len(args) == 0 && pid == 1 || len(args) > 0 && args[0] == Command
}

// ids are those that the server runs with.
type ids struct{ uid, gid uint32 }

// Main runs the applet.
func Main(_ context.Context, inv *invocation.Invocation) int {
	args := inv.Args
	if len(args) > 0 {
		args = args[1:] // Command
	}
	if inv.Getenv(stageVariable) != "" {
		inv.Errorf("ERROR: %v", become(inv.Environ, args))
		return 126
	}
	who, args, err := choose(inv, args, os.Getuid(), user.Lookup)
	if err != nil {
		inv.Errorf("ERROR: %v", err)
		return 2
	}
	if len(args) > 0 && (args[0] == "--help" || args[0] == "-h") {
		fmt.Fprint(inv.Stdout, usage)
		return 0
	}
	s := &supervisor{inv: inv, who: who}
	status, err := s.run(append([]string{"--log-format=json"}, args...))
	if err != nil {
		inv.Errorf("ERROR: %v", err)
		return 126
	}
	return status
}

// choose decides whom the server runs as, nil for the one who runs this, and
// takes the option for it off the words.
func choose(inv *invocation.Invocation, args []string, self int, lookup func(string) (*user.User, error)) (*ids, []string, error) {
	value, from := inv.Getenv(uidVariable), uidVariable
	if len(args) > 0 {
		if v, given := strings.CutPrefix(args[0], "--uid="); given {
			value, from, args = v, "option '--uid'", args[1:]
		}
	}
	if value == "" {
		if self != 0 {
			return nil, args, nil
		}
		who := &ids{defaultUID, defaultUID}
		if u, err := lookup(accountName); err == nil {
			if parsed, err := parseIDs(u.Uid + ":" + u.Gid); err == nil {
				who = parsed
			}
		}
		return who, args, nil
	}
	who, err := parseIDs(value)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %w", from, err)
	case int(who.uid) == self:
		return nil, args, nil
	case self != 0:
		return nil, nil, fmt.Errorf("%s: user %d cannot become user %d", from, self, who.uid)
	}
	return who, args, nil
}

// parseIDs reads UID or UID:GID. Root is refused: a compile server never is.
func parseIDs(s string) (*ids, error) {
	u, g, both := strings.Cut(s, ":")
	if !both {
		g = u
	}
	uid, uerr := strconv.ParseUint(u, 10, 31)
	gid, gerr := strconv.ParseUint(g, 10, 31)
	if uerr != nil || gerr != nil {
		return nil, fmt.Errorf("%q is not UID or UID:GID, in numbers", s)
	}
	if uid == 0 {
		return nil, errors.New("a compile server does not run as root")
	}
	return &ids{uint32(uid), uint32(gid)}, nil
}

// supervisor is one run.
type supervisor struct {
	inv *invocation.Invocation
	who *ids
	// program is the executable, "" for this one.
	program string
}

func (s *supervisor) run(args []string) (int, error) {
	if os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return 0, fmt.Errorf("becoming the parent of orphans: %w", err)
		}
	}
	// Before there is a child: none of its signals may be missed.
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	forward := make(chan os.Signal, 16)
	signal.Notify(forward, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGQUIT)
	defer signal.Stop(forward)
	s.inv.Handles(syscall.SIGQUIT)

	child, err := s.start(args)
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", serverName, err)
	}
	asked := 0
	var late <-chan time.Time
	for {
		if status, ended := reap(child); ended {
			return status, nil
		}
		select {
		case <-children:
		case sig := <-forward:
			unix.Kill(child, sig.(syscall.Signal))
			if sig == syscall.SIGTERM || sig == syscall.SIGINT {
				if asked++; asked == 2 {
					late = time.After(patience)
				}
			}
		case <-late:
			unix.Kill(child, unix.SIGKILL)
		}
	}
}

// start starts the server in a process group of its own: what a terminal sends
// comes through this process, once.
func (s *supervisor) start(args []string) (int, error) {
	program := s.program
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			return 0, err
		}
	}
	attr := &syscall.ProcAttr{
		Files: []uintptr{0, 1, 2},
		Env:   s.environ(),
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	}
	if s.who != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: s.who.uid, Gid: s.who.gid}
	}
	argv := append([]string{serverName}, args...)
	if forSelf(s.inv, "LISTEN_PID") || forSelf(s.inv, "WATCHDOG_PID") {
		argv = append([]string{"stapbox", Command}, args...)
		attr.Env = append(attr.Env, stageVariable+"="+program)
		n, err := strconv.Atoi(s.inv.Getenv("LISTEN_FDS"))
		if err != nil || n < 0 || n > maxSockets {
			n = 0 // the server says what is wrong with it
		}
		for fd := range n {
			attr.Files = append(attr.Files, uintptr(firstSocket+fd))
		}
	}
	return syscall.ForkExec(program, argv, attr)
}

// forSelf reports whether a variable names this process.
func forSelf(inv *invocation.Invocation, name string) bool {
	return inv.Getenv(name) == strconv.Itoa(os.Getpid())
}

// environ is the server's environment: another user has another home.
func (s *supervisor) environ() []string {
	env := slices.Clone(s.inv.Environ)
	home := s.inv.Getenv("HOME")
	if s.who != nil && (home == "" || home == "/" || home == "/root") {
		if u, err := user.LookupId(strconv.FormatUint(uint64(s.who.uid), 10)); err == nil {
			env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") })
			env = append(env, "HOME="+u.HomeDir)
		}
	}
	return env
}

// become executes the server in this process, which sockets and watchdog are
// for.
func become(environ, args []string) error {
	self := strconv.Itoa(os.Getpid())
	var program string
	var env []string
	for _, e := range environ {
		switch name, value, _ := strings.Cut(e, "="); name {
		case stageVariable:
			program = value
		case "LISTEN_PID", "WATCHDOG_PID":
			env = append(env, name+"="+self)
		default:
			env = append(env, e)
		}
	}
	return &os.PathError{Op: "exec", Path: program, Err: syscall.Exec(program, append([]string{serverName}, args...), env)}
}

// reap takes in everybody who has ended, and tells how the child did.
func reap(child int) (status int, ended bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil || pid <= 0:
			return status, ended
		case pid == child && ws.Signaled():
			status, ended = 128+int(ws.Signal()), true
		case pid == child && ws.Exited():
			status, ended = ws.ExitStatus(), true
		}
	}
}
