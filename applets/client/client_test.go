package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"stapbox/core/backend"
	"stapbox/core/discovery"
	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/privilege"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
	"stapbox/core/uname"
	"stapbox/core/wire"
)

// The machine's own resolver, which may know more names or take seconds, is not asked.
func TestMain(m *testing.M) {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("tests ask no name server")
	}}
	os.Exit(m.Run())
}

// fakeServer answers every request with what answer makes of it.
type fakeServer struct {
	addr netip.AddrPort
	id   *identity.Identity
	moks []string // that it announces

	mu       sync.Mutex
	requests []*wire.Request
	contacts int
	answer   func(*wire.Request) *wire.Response
}

func newServer(t *testing.T, answer func(*wire.Request) *wire.Response) *fakeServer {
	t.Helper()
	id, err := identity.New(identity.Options{NodeName: "no-such-host", KeyType: identity.ECDSA, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f := &fakeServer{addr: l.Addr().(*net.TCPAddr).AddrPort(), id: id, answer: answer}
	cert := id.TLS()
	config := wire.ServerTLS(func() (*tls.Certificate, error) { return &cert, nil })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(tls.Server(c, config))
		}
	}()
	return f
}

func (f *fakeServer) serve(c *tls.Conn) {
	defer c.Close()
	data, err := wire.ReadFrame(c, 1<<20)
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(err, wire.ErrTrustContact) {
		f.contacts++
		return
	}
	if err != nil {
		return
	}
	r, err := wire.DecodeRequest(data, wire.RequestLimits(1<<20))
	if err != nil {
		return
	}
	f.requests = append(f.requests, r)
	if a := f.answer(r); a != nil {
		out, _ := a.Encode()
		c.Write(out)
	}
}

func (f *fakeServer) spec() string { return f.addr.String() }

func (f *fakeServer) found() discovery.Server {
	release, arch, _ := uname.Host()
	return discovery.Server{Host: "no-such-host.local", Addr: f.addr.Addr(), Port: int(f.addr.Port()), Version: "5.6",
		Sysinfo: release + " " + arch, Certinfo: identity.CertInfo(f.id.Certificate), MOK: f.moks}
}

func good(name string) func(*wire.Request) *wire.Response {
	return func(*wire.Request) *wire.Response {
		return &wire.Response{Version: "5.6", Stdout: []byte("out\n/x/" + name + ".ko\n"), Stderr: []byte("err\n"),
			Files: []wire.File{{Name: name + ".ko", Data: []byte("module")}, {Name: name + ".ko.sgn", Data: []byte("signature")}}}
	}
}

// desk is a client with everything around it in temporary directories.
type desk struct {
	*client
	dir      string
	out, err bytes.Buffer
	stdin    *strings.Reader
}

// newDesk is a user of the given group with a staprun that tells how it was
// called.
func newDesk(t *testing.T, group string, online ...*fakeServer) *desk {
	t.Helper()
	base := t.TempDir()
	d := &desk{dir: filepath.Join(base, "work"), stdin: strings.NewReader("")}
	for _, p := range []string{"work", "tmp", "home"} {
		if err := os.Mkdir(filepath.Join(base, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	staprun := filepath.Join(base, "staprun")
	script := "#!/bin/sh\nm=\"\"\nfor a; do case $a in *.ko) m=$a;; esac; done\necho \"args: $*\" | sed \"s,$m,MODULE,\"\ncat \"$m\" \"$m.sgn\"; echo\nexit ${STATUS:-0}\n"
	if err := os.WriteFile(staprun, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	rules := trust.Rules{Owners: []int{os.Getuid()}, Base: base}
	d.client = &client{
		uid: 1000, now: time.Now, hostPeers: filepath.Join(base, "etc/client"), signers: filepath.Join(base, "etc/staprun"), hostRules: rules,
		staprun: staprun, retryDelay: time.Millisecond,
		inv: &invocation.Invocation{Name: "stap", Dir: d.dir, Stdout: &d.out, Stderr: &d.err, Stdin: d.stdin,
			Environ: []string{"HOME=" + filepath.Join(base, "home"), "TMPDIR=" + filepath.Join(base, "tmp"), "PATH=" + os.Getenv("PATH"), "LANG=C"}},
		browse: func(context.Context, func([]discovery.Server) bool) ([]discovery.Server, error) {
			var list []discovery.Server
			for _, f := range online {
				list = append(list, f.found())
			}
			return list, nil
		},
	}
	// The user's stores belong to whoever runs the test.
	d.uid = os.Getuid()
	d.user = privilege.User{UID: 1000, GIDs: []int{7}, Groups: privilege.Groups{group: 7}}
	return d
}

func (d *desk) stap(args ...string) int {
	d.inv.Args = args
	d.out.Reset()
	d.err.Reset()
	return d.run(context.Background())
}

func (d *desk) trust(t *testing.T, f *fakeServer, dir string) {
	t.Helper()
	rules := trust.Rules{Owners: []int{os.Getuid()}, Base: filepath.Dir(d.dir)}
	if _, err := edit.Add(dir, rules, f.id.Certificate, edit.Note{Host: "no-such-host", When: time.Now()}); err != nil {
		t.Fatal(err)
	}
}

func (d *desk) peerStore() string {
	return filepath.Join(filepath.Dir(d.dir), "home/.systemtap/ssl/client")
}

func contains(t *testing.T, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s lacks %q:\n%s", what, w, text)
		}
	}
}

const hello = `probe begin { printf ("Hello\n"); exit (); }`

// The main job: a member of stapusr gives a script and nothing else.
// Requirements: R-000-013..015 R-000-017 R-003-102..103 R-003-113..114
func TestUnprivilegedRun(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupUsr, f)
	d.trust(t, f, d.peerStore())
	d.trust(t, f, d.signers)
	if code := d.stap("-e", hello); code != 0 {
		t.Fatalf("status %d\n%s", code, d.err.String())
	}
	if want := "out\nargs: -R MODULE\nmodulesignature\n"; d.out.String() != want {
		t.Errorf("stdout: got %q, want %q", d.out.String(), want)
	}
	if d.err.String() != "err\n" {
		t.Errorf("stderr: got %q", d.err.String())
	}
	release, arch, _ := uname.Host()
	want := &wire.Request{Version: "5.6", Release: release, Arch: arch, Args: []string{"-e" + hello, "--privilege=stapusr"}, Locale: []string{"LANG=C"}, HasLocale: true}
	if !reflect.DeepEqual(f.requests[0], want) {
		t.Errorf("request: got %+v, want %+v", f.requests[0], want)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(d.dir), "tmp/*")); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
	// What is added, given, is the same.
	before := d.out.String()
	d.out.Reset()
	if code := d.stap("--use-server", "-e", hello, "--privilege=stapusr"); code != 0 || d.out.String() != before || !reflect.DeepEqual(f.requests[1], want) {
		t.Errorf("explicitly: status %d, stdout %q, request %+v", code, d.out.String(), f.requests[1])
	}
	if code := d.stap("-v", "-e", hello); code != 0 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "Using a compile server.\n", "Passes: via server host=no-such-host.local ",
		"--privilege=stapusr was automatically selected because you are a member of the group stapusr.  [man stap]\n",
		"--use-server was automatically selected in order to request compilation by a compile-server.\n")
	d.inv.Environ = append(d.inv.Environ, "STATUS=3")
	if code := d.stap("-w", "-x", "5", "-G", "a=1", "-e", hello); code != 1 {
		t.Errorf("failing staprun: status %d", code)
	}
	contains(t, "stdout", d.out.String(), "args: -w -t 5 -R MODULE a=1\n")
	contains(t, "stderr", d.err.String(), "WARNING: "+d.staprun+" exited with status: 3\nPass 5: run failed.  [man error::pass5]\n")
}

// A server is not told of -G, and the kernel ignores a parameter that a module
// does not have: the client says so.
func TestUnknownGlobal(t *testing.T) {
	image := make([]byte, 128) // an ELF64 header and an empty section header: no parameters
	copy(image, "\x7fELF\x02\x01\x01")
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		image[5] = 2
	}
	binary.NativeEndian.PutUint64(image[0x28:], 64)
	binary.NativeEndian.PutUint16(image[0x3a:], 64)
	binary.NativeEndian.PutUint16(image[0x3c:], 1)
	f := newServer(t, func(r *wire.Request) *wire.Response {
		a := good("mine")(r)
		a.Files[0].Data = image
		return a
	})
	d := newDesk(t, privilege.GroupUsr)
	d.trust(t, f, d.peerStore())
	if code := d.stap("--use-server="+f.spec(), "-G", "tpo=5", "-e", hello); code != 1 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "ERROR: -G tpo=5: the script has no global scalar \"tpo\"\n")
	if strings.Contains(d.out.String(), "args:") {
		t.Errorf("staprun was called: %q", d.out.String())
	}
}

// Requirements: R-000-018 R-002-112
func TestSavesModule(t *testing.T) {
	f := newServer(t, good("mine"))
	d := newDesk(t, privilege.GroupUsr)
	d.trust(t, f, d.peerStore())
	if code := d.stap("-p4", "--use-server="+f.spec(), "-m", "mine", "-e", hello, "--", "-a", "b"); code != 0 {
		t.Fatalf("status %d\n%s", code, d.err.String())
	}
	if got := d.out.String(); got != "out\nmine.ko\n" {
		t.Errorf("stdout: got %q", got)
	}
	for name, want := range map[string]string{"mine.ko": "module", "mine.ko.sgn": "signature"} {
		if got, err := os.ReadFile(filepath.Join(d.dir, name)); string(got) != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if want := []string{"-p4", "-mmine", "-e" + hello, "--", "-a", "b"}; !reflect.DeepEqual(f.requests[0].Args, want) {
		t.Errorf("arguments: got %q, want %q", f.requests[0].Args, want)
	}
	script := filepath.Join(d.dir, "a.stp")
	if err := os.WriteFile(script, []byte(hello), 0o644); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(script)
	if err != nil {
		t.Fatal(err)
	}
	d.stap("-p4", "--use-server="+f.spec(), "a.stp", "5")
	last := f.requests[len(f.requests)-1]
	if want := []string{"script" + real, "-p4", "--", "5"}; !reflect.DeepEqual(last.Args, want) || len(last.Files) != 1 || string(last.Files[0].Data) != hello {
		t.Errorf("script file: got %q, %v", last.Args, last.Files)
	}
	d.stap("-p4", "--use-server="+f.spec(), "missing.stp")
	if last := f.requests[len(f.requests)-1]; last.Args[0] != "script"+filepath.Join(d.dir, "missing.stp") || len(last.Files) != 0 {
		t.Errorf("missing script: got %q, %v", last.Args, last.Files)
	}
	d.inv.Stdin = strings.NewReader(hello)
	d.stap("-p4", "--use-server="+f.spec(), "-")
	if last := f.requests[len(f.requests)-1]; last.Args[0] != "script/-" || string(last.Files[0].Data) != hello {
		t.Errorf("standard input: got %q, %v", last.Args, last.Files)
	}
}

// Requirements: R-000-034 R-003-097 R-000-033
func TestRefusals(t *testing.T) {
	f := newServer(t, good("stap_1"))
	other := newServer(t, good("stap_1"))
	answer := func(r *wire.Response) func(*wire.Request) *wire.Response {
		return func(*wire.Request) *wire.Response { return r }
	}
	file := func(names ...string) []wire.File {
		var list []wire.File
		for _, n := range names {
			list = append(list, wire.File{Name: n, Data: []byte("x")})
		}
		return list
	}
	use := "--use-server=" + f.spec()
	for _, tt := range []struct {
		name   string
		group  string
		trust  bool
		answer func(*wire.Request) *wire.Response
		args   []string
		want   []string
	}{
		{"no group", "none", true, nil, []string{"-e", hello}, []string{"You are trying to run systemtap as a normal user.\n",
			`You should either be root, or be part of the group "stapusr" and possibly one of the groups "stapsys" or "stapdev".  [man stap]`, "hint: sudo usermod -a -G stapusr "}},
		{"no group, explicit level", "none", true, nil, []string{"--privilege=stapusr", use, "-e", hello}, []string{"as a normal user."}},
		{"untrusted peer", privilege.GroupUsr, false, nil, []string{use, "-e", hello}, []string{"Unable to connect to a server.\n", "is not trusted as a peer", "hint: stap --trust-servers"}},
		{"nobody found", privilege.GroupUsr, true, nil, []string{"-e", hello}, []string{"Unable to find a suitable compile server.  [man stap-server]\nNo servers online to select from.\n",
			"--use-server was automatically selected", "For users with the privilege level stapusr"}},
		{"saving where nothing can be built", privilege.GroupUsr, true, nil, []string{"-p4", "-r", "9.9.9-none", "-e", hello}, []string{"Unable to find a suitable compile server.", "--privilege=stapusr was automatically selected", "--use-server was automatically selected"}},
		{"guru", privilege.GroupUsr, true, nil, []string{"-g", "-e", hello}, []string{"You can't specify -g and --privilege=stapusr together."}},
		{"bad specification", privilege.GroupUsr, true, nil, []string{"--use-server=a/b", "-e", hello}, []string{"Invalid server specification: a/b"}},
		{"another fingerprint", privilege.GroupUsr, true, nil, []string{"--use-server=sha256:" + identity.Fingerprint(other.id.Certificate), "-e", hello}, []string{"Unable to find a suitable"}},
		{"no answer", privilege.GroupUsr, true, answer(nil), []string{use, "-e", hello}, []string{"the server sent no answer", "Passes: via server failed.  Try again with another '-v' option."}},
		{"script error", privilege.GroupUsr, true, answer(&wire.Response{Version: "5.6", RC: 1, Stderr: []byte("semantic error: x\n")}), []string{use, "-e", hello}, []string{"semantic error: x\nPasses: via server failed."}},
		{"no module", privilege.GroupUsr, true, answer(&wire.Response{Version: "5.6"}), []string{use, "-e", hello}, []string{"No module was returned by the server."}},
		{"two modules", privilege.GroupUsr, true, answer(&wire.Response{Version: "5.6", Files: file("a.ko", "b.ko")}), []string{use, "-e", hello}, []string{"Incorrect number of modules in server response"}},
		{"no signature", privilege.GroupUsr, true, answer(&wire.Response{Version: "5.6", Files: file("a.ko")}), []string{use, "-e", hello}, []string{"without a signature"}},
		{"odd module name", privilege.GroupUsr, true, answer(&wire.Response{Version: "5.6", Files: file("-x y.ko", "-x y.ko.sgn")}), []string{use, "-e", hello}, []string{"a module of the name"}},
		{"other module name", privilege.GroupDev, true, nil, []string{use, "-m", "mine", "-e", hello}, []string{`returned the module "stap_1" instead of "mine"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.answer = good("stap_1")
			if tt.answer != nil {
				f.answer = tt.answer
			}
			d := newDesk(t, tt.group)
			if tt.trust {
				d.trust(t, f, d.peerStore())
			}
			before := len(f.requests)
			if code := d.stap(tt.args...); code != 1 {
				t.Errorf("status %d", code)
			}
			contains(t, "stderr", d.err.String(), tt.want...)
			if strings.Contains(d.out.String(), "args:") {
				t.Errorf("staprun was called: %s", d.out.String())
			}
			if !tt.trust && len(f.requests) != before {
				t.Error("an untrusted server got the script")
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(d.dir), "tmp/*")); len(left) != 0 {
				t.Errorf("left over: %q", left)
			}
		})
	}
}

// Below stapdev a server that is found must be a known signer too.
// Requirements: R-000-008 R-000-034
func TestNeedsSigner(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupSys, f)
	d.trust(t, f, d.peerStore())
	if code := d.stap("-e", hello); code != 1 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "The following servers are online:\n host=no-such-host.local", "No servers matched the selection criteria of online,trusted,compatible,signer.",
		"you are a member of the groups stapusr and stapsys")
}

// Requirements: R-000-040
func TestSelection(t *testing.T) {
	f := newServer(t, good("stap_1"))
	cert := identity.CertInfo(f.id.Certificate)
	for _, spec := range []string{"", "127.0.0.1", f.spec(), "no-such-host.local", cert, "sha256:" + identity.Fingerprint(f.id.Certificate)} {
		d := newDesk(t, privilege.GroupDev, f)
		d.trust(t, f, d.peerStore())
		if code := d.stap("-p4", "--use-server="+spec, "-e", hello); code != 0 {
			t.Errorf("%q: status %d\n%s", spec, code, d.err.String())
		}
	}
	twin := newServer(t, good("stap_1"))
	twin.id = f.id
	d := newDesk(t, privilege.GroupDev, f, twin)
	d.trust(t, f, d.peerStore())
	if code := d.stap("-p4", "--use-server="+cert, "-e", hello); code != 1 {
		t.Errorf("two servers with one serial number: status %d", code)
	}
	contains(t, "stderr", d.err.String(), "Two servers announce the certificate serial "+cert, "sha256:HEX")
}

// Requirements: R-000-006 C-11
func TestListServers(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev, f)
	if code := d.stap("--list-servers"); code != 0 || d.err.String() != "Systemtap Compile Server Status for 'online,trusted,compatible'\nNo servers found\n" {
		t.Errorf("got %d, %q", code, d.err.String())
	}
	d.trust(t, f, d.peerStore())
	release, arch, _ := uname.Host()
	line := fmt.Sprintf(" host=no-such-host.local address=127.0.0.1 port=%d sysinfo=\"%s %s\" version=5.6 certinfo=\"%s\" sha256=%s\n", f.addr.Port(), release, arch,
		identity.CertInfo(f.id.Certificate), identity.Fingerprint(f.id.Certificate))
	if code := d.stap("--list-servers"); code != 0 || d.err.String() != "Systemtap Compile Server Status for 'online,trusted,compatible'\n"+line {
		t.Errorf("got %d, %q, want %q", code, d.err.String(), line)
	}
	d.stap("--list-servers=all,foo")
	contains(t, "stderr", d.err.String(), "WARNING: unsupported compile server property: foo", "Status for 'all,foo'", line)
	d.browse = func(context.Context, func([]discovery.Server) bool) ([]discovery.Server, error) { return nil, nil }
	d.stap("--list-servers=trusted")
	contains(t, "stderr", d.err.String(), " host=no-such-host address=offline port=unknown sysinfo=\"unknown\" version=unknown certinfo=")
}

// Requirements: R-000-032 R-000-041..044
func TestTrustServers(t *testing.T) {
	f := newServer(t, good("stap_1"))
	use := "--use-server=" + f.spec()
	d := newDesk(t, privilege.GroupDev)
	fp := identity.Fingerprint(f.id.Certificate)
	trusted := func() bool {
		s, err := trust.Read(d.peerStore(), trust.UserRules(os.Getuid(), d.data))
		return err == nil && s.Trusts(f.id.Certificate.Raw, time.Now()) == nil
	}
	status := func(want int, text string, args ...string) {
		t.Helper()
		d.inv.Stdin = strings.NewReader(text)
		if code := d.stap(args...); code != want {
			t.Errorf("status %d, want %d", code, want)
		}
	}
	answer := func(text string, args ...string) {
		t.Helper()
		status(0, text, args...)
	}
	answer("\n", "--trust-servers", use)
	contains(t, "stderr", d.err.String(), "Add trust in the following servers as an SSL peer for the current user?\n   host=no-such-host address=127.0.0.1 ", "sha256="+fp+"\n[y/N] Server trust unchanged\n")
	if trusted() {
		t.Error("trusted without consent")
	}
	answer("yes\n", "--trust-servers", use)
	if !trusted() {
		t.Errorf("not trusted:\n%s", d.err.String())
	}
	answer("", "--trust-servers=no-prompt", "-vv", use)
	contains(t, "stderr", d.err.String(), "Adding trust in the following servers", "is already trusted as an SSL peer for the current user")
	answer("", "--trust-servers=revoke,no-prompt", "--use-server=sha256:"+fp)
	contains(t, "stderr", d.err.String(), "Revoking trust in the following servers")
	if trusted() {
		t.Error("still trusted")
	}
	status(1, "", "--trust-servers")
	contains(t, "stderr", d.err.String(), "No servers identified for trust")
	status(1, "", "--trust-servers=foo", use)
	contains(t, "stderr", d.err.String(), "ERROR: Unrecognized server trust specification: foo")
	other := newServer(t, good("x"))
	status(1, "y\n", "--trust-servers", "--use-server=sha256:"+identity.Fingerprint(other.id.Certificate))
	contains(t, "stderr", d.err.String(), "No servers identified for trust")

	d.uid = 1
	status(1, "", "--trust-servers=signer,all-users,no-prompt", use)
	if got := d.err.String(); got != "Only root can specify 'signer' on --trust-servers\nOnly root can specify 'all-users' on --trust-servers\n" {
		t.Errorf("got %q", got)
	}
	d.uid = 0
	status(1, "", "--trust-servers=signer,no-prompt", use)
	contains(t, "stderr", d.err.String(), "'signer' with 'no-prompt' needs servers named by the fingerprint")
	answer("y\n", "--trust-servers=ssl,signer,all-users", use)
	contains(t, "stderr", d.err.String(), "as an SSL peer for all users and as a module signer for all users?")
	for _, dir := range []string{d.hostPeers, d.signers} {
		if s, err := trust.Read(dir, d.hostRules); err != nil || len(s.Certificates) != 1 {
			t.Errorf("%s: %v", dir, err)
		}
	}
	answer("y\n", "--trust-servers=signer,revoke", "--use-server="+identity.CertInfo(f.id.Certificate))
	if s, err := trust.Read(d.signers, d.hostRules); err != nil || !s.Certificates[0].Revoked {
		t.Errorf("revoked signer: %+v, %v", s, err)
	}
}

func TestParseSpec(t *testing.T) {
	fp := strings.Repeat("ab", 32)
	for spec, want := range map[string]record{
		"1.2.3.4":                          {addr: netip.MustParseAddr("1.2.3.4")},
		"1.2.3.4:99":                       {addr: netip.MustParseAddr("1.2.3.4"), port: 99, full: true},
		"fe80::1%eth0":                     {addr: netip.MustParseAddr("fe80::1%eth0")},
		"[::1]":                            {addr: netip.MustParseAddr("::1")},
		"[fe80::1]:5":                      {addr: netip.MustParseAddr("fe80::1"), port: 5, full: true},
		"00:cc:17:06:94":                   {certinfo: "00:cc:17:06:94"},
		"00:cc:17:06:94:7":                 {certinfo: "00:cc:17:06:94", port: 7, full: true},
		"no-such-host.local":               {host: "no-such-host.local"},
		"no-such-host.local:31001":         {host: "no-such-host.local", port: 31001, full: true},
		"https://no-such-host.local:31001": {host: "no-such-host.local", port: 31001, full: true},
		"sha256:" + fp:                     {fingerprint: fp},
	} {
		if got, err := parseSpec(spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for spec, want := range map[string]string{
		"a/b": "Invalid server specification", "1.2.3.4:x": "Invalid port number specified: x", "[::1": "Invalid server", "[::1]x": "Invalid server",
		"[1.2.3.4]:1": "Invalid server", "vm:70000": "Invalid port", "vm:1:2": "Invalid server", "-x": "Invalid server", ":31001": "Invalid server", "vm:": "Invalid port",
		"sha256:abc": "Invalid server", "sha256:" + strings.ToUpper(fp): "Invalid server", "zz:cc:17:06:94": "Invalid server", "": "Invalid server",
	} {
		if r, err := parseSpec(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %+v, %v; want %q", spec, r, err, want)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{"1.2.3.4:99", "[fe80::1%eth0]:5", "00:cc:17:06:94:7", "https://vm:1", "sha256:" + strings.Repeat("ab", 32)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := parseSpec(s); err == nil && (r.port < 0 || r.port > 65535 || strings.ContainsAny(r.host, " \"/") && r.host != "") {
			t.Errorf("%q: got %+v", s, r)
		}
	})
}

// fakeBackend stands in for the translator.
type fakeBackend struct {
	job  *backend.Job
	fail string // what it says of a job that another host may do, or
	mine bool   // no other
}

func (b *fakeBackend) Translate(_ context.Context, job *backend.Job) (backend.Artifact, int) {
	b.job = job
	if b.fail != "" {
		io.WriteString(job.Stderr, b.fail)
		return backend.Artifact{Elsewhere: !b.mine}, 1
	}
	if job.LastPass < 4 {
		return backend.Artifact{}, 0
	}
	path := filepath.Join(job.TempDir, "local.ko")
	return backend.Artifact{Name: "local", Path: path}, map[bool]int{true: 1}[os.WriteFile(path, []byte("module"), 0o600) != nil]
}

// Names in the directory of --tmpdir are known before; nobody else may put
// something there.
func TestTempDirOfOthers(t *testing.T) {
	d := newDesk(t, privilege.GroupDev)
	d.translator = &fakeBackend{}
	dir := filepath.Join(t.TempDir(), "new")
	if code := d.stap("--tmpdir="+dir, "-p4", "-e", hello); code != 0 {
		t.Errorf("status %d\n%s", code, d.err.String())
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if code := d.stap("--tmpdir="+dir, "-p4", "-e", hello); code != 1 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "--tmpdir: ", " can be written by everybody (mode 0777)\n")
	if os.Getuid() != 0 {
		t.Skip("missing: the right to give a directory away")
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, 65534, -1)); err != nil {
		t.Fatal(err)
	}
	if code := d.stap("--tmpdir="+dir, "-p4", "-e", hello); code != 1 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), " belongs to uid 65534\n")
}

// Requirements: R-000-020 R-003-105 R-000-021
func TestLocal(t *testing.T) {
	d := newDesk(t, privilege.GroupDev)
	b := &fakeBackend{}
	d.translator = b
	if code := d.stap("-p4", "-r", "6.1", "-DA=1", "-Gx=1", "--privilege=stapusr", "-w", "-e", hello, "a"); code != 0 || d.out.String() != "local.ko\n" {
		t.Fatalf("got %d, %q, %q", code, d.out.String(), d.err.String())
	}
	if b.job.Kernel != "6.1" || b.job.Source.Name != "<input>" || b.job.Privilege != privilege.StapUsr || b.job.Args[0] != "a" || b.job.Suppress != 1 {
		t.Errorf("job: got %+v", b.job)
	}
	if code := d.stap("-e", hello); code != 0 {
		t.Errorf("run: status %d, %s", code, d.err.String())
	}
	if code := d.stap("-p1", "missing.stp"); code != 1 || d.err.String() != "Input file 'missing.stp' is missing.\nPass 1: parse failed.  [man error::pass1]\n" {
		t.Errorf("got %d, %q", code, d.err.String())
	}
	// A user of no group may translate, only not run.
	d.user = privilege.User{UID: 1000}
	if code := d.stap("-p4", "-e", hello); code != 0 {
		t.Errorf("no group, -p4: status %d, %s", code, d.err.String())
	}
	// A server's worker leaves the module where it was told to, and says nothing.
	temp := t.TempDir()
	if code := d.stap("--tmpdir="+temp, "--client-options", "-p4", "-e", hello); code != 0 || d.out.String() != "" {
		t.Errorf("worker: got %d, %q, %q", code, d.out.String(), d.err.String())
	}
	if _, err := os.Stat(filepath.Join(temp, "local.ko")); err != nil {
		t.Error(err)
	}
}

func TestServerOnError(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev, f)
	d.trust(t, f, d.peerStore())
	b := &fakeBackend{fail: "ERROR: no compiler\nPass 4: compilation failed.  [man error::pass4]\n"}
	d.translator = b
	if code := d.stap("-p4", "--use-server-on-error", "-e", hello); code != 0 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "ERROR: no compiler\nAttempting compilation using a compile server\n")
	if strings.Contains(d.err.String(), "Pass 4") {
		t.Errorf("stderr: %s", d.err.String())
	}
	b.mine = true
	b.fail = "parse error: x\nPass 1: parse failed.  [man error::pass1]\n"
	if code := d.stap("-p4", "--use-server-on-error", "-e", hello); code != 1 || d.err.String() != b.fail {
		t.Errorf("script error: got %d, %q", code, d.err.String())
	}
}

// Requirements: R-000-004..005
func TestHelpAndVersion(t *testing.T) {
	d := newDesk(t, "none")
	if code := d.stap("--version"); code != 0 {
		t.Errorf("status %d", code)
	}
	contains(t, "version", d.err.String(), "version 5.6", "NSS", "AVAHI")
	if code := d.stap("--help"); code != 0 {
		t.Errorf("status %d", code)
	}
	contains(t, "help", d.out.String(), "Usage: stap [options] FILE", "--trust-servers")
	if code := d.stap("-R", "1", "-e", hello); code != 1 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "option -R is not supported")
}

// Requirements: R-004-008..010 R-004-025 R-004-050
func TestFindServers(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, "none", f)
	release, arch, _ := uname.Host()
	want := fmt.Sprintf("no-such-host.local 127.0.0.1 %d 'sysinfo=%s %s'\n", f.addr.Port(), release, arch)
	for _, args := range [][]string{nil, {"--all"}, {"word", "--all"}, {"--nosuch", "-x", "word"}} {
		d.out.Reset()
		d.inv.Args = args
		if code := d.findServers(context.Background()); code != 0 || d.out.String() != want {
			t.Errorf("%q: got %d, %q, want %q", args, code, d.out.String(), want)
		}
	}
	if code := newDesk(t, "none").findServers(context.Background()); code != 1 {
		t.Errorf("nobody: status %d", code)
	}
}

// Requirements: R-004-022 R-004-024 R-004-028..029 R-004-032 R-004-035..037 R-004-041 R-004-053 R-004-055..056
func TestStapClient(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	extra := filepath.Join(filepath.Dir(d.dir), "extra")
	d.trust(t, f, extra)
	d.inv.Name, d.inv.Args = "stap-client", []string{"--server=" + f.spec(), "--ssl=" + extra, "-p4", "-e", hello, "--", "--server=x"}
	if code := d.stapClient(context.Background()); code != 0 || !strings.HasSuffix(d.out.String(), "stap_1.ko\n") {
		t.Errorf("got %d, %q, %q", code, d.out.String(), d.err.String())
	}
	if got := f.requests[0].Args; got[len(got)-1] != "--server=x" {
		t.Errorf("arguments: got %q", got)
	}
	// Stores of the command line come first, in their order.
	d = newDesk(t, privilege.GroupDev)
	d.inv.Name, d.inv.Args = "stap-client", []string{"--ssl=/a", "--ssl=/b", "--version"}
	d.stapClient(context.Background())
	if stores := d.peerStores(); len(stores) < 4 || stores[0].dir != "/a" || stores[1].dir != "/b" || stores[2].dir != d.peerStore() || stores[3].dir != d.hostPeers {
		t.Errorf("stores: %+v", stores)
	}
	for _, arg := range []string{"--server", "--ssl", "--ssl="} {
		d.inv.Args = []string{arg}
		if code := d.stapClient(context.Background()); code != 1 {
			t.Errorf("%s: status %d", arg, code)
		}
		contains(t, "stderr", d.err.String(), "stap-client: ERROR: Missing argument to "+strings.TrimSuffix(arg, "="))
	}
}

// A certificate that the host revoked is refused though the user trusts it.
// Requirements: R-003-097
func TestRevokedByHost(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	d.trust(t, f, d.peerStore())
	if _, err := edit.Revoke(d.hostPeers, d.hostRules, identity.Fingerprint(f.id.Certificate)); err != nil {
		t.Fatal(err)
	}
	if code := d.stap("-p4", "--use-server="+f.spec(), "-e", hello); code != 1 || len(f.requests) != 0 {
		t.Errorf("status %d, %d requests", code, len(f.requests))
	}
	contains(t, "stderr", d.err.String(), "is revoked in trust store")
	// Nor is it found, or trusted once more by the user, or remembered.
	d.stap("--list-servers=trusted")
	if strings.Contains(d.err.String(), identity.CertInfo(f.id.Certificate)) {
		t.Errorf("listed as trusted:\n%s", d.err.String())
	}
	if code := d.stap("--trust-servers=ssl,no-prompt", "--use-server="+f.spec()); code != 1 {
		t.Errorf("trusting it: status %d\n%s", code, d.err.String())
	}
	contains(t, "stderr", d.err.String(), "ERROR: Not trusting", "its certificate is revoked in trust store \""+d.hostPeers)
}

// A list of revoked certificates that cannot be read may have this one in it: the
// server is not used, whoever else trusts it.
func TestRevokedListCannotBeRead(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	d.trust(t, f, d.peerStore())
	d.trust(t, newServer(t, good("x")), d.hostPeers)
	if err := os.WriteFile(filepath.Join(d.hostPeers, trust.RevokedList), []byte("the server of room 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := d.stap("-p4", "--use-server="+f.spec(), "-e", hello); code != 1 || len(f.requests) != 0 {
		t.Errorf("status %d, %d requests", code, len(f.requests))
	}
	contains(t, "stderr", d.err.String(), "is trusted, but not every trust store can be read", d.hostPeers)
}

// A store that is not there revokes nobody, also where it could not be one.
func TestMissingStoreInAnOpenDirectory(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	d.trust(t, f, d.hostPeers)
	home := filepath.Join(filepath.Dir(filepath.Dir(d.hostPeers)), "home")
	if err := os.MkdirAll(filepath.Join(home, ".systemtap"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(home, ".systemtap"), 0o775); err != nil {
		t.Fatal(err)
	}
	if code := d.stap("-p4", "--use-server="+f.spec(), "-e", hello); code != 0 || len(f.requests) != 1 {
		t.Errorf("status %d, %d requests\n%s", code, len(f.requests), d.err.String())
	}
}

// A user does without a server that the host trusts.
func TestUserRevokesWhatTheHostTrusts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("missing: root, whose trust counts for the host")
	}
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	d.trust(t, f, d.hostPeers)
	if code := d.stap("--trust-servers=ssl,revoke,no-prompt", "--use-server=sha256:"+identity.Fingerprint(f.id.Certificate)); code != 0 {
		t.Errorf("revoking: status %d\n%s", code, d.err.String())
	}
	if code := d.stap("-p4", "--use-server="+f.spec(), "-e", hello); code != 1 || len(f.requests) != 0 {
		t.Errorf("status %d, %d requests", code, len(f.requests))
	}
	contains(t, "stderr", d.err.String(), "is revoked in trust store \""+d.userStore().dir)
}

func TestWarnsOfName(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	d.trust(t, f, d.peerStore())
	if code := d.stap("-p4", fmt.Sprintf("--use-server=localhost:%d", f.addr.Port()), "-e", hello); code != 0 {
		t.Errorf("status %d: %s", code, d.err.String())
	}
	contains(t, "stderr", d.err.String(), "WARNING: The domain name, localhost, does not match the DNS name(s) on the server certificate:\n  no-such-host\n  no-such-host.local\n")
}
