package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/modsig"
	"stapbox/core/mok"
	"stapbox/core/signing"
)

// elfWith is a minimal ELF file with one section of four octets.
func elfWith(section string) []byte {
	names := "\x00.shstrtab\x00" + section + "\x00"
	var b bytes.Buffer
	w := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	w([]uint16{1, 62})
	w(uint32(1))
	table := (uint64(68+len(names)) + 7) &^ 7
	w([]uint64{0, 0, table})
	w(uint32(0))
	w([]uint16{64, 0, 0, 64, 3, 1})
	w(uint32(2))
	b.WriteString(names)
	b.Write(make([]byte, int(table)-b.Len()))
	header := func(name, typ uint32, off, size uint64) {
		w([]uint32{name, typ})
		w([]uint64{0, 0, off, size, 0, 1, 0})
	}
	header(0, 0, 0, 0)
	header(1, 3, 68, uint64(len(names)))
	header(11, 1, 64, 4)
	return b.Bytes()
}

type place struct {
	dir, data, module string
	errs              bytes.Buffer
}

func newPlace(t *testing.T, section string) *place {
	t.Helper()
	p := &place{dir: t.TempDir(), data: t.TempDir()}
	p.module = filepath.Join(p.dir, "stap_x.ko")
	if err := os.WriteFile(p.module, elfWith(section), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Generate(p.ssl(), identity.Options{NodeName: "vm", KeyType: identity.ECDSA, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *place) ssl() string { return filepath.Join(p.data, "ssl/server") }

func (p *place) run(args ...string) int {
	p.errs.Reset()
	return Sign(context.Background(), &invocation.Invocation{Name: "stap-sign-module", Args: args, Dir: p.dir,
		Environ: []string{"SYSTEMTAP_DIR=" + p.data}, Stdout: &p.errs, Stderr: &p.errs})
}

// addKey puts a machine owner key into the store, and its files into dir.
func (p *place) addKey(t *testing.T) *mok.Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"Systemtap"}},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{p.dir, filepath.Join(p.ssl(), "moks", mok.Fingerprint(der))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{mok.CertFile: der, mok.KeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	k, err := mok.LoadFiles(filepath.Join(p.dir, mok.CertFile), filepath.Join(p.dir, mok.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// check verifies the signatures beside and, with a key, in the module.
func (p *place) check(t *testing.T, sgn bool, key *mok.Key) {
	t.Helper()
	image, err := os.ReadFile(p.module)
	if err != nil {
		t.Fatal(err)
	}
	if key != nil {
		if _, err := modsig.Verify(image, key.Certificate); err != nil {
			t.Error(err)
		}
	} else if _, _, err := modsig.Split(image); err == nil {
		t.Error("the module is signed for the kernel")
	}
	sig, err := os.ReadFile(p.module + signing.Extension)
	if !sgn {
		if err == nil {
			t.Error("there is a signature beside")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Load(p.ssl(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if r := signing.Verify(image, sig, []signing.Signer{{Certificate: id.Certificate}}, signing.Policy{Now: time.Now()}); r.Verdict != signing.OK {
		t.Errorf("the signature beside: %v, %s", r.Verdict, r.Reason)
	}
	if st, err := os.Stat(p.module); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("the module has mode %v", st.Mode())
	}
}

func TestSigns(t *testing.T) {
	p := newPlace(t, ".stap_privilege")
	if code := p.run("stap_x.ko"); code != 0 {
		t.Fatalf("status %d\n%s", code, p.errs.String())
	}
	p.check(t, true, nil)
	key := p.addKey(t)
	if code := p.run("--mok", "stap_x.ko", p.ssl()); code != 0 {
		t.Fatalf("status %d\n%s", code, p.errs.String())
	}
	if want := `Module signed with MOK, fingerprint "` + key.Fingerprint() + `"`; !strings.Contains(p.errs.String(), want) {
		t.Errorf("got %q, want %q", p.errs.String(), want)
	}
	p.check(t, true, key)
}

func TestSignsByFiles(t *testing.T) {
	p := newPlace(t, ".stap_privilege")
	key := p.addKey(t)
	if code := p.run("--only-mok", "--mok-cert="+mok.CertFile, "--mok-key", mok.KeyFile, p.module); code != 0 {
		t.Fatalf("status %d\n%s", code, p.errs.String())
	}
	p.check(t, false, key)
	p = newPlace(t, ".stap_privilege")
	p.addKey(t)
	key = p.addKey(t)
	if code := p.run("--mok="+key.Fingerprint(), p.module); code != 0 {
		t.Fatalf("status %d\n%s", code, p.errs.String())
	}
	p.check(t, true, key)
}

func TestRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, section string
		keys          int
		args          []string
		want          string
	}{
		{"no level", ".stap_privilegex", 0, []string{"stap_x.ko"}, "it has no section .stap_privilege"},
		{"no module", ".stap_privilege", 0, nil, "Module name was not specified."},
		{"missing module", ".stap_privilege", 0, []string{"y.ko"}, "Could not open module file"},
		{"not a module", ".stap_privilege", 1, []string{mok.KeyFile}, "reading "},
		{"words", ".stap_privilege", 0, []string{"stap_x.ko", "a", "b"}, `unexpected word "b"`},
		{"no key", ".stap_privilege", 0, []string{"--mok", "stap_x.ko"}, "there is no machine owner key in"},
		{"two keys", ".stap_privilege", 2, []string{"--mok", "stap_x.ko"}, "has 2 machine owner keys"},
		{"another key", ".stap_privilege", 1, []string{"--mok=aa:bb", "stap_x.ko"}, `has the fingerprint "aa:bb"`},
		{"half a pair", ".stap_privilege", 1, []string{"--mok-key=" + mok.KeyFile, "stap_x.ko"}, "go together"},
		{"two ways", ".stap_privilege", 1, []string{"--mok=aa:bb", "--mok-key=" + mok.KeyFile, "--mok-cert=" + mok.CertFile, "stap_x.ko"}, "exclude each other"},
		{"option", ".stap_privilege", 0, []string{"--nosuch", "stap_x.ko"}, "--nosuch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t, tt.section)
			for range tt.keys {
				p.addKey(t)
			}
			if code := p.run(tt.args...); code != 1 || !strings.Contains(p.errs.String(), tt.want) {
				t.Errorf("status %d, got %q, want %q", code, p.errs.String(), tt.want)
			}
			p.check(t, false, nil)
		})
	}
	p := newPlace(t, ".stap_privilege")
	p.addKey(t)
	if code := p.run("--mok", "stap_x.ko"); code != 0 {
		t.Fatal(p.errs.String())
	}
	if code := p.run("--mok", "stap_x.ko"); code != 1 || !strings.Contains(p.errs.String(), "has an appended signature already") {
		t.Errorf("twice: status %d, got %q", code, p.errs.String())
	}
}
