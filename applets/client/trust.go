package client

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"stapbox/core/identity"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
	"stapbox/core/wire"
)

// trustSpec is the argument of --trust-servers.
type trustSpec struct {
	ssl, signer, allUsers, revoke, noPrompt bool
}

func parseTrust(arg string) (t trustSpec, unknown []string) {
	for _, word := range strings.Split(arg, ",") {
		switch word {
		case "":
		case "ssl":
			t.ssl = true
		case "signer":
			t.signer = true
		case "all-users":
			t.allUsers = true
		case "revoke":
			t.revoke = true
		case "no-prompt":
			t.noPrompt = true
		default:
			unknown = append(unknown, word)
		}
	}
	if !t.ssl && !t.signer {
		t.ssl = true
	}
	return t, unknown
}

func (t trustSpec) purpose() string {
	var p []string
	if t.ssl && t.allUsers {
		p = append(p, "as an SSL peer for all users")
	} else if t.ssl {
		p = append(p, "as an SSL peer for the current user")
	}
	if t.signer {
		p = append(p, "as a module signer for all users")
	}
	return strings.Join(p, " and ")
}

// contacted is a server with the certificate it showed.
type contacted struct {
	record
	cert *x509.Certificate
}

// trustServers is --trust-servers (6.7). What is trusted is a certificate; the
// question shows its fingerprint, which can be compared with what the server
// printed when it started (decision T1). Unlike upstream a word that is no part of a
// specification changes nothing: a mistyped "revoke" must not add trust. It reports
// whether everything was done that was asked for, or declined by the user.
func (c *client) trustServers(ctx context.Context, s *servers, arg string) (ok bool) {
	t, unknown := parseTrust(arg)
	for _, u := range unknown {
		c.say("ERROR: Unrecognized server trust specification: %s", u)
	}
	if len(unknown) > 0 {
		return false
	}
	if c.uid != 0 {
		if t.signer {
			c.say("Only root can specify 'signer' on --trust-servers")
		}
		if t.allUsers {
			c.say("Only root can specify 'all-users' on --trust-servers")
		}
		if t.signer || t.allUsers {
			return false
		}
	}
	if t.signer && t.noPrompt && !t.revoke && slices.ContainsFunc(c.opts.UseServer, func(u string) bool { return !strings.HasPrefix(u, "sha256:") }) {
		c.say("'signer' with 'no-prompt' needs servers named by the fingerprint of their certificate: --use-server=sha256:HEX")
		return false
	}
	var targets []contacted
	if t.revoke {
		targets = c.revocable(ctx, s, t)
	} else {
		targets = c.contact(ctx, s)
	}
	if len(targets) == 0 {
		c.sayUnresolved(ctx, s)
		c.say("No servers identified for trust")
		return false
	}
	if !t.revoke {
		if targets, ok = c.notRevoked(t, targets); len(targets) == 0 {
			return false
		}
	}
	if !c.confirm(t, targets) {
		c.say("Server trust unchanged")
		return ok || t.revoke
	}
	ok = ok || t.revoke
	for _, target := range targets {
		if !c.change(t, target) {
			ok = false
		}
	}
	return ok
}

// notRevoked drops the servers whose certificates one of the stores lists as revoked,
// and reports whether there were none. Who revoked one, because its key was stolen
// for example, is not to be overruled by the next job that trusts a server by its
// address. For a peer of this user each store of peers counts: his client refuses what
// one of them has revoked.
func (c *client) notRevoked(t trustSpec, targets []contacted) (left []contacted, all bool) {
	all = true
	for _, x := range targets {
		revoked := ""
		var stores []store
		for _, st := range c.stores(t) {
			stores = append(stores, st.store)
		}
		if t.ssl && !t.allUsers {
			stores = append(stores, c.peerStores()...)
		}
		for _, st := range stores {
			if s, err := trust.Read(st.dir, st.rules); err == nil && s.Revoked[sha256.Sum256(x.cert.Raw)] {
				revoked = st.dir
			}
		}
		if revoked == "" {
			left = append(left, x)
			continue
		}
		all = false
		c.say("ERROR: Not trusting%s: its certificate is revoked in trust store %q", x, revoked)
		c.say("hint: to believe it again take the line %s out of %s", x.fingerprint, filepath.Join(revoked, trust.RevokedList))
	}
	return left, all
}

// contact asks every specified server for its certificate.
func (c *client) contact(ctx context.Context, s *servers) []contacted {
	specs := s.requested(ctx)
	for _, r := range specs {
		if r.certinfo == "" {
			continue
		}
		fit := slices.DeleteFunc(slices.Clone(s.findOnline(ctx)), func(o record) bool { return !o.equal(r) })
		if err := onlyOne(fit, r.certinfo); err != nil {
			c.say("%v", err)
			return nil
		}
	}
	list := s.specified(ctx)
	// A fingerprint is in no announcement: every server online may have it.
	for _, r := range specs {
		if r.fingerprint != "" && !slices.ContainsFunc(list, func(l record) bool { return l.addr.IsValid() && l.fingerprint == r.fingerprint }) {
			for _, o := range s.findOnline(ctx) {
				o.fingerprint = r.fingerprint
				list = append(list, o)
			}
		}
	}
	var out []contacted
	for _, r := range list {
		if !r.addr.IsValid() || r.port == 0 {
			continue
		}
		cl := c.wireClient(r)
		cl.Verify = func(cert *x509.Certificate) error { return s.expected(r, cert) }
		cert, err := cl.Contact(ctx)
		if err != nil {
			if r.fingerprint == "" || c.opts.Verbose > 0 {
				c.say("Unable to connect to%s\n%v", r, err)
			}
			continue
		}
		c.compareName(r, cert)
		if r.host == "" && len(cert.DNSNames) > 0 {
			r.host = clean(cert.DNSNames[0])
		}
		r.certinfo, r.fingerprint = identity.CertInfo(cert), identity.Fingerprint(cert)
		if !slices.ContainsFunc(out, func(o contacted) bool { return o.fingerprint == r.fingerprint }) {
			out = append(out, contacted{r, cert})
		}
	}
	return out
}

// revocable are the certificates in the chosen stores that fit a specification.
func (c *client) revocable(ctx context.Context, s *servers, t trustSpec) []contacted {
	var have []record
	for _, st := range c.stores(t) {
		have = append(have, s.readStore(st.store)...)
	}
	if t.ssl { // a user may do without a server that the host trusts
		for _, st := range c.peerStores() {
			have = append(have, s.readStore(st)...)
		}
	}
	var out []contacted
	// A server that is named by its address and port is asked for its certificate,
	// as it was for adding trust: no store has addresses.
	var failed []error
	for _, want := range s.requested(ctx) {
		if !want.full || !want.addr.IsValid() {
			continue
		}
		cl := c.wireClient(want)
		cl.Verify = func(*x509.Certificate) error { return nil } // whoever it is, it is to lose trust
		cert, err := cl.Contact(ctx)
		if err != nil {
			failed = append(failed, fmt.Errorf("Unable to connect to%s\n%w", want, err))
			continue
		}
		fp := identity.Fingerprint(cert)
		for _, r := range have {
			if r.fingerprint == fp && !slices.ContainsFunc(out, func(o contacted) bool { return o.fingerprint == fp }) {
				r.addr, r.port = want.addr, want.port
				out = append(out, contacted{record: r})
			}
		}
	}
	if len(out) == 0 && len(failed) > 0 {
		for _, err := range failed {
			c.say("%v", err)
		}
		c.say("hint: a server that does not answer is named by its certificate: --use-server=sha256:HEX, see stapbox trust list")
	}
	for _, want := range s.specified(ctx) {
		for _, r := range have {
			byCert := want.fingerprint != "" || want.certinfo != ""
			if byCert && r.equal(want) && !slices.ContainsFunc(out, func(o contacted) bool { return o.fingerprint == r.fingerprint }) {
				if want.addr.IsValid() {
					r.addr, r.port, r.host = want.addr, want.port, want.host
				}
				out = append(out, contacted{record: r})
			}
		}
	}
	return out
}

type namedStore struct {
	store
	scope string
}

func (c *client) stores(t trustSpec) []namedStore {
	var out []namedStore
	switch {
	case t.ssl && t.allUsers:
		out = append(out, namedStore{c.hostStore(), "peer, all users"})
	case t.ssl:
		out = append(out, namedStore{c.userStore(), "peer, current user"})
	}
	if t.signer {
		out = append(out, namedStore{c.signerStore(), "module signer, all users"})
	}
	return out
}

func (c *client) confirm(t trustSpec, targets []contacted) bool {
	var list []record
	for _, x := range targets {
		list = append(list, x.record)
	}
	verb, doing := "Add trust ", "Adding trust "
	if t.revoke {
		verb, doing = "Revoke trust ", "Revoking trust "
	}
	if t.noPrompt {
		c.say("%sin the following servers %s", doing, t.purpose())
		fmt.Fprint(c.inv.Stderr, lines(list, "  "))
		return true
	}
	c.say("%sin the following servers %s?", verb, t.purpose())
	fmt.Fprint(c.inv.Stderr, lines(list, "  "))
	fmt.Fprint(c.inv.Stderr, "[y/N] ")
	line, _ := bufio.NewReader(c.inv.Stdin).ReadString('\n')
	word := strings.Fields(line)
	return len(word) > 0 && (word[0][0] == 'y' || word[0][0] == 'Y')
}

// change writes to the stores, and reports whether it could. Who is revoked is
// remembered in each: what it signed is refused by name, and no later trust in all
// servers, or in an address, brings it back.
func (c *client) change(t trustSpec, target contacted) (ok bool) {
	ok = true
	by := strconv.Itoa(c.uid)
	if u, err := user.LookupId(by); err == nil {
		by = u.Username
	}
	for _, st := range c.stores(t) {
		var changed bool
		var err error
		if t.revoke {
			changed, err = edit.Revoke(st.dir, st.rules, target.fingerprint)
		} else {
			changed, err = edit.Add(st.dir, st.rules, target.cert, edit.Note{
				Host: target.host, When: c.now(), By: by, Scope: st.scope,
			})
		}
		switch {
		case err != nil:
			ok = false
			c.say("Unable to change trust in%s: %v", target, err)
		case !changed && c.opts.Verbose >= 2:
			un := ""
			if t.revoke {
				un = "un"
			}
			c.say("%s is already %strusted %s", target, un, t.purpose())
		}
	}
	return ok
}

// wireClient is a connection to a server that is not verified yet.
func (c *client) wireClient(r record) *wire.Client {
	name := r.host
	if name == "unknown" {
		name = ""
	}
	return &wire.Client{Address: r.address(), ServerName: name, Delay: c.retryDelay, Timeouts: wire.Timeouts{Connect: 10 * time.Second}}
}
