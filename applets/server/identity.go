package server

import (
	"crypto"
	"crypto/x509"
	"slices"
	"time"

	"stapbox/core/compile"
	"stapbox/core/discovery"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/kbuild"
	"stapbox/core/stapopts"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
	"stapbox/core/version"
)

// renewTime is how often the age of the certificate is looked at.
const renewTime = 10 * time.Minute

// identity is the server's certificate as of now. When its time is over, the
// next one takes over, or it is made anew.
func (s *server) identity() (*identity.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id != nil && !s.id.Expired(s.now()) {
		return s.id, nil
	}
	return s.id, s.ensure()
}

// renew makes the next certificate, or has it take over, when it is time to.
func (s *server) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, cert := s.now(), s.id.Certificate
	due := cert.NotAfter.Add(-s.lim.renew)
	if s.next != nil {
		due = cert.NotAfter.Add(-identity.ChangeBefore)
	}
	if now.Before(due) && !now.Before(cert.NotBefore) {
		s.clockOf.believe(now, s.log.printf)
		return
	}
	if err := s.ensure(); err != nil {
		s.log.errorf("%v", err)
	}
}

// ensure loads or makes the identity, and the next one; while the clock cannot be
// believed everything stays as it is. The caller holds s.mu, as for the functions
// below.
func (s *server) ensure() error {
	if !s.clockOf.believe(s.now(), s.log.printf) && s.id != nil {
		return nil
	}
	id, next, err := identity.Renew(s.opts.ssl, identity.Options{NodeName: s.node, KeyType: s.opts.keyType, Now: s.now()}, s.lim.renew, s.log.printf)
	if err != nil {
		return err
	}
	announced := s.next
	s.next = next
	if next != nil && (announced == nil || !announced.Certificate.Equal(next.Certificate)) {
		s.trust(next.Certificate, "next peer, current user")
		if s.id != nil && s.id.Certificate.Equal(id.Certificate) {
			s.advertise()
		}
	}
	if s.id == nil || !s.id.Certificate.Equal(id.Certificate) {
		s.use(id)
	}
	return nil
}

// use takes an identity: it is trusted in the user's own store, and advertised.
// The one before stays trusted there, to its end.
func (s *server) use(id *identity.Identity) {
	s.id = id
	if s.next != nil && s.next.Certificate.Equal(id.Certificate) {
		s.next = nil
	}
	s.log.printf("Certificate %s sha256=%s", identity.CertInfo(id.Certificate), identity.Fingerprint(id.Certificate))
	s.trust(id.Certificate, "peer, current user")
	s.advertise()
}

func (s *server) trust(cert *x509.Certificate, scope string) {
	store := hostpaths.UserPeerStore(s.data)
	_, err := edit.Add(store, trust.UserRules(s.uid, s.data), cert, edit.Note{
		Host: s.node, When: s.now(), By: "stap-serverd", Scope: scope,
	})
	if err != nil {
		s.log.errorf("Unable to authorize certificate for the local client: %v", err)
	}
}

// key is the key that signs now.
func (s *server) key() crypto.Signer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id.Key
}

// signerName is the certificate of a key that has signed: it may have been
// replaced since. Keys are told apart by their public half: an Ed25519 key is a
// slice, which Go compares with nothing.
func (s *server) signerName(key crypto.Signer) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signers == nil {
		s.signers = make(map[string]string)
	}
	name := publicHalf(key)
	if publicHalf(s.id.Key) == name && s.signers[name] == "" {
		clear(s.signers)
		s.signers[name] = identity.Fingerprint(s.id.Certificate)
	}
	return s.signers[name]
}

func publicHalf(key crypto.Signer) string {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "" // of no kind that a certificate can have
	}
	return string(der)
}

// advertise publishes the services, replacing what was published before. A
// server that cannot be found by browsing still serves those who know it. The
// key "next" of a TXT record is our own: the certificate that is to come.
func (s *server) advertise() {
	s.withdraw()
	if s.foreign && s.systemtap == "" {
		return // nobody would get a module
	}
	var services []discovery.Service
	s.announced = s.buildable()
	for _, k := range s.announced {
		txt := discovery.TXT(k.Name, s.arch, s.opts.translator, version.Protocol, identity.CertInfo(s.id.Certificate), s.moks.fingerprints())
		if s.next != nil {
			txt = append(txt, "next=sha256:"+identity.Fingerprint(s.next.Certificate))
		}
		services = append(services, discovery.Service{Port: s.port, TXT: txt})
	}
	if len(services) == 0 {
		return
	}
	r, err := s.publish(s.node, services, s.log.printf)
	if err != nil {
		s.log.errorf("Failed to add %s service: %v", discovery.Type, err)
		return
	}
	s.responder = r
}

// buildable are the kernels that modules can be built for. One without headers would
// look compatible to its clients, and fail them.
func (s *server) buildable() []compile.Release {
	if s.foreign || s.opts.backend == stapopts.TranslatorSystemtap {
		return s.service.Releases // SystemTap looks for itself
	}
	var list []compile.Release
	for _, k := range s.service.Releases {
		if err := s.headers(k); err == nil {
			list = append(list, k)
		} else if s.announced == nil || slices.Contains(s.announced, k) {
			s.log.errorf("WARNING: Kernel %s is not announced: %v", k.Name, err)
		}
	}
	return list
}

// headers looks for what modules of a kernel are built with.
func (s *server) headers(k compile.Release) error {
	if s.findHeaders != nil {
		return s.findHeaders(k)
	}
	spec := k.Name
	if k.BuildDir != "" {
		spec = k.BuildDir
	}
	_, err := kbuild.FindKernel(spec)
	return err
}

// announceAgain announces what has changed: headers come and go with packages.
func (s *server) announceAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.announced; !slices.Equal(s.buildable(), before) {
		s.advertise()
	}
}

func (s *server) withdraw() {
	if s.responder != nil {
		s.responder.Close()
		s.responder = nil
	}
}
