package server

import (
	"io"
	"net"
	"strings"
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
	for end := time.Now().Add(5 * time.Second); !strings.Contains(out.String(), ": 90 lines about connections were left out\n"); time.Sleep(20 * time.Millisecond) {
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
