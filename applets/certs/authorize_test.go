package certs

import (
	"bytes"
	"context"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/trust"
)

// tool is a place to run the certificate tools in.
type tool struct {
	dir, data   string
	stdout, err bytes.Buffer
}

func newTool(t *testing.T) *tool {
	t.Helper()
	// The stores of the host are elsewhere for a test.
	old := hostpaths.Sysconfdir
	hostpaths.Sysconfdir = t.TempDir()
	t.Cleanup(func() { hostpaths.Sysconfdir = old })
	return &tool{dir: t.TempDir(), data: t.TempDir()}
}

func (p *tool) run(main func(context.Context, *invocation.Invocation) int, name string, args ...string) int {
	p.stdout.Reset()
	p.err.Reset()
	return main(context.Background(), &invocation.Invocation{Name: name, Args: args, Dir: p.dir,
		Environ: []string{"SYSTEMTAP_DIR=" + p.data}, Stdout: &p.stdout, Stderr: &p.err})
}

// file makes a certificate and the file of it.
func (p *tool) file(t *testing.T, name string, now time.Time, asPEM bool) *identity.Identity {
	t.Helper()
	id, err := identity.New(identity.Options{NodeName: "vm", KeyType: identity.ECDSA, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	data := id.Certificate.Raw
	if asPEM {
		data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: data})
	}
	if err := os.WriteFile(filepath.Join(p.dir, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return id
}

// Requirements: R-002-099 R-002-100 R-004-021 R-004-039 R-004-040 R-004-048 R-004-057 B-62 C-01
func TestAuthorize(t *testing.T) {
	p := newTool(t)
	der := p.file(t, "stap.cert", time.Now(), false)
	both := p.file(t, "stap.pem", time.Now(), true)
	store := filepath.Join(p.dir, "some/new/store")
	for range 2 { // what is believed already is no error
		if rc := p.run(Authorize, "stap-authorize-cert", "stap.cert", "some/new/store"); rc != 0 ||
			p.stdout.String() != "Certificate stap.cert added to database "+store+"\n" || p.err.Len() > 0 {
			t.Fatalf("got %d, %q, %q", rc, p.stdout.String(), p.err.String())
		}
	}
	if rc := p.run(Authorize, "stap-add-server-cert", "stap.pem", store); rc != 0 {
		t.Errorf("got %d, %q", rc, p.err.String())
	}
	s, err := trust.Read(store, trust.Rules{Owners: []int{os.Getuid()}, Base: p.dir})
	if err != nil || len(s.Certificates) != 2 {
		t.Fatalf("got %+v, %v", s, err)
	}
	for _, id := range []*identity.Identity{der, both} {
		if err := s.Trusts(id.Certificate.Raw, time.Now()); err != nil {
			t.Error(err)
		}
	}
}

// Requirements: R-002-107 R-002-108 R-004-049 R-004-058
func TestAuthorizeDefaults(t *testing.T) {
	p := newTool(t)
	for _, tt := range []struct {
		name  string
		uid   int
		store string
	}{
		{"stap-authorize-signing-cert", 0, hostpaths.SignerStore()}, {"stap-authorize-signing-cert", 1000, hostpaths.SignerStore()},
		{"stap-authorize-server-cert", 0, hostpaths.HostPeerStore()}, {"stap-authorize-server-cert", 1000, hostpaths.UserPeerStore(p.data)},
		{"stap-authorize-cert", 0, ""}, {"stap-add-server-cert", 1000, ""},
	} {
		a := &authorizer{inv: &invocation.Invocation{Name: tt.name, Environ: []string{"SYSTEMTAP_DIR=" + p.data}}, uid: tt.uid}
		if dir, _ := a.defaultStore(); dir != tt.store {
			t.Errorf("%s, user %d: got %q, want %q", tt.name, tt.uid, dir, tt.store)
		}
	}
	// The stores of the host keep their rules: here everybody may write above it.
	p.file(t, "stap.cert", time.Now(), false)
	if rc := p.run(Authorize, "stap-authorize-signing-cert", "stap.cert"); rc != 1 || !strings.Contains(p.err.String(), "must not be writable") {
		t.Errorf("got %d, %q", rc, p.err.String())
	}
}

// Requirements: B-62
func TestAuthorizeRefuses(t *testing.T) {
	p := newTool(t)
	p.file(t, "old.cert", time.Now().AddDate(-2, 0, 0), false)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})
	for name, data := range map[string][]byte{"key.pem": key, "text": []byte("hello\n"), "long": make([]byte, maxCertFile+1),
		"bad.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})} {
		if err := os.WriteFile(filepath.Join(p.dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	open := filepath.Join(p.dir, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(open, 0o777)
	p.file(t, "stap.cert", time.Now(), false)
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"stap-authorize-cert", nil, "Certificate file must be specified"},
		{"stap-authorize-cert", []string{"stap.cert"}, "Certificate database directory must be specified"},
		{"stap-add-server-cert", []string{"stap.cert"}, "Certificate database directory must be specified"},
		{"stap-authorize-cert", []string{"none", "d"}, "Could not open certificate file none for reading\nno such file or directory\nUnable to authorize certificate\n"},
		{"stap-authorize-cert", []string{"a", "b", "c"}, `unexpected word "c"`},
		{"stap-authorize-cert", []string{"--other"}, "--other"},
		{"stap-authorize-cert", []string{"old.cert", "d"}, "expired"},
		{"stap-authorize-cert", []string{"key.pem", "d"}, `it has a block "PRIVATE KEY"`},
		{"stap-authorize-cert", []string{"text", "d"}, "neither PEM nor DER"},
		{"stap-authorize-cert", []string{"bad.pem", "d"}, "bad.pem"},
		{"stap-authorize-cert", []string{"long", "d"}, "more than 65536 bytes"},
		{"stap-authorize-cert", []string{"stap.cert", "open"}, "open"},
		{"stap-authorize-cert", []string{"--import=none", "d"}, "no NSS database"},
		{"stap-authorize-server-cert", []string{"--import", p.dir}, "no NSS database"},
	} {
		if rc := p.run(Authorize, tt.name, tt.args...); rc != 1 || p.stdout.Len() > 0 || !strings.Contains(p.err.String(), tt.want) {
			t.Errorf("%s %q: got %d, %q, %q", tt.name, tt.args, rc, p.stdout.String(), p.err.String())
		}
	}
	if _, err := os.Stat(filepath.Join(p.dir, "d")); err == nil {
		if list, _ := os.ReadDir(filepath.Join(p.dir, "d")); len(list) > 0 {
			t.Errorf("something was added: %v", list)
		}
	}
}

func FuzzParseCertificates(f *testing.F) {
	id, err := identity.New(identity.Options{NodeName: "vm", KeyType: identity.Ed25519, Now: time.Now()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(id.Certificate.Raw)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.Certificate.Raw}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseCertificates(data)
		if err == nil && len(list) == 0 {
			t.Error("no certificate and no error")
		}
	})
}
