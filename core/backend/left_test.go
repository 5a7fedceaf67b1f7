package backend

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestPasses(t *testing.T) {
	dir := t.TempDir()
	for i, d := range []time.Duration{time.Millisecond, 2 * time.Second} {
		notePass(dir, i+1, d)
	}
	if got, want := Passes(dir), []time.Duration{time.Millisecond, 2 * time.Second}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// A link, and a file that is too long, are not read.
	other := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, PassesFile), filepath.Join(other, PassesFile)); err != nil {
		t.Fatal(err)
	}
	notePass(other, 1, time.Second)
	if err := os.WriteFile(filepath.Join(dir, PassesFile), make([]byte, maxPasses+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{other, dir, t.TempDir()} {
		if got := Passes(d); got != nil {
			t.Errorf("%s: got %v", d, got)
		}
	}
	for text, n := range map[string]int{
		"": 0, "1 5\n2 6\n3 7\n4 8\n5 9\n": 4, "2 5\n": 0, "1 5\n1 5\n": 1, "1 -5\n": 0, "1 99999999999999\n": 0, "1  5\n": 0, "x\n": 0,
	} {
		if got := parsePasses(text); len(got) != n {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

func FuzzParsePasses(f *testing.F) {
	f.Add("1 5\n2 6\n")
	f.Add("1 99999999999999\n")
	f.Fuzz(func(t *testing.T, text string) {
		list := parsePasses(text)
		if len(list) > 4 {
			t.Errorf("%d passes", len(list))
		}
		for _, d := range list {
			if d < 0 || d > 24*time.Hour {
				t.Errorf("a pass took %v", d)
			}
		}
	})
}
