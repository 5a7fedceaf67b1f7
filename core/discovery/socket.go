package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const port = 5353

// The groups: 224.0.0.251 and ff02::fb.
func groupV4() netip.Addr { return netip.AddrFrom4([4]byte{224, 0, 0, 251}) }
func groupV6() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: 0xfb}) }

// link is one interface that multicast DNS can be spoken on.
type link struct {
	index    int
	name     string
	loopback bool
	prefixes []netip.Prefix // its addresses with their networks
}

// addrs are the addresses of the link, IPv4 first.
func (l link) addrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range l.prefixes {
		out = append(out, p.Addr())
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return rank(a) - rank(b) })
	return out
}

// rank orders addresses by how surely they can be reached.
func rank(a netip.Addr) int {
	switch {
	case a.Is4():
		return 0
	case !a.IsLinkLocalUnicast():
		return 1
	}
	return 2
}

func (l link) has(v4 bool) bool {
	return slices.ContainsFunc(l.prefixes, func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
}

// near reports whether a peer is on the link itself (RFC 6762, 11): nobody
// beyond a router gets an answer.
func (l link) near(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(l.prefixes, func(p netip.Prefix) bool { return p.Masked().Contains(a) })
}

// links lists the usable interfaces: up, able to multicast, with an address.
// The loopback interface is used when there is nothing else.
func links() ([]link, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	var out, lo []link
	for _, i := range ifaces {
		loopback := i.Flags&net.FlagLoopback != 0
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 && !loopback || i.Flags&net.FlagPointToPoint != 0 && i.Flags&net.FlagMulticast == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // the interface is going away
		}
		l := link{index: i.Index, name: i.Name, loopback: loopback}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.prefixes = append(l.prefixes, p)
			}
		}
		switch {
		case len(l.prefixes) == 0:
		case loopback:
			lo = append(lo, l)
		default:
			out = append(out, l)
		}
	}
	if len(out) == 0 {
		out = lo
	}
	return out, nil
}

// socket speaks multicast DNS on one link, for one family.
type socket struct {
	*net.UDPConn
	link  link
	group netip.AddrPort
}

// listen opens a socket. On the port of multicast DNS it shares the port with
// other responders of the host and joins the group on this link only.
func listen(l link, v4 bool, p int) (*socket, error) {
	network, any, group := "udp6", "[::]", netip.AddrPortFrom(groupV6().WithZone(l.name), port)
	if v4 {
		network, any, group = "udp4", "0.0.0.0", netip.AddrPortFrom(groupV4(), port)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = setOptions(int(fd), l, v4, p == port) }); cerr != nil {
			return cerr
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), network, fmt.Sprintf("%s:%d", any, p))
	if err != nil {
		return nil, fmt.Errorf("opening a socket on %s: %w", l.name, err)
	}
	return &socket{UDPConn: pc.(*net.UDPConn), link: l, group: group}, nil
}

func setOptions(fd int, l link, v4, shared bool) error {
	var errs []error
	set := func(level, option, value int) { errs = append(errs, unix.SetsockoptInt(fd, level, option, value)) }
	if shared {
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if v4 {
		mreq := &unix.IPMreqn{Ifindex: int32(l.index)}
		if a := l.addrs(); len(a) > 0 && a[0].Is4() {
			mreq.Address = a[0].As4() // the source; the loopback interface has none by itself
		}
		errs = append(errs, unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, mreq))
		set(unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 255)
		set(unix.IPPROTO_IP, unix.IP_TTL, 255)
		set(unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 1)
		if shared {
			// Only what comes to the group on this link, not to groups that
			// other sockets of the host joined.
			set(unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
			mreq.Multiaddr = groupV4().As4()
			errs = append(errs, unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, mreq))
		}
		return errors.Join(errs...)
	}
	set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, l.index)
	set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
	set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 1)
	if shared {
		set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0)
		errs = append(errs, unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: groupV6().As16(), Interface: uint32(l.index)}))
	}
	return errors.Join(errs...)
}

// escape writes a label as names in package dns are written, so that a name we
// make equals one that was read from a packet.
func escape(label string) string {
	var b strings.Builder
	for _, c := range []byte(label) {
		switch {
		case strings.IndexByte(`.() ;@"\`, c) >= 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\%03d`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// unescape is the inverse of escape, for showing.
func unescape(label string) string {
	var b []byte
	for i := 0; i < len(label); i++ {
		c := label[i]
		if c == '\\' && i+3 < len(label) && digits(label[i+1:i+4]) {
			n := int(label[i+1]-'0')*100 + int(label[i+2]-'0')*10 + int(label[i+3]-'0')
			b = append(b, byte(n))
			i += 3
			continue
		}
		if c == '\\' && i+1 < len(label) {
			i++
			c = label[i]
		}
		b = append(b, c)
	}
	return string(b)
}

func digits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}
