package client

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"stapbox/core/trust"
	"stapbox/core/wire"
)

// record is a compile server as far as it is known (server-client 6.2).
type record struct {
	host        string
	addr        netip.Addr
	port        int
	version     string
	sysinfo     string
	certinfo    string
	fingerprint string // SHA-256 of its certificate, when that is known or asked for
	mok         []string
	others      []netip.Addr // addresses that lead to it too
	full        bool         // named with a port: used as it is
	found       bool         // by a browse
	remembered  bool
}

// String is the record as listings show it, one blank first (6.5). The
// fingerprint is ours (decision T1); it follows what tools look for.
func (r record) String() string {
	or := func(s, other string) string {
		if s == "" {
			return other
		}
		return s
	}
	addr, port := "offline", "unknown"
	if r.addr.IsValid() {
		addr = r.addr.String()
	}
	if r.port != 0 {
		port = strconv.Itoa(r.port)
	}
	s := fmt.Sprintf(` host=%s address=%s port=%s sysinfo="%s" version=%s certinfo="%s"`,
		or(r.host, "unknown"), addr, port, or(r.sysinfo, "unknown"), or(r.version, "unknown"), or(r.certinfo, "unknown"))
	if len(r.mok) > 0 {
		s += fmt.Sprintf(` mok_fingerprints="%s"`, strings.Join(r.mok, ", "))
	}
	if r.fingerprint != "" {
		s += " sha256=" + r.fingerprint
	}
	return s
}

// name is what people call the server.
func (r record) name() string {
	if r.host != "" {
		return r.host
	}
	return r.address()
}

func (r record) address() string {
	return netip.AddrPortFrom(r.addr, uint16(r.port)).String()
}

// equal reports whether two records may be the same server: what is known of
// both is the same. It is not transitive.
func (r record) equal(o record) bool {
	nameOnly := func(x record) bool {
		return !x.addr.IsValid() && x.version == "" && x.sysinfo == "" && x.certinfo == "" && x.fingerprint == ""
	}
	if (nameOnly(r) || nameOnly(o)) && !strings.EqualFold(r.host, o.host) {
		return false
	}
	// An announcement without certificate is not that of any certificate which
	// a trust store holds, nor is what was asked for by address: something that
	// names a server must be in both.
	common := r.host != "" && strings.EqualFold(r.host, o.host) || r.addr.IsValid() && o.addr.IsValid() ||
		r.certinfo != "" && o.certinfo != "" || r.fingerprint != "" && o.fingerprint != ""
	if !common {
		return false
	}
	same := func(a, b string) bool { return a == "" || b == "" || a == b }
	return (!r.addr.IsValid() || !o.addr.IsValid() || r.at(o.addr) || o.at(r.addr)) &&
		(r.port == 0 || o.port == 0 || r.port == o.port) &&
		same(r.version, o.version) && same(r.sysinfo, o.sysinfo) && same(r.certinfo, o.certinfo) && same(r.fingerprint, o.fingerprint) &&
		(len(r.mok) == 0 || len(o.mok) == 0 || slices.Equal(r.mok, o.mok))
}

// at reports whether an address is one of the server's.
func (r record) at(a netip.Addr) bool {
	return sameAddr(r.addr, a) || slices.ContainsFunc(r.others, func(o netip.Addr) bool { return sameAddr(o, a) })
}

func sameAddr(a, b netip.Addr) bool {
	if a.Zone() == "" || b.Zone() == "" {
		return a.WithZone("") == b.WithZone("")
	}
	return a == b
}

// merge adds a server to a list, or what is new about it to its entry.
func merge(list []record, r record) []record {
	for i := range list {
		l := &list[i]
		if !l.equal(r) {
			continue
		}
		fill := func(to *string, from string) {
			if *to == "" {
				*to = from
			}
		}
		if r.host != "" {
			l.host = r.host
		}
		if r.addr.IsValid() {
			l.addr = r.addr
		}
		if len(l.others) == 0 {
			l.others = r.others
		}
		if l.port == 0 {
			l.port, l.full = r.port, l.full || r.full
		}
		fill(&l.sysinfo, r.sysinfo)
		fill(&l.version, r.version)
		fill(&l.certinfo, r.certinfo)
		fill(&l.fingerprint, r.fingerprint)
		return list
	}
	return append(list, r)
}

// sorted orders servers by descending protocol version, else as they came.
func sorted(list []record) []record {
	out := slices.Clone(list)
	slices.SortStableFunc(out, func(a, b record) int { return wire.CompareVersions(b.version, a.version) })
	return out
}

// parseSpec reads one --use-server=SPEC (6.1): an IPv6 address, an IPv4
// address, a certificate's serial number, a name, each with or without port; or
// sha256:HEX, which alone says whose key it must be.
func parseSpec(spec string) (record, error) {
	invalid := fmt.Errorf("Invalid server specification: %s", spec)
	if h, ok := strings.CutPrefix(spec, "sha256:"); ok {
		digest, err := trust.ParseFingerprint(spec)
		if err != nil || h != strings.ToLower(h) {
			return record{}, invalid
		}
		return record{fingerprint: hex.EncodeToString(digest[:])}, nil
	}
	withPort := func(r record, port string) (record, error) {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return r, fmt.Errorf("Invalid port number specified: %s\n%w", port, invalid)
		}
		r.port, r.full = int(n), true
		return r, nil
	}
	if rest, ok := strings.CutPrefix(spec, "https://"); ok {
		if !strings.Contains(rest, ":") {
			return record{}, fmt.Errorf("%w\nhint: a server that is named by https:// needs a port", invalid)
		}
		spec = rest
	}
	if rest, ok := strings.CutPrefix(spec, "["); ok {
		a, tail, ok := strings.Cut(rest, "]")
		addr, err := netip.ParseAddr(a)
		if !ok || err != nil || !addr.Is6() {
			return record{}, invalid
		}
		if tail == "" {
			return record{addr: addr}, nil
		}
		if port, ok := strings.CutPrefix(tail, ":"); ok {
			return withPort(record{addr: addr}, port)
		}
		return record{}, invalid
	}
	if addr, err := netip.ParseAddr(spec); err == nil {
		return record{addr: addr.Unmap()}, nil
	}
	fields := strings.Split(spec, ":")
	if len(fields) == 5 || len(fields) == 6 {
		r := record{certinfo: strings.Join(fields[:5], ":")}
		if strings.Trim(strings.Join(fields[:5], ""), "0123456789abcdefABCDEF") != "" {
			return record{}, invalid
		}
		if len(fields) == 6 {
			return withPort(r, fields[5])
		}
		return r, nil
	}
	name, port, hasPort := strings.Cut(spec, ":")
	if strings.Contains(port, ":") || strings.ContainsAny(name, "/ @[]%\"") || name == "" || name[0] == '-' {
		return record{}, invalid
	}
	r := record{host: name}
	if addr, err := netip.ParseAddr(name); err == nil {
		r = record{addr: addr}
	}
	if hasPort {
		return withPort(r, port)
	}
	return r, nil
}

// resolve looks names up: one record per address. A name that cannot be looked
// up stays a name, which may still fit a server that was found; the error says why.
func resolve(ctx context.Context, r record) ([]record, error) {
	if r.host == "" || r.addr.IsValid() {
		return []record{r}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", r.host)
	if err != nil {
		reason := err.Error()
		var dns *net.DNSError
		if errors.As(err, &dns) {
			reason = dns.Err // which server was asked is beside the point
		}
		return []record{r}, fmt.Errorf("lookup %s: %s", r.host, reason)
	}
	var out []record
	for _, a := range addrs {
		c := r
		c.addr = a.Unmap()
		if !slices.ContainsFunc(out, func(o record) bool { return o.addr == c.addr }) {
			out = append(out, c)
		}
	}
	return out, nil
}
