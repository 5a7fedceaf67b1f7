package initmanager

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// B-25, B-43: a marker is never glued to text, and there are three of them
// everywhere.
func TestMarkers(t *testing.T) {
	for _, tt := range []struct {
		text     string
		marker   string
		brackets bool
		want     string
	}{
		{"Starting systemtap: ", passed, false, "Starting systemtap: OK\n"},
		{"no cache", passed, false, "no cache OK\n"},
		{"line\n", failed, false, "line\nFAILED\n"},
		{"", warning, false, "WARNING\n"},
		{"Starting systemtap: ", passed, true, "Starting systemtap: " + strings.Repeat(" ", 40) + "[  OK  ]\n"},
		{"line\n", failed, true, "line\n" + strings.Repeat(" ", 60) + "[FAILED]\n"},
		{strings.Repeat("x", 70), warning, true, strings.Repeat("x", 70) + " [WARNING]\n"},
	} {
		var b bytes.Buffer
		c := console{out: &b, now: time.Now, brackets: tt.brackets}
		c.say("%s", tt.text)
		c.mark(tt.marker)
		if b.String() != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, b.String(), tt.want)
		}
	}
}

// B-50: what is said before the log is known is logged.
func TestLogIsHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	c := console{out: &bytes.Buffer{}, err: &bytes.Buffer{}, now: func() time.Time { return at }}
	c.log("early")
	c.say("half ")
	if err := c.openLog(path); err != nil {
		t.Fatal(err)
	}
	c.say("done\n")
	c.failure("two\nlines")
	c.close()
	got, err := os.ReadFile(path)
	if want := "Mar  4 05:06:07: early\nMar  4 05:06:07: half done\nMar  4 05:06:07: two lines\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if err := os.Symlink(path, path+".link"); err != nil {
		t.Fatal(err)
	}
	if err := c.openLog(path + ".link"); err == nil {
		t.Error("a link is followed")
	}
}
