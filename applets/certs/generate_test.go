package certs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/nssdb"
)

func TestGenerate(t *testing.T) {
	p := newTool(t)
	if rc := p.run(Generate, "stap-gen-cert", "--key-type=ecdsa"); rc != 0 || p.stdout.Len() > 0 || p.err.Len() > 0 {
		t.Fatalf("got %d, %q, %q", rc, p.stdout.String(), p.err.String())
	}
	dir := filepath.Join(p.data, "ssl/server")
	first, err := identity.Load(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// Another one, with names; the first is gone and that is said.
	if rc := p.run(Generate, "stap-gen-cert", "--key-type", "ed25519", dir, "build.example.org", "b2"); rc != 0 ||
		!strings.Contains(p.err.String(), "sha256="+identity.Fingerprint(first.Certificate)+" is replaced") {
		t.Fatalf("got %d, %q", rc, p.err.String())
	}
	second, err := identity.Load(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if names := strings.Join(second.Certificate.DNSNames[2:], " "); names != "build.example.org b2" || second.Certificate.Equal(first.Certificate) {
		t.Errorf("got names %q", names)
	}
	for range 2 {
		if rc := p.run(Generate, "stap-gen-cert", "--renew", "--key-type=ecdsa"); rc != 0 || !strings.Contains(p.err.String(), "the next certificate is") {
			t.Fatalf("--renew: got %d, %q", rc, p.err.String())
		}
	}
	next, err := identity.Next(dir, time.Now())
	if err != nil || next == nil || !strings.Contains(p.err.String(), identity.Fingerprint(next.Certificate)) {
		t.Fatalf("got %v, %v; said %q", next, err, p.err.String())
	}
	if now, err := identity.Load(dir, time.Now()); err != nil || !now.Certificate.Equal(second.Certificate) {
		t.Errorf("--renew replaced the certificate: %v", err)
	}
	// A new certificate has no successor of the old one's.
	if rc := p.run(Generate, "stap-gen-cert", "--key-type=ecdsa"); rc != 0 {
		t.Fatalf("got %d, %q", rc, p.err.String())
	}
	if next, err := identity.Next(dir, time.Now()); err != nil || next != nil {
		t.Errorf("got %v, %v", next, err)
	}
}

func TestGenerateRefuses(t *testing.T) {
	p := newTool(t)
	file := filepath.Join(p.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-P"}, "option -P is not supported"},
		{[]string{"--key-type=dsa"}, `key type "dsa" is not rsa, ecdsa or ed25519`},
		{[]string{"d", "bad name"}, `"bad name" is not a DNS name`},
		{[]string{"--", "d", "-x.org"}, `"-x.org" is not a DNS name`},
		{[]string{"d", "a..b"}, `"a..b" is not a DNS name`},
		{[]string{"d", strings.Repeat("a", 64)}, "is not a DNS name"},
		{[]string{"--renew", "d"}, "there is no certificate in"},
		{[]string{"--import=x", "--renew"}, "--import takes key and certificate as they are"},
		{[]string{"--import=x", "d", "name"}, "--import takes key and certificate as they are"},
		{[]string{"--password-file=x"}, "goes with --import"},
		{[]string{"--import=x"}, "no NSS database"},
		{[]string{"--key-type=ecdsa", file}, "file"},
	} {
		if rc := p.run(Generate, "stap-gen-cert", tt.args...); rc != 1 || p.stdout.Len() > 0 || !strings.Contains(p.err.String(), tt.want) {
			t.Errorf("%q: got %d, %q, %q", tt.args, rc, p.stdout.String(), p.err.String())
		}
	}
	if left, _ := os.ReadDir(p.dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// Root puts no key where another user decides what lies there.
func TestGenerateForOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a directory of another user")
	}
	p := newTool(t)
	theirs := filepath.Join(p.dir, "theirs")
	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(p.dir, "link")
	if err := os.Symlink(theirs, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{theirs, theirs + "/ssl/server", link, link + "/new"} {
		if rc := p.run(Generate, "stap-gen-cert", "--key-type=ecdsa", dir); rc != 1 || !strings.Contains(p.err.String(), "belongs to user id 12345") {
			t.Errorf("%s: got %d, %q", dir, rc, p.err.String())
		}
	}
	if left, _ := os.ReadDir(theirs); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The key and the trust of an installation of SystemTap come over.
// Requirements: R-003-135 R-003-136 R-004-060
func TestImport(t *testing.T) {
	if _, err := exec.LookPath("pk12util"); err != nil {
		t.Skip("missing: pk12util and certutil (package libnss3-tools)")
	}
	p := newTool(t)
	db, noise := filepath.Join(p.dir, "nss"), filepath.Join(p.dir, "noise")
	if err := os.WriteFile(noise, []byte(strings.Repeat("seed of a test", 8)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(db, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-N", "-d", "sql:" + db, "--empty-password"},
		{"-S", "-d", "sql:" + db, "-n", nssdb.Nickname, "-s", "CN=Systemtap Compile Server, OU=Systemtap", "-x", "-t", "PCu,,PCu", "-8", "vm,vm.local", "-g", "2048", "-z", noise},
	} {
		if out, err := exec.Command("certutil", args...).CombinedOutput(); err != nil {
			t.Fatalf("certutil %q: %v\n%s", args, err, out)
		}
	}
	if rc := p.run(Generate, "stap-gen-cert", "--import", "nss"); rc != 0 || p.err.Len() > 0 {
		t.Fatalf("got %d, %q", rc, p.err.String())
	}
	id, err := identity.Load(filepath.Join(p.data, "ssl/server"), time.Now())
	if err != nil || id.Certificate.DNSNames[0] != "vm" {
		t.Fatalf("got %v, %v", id, err)
	}
	if rc := p.run(Authorize, "stap-authorize-cert", "--import=nss", "store"); rc != 0 {
		t.Fatalf("got %d, %q", rc, p.err.String())
	}
	if _, err := os.Stat(filepath.Join(p.dir, "store", identity.Fingerprint(id.Certificate)+".pem")); err != nil {
		t.Error(err)
	}
}
