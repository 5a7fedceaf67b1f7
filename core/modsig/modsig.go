// Package modsig makes and reads the signature that the kernel itself looks for
// at the end of a module, as the kernel's scripts/sign-file writes it
// (server-client 8.5; the kernel's include/linux/module_signature.h and
// Documentation/admin-guide/module-signing.rst).
//
// A signed module is
//
//	the module     ELF, what the signature is over
//	the message    DER, see below
//	12 octets      struct module_signature:
//	               00           algo, unused with a PKCS #7 message
//	               00           hash, unused
//	               02           id_type, PKEY_ID_PKCS7
//	               00           signer_len, unused
//	               00           key_id_len, unused
//	               00 00 00     padding
//	               nn nn nn nn  length of the message, big endian
//	28 octets      "~Module signature appended~\n"
//
// The message is a CMS ContentInfo (RFC 5652) with the least that can be in it:
// the module is not inside, no certificate, no signed attributes, so the
// signature is over the digest of the module and nothing else.
//
//	SEQUENCE
//	  OID signedData (1.2.840.113549.1.7.2)
//	  [0] SEQUENCE
//	    INTEGER 1
//	    SET    SEQUENCE { OID of the hash }                digestAlgorithms
//	    SEQUENCE { OID data (1.2.840.113549.1.7.1) }       no content
//	    SET SEQUENCE                                       one signerInfo
//	      INTEGER 1
//	      SEQUENCE { issuer Name, serial INTEGER }         whose certificate
//	      SEQUENCE { OID of the hash }
//	      SEQUENCE { OID rsaEncryption, NULL }             RSASSA-PKCS1-v1_5, or
//	      SEQUENCE { OID ecdsa-with-SHAnnn }
//	      OCTET STRING                                     the signature
//
// Instead of issuer and serial a message may name the key by its identifier,
// [0] with the octets of the certificate's subjectKeyIdentifier, and both
// versions are 3 then (sign-file -k). Such messages are read but not made.
//
// Any change of the module, of its name too, makes the signature a false one:
// kernels that know the key refuse the module then, even where unsigned ones
// may be loaded.
package modsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256.New
	_ "crypto/sha512" // for crypto.SHA384.New and crypto.SHA512.New
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

// Magic ends every signed module.
const Magic = "~Module signature appended~\n"

const (
	infoSize   = 12
	idPKCS7    = 2
	maxMessage = 64 << 10
)

// ErrUnsigned is returned for modules without an appended signature.
var ErrUnsigned = errors.New("the module has no appended signature")

// FormatError says what is wrong with an appended signature.
type FormatError struct{ Text string }

func (e *FormatError) Error() string { return "appended signature: " + e.Text }

func formatError(format string, args ...any) error {
	return &FormatError{fmt.Sprintf(format, args...)}
}

// Split takes a signed module apart.
func Split(image []byte) (module, message []byte, err error) {
	rest, ok := bytes.CutSuffix(image, []byte(Magic))
	if !ok {
		return nil, nil, ErrUnsigned
	}
	if len(rest) < infoSize {
		return nil, nil, formatError("it is cut off")
	}
	rest, info := rest[:len(rest)-infoSize], rest[len(rest)-infoSize:]
	if info[2] != idPKCS7 {
		return nil, nil, formatError("type %d is not PKCS #7", info[2])
	}
	if info[0]|info[1]|info[3]|info[4]|info[5]|info[6]|info[7] != 0 {
		return nil, nil, formatError("fields that mean nothing are not zero")
	}
	size := binary.BigEndian.Uint32(info[8:])
	if size == 0 || size > maxMessage || uint64(size) >= uint64(len(rest)) {
		return nil, nil, formatError("length %d does not fit", size)
	}
	at := len(rest) - int(size)
	return rest[:at:at], rest[at:], nil
}

// Object identifiers. They are functions because nothing is made before main.
func oidData() asn1.ObjectIdentifier   { return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1} }
func oidSigned() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2} }
func oidRSA() asn1.ObjectIdentifier    { return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1} }

// algorithm is a hash with its identifier (RFC 5754) and that of ECDSA with it
// (RFC 5758).
type algorithm struct {
	hash        crypto.Hash
	name        string // the kernel's
	oid, ecdsas asn1.ObjectIdentifier
}

func algorithms() []algorithm {
	nist := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, n} }
	ecdsas := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, n} }
	return []algorithm{
		{crypto.SHA256, "sha256", nist(1), ecdsas(2)},
		{crypto.SHA384, "sha384", nist(2), ecdsas(3)},
		{crypto.SHA512, "sha512", nist(3), ecdsas(4)},
	}
}

// The message, as encoding/asn1 takes it.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue // [0], with the signedData in it
	}
	signedData struct {
		Version          int
		DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
		Content          struct {
			Type    asn1.ObjectIdentifier
			Content asn1.RawValue `asn1:"optional,explicit,tag:0"`
		}
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		CRLs         asn1.RawValue `asn1:"optional,tag:1"`
		Signers      []signerInfo  `asn1:"set"`
	}
	signerInfo struct {
		Version            int
		Identifier         asn1.RawValue
		DigestAlgorithm    pkix.AlgorithmIdentifier
		SignedAttributes   asn1.RawValue `asn1:"optional,tag:0"`
		SignatureAlgorithm pkix.AlgorithmIdentifier
		Signature          []byte
		Attributes         asn1.RawValue `asn1:"optional,tag:1"`
	}
	issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
)

// Signature is what a message says.
type Signature struct {
	Issuer    []byte   // DER of the name of the certificate's issuer, with Serial; or
	Serial    *big.Int // nil, and
	KeyID     []byte   // the certificate's subjectKeyIdentifier
	Hash      crypto.Hash
	HashName  string // as the kernel and modinfo name it
	Algorithm string // "rsa" or "ecdsa"
	Bytes     []byte
}

// Parse reads a message that one signer has made in the plain form of the
// package comment.
func Parse(message []byte) (*Signature, error) {
	var outer contentInfo
	if rest, err := asn1.Unmarshal(message, &outer); err != nil || len(rest) > 0 {
		return nil, formatError("the message is not one DER value")
	}
	if !outer.Type.Equal(oidSigned()) || outer.Content.Class != asn1.ClassContextSpecific || outer.Content.Tag != 0 || !outer.Content.IsCompound {
		return nil, formatError("the message is not signedData")
	}
	var d signedData
	if rest, err := asn1.Unmarshal(outer.Content.Bytes, &d); err != nil || len(rest) > 0 {
		return nil, formatError("the signedData cannot be read")
	}
	if !d.Content.Type.Equal(oidData()) || len(d.Content.Content.FullBytes) > 0 {
		return nil, formatError("the message is not one about data outside of it")
	}
	if len(d.Signers) != 1 {
		return nil, formatError("%d signers are not one", len(d.Signers))
	}
	in := d.Signers[0]
	if len(in.SignedAttributes.FullBytes) > 0 {
		return nil, formatError("signed attributes are not supported")
	}
	s := &Signature{Bytes: in.Signature}
	switch id := in.Identifier; {
	case id.Class == asn1.ClassUniversal && id.Tag == asn1.TagSequence && id.IsCompound:
		var by issuerAndSerial
		if rest, err := asn1.Unmarshal(id.FullBytes, &by); err != nil || len(rest) > 0 {
			return nil, formatError("the signer cannot be read")
		}
		s.Issuer, s.Serial = by.Issuer.FullBytes, by.Serial
	case id.Class == asn1.ClassContextSpecific && id.Tag == 0 && !id.IsCompound && len(id.Bytes) > 0:
		s.KeyID = id.Bytes
	default:
		return nil, formatError("the signer is named in an unknown way")
	}
	for _, a := range algorithms() {
		if !in.DigestAlgorithm.Algorithm.Equal(a.oid) {
			continue
		}
		s.Hash, s.HashName = a.hash, a.name
		switch how := in.SignatureAlgorithm.Algorithm; {
		case how.Equal(oidRSA()):
			s.Algorithm = "rsa"
		case how.Equal(a.ecdsas):
			s.Algorithm = "ecdsa"
		default:
			return nil, formatError("signature algorithm %v is neither RSA nor ECDSA with %s", how, a.name)
		}
		return s, nil
	}
	return nil, formatError("hash %v is not SHA-256, SHA-384 or SHA-512", in.DigestAlgorithm.Algorithm)
}

// By reports whether the message names this certificate.
func (s *Signature) By(cert *x509.Certificate) bool {
	if s.Serial == nil {
		return bytes.Equal(s.KeyID, cert.SubjectKeyId)
	}
	return s.Serial.Cmp(cert.SerialNumber) == 0 && bytes.Equal(s.Issuer, cert.RawIssuer)
}

// Verify checks an appended signature as a kernel does that trusts this one
// certificate.
func Verify(image []byte, cert *x509.Certificate) (*Signature, error) {
	module, message, err := Split(image)
	if err != nil {
		return nil, err
	}
	s, err := Parse(message)
	if err != nil {
		return nil, err
	}
	if !s.By(cert) {
		return s, errors.New("the appended signature is by another certificate")
	}
	h := s.Hash.New()
	h.Write(module)
	digest := h.Sum(nil)
	ok := false
	switch k := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		ok = s.Algorithm == "rsa" && rsa.VerifyPKCS1v15(k, s.Hash, digest, s.Bytes) == nil
	case *ecdsa.PublicKey:
		ok = s.Algorithm == "ecdsa" && ecdsa.VerifyASN1(k, digest, s.Bytes)
	default:
		return s, fmt.Errorf("key type %T is not RSA or ECDSA", k)
	}
	if !ok {
		return s, errors.New("the appended signature is not over these bytes, or by another key")
	}
	return s, nil
}

// CheckKey reports why modules cannot be signed with a key.
func CheckKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 4096 {
			return fmt.Errorf("RSA key has %d bits, kernels take 2048 to 4096", bits)
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("curve %s is not one that kernels take: P-256 or P-384", k.Curve.Params().Name)
		}
	default:
		return fmt.Errorf("key type %T is not RSA or ECDSA", pub)
	}
	return nil
}

// Append gives a module the signature of a certificate's key. A module that has
// one already is refused: it would become part of what is signed, and kernels
// look at the last one only. The hash is SHA-256, which kernels have built in;
// SHA-512, upstream's, is a module in those of Debian, and without it a kernel
// rejects the signature.
func Append(module []byte, cert *x509.Certificate, key crypto.Signer) ([]byte, error) {
	if bytes.HasSuffix(module, []byte(Magic)) {
		return nil, errors.New("the module has an appended signature already")
	}
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the key is not that of the certificate")
	}
	if err := CheckKey(key.Public()); err != nil {
		return nil, err
	}
	a := algorithms()[0]
	h := a.hash.New()
	h.Write(module)
	sig, err := key.Sign(rand.Reader, h.Sum(nil), a.hash)
	if err != nil {
		return nil, fmt.Errorf("signing a module for the kernel: %w", err)
	}
	id, err := asn1.Marshal(issuerAndSerial{asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber})
	if err != nil {
		return nil, fmt.Errorf("naming the signer: %w", err)
	}
	how := pkix.AlgorithmIdentifier{Algorithm: a.ecdsas}
	if _, ok := key.Public().(*rsa.PublicKey); ok {
		how = pkix.AlgorithmIdentifier{Algorithm: oidRSA(), Parameters: asn1.NullRawValue}
	}
	hash := pkix.AlgorithmIdentifier{Algorithm: a.oid}
	d := signedData{
		Version: 1, DigestAlgorithms: []pkix.AlgorithmIdentifier{hash},
		Signers: []signerInfo{{
			Version: 1, Identifier: asn1.RawValue{FullBytes: id},
			DigestAlgorithm: hash, SignatureAlgorithm: how, Signature: sig,
		}},
	}
	d.Content.Type = oidData()
	inner, err := asn1.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("writing a signature: %w", err)
	}
	message, err := asn1.Marshal(contentInfo{oidSigned(), asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner}})
	if err != nil {
		return nil, fmt.Errorf("writing a signature: %w", err)
	}
	out := make([]byte, 0, len(module)+len(message)+infoSize+len(Magic))
	out = append(append(out, module...), message...)
	out = append(out, 0, 0, idPKCS7, 0, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(message)))
	return append(out, Magic...), nil
}
