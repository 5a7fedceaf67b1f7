package loader

import (
	"errors"
	"io/fs"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"

	"stapbox/core/kmod"
	"stapbox/core/runopts"
	"stapbox/core/transport"
)

// remove is staprun -d NAME. That the caller may open the module's control
// channel with his own ids proves that it is a SystemTap module, that it is his,
// and that nobody is attached to it (CVE-2010-4171).
func (l *loader) remove() int {
	if name, err := unix.BytePtrFromString("staprun-d"); err == nil {
		unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
	}
	name, err := runopts.ModuleName(l.opts.Module)
	if err != nil {
		l.report.Errorf("%v", err)
		return exitError
	}
	dir, err := transport.OpenDir(name)
	if err != nil {
		l.report.Errorf("Cannot attach to module %s control channel; not running?", name)
		l.report.Errorf("'%s' is not a zombie systemtap module.", name)
		return exitNotAttached
	}
	defer dir.Close()
	ch, err := transport.OpenChannel(dir)
	if err != nil {
		if errors.Is(err, transport.ErrAttached) {
			l.report.Errorf("Another process is attached to module %s.", name)
		}
		l.report.Errorf("'%s' is not a zombie systemtap module.", name)
		if errors.Is(err, fs.ErrPermission) {
			return exitRefused
		}
		return exitNotAttached
	}
	// As long as the channel is open nobody can remove the module. Before it is
	// closed the caller loses the means to stop this process, and insertions
	// wait: what is removed is what was proven.
	signal.Ignore(unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	if err := unix.Setresuid(0, 0, 0); err != nil {
		ch.Close()
		l.report.Errorf("Couldn't remove module '%s': %v.", name, err)
		return exitError
	}
	unlock, err := lockInsertions()
	if err != nil {
		ch.Close()
		l.report.Errorf("Couldn't remove module '%s': %v.", name, err)
		return exitError
	}
	defer unlock()
	ch.Close()
	if err := kmod.Remove(name); err != nil {
		l.report.Errorf("Couldn't remove module '%s': %v.", name, err)
		return exitError
	}
	return exitOK
}
