package server

import (
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"time"
)

// A host that begins handshakes without end waits, then is refused; others do not.
func TestSecurityResidualHandshakesOfAPeer(t *testing.T) {
	var h handshakes
	now := time.Unix(1000, 0)
	for i := range handshakeBurst {
		if wait, ok := h.reserve("a", now); wait != 0 || !ok {
			t.Fatalf("handshake %d waits %v, %v", i, wait, ok)
		}
	}
	last := time.Duration(0)
	for {
		wait, ok := h.reserve("a", now)
		if !ok {
			break
		}
		if wait != last+handshakeEvery {
			t.Fatalf("waits %v after %v", wait, last)
		}
		last = wait
	}
	if last != handshakeTime/2 {
		t.Errorf("the longest wait is %v", last)
	}
	if wait, ok := h.reserve("b", now); wait != 0 || !ok {
		t.Errorf("another host waits %v, %v", wait, ok)
	}
	// Time passes, and it may again, not more than before.
	now = now.Add(time.Hour)
	for i := range handshakeBurst {
		if wait, ok := h.reserve("a", now); wait != 0 || !ok {
			t.Fatalf("later: handshake %d waits %v, %v", i, wait, ok)
		}
	}
	if wait, ok := h.reserve("a", now); wait != handshakeEvery || !ok {
		t.Errorf("later: one more waits %v, %v", wait, ok)
	}
	for i := range 2 * maxHosts {
		h.reserve(fmt.Sprint(i), now.Add(time.Duration(i)*time.Second))
	}
	if len(h.until) > maxHosts {
		t.Errorf("%d hosts are remembered", len(h.until))
	}
}

// The server asks: a host that has used up its share waits, or is refused; another gets
// its handshake.
func TestSecurityResidualHandshakesAreAdmitted(t *testing.T) {
	r := start(t)
	for ok := true; ok; {
		_, ok = r.shakes.reserve("127.0.0.2", time.Now().Add(time.Minute))
	}
	from := func(host string) error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}, Timeout: 10 * time.Second}
		c, err := tls.DialWithDialer(&d, "tcp", r.addr, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := from("127.0.0.1"); err != nil {
		t.Errorf("another host: %v", err)
	}
	if err := from("127.0.0.2"); err == nil {
		t.Error("the host that began too many gets one more")
	}
	const extra = 100
	begun := time.Now()
	for range handshakeBurst + extra {
		r.shakes.reserve("127.0.0.3", time.Now())
	}
	if err := from("127.0.0.3"); err != nil || time.Since(begun) < extra*handshakeEvery {
		t.Errorf("a host that has to wait: %v after %v", err, time.Since(begun))
	}
	r.wait(t, "127.0.0.2 begins more handshakes than 100 in a second")
}
