package identity

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/ownfile"
)

func keyOf(t *testing.T, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A clock that is wrong for a moment costs a server neither key nor certificate:
// when it is right again the identity that clients trust is back.
func TestSecurity07ClockJump(t *testing.T) {
	for name, at := range map[string]time.Time{
		"2038":                   time.Date(2038, 1, 19, 0, 0, 0, 0, time.UTC),
		"the last hour":          now.AddDate(0, 12, 0).Add(-time.Minute),
		"before the certificate": now.AddDate(-1, 0, 0),
		"two hours before":       now.Add(-2 * time.Hour),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "server")
			var log strings.Builder
			look := func(at time.Time) *Identity {
				t.Helper()
				id, _, err := Renew(dir, Options{NodeName: "x.example", KeyType: Ed25519, Now: at}, 30*24*time.Hour, func(f string, a ...any) { log.WriteString(f + "\n") })
				if err != nil {
					t.Fatal(err)
				}
				return id
			}
			first := look(now)
			key := keyOf(t, dir)
			look(now.AddDate(0, 11, 10)) // the next one is made
			look(at)
			look(at.Add(10 * time.Minute))
			again := look(now.Add(time.Hour))
			if !again.Certificate.Equal(first.Certificate) || !bytes.Equal(keyOf(t, dir), key) {
				t.Errorf("another identity than before, valid from %v; log:\n%s", again.Certificate.NotBefore, log.String())
			}
			// And all that is kept is for the owner only.
			filepath.Walk(filepath.Join(dir, keptDir), func(path string, st os.FileInfo, err error) error {
				if err == nil && (st.IsDir() && st.Mode().Perm() != 0o700 || filepath.Base(path) == KeyFile && st.Mode().Perm() != 0o600) {
					t.Errorf("%s has mode %v", path, st.Mode())
				}
				return nil
			})
		})
	}
}

// Of several that are kept and valid the first one is back.
func TestSecurity07ClockJumpTwice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	o := Options{NodeName: "x.example", KeyType: Ed25519}
	var first *Identity
	for _, at := range []time.Time{now, now.AddDate(0, 1, 0), now.AddDate(5, 0, 0)} {
		o.Now = at
		id, err := Generate(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = id
		}
	}
	o.Now = now.AddDate(0, 2, 0)
	if id, err := Ensure(dir, o, t.Logf); err != nil || !id.Certificate.Equal(first.Certificate) {
		t.Errorf("got the one of %v, %v", id.Certificate.NotBefore, err)
	}
}

// Whatever replaces a key keeps it.
func TestSecurity07NoKeyIsOverwritten(t *testing.T) {
	o := Options{NodeName: "x.example", KeyType: Ed25519, Now: now}
	other, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	for name, replace := range map[string]func(dir string) error{
		"generated": func(dir string) error { _, err := Generate(dir, o); return err },
		"adopted":   func(dir string) error { _, err := Adopt(dir, other.Key, other.Certificate, now); return err },
		"broken": func(dir string) error {
			if err := os.WriteFile(filepath.Join(dir, CertFile), other.Certificate.Raw, 0o644); err != nil {
				return err
			}
			_, err := Ensure(dir, o, t.Logf)
			return err
		},
		"promoted": func(dir string) error {
			if _, _, err := Prepare(dir, o); err != nil {
				return err
			}
			_, err := Promote(dir, now)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "server")
			if _, err := Generate(dir, o); err != nil {
				t.Fatal(err)
			}
			key := keyOf(t, dir)
			if err := replace(dir); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(keyOf(t, dir), key) {
				t.Fatal("the key was not replaced")
			}
			kept, _ := filepath.Glob(filepath.Join(dir, keptDir, "*", KeyFile))
			if len(kept) != 1 || !bytes.Equal(keyOf(t, filepath.Dir(kept[0])), key) {
				t.Errorf("kept: %v", kept)
			}
		})
	}
}

// Whoever can read the directory can lock it, and keeps nobody from making the
// identity. For one that is there not even the lock file counts.
func TestSecurity03LockOfIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	ensure := func(what string) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			_, err := Ensure(dir, Options{NodeName: "x.example", KeyType: Ed25519, Now: now}, t.Logf)
			done <- err
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the server waits for a lock", what)
		}
	}
	ensure("a directory that anybody has locked")
	lock, err := os.Open(filepath.Join(dir, ownfile.LockName))
	if err == nil {
		defer lock.Close()
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	ensure("an identity that is there")
}
