package ownfile

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

func TestParseKey(t *testing.T) {
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		text string
		want crypto.Signer
	}{
		"RSA":                  {string(must(FormatKey(rsaKey))), rsaKey},
		"ECDSA":                {string(must(FormatKey(ecKey))), ecKey},
		"Ed25519":              {string(must(FormatKey(edKey))), edKey},
		"PKCS #1":              {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), rsaKey},
		"SEC 1":                {block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey))), ecKey},
		"parameters before it": {"text\n" + block("EC PARAMETERS", []byte{6, 0}) + block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey))), ecKey},
	} {
		key, err := ParseKey([]byte(tt.text))
		if err != nil || !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(tt.want.Public()) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	agree, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, text := range map[string]string{
		"no private key":   "text\n",
		"no private key i": block("CERTIFICATE", []byte{1}),
		"under a password": block("ENCRYPTED PRIVATE KEY", []byte{1}),
		"a password":       "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
		"cannot sign":      block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(agree))),
		"asn1":             block("PRIVATE KEY", []byte{0x30, 1}),
	} {
		if _, err := ParseKey([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN EC PARAMETERS-----\nBgA=\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if key, err := ParseKey(text); err == nil && key == nil {
			t.Error("no key and no error")
		}
	})
}
