package discovery

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/mdns"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func TestTXT(t *testing.T) {
	got := TXT("6.1.0", "x86_64", []string{"-DA=1", "-DB"}, "5.6", "00:cc:17:06:94", []string{"99:e7"})
	want := []string{"sysinfo=6.1.0 x86_64", "optinfo=-DA=1 -DB", "version=5.6", "certinfo=00:cc:17:06:94", "mok_info=99:e7"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if long := TXT(strings.Repeat("x", 300), "", nil, "", "", nil); len(long[0]) != 255 {
		t.Errorf("long string: got %d bytes", len(long[0]))
	}
}

func TestParseTXT(t *testing.T) {
	for _, tt := range []struct {
		in   []string
		want Server
	}{
		{nil, Server{Version: "1.0"}},
		{[]string{"SysInfo=6.1 x86_64", "VERSION=4.8", "certinfo=00:01"}, Server{Sysinfo: "6.1 x86_64", Version: "4.8", Certinfo: "00:01"}},
		{[]string{"mok_info=a", "version=abc", "mok_info=b", "junk", "=x"}, Server{Version: "abc", MOK: []string{"a", "b"}}},
		{[]string{"sysinfo=a\x1b[2J\"b", "sysinfo=second"}, Server{Version: "1.0", Sysinfo: "a[2Jb"}},
	} {
		var got Server
		parseTXT(&got, tt.in)
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

func TestInstanceName(t *testing.T) {
	if got := instanceName("vm", 1); got != "Systemtap Compile Server on vm" {
		t.Errorf("got %q", got)
	}
	if got := instanceName("vm", 3); got != "Systemtap Compile Server on vm #3" {
		t.Errorf("got %q", got)
	}
	if got := instanceName(strings.Repeat("é", 60), 12); len(got) > 63 || !strings.HasSuffix(got, " #12") || strings.ContainsRune(got, '\uFFFD') {
		t.Errorf("got %q, %d bytes", got, len(got))
	}
}

func TestEscape(t *testing.T) {
	for _, s := range []string{"Systemtap Compile Server on vm", `a.b\c(d);@"`, "é\x01", "#2", `1\`} {
		if got := unescape(escape(s)); got != s {
			t.Errorf("%q: got %q", s, got)
		}
		// As package dns reads it from a packet.
		m := new(dns.Msg).SetQuestion(escape(s)+".local.", dns.TypePTR)
		packet, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var back dns.Msg
		if err := back.Unpack(packet); err != nil || back.Question[0].Name != escape(s)+".local." {
			t.Errorf("%q: got %q, %v", s, back.Question[0].Name, err)
		}
	}
}

// What a responder of Avahi sends: everything in one packet.
func packet(t testing.TB, host string, records ...dns.RR) []byte {
	t.Helper()
	name := "Systemtap\\ Compile\\ Server\\ on\\ " + host + "._stap._tcp.local."
	h := func(n string, typ uint16) dns.RR_Header {
		return dns.RR_Header{Name: n, Rrtype: typ, Class: dns.ClassINET | cacheFlush, Ttl: 120}
	}
	m := new(dns.Msg)
	m.Response = true
	m.Answer = append([]dns.RR{&dns.PTR{Hdr: dns.RR_Header{Name: "_stap._tcp.local.", Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: 4500}, Ptr: name}}, records...)
	m.Extra = []dns.RR{
		&dns.TXT{Hdr: h(name, dns.TypeTXT), Txt: []string{"sysinfo=6.1 x86_64", "version=4.8", "certinfo=00:cc:17:06:94"}},
		&dns.SRV{Hdr: h(name, dns.TypeSRV), Port: 4711, Target: host + ".local."},
		&dns.A{Hdr: h(host+".local.", dns.TypeA), A: []byte{192, 0, 2, 1}},
		&dns.AAAA{Hdr: h(host+".local.", dns.TypeAAAA), AAAA: netip.MustParseAddr("fe80::1").AsSlice()},
	}
	data, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestBrowserAnswer(t *testing.T) {
	b := newBrowser()
	if !b.answer(packet(t, "vm"), "eth0") {
		t.Error("the answer was of no use")
	}
	want := []Server{{Instance: "Systemtap Compile Server on vm", Host: "vm.local", Addr: netip.MustParseAddr("192.0.2.1"), Port: 4711,
		Others: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}, Sysinfo: "6.1 x86_64", Version: "4.8", Certinfo: "00:cc:17:06:94"}}
	if got := b.servers(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// A goodbye takes it away.
	var m dns.Msg
	if err := m.Unpack(packet(t, "vm")); err != nil {
		t.Fatal(err)
	}
	m.Answer[0].Header().Ttl, m.Extra = 0, nil
	bye, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b.answer(bye, "eth0")
	if got := b.servers(); len(got) != 0 {
		t.Errorf("after the goodbye: got %+v", got)
	}
	// Only a link-local address: the zone is the link.
	m.Answer[0].Header().Ttl = 10
	b = newBrowser()
	if err := m.Unpack(packet(t, "six")); err != nil {
		t.Fatal(err)
	}
	m.Extra = append(m.Extra[:2], m.Extra[3])
	six, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b.answer(six, "eth1")
	if got := b.servers(); len(got) != 1 || got[0].Addr.String() != "fe80::1%eth1" {
		t.Errorf("link-local: got %+v", got)
	}
	// A PTR alone leads to questions about the rest.
	b = newBrowser()
	m.Extra = nil
	ptr, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b.answer(ptr, "eth1")
	q := new(dns.Msg)
	b.questions(q)
	if len(q.Question) != 3 || len(b.servers()) != 0 {
		t.Errorf("questions: got %+v", q.Question)
	}
}

// What a service may say to do harm: strings of any length, octets and number,
// keys twice, records of the wrong type or class for their name, and goodbyes
// for what nobody knows. Beside it an honest server is found as ever.
func TestHostileAnswers(t *testing.T) {
	name := "x._stap._tcp.local."
	h := func(n string, typ uint16) dns.RR_Header {
		return dns.RR_Header{Name: n, Rrtype: typ, Class: dns.ClassINET, Ttl: 120}
	}
	long := strings.Repeat("A", 255)
	binary := make([]byte, 200)
	for i := range binary {
		binary[i] = byte(i)
	}
	var octets strings.Builder
	for _, c := range binary {
		fmt.Fprintf(&octets, `\%03d`, c)
	}
	many := []string{"sysinfo=6.1 x86_64", "sysinfo=second", long, "optinfo=" + octets.String(), "", "=", "VERSION=9.9"}
	for i := range 500 {
		many = append(many, fmt.Sprintf("mok_info=%d", i))
	}
	b := newBrowser()
	for _, records := range [][]dns.RR{
		{
			&dns.PTR{Hdr: h("_stap._tcp.local.", dns.TypePTR), Ptr: name},
			&dns.SRV{Hdr: h(name, dns.TypeSRV), Port: 1, Target: "x.local."},
			&dns.TXT{Hdr: h(name, dns.TypeTXT), Txt: many},
			&dns.A{Hdr: h("x.local.", dns.TypeA), A: []byte{192, 0, 2, 9}},
			&dns.A{Hdr: h("x.local.", dns.TypeA), A: []byte{224, 0, 0, 1}},
			&dns.A{Hdr: h("x.local.", dns.TypeA), A: []byte{0, 0, 0, 0}},
		},
		{ // other services, and things under the name that are no service
			&dns.PTR{Hdr: h("_http._tcp.local.", dns.TypePTR), Ptr: "web._http._tcp.local."},
			&dns.SRV{Hdr: h("web._http._tcp.local.", dns.TypeSRV), Port: 80, Target: "x.local."},
			&dns.PTR{Hdr: h("_stap._tcp.local.", dns.TypePTR), Ptr: "web._http._tcp.local."},
			&dns.PTR{Hdr: h("_stap._tcp.local.", dns.TypePTR), Ptr: "_stap._tcp.local."},
			&dns.A{Hdr: h("_stap._tcp.local.", dns.TypeA), A: []byte{192, 0, 2, 66}},
			&dns.NULL{Hdr: h(name, dns.TypeNULL), Data: "x"},
			&dns.CNAME{Hdr: h(name, dns.TypeCNAME), Target: "y.local."},
		},
		{ // a server without port, one without addresses, one without a target
			&dns.SRV{Hdr: h("zero._stap._tcp.local.", dns.TypeSRV), Port: 0, Target: "x.local."},
			&dns.TXT{Hdr: h("zero._stap._tcp.local.", dns.TypeTXT), Txt: []string{""}},
			&dns.SRV{Hdr: h("none._stap._tcp.local.", dns.TypeSRV), Port: 1, Target: "none.local."},
			&dns.TXT{Hdr: h("none._stap._tcp.local.", dns.TypeTXT), Txt: []string{""}},
			&dns.SRV{Hdr: h("root._stap._tcp.local.", dns.TypeSRV), Port: 1, Target: "."},
			&dns.TXT{Hdr: h("root._stap._tcp.local.", dns.TypeTXT), Txt: []string{""}},
		},
		{ // goodbyes
			&dns.SRV{Hdr: dns.RR_Header{Name: "bye._stap._tcp.local.", Rrtype: dns.TypeSRV, Class: dns.ClassINET}, Port: 1, Target: "x.local."},
			&dns.TXT{Hdr: dns.RR_Header{Name: "bye._stap._tcp.local.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{"a"}},
		},
	} {
		m := &dns.Msg{Answer: records, Compress: true}
		m.Response = true
		data, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		b.answer(data, "eth0")
	}
	b.answer(packet(t, "vm"), "eth0")
	list := b.servers()
	if len(list) != 2 || list[0].Host != "vm.local" || list[0].Certinfo != "00:cc:17:06:94" {
		t.Fatalf("got %+v", list)
	}
	x := list[1]
	if x.Sysinfo != "6.1 x86_64" || x.Version != "9.9" || x.Port != 1 || x.Addr.String() != "192.0.2.9" || len(x.Others) != 0 {
		t.Errorf("got %+v", x)
	}
	if want := string(binary[' ':'"']) + string(binary['"'+1:0x7f]); x.Options != want {
		t.Errorf("octets: got %q, want %q", x.Options, want)
	}
	if len(x.MOK) > maxStrings {
		t.Errorf("got %d strings of one service", len(x.MOK))
	}
	for k := range b.found {
		if strings.HasPrefix(k.name, "bye") || strings.HasPrefix(k.name, "web") || strings.HasPrefix(k.name, "_stap") {
			t.Errorf("%q was taken for a service", k.name)
		}
	}
}

func TestBrowserIsBounded(t *testing.T) {
	b := newBrowser()
	for i := range maxInstances + 100 {
		b.answer(packet(t, fmt.Sprintf("vm%d", i)), "eth0")
	}
	if len(b.found) > maxInstances || len(b.hosts) > maxHosts {
		t.Errorf("got %d instances, %d hosts", len(b.found), len(b.hosts))
	}
}

func testStation(t testing.TB) *station {
	s := &station{socket: &socket{link: link{name: "eth0", prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}}, last: make(map[string]time.Time)}
	for i := 1; i <= 2; i++ {
		z, err := mdns.NewMDNSService(escape(instanceName("vm", i)), Type, domain, "vm.local.", 4711,
			[]net.IP{{192, 0, 2, 1}}, TXT("6.1", "x86_64", nil, "5.6", "00:01", nil))
		if err != nil {
			t.Fatal(err)
		}
		s.zone = append(s.zone, z)
	}
	return s
}

func TestStationAnswers(t *testing.T) {
	s := testStation(t)
	ask := func(name string, typ uint16, known ...dns.RR) int {
		return len(s.answers(dns.Question{Name: name, Qtype: typ, Qclass: dns.ClassINET | unicastBit}, known))
	}
	second := escape(instanceName("vm", 2)) + "." + Type + ".local."
	for _, tt := range []struct {
		name string
		typ  uint16
		want int
	}{
		{"_stap._tcp.local.", dns.TypePTR, 2}, {"_STAP._tcp.local.", dns.TypePTR, 2}, {"_services._dns-sd._udp.local.", dns.TypePTR, 2},
		{second, dns.TypeSRV, 1}, {strings.ToUpper(second), dns.TypeTXT, 1}, {"vm.local.", dns.TypeA, 2}, {"other.local.", dns.TypeA, 0}, {"_http._tcp.local.", dns.TypePTR, 0},
	} {
		if got := ask(tt.name, tt.typ); got != tt.want {
			t.Errorf("%s %s: got %d answers, want %d", tt.name, dns.TypeToString[tt.typ], got, tt.want)
		}
	}
	known := &dns.PTR{Hdr: dns.RR_Header{Name: "_stap._tcp.local.", Rrtype: dns.TypePTR, Ttl: 100}, Ptr: second}
	if got := ask("_stap._tcp.local.", dns.TypePTR, known); got != 1 {
		t.Errorf("known answer: got %d answers, want 1", got)
	}
	m := multicast(s.all()[0], 1)
	for _, rr := range append(m.Answer, m.Extra...) {
		if srv, ok := rr.(*dns.SRV); ok && (srv.Priority != 0 || srv.Weight != 0 || srv.Port != 4711 || srv.Hdr.Class&cacheFlush == 0) {
			t.Errorf("SRV: got %v", srv)
		}
	}
	bye := multicast(s.all()[0], 0)
	if len(bye.Answer) != 3 {
		t.Errorf("goodbye: got %v", bye.Answer)
	}
	for _, rr := range bye.Answer {
		if rr.Header().Ttl != 0 || rr.Header().Rrtype == dns.TypeA {
			t.Errorf("goodbye: got %v", rr)
		}
	}
	if s.link.near(netip.MustParseAddr("198.51.100.1")) || !s.link.near(netip.MustParseAddr("192.0.2.77")) {
		t.Error("near: a peer beyond a router passes, or one on the link does not")
	}
}

// The network tests run in a network namespace of their own, in which nothing
// but the loopback interface exists, so that they neither see nor disturb the
// network of the host.
func TestPublishAndBrowse(t *testing.T) {
	if os.Getenv("STAPBOX_TEST_NETNS") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestPublishAndBrowse$", "-test.v")
		cmd.Env = append(os.Environ(), "STAPBOX_TEST_NETNS=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Skipf("missing: a network namespace for this user (%v)", err)
		}
		if err != nil {
			t.Errorf("in the namespace: %v\n%s", err, out)
		}
		return
	}
	loopbackUp(t)
	var mu sync.Mutex
	var lines []string
	log := func(f string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, fmt.Sprintf(f, a...))
	}
	services := []Service{{4711, TXT("6.1", "x86_64", []string{`-DA=\1"2`}, "5.6", "00:01", nil)}, {4711, TXT("6.12", "x86_64", nil, "5.6", "00:01", nil)}}
	r, err := Publish("vm.example", services, log)
	if err != nil {
		t.Fatal(err)
	}
	browse := func(n int) (list []Server) {
		t.Helper()
		for range 6 {
			if list, err = Browse(context.Background(), func(s []Server) bool { return n > 0 && len(s) == n }); err != nil {
				t.Fatal(err)
			}
			if len(list) == n {
				return list
			}
		}
		t.Errorf("found %+v, want %d servers; log %q", list, n, lines)
		return list
	}
	list := browse(2)
	if len(list) == 2 && (list[0].Instance != "Systemtap Compile Server on vm.example" || list[1].Instance != "Systemtap Compile Server on vm.example #2" ||
		list[0].Sysinfo != "6.1 x86_64" || list[0].Options != `-DA=\12` || list[1].Sysinfo != "6.12 x86_64" || list[0].Host != "vm.local" || list[0].Port != 4711 || list[0].Addr.String() != "127.0.0.1") {
		t.Errorf("got %+v", list)
	}
	start := time.Now()
	browse(2)
	if d := time.Since(start); d > 400*time.Millisecond {
		t.Errorf("a browse that had enough took %v", d)
	}
	second, err := Publish("vm.example", services[:1], log)
	if err != nil {
		t.Fatal(err)
	}
	if list := browse(3); len(list) == 3 && list[2].Instance != "Systemtap Compile Server on vm.example #3" {
		t.Errorf("a name that was taken: got %+v", list)
	}
	r.Close()
	if list := browse(1); len(list) == 1 && !strings.HasSuffix(list[0].Instance, "#3") {
		t.Errorf("after closing: got %+v", list)
	}
	second.Close()
	browse(0)
}

func TestPublishRefuses(t *testing.T) {
	if _, err := Publish("", nil, t.Logf); err == nil {
		t.Error("a host without a name was published")
	}
	if _, err := Publish("vm", []Service{{Port: 0}}, t.Logf); err == nil || !strings.Contains(err.Error(), "port 0") {
		t.Errorf("port 0: got %v", err)
	}
}

func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(packet(f, "vm"))
	f.Add(packet(f, "a.b"))
	f.Add([]byte{0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xc0, 0x0c})
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBrowser()
		b.answer(data, "eth0")
		for _, s := range b.servers() {
			for _, text := range append(s.MOK, s.Instance, s.Host, s.Sysinfo, s.Version, s.Certinfo, s.Options) {
				if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' || r == '"' }) {
					t.Errorf("%q came through", text)
				}
			}
		}
		m := new(dns.Msg)
		b.questions(m)
		m.Pack()
	})
}

func FuzzQuestion(f *testing.F) {
	m := new(dns.Msg).SetQuestion("_stap._tcp.local.", dns.TypePTR)
	data, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	s := testStation(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		var q dns.Msg
		if q.Unpack(data) != nil {
			return
		}
		for _, question := range q.Question {
			for _, a := range s.answers(question, q.Answer) {
				if _, err := multicast(a, 1).Pack(); err != nil {
					t.Errorf("answer to %v cannot be packed: %v", question, err)
				}
			}
		}
	})
}
