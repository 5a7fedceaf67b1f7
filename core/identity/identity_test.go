package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"stapbox/core/ownfile"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// Requirements: R-002-097
func TestProfile(t *testing.T) {
	id, err := New(Options{NodeName: "vm.example.com", DNSNames: []string{"build"}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	c := id.Certificate
	// SEQUENCE { SET { SEQUENCE { ou, PrintableString } } SET { SEQUENCE { cn, PrintableString } } }
	subject := append([]byte{0x30, 0x37,
		0x31, 0x12, 0x30, 0x10, 0x06, 0x03, 0x55, 0x04, 0x0b, 0x13, 0x09}, "Systemtap"...)
	subject = append(append(subject, 0x31, 0x21, 0x30, 0x1f, 0x06, 0x03, 0x55, 0x04, 0x03, 0x13, 0x18), "Systemtap Compile Server"...)
	if !bytes.Equal(c.RawSubject, subject) || !bytes.Equal(c.RawIssuer, subject) {
		t.Errorf("subject: got %x, want %x", c.RawSubject, subject)
	}
	if k, ok := c.PublicKey.(*rsa.PublicKey); !ok || k.N.BitLen() != 3072 || k.E != 65537 {
		t.Errorf("key: got %T", c.PublicKey)
	}
	if want := []string{"vm.example.com", "vm.local", "build"}; !reflect.DeepEqual(c.DNSNames, want) {
		t.Errorf("names: got %q, want %q", c.DNSNames, want)
	}
	if len(c.Extensions) != 2 || c.Extensions[0].Id.String() != "2.5.29.17" || c.Extensions[0].Critical ||
		c.Extensions[1].Id.String() != "2.16.840.1.113730.1.1" || !c.Extensions[1].Critical ||
		!bytes.Equal(c.Extensions[1].Value, []byte{3, 2, 0, 0x51}) {
		t.Errorf("extensions: got %+v", c.Extensions)
	}
	if c.BasicConstraintsValid || c.IsCA || c.KeyUsage != 0 || c.Version != 3 || c.SignatureAlgorithm != x509.SHA256WithRSA {
		t.Errorf("got CA %v, usage %v, version %d, %v", c.IsCA, c.KeyUsage, c.Version, c.SignatureAlgorithm)
	}
	if want := now.AddDate(1, 0, 0); !c.NotAfter.Equal(want) || c.NotBefore.After(now) {
		t.Errorf("validity: got %v to %v", c.NotBefore, c.NotAfter)
	}
	info := CertInfo(c)
	if len(info) != 14 || !strings.HasPrefix(info, "00:") {
		t.Errorf("certinfo: got %q, want five octets, 00 first", info)
	}
	if fp := Fingerprint(c); len(fp) != 64 || strings.ToLower(fp) != fp {
		t.Errorf("fingerprint: got %q", fp)
	}
}

// Requirements: R-000-040
func TestCertInfo(t *testing.T) {
	for serial, want := range map[int64]string{0xcc170694: "00:cc:17:06:94", 0x7f: "7f", 0x80: "00:80", 0: "00"} {
		if got := CertInfo(&x509.Certificate{SerialNumber: big.NewInt(serial)}); got != want {
			t.Errorf("%x: got %q, want %q", serial, got, want)
		}
	}
}

func TestKeyTypes(t *testing.T) {
	for _, kt := range []KeyType{ECDSA, Ed25519} {
		dir := filepath.Join(t.TempDir(), "a", "b")
		made, err := Generate(dir, Options{NodeName: "vm", KeyType: kt, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		id, err := Load(dir, now)
		if err != nil {
			t.Fatal(err)
		}
		if !id.Certificate.Equal(made.Certificate) {
			t.Errorf("%s: loaded another certificate than the one made", kt)
		}
		switch kt {
		case ECDSA:
			_, ok := id.Key.Public().(*ecdsa.PublicKey)
			if !ok {
				t.Errorf("got %T", id.Key.Public())
			}
		case Ed25519:
			if _, ok := id.Key.Public().(ed25519.PublicKey); !ok {
				t.Errorf("got %T", id.Key.Public())
			}
		}
	}
	if _, err := New(Options{NodeName: "vm", KeyType: "dsa", Now: now}); err == nil || !strings.Contains(err.Error(), `"dsa"`) {
		t.Errorf("dsa: got %v", err)
	}
	if _, err := New(Options{KeyType: ECDSA, Now: now}); err == nil || !strings.Contains(err.Error(), "no name") {
		t.Errorf("no host name: got %v", err)
	}
}

// Requirements: R-003-138 R-004-061
func TestEnsure(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "ssl", "server")
	o := Options{NodeName: "vm", KeyType: ECDSA, Now: now}
	var lines []string
	log := func(f string, a ...any) { lines = append(lines, fmt.Sprintf(f, a...)) }
	ensure := func(want ...string) *Identity {
		t.Helper()
		lines = nil
		id, err := Ensure(dir, o, log)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(strings.Join(lines, "\n"), w) {
				t.Errorf("log %q lacks %q", lines, w)
			}
		}
		return id
	}
	first := ensure("does not exist", "Generating a new")
	for name, want := range map[string]os.FileMode{CertFile: 0o644, KeyFile: 0o600, ".": 0o755 | os.ModeDir} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != want {
			t.Errorf("%s: mode %v (%v), want %v", name, st.Mode(), err, want)
		}
	}
	second := ensure("Certificate found", "Not Valid After: Sat Nov 20 12:00:00 2027 UTC", "Certificate is valid")
	if !first.Certificate.Equal(second.Certificate) {
		t.Error("a valid identity was replaced")
	}
	// A clock that was set back costs no key that clients trust.
	o.Now = now.AddDate(-5, 0, 0)
	if early := ensure("Certificate found", "Certificate is not valid yet: the clock of this host, Sat Nov 20 12:00:00 2021 UTC, seems"); !first.Certificate.Equal(early.Certificate) {
		t.Error("an identity whose time has not come was replaced")
	}
	o.Now = now.AddDate(2, 0, 0)
	third := ensure("Certificate is not valid", "Generating a new")
	if third.Certificate.Equal(second.Certificate) {
		t.Error("an expired identity was kept")
	}
	other, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, CertFile), other.Certificate.Raw, 0o644); err != nil {
		t.Fatal(err)
	}
	ensure("do not fit together", "Generating a new")
	if err := os.Remove(filepath.Join(dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	ensure("No certificate found", "Generating a new")
}

// Requirements: R-003-137 R-004-062
func TestLoadRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(dir string) error
		want  string
	}{
		{"key readable by others", func(d string) error { return os.Chmod(d+"/stap.key", 0o644) }, "too open"},
		{"certificate writable by others", func(d string) error { return os.Chmod(d+"/stap.cert", 0o666) }, "too open"},
		{"key is a link", func(d string) error {
			return errors.Join(os.Rename(d+"/stap.key", d+"/k"), os.Symlink("k", d+"/stap.key"))
		}, "too many levels"},
		{"key is a fifo", func(d string) error {
			return errors.Join(os.Remove(d+"/stap.key"), syscall.Mkfifo(d+"/stap.key", 0o600))
		}, "not a regular file"},
		{"huge certificate", func(d string) error { return os.Truncate(d+"/stap.cert", ownfile.Limit+1) }, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			o := Options{NodeName: "vm", KeyType: ECDSA, Now: now}
			if _, err := Generate(dir, o); err != nil {
				t.Fatal(err)
			}
			if err := tt.spoil(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Ensure(dir, o, func(string, ...any) {})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q and no new identity", err, tt.want)
			}
		})
	}
}

// Servers that start at the same time have one identity.
func TestEnsureAtTheSameTime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	made := make(chan *Identity)
	for range 8 {
		go func() {
			id, err := Ensure(dir, Options{NodeName: "vm", KeyType: ECDSA, Now: now}, func(string, ...any) {})
			if err != nil {
				t.Error(err)
			}
			made <- id
		}()
	}
	first := <-made
	for range 7 {
		if id := <-made; first == nil || id == nil || !id.Certificate.Equal(first.Certificate) {
			t.Error("two identities")
		}
	}
	if id, err := Load(dir, now); err != nil || !id.Certificate.Equal(first.Certificate) {
		t.Errorf("got %v, %v", id, err)
	}
}
