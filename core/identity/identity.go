// Package identity is the key and certificate of a compile server. One key
// serves both purposes a server has: TLS peer and signer of modules.
//
// A server's directory (DATA/ssl/server, hostpaths.ServerIdentity) holds
//
//	stap.cert  the certificate, DER, 0644: what stap-authorize-cert takes
//	stap.key   the private key, PEM (PKCS #8), 0600
//
// The certificate follows the profile that clients in the field depend on
// (server-client 2.2):
//
//	serial     32 bits with the top bit set, so that its DER content is five
//	           octets, 00 first; the other 31 bits are random, because clients
//	           cannot hold two certificates of one issuer and serial
//	names      issuer and subject: OU=Systemtap, CN=Systemtap Compile Server,
//	           in this order, each a PrintableString
//	validity   twelve calendar months
//	key        RSA-3072, or ECDSA P-256 or Ed25519 on request
//	SAN        DNS names only, not critical: node name, node name up to the
//	           first dot + ".local", others; the first must be a DNS name
//	2.16.840.1.113730.1.1 (Netscape certificate type), critical: 03 02 00 51,
//	           SSL server + object signing + object signing CA
//	absent     basicConstraints (CA:TRUE is refused by real clients), key usage,
//	           extended key usage, key identifiers
//
// notBefore lies an hour back, for clients whose clock is a little slow.
package identity

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.step.sm/crypto/fingerprint"
	"go.step.sm/crypto/keyutil"
	"golang.org/x/sys/unix"

	"stapbox/core/nssdb"
	"stapbox/core/ownfile"
)

// Names of the two files.
const (
	CertFile = "stap.cert"
	KeyFile  = "stap.key"
)

// KeyType selects the algorithm of a new key.
type KeyType string

// The key types. Loaders of upstream verify RSA only.
const (
	RSA     KeyType = "rsa"
	ECDSA   KeyType = "ecdsa"
	Ed25519 KeyType = "ed25519"
)

// ParseKeyType reads the argument of --key-type.
func ParseKeyType(s string) (KeyType, error) {
	switch t := KeyType(s); t {
	case RSA, ECDSA, Ed25519:
		return t, nil
	}
	return "", fmt.Errorf("key type %q is not rsa, ecdsa or ed25519", s)
}

// Identity is a server's key with its certificate.
type Identity struct {
	Dir         string
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// Errors of Load by which Ensure decides to make a new identity.
var (
	ErrNotValid = errors.New("certificate is not valid")
	ErrBroken   = errors.New("key and certificate do not fit together")
)

// Options say what a new identity looks like.
type Options struct {
	NodeName string   // uname -n
	DNSNames []string // more names
	KeyType  KeyType  // RSA when empty
	Now      time.Time
}

// TLS is the identity as crypto/tls takes it.
func (id *Identity) TLS() tls.Certificate {
	return tls.Certificate{
		Certificate: [][]byte{id.Certificate.Raw},
		PrivateKey:  id.Key,
		Leaf:        id.Certificate,
	}
}

// CertInfo is the serial number of a certificate as listings, TXT records and
// --use-server show it: the content octets of the DER INTEGER in lower-case
// hex, colons between (server-client 2.3). It identifies nobody (decision T1).
func CertInfo(cert *x509.Certificate) string {
	octets := cert.SerialNumber.Bytes()
	if len(octets) == 0 || octets[0] >= 0x80 {
		octets = append([]byte{0}, octets...)
	}
	parts := make([]string, len(octets))
	for i, b := range octets {
		parts[i] = fmt.Sprintf("%02x", b)
	}
	return strings.Join(parts, ":")
}

// Fingerprint is the SHA-256 of a certificate in lower-case hex.
func Fingerprint(cert *x509.Certificate) string {
	// The only errors of New are for hashes that are not linked in.
	fp, _ := fingerprint.New(cert.Raw, crypto.SHA256, fingerprint.HexFingerprint)
	return fp
}

// New makes a key and a certificate, in memory.
func New(o Options) (*Identity, error) {
	var key crypto.Signer
	var err error
	switch o.KeyType {
	case RSA, "":
		key, err = keyutil.GenerateSigner("RSA", "", 3072)
	case ECDSA:
		key, err = keyutil.GenerateSigner("EC", "P-256", 0)
	case Ed25519:
		key, err = keyutil.GenerateSigner("OKP", "Ed25519", 0)
	default:
		_, err = ParseKeyType(string(o.KeyType))
	}
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	var serial [4]byte
	if _, err := io.ReadFull(rand.Reader, serial[:]); err != nil {
		return nil, fmt.Errorf("generating a serial number: %w", err)
	}
	serial[0] |= 0x80
	if o.NodeName == "" {
		return nil, errors.New("making a certificate: the host has no name")
	}
	short, _, _ := strings.Cut(o.NodeName, ".")
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(int64(binary.BigEndian.Uint32(serial[:]))),
		Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
			{Type: asn1.ObjectIdentifier{2, 5, 4, 11}, Value: "Systemtap"},
			{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "Systemtap Compile Server"},
		}},
		NotBefore: o.Now.Add(-time.Hour),
		NotAfter:  o.Now.AddDate(0, 12, 0),
		DNSNames:  append([]string{o.NodeName, short + ".local"}, o.DNSNames...),
		ExtraExtensions: []pkix.Extension{{
			Id:       asn1.ObjectIdentifier{2, 16, 840, 1, 113730, 1, 1},
			Critical: true,
			Value:    []byte{0x03, 0x02, 0x00, 0x51},
		}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	return &Identity{Certificate: cert, Key: key}, nil
}

// Generate makes an identity and puts it into dir, which is made when it is
// missing. An identity that was there is kept beside it.
func Generate(dir string, o Options) (*Identity, error) {
	id, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := id.store(dir); err != nil {
		return nil, err
	}
	return id, nil
}

// Adopt puts a key and a certificate from elsewhere into dir, in place of what
// was there: those of a server that its clients know already.
func Adopt(dir string, key crypto.Signer, cert *x509.Certificate, now time.Time) (*Identity, error) {
	if err := keyutil.VerifyPair(cert.PublicKey, key); err != nil {
		return nil, errors.Join(ErrBroken, err)
	}
	id := &Identity{Certificate: cert, Key: key}
	if err := id.Valid(now); err != nil {
		return nil, err
	}
	if err := id.store(dir); err != nil {
		return nil, err
	}
	return id, nil
}

// store writes the two files of an identity, after keeping those that are there.
func (id *Identity) store(dir string) error {
	id.Dir = dir
	if err := mkdirAll(dir); err != nil {
		return fmt.Errorf("making directory %q: %w", dir, err)
	}
	if err := keep(dir); err != nil {
		return fmt.Errorf("keeping the identity in %q: %w", dir, err)
	}
	key, err := ownfile.FormatKey(id.Key)
	if err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	if err := write(dir, KeyFile, key, 0o600); err != nil {
		return fmt.Errorf("writing %q: %w", filepath.Join(dir, KeyFile), err)
	}
	if err := write(dir, CertFile, id.Certificate.Raw, 0o644); err != nil {
		return fmt.Errorf("writing %q: %w", filepath.Join(dir, CertFile), err)
	}
	return nil
}

// Load reads the identity in dir. A missing file is fs.ErrNotExist; a
// certificate whose time is over (or not come) is ErrNotValid and comes with
// the identity, for those who want to show its dates.
func Load(dir string, now time.Time) (*Identity, error) {
	der, err := ownfile.Read(filepath.Join(dir, CertFile), ownfile.Certificate)
	if err != nil {
		return nil, err
	}
	key, cert, err := parseFiles(dir, der)
	if err != nil {
		return nil, err
	}
	if err := keyutil.VerifyPair(cert.PublicKey, key); err != nil {
		return nil, fmt.Errorf("reading %q: %w", dir, errors.Join(ErrBroken, err))
	}
	id := &Identity{Dir: dir, Certificate: cert, Key: key}
	return id, id.Valid(now)
}

// parseFiles reads the key in dir, and a certificate.
func parseFiles(dir string, der []byte) (crypto.Signer, *x509.Certificate, error) {
	keyPEM, err := ownfile.Read(filepath.Join(dir, KeyFile), ownfile.Key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %q: %w", filepath.Join(dir, CertFile), errors.Join(ErrBroken, err))
	}
	key, err := ownfile.ParseKey(keyPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %q: %w", filepath.Join(dir, KeyFile), errors.Join(ErrBroken, err))
	}
	return key, cert, nil
}

// Valid reports whether the certificate may be used at this time.
func (id *Identity) Valid(now time.Time) error {
	if now.Before(id.Certificate.NotBefore) || now.After(id.Certificate.NotAfter) {
		return fmt.Errorf("%w at %s", ErrNotValid, now.UTC().Format(time.DateTime))
	}
	return nil
}

// Expired reports whether the time of the certificate is over, for good. One
// whose time has not come is the right one on a host with a wrong clock.
func (id *Identity) Expired(now time.Time) bool { return now.After(id.Certificate.NotAfter) }

// timeLayout is how the server log shows the dates of certificates.
const timeLayout = "Mon Jan _2 15:04:05 2006"

// Ensure loads the identity in dir and makes a new one when there is none, its
// time is over, or its files do not fit together. Other errors, such as a key
// that others may read, are not repaired. A certificate whose time has not come
// is kept: clients trust it, and a clock that was set back is set right again.
// Of several at the same time one makes the identity of all. The lines given to
// log are those of server-client 4.2.
func Ensure(dir string, o Options, log func(format string, args ...any)) (*Identity, error) {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		log("Certificate database %s does not exist", dir)
	} else {
		id, err := Load(dir, o.Now)
		if id != nil {
			log("Certificate found in database %s", dir)
			log("  Not Valid Before: %s UTC", id.Certificate.NotBefore.UTC().Format(timeLayout))
			log("  Not Valid After: %s UTC", id.Certificate.NotAfter.UTC().Format(timeLayout))
		}
		switch {
		case err == nil:
			log("Certificate is valid")
			return id, nil
		case errors.Is(err, ErrNotValid) && !id.Expired(o.Now):
			if kept, err := lockedTakeBack(dir, o.Now, log); kept != nil || err != nil {
				return kept, err
			}
			log("Certificate is not valid yet: the clock of this host, %s UTC, seems to be wrong. It is used all the same.", o.Now.UTC().Format(timeLayout))
			return id, nil
		case errors.Is(err, ErrNotValid):
			log("Certificate is not valid")
			if kept, err := lockedTakeBack(dir, o.Now, log); kept != nil || err != nil {
				return kept, err
			}
		case errors.Is(err, fs.ErrNotExist):
			log("No certificate found in database %s", dir)
			if nssdb.Has(dir) {
				log("It is an NSS database: stap-gen-cert --import=%s would keep its certificate, which clients may trust", dir)
			}
		case errors.Is(err, ErrBroken):
			log("%v", err)
		default:
			return nil, err
		}
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("making an identity in %q: %w", dir, err)
	}
	defer lock.Close()
	if id, err := Load(dir, o.Now); err == nil {
		return id, nil // another was quicker
	}
	log("Generating a new certificate database directory in %s", dir)
	return Generate(dir, o)
}

// lockedTakeBack is takeBack for one process at a time.
func lockedTakeBack(dir string, now time.Time, log func(format string, args ...any)) (*Identity, error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for an identity in %q: %w", dir, err)
	}
	defer lock.Close()
	if id, err := Load(dir, now); err == nil {
		return id, nil // another was quicker
	}
	id, err := takeBack(dir, now)
	if id != nil {
		log("Certificate sha256=%s, which was kept, is valid now and takes over", Fingerprint(id.Certificate))
	}
	return id, err
}

// lockDir makes a directory if it is missing, and locks it until the file is
// closed.
func lockDir(dir string) (*os.File, error) {
	if err := mkdirAll(dir); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return ownfile.Lock(context.Background(), d, ownfile.LockName, lockTime)
}

// lockTime is how long another process is waited for, which may have to make an
// RSA key.
const lockTime = 30 * time.Second

// mkdirAll makes the missing directories of a path with mode 0755, whatever
// the umask is (a umask of 0 must not open them, one of 077 must not hide the
// certificate).
func mkdirAll(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return syscall.ENOTDIR
		}
		return nil
	}
	if err := mkdirAll(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	// By its descriptor: in another user's directory it may be a link by now.
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Chmod(0o755)
}

func write(dir, name string, data []byte, mode fs.FileMode) error {
	tmp := filepath.Join(dir, ".tmp-"+rand.Text())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}
