package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.step.sm/crypto/keyutil"

	"stapbox/core/ownfile"
)

// The next identity of a server is made in a directory of its own, some time
// before the first one's ends, so that clients can learn to trust it:
//
//	next/stap.cert, next/stap.key  as stap.cert and stap.key
//	previous.cert                  after the change: the certificate before, DER
//
// The change takes two renames, first of the key, then of the certificate.
// Between them the certificate in next is the one that fits the key; finish
// does the second rename then.
const (
	nextDir      = "next"
	previousCert = "previous.cert"
)

// ChangeBefore is how long before the end of a certificate the next one takes
// over: clocks differ.
const ChangeBefore = time.Hour

// NextDir is where the next identity of the server in dir is made.
func NextDir(dir string) string { return filepath.Join(dir, nextDir) }

// PreviousFile is the certificate that the one in dir took over from.
func PreviousFile(dir string) string { return filepath.Join(dir, previousCert) }

// Next loads the next identity, nil if there is none.
func Next(dir string, now time.Time) (*Identity, error) {
	id, err := Load(NextDir(dir), now)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return id, err
}

// Prepare makes the next identity unless a good one is there, and reports
// whether it did.
func Prepare(dir string, o Options) (next *Identity, made bool, err error) {
	next, err = Next(dir, o.Now)
	if next != nil && (err == nil || errors.Is(err, ErrNotValid) && !next.Expired(o.Now)) {
		return next, false, nil
	}
	if err != nil && !errors.Is(err, ErrNotValid) && !errors.Is(err, ErrBroken) {
		return nil, false, err
	}
	next, err = Generate(NextDir(dir), o)
	return next, err == nil, err
}

// Promote makes the next identity the one of the server. The certificate before
// stays as previous.cert; it is kept with its key too, should the clock be wrong.
func Promote(dir string, now time.Time) (*Identity, error) {
	next, err := Next(dir, now)
	if err == nil && next == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("taking over the next identity of %q: %w", dir, err)
	}
	if err := keep(dir); err != nil {
		return nil, fmt.Errorf("keeping the identity in %q: %w", dir, err)
	}
	if old, err := ownfile.Read(filepath.Join(dir, CertFile), ownfile.Certificate); err == nil {
		if err := write(dir, previousCert, old, 0o644); err != nil {
			return nil, fmt.Errorf("writing %q: %w", PreviousFile(dir), err)
		}
	}
	if err := os.Rename(filepath.Join(NextDir(dir), KeyFile), filepath.Join(dir, KeyFile)); err != nil {
		return nil, fmt.Errorf("taking over the next identity of %q: %w", dir, err)
	}
	if err := os.Rename(filepath.Join(NextDir(dir), CertFile), filepath.Join(dir, CertFile)); err != nil {
		return nil, fmt.Errorf("taking over the next identity of %q: %w", dir, err)
	}
	os.Remove(NextDir(dir))
	return Load(dir, now)
}

// finish ends a change that was cut off between its two renames.
func finish(dir string) error {
	der, err := ownfile.Read(filepath.Join(NextDir(dir), CertFile), ownfile.Certificate)
	if err != nil {
		return nil // there is none, or it is none of ours
	}
	if _, err := os.Lstat(filepath.Join(NextDir(dir), KeyFile)); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	key, cert, err := parseFiles(dir, der)
	if err != nil || keyutil.VerifyPair(cert.PublicKey, key) != nil {
		return nil
	}
	if err := os.Rename(filepath.Join(NextDir(dir), CertFile), filepath.Join(dir, CertFile)); err != nil {
		return fmt.Errorf("taking over the next identity of %q: %w", dir, err)
	}
	os.Remove(NextDir(dir))
	return nil
}

// Renew is Ensure with overlap: from before the end of the certificate on there
// is a next identity, which takes over shortly before that end. next is nil
// while there is none; a next identity that cannot be made or read is an error
// for the log only, as long as the current one is good.
func Renew(dir string, o Options, before time.Duration, log func(format string, args ...any)) (id, next *Identity, err error) {
	if err := finish(dir); err != nil {
		return nil, nil, err
	}
	id, _ = Load(dir, o.Now)
	if id != nil && !o.Now.Before(id.Certificate.NotAfter.Add(-ChangeBefore)) {
		if n, nerr := Next(dir, o.Now); n != nil && nerr == nil {
			log("Certificate ends at %s UTC, the next one takes over", id.Certificate.NotAfter.UTC().Format(timeLayout))
			if _, err := Promote(dir, o.Now); err != nil {
				return nil, nil, err
			}
		}
	}
	if id, err = Ensure(dir, o, log); err != nil {
		return nil, nil, err
	}
	if o.Now.Before(id.Certificate.NotAfter.Add(-before)) {
		return id, nil, nil
	}
	next, made, err := Prepare(dir, o)
	if err != nil {
		log("The next certificate cannot be made: %v", err)
		return id, nil, nil
	}
	if made {
		log("Made the next certificate sha256=%s in %s, which takes over at %s UTC", Fingerprint(next.Certificate), NextDir(dir),
			id.Certificate.NotAfter.Add(-ChangeBefore).UTC().Format(timeLayout))
	}
	return id, next, nil
}
