package service

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/ownfile"
)

// The directory of running servers (STAT_PATH) is shared with the script of
// SystemTap, which takes every visible file for a server and knows no other
// variables than those of Spec.Format:
//
//	PID.stat    the server that was started as process PID
//	.PID.json   what else is known of it: Facts
//	.lock       held by who changes something (flock)
//
// Other names are left alone. Files are written under another name and renamed.
// The facts belong to the status file of the time they note: another manager may
// have replaced that since.

// Facts are what is known of a server that this manager started.
type Facts struct {
	Port        int       `json:"port"`
	Started     time.Time `json:"started"`
	StartTime   uint64    `json:"start_time"`  // of the process, in ticks since the boot
	Fingerprint string    `json:"sha256"`      // of its first certificate
	Written     time.Time `json:"status_time"` // mtime of PID.stat
}

// Running is a server with a status file. Whether it lives Alive says.
type Running struct {
	Spec
	PID   int
	Facts Facts
	// Owner is the user id that the status file belongs to. The directory is the
	// servers' user's to write, so for root a file of another than root is a claim
	// of that user.
	Owner int
}

// Dir is a directory of running servers.
type Dir struct {
	Path string
	Proc string // where processes are, "/proc"
}

// Alive reports whether the process is there, is a server, and is not another
// one that got the number later.
func (d Dir) Alive(r *Running) bool {
	p, err := Process(d.Proc, r.PID)
	return err == nil && p.Server() && (r.Facts.StartTime == 0 || r.Facts.StartTime == p.Start)
}

// Read reads the directory: the servers in the order of their numbers, and what
// could not be read. A directory that is not there has none.
func (d Dir) Read() ([]*Running, []error) {
	entries, err := os.ReadDir(d.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{err}
	}
	var pids []int
	for _, e := range entries {
		word, ok := strings.CutSuffix(e.Name(), ".stat")
		pid, number := ParsePID(word)
		if ok && number {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	var list []*Running
	var bad []error
	for _, pid := range pids {
		r, err := d.read(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist): // stopped meanwhile
		case err != nil:
			bad = append(bad, err)
		default:
			list = append(list, r)
		}
	}
	return list, bad
}

func (d Dir) file(pid int) string { return filepath.Join(d.Path, strconv.Itoa(pid)+".stat") }

func (d Dir) facts(pid int) string { return filepath.Join(d.Path, "."+strconv.Itoa(pid)+".json") }

func (d Dir) read(pid int) (*Running, error) {
	data, st, err := readFile(d.file(pid), unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	r := &Running{PID: pid, Owner: -1}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		r.Owner = int(sys.Uid)
	}
	if r.Spec, err = ParseSpec(data, d.file(pid), nil); err != nil {
		return nil, err
	}
	if r.Nickname == "" {
		r.Nickname = strconv.Itoa(pid)
	}
	if data, _, err := readFile(d.facts(pid), unix.O_NOFOLLOW); err == nil {
		r.Facts, _ = ParseFacts(data, st.ModTime())
	}
	return r, nil
}

// ParseFacts reads facts, if they are those of a status file of this time.
func ParseFacts(data []byte, written time.Time) (Facts, error) {
	var f Facts
	if err := json.Unmarshal(data, &f); err != nil {
		return Facts{}, err
	}
	if !f.Written.Equal(written) {
		return Facts{}, errors.New("the facts are of another server")
	}
	if f.Port < 0 || f.Port > 65535 {
		return Facts{}, fmt.Errorf("port %d", f.Port)
	}
	return f, nil
}

// Write records a server.
func (d Dir) Write(r *Running) error {
	if err := d.write(d.file(r.PID), r.Format()); err != nil {
		return fmt.Errorf("recording server %d: %w", r.PID, err)
	}
	st, err := os.Lstat(d.file(r.PID))
	if err == nil {
		r.Facts.Written = st.ModTime()
		var data []byte
		if data, err = json.Marshal(r.Facts); err == nil {
			err = d.write(d.facts(r.PID), append(data, '\n'))
		}
	}
	if err != nil {
		os.Remove(d.file(r.PID))
		return fmt.Errorf("recording server %d: %w", r.PID, err)
	}
	return nil
}

func (d Dir) write(path string, data []byte) error {
	tmp := filepath.Join(d.Path, ".tmp-"+rand.Text())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// Remove forgets a server.
func (d Dir) Remove(pid int) error {
	err := os.Remove(d.facts(pid))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.Remove(d.file(pid))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Tidy removes the facts of servers that another manager has forgotten. The
// caller has the lock.
func (d Dir) Tidy() {
	entries, _ := os.ReadDir(d.Path)
	for _, e := range entries {
		word, dot := strings.CutPrefix(e.Name(), ".")
		word, ok := strings.CutSuffix(word, ".json")
		if pid, number := ParsePID(word); dot && ok && number {
			if _, err := os.Lstat(d.file(pid)); errors.Is(err, fs.ErrNotExist) {
				os.Remove(d.facts(pid))
			}
		}
	}
}

// ErrLocked says that somebody else has the lock.
var ErrLocked = errors.New("another manager is at work")

// Lock keeps other managers out until the function it returns is called. While
// somebody else has the lock wait says, again and again, whether to wait for that.
// Whoever can open the file can keep it locked: it is for root and for who owns
// the directory.
func (d Dir) Lock(wait func() bool) (func(), error) {
	f, err := d.openLock()
	for err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err == unix.EWOULDBLOCK {
			if !wait() {
				f.Close()
				return nil, ErrLocked
			}
			time.Sleep(20 * time.Millisecond)
			err = nil
		}
	}
	if f != nil {
		f.Close()
	}
	return nil, fmt.Errorf("locking %q: %w", d.Path, err)
}

func (d Dir) openLock() (*os.File, error) {
	dir, err := os.Open(d.Path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return ownfile.OpenLock(dir, ownfile.LockName)
}
