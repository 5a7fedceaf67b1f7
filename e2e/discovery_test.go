package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/identity"
	"stapbox/core/version"
	"stapbox/e2e/lab"
)

// ethernet is a segment of hosts for one test.
func ethernet(t *testing.T) *lab.Segment {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("hosts in networks of their own need root, for network namespaces")
	}
	s, err := stage.lab.NewSegment()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func hostOf(t *testing.T, s *lab.Segment, name string, onlyIPv6 bool) *lab.Host {
	t.Helper()
	h, err := s.Host(name, onlyIPv6)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// avahiOn runs avahi-daemon on a host. Without it these tests show nothing, so
// that it cannot be had is a failure.
func avahiOn(t *testing.T, h *lab.Host) *lab.AvahiHost {
	t.Helper()
	a, err := stage.lab.FetchAvahi()
	if err != nil {
		t.Fatal(err)
	}
	ah, err := a.Start(h, filepath.Join(stage.dir, "avahi-"+h.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ah.Stop)
	return ah
}

// serverOn runs a compile server on a host, for the first kernel of the matrix.
func serverOn(t *testing.T, h *lab.Host, args ...string) (*lab.Server, *lab.Kernel) {
	t.Helper()
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(stage.dir, "server-"+h.Name+"-")
	if err != nil {
		t.Fatal(err)
	}
	prepared(t, dir, lab.ServerUID, k)
	s, err := stage.programs.StartServer(&h.Network, dir, []*lab.Kernel{k}, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s, k
}

func certInfoOf(t *testing.T, s *lab.Server) string {
	t.Helper()
	der, err := os.ReadFile(s.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return identity.CertInfo(c)
}

// eventually tries until f has nothing to complain about.
func eventually(t *testing.T, wait time.Duration, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Error(err)
}

// Avahi on another host resolves two of our servers, field by field, and forgets
// them when they say goodbye.
// Requirements: R-000-007 R-003-003 R-003-134 R-004-005
func TestAvahiResolvesServers(t *testing.T) {
	net := ethernet(t)
	alpha, beta := hostOf(t, net, "alpha", false), hostOf(t, net, "beta", false)
	avahi := avahiOn(t, beta)
	watch := avahi.Tool("avahi-browse", "-rp", "_stap._tcp")
	var seen buffer
	watch.Stdout, watch.Stderr = &seen, &seen
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		watch.Process.Kill()
		watch.Wait()
	})
	first, kernel := serverOn(t, alpha, "-D", "A=1")
	if err := first.WaitLog("successfully established", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	second, _ := serverOn(t, alpha)
	if err := second.WaitLog("successfully established", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	var want []lab.Resolved
	add := func(n int, s *lab.Server, optinfo string) {
		name := "Systemtap Compile Server on alpha"
		if n > 1 {
			name += fmt.Sprintf(" #%d", n)
		}
		for _, protocol := range []string{"IPv4", "IPv6"} {
			want = append(want, lab.Resolved{
				Interface: "eth0", Protocol: protocol, Instance: name, Type: "_stap._tcp", Domain: "local",
				Host: "alpha.local", Port: fmt.Sprint(s.Port),
				TXT: []string{"sysinfo=" + kernel.Release + " x86_64", "optinfo=" + optinfo, "version=" + version.Protocol, "certinfo=" + certInfoOf(t, s)},
			})
		}
	}
	add(1, first, "-DA=1")
	add(2, second, "")
	eventually(t, 20*time.Second, func() error {
		list, err := avahi.Browse("_stap._tcp")
		if err != nil {
			return err
		}
		slices.SortFunc(list, func(a, b lab.Resolved) int {
			return strings.Compare(a.Instance+"\x00"+a.Protocol, b.Instance+"\x00"+b.Protocol)
		})
		for i := range list {
			// Which of the host's addresses Avahi names is its choice.
			r := &list[i]
			a, err := netip.ParseAddr(r.Address)
			if err != nil || a.Unmap().Is4() && r.Address != alpha.IPv4 || !a.Is4() && r.Address != alpha.IPv6 && !a.IsLinkLocalUnicast() {
				return fmt.Errorf("%s on %s: address %q", r.Instance, r.Protocol, r.Address)
			}
			r.Address = ""
			// Avahi turns the strings of a record around.
			if len(r.TXT) > 0 && !strings.HasPrefix(r.TXT[0], "sysinfo=") {
				slices.Reverse(r.TXT)
			}
		}
		if !reflect.DeepEqual(list, want) {
			return fmt.Errorf("got\n%+v\nwant\n%+v\n%s", list, want, first.Log())
		}
		return nil
	})
	first.Stop()
	eventually(t, 5*time.Second, func() error {
		gone := regexp.MustCompile(`(?m)^-;eth0;IPv[46];Systemtap\\032Compile\\032Server\\032on\\032alpha;_stap\._tcp;local$`)
		if n := len(gone.FindAllString(seen.String(), -1)); n != 2 {
			return fmt.Errorf("after the goodbye: %d entries are gone, want 2 (IPv4, IPv6):\n%s", n, seen.String())
		}
		return nil
	})
	if list, err := avahi.Browse("_stap._tcp"); err != nil || len(list) != 2 || list[0].Port != fmt.Sprint(second.Port) {
		t.Errorf("after the goodbye: got %+v, %v", list, err)
	}
}

// stapOn runs a program of ours as root on a host.
func stapOn(h *lab.Host, home string, name string, args ...string) (stdout, stderr string, err error) {
	cmd := h.Command(0, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home}, append([]string{stage.programs.Applet(name)}, args...)...)
	cmd.Dir = home
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// Our browser finds servers of upstream, as Avahi publishes them, and our own;
// several on one host and on several hosts, one of which has no IPv4. Other
// services, and strings that are meant to do harm, disturb nothing.
// Requirements: R-000-007 R-003-134 B-61
func TestBrowserFindsEverybody(t *testing.T) {
	net := ethernet(t)
	alpha, beta, gamma, six := hostOf(t, net, "alpha", false), hostOf(t, net, "beta", false), hostOf(t, net, "gamma", false), hostOf(t, net, "six", true)
	avahi := avahiOn(t, beta)
	own, kernel := serverOn(t, alpha)
	lone, _ := serverOn(t, six)
	publish := func(name, service string, port int, txt ...string) func() {
		stop, err := avahi.Publish(name, service, port, txt...)
		if err != nil {
			t.Fatal(err)
		}
		return stop
	}
	const upstream = "Systemtap Compile Server on beta"
	stopFirst := publish(upstream, "_stap._tcp", 4711, "sysinfo=9.9 x86_64", "optinfo=-R/rt -DSRVMAC=2", "version=5.6", "certinfo=00:cc:17:06:94")
	t.Cleanup(publish(upstream+" #2", "_stap._tcp", 4711, "sysinfo=9.10 x86_64", "optinfo=", "version=4.8", "certinfo=00:cc:17:06:94", "mok_info=99:e7", "mok_info=aa:bb"))
	t.Cleanup(publish("web", "_http._tcp", 80, "sysinfo=9.9 x86_64", "version=5.6"))
	t.Cleanup(publish("other", "_stapx._tcp", 81, "sysinfo=9.9 x86_64", "version=5.6"))
	hostile := []string{"sysinfo=bad\x1b[2J\"'\nbad x86_64", "SYSINFO=twice", "version=abc", "certinfo=\x7f\xff\xfe", "=", "x", "optinfo=" + strings.Repeat("A", 240), "\\092\\"}
	for i := range 30 {
		hostile = append(hostile, fmt.Sprintf("mok_info=%d%s", i, strings.Repeat("\x01", 200)))
	}
	t.Cleanup(publish("Systemtap \x1b[31m; $(reboot)", "_stap._tcp", 1, hostile...))
	t.Cleanup(publish("empty", "_stap._tcp", 2))
	line := func(host, addr string, port int, sysinfo string) string {
		return fmt.Sprintf("%s %s %d 'sysinfo=%s'", host, addr, port, sysinfo)
	}
	want := func(first bool) []string {
		w := []string{
			line("alpha.local", alpha.IPv4, own.Port, kernel.Release+" x86_64"),
			line("six.local", six.IPv6, lone.Port, kernel.Release+" x86_64"),
			line("beta.local", beta.IPv4, 4711, "9.10 x86_64"),
			line("beta.local", beta.IPv4, 1, "bad[2J?bad x86_64"),
			line("beta.local", beta.IPv4, 2, ""),
		}
		if first {
			w = append(w, line("beta.local", beta.IPv4, 4711, "9.9 x86_64"))
		}
		slices.Sort(w)
		return w
	}
	found := func(from *lab.Host, first bool) func() error {
		return func() error {
			out, errs, err := stapOn(from, stage.dir, "stap-find-servers", "--all")
			got := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
			slices.Sort(got)
			if err != nil || errs != "" || !slices.Equal(got, want(first)) {
				return fmt.Errorf("%s: got %v, %q\n%s\nwant\n%s", from.Name, err, errs, strings.Join(got, "\n"), strings.Join(want(first), "\n"))
			}
			return nil
		}
	}
	// From a host of its own, from the one where Avahi has the port, and from
	// that of a server of ours.
	for _, from := range []*lab.Host{gamma, beta, alpha} {
		eventually(t, 20*time.Second, found(from, true))
	}
	_, errs, err := stapOn(gamma, stage.dir, "stap", "--list-servers=online", "--use-server=00:cc:17:06:94")
	if err != nil || strings.ContainsAny(errs, "\x1b\x01\x7f\xff") {
		t.Errorf("got %v, %q", err, errs)
	}
	for _, w := range []string{
		fmt.Sprintf(` host=beta.local address=%s port=4711 sysinfo="9.9 x86_64" version=5.6 certinfo="00:cc:17:06:94"`+"\n", beta.IPv4),
		fmt.Sprintf(` host=beta.local address=%s port=4711 sysinfo="9.10 x86_64" version=4.8 certinfo="00:cc:17:06:94" mok_fingerprints="99:e7, aa:bb"`+"\n", beta.IPv4),
		fmt.Sprintf(` host=six.local address=%s port=%d sysinfo="%s x86_64" version=%s certinfo="%s"`+"\n", six.IPv6, lone.Port, kernel.Release, version.Protocol, certInfoOf(t, lone)),
	} {
		if !strings.Contains(errs, w) {
			t.Errorf("list lacks %q:\n%s", w, errs)
		}
	}
	// By its address of IPv6 a server is found too.
	if _, errs, err := stapOn(gamma, stage.dir, "stap", "--list-servers=specified", "--use-server="+alpha.IPv6); err != nil ||
		!strings.Contains(errs, fmt.Sprintf(" host=alpha.local address=%s port=%d ", alpha.IPv6, own.Port)) {
		t.Errorf("by IPv6 address: got %v\n%s", err, errs)
	}
	stopFirst()
	eventually(t, 10*time.Second, found(gamma, false))
}

// multicasts counts the packets to the port of multicast DNS that leave a host.
type multicasts struct {
	fd int
	mu sync.Mutex
	n  int
}

func countMulticasts(t *testing.T, h *lab.Host) *multicasts {
	t.Helper()
	m := &multicasts{}
	opened := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		ns, err := unix.Open("/run/netns/"+h.Namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNET)
			unix.Close(ns)
		}
		if err == nil {
			all := int(binary.BigEndian.Uint16([]byte{unix.ETH_P_ALL & 0xff, unix.ETH_P_ALL >> 8}))
			m.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
		}
		opened <- err
	}()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptTimeval(m.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		buf := make([]byte, 2048)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, from, err := unix.Recvfrom(m.fd, buf, 0)
			if ll, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || ll.Pkttype != unix.PACKET_OUTGOING {
				continue
			}
			if p := buf[:n]; n > 44 && (p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[22:]) == 5353 ||
				p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[42:]) == 5353) {
				m.mu.Lock()
				m.n++
				m.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		unix.Close(m.fd)
	})
	return m
}

// since gives how many there were since the last call.
func (m *multicasts) since() int {
	time.Sleep(200 * time.Millisecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.n
	m.n = 0
	return n
}

// The second run asks the server of the first without a single question to the
// network; when it is gone, the network is asked again.
func TestRememberedServer(t *testing.T) {
	few(t)
	net := ethernet(t)
	alpha, beta, gamma := hostOf(t, net, "alpha", false), hostOf(t, net, "beta", false), hostOf(t, net, "gamma", false)
	first, kernel := serverOn(t, alpha)
	second, _ := serverOn(t, beta)
	home := t.TempDir()
	for h, s := range map[*lab.Host]*lab.Server{alpha: first, beta: second} {
		if err := s.WaitLog("is ready after", 90*time.Second); err != nil {
			t.Fatal(err)
		}
		if _, errs, err := stapOn(gamma, home, "stap", "--trust-servers=ssl,no-prompt", fmt.Sprintf("--use-server=%s:%d", h.IPv4, s.Port)); err != nil || !strings.Contains(errs, "Adding trust") {
			t.Fatalf("got %v, %s", err, errs)
		}
	}
	count := countMulticasts(t, gamma)
	compile := func(name string, args ...string) string {
		t.Helper()
		start := time.Now()
		_, errs, err := stapOn(gamma, home, "stap", append([]string{"-v", "-p4", "-r", kernel.Release, "-e", hello}, args...)...)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, errs)
		}
		t.Logf("%s: %v", name, time.Since(start).Round(time.Millisecond))
		m := regexp.MustCompile(`Passes: via server host=(\w+)\.local`).FindStringSubmatch(errs)
		if m == nil {
			t.Errorf("%s: no server in\n%s", name, errs)
			return ""
		}
		return m[1]
	}
	count.since()
	host := compile("first run", "--use-server")
	if n := count.since(); n == 0 {
		t.Error("the first run asked nobody")
	}
	for _, args := range [][]string{{"--use-server"}, {"--use-server=" + host + ".local"}} {
		if again := compile("second run", args...); again != host {
			t.Errorf("%q: went to %q instead of %q", args, again, host)
		}
		if n := count.since(); n != 0 {
			t.Errorf("%q: %d multicast questions although the server is remembered", args, n)
		}
	}
	gone, left := first, "beta"
	if host == "beta" {
		gone, left = second, "alpha"
	}
	syscall.Kill(gone.PID, syscall.SIGKILL) // no goodbye
	if again := compile("after the server's end", "--use-server"); again != left {
		t.Errorf("went to %q instead of %q", again, left)
	}
	if n := count.since(); n == 0 {
		t.Error("nobody was asked for another server")
	}
	compile("then", "--use-server")
	if n := count.since(); n != 0 {
		t.Errorf("%d multicast questions although the other server is remembered", n)
	}
}

// The first module for a kernel takes some seconds: a terminal shows what goes
// on, a file does not, and nothing of it is left.
func TestProgress(t *testing.T) {
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	compile := func(stderr io.Writer) string {
		cmd := exec.Command(stage.programs.Applet("stap"), "-p4", "-r", k.Headers, "-e", hello)
		cmd.Dir = t.TempDir()
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TERM=linux"}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, stderr
		if err := cmd.Run(); err != nil {
			t.Error(err)
		}
		return out.String()
	}
	x := newTerminal(t)
	module := regexp.MustCompile(`^stap_\w+\.ko\n$`)
	if out := compile(x.slave); !module.MatchString(out) {
		t.Errorf("stdout: got %q", out)
	}
	eventually(t, 5*time.Second, func() error {
		if got := x.text.String(); !regexp.MustCompile(`^(\rCompiling on this host, pass 4, \d+ s\x1b\[K)+\r\x1b\[K$`).MatchString(got) {
			return fmt.Errorf("terminal: got %q", got)
		}
		return nil
	})
	var file bytes.Buffer
	if out := compile(&file); !module.MatchString(out) || file.Len() != 0 {
		t.Errorf("no terminal: got %q, %q", out, file.String())
	}
}
