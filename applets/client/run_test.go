package client

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stapbox/core/stapopts"
)

// moduleFile writes an ELF file with the sections .modinfo, .rodata and
// .shstrtab.
func moduleFile(t *testing.T, modinfo, rodata string) string {
	t.Helper()
	const names = "\x00.modinfo\x00.rodata\x00.shstrtab\x00"
	order := binary.NativeEndian
	image := make([]byte, 64)
	copy(image, "\x7fELF\x02\x01\x01")
	if order.Uint16([]byte{0, 1}) == 1 {
		image[5] = 2
	}
	order.PutUint16(image[0x10:], 1)  // relocatable
	order.PutUint16(image[0x12:], 62) // x86-64
	order.PutUint32(image[0x14:], 1)
	headers := make([]byte, 64) // the null section
	for _, s := range []struct {
		name, data string
		kind       uint32
	}{{".modinfo", modinfo, 1}, {".rodata", rodata, 1}, {".shstrtab", names, 3}} {
		h := make([]byte, 64)
		order.PutUint32(h, uint32(strings.Index(names, s.name)))
		order.PutUint32(h[4:], s.kind)
		order.PutUint64(h[0x18:], uint64(len(image)))
		order.PutUint64(h[0x20:], uint64(len(s.data)))
		image = append(image, s.data...)
		headers = append(headers, h...)
	}
	order.PutUint64(image[0x28:], uint64(len(image)))
	order.PutUint16(image[0x34:], 64)
	order.PutUint16(image[0x3a:], 64)
	order.PutUint16(image[0x3c:], 4)
	order.PutUint16(image[0x3e:], 3)
	path := filepath.Join(t.TempDir(), "m.ko")
	if err := os.WriteFile(path, append(image, headers...), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadsInput(t *testing.T) {
	for _, tt := range []struct {
		name, modinfo, rodata string
		want                  bool
	}{
		{"ours, with input probes", "license=GPL\x00stapbox=1\x00stapbox_stdin=1\x00name=m\x00", "x\x00__stdin\x00", true},
		{"ours, in another order", "stapbox_stdin=1\x00stapbox=1\x00", "", true},
		{"ours, without", "stapbox=1\x00name=m\x00", "", false},
		{"ours, with strings of that name", "stapbox=1\x00name=m\x00", "\x00__stdin\x00stapbox_stdin=1\x00", false},
		{"upstream's, with input probes", "license=GPL\x00name=m\x00", "\x00__stdin\x00", true},
		{"upstream's, without", "license=GPL\x00name=m\x00", "\x00my__stdin\x00stapbox_stdin=1\x00", false},
	} {
		if got := readsInput(moduleFile(t, tt.modinfo, tt.rodata)); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
	bad := filepath.Join(t.TempDir(), "bad.ko")
	os.WriteFile(bad, []byte("\x7fELF"), 0o644)
	if readsInput(bad) || readsInput(bad+".missing") {
		t.Error("what is no module reads input")
	}
}

// The words for staprun, in upstream's order (loader-relay 1.2).
func TestStaprunArgs(t *testing.T) {
	plain, reads := moduleFile(t, "name=m\x00", ""), moduleFile(t, "name=m\x00", "\x00__stdin\x00")
	for _, tt := range []struct{ line, want string }{
		{"", "-R MODULE"},
		{"-v", "-R MODULE"},
		{"-vvv", "-v -v -R MODULE"},
		{"-w", "-w -R MODULE"},
		{"-o out", "-o out -R MODULE"},
		{"-c ls", "-c ls -R MODULE"},
		{"-x 7", "-t 7 -R MODULE"},
		{"--target-namespaces=8", "-N 8 -R MODULE"},
		{"-s 16", "-b 16 -R MODULE"},
		{"-F", "-L -R MODULE"},
		{"-F -o out", "-o out -D -R MODULE"},
		{"-m name", "MODULE"},
		{"-o out -S 1,2", "-o out -R -S 1,2 MODULE"},
		{"--color=never", "-R -C never MODULE"},
		{"--color=auto", "-R MODULE"},
		{"--monitor", "-R -M 1 MODULE"},
		{"--monitor=5", "-R -M 5 MODULE"},
		{"-G a=1 -Gb=2", "-R MODULE a=1 b=2"},
		{"-b", "-R MODULE"},
		{"--monitor=3 --color=always -S 5 -F --target-namespaces=8 -s 9 -x 7 -o out -w -vv -G a=1",
			"-v -w -o out -t 7 -N 8 -b 9 -D -R -S 5 -C always -M 3 MODULE a=1"},
		{"-G a=1 --monitor -c ls -vv", "-v -c ls -R -M 1 MODULE a=1"},
	} {
		opts, err := stapopts.Parse(append(strings.Fields(tt.line), "-e", "probe never {}"))
		if err != nil {
			t.Errorf("%q: %v", tt.line, err)
			continue
		}
		c := &client{opts: opts}
		if got := strings.Join(c.staprunArgs(outcome{module: plain}), " "); got != strings.ReplaceAll(tt.want, "MODULE", plain) {
			t.Errorf("%q: got %q, want %q", tt.line, got, tt.want)
		}
	}
	opts, err := stapopts.Parse(strings.Fields("-s 9 -F -e x"))
	if err != nil {
		t.Fatal(err)
	}
	c := &client{opts: opts}
	if got, want := strings.Join(c.staprunArgs(outcome{module: reads}), " "), "-b 9 -i -L -R "+reads; got != want {
		t.Errorf("a script that reads: got %q, want %q", got, want)
	}
}
