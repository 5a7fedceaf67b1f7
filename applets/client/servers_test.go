package client

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stapbox/core/discovery"
	"stapbox/core/identity"
	"stapbox/core/privilege"
	"stapbox/core/uname"
)

// Every filter of --list-servers and every form of --use-server, against four
// servers: one of this kernel and one of another on the same host with IPv4 and
// IPv6, one that only a trust store knows, and one that is in the signer store.
// Requirements: R-000-006 R-000-039 R-000-045 C-27
func TestListFilters(t *testing.T) {
	here, offline, signer := newServer(t, good("x")), newServer(t, good("x")), newServer(t, good("x"))
	release, arch, _ := uname.Host()
	d := newDesk(t, privilege.GroupDev)
	six := netip.MustParseAddr("fe80::1%eth0")
	host := func(f *fakeServer, port int, sysinfo, version string) discovery.Server {
		return discovery.Server{Host: "no-such-host.local", Addr: netip.MustParseAddr("192.0.2.1"), Others: []netip.Addr{six}, Port: port,
			Version: version, Sysinfo: sysinfo, Certinfo: identity.CertInfo(f.id.Certificate)}
	}
	d.browse = func(context.Context, func([]discovery.Server) bool) ([]discovery.Server, error) {
		other := host(signer, 4712, "9.9 "+arch, "4.8")
		other.MOK = []string{"99:e7", "aa:bb"}
		other.Host = "other.local"
		return []discovery.Server{other, host(here, 4711, release+" "+arch, "5.6"), {Addr: netip.MustParseAddr("192.0.2.9"), Host: "anonymous", Port: 1, Version: "1.0"}}, nil
	}
	d.trust(t, here, d.peerStore())
	d.trust(t, offline, d.peerStore())
	d.trust(t, signer, d.signers)
	ci := func(f *fakeServer) string { return identity.CertInfo(f.id.Certificate) }
	fp := func(f *fakeServer) string { return " sha256=" + identity.Fingerprint(f.id.Certificate) }
	line := func(host, addr, port, sysinfo, version string, f *fakeServer, tail string) string {
		return fmt.Sprintf(" host=%s address=%s port=%s sysinfo=\"%s\" version=%s certinfo=\"%s\"%s\n", host, addr, port, sysinfo, version, ci(f), tail)
	}
	own := line("no-such-host.local", "192.0.2.1", "4711", release+" "+arch, "5.6", here, fp(here))
	ownPlain := line("no-such-host.local", "192.0.2.1", "4711", release+" "+arch, "5.6", here, "")
	ownSix := line("no-such-host.local", "fe80::1%eth0", "4711", release+" "+arch, "5.6", here, fp(here))
	mok := ` mok_fingerprints="99:e7, aa:bb"`
	other := line("other.local", "192.0.2.1", "4712", "9.9 "+arch, "4.8", signer, mok+fp(signer))
	gone := line("no-such-host", "offline", "unknown", "unknown", "unknown", offline, fp(offline))
	none := "No servers found\n"
	invalid := func(spec string) string { return "Invalid server specification: " + spec + "\n" }
	badPort := func(port, spec string) string {
		return "Invalid port number specified: " + port + "\n" + invalid(spec)
	}
	for _, tt := range []struct {
		props, before string
		use           []string
		want          string
		status        string // the words in the first line, when they are others
	}{
		{props: "all", want: own + other + gone},
		{props: "online", want: own + other},
		{props: "trusted", want: own + gone},
		{props: "signer", want: other},
		{props: "compatible", want: own},
		{props: "online,trusted", want: own},
		{props: "trusted,online,compatible", want: own},
		{props: "online,signer", want: other},
		{props: "trusted,signer", want: none},
		{props: "online,,", want: own + other},
		{props: "nosuch,online,foo", before: "WARNING: unsupported compile server property: nosuch\nWARNING: unsupported compile server property: foo\n", want: own + other},
		{props: "nosuch", before: "WARNING: unsupported compile server property: nosuch\n", want: none},
		{props: "", want: own, status: "online,trusted,compatible"},
		{props: "specified", want: own, status: "online,trusted,compatible"},
		{props: "online,specified", want: own},
		{props: "signer,specified", want: none},
		{props: "", use: []string{""}, want: own, status: "online,trusted,compatible"},
		{props: "specified", use: []string{"", ci(signer)}, want: other},
		{props: "specified", use: []string{ci(here)}, want: own},
		{props: "specified", use: []string{ci(offline)}, want: gone},
		{props: "specified", use: []string{"192.0.2.1"}, want: own + other},
		{props: "specified,compatible", use: []string{"192.0.2.1"}, want: own},
		{props: "specified,compatible", use: []string{"192.0.2.1:4712"}, want: none},
		{props: "specified", use: []string{"192.0.2.1:4711"}, want: own},
		{props: "specified", use: []string{"192.0.2.1:4713"}, want: none},
		{props: "specified", use: []string{"fe80::1%eth0"}, want: ownSix + strings.Replace(other, "192.0.2.1", "fe80::1%eth0", 1)},
		{props: "specified,trusted", use: []string{"fe80::1"}, want: ownSix},
		{props: "specified,trusted", use: []string{"[fe80::1%eth0]"}, want: ownSix},
		{props: "specified", use: []string{"fe80::1%eth1"}, want: none},
		{props: "specified", use: []string{"no-such-host.local"}, want: own},
		{props: "specified", use: []string{"NO-SUCH-HOST.local:4711"}, want: own},
		{props: "specified", use: []string{"nosuch.invalid"}, want: none},
		{props: "specified", use: []string{"sha256:" + identity.Fingerprint(offline.id.Certificate)}, want: gone},
		{props: "specified", use: []string{"a/b"}, before: invalid("a/b"), want: none},
		{props: "specified", use: []string{"192.0.2.1:70000"}, before: badPort("70000", "192.0.2.1:70000"), want: none},
		{props: "specified", use: []string{"[::1]:x"}, before: badPort("x", "[::1]:x"), want: none},
		{props: "specified", use: []string{"00:11:22:33:44:x"}, before: badPort("x", "00:11:22:33:44:x"), want: none},
		{props: "specified", use: []string{"a b"}, before: invalid("a b"), want: none},
		{props: "specified", use: []string{"https://no-such-host.local"}, before: invalid("https://no-such-host.local") + "hint: a server that is named by https:// needs a port\n", want: none},
	} {
		args := []string{"--list-servers=" + tt.props}
		for _, u := range tt.use {
			args = append(args, "--use-server="+u)
		}
		status := tt.status
		if status == "" {
			status = tt.props
		}
		want := tt.before + "Systemtap Compile Server Status for '" + status + "'\n" + tt.want
		code := d.stap(args...)
		// A server that was named and not looked for in the stores has no fingerprint.
		got := strings.ReplaceAll(d.err.String(), ownPlain, own)
		if code != 0 || got != want && strings.ReplaceAll(got, strings.TrimSuffix(other, fp(signer)+"\n")+"\n", other) != want || d.out.Len() != 0 {
			t.Errorf("%q: got %d\n%s\nwant\n%s", args, code, got, want)
		}
	}
	// Below stapdev the default asks for signers too.
	d.stap("--list-servers", "--privilege=stapusr")
	if got, want := d.err.String(), "Systemtap Compile Server Status for 'online,trusted,compatible,signer'\n"+none; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	d.stap("--list-servers=signer", "--list-servers=trusted", "-r", "9.9")
	if got, want := d.err.String(), "WARNING: kernel release/architecture mismatch with host forces last-pass 4.\nSystemtap Compile Server Status for 'signer'\n"+other+
		"Systemtap Compile Server Status for 'trusted'\n"+own+gone; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A request goes to the address that was asked for, and to nothing that does not
// fit.
// Requirements: R-004-030..033 R-004-054 B-60
func TestUseServerForms(t *testing.T) {
	f := newServer(t, good("stap_1"))
	port := fmt.Sprint(f.addr.Port())
	for _, tt := range []struct {
		spec, addr, other string
		want              int
		text              string
	}{
		{spec: "127.0.0.1", addr: "192.0.2.1", other: "127.0.0.1"},
		{spec: "::1", addr: "127.0.0.1", want: 1, text: "The following servers are online:\n host=no-such-host.local"},
		{spec: "27.0.0.1", addr: "127.0.0.1", want: 1, text: "The following servers are online:\n host=no-such-host.local"},
		{spec: "such-host.local", addr: "127.0.0.1", want: 1},
		{spec: "no-such-host.local:" + port, addr: "127.0.0.1"},
		{spec: "no-such-host.local:1", addr: "127.0.0.1", want: 1, text: "The following servers are online:\n host=no-such-host.local"},
		{spec: "localhost:" + port, addr: "192.0.2.1"},
		{spec: identity.CertInfo(f.id.Certificate) + ":" + port, addr: "127.0.0.1"},
		{spec: identity.CertInfo(f.id.Certificate) + ":1", addr: "127.0.0.1", want: 1, text: "Unable to find a suitable compile server."},
		{spec: "https://localhost:" + port, addr: "192.0.2.1"},
		{spec: "127.0.0.1:x", addr: "127.0.0.1", want: 1, text: "Invalid port number specified: x\nInvalid server specification: 127.0.0.1:x\nUnable to find a suitable compile server.  [man stap-server]\nThe following servers are online:\n"},
	} {
		d := newDesk(t, privilege.GroupDev)
		d.browse = func(context.Context, func([]discovery.Server) bool) ([]discovery.Server, error) {
			s := f.found()
			s.Addr = netip.MustParseAddr(tt.addr)
			if tt.other != "" {
				s.Others = []netip.Addr{netip.MustParseAddr(tt.other)}
			}
			return []discovery.Server{s}, nil
		}
		d.trust(t, f, d.peerStore())
		if code := d.stap("-p4", "--use-server="+tt.spec, "-e", hello); code != tt.want {
			t.Errorf("%s: status %d\n%s", tt.spec, code, d.err.String())
		}
		contains(t, tt.spec, d.err.String(), tt.text)
		if n := strings.Count(d.err.String(), "Invalid server specification"); n > 1 {
			t.Errorf("%s: said %d times", tt.spec, n)
		}
	}
}

// A server is asked when the translator says that the script is not to blame, and
// an argument that --use-server-on-error does not know changes nothing.
func TestServerMayDo(t *testing.T) {
	f := newServer(t, good("stap_1"))
	for arg, want := range map[string]bool{"": true, "=yes": true, "=YES": true, "=ye": true, "=Y": true, "=no": false, "=n": false, "=foo": false} {
		d := newDesk(t, privilege.GroupDev, f)
		d.trust(t, f, d.peerStore())
		d.translator = &fakeBackend{fail: "Pass 4: compilation failed.  [man error::pass4]\n"}
		code := d.stap("-p4", "--use-server-on-error"+arg, "-e", hello)
		if got := strings.Contains(d.err.String(), "Attempting compilation using a compile server\n"); got != want || (code == 0) != want {
			t.Errorf("%q: status %d, tried: %v, want %v\n%s", arg, code, got, want, d.err.String())
		}
		if arg == "=foo" {
			contains(t, "stderr", d.err.String(), "Invalid argument 'foo' for --use-server-on-error.\n", "Pass 4: compilation failed.")
		}
	}
	// --use-server counts more: there is no pass on this host that could fail.
	d := newDesk(t, privilege.GroupDev, f)
	d.trust(t, f, d.peerStore())
	if code := d.stap("-p4", "--use-server", "--use-server-on-error", "-e", hello); code != 0 || strings.Contains(d.err.String(), "Attempting") {
		t.Errorf("with --use-server: status %d\n%s", code, d.err.String())
	}
}

// The exact words of questions and answers about trust.
// Requirements: R-000-032 R-000-042
func TestTrustTexts(t *testing.T) {
	f := newServer(t, good("x"))
	closed := newServer(t, good("x"))
	closed.id = f.id
	d := newDesk(t, privilege.GroupDev)
	fp := identity.Fingerprint(f.id.Certificate)
	ci := identity.CertInfo(f.id.Certificate)
	full := fmt.Sprintf(" host=no-such-host address=127.0.0.1 port=%d sysinfo=\"unknown\" version=unknown certinfo=\"%s\" sha256=%s", f.addr.Port(), ci, fp)
	stored := fmt.Sprintf(" host=no-such-host address=offline port=unknown sysinfo=\"unknown\" version=unknown certinfo=\"%s\" sha256=%s", ci, fp)
	use := "--use-server=" + f.spec()
	for _, tt := range []struct {
		uid          int
		answer       string
		args         []string
		want         string
		wantTrusting int // certificates in the user's store, the host's, the signers' (100s, 10s, 1s)
	}{
		{0, "n\n", []string{"--trust-servers", use}, "Add trust in the following servers as an SSL peer for the current user?\n  " + full + "\n[y/N] Server trust unchanged\n", 0},
		{0, "", []string{"--trust-servers=ssl", use}, "Add trust in the following servers as an SSL peer for the current user?\n  " + full + "\n[y/N] Server trust unchanged\n", 0},
		{0, "  Yes please\n", []string{"--trust-servers", use}, "Add trust in the following servers as an SSL peer for the current user?\n  " + full + "\n[y/N] ", 100},
		{0, "", []string{"--trust-servers=no-prompt", use}, "Adding trust in the following servers as an SSL peer for the current user\n  " + full + "\n", 100},
		{0, "", []string{"-vv", "--trust-servers=no-prompt", use}, "Adding trust in the following servers as an SSL peer for the current user\n  " + full + "\n" + full + " is already trusted as an SSL peer for the current user\n", 100},
		{0, "y", []string{"--trust-servers=all-users", use}, "Add trust in the following servers as an SSL peer for all users?\n  " + full + "\n[y/N] ", 110},
		{0, "y", []string{"--trust-servers=signer", use}, "Add trust in the following servers as a module signer for all users?\n  " + full + "\n[y/N] ", 111},
		{0, "", []string{"--trust-servers=signer,no-prompt", use}, "'signer' with 'no-prompt' needs servers named by the fingerprint of their certificate: --use-server=sha256:HEX\n", 111},
		{0, "n", []string{"--trust-servers=ssl,signer,all-users,revoke", "--use-server=" + ci}, "Revoke trust in the following servers as an SSL peer for all users and as a module signer for all users?\n  " + stored + "\n[y/N] Server trust unchanged\n", 111},
		{0, "", []string{"--trust-servers=all-users,revoke,no-prompt", "--use-server=" + ci}, "Revoking trust in the following servers as an SSL peer for all users\n  " + stored + "\n", 101},
		{0, "", []string{"--trust-servers=revoke,no-prompt", "--use-server=sha256:" + fp}, "Revoking trust in the following servers as an SSL peer for the current user\n  " + stored + "\n", 1},
		{0, "", []string{"--trust-servers=revoke,no-prompt", "--use-server=" + ci}, "No servers identified for trust\n", 1},
		{0, "", []string{"--trust-servers=foo,,bar", use}, "ERROR: Unrecognized server trust specification: foo\nERROR: Unrecognized server trust specification: bar\n", 1},
		{0, "", []string{"--trust-servers"}, "No servers identified for trust\n", 1},
		{0, "", []string{"--trust-servers", "--use-server=a/b"}, "Invalid server specification: a/b\nNo servers identified for trust\n", 1},
		{7, "", []string{"--trust-servers=signer", use}, "Only root can specify 'signer' on --trust-servers\n", 1},
		{7, "", []string{"--trust-servers=all-users,revoke", use}, "Only root can specify 'all-users' on --trust-servers\n", 1},
		{7, "", []string{"--trust-servers=ssl,signer,all-users", use}, "Only root can specify 'signer' on --trust-servers\nOnly root can specify 'all-users' on --trust-servers\n", 1},
	} {
		d.uid = tt.uid
		if tt.uid == 0 {
			d.uid = os.Getuid()
			if d.uid != 0 {
				t.Skip("missing: root, whose trust counts for the host")
			}
		}
		d.inv.Stdin = strings.NewReader(tt.answer)
		// Where nothing was done, and not because the user said so, it shows.
		status := 0
		for _, text := range []string{"No servers identified", "ERROR: ", "Only root", "needs servers named"} {
			if strings.Contains(tt.want, text) {
				status = 1
			}
		}
		if code := d.stap(tt.args...); code != status || d.err.String() != tt.want || d.out.Len() != 0 {
			t.Errorf("%q: got %d\n%s\nwant\n%s", tt.args, code, d.err.String(), tt.want)
		}
		got := 0
		for i, dir := range []store{{d.peerStore(), d.userStore().rules}, d.hostStore(), d.signerStore()} {
			d.uid = os.Getuid()
			for _, r := range (&servers{c: d.client}).readStore(dir) {
				if r.fingerprint == fp {
					got += []int{100, 10, 1}[i]
				}
			}
		}
		if got != tt.wantTrusting {
			t.Errorf("%q: stores: got %03d, want %03d", tt.args, got, tt.wantTrusting)
		}
	}
	// A server that cannot be reached is named, and the rest goes on.
	d.stap("--trust-servers", "--use-server=127.0.0.1:1")
	contains(t, "stderr", d.err.String(), "Unable to connect to host=unknown address=127.0.0.1 port=1 ", "connection refused\nNo servers identified for trust\n")
}

// Who finds no server is told what there was and what was looked for.
func TestNoServer(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	other := f.found()
	other.Sysinfo = "9.9 x86_64"
	d.browse = func(context.Context, func([]discovery.Server) bool) ([]discovery.Server, error) {
		return []discovery.Server{other}, nil
	}
	line := fmt.Sprintf(" host=no-such-host.local address=127.0.0.1 port=%d sysinfo=\"9.9 x86_64\" version=5.6 certinfo=\"%s\"\n", f.addr.Port(), other.Certinfo)
	const head = "Unable to find a suitable compile server.  [man stap-server]\nThe following servers are online:\n"
	const tail = "Passes: via server failed.  Try again with another '-v' option.\n"
	for _, tt := range []struct{ args, want string }{
		{"--use-server", head + line + "No servers matched the selection criteria of online,trusted,compatible.\n" + tail},
		{"--use-server=127.0.0.1", head + line + "The following servers were requested:\n" + line + "No servers matched the selection criteria of online,trusted,compatible.\n" + tail},
		{"--use-server=192.0.2.7", head + line + "No servers matched the selection criteria of online,trusted,compatible.\n" + tail},
	} {
		if code := d.stap("-p4", tt.args, "-e", hello); code != 1 || d.err.String() != tt.want {
			t.Errorf("%s: got %d\n%s\nwant\n%s", tt.args, code, d.err.String(), tt.want)
		}
	}
	if code := d.stap("-p4", "--use-server", "--privilege=stapusr", "-e", hello); code != 1 || !strings.Contains(d.err.String(), "selection criteria of online,trusted,compatible,signer.\n") {
		t.Errorf("below stapdev: got %d\n%s", code, d.err.String())
	}
}

func TestLinkLocalWithoutScope(t *testing.T) {
	d := newDesk(t, privilege.GroupDev)
	if code := d.stap("-vv", "-p4", "--use-server=[fe80::1]:5", "-e", hello); code != 1 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "Attempting SSL connection with  host=unknown address=fe80::1 port=5 ", "\n  using certificates from the database in "+d.peerStore()+"\n",
		"\n  Unable to connect: ", "\n    The address is an IPv6 link-local address with no scope specifier.\nUnable to connect to a server.\n")
	d.stap("-v", "-p4", "--use-server=127.0.0.1:1", "-e", hello)
	contains(t, "stderr", d.err.String(), "Unable to connect to a server.\n", "The following servers were tried:\n host=unknown address=127.0.0.1 port=1 sysinfo=\"unknown\" version=unknown certinfo=\"unknown\"\n")
}

// Trust that is already as it should be is said with -vv, and what two servers
// claim is given to neither.
func TestTrustUnchanged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("missing: root, whose trust counts for the host")
	}
	f := newServer(t, good("x"))
	twin := newServer(t, good("x"))
	twin.id = f.id
	d := newDesk(t, privilege.GroupDev, f, twin)
	ci := identity.CertInfo(f.id.Certificate)
	d.trust(t, f, d.signers)
	d.inv.Stdin = strings.NewReader("y\n")
	d.stap("--trust-servers", "--use-server="+ci)
	contains(t, "stderr", d.err.String(), "Two servers announce the certificate serial "+ci+":\n", "No servers identified for trust\n")
	d = newDesk(t, privilege.GroupDev)
	d.trust(t, f, d.signers)
	d.stap("--version") // finds DATA
	d.trust(t, f, d.userStore().dir)
	d.stap("--trust-servers=ssl,revoke,no-prompt", "--use-server="+ci)
	d.stap("-vv", "--trust-servers=ssl,signer,revoke,no-prompt", "--use-server="+ci)
	contains(t, "stderr", d.err.String(), "certinfo=\""+ci+"\" sha256="+identity.Fingerprint(f.id.Certificate)+" is already untrusted as an SSL peer for the current user and as a module signer for all users\n")
	// A store that cannot be changed is named.
	if err := os.MkdirAll(filepath.Dir(d.hostPeers), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.hostPeers, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d.stap("--trust-servers=all-users,no-prompt", "--use-server="+f.spec())
	contains(t, "stderr", d.err.String(), "Unable to change trust in host=no-such-host address=127.0.0.1 ")
}
