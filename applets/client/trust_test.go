package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/privilege"
	"stapbox/core/trust"
)

func trusting(d *desk, dir string, rules trust.Rules, f *fakeServer) bool {
	s, err := trust.Read(dir, rules)
	return err == nil && s.Trusts(f.id.Certificate.Raw, time.Now()) == nil
}

// Who was revoked is not trusted again by the next command that trusts a server, with
// or without a question, by address or by fingerprint.
func TestRevokedStaysRevoked(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("missing: root, whose trust counts for the host")
	}
	f := newServer(t, good("x"))
	d := newDesk(t, privilege.GroupDev, f)
	fp := identity.Fingerprint(f.id.Certificate)
	d.stap("--version") // finds DATA
	for _, tt := range []struct {
		store store
		spec  string
	}{{d.userStore(), "ssl"}, {d.hostStore(), "ssl,all-users"}, {d.signerStore(), "signer"}} {
		d.trust(t, f, tt.store.dir)
		if code := d.stap("--trust-servers="+tt.spec+",revoke,no-prompt", "--use-server=sha256:"+fp); code != 0 {
			t.Fatalf("revoking: status %d\n%s", code, d.err.String())
		}
		for _, args := range [][]string{{tt.spec + ",no-prompt", "sha256:" + fp}, {tt.spec, "sha256:" + fp}, {tt.spec, f.spec()}} {
			d.inv.Stdin = strings.NewReader("y\n")
			code := d.stap("--trust-servers="+args[0], "--use-server="+args[1])
			if code != 1 || trusting(d, tt.store.dir, tt.store.rules, f) {
				t.Errorf("%q: status %d, trusted %v", args, code, trusting(d, tt.store.dir, tt.store.rules, f))
			}
			contains(t, "stderr", d.err.String(), "ERROR: Not trusting host=", "its certificate is revoked in trust store \""+tt.store.dir,
				"hint: to believe it again take the line "+fp+" out of "+tt.store.dir+"/revoked\n")
			if strings.Contains(d.err.String(), "dding trust") {
				t.Errorf("%q:\n%s", args, d.err.String())
			}
		}
		// What the hint says helps.
		if err := os.WriteFile(filepath.Join(tt.store.dir, "revoked"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if code := d.stap("--trust-servers="+tt.spec+",no-prompt", "--use-server=sha256:"+fp); code != 0 || !trusting(d, tt.store.dir, tt.store.rules, f) {
			t.Errorf("%s: status %d\n%s", tt.spec, code, d.err.String())
		}
	}
}

// A word that is no part of a specification changes nothing: it may be a mistyped
// "revoke".
func TestMisspeltTrustSpecification(t *testing.T) {
	f := newServer(t, good("x"))
	d := newDesk(t, privilege.GroupDev)
	for _, spec := range []string{"revok,no-prompt", "no-prompt,Revoke", "ssl,no-prompt,revoke ", "sll,no-prompt"} {
		if code := d.stap("--trust-servers="+spec, "--use-server="+f.spec()); code != 1 || trusting(d, d.peerStore(), d.userStore().rules, f) {
			t.Errorf("%q: status %d\n%s", spec, code, d.err.String())
		}
		contains(t, "stderr", d.err.String(), "ERROR: Unrecognized server trust specification: ")
	}
	if f.contacts != 0 {
		t.Errorf("%d servers were asked", f.contacts)
	}
}

// The words that granted trust take it away again.
func TestRevokeByAddress(t *testing.T) {
	f := newServer(t, good("x"))
	port := strings.TrimPrefix(f.spec(), "127.0.0.1")
	for _, spec := range []string{f.spec(), "https://" + f.spec(), "localhost" + port} {
		d := newDesk(t, privilege.GroupDev)
		if code := d.stap("--trust-servers=no-prompt", "--use-server="+spec); code != 0 || !trusting(d, d.peerStore(), d.userStore().rules, f) {
			t.Fatalf("%s: status %d\n%s", spec, code, d.err.String())
		}
		code := d.stap("--trust-servers=revoke,no-prompt", "--use-server="+spec)
		if code != 0 || trusting(d, d.peerStore(), d.userStore().rules, f) {
			t.Errorf("%s: status %d\n%s", spec, code, d.err.String())
		}
		contains(t, "stderr", d.err.String(), "Revoking trust in the following servers")
	}
	d := newDesk(t, privilege.GroupDev)
	if code := d.stap("--trust-servers=revoke,no-prompt", "--use-server=127.0.0.1:1"); code != 1 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "Unable to connect to host=unknown address=127.0.0.1 port=1 ", "connection refused\n", "hint: a server that does not answer is named by its certificate", "No servers identified for trust\n")
}

// A name that cannot be looked up is what is said first, and other servers that are
// online are beside the point.
func TestUnresolvableServerName(t *testing.T) {
	f := newServer(t, good("x"))
	d := newDesk(t, privilege.GroupDev, f)
	const lookup = "ERROR: lookup no-such-host.invalid: "
	if code := d.stap("-p4", "--use-server=no-such-host.invalid:4321", "-e", hello); code != 1 || !strings.HasPrefix(d.err.String(), lookup) || strings.Contains(d.err.String(), "online") {
		t.Errorf("status %d\n%s", code, d.err.String())
	}
	for _, spec := range []string{"--trust-servers", "--trust-servers=revoke,no-prompt"} {
		if code := d.stap(spec, "--use-server=no-such-host.invalid:4321"); code != 1 || !strings.HasPrefix(d.err.String(), lookup) || !strings.HasSuffix(d.err.String(), "No servers identified for trust\n") {
			t.Errorf("%s: status %d\n%s", spec, code, d.err.String())
		}
	}
}

// Empty values reach the server as they are, and -c without a command is refused here
// as with a server.
func TestEmptyValuesViaServer(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev, f)
	d.trust(t, f, d.peerStore())
	d.stap("-p4", "-e", "", "--use-server="+f.spec(), "-v")
	if len(f.requests) != 1 {
		t.Fatalf("%d requests\n%s", len(f.requests), d.err.String())
	}
	if got := strings.Join(f.requests[0].Args, "|"); !strings.Contains(got, "-e||-v") {
		t.Errorf("the server gets %q", got)
	}
	for _, server := range []string{"--use-server=" + f.spec(), "-w"} {
		if code := d.stap("-p2", "-c", "", "-e", hello, server); code != 1 || !strings.HasPrefix(d.err.String(), "Empty CMD string invalid.\n") {
			t.Errorf("%s: status %d\n%s", server, code, d.err.String())
		}
	}
	if len(f.requests) != 1 {
		t.Error("a server was asked to do what is no command")
	}
}
