package ownfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LockName is the name of a directory's lock file where it has no older one.
const LockName = ".lock"

// ErrLocked says that another process kept a lock for longer than it was waited
// for. Nothing was done.
var ErrLocked = errors.New("another process keeps the lock")

// lockPause is between two tries to get a lock.
const lockPause = 5 * time.Millisecond

// Lock takes the lock file in an open directory, which is held until the file is
// closed. It waits for others until ctx is done and, if limit is not 0, no longer
// than that.
//
// Whoever may open a file can lock it, the directory itself too if it can be read
// (flock(2)). So what is locked is a file that only the owner of the directory
// may open.
func Lock(ctx context.Context, dir *os.File, name string, limit time.Duration) (*os.File, error) {
	f, err := OpenLock(dir, name)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			err = &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		case limit > 0 && time.Since(start) >= limit:
			err = fmt.Errorf("%w %q%s", ErrLocked, f.Name(), Holder(f))
		case ctx.Err() != nil:
			err = fmt.Errorf("waiting for the lock %q%s: %w", f.Name(), Holder(f), context.Cause(ctx))
		default:
			time.Sleep(lockPause)
			continue
		}
		f.Close()
		return nil, err
	}
}

// OpenLock opens the lock file in an open directory, and makes it. In another
// user's directory it may be anything by now, a link to a file of root's for
// example: only a file that this call has made is given to the directory's owner,
// and one that was there must be his already.
func OpenLock(dir *os.File, name string) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	fail := func(err error) (*os.File, error) { return nil, &os.PathError{Op: "open", Path: path, Err: err} }
	var owner, st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &owner); err != nil {
		return fail(err)
	}
	const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
	made := err == nil
	if err == unix.EEXIST {
		fd, err = unix.Openat(int(dir.Fd()), name, flags, 0)
	}
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), path)
	if made && os.Geteuid() == 0 && owner.Uid != 0 {
		err = f.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errors.New("a lock must be a regular file")
	case st.Nlink != 1:
		err = fmt.Errorf("a lock must have one name, this file has %d", st.Nlink)
	case st.Uid != owner.Uid:
		err = fmt.Errorf("a lock must belong to the owner of its directory, user id %d, and this one is of %d", owner.Uid, st.Uid)
	case st.Mode&0o077 != 0:
		err = f.Chmod(0o600)
	}
	if err != nil {
		f.Close()
		return fail(err)
	}
	return f, nil
}

// Holder tells which process has locked an open file: ", process PID (NAME)", or
// nothing where that cannot be seen.
func Holder(f *os.File) string {
	var st unix.Stat_t
	text, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Fstat(int(f.Fd()), &st) != nil {
		return ""
	}
	pid := holder(string(text), fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino))
	if pid <= 0 {
		return ""
	}
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return fmt.Sprintf(", process %d", pid)
	}
	return fmt.Sprintf(", process %d (%s)", pid, strings.TrimSpace(string(name)))
}

// holder finds the process in /proc/locks, lines "1: FLOCK ADVISORY WRITE PID
// MAJOR:MINOR:INODE START END" (proc_locks(5)); waiters have "->" after the number.
func holder(locks, file string) int {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line)
		if len(f) >= 6 && f[1] == "FLOCK" && f[5] == file {
			if pid, err := strconv.Atoi(f[4]); err == nil {
				return pid
			}
		}
	}
	return 0
}
