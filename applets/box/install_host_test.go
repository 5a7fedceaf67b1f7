package box

import (
	"bytes"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// Every file that is in the executable is written by one of the options, and
// has no place left open.
func TestHostFiles(t *testing.T) {
	in := &installer{root: t.TempDir(), bindir: "/usr/bin"}
	used := map[string]bool{}
	for _, f := range in.hostFiles() {
		text, err := in.hostText(f)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(text, []byte("@")); i >= 0 && bytes.Contains(text[i+1:], []byte("DIR@")) {
			t.Errorf("%s: %s", f.path, text)
		}
		if !f.systemd && !f.sysvinit || (f.mode == 0o755) != bytes.HasPrefix(text, []byte("#!")) {
			t.Errorf("%s: mode %o, systemd %v, sysvinit %v:\n%s", f.path, f.mode, f.systemd, f.sysvinit, text)
		}
		from := f.from
		if from == "" {
			from = f.path[1:]
		}
		used["host/"+from] = true
	}
	total := 0
	err := fs.WalkDir(hostFS, "host", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			info, _ := d.Info()
			total += int(info.Size())
			if !used[path] {
				t.Errorf("nothing writes %s", path)
			}
		}
		return err
	})
	if err != nil || total > 40_000 {
		t.Errorf("%d bytes, %v; they are in the one file", total, err)
	}
}

func TestParseRecord(t *testing.T) {
	digest := strings.Repeat("0a", 32)
	good := digest + "  /usr/lib/a b\ndirectory  /usr/lib\n"
	r, err := parseRecord([]byte(good))
	if err != nil || string(r.text()) != good {
		t.Errorf("got %q, %v, want %q", r.text(), err, good)
	}
	for _, bad := range []string{
		"directory  usr\n", "directory  /usr/../etc\n", "directory  /\n", "directory\n", "\n", digest + " /a\n",
		digest[1:] + "  /a\n", strings.ToUpper(digest) + "  /a\n", "link  /a\n",
	} {
		if r, err := parseRecord([]byte(bad)); err == nil {
			t.Errorf("%q: got %v", bad, r)
		}
	}
}

// Whatever a record says, it names absolute paths below the root.
func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(strings.Repeat("0a", 32) + "  /usr/lib/a\ndirectory  /usr/lib\n"))
	f.Add([]byte("directory  /usr/../etc\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		for _, d := range r.dirs {
			if !filepath.IsLocal(d[1:]) {
				t.Errorf("directory %q", d)
			}
		}
		for p := range r.sums {
			if !filepath.IsLocal(p[1:]) {
				t.Errorf("file %q", p)
			}
		}
		again, err := parseRecord(r.text())
		if err != nil || !bytes.Equal(again.text(), r.text()) {
			t.Errorf("%q becomes %q, %v", r.text(), again.text(), err)
		}
	})
}
