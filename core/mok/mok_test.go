package mok

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stapbox/core/modsig"
)

func TestGenerate(t *testing.T) {
	store := filepath.Join(t.TempDir(), "ssl", "moks")
	if got := Keys(store, func(err error) { t.Error(err) }); got != nil {
		t.Errorf("a store that is not there has %d keys", len(got))
	}
	k, err := Generate(store, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	got := Keys(store, func(err error) { t.Error(err) })
	if len(got) != 1 || !got[0].Certificate.Equal(k.Certificate) || got[0].Fingerprint() != k.Fingerprint() {
		t.Fatalf("got %v", got)
	}
	c := k.Certificate
	want := []byte{0x30, 0x3b, 0x31, 0x12, 0x30, 0x10, 0x06, 3, 0x55, 4, 10, 0x0c, 9}
	if !bytes.HasPrefix(c.RawIssuer, want) {
		t.Errorf("got issuer % x, want % x...", c.RawIssuer, want)
	}
	if c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature || len(c.SubjectKeyId) != 20 || c.SerialNumber.BitLen() != 159 {
		t.Errorf("got CA %v, usage %v, key id % x, serial of %d bits", c.IsCA, c.KeyUsage, c.SubjectKeyId, c.SerialNumber.BitLen())
	}
	if got := Fingerprints([]*x509.Certificate{c}); !slices.Equal(got, []string{k.Fingerprint()}) {
		t.Errorf("a generated certificate is not taken for a server's: %v", got)
	}
	for path, mode := range map[string]fs.FileMode{k.Dir: 0o700, filepath.Join(k.Dir, KeyFile): 0o600, filepath.Join(k.Dir, CertFile): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", path, st.Mode().Perm(), mode)
		}
	}
	image, err := modsig.Append([]byte("module"), c, got[0].Signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := modsig.Verify(image, c); err != nil {
		t.Error(err)
	}
	if !k.Is(fingerprint256(c.Raw)) || k.Is(Missing) {
		t.Error("the name of release 5.5 is not known")
	}
}

// small makes a key that is quick to make.
func small(t testing.TB, organization string, curve elliptic.Curve) (der, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: pkix.Name{Organization: []string{organization}},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	if der, err = x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k); err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return der, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

func put(t *testing.T, dir string, der, key []byte) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{CertFile: der, KeyFile: key} {
		if b == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeysComplaints holds what is left out of a store and why.
func TestKeysComplaints(t *testing.T) {
	der, key := small(t, "Systemtap", elliptic.P256())
	_, other := small(t, "Systemtap", elliptic.P256())
	wide, wideKey := small(t, "Systemtap", elliptic.P521())
	for name, c := range map[string]struct {
		fingerprint string
		der, key    []byte
		mode        fs.FileMode
		want        string
	}{
		"good":            {Fingerprint(der), der, key, 0o600, ""},
		"good, 5.5":       {fingerprint256(der), der, key, 0o600, ""},
		"another name":    {"aa:bb", der, key, 0o600, "Server MOK directory name 'aa:bb' doesn't match fingerprint from certificate " + Fingerprint(der)},
		"no key":          {Fingerprint(der), der, nil, 0o600, "Could not find server MOK files in directory"},
		"no certificate":  {Fingerprint(der), nil, key, 0o600, "Could not find server MOK files in directory"},
		"another's key":   {Fingerprint(der), der, other, 0o600, "do not fit together"},
		"open key":        {Fingerprint(der), der, key, 0o644, "too open"},
		"curve":           {Fingerprint(wide), wide, wideKey, 0o600, "P-256 or P-384"},
		"no certificate2": {"aa:bb", []byte("junk"), key, 0o600, "reading the certificate"},
		"no key2":         {Fingerprint(der), der, []byte("junk"), 0o600, "reading the key"},
	} {
		t.Run(name, func(t *testing.T) {
			store := t.TempDir()
			dir := filepath.Join(store, c.fingerprint)
			put(t, dir, c.der, c.key)
			if c.key != nil {
				if err := os.Chmod(filepath.Join(dir, KeyFile), c.mode); err != nil {
					t.Fatal(err)
				}
			}
			put(t, filepath.Join(store, "x509.genkey"), nil, nil) // no key's name: nobody looks
			var complaints []string
			keys := Keys(store, func(err error) { complaints = append(complaints, err.Error()) })
			text := strings.Join(complaints, "\n")
			if c.want == "" && (len(keys) != 1 || text != "") || c.want != "" && (len(keys) != 0 || !strings.Contains(text, c.want)) {
				t.Errorf("got %d keys, complaints %q, want %q", len(keys), text, c.want)
			}
		})
	}
}

func TestIsFingerprint(t *testing.T) {
	for s, want := range map[string]bool{
		"99:e7": true, "00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33": true,
		"": false, "99": false, "99:": false, "99:E7": false, "99:e": false, "../x": false, "99:e7\n": false, Missing: false,
		strings.Repeat("aa:", 40) + "aa": false,
	} {
		if got := IsFingerprint(s); got != want {
			t.Errorf("IsFingerprint(%q) = %v", s, got)
		}
	}
}

func TestCertificates(t *testing.T) {
	a, _ := small(t, "Systemtap", elliptic.P256())
	b, _ := small(t, "Somebody", elliptic.P256())
	hash := append([]byte("\x26\x16\xc4\xc1\x4c\x50\x92\x40\xac\xa9\x41\xf9\x36\x93\x43\x28"), 76, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0)
	hash = append(hash, make([]byte, 48)...)
	good := slices.Concat(SignatureList(a), hash, SignatureList([]byte("no certificate")), SignatureList(b))
	certs, err := Certificates(good)
	if err != nil || len(certs) != 2 || !bytes.Equal(certs[0].Raw, a) || !bytes.Equal(certs[1].Raw, b) {
		t.Fatalf("got %d certificates, %v", len(certs), err)
	}
	if got, want := Fingerprints(certs), []string{Fingerprint(a)}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := Fingerprints(certs[1:]); !slices.Equal(got, []string{Missing}) {
		t.Errorf("got %v, want missing", got)
	}
	list := SignatureList(a)
	for name, c := range map[string]struct {
		list []byte
		want string
	}{
		"cut off":       {list[:20], "cut off"},
		"short":         {list[:len(list)-1], "does not fit"},
		"size":          {append(append(bytes.Clone(list[:16]), 27, 0, 0, 0), list[20:]...), "does not fit"},
		"header":        {append(append(bytes.Clone(list[:20]), 0xff, 0xff, 0xff, 0xff), list[24:]...), "does not fit"},
		"entries of 0":  {append(append(bytes.Clone(list[:24]), 0, 0, 0, 0), list[28:]...), "do not fill"},
		"uneven length": {append(append(bytes.Clone(list[:24]), 17, 0, 0, 0), list[28:len(list)]...), "do not fill"},
	} {
		if (len(list)-listHeader)%17 == 0 && name == "uneven length" {
			continue
		}
		if _, err := Certificates(c.list); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want %q", name, err, c.want)
		}
	}
}

func FuzzCertificates(f *testing.F) {
	der, _ := small(f, "Systemtap", elliptic.P256())
	f.Add(SignatureList(der))
	f.Add(append(SignatureList(der), SignatureList([]byte("x"))...))
	f.Add(SignatureList(der)[:30])
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, _ := Certificates(b)
		size := 0
		for _, c := range certs {
			size += ownerSize + len(c.Raw)
		}
		if size > len(b) {
			t.Fatalf("certificates of %d bytes in all come from %d", size, len(b))
		}
	})
}

// TestHost reads a made /sys.
func TestHost(t *testing.T) {
	a, _ := small(t, "Systemtap", elliptic.P256())
	b, _ := small(t, "Systemtap", elliptic.P256())
	attributes := []byte{6, 0, 0, 0}
	for name, c := range map[string]struct {
		files    map[string]string
		boot     bool
		enrolled int
		err      string
	}{
		"nothing": {},
		"off":     {files: map[string]string{"firmware/efi/efivars/SecureBoot-" + globalGUID: string(attributes) + "\x00"}},
		"on":      {files: map[string]string{"firmware/efi/efivars/SecureBoot-" + globalGUID: string(attributes) + "\x01"}, boot: true},
		"two lists": {files: map[string]string{
			"firmware/efi/efivars/MokListRT-" + shimGUID:  string(attributes) + string(SignatureList(a)),
			"firmware/efi/efivars/MokListRT1-" + shimGUID: string(attributes) + string(SignatureList(b)),
		}, enrolled: 2},
		"too short": {files: map[string]string{"firmware/efi/efivars/MokListRT-" + shimGUID: "abc"}, err: "not a variable"},
		"broken":    {files: map[string]string{"firmware/efi/efivars/MokListRT-" + shimGUID: "abcdefg"}, err: "cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			h := Host{t.TempDir()}
			for path, text := range c.files {
				path = filepath.Join(h.Sys, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := h.SecureBoot(); got != c.boot {
				t.Errorf("SecureBoot: got %v", got)
			}
			certs, err := h.Enrolled()
			if len(certs) != c.enrolled || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("Enrolled: got %d, %v, want %d, %q", len(certs), err, c.enrolled, c.err)
			}
		})
	}
}

func TestLoadFiles(t *testing.T) {
	dir := t.TempDir()
	der, key := small(t, "Anybody", elliptic.P384())
	put(t, dir, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key)
	k, err := LoadFiles(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil || !bytes.Equal(k.Certificate.Raw, der) {
		t.Errorf("PEM: %v", err)
	}
	if _, err := LoadFiles(filepath.Join(dir, CertFile), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v", err)
	}
}
