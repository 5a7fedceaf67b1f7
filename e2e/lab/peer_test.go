package lab

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMirrorLine(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n", "http://mirror.example/debian"},
		{"deb [signed-by=/x.gpg] https://mirror.example/a/debian/ bookworm main\n", "https://mirror.example/a/debian"},
		{"deb http://mirror.example/debian-security bookworm\n# deb http://x/debian y\n", ""},
	} {
		got := ""
		if m := mirrorLine.FindStringSubmatch(tt.text); m != nil {
			got = m[1]
		}
		if got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestPeerResolve(t *testing.T) {
	p := &Peer{Root: t.TempDir()}
	for _, err := range []error{
		os.MkdirAll(filepath.Join(p.Root, "usr/lib/x"), 0o755),
		os.Symlink("usr/lib", filepath.Join(p.Root, "lib")),
		os.WriteFile(filepath.Join(p.Root, "usr/lib/x/a.so.1.2"), nil, 0o644),
		os.Symlink("a.so.1.2", filepath.Join(p.Root, "usr/lib/x/a.so.1")),
		os.Symlink("/usr/lib/x/a.so.1", filepath.Join(p.Root, "usr/lib/a.so")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/lib/a.so", "/usr/lib/x/a.so.1", "/lib/x/a.so.1.2"} {
		if got, want := p.resolve(name), filepath.Join(p.Root, "usr/lib/x/a.so.1.2"); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
