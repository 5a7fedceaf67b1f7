package kmod

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestList(t *testing.T) {
	base := t.TempDir()
	for _, f := range []string{"proc/b/.cmd", "proc/a/.cmd", "proc/c/other", "debug/d/.cmd", "debug/a/.cmd"} {
		path := filepath.Join(base, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	modules := filepath.Join(base, "modules")
	if err := os.WriteFile(modules, []byte("a 16384 1 - Live 0x0000000000000000 (OE)\nb 16384 0 - Live 0x0 (OE)\nd 1 - - Live 0x0\nshort\n\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	uses, err := useCounts(modules)
	if err != nil {
		t.Fatal(err)
	}
	got, err := list([]string{filepath.Join(base, "proc"), filepath.Join(base, "none"), filepath.Join(base, "debug")}, uses)
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	want := []Loaded{{"a", uid, gid, 1}, {"b", uid, gid, 0}, {"d", uid, gid, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
