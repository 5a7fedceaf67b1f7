package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/signing"
)

func makePEM(t testing.TB) (name string, data []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	data = append([]byte("# host: vm\n# scope: peer\n"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	return signing.Fingerprint(cert) + ".pem", data
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "store")
	rules := Rules{Owners: []int{os.Getuid()}, Base: base}
	if _, err := Read(dir, rules); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing store: got %v, want fs.ErrNotExist", err)
	}
	must(t, os.Mkdir(dir, 0o755))
	name, data := makePEM(t)
	other, otherData := makePEM(t)
	must(t, os.WriteFile(filepath.Join(dir, name), data, 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "README"), []byte("text"), 0o666))
	for bad, content := range map[string][]byte{
		"wrong-name.pem": data,
		"empty.pem":      nil,
		"key.pem":        pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
		"two.pem":        append(otherData, data...),
		"big.pem":        make([]byte, MaxCertificateSize+1),
		other:            otherData, // made group-writable below
	} {
		must(t, os.WriteFile(filepath.Join(dir, bad), content, 0o644))
	}
	must(t, os.Chmod(filepath.Join(dir, other), 0o664))
	must(t, os.Symlink(name, filepath.Join(dir, "link.pem")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo.pem"), 0o644))
	must(t, os.Mkdir(filepath.Join(dir, "dir.pem"), 0o755))

	s, err := Read(dir, rules)
	must(t, err)
	if len(s.Certificates) != 1 || s.Certificates[0].Host != "vm" || s.Certificates[0].Scope != "peer" {
		t.Errorf("got %+v, want the one good certificate", s.Certificates)
	}
	if len(s.Warnings) != 9 {
		t.Errorf("got %d warnings, want 9: %q", len(s.Warnings), s.Warnings)
	}
	if len(s.Signers()) != 1 || s.Signers()[0].Revoked {
		t.Errorf("signers: got %+v", s.Signers())
	}
	if err := s.Trusts([]byte("other"), time.Now()); err == nil {
		t.Error("an unknown certificate is trusted")
	}

	for _, list := range []string{RevokedList, DeniedList} {
		path := filepath.Join(dir, list)
		must(t, os.WriteFile(path, []byte("# comment\n\nsha256:"+strings.TrimSuffix(name, ".pem")+" compromised\n"), 0o644))
		s, err := Read(dir, rules)
		must(t, err)
		if s.Certificates[0].Revoked != (list == RevokedList) || len(s.Denied) != map[string]int{RevokedList: 0, DeniedList: 1}[list] {
			t.Errorf("%s list: got %+v", list, s)
		}
		for _, bad := range []string{"sha256:abc\n", "hello\n", strings.Repeat("x", 64) + "\n"} {
			must(t, os.WriteFile(path, []byte(bad), 0o644))
			if _, err := Read(dir, rules); err == nil {
				t.Errorf("%s list %q: the store was read all the same", list, bad)
			}
		}
		must(t, os.WriteFile(path, nil, 0o644))
		must(t, os.Chmod(path, 0o666))
		if _, err := Read(dir, rules); err == nil {
			t.Errorf("world-writable %s list: the store was read all the same", list)
		}
		must(t, os.Remove(path))
	}
}

// Requirements: R-003-137 R-003-139 R-004-042 R-004-061..062
func TestReadRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(t *testing.T, base string)
		rules func(base string) Rules
		want  string
	}{
		{"group-writable store", func(t *testing.T, b string) { must(t, os.Chmod(b+"/a/store", 0o775)) }, nil, "writable by the group"},
		{"world-writable store", func(t *testing.T, b string) { must(t, os.Chmod(b+"/a/store", 0o757)) }, nil, "writable by others"},
		{"world-writable parent", func(t *testing.T, b string) { must(t, os.Chmod(b+"/a", 0o757)) }, nil, "writable by others"},
		{"store is a link", func(t *testing.T, b string) {
			must(t, os.Rename(b+"/a/store", b+"/a/real"))
			must(t, os.Symlink("real", b+"/a/store"))
		}, nil, "not a link"},
		{"parent is a link", func(t *testing.T, b string) {
			must(t, os.Rename(b+"/a", b+"/real"))
			must(t, os.Symlink("real", b+"/a"))
		}, nil, "not a link"},
		{"store is a file", func(t *testing.T, b string) {
			must(t, os.Remove(b+"/a/store"))
			must(t, os.WriteFile(b+"/a/store", nil, 0o644))
		}, nil, "must be a directory"},
		{"other owner", func(*testing.T, string) {}, func(b string) Rules { return Rules{Owners: []int{os.Getuid() + 1, os.Getuid() + 2}, Base: b} }, "must be owned by"},
		{"outside of the base", func(*testing.T, string) {}, func(b string) Rules { return Rules{Owners: []int{os.Getuid()}, Base: b + "/other"} }, "is not below"},
		{"relative base", func(*testing.T, string) {}, func(b string) Rules { return Rules{Owners: []int{os.Getuid()}, Base: "."} }, "not absolute"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			must(t, os.MkdirAll(base+"/a/store", 0o755))
			tt.setup(t, base)
			rules := Rules{Owners: []int{os.Getuid()}, Base: base}
			if tt.rules != nil {
				rules = tt.rules(base)
			}
			if _, err := Read(base+"/a/store", rules); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestReadRefusesTooMany(t *testing.T) {
	base := t.TempDir()
	must(t, os.Mkdir(base+"/store", 0o755))
	for i := range MaxNames + 1 {
		must(t, os.WriteFile(filepath.Join(base, "store", big.NewInt(int64(i)).String()), nil, 0o644))
	}
	if _, err := Read(base+"/store", Rules{Owners: []int{os.Getuid()}, Base: base}); err == nil || !strings.Contains(err.Error(), "more than 4096 files") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	_, data := makePEM(f)
	f.Add(data)
	f.Add([]byte("# host: a\x1b[2Jb\n"))
	f.Add(data[:len(data)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err == nil && (c.Certificate == nil || strings.ContainsAny(c.Host+c.Scope, "\n\x1b")) {
			t.Errorf("got %+v", c)
		}
	})
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte("# c\nsha256:" + strings.Repeat("ab", 32) + " text\n"))
	f.Add([]byte(strings.Repeat("AB", 32)))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := ParseList(data)
		if err == nil && len(list) > len(data)/64 {
			t.Errorf("%d digests from %d bytes", len(list), len(data))
		}
	})
}

// Whatever lies in a store: what is believed has a name that fits it, and what
// the lists name is not believed.
func FuzzStore(f *testing.F) {
	name, data := makePEM(f)
	f.Add(name, data, []byte(""), []byte(""))
	f.Add(name, data, []byte(strings.TrimSuffix(name, ".pem")), []byte("# none\n"))
	f.Add("x.pem", data, []byte("nonsense"), []byte(""))
	f.Add("revoked", data, []byte(nil), []byte("sha256:"+strings.Repeat("0", 64)))
	f.Fuzz(func(t *testing.T, name string, data, revoked, denied []byte) {
		dir := filepath.Join(t.TempDir(), "store")
		must(t, os.Mkdir(dir, 0o755))
		for n, b := range map[string][]byte{RevokedList: revoked, DeniedList: denied} {
			must(t, os.WriteFile(filepath.Join(dir, n), b, 0o644))
		}
		if name == "" || name != filepath.Base(name) || os.WriteFile(filepath.Join(dir, name), data, 0o644) != nil {
			return // no file name
		}
		s, err := Read(dir, Rules{Owners: []int{os.Getuid()}, Base: filepath.Dir(dir)})
		if err != nil {
			return
		}
		for _, c := range s.Certificates {
			if name != signing.Fingerprint(c.Certificate)+".pem" || c.Revoked != s.Revoked[sha256.Sum256(c.Raw)] {
				t.Errorf("file %q: got %+v", name, c)
			}
		}
		if len(s.Certificates)+len(s.Warnings) > 1 {
			t.Errorf("one file gives %d certificates and %d warnings", len(s.Certificates), len(s.Warnings))
		}
	})
}
