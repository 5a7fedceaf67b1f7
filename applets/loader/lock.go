package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
)

// The lock file carries two kinds of locks that do not see each other: the whole
// file's (flock(2)), which all insertions and removals share, and one of a single
// byte for each user id (F_OFD_SETLK of fcntl(2), Linux 3.15).
//
// The user's is held from counting his modules until the new one has been
// introduced or taken back, and while one of his is proven and removed. Nobody
// else but root can remove a user's module, so meanwhile its name stays its own:
// otherwise he could stop staprun behind the insertion, remove the module with
// another staprun, wait until the name is somebody else's, and let the first one
// take that one back.

// lockWait is how long an insertion waits for others. A user may stop his own
// staprun while it holds the lock: that must not stop everybody else's. Going on
// without the lock is safe, only less tidy: modules take "exists" for success.
const lockWait = 3 * time.Second

// userLockWait is how long is waited for the same user's, which is longer than
// any insertion takes. Nobody goes on without: whoever stops his own staprun
// stops only his own others. Root, who may do anything, does go on, after lockWait.
const userLockWait = 20 * time.Second

// lockInsertions waits for the lock, at most for lockWait.
func lockInsertions() (unlock func(), err error) {
	unlock, _, err = lock(lockWait, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	return unlock, err
}

// lockUser waits for the lock of a user.
func lockUser(uid int) (unlock func(), err error) {
	wait := userLockWait
	if os.Getuid() == 0 {
		wait = lockWait
	}
	unlock, taken, err := lock(wait, func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(uid), Len: 1})
	})
	if err == nil && !taken && os.Getuid() != 0 {
		unlock()
		return nil, fmt.Errorf("another staprun of user %d, perhaps a stopped one, has been at work for %d seconds", uid, int(userLockWait.Seconds()))
	}
	return unlock, err
}

// lock tries to take a lock on the lock file until it is taken or the time is
// over.
func lock(wait time.Duration, try func(fd int) error) (unlock func(), taken bool, err error) {
	path := hostpaths.LoadLock()
	dir := path[:strings.LastIndex(path, "/")]
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, false, err
	}
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	unlock = func() { unix.Close(fd) }
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		switch err := try(fd); err {
		case nil:
			return unlock, true, nil
		case unix.EWOULDBLOCK, unix.EACCES, unix.EINTR:
		default:
			unlock()
			return nil, false, &os.PathError{Op: "lock", Path: path, Err: err}
		}
	}
	return unlock, false, nil
}
