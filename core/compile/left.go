package compile

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Names of request directories. Those that are kept (-k) nobody removes.
const (
	requestDir = "stap-server."
	keptDir    = "stap-server-kept."
)

// leftTime is how old a directory is at least that somebody left: between making
// and locking it there is a moment.
const leftTime = time.Minute

// makeDir makes a request directory. While lock is open it is in use.
func (s *Service) makeDir() (dir string, lock *os.File, err error) {
	name := requestDir
	if s.Keep {
		name = keptDir
	}
	if dir, err = os.MkdirTemp(s.TempDir, name); err != nil {
		return "", nil, fmt.Errorf("making a request directory: %w", err)
	}
	if lock, err = lockDir(dir); err != nil {
		os.Remove(dir)
		return "", nil, fmt.Errorf("making a request directory: %w", err)
	}
	return dir, lock, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// RemoveLeft removes request directories of a server of this user that was
// killed.
func (s *Service) RemoveLeft() {
	list, err := filepath.Glob(filepath.Join(s.TempDir, requestDir+"*"))
	if err != nil {
		return // the name of TempDir is a bad pattern
	}
	for _, dir := range list {
		lock, err := lockDir(dir)
		if err != nil {
			continue // in use, or somebody else's
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(lock.Fd()), &st); err == nil && int(st.Uid) == os.Geteuid() && time.Since(time.Unix(st.Mtim.Unix())) > leftTime {
			if err := os.RemoveAll(dir); err != nil {
				s.Log("Removing %s, which a server left that was killed: %v", dir, err)
			} else {
				s.Log("Removed %s, which a server left that was killed", dir)
			}
		}
		lock.Close()
	}
}
