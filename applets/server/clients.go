package server

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"stapbox/core/identity"
	"stapbox/core/trust"
)

// clientTrust says which client certificates are accepted: those it holds, and
// those that one of its authorities issued for TLS clients.
type clientTrust struct {
	accepted map[string]bool // fingerprints
	revoked  map[string]bool
	roots    *x509.CertPool
	size     int
}

// maxClientFile is room for some thousand certificates.
const maxClientFile = 4 << 20

// readClientTrust reads a file of PEM certificates, or a trust store with its
// list of revoked ones.
func readClientTrust(path string, uid int) (*clientTrust, error) {
	t := &clientTrust{accepted: map[string]bool{}, revoked: map[string]bool{}, roots: x509.NewCertPool()}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the certificates of clients: %w", err)
	}
	if st.IsDir() {
		store, err := trust.Read(path, trust.UserRules(uid, path))
		if err != nil {
			return nil, fmt.Errorf("reading the certificates of clients: %w", err)
		}
		if len(store.Warnings) > 0 {
			return nil, fmt.Errorf("reading the certificates of clients: %s", store.Warnings[0])
		}
		for _, c := range store.Certificates {
			if !c.Revoked {
				t.add(c.Certificate)
			}
		}
		for digest := range store.Revoked {
			t.revoked[fmt.Sprintf("%x", digest)] = true
		}
		return t, nil
	}
	if st.Size() > maxClientFile {
		return nil, fmt.Errorf("reading the certificates of clients: %q has more than %d bytes", path, maxClientFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the certificates of clients: %w", err)
	}
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("reading the certificates of clients: %q has a PEM block %q", path, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading the certificates of clients: %q: %w", path, err)
		}
		t.add(cert)
	}
	if t.size == 0 {
		return nil, fmt.Errorf("reading the certificates of clients: %q has none", path)
	}
	return t, nil
}

func (t *clientTrust) add(cert *x509.Certificate) {
	t.size++
	t.accepted[identity.Fingerprint(cert)] = true
	if cert.IsCA {
		t.roots.AddCert(cert)
	}
}

// check says why a chain of certificates that a client showed is not accepted.
// That the client has the key was proved in the handshake.
func (t *clientTrust) check(chain []*x509.Certificate, now time.Time) error {
	for _, c := range chain {
		if t.revoked[identity.Fingerprint(c)] {
			return errors.New("it is revoked")
		}
	}
	leaf := chain[0]
	if t.accepted[identity.Fingerprint(leaf)] {
		if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
			return fmt.Errorf("its time is from %s to %s UTC", leaf.NotBefore.UTC().Format(time.DateTime), leaf.NotAfter.UTC().Format(time.DateTime))
		}
		return nil
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: t.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// who finds out who a client is, and whether he may ask.
func (s *server) who(address, host string, chain []*x509.Certificate) (client, error) {
	c := client{name: host, address: address}
	s.mu.Lock()
	accept := s.clients
	s.mu.Unlock()
	if accept == nil {
		return c, nil
	}
	if len(chain) == 0 {
		if s.opts.requireCert {
			return c, &limitError{"certificate", "this server answers only clients that show a certificate (--require-client-cert)."}
		}
		return c, nil
	}
	c.certificate = identity.Fingerprint(chain[0])
	c.subject = chain[0].Subject.String()
	if err := accept.check(chain, s.now()); err != nil {
		return c, &limitError{"certificate", fmt.Sprintf("the client certificate sha256:%s is not accepted: %v.", c.certificate, err)}
	}
	c.name = "sha256:" + c.certificate
	return c, nil
}

// readClients reads the certificates of --client-ca, if there are any.
func (s *server) readClients() (*clientTrust, error) {
	if s.opts.clientCA == "" {
		return nil, nil
	}
	path := s.opts.clientCA
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.inv.Dir, path)
	}
	return readClientTrust(path, s.uid)
}
