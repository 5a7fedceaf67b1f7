package signing

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

var rsaKeys = sync.OnceValue(func() [2]*rsa.PrivateKey {
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = k
	}
	return keys
})

func signer(t testing.TB, key crypto.Signer) Signer {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "signer"},
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
	return Signer{Certificate: cert}
}

func keys(t testing.TB) map[string]crypto.Signer {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"rsa": rsaKeys()[0], "ecdsa": ec, "ed25519": ed}
}

// Requirements: R-000-036
func TestSignVerify(t *testing.T) {
	module := bytes.Repeat([]byte("module "), 1000)
	other := signer(t, rsaKeys()[1])
	for name, key := range keys(t) {
		t.Run(name, func(t *testing.T) {
			s := signer(t, key)
			sig, err := Sign(module, key)
			if err != nil {
				t.Fatal(err)
			}
			policy := Policy{Now: now}
			res := Verify(module, sig, []Signer{other, s}, policy)
			if res.Verdict != OK || res.Signer != s.Certificate || res.Warning != "" {
				t.Errorf("good signature: got %v (%s)", res.Verdict, res.Reason)
			}
			if want := sha256.Sum256(module); res.Digest != want {
				t.Errorf("digest: got %x, want %x", res.Digest, want)
			}
			if res := Verify(module, sig, []Signer{other}, policy); res.Verdict != Untrusted {
				t.Errorf("unknown signer: got %v, want untrusted", res.Verdict)
			}
			changed := bytes.Clone(module)
			changed[len(changed)/2] ^= 1
			want := Untrusted
			if name == "rsa" {
				want = Altered
			}
			if res := Verify(changed, sig, []Signer{other, s}, policy); res.Verdict != want {
				t.Errorf("module altered by a bit: got %v, want %v", res.Verdict, want)
			}
			bad := bytes.Clone(sig)
			bad[len(bad)/2] ^= 1
			if res := Verify(module, bad, []Signer{other, s}, policy); res.Verdict != Untrusted {
				t.Errorf("signature altered by a bit: got %v, want untrusted", res.Verdict)
			}
			if res := Verify(module, sig[:len(sig)-1], []Signer{s}, policy); res.Verdict != Untrusted {
				t.Errorf("truncated signature: got %v, want untrusted", res.Verdict)
			}
			if res := Verify(module, append(bytes.Clone(sig), 0), []Signer{s}, policy); res.Verdict != Untrusted {
				t.Errorf("signature with a byte more: got %v, want untrusted", res.Verdict)
			}
		})
	}
}

func TestVerifyPolicy(t *testing.T) {
	module := []byte("module")
	key := rsaKeys()[0]
	s := signer(t, key)
	sig, err := Sign(module, key)
	if err != nil {
		t.Fatal(err)
	}
	sum1 := sha1.Sum(module)
	sigSHA1, err := rsa.SignPKCS1v15(nil, key, crypto.SHA1, sum1[:])
	if err != nil {
		t.Fatal(err)
	}
	sum512 := sha512.Sum512(module)
	sigSHA512, err := rsa.SignPKCS1v15(nil, key, crypto.SHA512, sum512[:])
	if err != nil {
		t.Fatal(err)
	}
	late, early := now.Add(48*time.Hour), now.Add(-48*time.Hour)
	revoked := Signer{Certificate: s.Certificate, Revoked: true}
	for _, tt := range []struct {
		name    string
		module  string
		sig     []byte
		signers []Signer
		policy  Policy
		want    Verdict
		reason  string
		warning string
	}{
		{"no signers", "module", sig, nil, Policy{Now: now}, Untrusted, "no trusted signers", ""},
		{"empty signature", "module", nil, []Signer{s}, Policy{Now: now}, CheckError, "empty", ""},
		{"oversized signature", "module", make([]byte, MaxSignatureSize+1), []Signer{s}, Policy{Now: now}, CheckError, "more than", ""},
		{"expired, default", "module", sig, []Signer{s}, Policy{Now: late}, OK, "signed by", "expired on"},
		{"expired, refused", "module", sig, []Signer{s}, Policy{Now: late, RefuseExpired: true}, Untrusted, "the policy refuses that", ""},
		{"not yet valid, default", "module", sig, []Signer{s}, Policy{Now: early}, OK, "signed by", "is not valid before"},
		{"not yet valid, refused", "module", sig, []Signer{s}, Policy{Now: early, RefuseExpired: true}, Untrusted, "the policy refuses that", ""},
		{"revoked", "module", sig, []Signer{revoked}, Policy{Now: now}, Denied, "revoked", ""},
		{"denied module", "module", sig, []Signer{s}, Policy{Now: now, Denied: map[[32]byte]bool{sha256.Sum256(module): true}}, Denied, "denied modules", ""},
		{"SHA-1 by default", "module", sigSHA1, []Signer{s}, Policy{Now: now}, Untrusted, "SHA-1", ""},
		{"SHA-1 allowed", "module", sigSHA1, []Signer{s}, Policy{Now: now, AllowSHA1: true}, OK, "signed by", ""},
		{"SHA-1 allowed, altered", "modulf", sigSHA1, []Signer{s}, Policy{Now: now, AllowSHA1: true}, Altered, "other bytes", ""},
		{"SHA-512", "module", sigSHA512, []Signer{s}, Policy{Now: now}, Untrusted, "none of", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res := Verify([]byte(tt.module), tt.sig, tt.signers, tt.policy)
			if res.Verdict != tt.want || !strings.Contains(res.Reason, tt.reason) || !strings.Contains(res.Warning, tt.warning) || (tt.warning == "") != (res.Warning == "") {
				t.Errorf("got %v, reason %q, warning %q; want %v, %q, %q", res.Verdict, res.Reason, res.Warning, tt.want, tt.reason, tt.warning)
			}
		})
	}
}

// A signature that is its own encoded message must not verify under a key
// with exponent 1, and small keys are named as the reason.
func TestVerifyWeakKeys(t *testing.T) {
	good := rsaKeys()[0].PublicKey
	for _, tt := range []struct {
		name string
		key  rsa.PublicKey
		want string
	}{
		{"exponent 1", rsa.PublicKey{N: good.N, E: 1}, "exponent 1"},
		{"even exponent", rsa.PublicKey{N: good.N, E: 4}, "exponent 4"},
		{"1024 bits", rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 1023), big.NewInt(1)), E: 65537}, "1024 bits"},
		{"16384 bits", rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 16383), big.NewInt(1)), E: 65537}, "16384 bits"},
		{"even modulus", rsa.PublicKey{N: new(big.Int).Lsh(good.N, 1), E: 65537}, "even"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Signer{Certificate: &x509.Certificate{PublicKey: &tt.key}}
			res := Verify([]byte("m"), make([]byte, 256), []Signer{s}, Policy{Now: now})
			if res.Verdict != Untrusted || !strings.Contains(res.Reason, tt.want) {
				t.Errorf("got %v (%s), want untrusted with %q", res.Verdict, res.Reason, tt.want)
			}
		})
	}
}

func TestSignRefusesSmallKey(t *testing.T) {
	k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: big.NewInt(0xffff), E: 65537}}
	if _, err := Sign([]byte("m"), k); err == nil || !strings.Contains(err.Error(), "16 bits") {
		t.Errorf("got %v, want an error that names the 16 bits", err)
	}
}

func FuzzVerify(f *testing.F) {
	key := rsaKeys()[0]
	all := []Signer{signer(f, key)}
	for name, k := range keys(f) {
		if name != "rsa" {
			all = append(all, signer(f, k))
		}
	}
	sig, err := Sign([]byte("module"), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("module"), sig)
	f.Add([]byte("modulf"), sig)
	f.Add([]byte("module"), sig[:64])
	f.Add([]byte{}, []byte{0x30, 0x06, 2, 1, 1, 2, 1, 1})
	f.Fuzz(func(t *testing.T, module, s []byte) {
		res := Verify(module, s, all, Policy{Now: now, AllowSHA1: true})
		if res.Verdict == OK && !(bytes.Equal(module, []byte("module")) && bytes.Equal(s, sig)) {
			t.Errorf("OK for a signature nobody made: %x over %q", s, module)
		}
	})
}
