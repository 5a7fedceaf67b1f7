package edit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/signing"
	"stapbox/core/trust"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func rules(t *testing.T) (string, trust.Rules) {
	base := t.TempDir()
	return filepath.Join(base, "data", "ssl", "client"), trust.UserRules(os.Getuid(), filepath.Join(base, "data"))
}

func TestAdd(t *testing.T) {
	// Neither mask may show in the modes.
	for _, mask := range []int{0, 0o077} {
		old := syscall.Umask(mask)
		dir, rules := rules(t)
		os.Chmod(filepath.Dir(filepath.Dir(filepath.Dir(dir))), 0o755)
		cert := certificate(t)
		note := Note{Host: "vm\n-----BEGIN CERTIFICATE-----", When: now, By: "root", Scope: "peer, current user"}
		added, err := Add(dir, rules, cert, note)
		syscall.Umask(old)
		if err != nil || !added {
			t.Fatalf("adding: %v, %v", added, err)
		}
		name := filepath.Join(dir, signing.Fingerprint(cert)+".pem")
		for path, want := range map[string]os.FileMode{name: 0o644, dir: 0o755 | os.ModeDir, filepath.Dir(dir): 0o755 | os.ModeDir} {
			if st, err := os.Stat(path); err != nil || st.Mode() != want {
				t.Errorf("umask %o: mode of %q: got %v (%v), want %v", mask, path, st.Mode(), err, want)
			}
		}
		s, err := trust.Read(dir, rules)
		if err != nil || len(s.Certificates) != 1 || len(s.Warnings) != 0 {
			t.Fatalf("reading: %+v, %v", s, err)
		}
		c := s.Certificates[0]
		if c.Scope != "peer, current user" || c.By != "root" || c.Added != "2026-11-20T12:00:00Z" || !strings.HasPrefix(c.Host, "vm?") {
			t.Errorf("note: got %+v", c)
		}
		if err := s.Trusts(cert.Raw, now); err != nil {
			t.Error(err)
		}
		if err := s.Trusts(cert.Raw, now.Add(2*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("expired: got %v", err)
		}
		if err := s.Trusts(cert.Raw, now.Add(-2*time.Hour)); err == nil || !strings.Contains(err.Error(), "not valid before") {
			t.Errorf("too early: got %v", err)
		}
		if added, err := Add(dir, rules, cert, note); err != nil || added {
			t.Errorf("adding again: %v, %v", added, err)
		}
		if names, _ := os.ReadDir(dir); len(names) != 2 || names[0].Name() != ".lock" || names[1].Name() != filepath.Base(name) {
			t.Errorf("left over: %v", names)
		}
	}
}

func TestAddRefusesExpired(t *testing.T) {
	dir, rules := rules(t)
	_, err := Add(dir, rules, certificate(t), Note{When: now.Add(48 * time.Hour)})
	if !errors.Is(err, ErrExpired) {
		t.Errorf("got %v, want ErrExpired", err)
	}
}

func TestRevoke(t *testing.T) {
	dir, rules := rules(t)
	cert := certificate(t)
	if _, err := Add(dir, rules, cert, Note{When: now}); err != nil {
		t.Fatal(err)
	}
	if news, err := Revoke(dir, rules, signing.Fingerprint(cert)); err != nil || !news {
		t.Fatalf("revoking: %v, %v", news, err)
	}
	if news, err := Revoke(dir, rules, signing.Fingerprint(cert)); err != nil || news {
		t.Errorf("revoking again: %v, %v", news, err)
	}
	s, err := trust.Read(dir, rules)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Trusts(cert.Raw, now); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("got %v, want revoked", err)
	}
	if !s.Signers()[0].Revoked {
		t.Error("the signer is not marked revoked")
	}
	if _, err := Add(dir, rules, cert, Note{When: now}); !errors.Is(err, ErrRevoked) {
		t.Errorf("adding a revoked certificate: got %v, want ErrRevoked", err)
	}
	// What an administrator has written there stays.
	list := filepath.Join(dir, trust.RevokedList)
	hand := "# stolen laptop, ask security before removing\n" + strings.Repeat("ab", 32) + " and why"
	if err := os.WriteFile(list, []byte(hand), 0o644); err != nil {
		t.Fatal(err)
	}
	if news, err := Revoke(dir, rules, signing.Fingerprint(cert)); err != nil || !news {
		t.Errorf("revoking: %v, %v", news, err)
	}
	if got, err := os.ReadFile(list); err != nil || string(got) != hand+"\nsha256:"+signing.Fingerprint(cert)+"\n" {
		t.Errorf("the list is %q, %v", got, err)
	}
	// A list that would be too long to be read is not written.
	long := []byte("#" + strings.Repeat("x", trust.MaxListSize-20) + "\n")
	if err := os.WriteFile(list, long, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Revoke(dir, rules, signing.Fingerprint(cert)); err == nil || !strings.Contains(err.Error(), "would have more than") {
		t.Errorf("a full list: %v", err)
	}
	// Somebody decides otherwise by name.
	if err := os.WriteFile(filepath.Join(dir, trust.RevokedList), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if added, err := Add(dir, rules, cert, Note{When: now}); err != nil || added {
		t.Errorf("after that: %v, %v", added, err)
	}
	s, err = trust.Read(dir, rules)
	if err != nil || s.Trusts(cert.Raw, now) != nil {
		t.Errorf("after that: %v, %v", err, s.Trusts(cert.Raw, now))
	}
}

func TestRefusesUnsafeStore(t *testing.T) {
	dir, rules := rules(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o777); err != nil {
		t.Fatal(err)
	}
	var unsafe *trust.UnsafeError
	if _, err := Add(dir, rules, certificate(t), Note{When: now}); !errors.As(err, &unsafe) {
		t.Errorf("got %v, want an UnsafeError", err)
	}
}

// Whoever may read a store can lock its directory. That keeps nobody from revoking,
// and where nothing is to change not even the lock file counts.
func TestSecurity03LockOfTrustStore(t *testing.T) {
	dir, rules := rules(t)
	cert := certificate(t)
	name := signing.Fingerprint(cert)
	if _, err := Add(dir, rules, cert, Note{When: now}); err != nil {
		t.Fatal(err)
	}
	lock := func(path string) {
		t.Helper()
		f, err := os.Open(path)
		if err == nil {
			t.Cleanup(func() { f.Close() })
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	within := func(what string, f func() (bool, error), want bool) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			got, err := f()
			if err == nil && got != want {
				err = fmt.Errorf("got %v, want %v", got, want)
			}
			done <- err
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s waits for a lock that anybody can hold", what)
		}
	}
	lock(dir)
	within("revoking", func() (bool, error) { return Revoke(dir, rules, name) }, true)
	within("adding another", func() (bool, error) { return Add(dir, rules, certificate(t), Note{When: now}) }, true)
	if err := os.WriteFile(filepath.Join(dir, trust.RevokedList), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	other := signing.Fingerprint(certificate(t))
	within("revoking another", func() (bool, error) { return Revoke(dir, rules, other) }, true)
	lock(filepath.Join(dir, ".lock"))
	within("adding what is there", func() (bool, error) { return Add(dir, rules, cert, Note{When: now}) }, false)
	within("revoking what is revoked", func() (bool, error) { return Revoke(dir, rules, other) }, false)
}
