package compile

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
	s := &Service{}
	s.passes(dir) // nobody listens
	var got []string
	s.Phase = func(name string, took time.Duration) { got = append(got, name+" "+took.String()) }
	s.passes(dir)
	if want := []string{"pass1 1ms", "pass2 2s"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	got = nil
	// A link, and a file that is too long, are not read.
	other := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, passesFile), filepath.Join(other, passesFile)); err != nil {
		t.Fatal(err)
	}
	notePass(other, 1, time.Second)
	s.passes(other)
	if err := os.WriteFile(filepath.Join(dir, passesFile), make([]byte, maxPasses+1), 0o600); err != nil {
		t.Fatal(err)
	}
	s.passes(dir)
	s.passes(t.TempDir())
	if got != nil {
		t.Errorf("got %q", got)
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
