package mok

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The firmware's lists of certificates are rows of EFI_SIGNATURE_LIST (UEFI
// 2.10, 32.4.1), numbers little endian:
//
//	16 octets  SignatureType, a GUID: a5c059a1-94e4-4aa7-87b5-ab155c2bf072 for
//	           X.509, whose octets are a1 59 c0 a5 e4 94 a7 4a 87 b5 ab 15 5c 2b f0 72
//	 4 octets  SignatureListSize, of all of this list
//	 4 octets  SignatureHeaderSize, 0 for X.509
//	 4 octets  SignatureSize, of each entry
//	...        the header, then the entries:
//	           16 octets SignatureOwner, a GUID; the rest is the certificate, DER
//
// shim makes the variable MokListRT for those that the owner has enrolled, and
// MokListRT1, MokListRT2 ... when one is too small. A file of efivarfs begins with
// four octets of attributes.
const (
	shimGUID    = "605dab50-e046-4300-abb6-3dd810dd8b23"
	globalGUID  = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	listHeader  = 28
	ownerSize   = 16
	maxVariable = 1 << 20
	maxLists    = 16
)

const typeX509 = "\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72"

// Certificates reads the X.509 certificates of a row of signature lists. Other
// entries, hashes of programs, are skipped; so is a certificate that cannot be
// read, as kernels do it.
func Certificates(lists []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(lists) > 0 {
		if len(lists) < listHeader {
			return out, errors.New("a signature list is cut off")
		}
		size := binary.LittleEndian.Uint32(lists[16:])
		header := binary.LittleEndian.Uint32(lists[20:])
		each := binary.LittleEndian.Uint32(lists[24:])
		if size < listHeader || uint64(size) > uint64(len(lists)) || header > size-listHeader {
			return out, fmt.Errorf("a signature list of %d bytes does not fit", size)
		}
		entries := lists[listHeader+header : size]
		x509List := string(lists[:16]) == typeX509
		lists = lists[size:]
		if !x509List {
			continue
		}
		if each <= ownerSize || len(entries)%int(each) != 0 {
			return out, fmt.Errorf("certificates of %d bytes do not fill a signature list of %d", each, len(entries))
		}
		for ; len(entries) > 0; entries = entries[each:] {
			if c, err := x509.ParseCertificate(entries[ownerSize:each]); err == nil {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// SignatureList is a signature list of one certificate, as Certificates reads
// it, with an owner of zeros.
func SignatureList(der []byte) []byte {
	out := []byte(typeX509)
	out = binary.LittleEndian.AppendUint32(out, uint32(listHeader+ownerSize+len(der)))
	out = binary.LittleEndian.AppendUint32(out, 0)
	out = binary.LittleEndian.AppendUint32(out, uint32(ownerSize+len(der)))
	return append(append(out, make([]byte, ownerSize)...), der...)
}

// Host is where a host shows the variables of its firmware: Sys is /sys.
type Host struct{ Sys string }

// variable reads a variable of the firmware.
func (h Host) variable(name, guid string) ([]byte, error) {
	path := filepath.Join(h.Sys, "firmware/efi/efivars", name+"-"+guid)
	b, err := os.ReadFile(path)
	switch {
	case err != nil:
		return nil, err
	case len(b) < 4 || len(b) > maxVariable:
		return nil, fmt.Errorf("reading %q: %d bytes are not a variable", path, len(b))
	}
	return b[4:], nil
}

// Enrolled are the certificates that the owner of this machine has enrolled.
func (h Host) Enrolled() ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for i := range maxLists {
		name := "MokListRT"
		if i > 0 {
			name += fmt.Sprint(i)
		}
		b, err := h.variable(name, shimGUID)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		certs, err := Certificates(b)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		out = append(out, certs...)
	}
	return out, nil
}

// Fingerprints are those of the enrolled certificates that may be a compile
// server's: "Systemtap" is in the name of the issuer. Without any it is Missing.
func Fingerprints(certs []*x509.Certificate) []string {
	var out []string
	for _, c := range certs {
		if bytes.Contains(c.RawIssuer, []byte("Systemtap")) {
			out = append(out, Fingerprint(c.Raw))
		}
	}
	if out == nil {
		out = []string{Missing}
	}
	return out
}

// SecureBoot reports whether the firmware starts signed programs only.
func (h Host) SecureBoot() bool {
	b, err := h.variable("SecureBoot", globalGUID)
	return err == nil && len(b) == 1 && b[0] == 1
}
