package server

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Lines that connections cause are bounded, and the rest is counted.
func TestLogFlood(t *testing.T) {
	var out safe
	l, err := openLog("", &out, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l.flood.every, l.flood.most = 200*time.Millisecond, 10
	for range 100 {
		l.aboutf("Accepted connection")
		l.printf("other")
	}
	if n := strings.Count(out.String(), "Accepted connection"); n != 10 {
		t.Errorf("%d lines about connections", n)
	}
	if n := strings.Count(out.String(), "other"); n != 100 {
		t.Errorf("%d other lines", n)
	}
	for end := time.Now().Add(time.Minute); !strings.Contains(out.String(), ": 90 lines about connections were left out\n"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing says what was left out:\n%s", out.String())
		}
	}
	l.aboutf("Accepted another")
	if !strings.Contains(out.String(), "Accepted another") {
		t.Error("after the flood there are no lines")
	}
}

// Who connects and says nothing sensible writes no more than that.
func TestConnectionFlood(t *testing.T) {
	r := start(t)
	r.log.flood.mu.Lock()
	r.log.flood.most = 20
	r.log.flood.mu.Unlock()
	before := strings.Count(r.out.String(), "\n")
	for range 60 {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		io.Copy(io.Discard, c)
		c.Close()
	}
	if n := strings.Count(r.out.String(), "\n") - before; n > 25 {
		t.Errorf("%d lines for 60 connections:\n%s", n, r.out)
	}
}

// The log has the command lines of all clients: others cannot read it, nor one that
// was made before.
func TestSecurity13LogIsNotForEverybody(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := t.TempDir()
	for name, before := range map[string]os.FileMode{"new": 0, "old": 0o644, "closer": 0o600} {
		path := filepath.Join(dir, name)
		if before != 0 {
			if err := os.WriteFile(path, []byte("before\n"), before); err != nil {
				t.Fatal(err)
			}
		}
		l, err := openLog(path, nil, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		want := os.FileMode(0o640) & (before | 0o640)
		if before == 0o600 {
			want = 0o600
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != want {
			t.Errorf("%s: mode %v, %v, want %v", name, st.Mode(), err, want)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := l.reopen(); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != 0o640 {
			t.Errorf("%s, opened again: mode %v, %v", name, st.Mode(), err)
		}
		l.Close()
	}
	// What is no file keeps its mode.
	l, err := openLog(os.DevNull, nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if st, err := os.Stat(os.DevNull); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("%s: mode %v, %v", os.DevNull, st.Mode(), err)
	}
}
