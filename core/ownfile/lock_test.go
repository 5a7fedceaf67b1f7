package ownfile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// A lock on the directory, which everybody can take who may read it, keeps nobody
// out; one on the file does, and the error names the process.
func TestSecurity03LockIsAFileOfTheOwner(t *testing.T) {
	path := t.TempDir()
	dir := open(t, path)
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	f, err := Lock(t.Context(), dir, LockName, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	start := time.Now()
	_, err = Lock(t.Context(), dir, LockName, 50*time.Millisecond)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), filepath.Join(path, LockName)) || time.Since(start) < 50*time.Millisecond || time.Since(start) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
	if h := Holder(f); h != "" && !strings.Contains(err.Error(), "(ownfile.test)") {
		t.Errorf("got %v, the holder is %q", err, h)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err = Lock(ctx, dir, LockName, 0); err == nil || !strings.HasSuffix(err.Error(), "enough") {
		t.Errorf("got %v", err)
	}
	f.Close()
	if f, err = Lock(t.Context(), dir, LockName, time.Second); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// What the owner of a directory has put in the place of the lock stays as it is.
func TestSecurity04LockOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root uses directories of others")
	}
	for _, tt := range []struct {
		name string
		make func(lock, other string) error
		want string
	}{
		{"hard link", func(lock, other string) error { return os.Link(other, lock) }, "must have one name"},
		{"symbolic link", func(lock, other string) error { return os.Symlink(other, lock) }, "too many levels"},
		{"file of another", func(lock, other string) error { return os.WriteFile(lock, []byte("kept"), 0o600) }, "must belong to the owner of its directory, user id 4242, and this one is of 0"},
		{"FIFO", func(lock, other string) error {
			return errors.Join(syscall.Mkfifo(lock, 0o600), os.Chown(lock, 4242, 4242))
		}, "must be a regular file"},
		{"directory", func(lock, other string) error { return os.Mkdir(lock, 0o700) }, "is a directory"},
		{"missing", func(lock, other string) error { return nil }, ""},
		{"open to others", func(lock, other string) error {
			return errors.Join(os.WriteFile(lock, nil, 0o666), os.Chmod(lock, 0o666), os.Chown(lock, 4242, 4242))
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			dir, other := filepath.Join(base, "dir"), filepath.Join(base, "of-root")
			if err := errors.Join(os.WriteFile(other, []byte("contents"), 0o644), os.Mkdir(dir, 0o755), os.Chown(dir, 4242, 4242)); err != nil {
				t.Fatal(err)
			}
			lock := filepath.Join(dir, LockName)
			if err := tt.make(lock, other); err != nil {
				t.Fatal(err)
			}
			f, err := OpenLock(open(t, dir), LockName)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			} else if err != nil {
				t.Error(err)
			} else {
				var st unix.Stat_t
				if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Uid != 4242 || st.Mode&0o777 != 0o600 {
					t.Errorf("owner %d, mode %o, %v", st.Uid, st.Mode, err)
				}
				f.Close()
			}
			var st unix.Stat_t
			if text, err := os.ReadFile(other); err != nil || string(text) != "contents" || unix.Stat(other, &st) != nil || st.Uid != 0 || st.Mode&0o777 != 0o644 {
				t.Errorf("the other file has %q, owner %d, mode %o, %v", text, st.Uid, st.Mode, err)
			}
		})
	}
}

func TestHolder(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 11 08:01:7 0 EOF
2: FLOCK  ADVISORY  WRITE 12 08:01:7 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 08:01:8 0 EOF
3: FLOCK  ADVISORY  WRITE x 08:01:9 0 EOF
4: FLOCK
`
	for file, want := range map[string]int{"08:01:7": 12, "08:01:8": 0, "08:01:9": 0, "": 0} {
		if got := holder(locks, file); got != want {
			t.Errorf("%s: got %d, want %d", file, got, want)
		}
	}
}

func FuzzHolder(f *testing.F) {
	f.Add("1: FLOCK  ADVISORY  WRITE 12 08:01:7 0 EOF\n", "08:01:7")
	f.Fuzz(func(t *testing.T, locks, file string) { holder(locks, file) })
}
