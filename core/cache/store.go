package cache

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/ownfile"
)

const (
	lockName   = "lock"
	newPrefix  = ".new-"
	newTooOld  = time.Hour       // of a file nobody will finish
	lockTime   = 2 * time.Second // to wait for another process
	reserve    = 16              // a sixteenth of the cache is made free at a time
	maxLockTxt = 32
)

// ErrTooLarge says that an answer alone exceeds the cache.
var ErrTooLarge = errors.New("the answer is larger than the cache")

// ErrBusy says that another process held the lock for too long.
var ErrBusy = errors.New("another process holds the lock of the cache")

// Store is a cache. Its methods may be called from several goroutines.
type Store struct {
	root  *os.Root
	max   int64
	owner uint32

	mu sync.Mutex // among the goroutines of this process, as lock is among processes
}

// Entry is what a listing shows.
type Entry struct {
	Key  Key
	Size int64 // of the file
	Used time.Time
	Note Note
	Err  error // why the file is not an entry
}

// Open opens the cache of a server, and makes it where there is none. The
// directory must be the caller's and closed to others. max is in bytes.
func Open(dir string, max int64) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("making a cache: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making a cache: %w", err)
	}
	s, err := open(dir, max)
	if err != nil {
		return nil, err
	}
	if s.owner != uint32(os.Geteuid()) {
		s.Close()
		return nil, fmt.Errorf("cache %q belongs to uid %d", dir, s.owner)
	}
	err = s.locked(func(l *ledger) error {
		if err := l.count(); err != nil {
			return err
		}
		return l.shrink(s.max)
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("opening cache %q: %w", dir, err)
	}
	return s, nil
}

// OpenExisting opens a cache to look at it or to clear it. Root may do that to
// the caches of others.
func OpenExisting(dir string) (*Store, error) {
	s, err := open(dir, int64(maxEntry))
	if err != nil {
		return nil, err
	}
	if uid := os.Geteuid(); uid != 0 && s.owner != uint32(uid) {
		s.Close()
		return nil, fmt.Errorf("cache %q belongs to uid %d", dir, s.owner)
	}
	return s, nil
}

func open(dir string, max int64) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening a cache: %w", err)
	}
	st, err := root.Stat(".")
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("opening a cache: %w", err)
	}
	if m := st.Mode().Perm(); m&0o077 != 0 {
		root.Close()
		return nil, fmt.Errorf("cache %q is open to others (mode %04o)", dir, m)
	}
	return &Store{root: root, max: max, owner: st.Sys().(*syscall.Stat_t).Uid}, nil
}

// Close gives the directory back. Entries stay.
func (s *Store) Close() error { return s.root.Close() }

func path(key Key) string {
	name := key.String()
	return name[:2] + "/" + name
}

func blocks(size int64) int64 { return (size + blockSize - 1) &^ (blockSize - 1) }

// Get finds an answer and marks it as used. An error that is fs.ErrNotExist
// means there is none, ErrDamaged that there was one and it is gone now.
func (s *Store) Get(key Key) (Note, []byte, error) {
	note, answer, err := s.read(key)
	switch {
	case err == nil:
		now := time.Now()
		// Who cannot mark it as used still has the answer.
		_ = s.root.Chtimes(path(key), now, now)
	case errors.Is(err, ErrDamaged):
		s.drop(key)
	}
	return note, answer, err
}

// read reads an entry and checks all of it.
func (s *Store) read(key Key) (Note, []byte, error) {
	f, size, err := s.open(key)
	if err != nil {
		return Note{}, nil, err
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return Note{}, nil, damaged("reading it: %v", err)
	}
	return decode(b, key)
}

// open opens an entry if its file is one that this package made.
func (s *Store) open(key Key) (*os.File, int64, error) {
	st, err := s.root.Lstat(path(key))
	if err != nil {
		return nil, 0, err
	}
	if err := s.check(st); err != nil {
		return nil, 0, err
	}
	f, err := s.root.OpenFile(path(key), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	if st, err = f.Stat(); err == nil {
		err = s.check(st)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (s *Store) check(st fs.FileInfo) error {
	sys := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular():
		return damaged("it is not a regular file")
	case sys.Uid != s.owner:
		return damaged("it belongs to uid %d", sys.Uid)
	case st.Mode().Perm()&0o077 != 0:
		return damaged("it is open to others (mode %04o)", st.Mode().Perm())
	case st.Size() < int64(minEntry) || st.Size() > int64(maxEntry):
		return damaged("it has %d bytes", st.Size())
	}
	return nil
}

// drop removes an entry.
func (s *Store) drop(key Key) {
	err := s.locked(func(l *ledger) error { return l.remove(path(key)) })
	if errors.Is(err, ErrBusy) {
		_ = s.root.Remove(path(key)) // the next count has it right
	}
}

// Put stores an answer. An error means that it is not stored, and nothing else.
func (s *Store) Put(key Key, note Note, answer []byte) error {
	b, err := encode(key, note, answer)
	if err != nil {
		return fmt.Errorf("storing answer %s: %w", key.Short(), err)
	}
	if blocks(int64(len(b))) > s.max {
		return fmt.Errorf("storing answer %s: %w", key.Short(), ErrTooLarge)
	}
	if err := s.put(key, b); err != nil {
		return fmt.Errorf("storing answer %s: %w", key.Short(), err)
	}
	return nil
}

func (s *Store) put(key Key, b []byte) error {
	name := path(key)
	dir := filepath.Dir(name)
	if err := s.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	temp := dir + "/" + newPrefix + rand.Text()
	if err := s.write(temp, b); err != nil {
		_ = s.root.Remove(temp)
		return err
	}
	size := blocks(int64(len(b)))
	err := s.locked(func(l *ledger) error {
		if l.total+size > s.max {
			// Other processes remove entries too: only a count knows.
			if err := l.count(); err != nil {
				return err
			}
			if err := l.shrink(s.max - s.max/reserve - size); err != nil {
				return err
			}
		}
		if st, err := s.root.Lstat(name); err == nil {
			l.total -= blocks(st.Size())
		}
		if err := s.root.Rename(temp, name); err != nil {
			return err
		}
		l.total += size
		return nil
	})
	if err != nil {
		_ = s.root.Remove(temp)
		return err
	}
	return s.sync(dir)
}

func (s *Store) write(name string, b []byte) error {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// sync makes a rename last.
func (s *Store) sync(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ledger is the size of a cache while its lock is held.
type ledger struct {
	s     *Store
	total int64
	files []file // of the last count, longest unused first
}

// file is a file of an entry.
type file struct {
	name string
	size int64
	used time.Time
}

// locked calls f while no other process changes names in the cache.
func (s *Store) locked(f func(*ledger) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, err := s.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	lock, err := ownfile.Lock(context.Background(), dir, lockName, lockTime)
	if errors.Is(err, ownfile.ErrLocked) {
		return fmt.Errorf("%w: %v", ErrBusy, err)
	}
	if err != nil {
		return fmt.Errorf("locking the cache: %w", err)
	}
	defer lock.Close()
	l := &ledger{s: s}
	if err := l.read(lock); err != nil {
		return err
	}
	err = f(l)
	// On a full disk the text stays as it was: the next process counts.
	text := strconv.AppendInt(nil, l.total, 10)
	if _, werr := lock.WriteAt(append(text, '\n'), 0); werr == nil {
		_ = lock.Truncate(int64(len(text) + 1))
	}
	return err
}

// read takes the total from the lock file. One that is no number is counted anew.
func (l *ledger) read(lock *os.File) error {
	b := make([]byte, maxLockTxt)
	n, err := lock.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	text, ended := strings.CutSuffix(string(b[:n]), "\n")
	if l.total, err = strconv.ParseInt(text, 10, 64); err != nil || !ended || l.total < 0 {
		return l.count()
	}
	return nil
}

// count looks at every file, and removes what interrupted writers left.
func (l *ledger) count() error {
	l.total, l.files = 0, nil
	dirs, err := l.s.readDir(".")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if !isShard(d) {
			continue
		}
		entries, err := l.s.readDir(d.Name())
		if err != nil {
			return err
		}
		for _, e := range entries {
			name := d.Name() + "/" + e.Name()
			st, err := e.Info()
			if err != nil {
				continue // another process was faster
			}
			if strings.HasPrefix(e.Name(), newPrefix) {
				if time.Since(st.ModTime()) > newTooOld {
					_ = l.s.root.Remove(name)
				}
				continue
			}
			if key, err := ParseKey(e.Name()); err != nil || path(key) != name {
				continue // not ours
			}
			l.files = append(l.files, file{name, st.Size(), st.ModTime()})
			l.total += blocks(st.Size())
		}
	}
	slices.SortFunc(l.files, func(a, b file) int {
		return cmp.Or(a.used.Compare(b.used), strings.Compare(a.name, b.name))
	})
	return nil
}

func isShard(d fs.DirEntry) bool {
	return d.IsDir() && len(d.Name()) == 2 && strings.Trim(d.Name(), "0123456789abcdef") == ""
}

func (s *Store) readDir(name string) ([]fs.DirEntry, error) {
	d, err := s.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.ReadDir(-1)
}

// shrink removes the longest unused entries of the last count.
func (l *ledger) shrink(target int64) error {
	for _, f := range l.files {
		if l.total <= target {
			return nil
		}
		if err := l.remove(f.name); err != nil {
			return err
		}
	}
	return nil
}

func (l *ledger) remove(name string) error {
	st, err := l.s.root.Lstat(name)
	if err == nil {
		err = l.s.root.Remove(name)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		l.total = max(l.total-blocks(st.Size()), 0)
	}
	return nil
}

// Size is what the cache holds: entries, and bytes in whole blocks.
func (s *Store) Size() (entries int, bytes int64, err error) {
	err = s.locked(func(l *ledger) error {
		err := l.count()
		entries, bytes = len(l.files), l.total
		return err
	})
	return entries, bytes, err
}

// List shows the entries, longest unused first. Only their beginnings are read:
// Entry.Err is what can be seen there.
func (s *Store) List() ([]Entry, error) {
	return s.list(func(key Key) (Note, error) {
		f, size, err := s.open(key)
		if err != nil {
			return Note{}, err
		}
		defer f.Close()
		b := make([]byte, min(size, int64(headerSize+maxNote)))
		if _, err := io.ReadFull(f, b); err != nil {
			return Note{}, damaged("reading it: %v", err)
		}
		n, _, err := header(b, size, key)
		if err != nil {
			return Note{}, err
		}
		return readNote(b[headerSize : headerSize+n])
	})
}

// Verify is List for which all of each entry is read and checked.
func (s *Store) Verify() ([]Entry, error) {
	return s.list(func(key Key) (Note, error) {
		note, _, err := s.read(key)
		return note, err
	})
}

func (s *Store) list(look func(Key) (Note, error)) ([]Entry, error) {
	l := &ledger{s: s}
	if err := l.count(); err != nil {
		return nil, fmt.Errorf("listing the cache: %w", err)
	}
	var entries []Entry
	for _, f := range l.files {
		key, err := ParseKey(filepath.Base(f.name))
		if err != nil {
			return nil, err
		}
		e := Entry{Key: key, Size: f.size, Used: f.used}
		e.Note, e.Err = look(key)
		if errors.Is(e.Err, fs.ErrNotExist) {
			continue // gone since
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Find is the entry whose key begins with the given digits.
func (s *Store) Find(prefix string) (Key, error) {
	l := &ledger{s: s}
	if err := l.count(); err != nil {
		return Key{}, fmt.Errorf("listing the cache: %w", err)
	}
	var found []Key
	for _, f := range l.files {
		if base := filepath.Base(f.name); prefix != "" && strings.HasPrefix(base, prefix) {
			if key, err := ParseKey(base); err == nil {
				found = append(found, key)
			}
		}
	}
	switch len(found) {
	case 0:
		return Key{}, fmt.Errorf("no entry has a key that begins with %q", prefix)
	case 1:
		return found[0], nil
	}
	return Key{}, fmt.Errorf("%d entries have keys that begin with %q", len(found), prefix)
}

// Read is Get for onlookers: the entry is neither marked as used nor removed.
func (s *Store) Read(key Key) (Note, []byte, error) { return s.read(key) }

// Prune removes damaged entries, then the longest unused ones until at most
// target bytes are left; a negative target leaves all that are whole. It answers
// how many files it removed and how many bytes, in whole blocks, they held.
func (s *Store) Prune(target int64) (removed int, bytes int64, err error) {
	entries, err := s.Verify()
	if err != nil {
		return 0, 0, err
	}
	err = s.locked(func(l *ledger) error {
		if err := l.count(); err != nil {
			return err
		}
		files, before := len(l.files), l.total
		for _, e := range entries {
			if errors.Is(e.Err, ErrDamaged) {
				if err := l.remove(path(e.Key)); err != nil {
					return err
				}
			}
		}
		if err := l.count(); err != nil {
			return err
		}
		if target >= 0 {
			if err := l.shrink(target); err != nil {
				return err
			}
		}
		bytes = before - l.total
		if err := l.count(); err != nil {
			return err
		}
		removed = files - len(l.files)
		return nil
	})
	if err != nil {
		return removed, bytes, fmt.Errorf("pruning the cache: %w", err)
	}
	return removed, bytes, nil
}
