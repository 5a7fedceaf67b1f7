package service

import (
	"crypto/x509"
	"fmt"
	"path/filepath"

	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/service"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
)

// trusts reports whether the host trusts such a server by itself.
func (m *manager) trusts(ssl string, a account) bool {
	return m.euid == 0 && a.name == hostpaths.ServerUser && ssl == ""
}

// trust has the host trust its own server, as peer and as signer of modules: one
// of user stap-server with the key in that user's own directory, started by
// root, and no other (design T2). The certificate is reached through directories
// that belong to that user or root and are no links, and it must be the one that
// the server says it has.
func (m *manager) trust(r *service.Running, a account) error {
	if !m.trusts(r.SSL, a) {
		return nil
	}
	file := filepath.Join(hostpaths.ServerIdentity(hostpaths.UserDir("", a.home)), identity.CertFile)
	der, err := trust.ReadFile(file, trust.MaxCertificateSize, trust.Rules{Owners: []int{a.uid, 0}, Base: filepath.Dir(a.home)})
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading %q: %w", file, err)
	}
	fingerprint := identity.Fingerprint(cert)
	if fingerprint != r.Facts.Fingerprint {
		return fmt.Errorf("the certificate in %q has sha256:%s, that of the server sha256:%s", file, fingerprint, r.Facts.Fingerprint)
	}
	node := m.node
	for _, s := range []struct{ dir, scope string }{{m.peers, "peer, all users"}, {m.signers, "module signer, all users"}} {
		added, err := edit.Add(s.dir, m.storeRules, cert, edit.Note{Host: node, When: m.now(), By: "stap-server", Scope: s.scope})
		if err != nil {
			return err
		}
		if added {
			m.out.begin(fmt.Sprintf("This host trusts sha256:%s (%s)", fingerprint, s.scope))
			m.log(fmt.Sprintf("Trusted sha256:%s in %s (%s)", fingerprint, s.dir, s.scope))
		}
	}
	return nil
}
