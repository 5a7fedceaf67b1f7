package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// The cipher suites for TLS 1.2: ephemeral keys only (decision T3). Those of
// TLS 1.3 are all like that and cannot be chosen.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// ServerTLS is the server's side: its certificate as of now, no client
// certificates, no session tickets (a connection carries one request).
func ServerTLS(certificate func() (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		CipherSuites:           suites,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return certificate()
		},
	}
}

// ClientTLS is the client's side. The peer is who proves to own exactly a
// certificate that verify accepts; there are no authorities, and the name in
// the certificate is information (server-client 2.5).
func ClientTLS(serverName string, verify func(*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		CipherSuites: suites,
		ServerName:   serverName,
		// Replaced by VerifyConnection: the certificate is its own issuer, has
		// a critical extension crypto/x509 does not know, and no CA bit.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the server sent no certificate")
			}
			return verify(cs.PeerCertificates[0])
		},
	}
}

// Client talks to one server.
type Client struct {
	Address    string // host:port
	ServerName string // for SNI, "" when only an address is known
	// Verify decides whether the presented certificate is the right one. Its
	// error ends the exchange before a single octet of the request is sent.
	Verify func(*x509.Certificate) error
	// Certificate is shown to a server that asks for one, after it was verified;
	// nil is none.
	Certificate *tls.Certificate

	Attempts int           // 5 when 0; only resets and refused connections are tried again
	Delay    time.Duration // between attempts, 1 s when 0
	Timeouts Timeouts
}

// Timeouts of the phases of an exchange.
type Timeouts struct {
	Connect, Handshake, Send time.Duration
	// Answer is the time from the end of the request to the end of the
	// response. It covers the compilation.
	Answer time.Duration
}

// DefaultTimeouts are for a client.
var DefaultTimeouts = Timeouts{
	Connect: 10 * time.Second, Handshake: 20 * time.Second,
	Send: 60 * time.Second, Answer: 20 * time.Minute,
}

// Contact makes the handshake and sends the empty request of a client that
// wants to know the server's certificate, which is returned.
func (c *Client) Contact(ctx context.Context) (*x509.Certificate, error) {
	var cert *x509.Certificate
	err := c.retry(ctx, func() error {
		conn, err := c.dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		cert = conn.ConnectionState().PeerCertificates[0]
		_, err = conn.Write(make([]byte, 4))
		return err
	})
	return cert, err
}

// Exchange sends a request archive and returns the response archive.
func (c *Client) Exchange(ctx context.Context, archive []byte) ([]byte, error) {
	frame, err := Frame(archive)
	if err != nil {
		return nil, err
	}
	var answer []byte
	err = c.retry(ctx, func() error {
		conn, err := c.dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		// Closing the connection is what ends the reads below.
		stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
		defer stop()
		low := conn.NetConn().(*DeadlineConn)
		low.Phase(orElse(c.Timeouts.Send, DefaultTimeouts.Send))
		if _, err := conn.Write(frame); err != nil {
			return cause(ctx, fmt.Errorf("sending the request: %w", err))
		}
		low.Phase(orElse(c.Timeouts.Answer, DefaultTimeouts.Answer))
		answer, err = io.ReadAll(io.LimitReader(conn, MaxResponse+1))
		if len(answer) > MaxResponse {
			return fmt.Errorf("response has more than %d bytes", MaxResponse)
		}
		// A server may end the stream without close_notify; the archive's own
		// directory, at its end, tells whether all of it came.
		if err != nil && !(errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) && len(answer) > 0) {
			return cause(ctx, fmt.Errorf("reading the response: %w", err))
		}
		return nil
	})
	return answer, err
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func orElse(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func (c *Client) dial(ctx context.Context) (*tls.Conn, error) {
	d := net.Dialer{Timeout: orElse(c.Timeouts.Connect, DefaultTimeouts.Connect)}
	raw, err := d.DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return nil, err
	}
	low := &DeadlineConn{Conn: raw}
	low.Phase(orElse(c.Timeouts.Handshake, DefaultTimeouts.Handshake))
	config := ClientTLS(c.ServerName, c.Verify)
	if c.Certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate, nil }
	}
	conn := tls.Client(low, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, cause(ctx, err)
	}
	return conn, nil
}

// retry follows server-client 3.7: a server that restarts refuses or resets
// connections for a moment. Any other error is final.
func (c *Client) retry(ctx context.Context, try func() error) error {
	attempts := c.Attempts
	if attempts == 0 {
		attempts = 5
	}
	for n := 1; ; n++ {
		err := try()
		if err == nil || n == attempts ||
			!errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(orElse(c.Delay, time.Second)):
		}
	}
}
