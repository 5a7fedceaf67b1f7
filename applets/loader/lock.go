package loader

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
)

// The lock file carries two kinds of locks that do not see each other: the whole
// file's (flock(2)), which all insertions and removals share, and those of a single
// byte (F_OFD_SETLK of fcntl(2), Linux 3.15): one for each user id, and one for the
// removals of each name.
//
// The user's is held from counting his modules until the new one has been
// introduced or taken back, and while one of his is proven and removed. Meanwhile
// nobody but root can remove the new module: an id that its user gave the control
// file to waits until nobody has this lock (lockRemoval), without taking it: whoever
// has a lock can stop, and would keep its user from everything. So the name stays the
// user's own. Otherwise he could stop staprun behind the insertion, remove the module
// with another staprun, wait until the name is somebody else's, and let the first one
// take that one back.
//
// Who is to have a lock waits inside the system call, so that the kernel lets waiters
// in the order in which they came.

// lockWait is how long an insertion waits for others. Going on without the lock is
// safe, only less tidy: modules take "exists" for success.
const lockWait = 3 * time.Second

// userLockWait is how long is waited for the same user's, which is longer than as
// many insertions take as he may have modules. Nobody goes on without: whoever
// stops his own staprun stops only his own others. Root, who may do anything, does
// go on, after lockWait.
const userLockWait = 60 * time.Second

// idleTime is how long the holder of the lock may do nothing before others go on
// without it: a user can freeze his own staprun inside the kernel's insertion. For
// one that he has stopped nobody waits.
const idleTime = 200 * time.Millisecond

// lockInsertions waits for the lock, at most for lockWait, and no longer than its
// holder is at work. Where no lock file can be made, as on a read-only /run, there
// is nothing to wait for.
//
// The holder writes the id of its thread into the file. One that is stopped before
// counts as idle.
func lockInsertions() (unlock func()) {
	fd, err := openLock()
	if err != nil {
		return func() {}
	}
	release := func() { unix.Close(fd) }
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		var taken bool
		if release, taken = behind(fd); !taken {
			return release
		}
	}
	text := strconv.Itoa(unix.Gettid()) + "\n"
	unix.Pwrite(fd, []byte(text), 0)
	return sync.OnceFunc(func() {
		unix.Ftruncate(fd, 0)
		release()
	})
}

// behind waits for the lock behind whoever holds it, and watches him.
func behind(fd int) (release func(), taken bool) {
	given := make(chan struct{})
	giveUp := make(chan struct{})
	go func() {
		since := time.Now()
		for {
			select {
			case <-given:
				return
			case <-time.After(10 * time.Millisecond):
			}
			switch s := holderState(fd); {
			case s == stopped || s == idling && time.Since(since) > idleTime:
				close(giveUp)
				return
			case s == working:
				since = time.Now()
			}
		}
	}()
	release, taken, err := wait(fd, lockWait, giveUp, func() error { return unix.Flock(fd, unix.LOCK_EX) })
	close(given)
	if err != nil {
		return func() {}, false
	}
	return release, taken
}

// holding is what the holder of the lock does.
type holding int

const (
	idling  holding = iota // it sleeps, or is not known
	working                // it runs, or waits for the kernel
	stopped
)

// holderState looks at the thread that a lock file names.
func holderState(fd int) holding {
	b := make([]byte, 16)
	n, err := unix.Pread(fd, b, 0)
	if err != nil || n <= 0 {
		return idling
	}
	tid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return idling
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/stat")
	if err != nil {
		return idling // it has just ended
	}
	return stateOf(string(stat))
}

// stateOf reads /proc/TID/stat: "tid (name) state ...", where a name may have
// parentheses in it (proc_pid_stat(5)).
func stateOf(stat string) holding {
	rest := stat[strings.LastIndexByte(stat, ')')+1:]
	if len(rest) < 2 || rest[0] != ' ' {
		return idling
	}
	switch rest[1] {
	case 'T', 't':
		return stopped
	case 'R', 'D':
		return working
	}
	return idling
}

// errNoLock says that nobody can have a lock file: then no user's insertion is under
// way.
var errNoLock = errors.New("the lock file cannot be opened")

// noLockFile reports whether an error of openLock is one that everybody gets.
func noLockFile(err error) bool {
	return slices.ContainsFunc([]error{unix.EROFS, unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.EPERM}, func(e error) bool { return errors.Is(err, e) })
}

// lockUser waits for the lock of a user. Root goes on without it in the end, and is
// told so.
func lockUser(uid int) (unlock func(), taken bool, err error) {
	limit := userLockWait
	if os.Getuid() == 0 {
		limit = lockWait
	}
	fd, err := openLock()
	if err != nil {
		if os.Getuid() == 0 {
			return func() {}, false, nil
		}
		if noLockFile(err) {
			err = fmt.Errorf("%w: %w", errNoLock, err)
		}
		return nil, false, err
	}
	unlock, taken, err = wait(fd, limit, nil, func() error { return byteLock(fd, unix.F_OFD_SETLKW, int64(uid)) })
	if err == nil && !taken && os.Getuid() != 0 {
		return nil, false, fmt.Errorf("another staprun of user %d, perhaps a stopped one, has been at work for %d seconds", uid, int(userLockWait.Seconds()))
	}
	return unlock, taken, err
}

// tryUser takes the lock of a user if nobody has it.
func tryUser(uid int) (unlock func(), taken bool) {
	fd, err := openLock()
	if err != nil {
		return nil, false
	}
	if byteLock(fd, unix.F_OFD_SETLK, int64(uid)) != nil {
		unix.Close(fd)
		return nil, false
	}
	return func() { unix.Close(fd) }, true
}

// atWork reports whether somebody has the lock of a user.
func atWork(uid int) (bool, error) {
	fd, err := openLock()
	if err != nil {
		if noLockFile(err) {
			return false, nil
		}
		return false, err
	}
	defer unix.Close(fd)
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(uid), Len: 1}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock); err != nil {
		return false, &os.PathError{Op: "lock", Path: hostpaths.LoadLock(), Err: err}
	}
	return lock.Type != unix.F_UNLCK, nil
}

// lockName waits for other removals of a module's name, at most for lockWait.
func lockName(name string) (unlock func(), taken bool, err error) {
	fd, err := openLock()
	if err != nil {
		if noLockFile(err) {
			return func() {}, true, nil // there is none under way either
		}
		return nil, false, err
	}
	return wait(fd, lockWait, nil, func() error { return byteLock(fd, unix.F_OFD_SETLKW, nameByte(name)) })
}

// nameByte is where the lock of a name is: beyond all user ids, and where nobody finds
// another name for the same byte.
func nameByte(name string) int64 {
	sum := sha256.Sum256([]byte(name))
	return 1<<62 | int64(binary.BigEndian.Uint64(sum[:])>>2)
}

func byteLock(fd, command int, at int64) error {
	return unix.FcntlFlock(uintptr(fd), command, &unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1})
}

// openLock opens the lock file, and makes it.
func openLock() (fd int, err error) {
	path := hostpaths.LoadLock()
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return -1, err
	}
	fd, err = unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// wait takes a lock in a thread of its own and waits for that until the limit, or
// until it is told to give up. Without the lock the thread stays behind until it
// has it, and drops it then, or until exec(2) ends it. The descriptor belongs to
// unlock, or to the thread.
func wait(fd int, limit time.Duration, giveUp <-chan struct{}, take func() error) (unlock func(), taken bool, err error) {
	got := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and ends with it
		for {
			err := take()
			if err != unix.EINTR {
				got <- err
				return
			}
		}
	}()
	over := time.NewTimer(limit)
	defer over.Stop()
	select {
	case err := <-got:
		if err != nil {
			unix.Close(fd)
			return nil, false, &os.PathError{Op: "lock", Path: hostpaths.LoadLock(), Err: err}
		}
		return sync.OnceFunc(func() { unix.Close(fd) }), true, nil
	case <-over.C:
	case <-giveUp:
	}
	go func() {
		<-got
		unix.Close(fd)
	}()
	return func() {}, false, nil
}
