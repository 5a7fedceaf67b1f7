package kmod

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
)

// signatureMagic ends a module that is signed for the kernel, and stands after
// 12 octets whose last four are the length of the signature before them, big
// endian (core/modsig has the whole format).
const signatureMagic = "~Module signature appended~\n"

// Signed reports whether a module carries a signature for the kernel. Whether it
// is a good one is for the kernel to say.
func Signed(image []byte) bool { return bytes.HasSuffix(image, []byte(signatureMagic)) }

// WithoutSignature is the module that a signature for the kernel is over. A
// module without one, or with one that does not fit, stays as it is.
func WithoutSignature(image []byte) []byte {
	rest, ok := bytes.CutSuffix(image, []byte(signatureMagic))
	if !ok || len(rest) < 12 {
		return image
	}
	rest, info := rest[:len(rest)-12], rest[len(rest)-12:]
	if n := binary.BigEndian.Uint32(info[8:]); uint64(n) < uint64(len(rest)) {
		return rest[:len(rest)-int(n)]
	}
	return image
}

// SignatureRule reports whether the kernel loads only modules that are signed
// with a key it trusts, and which file below sys (/sys) says so. Secure Boot
// alone is no such rule: it makes kernels set one of these.
func SignatureRule(sys string) (path string, enforced bool) {
	for _, f := range []struct {
		path string
		says func(string) bool
	}{
		{"module/module/parameters/sig_enforce", func(s string) bool { return strings.HasPrefix(s, "Y") }},
		{"kernel/security/securelevel", func(s string) bool { return strings.TrimSpace(s) == "1" }},
		{"kernel/security/lockdown", func(s string) bool {
			return strings.Contains(s, "[integrity]") || strings.Contains(s, "[confidentiality]")
		}},
	} {
		path := filepath.Join(sys, f.path)
		if b, err := os.ReadFile(path); err == nil && f.says(string(b)) {
			return path, true
		}
	}
	return "", false
}
