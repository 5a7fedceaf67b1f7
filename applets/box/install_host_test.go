package box

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every file that is in the executable is written by one of the options, and
// has no place left open.
// Requirements: R-002-077
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

// The user of servers gets the first free id, its group that of an earlier one.
func TestAddUser(t *testing.T) {
	for _, tt := range []struct{ passwd, group, want, wantGroup, err string }{
		{"", "", "stap-server:x:155:155:", "stap-server:x:155:\n", ""},
		{"a:x:155:1::/:\nb:x:156:1::/:", "c:x:157:\n", "a:x:155:1::/:\nb:x:156:1::/:\nstap-server:x:158:158:", "c:x:157:\nstap-server:x:158:\n", ""},
		{"", "stap-server:x:990:\n", "stap-server:x:155:990:", "stap-server:x:990:\n", ""},
		{"stap-server:x:990:991::/:\n", "", "stap-server:x:990:991::/:\n", "", ""},
		{"stap-server:x:0:0::/:\n", "", "", "", `user "stap-server" is root, as which no server runs`},
		{"stap-server:x:many:0::/:\n", "", "", "", `user "stap-server": strconv.Atoi: parsing "many": invalid syntax`},
		{"", "stap-server:x:few:\n", "", "", `group "stap-server": strconv.Atoi: parsing "few": invalid syntax`},
	} {
		in := &installer{root: t.TempDir(), out: io.Discard, dryRun: os.Geteuid() != 0}
		if err := os.Mkdir(in.at("/etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"/etc/passwd": tt.passwd, "/etc/group": tt.group} {
			if err := os.WriteFile(in.at(name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		err := in.makeServerUser()
		passwd, _ := os.ReadFile(in.at("/etc/passwd"))
		group, _ := os.ReadFile(in.at("/etc/group"))
		switch {
		case tt.err != "" || err != nil:
			if err == nil || err.Error() != tt.err {
				t.Errorf("%q, %q: got %v, want %s", tt.passwd, tt.group, err, tt.err)
			}
		case in.dryRun:
		case !strings.HasPrefix(string(passwd), tt.want) || string(group) != tt.wantGroup:
			t.Errorf("%q, %q: got %q, %q, want %q, %q", tt.passwd, tt.group, passwd, group, tt.want, tt.wantGroup)
		}
	}
}

// An image cannot have root change the host that it is on: neither a link for a
// directory nor one for a temporary file leads out of it.
func TestInstallStaysInRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to install")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	installer := func(root string) *installer {
		return &installer{root: root, bindir: "/usr/bin", systemd: true, noSetuid: true, out: io.Discard, self: self}
	}
	for _, dir := range []string{"etc", "usr", "usr/lib", "usr/lib/systemd/system", "var/lib", "lib/modules", "usr/share/bash-completion"} {
		outside := t.TempDir()
		for _, link := range []string{outside, outside + "/none"} {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, dir)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(link, filepath.Join(root, dir)); err != nil {
				t.Fatal(err)
			}
			if err := installer(root).install(); err == nil && dir != "lib/modules" {
				t.Errorf("%s: installed", dir)
			}
			if left, _ := os.ReadDir(outside); len(left) != 0 {
				t.Errorf("%s: outside there is %v", dir, left)
			}
			if err := installer(root).uninstall(); err == nil && link == outside {
				t.Errorf("%s: uninstalled", dir)
			}
		}
	}
	root, other := t.TempDir(), filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc", "usr/lib"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"etc/group.stapbox": other, "etc/passwd.stapbox": other, "lib": "usr/lib"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := installer(root).install(); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(other); err != nil || string(text) != "untouched" {
		t.Errorf("got %q, %v", text, err)
	}
	if err := installer(root).uninstall(); err != nil {
		t.Error(err)
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
