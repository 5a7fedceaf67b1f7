package identity

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.step.sm/crypto/keyutil"

	"stapbox/core/ownfile"
)

// No key is ever overwritten: clients may trust it, and a clock that was wrong for a
// moment must not cost a server its identity. What another identity takes the place
// of is in
//
//	kept/YYYY-MM-DD-HEX/stap.cert, stap.key  the day its certificate ends, and its SHA-256
//
// Whenever the certificate of the day is not valid, one of these that is takes over.
const keptDir = "kept"

// keep copies the identity in dir to those that are kept, if there is one.
func keep(dir string) error {
	key, err := ownfile.Read(filepath.Join(dir, KeyFile), ownfile.Key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	der, err := ownfile.Read(filepath.Join(dir, CertFile), ownfile.Certificate)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	name := "unknown-" + rand.Text()
	if signer, cert, err := parseFiles(dir, der); err == nil && keyutil.VerifyPair(cert.PublicKey, signer) == nil {
		name = cert.NotAfter.UTC().Format(time.DateOnly) + "-" + Fingerprint(cert)
	}
	to := filepath.Join(dir, keptDir, name)
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	if err := write(to, KeyFile, key, 0o600); err != nil {
		return err
	}
	return write(to, CertFile, der, 0o644)
}

// takeBack makes the kept identity that is valid now the one of the server, and nil
// if there is none. Of several it is the one that became valid first: clients know
// that one best.
func takeBack(dir string, now time.Time) (*Identity, error) {
	list, err := os.ReadDir(filepath.Join(dir, keptDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var best *Identity
	for _, e := range list {
		id, err := Load(filepath.Join(dir, keptDir, e.Name()), now)
		if err != nil {
			continue // not of this day, or nothing that can be used
		}
		if best == nil || id.Certificate.NotBefore.Before(best.Certificate.NotBefore) {
			best = id
		}
	}
	if best == nil {
		return nil, nil
	}
	if err := best.store(dir); err != nil {
		return nil, fmt.Errorf("taking back an identity of %q: %w", dir, err)
	}
	return best, nil
}
