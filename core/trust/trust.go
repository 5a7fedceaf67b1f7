// Package trust reads trust stores: directories of certificates whose holders
// are believed, either as compile servers to talk to (peer stores) or as
// signers of modules (signer stores). It is part of the privileged path, so it
// imports the standard library, golang.org/x/sys and package signing only, and
// it never writes; package trust/edit does.
//
// A store is a directory with
//
//	HEX.pem   one certificate, HEX being the SHA-256 of its DER form in 64
//	          lower-case hex digits; see Certificate for the comment header
//	revoked   certificates not to be believed any more, also when a HEX.pem
//	          is there: one fingerprint per line
//	denied    modules nobody may load: one SHA-256 of a .ko file per line
//
// The two lists hold 64 hex digits per line, with or without "sha256:" before
// and with any text after white space; "#" starts a comment line. Their
// presence takes trust away, so a list that cannot be read or understood makes
// the whole store unusable, while a certificate that cannot be read only is
// not trusted. Files of other names are left alone.
//
// Every directory below Rules.Base, and every file read, must belong to one of
// Rules.Owners and be writable by its owner only (loader-relay 4.6). This is
// checked on open descriptors, from directory to directory, without following
// symbolic links (openat(2) with O_NOFOLLOW), so that what is checked is what
// is read. A store that breaks the rules is an UnsafeError.
package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/signing"
)

// Limits on what is read from a store.
const (
	MaxCertificates    = 1024
	MaxNames           = 4096
	MaxCertificateSize = 64 << 10
	MaxListSize        = 1 << 20
)

// Names of the two lists in a store.
const (
	RevokedList = "revoked"
	DeniedList  = "denied"
)

// Rules says who may own a store and where the checked part of its path begins.
type Rules struct {
	Owners []int  // user ids that may own the directories and files
	Base   string // an ancestor of the store; it and what is above it is not checked
}

// HostRules are those of the stores of the host: root's from the root
// directory down.
func HostRules() Rules { return Rules{Owners: []int{0}, Base: "/"} }

// UserRules are those of a user's own stores in his data directory
// (hostpaths.UserDir).
func UserRules(uid int, userDir string) Rules {
	return Rules{Owners: []int{uid, 0}, Base: filepath.Dir(filepath.Clean(userDir))}
}

// UnsafeError says that a store breaks the rules of ownership and modes and
// was not read, or not changed.
type UnsafeError struct {
	Path   string
	Kind   string // "directory" or "file"
	Reason string // "must be owned by root" ...
}

func (e *UnsafeError) Error() string {
	return fmt.Sprintf("%s %q %s", e.Kind, e.Path, e.Reason)
}

// Certificate is one trusted certificate and what its file says about it in
// the comment lines "# host: ...", "# added: ...", "# by: ..." and
// "# scope: ..." before the PEM block. They inform people and decide nothing.
type Certificate struct {
	*x509.Certificate
	Fingerprint string // SHA-256 of the DER form, lower-case hex
	Host        string
	Added       string
	By          string
	Scope       string
	Revoked     bool
}

// Store is the contents of a trust store.
type Store struct {
	Dir          string
	Certificates []Certificate // sorted by fingerprint, revoked ones included
	Revoked      map[[sha256.Size]byte]bool
	Denied       map[[sha256.Size]byte]bool
	Warnings     []string // files that were passed over, and why
}

// Signers is the store as signing.Verify takes it.
func (s *Store) Signers() []signing.Signer {
	out := make([]signing.Signer, 0, len(s.Certificates))
	for _, c := range s.Certificates {
		out = append(out, signing.Signer{Certificate: c.Certificate, Revoked: c.Revoked})
	}
	return out
}

// Find returns the certificate with exactly these DER octets. Revoked ones are
// found too: the caller looks at Revoked.
func (s *Store) Find(der []byte) (Certificate, bool) {
	for _, c := range s.Certificates {
		if bytes.Equal(c.Raw, der) {
			return c, true
		}
	}
	return Certificate{}, false
}

// Trusts reports whether exactly this certificate is in the store, not revoked
// and valid at the given time.
func (s *Store) Trusts(der []byte, now time.Time) error {
	c, ok := s.Find(der)
	switch {
	case !ok:
		return fmt.Errorf("certificate is not in trust store %q", s.Dir)
	case c.Revoked:
		return fmt.Errorf("certificate sha256:%s is revoked in trust store %q", c.Fingerprint, s.Dir)
	case now.After(c.NotAfter):
		return fmt.Errorf("certificate sha256:%s expired on %s", c.Fingerprint, c.NotAfter.UTC().Format(time.DateTime))
	case now.Before(c.NotBefore):
		return fmt.Errorf("certificate sha256:%s is not valid before %s", c.Fingerprint, c.NotBefore.UTC().Format(time.DateTime))
	}
	return nil
}

// Read reads the store in dir, an absolute path. A store that does not exist
// is an error that errors.Is fs.ErrNotExist.
func Read(dir string, rules Rules) (*Store, error) {
	d, err := Open(dir, rules, nil)
	if err != nil {
		return nil, fmt.Errorf("opening trust store: %w", err)
	}
	defer d.Close()
	return ReadFrom(d, rules)
}

// ReadFrom reads the store in a directory that Open returned.
func ReadFrom(d *os.File, rules Rules) (*Store, error) {
	s := &Store{Dir: d.Name()}
	var err error
	if s.Revoked, err = readList(d, RevokedList, rules); err != nil {
		return nil, err
	}
	if s.Denied, err = readList(d, DeniedList, rules); err != nil {
		return nil, err
	}
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading trust store %q: %w", s.Dir, err)
	}
	names, err := d.Readdirnames(MaxNames + 1)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading trust store %q: %w", s.Dir, err)
	}
	if len(names) > MaxNames {
		return nil, fmt.Errorf("trust store %q has more than %d files", s.Dir, MaxNames)
	}
	sort.Strings(names)
	for _, name := range names {
		if !strings.HasSuffix(name, ".pem") {
			continue
		}
		if len(s.Certificates) == MaxCertificates {
			return nil, fmt.Errorf("trust store %q has more than %d certificates", s.Dir, MaxCertificates)
		}
		c, err := readCertificate(d, name, rules)
		if err != nil {
			s.Warnings = append(s.Warnings, err.Error())
			continue
		}
		c.Revoked = s.Revoked[sha256.Sum256(c.Raw)]
		s.Certificates = append(s.Certificates, c)
	}
	return s, nil
}

// Open opens the directory of a store for reading, holding every directory
// from below rules.Base on to the rules. When a directory is missing and
// missing is not nil, it is called to make it.
func Open(dir string, rules Rules, missing func(parent int, name string) error) (*os.File, error) {
	if !filepath.IsAbs(dir) || !filepath.IsAbs(rules.Base) {
		return nil, fmt.Errorf("path %q below %q is not absolute", dir, rules.Base)
	}
	dir = filepath.Clean(dir)
	rel, err := filepath.Rel(filepath.Clean(rules.Base), dir)
	if err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return nil, fmt.Errorf("directory %q is not below %q", dir, rules.Base)
	}
	at := filepath.Clean(rules.Base)
	fd, err := retry(func() (int, error) {
		return unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: at, Err: err}
	}
	parts := strings.Split(rel, "/")
	for i, name := range parts {
		flags := unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		if i < len(parts)-1 {
			flags |= unix.O_PATH // parents need not be readable
		}
		at = filepath.Join(at, name)
		next, err := retry(func() (int, error) { return unix.Openat(fd, name, flags, 0) })
		if err == unix.ENOENT && missing != nil {
			if err = missing(fd, name); err == nil {
				next, err = retry(func() (int, error) { return unix.Openat(fd, name, flags, 0) })
			}
		}
		unix.Close(fd)
		if err != nil {
			if err == unix.ENOTDIR || err == unix.ELOOP {
				return nil, &UnsafeError{Path: at, Kind: "directory", Reason: "must be a directory and not a link"}
			}
			return nil, &os.PathError{Op: "open", Path: at, Err: err}
		}
		fd = next
		if err := checkOwner(fd, at, "directory", unix.S_IFDIR, rules); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// checkOwner holds an open file to the rules.
func checkOwner(fd int, path, kind string, format uint32, rules Rules) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	unsafe := func(reason string) error { return &UnsafeError{Path: path, Kind: kind, Reason: reason} }
	switch {
	case st.Mode&unix.S_IFMT != format:
		return unsafe("must be a " + map[uint32]string{unix.S_IFDIR: "directory", unix.S_IFREG: "regular file"}[format])
	case !slices.Contains(rules.Owners, int(st.Uid)):
		if len(rules.Owners) == 1 && rules.Owners[0] == 0 {
			return unsafe("must be owned by root")
		}
		return unsafe(fmt.Sprintf("must be owned by one of the user ids %v, not by %d", rules.Owners, st.Uid))
	case st.Mode&unix.S_IWGRP != 0:
		return unsafe("must not be writable by the group")
	case st.Mode&unix.S_IWOTH != 0:
		return unsafe("must not be writable by others")
	}
	return nil
}

// ReadFile reads a small file outside of a store under the same rules: its
// directory, every one above it from Rules.Base on, and the file itself.
func ReadFile(path string, limit int, rules Rules) ([]byte, error) {
	d, err := Open(filepath.Dir(path), rules, nil)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return readFile(d, filepath.Base(path), limit, rules)
}

// readFile reads a small file of the store.
func readFile(d *os.File, name string, limit int, rules Rules) ([]byte, error) {
	path := filepath.Join(d.Name(), name)
	fd, err := retry(func() (int, error) {
		// O_NONBLOCK so that a FIFO under this name cannot stop us.
		return unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	})
	if err != nil {
		if err == unix.ELOOP {
			return nil, &UnsafeError{Path: path, Kind: "file", Reason: "must not be a link"}
		}
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := checkOwner(fd, path, "file", unix.S_IFREG, rules); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("reading %q: more than %d bytes", path, limit)
	}
	return data, nil
}

func readCertificate(d *os.File, name string, rules Rules) (Certificate, error) {
	data, err := readFile(d, name, MaxCertificateSize, rules)
	if err != nil {
		return Certificate{}, err
	}
	c, err := Parse(data)
	if err != nil {
		return Certificate{}, fmt.Errorf("reading %q: %w", filepath.Join(d.Name(), name), err)
	}
	if want := c.Fingerprint + ".pem"; name != want {
		return Certificate{}, fmt.Errorf("reading %q: the name does not fit the certificate, %q would", filepath.Join(d.Name(), name), want)
	}
	return c, nil
}

// Parse reads the contents of one certificate file.
func Parse(data []byte) (Certificate, error) {
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return Certificate{}, errors.New("no PEM block")
	case block.Type != "CERTIFICATE":
		return Certificate{}, fmt.Errorf("PEM block is %q, not a certificate", block.Type)
	case len(block.Headers) != 0:
		return Certificate{}, errors.New("PEM block has headers")
	case len(bytes.TrimSpace(rest)) != 0:
		return Certificate{}, errors.New("something follows the certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Certificate{}, err
	}
	c := Certificate{Certificate: cert, Fingerprint: signing.Fingerprint(cert)}
	header, _, _ := bytes.Cut(data, []byte("-----BEGIN"))
	for _, line := range strings.Split(string(header), "\n") {
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "#"), ":")
		if !ok || !strings.HasPrefix(line, "#") {
			continue
		}
		value = printable(value)
		switch strings.TrimSpace(key) {
		case "host":
			c.Host = value
		case "added":
			c.Added = value
		case "by":
			c.By = value
		case "scope":
			c.Scope = value
		}
	}
	return c, nil
}

// printable keeps what can be shown on a terminal without surprises.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, strings.TrimSpace(s))
}

func readList(d *os.File, name string, rules Rules) (map[[sha256.Size]byte]bool, error) {
	data, err := readFile(d, name, MaxListSize, rules)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the %s list: %w", name, err)
	}
	list, err := ParseList(data)
	if err != nil {
		return nil, fmt.Errorf("reading the %s list of %q: %w", name, d.Name(), err)
	}
	return list, nil
}

// ParseList reads a list of SHA-256 digests, as the files "revoked" and
// "denied" hold it.
func ParseList(data []byte) (map[[sha256.Size]byte]bool, error) {
	list := make(map[[sha256.Size]byte]bool)
	for i, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		digest, err := ParseFingerprint(fields[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		list[digest] = true
	}
	return list, nil
}

// ParseFingerprint reads 64 hex digits, with or without "sha256:" before.
func ParseFingerprint(s string) (digest [sha256.Size]byte, err error) {
	h := strings.TrimPrefix(s, "sha256:")
	if len(h) != 2*sha256.Size {
		return digest, fmt.Errorf("fingerprint %q has not 64 hex digits", s)
	}
	if _, err := hex.Decode(digest[:], []byte(h)); err != nil {
		return digest, fmt.Errorf("fingerprint %q: %w", s, err)
	}
	return digest, nil
}

func retry(open func() (int, error)) (int, error) {
	for {
		fd, err := open()
		if err != unix.EINTR {
			return fd, err
		}
	}
}
