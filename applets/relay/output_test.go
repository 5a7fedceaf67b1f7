package relay

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestStrftime(t *testing.T) {
	at := time.Date(2026, time.March, 5, 14, 7, 9, 0, time.UTC)
	for format, want := range map[string]string{
		"plain": "plain", "%Y-%m-%d": "2026-03-05", "%F_%T": "2026-03-05_14:07:09", "%%": "%", "%e|%k|%l": " 5|14| 2",
		"%j": "064", "%s": "1772719629", "%a %b": "Thu Mar", "%U %W %V %u %w": "09 09 10 4 4", "%C%y %G": "2026 2026", "%I %p": "02 PM",
	} {
		if got, err := strftime(format, at); got != want || err != nil {
			t.Errorf("%q: got %q, %v; want %q", format, got, err, want)
		}
	}
	for _, bad := range []string{"%", "x%", "%Q"} {
		if got, err := strftime(bad, at); err == nil {
			t.Errorf("%q: got %q, want an error", bad, got)
		}
	}
}

func TestOutputFile(t *testing.T) {
	dir := t.TempDir()
	o, err := openOutput("out-%Y", dir, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), nil)
	if err != nil {
		t.Fatal(err)
	}
	o.Write([]byte("text"))
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "out-2026")); string(b) != "text" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := openOutput("none/out", dir, time.Now(), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: got %v", err)
	}
	if _, err := openOutput("out", "", time.Now(), nil); err == nil {
		t.Error("a relative name without working directory was accepted")
	}
}

type brokenPipe struct{ writes int }

func (b *brokenPipe) Write([]byte) (int, error) { b.writes++; return 0, errors.New("broken pipe") }

// Upstream 5.x goes on writing to a broken pipe for ever (loader-relay 10.3).
func TestOutputStopsAtTheFirstFailure(t *testing.T) {
	w := &brokenPipe{}
	o, err := openOutput("", "", time.Now(), w)
	if err != nil {
		t.Fatal(err)
	}
	o.Write([]byte("a"))
	o.Write([]byte("b"))
	select {
	case <-o.broken:
	default:
		t.Error("nobody is told")
	}
	if w.writes != 1 || o.Close() == nil {
		t.Errorf("%d writes, error %v", w.writes, o.Close())
	}
}

func TestOutputGoesToStdout(t *testing.T) {
	var b bytes.Buffer
	o, err := openOutput("", "", time.Now(), &b)
	if err != nil {
		t.Fatal(err)
	}
	o.Write([]byte("x"))
	if o.Close() != nil || b.String() != "x" {
		t.Errorf("got %q", b.String())
	}
}
