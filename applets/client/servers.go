package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"stapbox/core/discovery"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/trust"
	"stapbox/core/uname"
)

// servers answers the queries of server-client 6.3. Each source is asked once.
type servers struct {
	c      *client
	kernel string // "RELEASE ARCH" of this session
	arch   string

	online  []record
	browsed bool
	stores  map[string][]record
	revoked map[string]bool // fingerprints that some store of peers lists as revoked
	wanted  []record        // of --use-server, resolved
	parsed  bool

	unresolved []unresolved

	own   *tls.Certificate  // shown to servers that ask for one, or nil
	shown *x509.Certificate // by the server that was connected to last
}

// unresolved is a name of --use-server that could not be looked up.
type unresolved struct {
	host string
	err  error
}

func newServers(c *client) *servers {
	release, arch, _ := uname.Host()
	if c.opts.Kernel != "" && !strings.HasPrefix(c.opts.Kernel, "/") {
		release = c.opts.Kernel
	}
	if c.opts.Arch != "" {
		arch = uname.Arch(c.opts.Arch)
	}
	return &servers{c: c, kernel: release + " " + arch, arch: arch, stores: make(map[string][]record)}
}

// findOnline browses. It may stop as soon as all the wanted ones are there.
func (s *servers) findOnline(ctx context.Context) []record {
	if s.browsed {
		return s.online
	}
	s.browsed = true
	found, err := s.c.browse(ctx, nil)
	if err != nil && s.c.opts.Verbose > 0 {
		s.c.say("Browsing for servers: %v", err)
	}
	for _, f := range found {
		s.online = append(s.online, record{
			host: f.Host, addr: f.Addr, others: f.Others, port: f.Port, version: f.Version, sysinfo: f.Sysinfo, certinfo: f.Certinfo, mok: f.MOK,
			found: true,
		})
	}
	return s.online
}

// inStore are the certificates of trust stores as servers, with the online
// servers that say they have them.
func (s *servers) inStore(ctx context.Context, dirs ...store) []record {
	var out []record
	for _, d := range dirs {
		for _, r := range s.store(d) {
			if d.dir != s.c.signers && s.revokedPeer(r.fingerprint) {
				continue
			}
			out = merge(out, r)
			for _, o := range s.findOnline(ctx) {
				if o.certinfo == r.certinfo {
					o.fingerprint = r.fingerprint
					out = merge(out, o)
				}
			}
		}
	}
	return out
}

// revokedPeer reports whether a store of peers lists a certificate as revoked:
// whatever the others say, it is not used then.
func (s *servers) revokedPeer(fingerprint string) bool {
	if s.revoked == nil {
		s.revoked = map[string]bool{}
		for _, d := range s.c.peerStores() {
			st, err := trust.Read(d.dir, d.rules)
			if err != nil {
				continue // readStore has said so, and verify refuses
			}
			for digest := range st.Revoked {
				s.revoked[fmt.Sprintf("%x", digest)] = true
			}
		}
	}
	return s.revoked[fingerprint]
}

// store is what readStore gives, read once.
func (s *servers) store(d store) []record {
	list, ok := s.stores[d.dir]
	if !ok {
		list = s.readStore(d)
		s.stores[d.dir] = list
	}
	return list
}

func (s *servers) readStore(d store) []record {
	st, err := trust.Read(d.dir, d.rules)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		s.c.say("WARNING: %v", err)
		return nil
	}
	for _, w := range st.Warnings {
		s.c.say("WARNING: %s", w)
	}
	var list []record
	for _, c := range st.Certificates {
		if c.Revoked {
			continue
		}
		r := record{certinfo: identity.CertInfo(c.Certificate), fingerprint: c.Fingerprint}
		if len(c.DNSNames) > 0 {
			r.host = clean(c.DNSNames[0])
		}
		list = append(list, r)
	}
	return list
}

// store is a trust store and the rules it is read by.
type store struct {
	dir   string
	rules trust.Rules
}

func (c *client) userStore() store {
	return store{hostpaths.UserPeerStore(c.data), trust.UserRules(c.uid, c.data)}
}

// peerStores are the stores a server's certificate is looked for in.
func (c *client) peerStores() []store {
	return append(slices.Clone(c.extra), c.userStore(), c.hostStore())
}

func (c *client) hostStore() store { return store{c.hostPeers, c.hostRules} }

func (c *client) signerStore() store { return store{c.signers, c.hostRules} }

func (s *servers) trusted(ctx context.Context) []record {
	return s.inStore(ctx, s.c.peerStores()...)
}

func (s *servers) signer(ctx context.Context) []record { return s.inStore(ctx, s.c.signerStore()) }

func (s *servers) all(ctx context.Context) []record {
	var out []record
	for _, list := range [][]record{s.findOnline(ctx), s.trusted(ctx), s.signer(ctx)} {
		for _, r := range list {
			out = merge(out, r)
		}
	}
	return out
}

func (s *servers) compatible(ctx context.Context) []record {
	var out []record
	for _, r := range s.findOnline(ctx) {
		verdict := "Accepted server"
		switch {
		case r.sysinfo != s.kernel && r.sysinfo != s.arch:
			verdict = "Rejected server (platform)"
		case !s.c.kernel.accepts(r.mok):
			verdict = "Rejected server (common mok)"
		default:
			out = append(out, r)
		}
		if s.c.opts.Verbose > 3 {
			s.c.say("%s:%s", verdict, r)
		}
	}
	return out
}

// defaultQuery is what is asked when nothing was specified.
func (s *servers) defaultQuery() string {
	q := "online,trusted,compatible"
	if s.c.opts.Unprivileged() {
		q += ",signer"
	}
	return q
}

// query combines properties: the first of a fixed order accumulates, the
// others filter.
func (s *servers) query(ctx context.Context, props string) []record {
	given := strings.Split(props, ",")
	known := []string{"all", "specified", "online", "trusted", "signer", "compatible"}
	for _, p := range given {
		if p != "" && !slices.Contains(known, p) {
			s.c.say("WARNING: unsupported compile server property: %s", p)
		}
	}
	var out []record
	first := true
	for _, p := range known {
		if !slices.Contains(given, p) {
			continue
		}
		var list []record
		switch p {
		case "all":
			list = s.all(ctx)
		case "specified":
			if list = s.specified(ctx); s.wantDefault() {
				list = s.query(ctx, s.defaultQuery())
			}
		case "online":
			list = s.findOnline(ctx)
		case "trusted":
			list = s.trusted(ctx)
		case "signer":
			list = s.signer(ctx)
		case "compatible":
			list = s.compatible(ctx)
		}
		if first {
			out, first = slices.Clone(list), false
			continue
		}
		out = keepCommon(out, list)
	}
	return out
}

// keepCommon keeps what equals something in the other list, with what that
// knows of it.
func keepCommon(list, other []record) []record {
	var out []record
	for _, r := range list {
		if i := slices.IndexFunc(other, r.equal); i >= 0 {
			if r.fingerprint == "" {
				r.fingerprint = other[i].fingerprint
			}
			if r.certinfo == "" {
				r.certinfo = other[i].certinfo
			}
			out = append(out, r)
		}
	}
	return out
}

// want takes from a specification what it says of the server that fits it: the
// key it must have, and which of its addresses to use.
func (r *record) want(w record) {
	if w.fingerprint != "" {
		r.fingerprint = w.fingerprint
	}
	if w.addr.IsValid() && !sameAddr(r.addr, w.addr) {
		// Ours has the zone that the specification may lack.
		if i := slices.IndexFunc(r.others, func(o netip.Addr) bool { return sameAddr(o, w.addr) }); i >= 0 {
			r.addr = r.others[i]
		}
	}
}

// specified are the servers of --use-server. What is not fully specified is
// looked up among the known ones.
func (s *servers) specified(ctx context.Context) []record {
	var out []record
	for _, r := range s.requested(ctx) {
		if r.full && r.addr.IsValid() {
			out = merge(out, r)
			continue
		}
		found := false
		for _, k := range s.all(ctx) {
			if k.equal(r) {
				k.want(r)
				out, found = merge(out, k), true
			}
		}
		if !found && s.c.opts.Verbose >= 3 {
			s.c.say("Incomplete server spec:%s", r)
		}
	}
	return out
}

// requested parses and resolves all --use-server. A default query stands for
// an empty one.
func (s *servers) requested(ctx context.Context) []record {
	if s.parsed {
		return s.wanted
	}
	s.parsed = true
	for _, spec := range s.c.opts.UseServer {
		if spec == "" {
			continue
		}
		r, err := parseSpec(spec)
		if err != nil {
			s.c.say("%v", err)
			continue
		}
		list, err := resolve(ctx, r)
		if err != nil {
			s.unresolved = append(s.unresolved, unresolved{r.host, err})
		}
		s.wanted = append(s.wanted, list...)
	}
	return s.wanted
}

// wantDefault reports whether the default query is wanted: no server is named.

func (s *servers) wantDefault() bool {
	return !slices.ContainsFunc(s.c.opts.UseServer, func(spec string) bool { return spec != "" })
}

// candidates chooses the servers for a compilation (6.4), best first.
func (s *servers) candidates(ctx context.Context) ([]record, error) {
	var out []record
	if s.wantDefault() {
		for _, r := range s.query(ctx, s.defaultQuery()) {
			out = merge(out, r)
		}
	}
	for _, want := range s.requested(ctx) {
		if want.full && want.addr.IsValid() {
			out = merge(out, want)
			continue
		}
		var fit []record
		for _, r := range s.findOnline(ctx) {
			// A fingerprint is in no announcement: any of them may have it.
			if want.fingerprint == "" && !r.equal(want) {
				continue
			}
			r.want(want)
			fit = append(fit, r)
		}
		if !want.full {
			fit = keepCommon(fit, s.compatible(ctx))
			if s.c.opts.Unprivileged() {
				fit = keepCommon(fit, s.signer(ctx))
			}
		}
		if want.certinfo != "" {
			if err := onlyOne(fit, want.certinfo); err != nil {
				return nil, err
			}
		}
		for _, r := range fit {
			out = merge(out, r)
		}
	}
	return sorted(out), nil
}

// onlyOne refuses to choose between servers that announce the same serial
// number: it identifies nobody (decision T1).
func onlyOne(list []record, certinfo string) error {
	for _, r := range list {
		if r.host != list[0].host || r.port != list[0].port {
			return fmt.Errorf("Two servers announce the certificate serial %s:\n%s\n%s\nName one of them by --use-server=sha256:HEX or by its address and port.", certinfo, list[0], r)
		}
	}
	return nil
}

// noServer explains an empty choice.
func (s *servers) noServer(ctx context.Context) string {
	var b strings.Builder
	lost := s.lost(ctx)
	for _, err := range lost {
		fmt.Fprintf(&b, "ERROR: %v\n", err)
	}
	b.WriteString("Unable to find a suitable compile server.  [man stap-server]\n")
	if n := len(lost); n > 0 && n == len(s.wanted) {
		// Who else is online is beside the point.
		b.WriteString("No server has any of the names that were given.")
		return b.String()
	}
	online := s.findOnline(ctx)
	if len(online) == 0 {
		b.WriteString("No servers online to select from.")
		return b.String()
	}
	b.WriteString("The following servers are online:\n" + lines(online, ""))
	if req := s.specified(ctx); len(req) > 0 {
		b.WriteString("The following servers were requested:\n" + lines(req, ""))
	}
	fmt.Fprintf(&b, "No servers matched the selection criteria of %s.", s.defaultQuery())
	if s.c.kernel.required {
		b.WriteString("\nConsider removing the local MOK to associate with a new server\n" +
			"# sudo mokutil --list-enrolled\n# sudo mokutil --export / --delete  OR  --reset")
	}
	return b.String()
}

func lines(list []record, indent string) string {
	if len(list) == 0 {
		return "No Servers\n"
	}
	var b strings.Builder
	for _, r := range list {
		b.WriteString(indent + r.String() + "\n")
	}
	return b.String()
}

// sayUnresolved tells which names could not be looked up.
func (c *client) sayUnresolved(ctx context.Context, s *servers) {
	for _, err := range s.lost(ctx) {
		c.say("ERROR: %v", err)
	}
}

// lost are the names that could not be looked up and that no server online has.
func (s *servers) lost(ctx context.Context) (errs []error) {
	for _, u := range s.unresolved {
		if !slices.ContainsFunc(s.findOnline(ctx), func(o record) bool { return strings.EqualFold(o.host, u.host) }) {
			errs = append(errs, u.err)
		}
	}
	return errs
}

// list is --list-servers=PROPS (6.6). What is to be said about the words comes
// before the list.
func (s *servers) list(ctx context.Context, props string) {
	if props == "" {
		props = "specified"
	}
	if props == "specified" && s.wantDefault() {
		props = s.defaultQuery()
	}
	var out []record
	for _, r := range s.query(ctx, props) {
		known := false
		for _, k := range s.all(ctx) {
			if k.equal(r) {
				k.want(r)
				out, known = merge(out, k), true
			}
		}
		if !known {
			out = merge(out, r)
		}
	}
	out = slices.DeleteFunc(out, func(r record) bool { return r.certinfo == "" })
	s.c.say("Systemtap Compile Server Status for '%s'", props)
	if len(out) == 0 {
		s.c.say("No servers found")
		return
	}
	fmt.Fprint(s.c.inv.Stderr, lines(sorted(out), ""))
}

// verify makes the check of a presented certificate: exactly this one must be
// in a trust store of the user or the host, and it must be the one that was
// asked for.
func (s *servers) verify(r record) func(*x509.Certificate) error {
	return func(cert *x509.Certificate) error {
		if err := s.expected(r, cert); err != nil {
			return err
		}
		var errs, unread []error
		trusted := false
		for _, d := range s.c.peerStores() {
			st, err := trust.Read(d.dir, d.rules)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				// A store that is not there revokes nobody, whatever its place is like.
				if _, missing := os.Lstat(d.dir); errors.Is(missing, fs.ErrNotExist) {
					errs = append(errs, err)
				} else {
					unread = append(unread, err)
				}
				continue
			}
			if st.Revoked[sha256.Sum256(cert.Raw)] {
				// Revoked in one store is revoked, whatever the others say.
				return fmt.Errorf("certificate sha256=%s is revoked in trust store %q", identity.Fingerprint(cert), d.dir)
			}
			if err = st.Trusts(cert.Raw, s.c.now()); err == nil {
				trusted = true
				continue
			}
			errs = append(errs, err)
		}
		if trusted && len(unread) > 0 {
			// It may say that the certificate is revoked.
			return fmt.Errorf("certificate %s sha256=%s is trusted, but not every trust store can be read: %w", identity.CertInfo(cert), identity.Fingerprint(cert), errors.Join(unread...))
		}
		errs = append(unread, errs...)
		if trusted {
			s.shown = cert
			s.c.compareName(r, cert)
			return nil
		}
		return fmt.Errorf("certificate %s sha256=%s is not trusted as a peer (see --trust-servers in stap(1)): %w",
			identity.CertInfo(cert), identity.Fingerprint(cert), errors.Join(append(errs, errUntrusted)...))
	}
}

// compareName warns when a server's name is not in its certificate. Trust is in
// the certificate, not in names, so it is no more than a warning.
func (c *client) compareName(r record, cert *x509.Certificate) {
	if r.host == "" || slices.ContainsFunc(cert.DNSNames, func(n string) bool { return strings.EqualFold(n, r.host) }) {
		return
	}
	c.say("WARNING: The domain name, %s, does not match the DNS name(s) on the server certificate:", clean(r.host))
	for _, n := range cert.DNSNames {
		c.say("  %s", clean(n))
	}
}

var errUntrusted = errors.New("no trust store of this user or host has it")

// expected holds a certificate to what was asked for or announced.
func (s *servers) expected(r record, cert *x509.Certificate) error {
	if fp := identity.Fingerprint(cert); r.fingerprint != "" && fp != r.fingerprint {
		return fmt.Errorf("the server shows certificate sha256=%s, not %s", fp, r.fingerprint)
	}
	if ci := identity.CertInfo(cert); r.certinfo != "" && ci != r.certinfo {
		return fmt.Errorf("the server shows a certificate with serial %s, not %s", ci, r.certinfo)
	}
	return nil
}

// clean keeps what can be shown on a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '"' {
			return '?'
		}
		return r
	}, s)
}

type browseFunc func(context.Context, func([]discovery.Server) bool) ([]discovery.Server, error)
