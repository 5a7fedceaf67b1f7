package discovery

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Timing of a browse.
const (
	browseTime   = 500 * time.Millisecond
	addressTime  = 2 * time.Second // a host that is just booting gets its address
	maxInstances = 256
	maxHosts     = 256
	maxAddrs     = 16
)

var askAt = []time.Duration{0, 100 * time.Millisecond, 250 * time.Millisecond}

// Browse finds the servers of the local links. It collects answers for half a
// second, or until enough says that what came so far will do; enough may be nil.
func Browse(ctx context.Context, enough func([]Server) bool) ([]Server, error) {
	b := newBrowser()
	b.ask = b.questions
	waitForAddress(ctx.Done())
	err := b.run(ctx.Done(), browseTime, func() bool { return enough != nil && enough(b.servers()) })
	return b.servers(), err
}

func waitForAddress(stop <-chan struct{}) {
	end := time.Now().Add(addressTime)
	for time.Now().Before(end) {
		if list, err := links(); err != nil || len(list) > 0 && !list[0].loopback {
			return
		}
		if only, err := onlyLoopback(); err != nil || only {
			return // nothing is coming up
		}
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// onlyLoopback reports whether the host has no other interface at all.
func onlyLoopback() (bool, error) {
	ifaces, err := net.Interfaces()
	return !slices.ContainsFunc(ifaces, func(i net.Interface) bool {
		return i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0
	}), err
}

// instance is what was said about one name, on one link.
type instance struct {
	host string
	port int
	txt  []string
}

type key struct {
	link string
	name string // lower case
}

// browser collects what responders say.
type browser struct {
	ask func(*dns.Msg)

	mu        sync.Mutex
	instances map[string]string // instance label by any link: as written
	found     map[key]*instance
	hosts     map[key][]netip.Addr
}

func newBrowser() *browser {
	return &browser{instances: make(map[string]string), found: make(map[key]*instance), hosts: make(map[key][]netip.Addr)}
}

// run asks on all links and listens for a time. Two sockets per link and
// family: one of its own port, which responders answer directly, and one that
// hears what is said to the group. The second may be missing, where another
// program keeps the port to itself.
func (b *browser) run(stop <-chan struct{}, d time.Duration, enough func() bool) error {
	list, err := links()
	if err != nil {
		return err
	}
	var askers, group, all []*socket
	for _, l := range list {
		for _, v4 := range []bool{true, false} {
			if !l.has(v4) {
				continue
			}
			if s, lerr := listen(l, v4, 0); lerr == nil {
				askers, all = append(askers, s), append(all, s)
			} else {
				err = lerr
			}
			if s, lerr := listen(l, v4, port); lerr == nil {
				group, all = append(group, s), append(all, s)
			}
		}
	}
	if len(askers) > 0 {
		err = nil
	}
	news := make(chan struct{}, 1)
	var readers sync.WaitGroup
	for _, s := range all {
		readers.Go(func() { b.listen(s, news) })
	}
	defer readers.Wait()
	defer func() {
		for _, s := range all {
			s.Close()
		}
	}()
	end := time.After(d)
	next := 0
	start := time.Now()
	asked := ""
	for {
		var timer <-chan time.Time
		if next < len(askAt) {
			timer = time.After(askAt[next] - time.Since(start))
		}
		select {
		case <-stop:
			return err
		case <-end:
			return err
		case <-timer:
			next++
			b.send(askers, true)
			// Avahi answers other ports with 512 bytes at most (RFC 6762, 6.7),
			// which a service with several keys exceeds.
			if next > 1 {
				b.send(group, false)
			}
		case <-news:
			if enough() {
				return err
			}
			// Answers without everything in them lead to more questions, each
			// asked at once the first time it comes up.
			if q := b.missing(); q != "" && q != asked {
				asked = q
				b.send(askers, true)
			}
		}
	}
}

// send asks what is open, for answers to this socket alone or to everybody.
func (b *browser) send(askers []*socket, alone bool) {
	m := new(dns.Msg)
	b.ask(m)
	m.RecursionDesired = false
	for i := range m.Question {
		m.Question[i].Qclass = dns.ClassINET
		if alone {
			m.Question[i].Qclass |= unicastBit
		}
	}
	if !alone {
		m.Id = 0 // RFC 6762, 18.1
	}
	packet, err := m.Pack()
	if err != nil {
		return // a name from the network that cannot be said again
	}
	for _, s := range askers {
		s.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		s.WriteToUDPAddrPort(packet, s.group)
	}
}

// questions asks for all servers, and for what is still unknown of some.
func (b *browser) questions(m *dns.Msg) {
	m.SetQuestion(Type+"."+domain, dns.TypePTR)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.open() {
		if len(m.Question) == 12 {
			return
		}
		m.Question = append(m.Question, q)
	}
}

func (b *browser) open() []dns.Question {
	var out []dns.Question
	for k, i := range b.found {
		if i.host == "" {
			out = append(out, dns.Question{Name: k.name, Qtype: dns.TypeSRV})
		} else if len(b.hosts[key{k.link, strings.ToLower(i.host)}]) == 0 {
			out = append(out, dns.Question{Name: i.host, Qtype: dns.TypeA}, dns.Question{Name: i.host, Qtype: dns.TypeAAAA})
		}
		if i.txt == nil {
			out = append(out, dns.Question{Name: k.name, Qtype: dns.TypeTXT})
		}
	}
	slices.SortFunc(out, func(a, b dns.Question) int {
		return strings.Compare(a.Name+dns.TypeToString[a.Qtype], b.Name+dns.TypeToString[b.Qtype])
	})
	return slices.Compact(out)
}

// missing names the open questions.
func (b *browser) missing() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var s strings.Builder
	for _, q := range b.open() {
		s.WriteString(q.Name + " " + dns.TypeToString[q.Qtype] + "\n")
	}
	return s.String()
}

func (b *browser) listen(s *socket, news chan<- struct{}) {
	buf := make([]byte, 9000)
	for {
		n, from, err := s.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		// Answers come from the port of multicast DNS (RFC 6762, 6).
		if from.Port() != port || !s.link.near(from.Addr()) || !b.answer(buf[:n], s.link.name) {
			continue
		}
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

// answer takes in one packet and reports whether it was of any use. It comes
// from anybody on the link.
func (b *browser) answer(packet []byte, link string) bool {
	var m dns.Msg
	if m.Unpack(packet) != nil || !m.Response {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	useful := false
	suffix := "." + Type + "." + domain
	// A service is known by its PTR; the rest may stand before it.
	records := append(append(slices.Clone(m.Answer), m.Ns...), m.Extra...)
	get := func(name string) *instance {
		k := key{link, strings.ToLower(name)}
		i := b.found[k]
		if i == nil && strings.HasSuffix(k.name, suffix) && len(k.name) > len(suffix) && len(b.found) < maxInstances && len(b.instances) < 2*maxInstances {
			i = new(instance)
			b.found[k] = i
			label := unescape(name[:len(name)-len(suffix)])
			b.instances[label] = label
		}
		return i
	}
	for _, rr := range records {
		h := rr.Header()
		switch rr := rr.(type) {
		case *dns.PTR:
			if strings.EqualFold(h.Name, Type+"."+domain) {
				if h.Ttl == 0 {
					b.forget(key{link, strings.ToLower(rr.Ptr)})
				} else if get(rr.Ptr) != nil {
					useful = true
				}
			}
		case *dns.SRV:
			if h.Ttl == 0 {
				break // a goodbye makes nothing known
			}
			if i := get(h.Name); i != nil {
				i.host, i.port = rr.Target, int(rr.Port)
				useful = true
			}
		case *dns.TXT:
			if h.Ttl == 0 {
				break
			}
			if i := get(h.Name); i != nil {
				i.txt = append([]string{}, rr.Txt[:min(len(rr.Txt), maxStrings)]...)
				useful = true
			}
		case *dns.A:
			if a, ok := netip.AddrFromSlice(rr.A.To4()); ok && h.Ttl != 0 {
				useful = b.address(key{link, strings.ToLower(h.Name)}, a) || useful
			}
		case *dns.AAAA:
			if a, ok := netip.AddrFromSlice(rr.AAAA.To16()); ok && h.Ttl != 0 {
				if a.IsLinkLocalUnicast() {
					a = a.WithZone(link)
				}
				useful = b.address(key{link, strings.ToLower(h.Name)}, a) || useful
			}
		}
	}
	return useful
}

func (b *browser) forget(k key) {
	delete(b.found, k)
}

func (b *browser) address(k key, a netip.Addr) bool {
	a = a.Unmap()
	if a.IsUnspecified() || a.IsMulticast() || slices.Contains(b.hosts[k], a) {
		return false
	}
	if len(b.hosts) >= maxHosts && b.hosts[k] == nil || len(b.hosts[k]) >= maxAddrs {
		return false
	}
	b.hosts[k] = append(b.hosts[k], a)
	return true
}

// servers is what is known completely: one server per name and link, with the
// address that can be reached most surely.
func (b *browser) servers() []Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Server
	suffix := "." + Type + "." + domain
	for k, i := range b.found {
		addrs := slices.Clone(b.hosts[key{k.link, strings.ToLower(i.host)}])
		if i.host == "" || i.txt == nil || i.port == 0 || len(addrs) == 0 {
			continue
		}
		slices.SortFunc(addrs, func(x, y netip.Addr) int {
			if r := rank(x) - rank(y); r != 0 {
				return r
			}
			return x.Compare(y)
		})
		s := Server{
			Instance: printable(unescape(strings.TrimSuffix(k.name, suffix))), Host: printable(unescape(strings.TrimSuffix(i.host, "."))),
			Addr: addrs[0], Port: i.port,
		}
		if len(addrs) > 1 {
			s.Others = addrs[1:]
		}
		for label := range b.instances {
			if strings.EqualFold(label, s.Instance) {
				s.Instance = printable(label)
			}
		}
		parseTXT(&s, i.txt)
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y Server) int {
		if c := strings.Compare(x.Instance, y.Instance); c != 0 {
			return c
		}
		return x.Addr.Compare(y.Addr)
	})
	return slices.CompactFunc(out, func(x, y Server) bool { return x.Instance == y.Instance && x.Addr == y.Addr && x.Port == y.Port })
}
