package discovery

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/mdns"
	"github.com/miekg/dns"
)

const (
	refresh      = 2 * time.Second        // looking for new and changed interfaces
	probeTime    = 300 * time.Millisecond // listening for names that are taken
	announceGap  = time.Second            // RFC 6762, 8.3
	sameQuestion = 200 * time.Millisecond // the same multicast answer at most this often
	legacyTTL    = 10                     // RFC 6762, 6.7
	cacheFlush   = 1 << 15
	unicastBit   = 1 << 15
)

// Responder publishes services until it is closed.
type Responder struct {
	host     string
	services []Service
	log      func(format string, args ...any)

	stop chan struct{}
	done chan struct{}
}

// Publish starts to publish services of a host on all its links. It returns at
// once; names are settled and announced in the background, and interfaces that
// appear later are served too.
func Publish(host string, services []Service, log func(format string, args ...any)) (*Responder, error) {
	if host == "" {
		return nil, errors.New("the host has no name")
	}
	for _, s := range services {
		if s.Port < 1 || s.Port > 65535 {
			return nil, fmt.Errorf("port %d cannot be published", s.Port)
		}
	}
	r := &Responder{host: host, services: services, log: log, stop: make(chan struct{}), done: make(chan struct{})}
	go r.run()
	return r, nil
}

// Close withdraws the services: it says goodbye on all links.
func (r *Responder) Close() error {
	close(r.stop)
	<-r.done
	return nil
}

// station is a socket and what is published through it.
type station struct {
	*socket
	zone []*mdns.MDNSService

	mu   sync.Mutex
	last map[string]time.Time // multicast answers, by question
}

func (r *Responder) run() {
	defer close(r.done)
	names := r.names()
	if names == nil {
		return
	}
	for _, n := range names {
		r.log("Adding mDNS service '%s'", n)
	}
	stations := make(map[string]*station)
	var readers sync.WaitGroup
	defer func() {
		for i, s := range stations {
			if i != "" {
				s.say(s.all(), 0)
			}
			s.Close()
		}
		for _, n := range names {
			r.log("Removing mDNS service '%s'", n)
		}
		readers.Wait()
	}()
	again := make(map[string]bool) // stations that announce a second time
	established := false
	complained := ""
	for {
		found, err := r.update(stations, names, &readers)
		if err != nil && err.Error() != complained {
			complained = err.Error()
			r.log("mDNS: %v", err)
		}
		for key := range again {
			if s := stations[key]; s != nil {
				s.say(s.all(), 1)
			}
			delete(again, key)
		}
		for _, key := range found {
			stations[key].say(stations[key].all(), 1)
			again[key] = true
		}
		if len(stations) > 0 && !established {
			established = true
			for _, n := range names {
				r.log("mDNS service '%s' successfully established.", n)
			}
		}
		wait := refresh
		if len(again) > 0 {
			wait = announceGap
		}
		select {
		case <-r.stop:
			return
		case <-time.After(wait):
		}
	}
}

// names settles the instance names, one per service, around those that other
// servers already have. It answers nil when the responder was closed meanwhile.
func (r *Responder) names() []string {
	taken := make(map[string]bool)
	b := newBrowser()
	b.ask = func(m *dns.Msg) { m.SetQuestion(Type+"."+domain, dns.TypePTR) }
	b.run(r.stop, probeTime, func() bool { return false })
	for name := range b.instances {
		taken[strings.ToLower(name)] = true
	}
	select {
	case <-r.stop:
		return nil
	default:
	}
	var names []string
	n := 0
	for range r.services {
		for {
			n++
			name := instanceName(r.host, n)
			if !taken[strings.ToLower(name)] || n > 65535 {
				names = append(names, name)
				break
			}
		}
	}
	return names
}

// update brings the stations in line with the interfaces of the host and
// returns the keys of the new ones.
func (r *Responder) update(stations map[string]*station, names []string, readers *sync.WaitGroup) (added []string, err error) {
	current, err := links()
	if err != nil {
		return nil, err
	}
	want := make(map[string]bool)
	var errs []error
	for _, l := range current {
		for _, v4 := range []bool{true, false} {
			if !l.has(v4) {
				continue
			}
			// A change of address is another station.
			key := fmt.Sprint(l.index, l.name, v4, l.prefixes)
			want[key] = true
			if stations[key] != nil {
				continue
			}
			s, err := r.station(l, v4, names)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			stations[key] = s
			added = append(added, key)
			readers.Go(s.serve)
		}
	}
	for key, s := range stations {
		if !want[key] {
			s.Close()
			delete(stations, key)
		}
	}
	return added, errors.Join(errs...)
}

func (r *Responder) station(l link, v4 bool, names []string) (*station, error) {
	sock, err := listen(l, v4, port)
	if err != nil {
		return nil, err
	}
	short, _, _ := strings.Cut(r.host, ".")
	var ips []net.IP
	for _, a := range l.addrs() {
		// Of one family, as Avahi does it: upstream's client takes an address
		// for one of the family by which it came, so that it would read the
		// address "::" out of an A record that came by IPv6.
		if a.Is4() == v4 {
			ips = append(ips, a.WithZone("").AsSlice())
		}
	}
	s := &station{socket: sock, last: make(map[string]time.Time)}
	for i, svc := range r.services {
		z, err := mdns.NewMDNSService(escape(names[i]), Type, domain, escape(short)+"."+domain, svc.Port, ips, wireTXT(svc.TXT))
		if err != nil {
			sock.Close()
			return nil, fmt.Errorf("publishing %q: %w", names[i], err)
		}
		s.zone = append(s.zone, z)
	}
	return s, nil
}

// serve answers questions until the socket is closed.
func (s *station) serve() {
	buf := make([]byte, 9000)
	for {
		n, from, err := s.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Such as ENETDOWN: the next update closes the socket.
			time.Sleep(50 * time.Millisecond)
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if s.link.near(from.Addr()) {
			s.question(buf[:n], from)
		}
	}
}

// question answers one packet: by multicast, so that everybody on the link
// learns it, and to the asker alone too if he asks for that (the QU bit) or
// does not listen to the group (RFC 6762, 5.4, 6.7).
func (s *station) question(packet []byte, from netip.AddrPort) {
	var q dns.Msg
	if q.Unpack(packet) != nil || q.Response || q.Opcode != dns.OpcodeQuery {
		return
	}
	legacy := from.Port() != port
	for i, question := range q.Question {
		if i == 16 {
			return
		}
		for _, answer := range s.answers(question, q.Answer) {
			if legacy || question.Qclass&unicastBit != 0 {
				s.unicast(&q, question, answer, from, legacy)
			}
			if !legacy && s.fresh(question) {
				s.send(multicast(answer, 1), s.group)
			}
		}
	}
}

func (s *station) fresh(q dns.Question) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprint(strings.ToLower(q.Name), q.Qtype)
	now := time.Now()
	if now.Sub(s.last[key]) < sameQuestion {
		return false
	}
	s.last[key] = now
	return true
}

// answers are the records for a question, one group per service, without those
// the asker says he knows (RFC 6762, 7.1).
func (s *station) answers(q dns.Question, known []dns.RR) [][]dns.RR {
	if c := q.Qclass &^ unicastBit; c != dns.ClassINET && c != dns.ClassANY {
		return nil
	}
	var out [][]dns.RR
	for i, z := range s.zone {
		records := z.Records(dns.Question{Name: s.canonical(q.Name, i), Qtype: q.Qtype, Qclass: dns.ClassINET})
		if len(records) == 0 || slices.ContainsFunc(known, func(k dns.RR) bool { return same(k, records[0]) }) {
			continue
		}
		out = append(out, records)
	}
	return out
}

func same(known, ours dns.RR) bool {
	k, ok1 := known.(*dns.PTR)
	o, ok2 := ours.(*dns.PTR)
	return ok1 && ok2 && strings.EqualFold(k.Ptr, o.Ptr) && k.Hdr.Ttl >= o.Hdr.Ttl/2
}

// canonical gives a name the case in which the zone knows it.
func (s *station) canonical(name string, i int) string {
	z := s.zone[i]
	for _, own := range []string{
		Type + "." + domain, z.Instance + "." + Type + "." + domain, z.HostName, "_services._dns-sd._udp." + domain,
	} {
		if strings.EqualFold(name, own) {
			return own
		}
	}
	return name
}

// all is everything that is published, one group per service.
func (s *station) all() [][]dns.RR {
	return s.answers(dns.Question{Name: Type + "." + domain, Qtype: dns.TypePTR, Qclass: dns.ClassINET}, nil)
}

// say multicasts groups of records; life 0 is a goodbye.
func (s *station) say(groups [][]dns.RR, life uint32) {
	for _, g := range groups {
		s.send(multicast(g, life), s.group)
	}
}

// multicast makes a message of records. The zone's SRV has priority 10; the
// service's has always been 0 0.
func multicast(records []dns.RR, life uint32) *dns.Msg {
	m := new(dns.Msg)
	m.Response, m.Authoritative = true, true
	for i, rr := range records {
		rr = dns.Copy(rr)
		h := rr.Header()
		h.Ttl *= life
		if srv, ok := rr.(*dns.SRV); ok {
			srv.Priority, srv.Weight = 0, 0
		}
		if h.Rrtype == dns.TypeSRV || h.Rrtype == dns.TypeTXT {
			h.Class |= cacheFlush // records that only we have
		}
		if life == 0 && (h.Rrtype == dns.TypeA || h.Rrtype == dns.TypeAAAA) {
			continue // the host stays
		}
		if i == 0 || life == 0 {
			m.Answer = append(m.Answer, rr)
		} else {
			m.Extra = append(m.Extra, rr)
		}
	}
	return m
}

func (s *station) unicast(q *dns.Msg, question dns.Question, records []dns.RR, to netip.AddrPort, legacy bool) {
	m := multicast(records, 1)
	if legacy {
		m.Id = q.Id
		question.Qclass &^= unicastBit
		m.Question = []dns.Question{question}
		for _, rr := range append(slices.Clone(m.Answer), m.Extra...) {
			rr.Header().Ttl = legacyTTL
			rr.Header().Class &^= cacheFlush
		}
	}
	if a := to.Addr(); a.Is6() && a.IsLinkLocalUnicast() {
		to = netip.AddrPortFrom(a.WithZone(s.link.name), to.Port())
	}
	s.send(m, to)
}

func (s *station) send(m *dns.Msg, to netip.AddrPort) {
	m.Compress = true
	packet, err := m.Pack()
	if err != nil {
		return // a TXT string or name that cannot be packed was refused when it was made
	}
	// Lost like any datagram; askers ask again.
	s.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := s.WriteToUDPAddrPort(packet, to); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
}
