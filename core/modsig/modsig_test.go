package modsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func certificate(t testing.TB, key crypto.Signer, serial int64) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{Organization: []string{"Systemtap"}, CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: []byte{1, 2, 3, 4},
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

func keys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]crypto.Signer{"rsa": r}
	for name, c := range map[string]elliptic.Curve{"p256": elliptic.P256(), "p384": elliptic.P384()} {
		if out[name], err = ecdsa.GenerateKey(c, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

var module = []byte("\x7fELF is what a module begins with, the rest does not matter here")

func TestAppend(t *testing.T) {
	for name, key := range keys(t) {
		t.Run(name, func(t *testing.T) {
			cert, other := certificate(t, key, 7), certificate(t, key, 8)
			image, err := Append(module, cert, key)
			if err != nil {
				t.Fatal(err)
			}
			got, message, err := Split(image)
			if err != nil || !bytes.Equal(got, module) {
				t.Fatalf("Split gives %q, %v", got, err)
			}
			trailer := image[len(module)+len(message):]
			want := append([]byte{0, 0, 2, 0, 0, 0, 0, 0, 0, 0, byte(len(message) >> 8), byte(len(message))}, Magic...)
			if !bytes.Equal(trailer, want) {
				t.Errorf("got trailer % x, want % x", trailer, want)
			}
			s, err := Verify(image, cert)
			if err != nil {
				t.Fatal(err)
			}
			if s.HashName != "sha256" || s.Serial.Int64() != 7 || s.KeyID != nil {
				t.Errorf("got %+v", s)
			}
			if _, err := Verify(image, other); err == nil || !strings.Contains(err.Error(), "another certificate") {
				t.Errorf("another certificate: got error %v", err)
			}
			changed := bytes.Clone(image)
			changed[3] ^= 1
			if _, err := Verify(changed, cert); err == nil || !strings.Contains(err.Error(), "not over these bytes") {
				t.Errorf("changed module: got error %v", err)
			}
			if _, err := Append(image, cert, key); err == nil {
				t.Error("a signed module was signed again")
			}
		})
	}
}

func TestAppendRefuses(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	big, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key, other crypto.Signer
		want       string
	}{
		"ed25519":     {ed, ed, "is not RSA or ECDSA"},
		"p521":        {big, big, "P-256 or P-384"},
		"another key": {big, ed, "not that of the certificate"},
	} {
		if _, err := Append(module, certificate(t, c.key, 1), c.other); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want %q", name, err, c.want)
		}
	}
}

// TestOpenSSL has the message verified by another implementation, and takes one
// of that implementation, made as sign-file makes it, also by key identifier.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	for name, key := range keys(t) {
		cert := certificate(t, key, 0x1234567890)
		image, err := Append(module, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		_, message, err := Split(image)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for f, b := range map[string][]byte{
			"module": module, "message": message,
			"cert": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
			"key":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		} {
			if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		run := func(args ...string) {
			t.Helper()
			cmd := exec.Command(openssl, args...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: openssl %s: %v\n%s", name, strings.Join(args, " "), err, out)
			}
		}
		run("cms", "-verify", "-binary", "-inform", "DER", "-in", "message", "-content", "module", "-certfile", "cert", "-nointern", "-noverify", "-out", "/dev/null")
		for _, more := range [][]string{{"-md", "sha256"}, {"-md", "sha384"}, {"-md", "sha512"}, {"-md", "sha512", "-keyid"}} {
			run(append([]string{"cms", "-sign", "-binary", "-noattr", "-nocerts", "-nosmimecap", "-outform", "DER",
				"-in", "module", "-signer", "cert", "-inkey", "key", "-out", "theirs"}, more...)...)
			theirs, err := os.ReadFile(filepath.Join(dir, "theirs"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Verify(join(module, theirs), cert); err != nil {
				t.Errorf("%s %v: %v", name, more, err)
			}
		}
	}
}

func join(module, message []byte) []byte {
	out := append(bytes.Clone(module), message...)
	out = append(out, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, byte(len(message)>>8), byte(len(message)))
	return append(out, Magic...)
}

func TestSplitRefuses(t *testing.T) {
	good := join(module, []byte("message"))
	with := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[len(c)-len(Magic)-infoSize+at] = b
		return c
	}
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"cut off":            {[]byte("x" + Magic), "cut off"},
		"another type":       {with(2, 1), "not PKCS #7"},
		"algorithm":          {with(0, 1), "not zero"},
		"key id":             {with(4, 1), "not zero"},
		"no length":          {with(11, 0), "does not fit"},
		"length of all":      {with(11, byte(len(module)+7)), "does not fit"},
		"length beyond":      {with(10, 1), "does not fit"},
		"length beyond, top": {with(8, 0xff), "does not fit"},
	} {
		var format *FormatError
		if _, _, err := Split(c.image); !errors.As(err, &format) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want %q", name, err, c.want)
		}
	}
	if _, _, err := Split(module); !errors.Is(err, ErrUnsigned) {
		t.Errorf("got error %v, want ErrUnsigned", err)
	}
}

func FuzzVerify(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	cert := certificate(f, key, 7)
	image, err := Append(module, cert, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image)
	f.Add(module)
	f.Add(join(module, []byte{0x30, 0x80}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Verify(b, cert)
		if err != nil {
			return
		}
		if got, _, _ := Split(b); !bytes.Equal(got, module) {
			t.Fatalf("%+v verifies for another module", s)
		}
	})
}
