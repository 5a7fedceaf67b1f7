package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"stapbox/core/kmod"
	"stapbox/core/runopts"
	"stapbox/core/transport"
)

// everything is the NAME of staprun -d for all modules that may be removed.
const everything = "*"

// remove is staprun -d NAME.
func (l *loader) remove() int {
	if name, err := unix.BytePtrFromString("staprun-d"); err == nil {
		unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
	}
	if l.opts.Module == everything {
		return l.removeAll()
	}
	name, err := runopts.ModuleName(l.opts.Module)
	if err != nil {
		l.report.Errorf("%v", err)
		return exitError
	}
	uid := os.Getuid()
	switch err := l.removeModule(name); {
	case err == nil:
		return exitOK
	case errors.Is(err, errNotProven):
		if errors.Is(err, transport.ErrAttached) {
			l.report.Errorf("Another process is attached to module %s.", name)
		} else if !errors.Is(err, fs.ErrPermission) {
			l.report.Errorf("Cannot attach to module %s control channel; not running?", name)
		}
		l.report.Errorf("'%s' is not a zombie systemtap module.", name)
		if errors.Is(err, fs.ErrPermission) {
			return exitRefused
		}
		return exitNotAttached
	default:
		l.report.Errorf("Couldn't remove module '%s': %s.", name, kmod.Strerror(err))
		if errors.Is(err, unix.EAGAIN) {
			l.explainHold(uid, name)
		}
		return exitError
	}
}

// explainHold names the processes that have files of a module open, which holds
// it. Nothing is left to do that needs privilege: the caller sees what he may see.
func (l *loader) explainHold(uid int, names ...string) {
	if err := unix.Setresuid(uid, uid, uid); err != nil {
		l.report.Errorf("Giving up privilege: %v", err)
		return
	}
	for _, name := range names {
		if who := holders("/proc", name); len(who) > 0 {
			l.report.Hintf("files of module %s are open: %s", name, strings.Join(who, ", "))
		} else {
			l.report.Hintf("files of module %s are open in a process that you may not look into", name)
		}
	}
}

// holders lists the processes below proc that have files of a module open, as far
// as the caller may see their descriptors: process 123 ("sh").
func holders(proc, module string) (list []string) {
	links, err := filepath.Glob(filepath.Join(proc, "[1-9]*", "fd", "*"))
	if err != nil {
		return nil
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !slices.ContainsFunc(transport.Dirs, func(dir string) bool { return strings.HasPrefix(target, filepath.Join(dir, module)+"/") }) {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		comm, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue // it has ended
		}
		who := fmt.Sprintf("process %s (%q)", filepath.Base(process), strings.TrimSuffix(string(comm), "\n"))
		if !slices.Contains(list, who) {
			list = append(list, who)
		}
	}
	return list
}

// removeAll is staprun -d '*': every module in either place that proves to be the
// caller's and detached; of the others nothing is said without -v.
func (l *loader) removeAll() int {
	modules, err := kmod.List(transport.Dirs)
	if err != nil {
		l.report.Errorf("%v", err)
		return exitOK
	}
	uid := os.Getuid()
	var held []string
	for _, m := range modules {
		err := l.removeModule(m.Name)
		// The proof for the next one needs the caller's own id again.
		if back := unix.Setresuid(uid, 0, 0); back != nil {
			l.report.Errorf("Taking uid %d back: %v", uid, back)
			return exitOK
		}
		switch {
		case err == nil:
			fmt.Fprintf(l.Stdout, "Module %s removed.\n", m.Name)
		case !errors.Is(err, errNotProven):
			l.report.Errorf("Couldn't remove module '%s': %s.", m.Name, kmod.Strerror(err))
			if errors.Is(err, unix.EAGAIN) {
				held = append(held, m.Name)
			}
		case l.opts.Verbose > 0:
			fmt.Fprintf(l.Stderr, "Module %s is not removed: %v\n", m.Name, err)
		}
	}
	if len(held) > 0 {
		l.explainHold(uid, held...)
	}
	return exitOK
}

// errNotProven is wrapped by removeModule's errors when nothing has been done: the
// module is not there, not a SystemTap module, not the caller's, or in use.
var errNotProven = errors.New("not a detached module of the caller's")

// removeModule removes a module of the caller's. That its control channel is his, and
// that he may open it with his own ids, proves that it is a SystemTap module, that it
// is his, and that nobody is attached to it (CVE-2010-4171). Access alone proves
// nothing: the owner may give the channel any mode. Afterwards the real uid is 0.
func (l *loader) removeModule(name string) (err error) {
	giveBack := func() {}
	defer func() { giveBack() }() // when the removal is in the log
	d := decision{Action: "remove", UID: os.Getuid(), Module: name}
	defer func() {
		d.Allow, d.Rule = err == nil, "owner"
		if err != nil {
			d.Why = err.Error()
		}
		audit(d)
	}()
	dir, err := transport.OpenDir(name)
	if err != nil {
		return fmt.Errorf("%w: %v", errNotProven, err)
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), ".cmd", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%w: %w", errNotProven, &os.PathError{Op: "stat", Path: dir.Name() + "/.cmd", Err: err})
	}
	if d.UID != 0 && d.UID != int(st.Uid) {
		return fmt.Errorf("%w: it belongs to user %d: %w", errNotProven, st.Uid, fs.ErrPermission)
	}
	held, unlockRemoval, err := l.lockRemoval(d.UID, int(st.Uid), name)
	if err != nil {
		return err
	}
	defer unlockRemoval()
	ch, err := transport.OpenChannel(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotProven, err)
	}
	// As long as the channel is open nobody can remove the module. Before it is
	// closed neither the caller's signals nor the terminal's reach this process any
	// more, and insertions wait: what is removed is what was proven. Somebody with
	// a control group of his own can still freeze this process. The locks are held all
	// the while, so nobody but root can remove the module and free its name.
	giveBack = ignoreTerminal()
	if err := unix.Setresuid(0, 0, 0); err != nil {
		ch.Close()
		return err
	}
	unlock := lockInsertions()
	defer unlock()
	ch.Close()
	// This process may have been frozen, and root may have removed the module
	// meanwhile. The open directory tells: it is the proven module's, not that of
	// another one which took the name since.
	if err := unix.Faccessat(int(dir.Fd()), ".cmd", unix.F_OK, 0); err != nil {
		return fmt.Errorf("it has just been removed: %w", err)
	}
	if err := kmod.Remove(name); err != nil {
		return err
	}
	if held {
		disclaim(int(st.Uid), name)
	}
	if d.UID == 0 {
		disclaimAll(name)
	}
	return nil
}

// ofTerminal are the signals by which a terminal stops or ends a process, whatever its
// ids are.
var ofTerminal = []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}

// ignoreTerminal has these signals ignored until they are given back. Package os/signal
// leaves a signal ignored that was ignored once, so the kernel is asked itself, and
// has the Go runtime's handlers again afterwards.
func ignoreTerminal() (giveBack func()) {
	type action [4]uintptr // struct sigaction of <asm/signal.h>: the handler is first
	const ignore = 1       // SIG_IGN
	set := func(s unix.Signal, to, old *action) bool {
		_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
		return e == 0
	}
	before := map[unix.Signal]*action{}
	for _, s := range ofTerminal {
		old := new(action)
		if set(s, &action{ignore}, old) {
			before[s] = old
		}
	}
	return func() {
		for s, old := range before {
			set(s, old, nil)
		}
	}
}

// lockRemoval waits for the insertions and removals of whoever may have loaded a
// module: what another staprun knows about a name (lock.go) is to stay true.
//
// That is the owner of its control channel if he is known to have loaded it, and then
// nobody else is waited for: anybody may claim a name, and stop. An owner who is not
// may have got the channel from whoever did, who still has his lock, as when both are
// ids of one person's in a user namespace (newuidmap(1)). Such locks are waited for,
// not taken: the caller can stop this process. Whoever claims the name later cannot
// load it before the module is gone. Of two removals of a name, as by two ids to which
// the channel belonged one after the other, the second waits for the first.
//
// Root, who may do anything, waits for the owner only, not forever, and with -d '*' not
// again for each of his modules. The result says whether the owner's lock is held.
func (l *loader) lockRemoval(caller, owner int, name string) (held bool, unlock func(), err error) {
	var releases []func()
	free := func() {
		for _, release := range releases {
			release()
		}
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	release, taken, err := l.lockOwner(owner)
	if err != nil {
		return false, nil, err
	}
	releases = append(releases, release)
	other, alone, err := lockName(name)
	if err != nil {
		return false, nil, err
	}
	releases = append(releases, other)
	if !alone && caller != 0 {
		return false, nil, errors.New("another staprun is removing it")
	}
	if caller == 0 || confirmed(owner, name) {
		return taken, free, nil
	}
	others, err := claimants(owner, name)
	if err != nil {
		return false, nil, err
	}
	for deadline := time.Now().Add(lockWait); len(others) > 0; {
		busy, err := atWork(others[0])
		switch {
		case err != nil:
			return false, nil, err
		case !busy:
			others = others[1:]
			continue
		case time.Now().After(deadline):
			return false, nil, errors.New("another user's staprun, perhaps a stopped one, may have loaded it and is at work")
		}
		time.Sleep(10 * time.Millisecond)
	}
	return taken, free, nil
}

// lockOwner is lockUser for a removal: root waits for a user once.
func (l *loader) lockOwner(uid int) (unlock func(), taken bool, err error) {
	if slices.Contains(l.late, uid) {
		if unlock, taken = tryUser(uid); !taken {
			unlock = func() {}
		}
		return unlock, taken, nil
	}
	unlock, taken, err = lockUser(uid)
	switch {
	case errors.Is(err, errNoLock): // nobody's insertion is under way
		return func() {}, true, nil
	case err == nil && !taken:
		l.late = append(l.late, uid)
	}
	return unlock, taken, err
}
