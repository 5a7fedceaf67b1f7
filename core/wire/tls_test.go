package wire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve answers connections with handle until the test ends.
func serve(t *testing.T, config *tls.Config, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(tls.Server(c, config))
			}()
		}
	}()
	return l.Addr().String()
}

// Requirements: R-002-095 R-003-096
func TestExchange(t *testing.T) {
	cert := certificate(t)
	config := ServerTLS(func() (*tls.Certificate, error) { return &cert, nil })
	var got, contacts atomic.Int32
	addr := serve(t, config, func(c net.Conn) {
		data, err := ReadFrame(c, 100)
		if errors.Is(err, ErrTrustContact) {
			contacts.Add(1)
			return
		}
		if err != nil {
			return
		}
		got.Add(1)
		c.Write(append([]byte("re:"), data...))
		c.(*tls.Conn).CloseWrite()
	})
	exact := func(c *x509.Certificate) error {
		if string(c.Raw) != string(cert.Certificate[0]) {
			return errors.New("another certificate")
		}
		return nil
	}
	answer, err := (&Client{Address: addr, ServerName: "vm.local", Verify: exact}).Exchange(context.Background(), []byte("hello"))
	if err != nil || string(answer) != "re:hello" {
		t.Errorf("got %q, %v", answer, err)
	}

	untrusted := errors.New("not trusted")
	_, err = (&Client{Address: addr, Verify: func(*x509.Certificate) error { return untrusted }}).Exchange(context.Background(), []byte("secret"))
	if !errors.Is(err, untrusted) {
		t.Errorf("got %v, want the error of verify", err)
	}
	if got.Load() != 1 {
		t.Error("an untrusted server got the request")
	}

	seen, err := (&Client{Address: addr, Verify: func(*x509.Certificate) error { return nil }}).Contact(context.Background())
	if err != nil || exact(seen) != nil {
		t.Errorf("contact: %v", err)
	}
	for range 100 {
		if contacts.Load() == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the server did not see the contact for trust")
}

// A peer that owns another key cannot show a trusted certificate.
// Requirements: R-002-095 R-003-096
func TestExchangeStolenCertificate(t *testing.T) {
	cert, other := certificate(t), certificate(t)
	stolen := tls.Certificate{Certificate: cert.Certificate, PrivateKey: other.PrivateKey}
	addr := serve(t, ServerTLS(func() (*tls.Certificate, error) { return &stolen, nil }), func(c net.Conn) { ReadFrame(c, 100) })
	_, err := (&Client{Address: addr, Verify: func(*x509.Certificate) error { return nil }}).Exchange(context.Background(), []byte("x"))
	if err == nil {
		t.Error("the exchange went through")
	}
}

func TestTLSVersions(t *testing.T) {
	cert := certificate(t)
	addr := serve(t, ServerTLS(func() (*tls.Certificate, error) { return &cert, nil }), func(c net.Conn) { ReadFrame(c, 100) })
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
		if (err == nil) != want {
			t.Errorf("%s: got %v", tls.VersionName(version), err)
		}
		if c != nil {
			c.Close()
		}
	}
}

func TestRetry(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	start := time.Now()
	c := &Client{Address: addr, Attempts: 3, Delay: 20 * time.Millisecond}
	if _, err := c.Exchange(context.Background(), []byte("x")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d < 40*time.Millisecond {
		t.Errorf("three attempts took %v", d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (&Client{Address: addr, Delay: time.Hour}).Exchange(ctx, []byte("x")); err == nil {
		t.Error("a cancelled exchange went through")
	}
}

func TestClientGivesUp(t *testing.T) {
	cert := certificate(t)
	addr := serve(t, ServerTLS(func() (*tls.Certificate, error) { return &cert, nil }), func(c net.Conn) {
		ReadFrame(c, 100)
		time.Sleep(2 * time.Second)
	})
	c := &Client{Address: addr, Verify: func(*x509.Certificate) error { return nil }, Timeouts: Timeouts{Answer: 50 * time.Millisecond}}
	start := time.Now()
	if _, err := c.Exchange(context.Background(), []byte("x")); err == nil || time.Since(start) > time.Second {
		t.Errorf("silent server: got %v after %v", err, time.Since(start))
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	quit := errors.New("interrupted")
	time.AfterFunc(50*time.Millisecond, func() { cancel(quit) })
	c.Timeouts.Answer = time.Hour
	start = time.Now()
	if _, err := c.Exchange(ctx, []byte("x")); !errors.Is(err, quit) || time.Since(start) > time.Second {
		t.Errorf("cancelled: got %v after %v", err, time.Since(start))
	}
}

func TestDeadlineConn(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	c := &DeadlineConn{Conn: a, Idle: 20 * time.Millisecond}
	start := time.Now()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("idle: read went through")
	}
	c.Idle = 0
	c.Phase(20 * time.Millisecond)
	if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
		t.Error("phase: read went through")
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("phase: write went through")
	}
	if time.Since(start) > time.Second {
		t.Errorf("took %v", time.Since(start))
	}
}
