package compile

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/cache"
	"stapbox/core/modsig"
	"stapbox/core/mok"
)

func newMOK(t *testing.T) *mok.Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"Systemtap"}},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &mok.Key{Certificate: cert, Signer: key}
}

// TestServiceSignsForKernel: the key the client has is used, ours is over the
// module with the kernel's signature, and another key is another answer.
func TestServiceSignsForKernel(t *testing.T) {
	first, second := newMOK(t), newMOK(t)
	s := newService(t)
	s.MOKs = func() []*mok.Key { return []*mok.Key{first, second} }
	store, err := cache.Open(filepath.Join(t.TempDir(), "answers"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s.Cache = store
	for _, tt := range []struct {
		name string
		mok  []string
		want *mok.Key
	}{
		{"first", []string{first.Fingerprint()}, first},
		{"second", []string{"missing", "aa:bb", second.Fingerprint(), first.Fingerprint()}, second},
		{"the first again", []string{first.Fingerprint()}, first},
		{"none wanted", nil, nil},
	} {
		r := req61("-p4", "-emodule stapusr", "--privilege=stapusr")
		r.MOK = tt.mok
		got := s.ask(t, context.Background(), r)
		modules, sigs := got.Modules()
		if got.RC != 0 || len(modules) != 1 || got.SigningKey != nil {
			t.Fatalf("%s: got status %d, %q", tt.name, got.RC, got.Stderr)
		}
		if !ed25519.Verify(s.Key().Public().(ed25519.PublicKey), modules[0].Data, sigs[0].Data) {
			t.Errorf("%s: the file beside is not over the module with the kernel's signature", tt.name)
		}
		if tt.want == nil {
			if _, _, err := modsig.Split(modules[0].Data); err == nil {
				t.Errorf("%s: signed for a kernel", tt.name)
			}
			continue
		}
		if _, err := modsig.Verify(modules[0].Data, tt.want.Certificate); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if want := `Module signed with MOK, fingerprint "` + tt.want.Fingerprint() + `"`; !strings.Contains(string(got.Stderr), want) {
			t.Errorf("%s: got %q, want %q", tt.name, got.Stderr, want)
		}
	}
}

// TestServiceMOK is what happens where the client's kernel wants a signature
// that this server cannot make.
func TestServiceMOK(t *testing.T) {
	key := newMOK(t)
	const none = "Server: No matching machine owner key (MOK) available on the server to sign the\n module.\n"
	for _, tt := range []struct {
		name  string
		args  []string
		mok   []string
		keys  []*mok.Key
		guru  bool
		rc    int
		want  string
		offer bool
	}{
		{"no keys", []string{"-emodule stapdev"}, []string{"missing"}, nil, false, 1,
			none + "Server: The server has no machine owner keys (MOK) in common with this\nsystem. The server could not generate a new MOK.\n", false},
		{"none in common", []string{"-emodule stapdev"}, []string{"aa:bb:cc"}, []*mok.Key{key}, false, 1,
			none + "Server: The server has no machine owner key (MOK) in common with this\nsystem. Use the following command to import a server MOK into this\nsystem, then reboot:\n\n\t# sudo mokutil --import signing_key.x509\n", true},
		{"bad fingerprint", []string{"-emodule stapdev"}, []string{"../../etc"}, []*mok.Key{key}, false, 1,
			"Server: MOK fingerprint value '../../etc' isn't in the correct format\n" + none, true},
		{"upper case", []string{"-emodule stapdev"}, []string{strings.ToUpper(key.Fingerprint())}, []*mok.Key{key}, false, 1, "isn't in the correct format", true},
		{"-p2 needs no key", []string{"-p2", "-enothing"}, []string{"missing"}, nil, false, 0, "", false},
		{"-g", []string{"-g", "-emodule stapdev"}, []string{key.Fingerprint()}, []*mok.Key{key}, false, 1, "ERROR: -g is refused by the rule that this server signs no guru-mode modules", false},
		{"-I", []string{"-Itapset/x", "-emodule stapdev"}, []string{key.Fingerprint()}, []*mok.Key{key}, false, 1, "ERROR: -I is refused by the rule that this server signs no guru-mode modules", false},
		{"-I, allowed", []string{"-Itapset/x", "-emodule stapdev"}, []string{key.Fingerprint()}, []*mok.Key{key}, true, 0, "Module signed with MOK", false},
		{"-g, allowed", []string{"-g", "-emodule stapdev"}, []string{key.Fingerprint()}, []*mok.Key{key}, true, 0, "Module signed with MOK", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(t)
			s.MOKs, s.MOKGuru = func() []*mok.Key { return tt.keys }, tt.guru
			r := req61(tt.args...)
			r.MOK = tt.mok
			got := s.ask(t, context.Background(), r)
			if got.RC != tt.rc || !strings.Contains(string(got.Stderr), tt.want) {
				t.Errorf("got status %d, %q, want %d, %q", got.RC, got.Stderr, tt.rc, tt.want)
			}
			if tt.offer != (got.SigningKey != nil) || tt.offer && !bytes.Equal(got.SigningKey, key.Certificate.Raw) {
				t.Errorf("got a certificate of %d bytes, want one: %v", len(got.SigningKey), tt.offer)
			}
			if tt.rc != 0 && len(got.Files) > 0 {
				t.Errorf("got %d files with a refusal", len(got.Files))
			}
		})
	}
}
