package kmod

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWithoutSignature(t *testing.T) {
	module := "the module"
	signed := module + "PKCS7" + "\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x05" + signatureMagic
	for name, c := range map[string]struct {
		image, want string
		signed      bool
	}{
		"signed":        {signed, module, true},
		"unsigned":      {module, module, false},
		"empty":         {"", "", false},
		"cut off":       {"x" + signatureMagic, "x" + signatureMagic, true},
		"length of all": {strings.Replace(signed, "\x05", "\x0f", 1), strings.Replace(signed, "\x05", "\x0f", 1), true},
		"length beyond": {strings.Replace(signed, "\x02\x00", "\x02\xff", 1), module, true}, // a field that means nothing
		"huge length":   {strings.Replace(signed, "\x00\x00\x00\x05", "\xff\xff\xff\xff", 1), strings.Replace(signed, "\x00\x00\x00\x05", "\xff\xff\xff\xff", 1), true},
	} {
		if got := WithoutSignature([]byte(c.image)); string(got) != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		if got := Signed([]byte(c.image)); got != c.signed {
			t.Errorf("%s: Signed is %v", name, got)
		}
	}
}

func FuzzWithoutSignature(f *testing.F) {
	f.Add([]byte("modulePKCS7\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x05" + signatureMagic))
	f.Add([]byte(signatureMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := WithoutSignature(b); !bytes.HasPrefix(b, got) {
			t.Fatal("what is left is not the beginning of the module")
		}
	})
}

func TestSignatureRule(t *testing.T) {
	for name, c := range map[string]struct {
		path, text string
		want       bool
	}{
		"nothing":         {"x", "", false},
		"off":             {"module/module/parameters/sig_enforce", "N\n", false},
		"sig_enforce":     {"module/module/parameters/sig_enforce", "Y\n", true},
		"securelevel":     {"kernel/security/securelevel", "1\n", true},
		"no lockdown":     {"kernel/security/lockdown", "[none] integrity confidentiality\n", false},
		"integrity":       {"kernel/security/lockdown", "none [integrity] confidentiality\n", true},
		"confidentiality": {"kernel/security/lockdown", "none integrity [confidentiality]\n", true},
	} {
		sys := t.TempDir()
		path := filepath.Join(sys, c.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, enforced := SignatureRule(sys); enforced != c.want || enforced && got != path {
			t.Errorf("%s: got %q, %v", name, got, enforced)
		}
	}
}
