package client

import (
	"context"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"

	"stapbox/core/discovery"
	"stapbox/core/privilege"
	"stapbox/core/uname"
)

// Servers of other kernels are listed with --all only.
// Requirements: R-004-026..027
func TestFindServersOfOtherKernels(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, "none")
	d.browse = func(context.Context, func([]discovery.Server) bool) ([]discovery.Server, error) {
		other := f.found()
		other.Host, other.Sysinfo = "other.local", "9.9 x86_64"
		return []discovery.Server{other, f.found()}, nil
	}
	release, arch, _ := uname.Host()
	own := fmt.Sprintf("no-such-host.local 127.0.0.1 %d 'sysinfo=%s %s'\n", f.addr.Port(), release, arch)
	other := fmt.Sprintf("other.local 127.0.0.1 %d 'sysinfo=9.9 x86_64'\n", f.addr.Port())
	for _, tt := range []struct {
		args []string
		want string
	}{{nil, own}, {[]string{"--all"}, other + own}} {
		d.out.Reset()
		d.inv.Args = tt.args
		if code := d.findServers(context.Background()); code != 0 || d.out.String() != tt.want && d.out.String() != own+other {
			t.Errorf("%q: got %d, %q, want %q", tt.args, code, d.out.String(), tt.want)
		}
	}
}

// Once the server is trusted, stap-client has it compile and runs the module
// here; -p4 only prints the module's name.
// Requirements: R-002-101 R-002-110..112 R-004-023..024 B-60
func TestStapClientRuns(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	ask := func(args ...string) int {
		d.out.Reset()
		d.err.Reset()
		d.inv.Name, d.inv.Args = "stap-client", append([]string{"--server=" + f.spec()}, args...)
		return d.stapClient(context.Background())
	}
	if code := ask("-e", hello); code != 1 || len(f.requests) != 0 {
		t.Errorf("before it is trusted: status %d, %d requests", code, len(f.requests))
	}
	d.trust(t, f, d.peerStore())
	if code := ask("-e", hello); code != 0 || d.out.String() != "out\nargs: -R MODULE\nmodulesignature\n" {
		t.Errorf("got %d, %q, %q", code, d.out.String(), d.err.String())
	}
	for _, more := range [][]string{nil, {"--unprivileged"}} {
		if code := ask(append(more, "-p4", "-e", hello)...); code != 0 || d.out.String() != "out\nstap_1.ko\n" {
			t.Errorf("%q: got %d, %q, %q", more, code, d.out.String(), d.err.String())
		}
		// What the server signs by.
		if got, want := f.requests[len(f.requests)-1].Args, append(append([]string{}, more...), "-p4", "-e"+hello); !reflect.DeepEqual(got, want) {
			t.Errorf("arguments: got %q, want %q", got, want)
		}
	}
	d.inv.Environ = append(d.inv.Environ, "STATUS=3")
	if code := ask("-e", hello); code != 1 {
		t.Errorf("failing staprun: status %d", code)
	}
}

// Servers are asked in the order in which they are named, and the second only
// when the first cannot be asked.
// Requirements: R-004-033..034
func TestStapClientOrder(t *testing.T) {
	first, second := newServer(t, good("stap_1")), newServer(t, good("stap_2"))
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := closed.Addr().String()
	closed.Close()
	for _, tt := range []struct {
		servers []string
		module  string
	}{
		{[]string{first.spec(), second.spec()}, "stap_1.ko"},
		{[]string{second.spec(), first.spec()}, "stap_2.ko"},
		{[]string{dead, second.spec()}, "stap_2.ko"},
	} {
		d := newDesk(t, privilege.GroupDev)
		d.trust(t, first, d.peerStore())
		d.trust(t, second, d.peerStore())
		d.inv.Name, d.inv.Args = "stap-client", nil
		for _, s := range tt.servers {
			d.inv.Args = append(d.inv.Args, "--server="+s)
		}
		d.inv.Args = append(d.inv.Args, "-p4", "-e", hello)
		before := len(first.requests) + len(second.requests)
		if code := d.stapClient(context.Background()); code != 0 || !strings.HasSuffix(d.out.String(), tt.module+"\n") {
			t.Errorf("%q: got %d, %q, %q, want %s", tt.servers, code, d.out.String(), d.err.String(), tt.module)
		}
		if n := len(first.requests) + len(second.requests) - before; n != 1 {
			t.Errorf("%q: %d requests", tt.servers, n)
		}
	}
}

// A user of no group gets a module from a server he names.
// Requirements: R-003-104..105 R-002-109
func TestNoGroupCompiles(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, "none")
	d.trust(t, f, d.peerStore())
	for _, args := range [][]string{{"-p4"}, {"-p4", "--privilege=stapusr"}} {
		if code := d.stap(append(args, "--use-server="+f.spec(), "-e", hello)...); code != 0 || d.out.String() != "out\nstap_1.ko\n" {
			t.Errorf("%q: got %d, %q, %q", args, code, d.out.String(), d.err.String())
		}
	}
	if code := d.stap("--use-server="+f.spec(), "-e", hello); code != 1 {
		t.Errorf("a run: status %d", code)
	}
}
