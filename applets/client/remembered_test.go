package client

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stapbox/core/discovery"
	"stapbox/core/identity"
	"stapbox/core/privilege"
	"stapbox/core/uname"
	"stapbox/core/wire"
)

// counting makes a desk count its browses.
func (d *desk) counting() *int {
	n, browse := new(int), d.browse
	d.browse = func(ctx context.Context, enough func([]discovery.Server) bool) ([]discovery.Server, error) {
		*n++
		return browse(ctx, enough)
	}
	return n
}

func (d *desk) memory() string { return filepath.Join(filepath.Dir(d.dir), "home/.systemtap/servers") }

// The second run of a user asks the server of the first one without a browse.
func TestRemembered(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupUsr, f)
	d.trust(t, f, d.peerStore())
	d.trust(t, f, d.signers)
	browses := d.counting()
	for i := range 3 {
		if code := d.stap("-e", hello); code != 0 || *browses != 1 {
			t.Fatalf("run %d: status %d, %d browses\n%s", i+1, code, *browses, d.err.String())
		}
	}
	data, err := os.ReadFile(d.memory())
	if err != nil {
		t.Fatal(err)
	}
	release, arch, _ := uname.Host()
	lines := strings.Split(string(data), "\n")
	want := fmt.Sprintf("\t%s\tno-such-host.local\t5.6\t%s %s\t%s\t%s", f.spec(), release, arch, identity.CertInfo(f.id.Certificate), identity.Fingerprint(f.id.Certificate))
	if len(lines) != 3 || lines[0] != rememberedMagic || !strings.HasSuffix(lines[1], want) {
		t.Errorf("file: got %q, want a line that ends in %q", data, want)
	}
	if fi, err := os.Stat(d.memory()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("file: got %v, %v", fi.Mode(), err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want int // browses
	}{
		{"by name", []string{"--use-server=no-such-host.local"}, 0},
		{"by address", []string{"--use-server=127.0.0.1"}, 0},
		{"by fingerprint", []string{"--use-server=sha256:" + identity.Fingerprint(f.id.Certificate)}, 0},
		{"by address and port", []string{"--use-server=" + f.spec()}, 0},
		{"by serial number", []string{"--use-server=" + identity.CertInfo(f.id.Certificate)}, 1},
	} {
		*browses = 0
		if code := d.stap(append(tt.args, "-p4", "-e", hello)...); code != 0 || *browses != tt.want {
			t.Errorf("%s: status %d, %d browses, want %d\n%s", tt.name, code, *browses, tt.want, d.err.String())
		}
	}
	// A listing shows what is online now.
	*browses = 0
	if d.stap("--list-servers"); *browses != 1 {
		t.Errorf("listing: %d browses", *browses)
	}
	// Another kernel is another question.
	*browses = 0
	if d.stap("-p4", "--use-server", "-r", "9.9.9-other", "-e", hello); *browses != 1 {
		t.Errorf("another kernel: %d browses", *browses)
	}
}

// What is remembered and is not so any more leads to the browse.
func TestRememberedIsGone(t *testing.T) {
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing.Close()
	f := newServer(t, good("stap_1"))
	release, arch, _ := uname.Host()
	for _, tt := range []struct {
		name  string
		entry func(m *memory)
		group string
		setup func(d *desk)
		want  int // browses
	}{
		{"nothing is there", func(m *memory) { m.port = refusing.Addr().(*net.TCPAddr).Port }, privilege.GroupUsr, nil, 1},
		{"it shows another certificate", func(m *memory) { m.fingerprint = strings.Repeat("0", 63) + "1" }, privilege.GroupUsr, nil, 1},
		{"it is no signer", nil, privilege.GroupUsr, func(d *desk) { os.RemoveAll(d.signers) }, 1},
		{"it is no signer, for a developer", nil, privilege.GroupDev, func(d *desk) { os.RemoveAll(d.signers) }, 0},
		{"it is not trusted", nil, privilege.GroupDev, func(d *desk) { os.RemoveAll(d.peerStore()) }, 1},
		{"it was long ago", func(m *memory) { m.when = time.Now().Add(-memoryLife - time.Hour) }, privilege.GroupUsr, nil, 1},
		{"it will be tomorrow", func(m *memory) { m.when = time.Now().Add(24 * time.Hour) }, privilege.GroupUsr, nil, 1},
		{"it does not build for this kernel any more", nil, privilege.GroupUsr, func(d *desk) {
			first := true
			f.answer = func(r *wire.Request) *wire.Response {
				if first {
					first = false
					return &wire.Response{Version: "5.6", RC: 1, Stderr: []byte("Target kernel version " + release + " is not supported by this server\n")}
				}
				return good("stap_1")(r)
			}
		}, 1},
		{"it answers", nil, privilege.GroupUsr, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.answer = good("stap_1")
			d := newDesk(t, tt.group, f)
			d.trust(t, f, d.peerStore())
			d.trust(t, f, d.signers)
			browses := d.counting()
			m := memory{time.Now(), record{addr: f.addr.Addr(), port: int(f.addr.Port()), host: "no-such-host.local", version: "5.6",
				sysinfo: release + " " + arch, certinfo: identity.CertInfo(f.id.Certificate), fingerprint: identity.Fingerprint(f.id.Certificate)}}
			if tt.entry != nil {
				tt.entry(&m)
			}
			if err := os.WriteFile(d.memory(), formatMemory([]memory{m}), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.setup != nil {
				tt.setup(d)
			}
			start := time.Now()
			code := d.stap("-p4", "--use-server", "--privilege="+map[string]string{privilege.GroupUsr: "stapusr", privilege.GroupDev: "stapdev"}[tt.group], "-e", hello)
			if *browses != tt.want {
				t.Errorf("%d browses, want %d; status %d\n%s", *browses, tt.want, code, d.err.String())
			}
			wantCode := 0
			if strings.Contains(tt.name, "it is no signer") && tt.want == 1 || tt.name == "it is not trusted" {
				wantCode = 1
			}
			if code != wantCode {
				t.Errorf("status %d, want %d\n%s", code, wantCode, d.err.String())
			}
			if wantCode == 0 && strings.Contains(d.err.String(), "Unable") {
				t.Errorf("stderr: %q", d.err.String())
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// The file is read only where nobody else could have put it, and what cannot be
// kept is no reason to fail.
func TestMemoryFile(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev, f)
	d.trust(t, f, d.peerStore())
	elsewhere := filepath.Join(d.dir, "elsewhere")
	if err := os.WriteFile(elsewhere, formatMemory(nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, d.memory()); err != nil {
		t.Fatal(err)
	}
	if code := d.stap("-v", "-p4", "--use-server", "-e", hello); code != 0 {
		t.Errorf("status %d\n%s", code, d.err.String())
	}
	contains(t, "stderr", d.err.String(), "Remembered servers: ", "too many levels of symbolic links")
	if err := os.Remove(d.memory()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.memory(), 0o755); err != nil {
		t.Fatal(err)
	}
	if code := d.stap("-v", "-p4", "--use-server", "-e", hello); code != 0 {
		t.Errorf("status %d\n%s", code, d.err.String())
	}
	contains(t, "stderr", d.err.String(), "is not a file of this user")
	if err := os.Remove(d.memory()); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		// Another user's directory is left alone.
		if err := os.Chown(d.data, 1, 1); err != nil {
			t.Fatal(err)
		}
		d.trust(t, f, d.hostPeers)
		if code := d.stap("-p4", "--use-server", "-e", hello); code != 0 {
			t.Errorf("another user's home: status %d\n%s", code, d.err.String())
		}
		if _, err := os.Stat(d.memory()); err == nil {
			t.Error("a file was left in another user's home")
		}
	}
}

func TestParseMemory(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	fp := strings.Repeat("ab", 32)
	line := "999999\t192.0.2.1:4711\tno-such-host.local\t5.6\t6.1 x86_64\t00:cc\t" + fp
	for _, tt := range []struct {
		name, text string
		want       int
	}{
		{"one", rememberedMagic + "\n" + line + "\n", 1},
		{"two, one of them bad", rememberedMagic + "\nx\n" + line, 1},
		{"link-local", rememberedMagic + "\n" + strings.Replace(line, "192.0.2.1", "[fe80::1%eth0]", 1), 1},
		{"empty", "", 0},
		{"another version", "stapbox servers 2\n" + line, 0},
		{"no port", rememberedMagic + "\n" + strings.Replace(line, ":4711", "", 1), 0},
		{"port 0", rememberedMagic + "\n" + strings.Replace(line, ":4711", ":0", 1), 0},
		{"a name for an address", rememberedMagic + "\n" + strings.Replace(line, "192.0.2.1", "no-such-host", 1), 0},
		{"multicast", rememberedMagic + "\n" + strings.Replace(line, "192.0.2.1", "224.0.0.251", 1), 0},
		{"short fingerprint", rememberedMagic + "\n" + line[:len(line)-2], 0},
		{"too many fields", rememberedMagic + "\n" + line + "\tx", 0},
		{"unprintable", rememberedMagic + "\n" + strings.Replace(line, "no-such-host", "v\x1bm", 1), 0},
		{"no time", rememberedMagic + "\nx" + line, 0},
		{"many", rememberedMagic + "\n" + strings.Repeat(line+"\n", 100), maxRemembered},
		{"too long", rememberedMagic + "\n" + strings.Repeat(line+"\n", 1000), 0},
	} {
		if got := parseMemory([]byte(tt.text), now); len(got) != tt.want {
			t.Errorf("%s: got %d servers, want %d", tt.name, len(got), tt.want)
		}
	}
	list := parseMemory([]byte(rememberedMagic+"\n"+line+"\n"), now)
	if got := string(formatMemory(list)); got != rememberedMagic+"\n"+line+"\n" {
		t.Errorf("written again: got %q", got)
	}
}

func FuzzMemory(f *testing.F) {
	line := "999999\t192.0.2.1:4711\tno-such-host.local\t5.6\t6.1 x86_64\t00:cc\t" + strings.Repeat("ab", 32)
	f.Add([]byte(rememberedMagic + "\n" + line + "\n"))
	f.Add([]byte(rememberedMagic + "\n" + strings.Replace(line, "192.0.2.1", "[fe80::1%eth0]", 1)))
	f.Add([]byte(rememberedMagic + "\n\t\t\t\t\t\t\n"))
	now := time.Unix(1_000_000, 0)
	f.Fuzz(func(t *testing.T, data []byte) {
		list := parseMemory(data, now)
		if len(list) > maxRemembered {
			t.Errorf("got %d servers", len(list))
		}
		again := formatMemory(list)
		if len(again) > maxMemory {
			t.Errorf("got %d bytes", len(again))
		}
		back := parseMemory(again, now)
		if !slices.EqualFunc(list, back, func(a, b memory) bool { return a.String() == b.String() && a.when.Equal(b.when) }) {
			t.Errorf("got %v, want %v", back, list)
		}
		for _, m := range list {
			if !m.addr.IsValid() || m.port == 0 || bytes.ContainsAny([]byte(m.String()), "\x1b\n\t") {
				t.Errorf("got %v", m)
			}
		}
	})
}
