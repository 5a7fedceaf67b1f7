package kmod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stapbox/core/privilege"
)

type sect struct {
	name string
	typ  uint32
	data []byte
}

// module makes an ELF64 file of this machine's byte order with the sections.
func module(sections ...sect) []byte {
	names := []byte{0}
	sections = append(sections, sect{".shstrtab", 3, nil})
	var at []int
	for _, s := range sections {
		at = append(at, len(names))
		names = append(append(names, s.name...), 0)
	}
	sections[len(sections)-1].data = names
	order := binary.NativeEndian
	image := make([]byte, 64)
	copy(image, "\x7fELF\x02\x01\x01")
	if order.Uint16([]byte{0, 1}) == 1 {
		image[5] = 2
	}
	headers := make([]byte, 64) // the null section
	for i, s := range sections {
		h := make([]byte, 64)
		order.PutUint32(h, uint32(at[i]))
		order.PutUint32(h[4:], s.typ)
		order.PutUint64(h[0x18:], uint64(len(image)))
		order.PutUint64(h[0x20:], uint64(len(s.data)))
		image = append(image, s.data...)
		headers = append(headers, h...)
	}
	order.PutUint64(image[0x28:], uint64(len(image)))
	order.PutUint16(image[0x3a:], 64)
	order.PutUint16(image[0x3c:], uint16(len(sections)+1))
	order.PutUint16(image[0x3e:], uint16(len(sections)))
	return append(image, headers...)
}

func TestInfo(t *testing.T) {
	image := module(append(named("m"), level(4))...)
	for field, want := range map[string]string{"vermagic": "6", "name": "m", "license": "GPL", "nam": "", "depends": ""} {
		if got, ok, err := Info(image, field); got != want || ok != (want != "") || err != nil {
			t.Errorf("%s: got %q, %v, %v; want %q", field, got, ok, err, want)
		}
	}
	if _, _, err := Info([]byte("no module"), "name"); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
}

func level(l uint32) sect {
	return sect{".stap_privilege", 1, binary.NativeEndian.AppendUint32(nil, l)}
}

func named(name string) []sect {
	this := make([]byte, 0x380)
	copy(this[0x18:], name)
	return []sect{{".modinfo", 1, []byte("license=GPL\x00name=" + name + "\x00vermagic=6\x00")}, {".gnu.linkonce.this_module", 1, this}}
}

func TestParameters(t *testing.T) {
	image := module(sect{".modinfo", 1, []byte("parm=x:text\x00parmtype=x:int64_t\x00name=m\x00parmtype=s_2:string\x00xparmtype=no:int\x00")})
	if got, err := Parameters(image); err != nil || !slices.Equal(got, []string{"x", "s_2"}) {
		t.Errorf("got %q, error %v", got, err)
	}
	if got, err := Parameters(module(level(2))); err != nil || len(got) != 0 {
		t.Errorf("without .modinfo: got %q, error %v", got, err)
	}
	if _, err := Parameters([]byte("#!/bin/sh")); !errors.Is(err, ErrFormat) {
		t.Errorf("no module: error %v", err)
	}
}

func TestRequiredLevel(t *testing.T) {
	nobits := level(2)
	nobits.typ = 8
	outside := module(level(2))
	binary.NativeEndian.PutUint64(outside[len(outside)-2*64+0x18:], 1<<40)
	for _, tt := range []struct {
		name    string
		image   []byte
		want    privilege.Level
		present bool
		err     bool
	}{
		{"stapusr", module(level(2)), privilege.StapUsr, true, false},
		{"stapsys", module(level(4)), privilege.StapSys, true, false},
		{"stapdev", module(level(8)), privilege.StapDev, true, false},
		{"missing means the highest", module(sect{".text", 1, nil}), privilege.StapDev, false, false},
		{"unknown value", module(level(6)), privilege.StapDev, true, false},
		{"zero", module(level(0)), privilege.StapDev, true, false},
		{"too long", module(sect{".stap_privilege", 1, make([]byte, 8)}), privilege.StapDev, true, false},
		{"empty", module(sect{".stap_privilege", 1, nil}), privilege.StapDev, true, false},
		{"the first section counts", module(level(8), level(2)), privilege.StapDev, true, false},
		{"no data in the file", module(nobits), privilege.StapDev, false, true},
		{"data outside the file", outside, privilege.StapDev, false, true},
		{"not ELF", []byte("#!/bin/sh\n"), privilege.StapDev, false, true},
		{"empty file", nil, privilege.StapDev, false, true},
	} {
		got, present, err := RequiredLevel(tt.image)
		if got != tt.want || present != tt.present || (err != nil) != tt.err {
			t.Errorf("%s: got %v, %v, %v; want %v, %v", tt.name, got, present, err, tt.want, tt.present)
		}
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v is no ErrFormat", tt.name, err)
		}
	}
}

func TestRename(t *testing.T) {
	const name = "stap_0123456789abcdef0123456789abcdef_1000"
	image := module(named(name)...)
	before := bytes.Clone(image)
	got, err := Rename(image, 4711)
	if err != nil {
		t.Fatal(err)
	}
	if want := name[:len(name)-5] + "_4711"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n, want := bytes.Count(image, []byte(got)), 1; n != want {
		t.Errorf("the new name stands %d times in the image, want %d", n, want)
	}
	if i := bytes.Index(image, []byte("name="+name)); i < 0 {
		t.Error(".modinfo has changed")
	}
	changed := 0
	for i := range image {
		if image[i] != before[i] {
			changed++
		}
	}
	if changed > 5 {
		t.Errorf("%d bytes have changed", changed)
	}
	short := module(named("ab")...)
	if got, err := Rename(short, 12345); !errors.Is(err, ErrNameTooShort) || got != "ab" {
		t.Errorf("short name: got %q, %v", got, err)
	}
	for what, image := range map[string][]byte{
		"no .modinfo":    module(named(name)[1]),
		"no this_module": module(named(name)[0]),
		"no name":        module(sect{".modinfo", 1, []byte("license=GPL\x00")}, named(name)[1]),
		"other name":     module(named(name)[0], named("other")[1]),
	} {
		if _, err := Rename(image, 1); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want ErrFormat", what, err)
		}
	}
}

func TestOwn(t *testing.T) {
	if Own(module(named("x")...)) || Own(nil) {
		t.Error("a foreign module passes for our own")
	}
	if !Own(module(sect{".modinfo", 1, []byte("a=b\x00stapbox=0.1\x00")})) {
		t.Error("our own module is not known")
	}
}

func TestOpenRefusesWhatIsNoPlainFile(t *testing.T) {
	dir := t.TempDir()
	path := func(n string) string { return filepath.Join(dir, n) }
	if err := unix.Mkfifo(path("fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"fifo", "dir"} {
		if _, _, err := Open(path(n), "/proc/nonexistent"); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: got %v, want ErrNotRegular", n, err)
		}
	}
	if _, _, err := Open(path("none"), "/proc/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: got %v", err)
	}
	if err := os.Symlink(path("fifo"), path("m.ko.sgn")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSignature(path("m.ko")); err == nil {
		t.Error("a signature that is a link was read")
	}
}

// The file is opened at its canonical place, and what a link pointed to when it
// was resolved is what is read.
func TestOpenFollowsLinksOnce(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real.ko")
	link := filepath.Join(dir, "link.ko")
	if err := os.WriteFile(real, []byte("module"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	f, blessed, err := Open(link, "/proc/nonexistent")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if blessed != nil || filepath.Base(f.Path) != "real.ko" {
		t.Errorf("got path %q, directory %v", f.Path, blessed)
	}
	f2, blessed, err := Open(link, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f2.Close()
	if blessed == nil {
		t.Error("a file directly in the blessed directory was not opened beneath it")
	} else {
		blessed.Close()
	}
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(sub, "m.ko")
	if err := os.WriteFile(deep, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f3, blessed, err := Open(deep, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f3.Close()
	if blessed != nil {
		t.Error("a file deeper down counts as blessed")
	}
}

func TestReadIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big.ko")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4 << 30); err != nil { // sparse
		t.Fatal(err)
	}
	m, _, err := Open(path, "/proc/nonexistent")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Read(MaxImage); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

// What is in the sealed copy cannot be changed by anybody.
func TestSeal(t *testing.T) {
	f, err := Seal([]byte("module"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("writing: got %v, want EPERM", err)
	}
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncating: got %v, want EPERM", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("sealing again: got %v, want EPERM", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "module" {
		t.Errorf("got %q, %v", b, err)
	}
}

func FuzzImage(f *testing.F) {
	f.Add(module(append(named("stap_0123456789abcdef_1"), level(2))...))
	f.Add(module(level(8)))
	f.Add([]byte("\x7fELF\x02\x01"))
	f.Fuzz(func(t *testing.T, image []byte) {
		before := bytes.Clone(image)
		RequiredLevel(image)
		Name(image)
		Parameters(image)
		Own(image)
		if !bytes.Equal(image, before) {
			t.Fatal("reading changed the image")
		}
		if _, err := Rename(image, 12345); err != nil && !bytes.Equal(image, before) {
			t.Fatal("a failed rename changed the image")
		}
		if len(image) != len(before) {
			t.Fatal("the length has changed")
		}
	})
}
