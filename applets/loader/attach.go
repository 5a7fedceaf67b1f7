package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"stapbox/core/runopts"
	"stapbox/core/transport"
)

// attach is staprun -A NAME: it proves that the module is the caller's and that
// nobody is attached, and becomes stapio. Nothing is sent to the module, which
// knows everything from when it was loaded. For root, stapio runs as the module's
// owner, since what the script has stapio run, and the files stapio writes, are
// the owner's doing (decision L8).
func (l *loader) attach() int {
	name, err := runopts.ModuleName(l.opts.Module)
	if err != nil {
		l.report.Errorf("%v", err)
		return exitError
	}
	program, err := l.relayProgram()
	if err != nil {
		l.report.Errorf("The relay program cannot be used: %v", err)
		return exitError
	}
	d := decision{Action: "attach", UID: os.Getuid(), Module: name, Rule: "owner"}
	dir, owner, err := provenDir(name)
	if err != nil {
		d.Why = err.Error()
		audit(d)
		if errors.Is(err, transport.ErrAttached) {
			l.report.Errorf("Another process is attached to module %s.", name)
		}
		l.report.Errorf("Cannot attach to module %s control channel; not running?", name)
		return exitError
	}
	defer dir.Close()
	var who *another
	if os.Getuid() == 0 && owner.Uid != 0 {
		if who, err = theUser(int(owner.Uid), int(owner.Gid)); err != nil {
			l.report.Errorf("Couldn't go on as the owner of module %s: %v", name, err)
			return exitError
		}
		d.As = who.uid
	}
	d.Allow = true
	audit(d)
	stop := catch(l.ended)
	l.Handles(caught()...)
	stop.inserting()
	if who != nil {
		status, err := l.delegate(program, name, dir, who, stop)
		if err != nil {
			l.report.Errorf("Couldn't go on as the owner of module %s: %v", name, err)
		}
		return status
	}
	if err := l.dropPrivileges(); err != nil {
		l.report.Errorf("%v", err)
		return exitError
	}
	l.report.Errorf("%v", l.handOver(program, name, dir, stop))
	return exitError
}

// provenDir opens a module's control directory after opening and closing its
// control channel with the caller's own ids, and gives the channel's owner. Who is
// not root has to be that owner: what the script has stapio run would be run by the
// caller, and the owner of a channel, who may give it any mode, may have loaded the
// module under a name that others attach to.
func provenDir(name string) (*os.File, unix.Stat_t, error) {
	var owner unix.Stat_t
	dir, err := transport.OpenDir(name)
	if err != nil {
		return nil, owner, err
	}
	err = unix.Fstatat(int(dir.Fd()), ".cmd", &owner, unix.AT_SYMLINK_NOFOLLOW)
	if uid := os.Getuid(); err == nil && uid != 0 && uid != int(owner.Uid) {
		err = fmt.Errorf("it belongs to user %d: %w", owner.Uid, fs.ErrPermission)
	}
	var ch *transport.Channel
	if err == nil {
		ch, err = transport.OpenChannel(dir)
	}
	if err != nil {
		dir.Close()
		return nil, owner, fmt.Errorf("attaching: %w", err)
	}
	ch.Close()
	return dir, owner, nil
}
