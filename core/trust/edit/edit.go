// Package edit changes trust stores (package trust describes them). It is the
// unprivileged side: client, server and certificate tools use it, the loader
// does not.
//
// Files are written under a temporary name made with O_EXCL, synced, and
// renamed; their modes (0644, directories 0755) are set on the descriptor, so
// that no umask makes a store writable or unreadable. Writers of one store
// exclude each other with a lock file (ownfile.Lock). Where there is nothing to
// change no lock is taken.
package edit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/ownfile"
	"stapbox/core/signing"
	"stapbox/core/trust"
)

// lockTime is how long another writer is waited for: what it does takes
// milliseconds.
const lockTime = 10 * time.Second

// ErrRevoked says that a certificate was not added because the store lists it
// as revoked. Nothing was changed.
var ErrRevoked = errors.New("certificate is revoked")

// ErrExpired says that a certificate was not added because it is not valid
// now. Nothing was changed.
var ErrExpired = errors.New("certificate has expired or is not valid yet")

// Note is what the file of a certificate says about it.
type Note struct {
	Host  string    // where it was met
	When  time.Time // now, which also decides whether the certificate is valid
	By    string    // who added it
	Scope string    // "peer, current user", "module signer, all users" ...
}

// Add puts a certificate into the store in dir, making the directory when it
// is missing. It reports whether the certificate is new there. One that is revoked
// there stays so: to believe it again somebody takes its line out of the list.
func Add(dir string, rules trust.Rules, cert *x509.Certificate, note Note) (bool, error) {
	d, s, err := open(dir, rules, true)
	if err != nil {
		return false, fmt.Errorf("opening trust store %q: %w", dir, err)
	}
	defer d.Close()
	digest := sha256.Sum256(cert.Raw)
	name := signing.Fingerprint(cert)
	fail := func(err error) (bool, error) { return false, fmt.Errorf("adding sha256:%s to %q: %w", name, dir, err) }
	if note.When.After(cert.NotAfter) || note.When.Before(cert.NotBefore) {
		return fail(ErrExpired)
	}
	var known bool
	look := func() error {
		if _, known = s.Find(cert.Raw); s.Revoked[digest] {
			return ErrRevoked
		}
		return nil
	}
	if err := look(); err != nil {
		return fail(err)
	}
	if known {
		return false, nil
	}
	lock, err := again(d, rules, s)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if err := look(); err != nil || known {
		if err != nil {
			return fail(err)
		}
		return false, nil
	}
	if err := write(d, name+".pem", Format(cert, note)); err != nil {
		return fail(err)
	}
	return true, nil
}

// Revoke puts a certificate on the store's list of revoked ones. Its file
// stays, so that what it signed is refused by name and not just unknown. It
// reports whether that is news.
func Revoke(dir string, rules trust.Rules, fingerprint string) (bool, error) {
	digest, err := trust.ParseFingerprint(fingerprint)
	if err != nil {
		return false, err
	}
	d, s, err := open(dir, rules, true)
	if err != nil {
		return false, fmt.Errorf("opening trust store %q: %w", dir, err)
	}
	defer d.Close()
	if s.Revoked[digest] {
		return false, nil
	}
	lock, err := again(d, rules, s)
	if err != nil {
		return false, fmt.Errorf("revoking sha256:%x in %q: %w", digest, dir, err)
	}
	defer lock.Close()
	if s.Revoked[digest] {
		return false, nil
	}
	if err := addRevoked(d, digest); err != nil {
		return false, fmt.Errorf("revoking sha256:%x in %q: %w", digest, dir, err)
	}
	return true, nil
}

// Format is the contents of a certificate's file.
func Format(cert *x509.Certificate, note Note) []byte {
	var b strings.Builder
	b.WriteString("# stapbox: trusted certificate\n")
	for _, l := range [][2]string{
		{"host", note.Host},
		{"added", note.When.UTC().Format(time.RFC3339)},
		{"by", note.By},
		{"scope", note.Scope},
	} {
		value := strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return '?'
			}
			return r
		}, l[1])
		// A value with this text in it would start a PEM block of its own.
		value = strings.ReplaceAll(value, "-----", "?")
		fmt.Fprintf(&b, "# %s: %s\n", l[0], value)
	}
	b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	return []byte(b.String())
}

func open(dir string, rules trust.Rules, create bool) (*os.File, *trust.Store, error) {
	var missing func(int, string) error
	if create {
		missing = mkdir
	}
	d, err := trust.Open(dir, rules, missing)
	if err != nil {
		return nil, nil, err
	}
	s, err := trust.ReadFrom(d, rules)
	if err != nil {
		d.Close()
		return nil, nil, err
	}
	return d, s, nil
}

// again locks an open store and reads it once more: another writer may have been
// there since.
func again(d *os.File, rules trust.Rules, s *trust.Store) (lock *os.File, err error) {
	if lock, err = ownfile.Lock(context.Background(), d, ownfile.LockName, lockTime); err != nil {
		return nil, err
	}
	now, err := trust.ReadFrom(d, rules)
	if err != nil {
		lock.Close()
		return nil, err
	}
	*s = *now
	return lock, nil
}

func mkdir(parent int, name string) error {
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		if err == unix.EEXIST {
			return nil // made meanwhile; the caller checks it like any other
		}
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, 0o755) // whatever the umask left
}

// addRevoked writes the list with a line more. What administrators have written
// there, comments too, stays.
func addRevoked(d *os.File, digest [sha256.Size]byte) error {
	old := []byte("# stapbox: certificates that are not to be believed\n")
	fd, err := unix.Openat(int(d.Fd()), trust.RevokedList, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		f := os.NewFile(uintptr(fd), trust.RevokedList)
		defer f.Close()
		if old, err = io.ReadAll(io.LimitReader(f, trust.MaxListSize)); err != nil {
			return err
		}
	case err != unix.ENOENT:
		return &os.PathError{Op: "open", Path: trust.RevokedList, Err: err}
	}
	if len(old) > 0 && old[len(old)-1] != '\n' {
		old = append(old, '\n')
	}
	text := fmt.Appendf(old, "sha256:%x\n", digest)
	if len(text) > trust.MaxListSize {
		return fmt.Errorf("the list %q would have more than %d bytes", trust.RevokedList, trust.MaxListSize)
	}
	return write(d, trust.RevokedList, text)
}

func write(d *os.File, name string, data []byte) error {
	tmp := ".tmp-" + rand.Text()
	fd, err := unix.Openat(int(d.Fd()), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), tmp)
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = unix.Renameat(int(d.Fd()), tmp, int(d.Fd()), name)
	}
	if err != nil {
		unix.Unlinkat(int(d.Fd()), tmp, 0)
		return err
	}
	return d.Sync()
}
