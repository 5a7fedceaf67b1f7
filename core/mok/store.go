// Package mok is about machine owner keys (MOK): keys that the owner of a
// machine with Secure Boot has enrolled there, and whose signatures on modules
// its kernel accepts (server-client 8.5).
//
// A compile server keeps them in a store, DATA/ssl/server/moks:
//
//	x509.genkey                       upstream's settings for openssl, not read
//	FINGERPRINT/signing_key.x509      the certificate, DER
//	FINGERPRINT/signing_key.priv      the private key, PEM (PKCS #8), 0600
//
// FINGERPRINT is the SHA-1 of the certificate in lower-case hex with colons
// between the octets, which is what mokutil prints and what goes over the wire;
// release 5.5 uses SHA-256 instead. It is a name: what is signed with is the
// key in the directory, after certificate and key were compared.
//
// A client finds what is enrolled on its machine in the variables of the
// firmware (firmware.go).
package mok

import (
	"crypto"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.step.sm/crypto/keyutil"

	"stapbox/core/modsig"
	"stapbox/core/ownfile"
)

// Names of the two files of a key.
const (
	CertFile = "signing_key.x509"
	KeyFile  = "signing_key.priv"
)

// Missing stands among the fingerprints of a client that has no key enrolled
// that could be a server's.
const Missing = "missing"

const maxKeys = 64

// Key is a machine owner key.
type Key struct {
	Dir         string
	Certificate *x509.Certificate
	Signer      crypto.Signer
}

// Fingerprint is the name of a certificate, SHA-1 in hex with colons.
func Fingerprint(der []byte) string {
	sum := sha1.Sum(der)
	return colons(sum[:])
}

// fingerprint256 is the name that release 5.5 gives it.
func fingerprint256(der []byte) string {
	sum := sha256.Sum256(der)
	return colons(sum[:])
}

func colons(sum []byte) string {
	parts := make([]string, len(sum))
	for i, b := range sum {
		parts[i] = hex.EncodeToString([]byte{b})
	}
	return strings.Join(parts, ":")
}

// IsFingerprint accepts two or more pairs of lower-case hex digits with colons
// between them. Such a name is no path.
func IsFingerprint(s string) bool {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > sha256.Size {
		return false
	}
	for _, p := range parts {
		if len(p) != 2 || strings.Trim(p, "0123456789abcdef") != "" {
			return false
		}
	}
	return true
}

// Fingerprint is the name of the key.
func (k *Key) Fingerprint() string { return Fingerprint(k.Certificate.Raw) }

// Is reports whether a client means this key.
func (k *Key) Is(fingerprint string) bool {
	return fingerprint == k.Fingerprint() || fingerprint == fingerprint256(k.Certificate.Raw)
}

// Keys reads the keys of a store, in the order of their names. A store that is
// not there has none. What looks like a key and cannot be used is complained
// about and left out.
func Keys(store string, complain func(error)) []*Key {
	entries, err := os.ReadDir(store)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			complain(fmt.Errorf("Could not open server MOK directory %s: %w", store, err))
		}
		return nil
	}
	var out []*Key
	for _, e := range entries {
		if !IsFingerprint(e.Name()) {
			continue
		}
		k, err := Load(filepath.Join(store, e.Name()))
		if err == nil && !k.Is(e.Name()) {
			err = fmt.Errorf("Server MOK directory name '%s' doesn't match fingerprint from certificate %s", e.Name(), k.Fingerprint())
		}
		if err != nil {
			complain(err)
			continue
		}
		if out = append(out, k); len(out) == maxKeys {
			break
		}
	}
	return out
}

// Load reads the key of one directory.
func Load(dir string) (*Key, error) {
	der, err := ownfile.Read(filepath.Join(dir, CertFile), ownfile.Certificate)
	if err != nil {
		return nil, missing(dir, err)
	}
	text, err := ownfile.Read(filepath.Join(dir, KeyFile), ownfile.Key)
	if err != nil {
		return nil, missing(dir, err)
	}
	return load(dir, der, text)
}

func missing(dir string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("Could not find server MOK files in directory %s: %w", dir, err)
	}
	return err
}

// LoadFiles reads a key from two files of any name: the certificate in DER or
// PEM, the private key in PEM.
func LoadFiles(cert, key string) (*Key, error) {
	der, err := ownfile.Read(cert, ownfile.Certificate)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(der); block != nil && block.Type == "CERTIFICATE" {
		der = block.Bytes
	}
	text, err := ownfile.Read(key, ownfile.Key)
	if err != nil {
		return nil, err
	}
	return load(cert, der, text)
}

func load(from string, der, text []byte) (*Key, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate of %q: %w", from, err)
	}
	signer, err := ownfile.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("reading the key of %q: %w", from, err)
	}
	if err := keyutil.VerifyPair(cert.PublicKey, signer); err != nil {
		return nil, fmt.Errorf("reading %q: key and certificate do not fit together: %w", from, err)
	}
	if err := modsig.CheckKey(cert.PublicKey); err != nil {
		return nil, fmt.Errorf("reading %q: %w", from, err)
	}
	return &Key{Dir: from, Certificate: cert, Signer: signer}, nil
}

// Generate makes a key and puts it into a store, which is made when it is
// missing. The certificate follows the profile of upstream's (server-client
// 8.5): O=Systemtap, CN=Systemtap module signing key, by which clients know it
// among what is enrolled; RSA-4096, a hundred years, no CA, signatures only.
func Generate(store string, now time.Time) (*Key, error) {
	key, err := keyutil.GenerateSigner("RSA", "", 4096)
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	var serial [20]byte
	if _, err := io.ReadFull(rand.Reader, serial[:]); err != nil {
		return nil, fmt.Errorf("generating a serial number: %w", err)
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive, and of this length
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(public, &spki); err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	id := sha1.Sum(spki.Key.Bytes) // RFC 5280, 4.2.1.2, method 1
	utf8 := func(s string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)} }
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]),
		Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
			{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: utf8("Systemtap")},
			{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: utf8("Systemtap module signing key")},
		}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, 36500),
		SignatureAlgorithm: x509.SHA256WithRSA, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: id[:],
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	keyPEM, err := ownfile.FormatKey(key)
	if err != nil {
		return nil, fmt.Errorf("writing a key: %w", err)
	}
	if err := os.MkdirAll(store, 0o755); err != nil {
		return nil, fmt.Errorf("making the store of keys: %w", err)
	}
	// A directory of another name until it is complete.
	work, err := os.MkdirTemp(store, ".new-") // 0700
	if err != nil {
		return nil, fmt.Errorf("making a directory for a key: %w", err)
	}
	defer os.RemoveAll(work)
	for name, b := range map[string][]byte{CertFile: der, KeyFile: keyPEM} {
		if err := os.WriteFile(filepath.Join(work, name), b, 0o600); err != nil {
			return nil, fmt.Errorf("writing a key: %w", err)
		}
	}
	dir := filepath.Join(store, Fingerprint(der))
	if err := os.Rename(work, dir); err != nil {
		return nil, fmt.Errorf("writing a key: %w", err)
	}
	return &Key{Dir: dir, Certificate: cert, Signer: key}, nil
}
