// Package loader is staprun: it verifies a module, inserts it, tells it who the
// user is, gives up every privilege and becomes stapio.
//
// It runs setuid root for users who are not. What it reads of theirs it reads
// as them (setfsuid(2), without capabilities), once, into private memory; the
// verdict, the new name and what the kernel gets are all of that memory. It runs no
// program but the stapio of a fixed, root-owned place, as the invoking user. It
// writes nothing but the lock and whose the loaded modules are.
//
// The order of things (loader-relay 1.3):
//
//	options -> euid 0? -> [-d: remove, exit] -> read module and signature
//	-> decide, one audit line -> [-R: new name] -> seal -> insert
//	-> credentials, relocations, time zone, remote id -> drop privileges -> exec stapio
//
// With -A what lies between is opening and closing the module's control channel.
// Root who goes on as another user does not become stapio: another.go.
//
// Unlike upstream it changes no setting of the host: it mounts nothing (modules
// have their files in procfs since 4.5; one built for debugfs needs it mounted),
// and leaves kptr_restrict and kprobes-optimization as they are (loader-relay 5.1
// and 5.6).
package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/invocation"
	"stapbox/core/report"
	"stapbox/core/runopts"
	"stapbox/core/version"
)

// Exit statuses (loader-relay 13).
const (
	exitOK          = 0
	exitError       = 1
	exitNotAttached = 234 // -d: no such module, not a stap module, or in use
	exitRefused     = 255 // permission refused; -d: not the caller's module
)

// loader is one run of staprun.
type loader struct {
	*invocation.Invocation
	opts    runopts.Options
	report  *report.Printer
	release string // of the running kernel
	limits  map[int]unix.Rlimit
	params  string // for finit_module(2)
	policy  policy
	root    bool  // the caller is root
	late    []int // users for whom root's -d has waited in vain
}

// Main runs staprun.
func Main(_ context.Context, inv *invocation.Invocation) int {
	// Credentials and file system ids belong to threads; exec keeps this one's.
	runtime.LockOSThread()
	// First of all: the Go runtime ends the process when it has no descriptor left
	// for its own.
	limits := raiseLimits()
	l := &loader{Invocation: inv, release: hostpaths.KernelRelease(), limits: limits, root: os.Getuid() == 0, policy: defaultPolicy()}
	opts, err := runopts.Parse(inv.Args)
	l.opts = opts
	l.report = report.New(inv.Stderr, opts.Color, inv.LookupEnv)
	if err == nil {
		err = l.checkOptions()
	}
	if err != nil {
		var g runopts.GetoptError
		if errors.As(err, &g) {
			fmt.Fprintf(inv.Stderr, "%s: %v\n", inv.Name, err)
		} else {
			l.report.Errorf("%v", err)
		}
		if errors.Is(err, runopts.ErrUsage) {
			io.WriteString(inv.Stdout, runopts.Usage(inv.Name, l.release))
		}
		return exitError
	}
	switch {
	case opts.Help:
		io.WriteString(inv.Stdout, runopts.Usage(inv.Name, l.release))
		return exitOK
	case opts.Version:
		fmt.Fprintf(inv.Stdout, "Systemtap module loader/runner (stapbox %s, SystemTap protocol %s)\n", version.Version, version.Protocol)
		return exitOK
	}
	if status, ok := l.checkRoot(); !ok {
		return status
	}
	if opts.Uprobes {
		l.report.Warningf("Ignoring -u: the kernel has uprobes built in.")
	}
	switch {
	case opts.Delete:
		return l.remove()
	case opts.Attach:
		return l.attach()
	}
	return l.load()
}

// checkOptions checks what only the loader acts on. Everything else of the
// command line is stapio's, which reads it as the user.
func (l *loader) checkOptions() (err error) {
	switch {
	case l.opts.Help || l.opts.Version:
		return nil
	case l.opts.RelayFD >= 0:
		return errors.New("Relay basedir -F option is invalid for staprun")
	case l.opts.Module == "":
		return runopts.UsageErrorf("Need a module name or path to load.")
	case l.opts.Delete && l.opts.Module == everything:
		return nil
	}
	if l.params, err = joinParams(l.opts.BufferMB, l.opts.Params); err != nil {
		return err
	}
	_, err = runopts.ModuleName(l.opts.Module)
	return err
}

// checkRoot refuses to go on without the rights of the host's root. Inside a
// user namespace uid 0 is somebody else: the kernel ignores the setuid bit
// there and would refuse the module.
func (l *loader) checkRoot() (status int, ok bool) {
	if os.Geteuid() != 0 {
		l.report.Errorf("The effective user ID of staprun must be set to the root user.\n  Check permissions on staprun and ensure it is a setuid root program.")
		if v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && v == 1 {
			l.report.Hintf("this process has no_new_privs set (a container or service setting), which makes the setuid bit ineffective")
		}
		return exitError, false
	}
	m, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		l.report.Errorf("Which user namespace this is cannot be seen: %v", err)
		return exitRefused, false
	}
	if !initialNamespace(string(m)) {
		l.report.Errorf("staprun cannot load modules from inside a user namespace.")
		return exitRefused, false
	}
	return exitOK, true
}

// initialNamespace reads /proc/self/uid_map (user_namespaces(7)).
func initialNamespace(uidMap string) bool {
	return strings.Join(strings.Fields(uidMap), " ") == "0 0 4294967295"
}

// raiseLimits lifts the limits that could stop the copy of a module half way;
// dropPrivileges puts them back for what comes after.
func raiseLimits() map[int]unix.Rlimit {
	limits := map[int]unix.Rlimit{}
	for _, r := range []int{unix.RLIMIT_FSIZE, unix.RLIMIT_NOFILE, unix.RLIMIT_CPU, unix.RLIMIT_DATA, unix.RLIMIT_AS, unix.RLIMIT_NPROC} {
		var old unix.Rlimit
		if unix.Getrlimit(r, &old) != nil {
			continue
		}
		lifted := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		if r == unix.RLIMIT_NOFILE {
			lifted = unix.Rlimit{Cur: max(old.Cur, 1024), Max: max(old.Max, 1024)}
		}
		if unix.Setrlimit(r, &lifted) == nil {
			limits[r] = old
		}
	}
	return limits
}

// enoughFiles is what stapio needs to be able to start the module and to have it
// removed, so it gets that many descriptors also from a caller with fewer.
const enoughFiles = 64

func (l *loader) restoreLimits() {
	for r, old := range l.limits {
		if r == unix.RLIMIT_NOFILE {
			old = unix.Rlimit{Cur: max(old.Cur, enoughFiles), Max: max(old.Max, enoughFiles)}
		}
		unix.Setrlimit(r, &old)
	}
}

// dropPrivileges makes the process the invoking user's for good, on all threads.
func (l *loader) dropPrivileges() error {
	l.restoreLimits()
	uid, gid := os.Getuid(), os.Getgid()
	if err := unix.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("giving up the group: %w", err)
	}
	if err := unix.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("giving up root: %w", err)
	}
	if uid != 0 {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return fmt.Errorf("clearing ambient capabilities: %w", err)
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return fmt.Errorf("dropping capabilities: %w", err)
		}
		if err := unix.Setresuid(-1, 0, -1); err == nil {
			return errors.New("giving up root: it can be taken back")
		}
	}
	return nil
}

// removedFromEnvironment never reach stapio; privileged ones only when staprun
// was not started by root itself.
var (
	removedFromEnvironment  = []string{"IFS", "CDPATH", "ENV", "BASH_ENV"}
	privilegedInEnvironment = []string{"SYSTEMTAP_STAPRUN", "SYSTEMTAP_STAPIO", "SYSTEMTAP_RUNTIME"}
)

// environment is what stapio gets: the user's own, as stapio is his own again.
func (l *loader) environment(module string) []string {
	drop := map[string]bool{"SYSTEMTAP_MODULE": true, version.Handover: true, version.Interrupted: true}
	for _, n := range removedFromEnvironment {
		drop[n] = true
	}
	if !l.root {
		for _, n := range privilegedInEnvironment {
			drop[n] = true
		}
	}
	var env []string
	for _, e := range l.Environ {
		if name, _, ok := strings.Cut(e, "="); ok && !drop[name] {
			env = append(env, e)
		}
	}
	if _, ok := l.LookupEnv("SYSTEMTAP_VERBOSE"); !ok {
		env = append(env, fmt.Sprintf("SYSTEMTAP_VERBOSE=%d", l.opts.Verbose))
	}
	return append(env, "SYSTEMTAP_MODULE="+module, version.Handover+"="+version.Version)
}

// relayProgram is the stapio to hand over to. Root may name another; for
// everybody else it is the one at the fixed place, which must be root's alone.
func (l *loader) relayProgram() (string, error) {
	path := hostpaths.Stapio()
	if p := l.Getenv("SYSTEMTAP_STAPIO"); p != "" && l.root {
		path = p
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "", fmt.Errorf("%q is not a regular file", path)
	case st.Uid != 0 || st.Mode&0o022 != 0:
		return "", fmt.Errorf("%q must be owned by root and writable by root only", path)
	case st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0:
		return "", fmt.Errorf("%q must not be setuid or setgid", path)
	}
	return path, nil
}

// handOver replaces this process by stapio, with the control directory's
// descriptor as its -F. It returns only if that fails.
func (l *loader) handOver(program, module string, dir *os.File, stop *interrupts) error {
	fd := int(dir.Fd())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("passing the control directory on: %w", err)
	}
	argv := append([]string{program}, l.opts.Relay(fd, module)...)
	if l.opts.Verbose >= 2 {
		fmt.Fprintf(l.Stderr, "execing: %s \n", strings.Join(argv, " "))
	}
	// The user may have blocked signals; stapio starts afresh.
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return fmt.Errorf("unblocking signals: %w", err)
	}
	environ := l.environment(module)
	if stop.handOver(true) {
		environ = append(environ, version.Interrupted+"=1")
	}
	if l.Umask >= 0 {
		unix.Umask(l.Umask)
	}
	err := unix.Exec(program, argv, environ)
	runtime.KeepAlive(dir) // or its finalizer may close the descriptor before
	return &os.PathError{Op: "exec", Path: program, Err: err}
}
