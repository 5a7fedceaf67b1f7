// Package signing makes and verifies module signatures, the files NAME.ko.sgn
// beside NAME.ko (loader-relay 4.5, server-client 8.1, decision L7).
//
// The file holds the bare signature over the complete module file as shipped:
// no header, no length, no certificate, no key identifier. By key type:
//
//	RSA      RSASSA-PKCS1-v1_5 (RFC 8017, 8.2), exactly the size of the modulus
//	         00 01 FF .. FF 00 || DigestInfo || SHA-256(module)
//	         DigestInfo for SHA-256: 30 31 30 0d 06 09 60 86 48 01 65 03 04 02 01 05 00 04 20
//	         DigestInfo for SHA-1:   30 21 30 09 06 05 2b 0e 03 02 1a 05 00 04 14
//	ECDSA    ASN.1 SEQUENCE of r and s (RFC 3279, 2.2.3) over SHA-256(module)
//	Ed25519  64 octets (RFC 8032) over the module itself
//
// Signatures are made with SHA-256. SHA-1, which releases up to 5.4 make, is
// verified only where Policy.AllowSHA1 says so.
//
// The package is part of the privileged path: it imports the standard library
// only, and reads no file.
package signing

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"
)

// Extension is what a signature file's name adds to its module's.
const Extension = ".sgn"

// Limits on keys and signatures. A signature is as long as the RSA modulus.
const (
	MinRSABits       = 2048
	MaxRSABits       = 8192
	MaxSignatureSize = MaxRSABits / 8
)

// Verdict is the answer of Verify.
type Verdict int

// Untrusted is the zero value: what nobody vouches for.
const (
	Untrusted  Verdict = iota // no trusted signer made this signature
	OK                        // a trusted signer made it over these very bytes
	Altered                   // a trusted RSA signer signed other bytes than these
	CheckError                // the check could not be made
	Denied                    // a revoked signer or a denied module: refused for everybody
)

// String names a verdict for logs.
func (v Verdict) String() string {
	switch v {
	case Untrusted:
		return "untrusted"
	case OK:
		return "ok"
	case Altered:
		return "altered"
	case CheckError:
		return "check-error"
	case Denied:
		return "denied"
	}
	return fmt.Sprintf("verdict(%d)", int(v))
}

// Signer is a certificate that may vouch for modules.
type Signer struct {
	Certificate *x509.Certificate
	Revoked     bool // known, and not to be believed any more
}

// Policy is what the administrator set.
type Policy struct {
	AllowSHA1     bool // accept RSA signatures over SHA-1 (servers up to 5.4)
	RefuseExpired bool // a signer who has expired, or is not valid yet, is an untrusted one; else a warning
	Now           time.Time
	Denied        map[[sha256.Size]byte]bool // modules nobody may load, by SHA-256
}

// Result is a verdict and what it rests on.
type Result struct {
	Verdict Verdict
	Reason  string            // one line, for the audit record and for messages
	Warning string            // not empty when OK was given in spite of something
	Signer  *x509.Certificate // whose key decided, when one did
	Digest  [sha256.Size]byte // SHA-256 of the module
}

// Fingerprint is the SHA-256 of a certificate in lower-case hex, the name by
// which trust stores, prompts and audit lines know it.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Sign makes the contents of a .sgn file for a module.
func Sign(module []byte, key crypto.Signer) ([]byte, error) {
	digest := sha256.Sum256(module)
	switch k := key.Public().(type) {
	case *rsa.PublicKey:
		if err := checkRSA(k); err != nil {
			return nil, fmt.Errorf("signing a module: %w", err)
		}
		return key.Sign(rand.Reader, digest[:], crypto.SHA256)
	case *ecdsa.PublicKey:
		return key.Sign(rand.Reader, digest[:], crypto.SHA256)
	case ed25519.PublicKey:
		return key.Sign(rand.Reader, module, crypto.Hash(0))
	default:
		return nil, fmt.Errorf("signing a module: key type %T is not RSA, ECDSA or Ed25519", k)
	}
}

// Verify tries the signature against every signer in turn, as the bare format
// demands. The first signer whose key explains the signature decides.
func Verify(module, sig []byte, signers []Signer, policy Policy) Result {
	res := Result{Digest: sha256.Sum256(module)}
	if policy.Denied[res.Digest] {
		res.Verdict = Denied
		res.Reason = fmt.Sprintf("module sha256:%x is on the list of denied modules", res.Digest)
		return res
	}
	switch {
	case len(sig) == 0:
		res.Verdict, res.Reason = CheckError, "the signature is empty"
		return res
	case len(sig) > MaxSignatureSize:
		res.Verdict = CheckError
		res.Reason = fmt.Sprintf("the signature has more than %d bytes", MaxSignatureSize)
		return res
	case len(signers) == 0:
		res.Reason = "there are no trusted signers"
		return res
	}
	res.Reason = fmt.Sprintf("none of %d known signers made the signature", len(signers))
	for _, s := range signers {
		if s.Certificate == nil {
			continue
		}
		match, reason := check(module, res.Digest, sig, s.Certificate.PublicKey, policy)
		if reason != "" && match == noMatch {
			// A key that cannot be used, or a hash that is not accepted.
			res.Reason = fmt.Sprintf("%s (signer sha256:%s)", reason, Fingerprint(s.Certificate))
		}
		if match == noMatch {
			continue
		}
		res.Signer = s.Certificate
		name := "sha256:" + Fingerprint(s.Certificate)
		switch {
		case s.Revoked:
			res.Verdict = Denied
			res.Reason = "the certificate of signer " + name + " is revoked"
		case match == otherBytes:
			res.Verdict = Altered
			res.Reason = "signer " + name + " signed other bytes than these"
		default:
			res.Verdict, res.Reason = OK, "signed by "+name
			if when := outOfTime(s.Certificate, policy.Now); when != "" && policy.RefuseExpired {
				res.Verdict = Untrusted
				res.Reason = fmt.Sprintf("the certificate of signer %s %s and the policy refuses that", name, when)
			} else if when != "" {
				res.Warning = fmt.Sprintf("the certificate of signer %s %s", name, when)
			}
		}
		return res
	}
	return res
}

// outOfTime says how a certificate is outside its validity, "" if it is inside.
// Either way it only warns by default: a host whose clock is wrong must still
// load what it trusts.
func outOfTime(c *x509.Certificate, now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		return "expired on " + c.NotAfter.UTC().Format(time.DateOnly)
	case now.Before(c.NotBefore):
		return "is not valid before " + c.NotBefore.UTC().Format(time.DateOnly)
	}
	return ""
}

type match int

const (
	noMatch    match = iota // this key says nothing about the signature
	otherBytes              // this key signed, but other bytes
	sameBytes               // this key signed these bytes
)

func check(module []byte, digest [sha256.Size]byte, sig []byte, pub any, policy Policy) (match, string) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return checkPKCS1(module, digest, sig, k, policy)
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, digest[:], sig) {
			return sameBytes, ""
		}
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize && ed25519.Verify(k, module, sig) {
			return sameBytes, ""
		}
	default:
		return noMatch, fmt.Sprintf("key type %T is not RSA, ECDSA or Ed25519", pub)
	}
	return noMatch, ""
}

func checkRSA(k *rsa.PublicKey) error {
	switch bits := k.N.BitLen(); {
	case bits < MinRSABits:
		return fmt.Errorf("RSA key has %d bits, at least %d are required", bits, MinRSABits)
	case bits > MaxRSABits:
		return fmt.Errorf("RSA key has %d bits, at most %d are accepted", bits, MaxRSABits)
	case k.N.Bit(0) == 0:
		return fmt.Errorf("RSA modulus is even")
	case k.E < 3 || k.E&1 == 0:
		return fmt.Errorf("RSA exponent %d is not an odd number from 3 on", k.E)
	}
	return nil
}

var (
	prefixSHA256 = []byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}
	prefixSHA1   = []byte{0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14}
)

// checkPKCS1 recovers the encoded message and compares it with the only two
// encodings that could be there (RFC 8017, 8.2.2: compare, do not parse). A
// right encoding with another digest is what tells "altered" from "made with
// another key"; rsa.VerifyPKCS1v15 answers the same error to both, so it only
// has the last word on success.
func checkPKCS1(module []byte, digest [sha256.Size]byte, sig []byte, k *rsa.PublicKey, policy Policy) (match, string) {
	if err := checkRSA(k); err != nil {
		return noMatch, err.Error()
	}
	if len(sig) != k.Size() {
		return noMatch, ""
	}
	s := new(big.Int).SetBytes(sig)
	if s.Cmp(k.N) >= 0 {
		return noMatch, ""
	}
	em := s.Exp(s, big.NewInt(int64(k.E)), k.N).FillBytes(make([]byte, k.Size()))
	if got, ok := digestOf(em, prefixSHA256, sha256.Size); ok {
		if !bytes.Equal(got, digest[:]) {
			return otherBytes, ""
		}
		if err := rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], sig); err != nil {
			return noMatch, err.Error()
		}
		return sameBytes, ""
	}
	if got, ok := digestOf(em, prefixSHA1, sha1.Size); ok {
		if !policy.AllowSHA1 {
			return noMatch, "the signature uses SHA-1, which the policy does not allow"
		}
		sum := sha1.Sum(module)
		if !bytes.Equal(got, sum[:]) {
			return otherBytes, ""
		}
		if err := rsa.VerifyPKCS1v15(k, crypto.SHA1, sum[:], sig); err != nil {
			return noMatch, err.Error()
		}
		return sameBytes, ""
	}
	return noMatch, ""
}

// digestOf returns the digest at the end of an encoded message, if all that
// comes before it is exactly what PKCS #1 v1.5 puts there for this hash.
func digestOf(em, prefix []byte, size int) ([]byte, bool) {
	padding := len(em) - size - len(prefix) - 3
	if padding < 8 || em[0] != 0 || em[1] != 1 {
		return nil, false
	}
	for _, b := range em[2 : 2+padding] {
		if b != 0xff {
			return nil, false
		}
	}
	rest := em[2+padding:]
	if rest[0] != 0 || !bytes.Equal(rest[1:1+len(prefix)], prefix) {
		return nil, false
	}
	return rest[1+len(prefix):], true
}
