package nssdb

import (
	"context"
	"crypto/rsa"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// nss runs a program of NSS.
func nss(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("missing: %s (package libnss3-tools)", name)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// database makes one as SystemTap does: a server's, with one certificate.
func database(t *testing.T, password string) (dir, passwordFile string) {
	t.Helper()
	dir = t.TempDir()
	passwordFile = filepath.Join(t.TempDir(), "password")
	noise := filepath.Join(t.TempDir(), "noise")
	for path, text := range map[string]string{passwordFile: password + "\n", noise: strings.Repeat("seed of a test", 8)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	nss(t, "certutil", "-N", "-d", "sql:"+dir, "-f", passwordFile)
	nss(t, "certutil", "-S", "-d", "sql:"+dir, "-n", Nickname, "-s", "CN=Systemtap Compile Server, OU=Systemtap", "-x", "-t", "PCu,,PCu", "-g", "2048", "-z", noise, "-f", passwordFile)
	return dir, passwordFile
}

func TestIdentity(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, password := range []string{"", "Owls 7 !"} {
		dir, file := database(t, password)
		if password == "" {
			file = ""
		}
		key, cert, err := Identity(context.Background(), dir, file)
		if err != nil {
			t.Errorf("password %q: %v", password, err)
			continue
		}
		if k, ok := key.(*rsa.PrivateKey); !ok || !k.PublicKey.Equal(cert.PublicKey) {
			t.Errorf("password %q: the key is not that of the certificate", password)
		}
		if password != "" {
			if _, _, err := Identity(context.Background(), dir, ""); err == nil {
				t.Error("no password: got a key")
			}
		}
		list, err := Certificates(context.Background(), dir)
		if err != nil || len(list) != 1 || !list[0].Equal(cert) {
			t.Errorf("got %d certificates, %v", len(list), err)
		}
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestNoDatabase(t *testing.T) {
	dir := t.TempDir()
	if _, err := Certificates(context.Background(), dir); !errors.Is(err, ErrNotDatabase) {
		t.Errorf("got %v", err)
	}
	if _, _, err := Identity(context.Background(), dir, ""); !errors.Is(err, ErrNotDatabase) || !strings.Contains(err.Error(), CertFile) {
		t.Errorf("got %v", err)
	}
	nss(t, "certutil", "-N", "-d", "sql:"+dir, "--empty-password")
	for what, f := range map[string]func() error{
		"certificates": func() error { _, err := Certificates(context.Background(), dir); return err },
		"identity":     func() error { _, _, err := Identity(context.Background(), dir, ""); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s of an empty database: got %v", what, err)
		}
	}
	// Without the programs of NSS the error says what to install.
	t.Setenv("PATH", t.TempDir())
	if _, err := Certificates(context.Background(), dir); err == nil || !strings.Contains(err.Error(), "libnss3-tools") {
		t.Errorf("got %v", err)
	}
}
