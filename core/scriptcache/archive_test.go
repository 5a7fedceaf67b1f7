package scriptcache

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func files() []File {
	at := time.Unix(1700000000, 0)
	return []File{
		{"6.1.0-1", "a.ko", bytes.Repeat([]byte("k"), 700), at},
		{"6.1.0-1", "a.opts", []byte("u\n--\n"), at},
		{"", "group1", []byte("a_OPT=-g\n"), at},
		{"", "b.conf", nil, at},
		{strings.Repeat("6", 90), strings.Repeat("n", 50) + ".ko.sgn", []byte("x"), at},
	}
}

func same(t *testing.T, got, want []File) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d files, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i].Path() != want[i].Path() || got[i].Release != want[i].Release || !bytes.Equal(got[i].Data, want[i].Data) || !got[i].Time.Equal(want[i].Time) {
			t.Errorf("file %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	if err := WriteArchive(&b, files()); err != nil {
		t.Fatal(err)
	}
	got, err := ReadArchive(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, files())
	// tar(1) reads it, and unpacks it where it belongs.
	dir := t.TempDir()
	cmd := exec.Command("tar", "-xzf", "-", "-C", dir)
	cmd.Stdin = bytes.NewReader(b.Bytes())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range files() {
		data, err := os.ReadFile(filepath.Join(dir, f.Path()))
		if err != nil || !bytes.Equal(data, f.Data) {
			t.Errorf("%s: got %q, %v", f.Path(), data, err)
		}
	}
}

// C-20: both layouts of the manual are read, as tar(1) packs them.
// Requirements: R-002-092..093 C-20
func TestArchivesOfTar(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("d", 70) + "/" + strings.Repeat("e", 70)
	for _, n := range []string{
		"var/cache/systemtap/6.1.0-1/a.ko", "var/cache/systemtap/6.1.0-1/a.opts", "etc/systemtap/conf.d/group1", "etc/systemtap/conf.d/b.conf",
		"var/cache/systemtap/6.1.0-1/uprobes/uprobes.ko", "6.1.0-1/c.ko", "group2", long + "/6.1.0-1/d.ko",
	} {
		path := filepath.Join(dir, n)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"gnu", "pax", "ustar"} {
		for _, tt := range []struct{ pack, want string }{
			{"var etc", "6.1.0-1/a.ko 6.1.0-1/a.opts group1 b.conf"},
			{"6.1.0-1 group2", "6.1.0-1/c.ko group2"},
			{strings.Repeat("d", 70), "6.1.0-1/d.ko"},
		} {
			out, err := exec.Command("tar", append([]string{"--format=" + format, "--sort=name", "-czf", "-", "-C", dir}, strings.Fields(tt.pack)...)...).Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := ReadArchive(bytes.NewReader(out))
			if err != nil {
				t.Errorf("%s %.20s: %v", format, tt.pack, err)
				continue
			}
			var names []string
			for _, f := range got {
				names = append(names, f.Path())
				if !strings.HasSuffix(string(f.Data), f.Name) {
					t.Errorf("%s has %q", f.Path(), f.Data)
				}
			}
			want := strings.Fields(tt.want)
			for _, w := range want {
				if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+w+" ") {
					t.Errorf("%s %.20s: got %q, want %q", format, tt.pack, names, want)
				}
			}
			if len(names) != len(want) {
				t.Errorf("%s %.20s: got %q, want %q", format, tt.pack, names, want)
			}
		}
	}
}

func pack(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func TestReadArchiveRefuses(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "6.1"), 0o755)
	os.WriteFile(filepath.Join(dir, "6.1/a.txt"), nil, 0o644)
	os.WriteFile(filepath.Join(dir, "6.1/-x.ko"), nil, 0o644)
	os.Symlink("/etc/passwd", filepath.Join(dir, "6.1/l.ko"))
	for name, want := range map[string]string{"6.1/a.txt": "neither", "6.1/-x.ko": "neither", "6.1/l.ko": "no regular file"} {
		out, err := exec.Command("tar", "-czf", "-", "-C", dir, name).Output()
		if err != nil {
			t.Fatal(err)
		}
		if f, err := ReadArchive(bytes.NewReader(out)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v", name, f, err)
		}
	}
	var b bytes.Buffer
	appendTar(&b, files()[0])
	whole := b.Bytes()
	for n, cut := range [][]byte{whole[:100], whole[:600], whole} {
		if _, err := ReadArchive(bytes.NewReader(pack(t, cut))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut %d: got %v", n, err)
		}
	}
	bad := bytes.Clone(whole)
	bad[3] ^= 1
	if _, err := ReadArchive(bytes.NewReader(pack(t, bad))); !errors.Is(err, errHeader) {
		t.Errorf("damaged: got %v", err)
	}
	for name := range map[string]bool{"../../6.1/a.ko": true} {
		if f, ok := place(name); !ok || f.Path() != "6.1/a.ko" {
			t.Errorf("%s: got %+v, %v", name, f, ok)
		}
	}
	for _, name := range []string{"../a.ko", "a.ko", "./../a.ko", "-r/a.ko", "x/group1", "6.1/../a.sh", ".conf", ""} {
		if f, ok := place(name); ok {
			t.Errorf("%s is taken: %+v", name, f)
		}
	}
}

// What an archive makes the reader hold or read has a limit: no size counts
// against others, nor is anything without data free.
func TestArchiveLimits(t *testing.T) {
	header := func(kind byte, size string) []byte {
		var b bytes.Buffer
		appendTar(&b, File{Release: "6.1", Name: "a.ko"})
		h := b.Bytes()[:block]
		h[156] = kind
		copy(h[124:136], size)
		copy(h[148:], fmt.Sprintf("%07o", checksum(h)))
		return h
	}
	end := make([]byte, 2*block)
	for name, in := range map[string][]byte{
		"negative size":    append(header('0', "-0000001000\x00"), end...),
		"too large":        append(header('0', "00400000001\x00"), end...),
		"directories":      append(bytes.Repeat(header('5', "00000000000\x00"), 2*maxFiles+1), end...),
		"extended headers": append(bytes.Repeat(header('x', "00000000000\x00"), 100), append(header('5', "00000000000\x00"), end...)...),
	} {
		if f, err := ReadArchive(bytes.NewReader(pack(t, in))); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: got %v, %v", name, f, err)
		}
	}
	if _, err := ReadArchive(bytes.NewReader(pack(t, append(header('5', "00000000000\x00"), end...)))); err != nil {
		t.Error(err)
	}
}

func FuzzReadArchive(f *testing.F) {
	var b bytes.Buffer
	for _, x := range files() {
		appendTar(&b, x)
	}
	f.Add(append(b.Bytes(), make([]byte, 1024)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		list, err := ReadArchive(bytes.NewReader(pack(t, in)))
		if err != nil {
			return
		}
		for _, x := range list {
			if strings.Contains(x.Release, "/") || strings.Contains(x.Name, "/") || x.Name == "" || x.Name[0] == '.' {
				t.Errorf("path %q", x.Path())
			}
		}
	})
}
