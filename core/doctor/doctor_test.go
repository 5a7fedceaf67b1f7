package doctor

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/discovery"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/kmod"
	"stapbox/core/trust"
	"stapbox/core/wire"
)

func now() time.Time { return time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC) }

func certificate(from, days int) trust.Certificate {
	return trust.Certificate{
		Certificate: &x509.Certificate{NotBefore: now().AddDate(0, 0, from), NotAfter: now().AddDate(0, 0, days)},
		Fingerprint: strings.Repeat("ab", 32), Host: "build",
	}
}

func store(dir string, mine bool, certs ...trust.Certificate) Store {
	return Store{Dir: dir, Mine: mine, Store: &trust.Store{Dir: dir, Certificates: certs}}
}

// healthy is a production host and a member of stapusr on it.
func healthy() *Host {
	return &Host{
		Now: now(), Release: "6.12.117+deb12-cloud-amd64", Self: "stapbox", Tool: "apt-get",
		UID: 7, GIDs: []int{100, 156},
		Passwd:  "root:x:0:0::/:/bin/sh\nann:x:7:100::/:/bin/sh\n",
		Group:   "root:x:0:\nstapusr:x:156:ann\nstapsys:x:157:\nstapdev:x:158:\n",
		Staprun: Program{Path: "/usr/bin/staprun", Ours: true, Mode: 0o4750, GID: 156, Names: 1},
		Stapio:  Program{Path: "/usr/libexec/stapbox/stapio", Ours: true, Link: true},
		Config:  map[string]bool{"MODULES": true, "MODULE_UNLOAD": true, "PROC_FS": true, "RELAY": true}, ConfigFrom: "/boot/config",
		ModulesFile: true, Lockdown: "none", ProcOptions: "rw,relatime,rw", Links: 1,
		Signers: store("/etc/systemtap/staprun", false, certificate(-1, 300)),
		Peers:   []Store{store("/home/ann/.systemtap/ssl/client", true, certificate(-1, 300)), store("/etc/systemtap/ssl/client", false, certificate(-1, 300))},
		Blessed: Directory{Path: "/lib/modules/6.12.117+deb12-cloud-amd64/systemtap", IsDir: true, Mode: 0o755},
		Headers: errors.New("none"), Lacking: []string{"gcc"},
		Servers: []Server{{"192.0.2.7:4321", "build.local", now()}},
		Modules: []kmod.Loaded{{Name: "attached", UID: 7, Uses: 1}},
	}
}

// A healthy host is one screen of 24 lines and 80 columns, of which the last is
// for the next prompt.
func TestHealthy(t *testing.T) {
	for name, change := range map[string]func(*Host){
		"member": func(*Host) {},
		"root":   func(h *Host) { h.UID = 0; h.Signers = Store{None: true}; h.Servers = nil; h.SecureBoot = true },
		"server": func(h *Host) {
			h.Headers, h.Lacking, h.Server = nil, nil, "servers are configured"
			h.Owned = []Identity{{Dir: "/x", Cert: certificate(-1, 90).Certificate}}
		},
		"online": func(h *Host) { h.Online, h.Found, h.Trusted = true, 1, "build.local at 192.0.2.7:4321" },
	} {
		h := healthy()
		change(h)
		all := Examine(h)
		if Refused(all) {
			t.Errorf("%s: a healthy host would refuse", name)
		}
		var out bytes.Buffer
		WriteText(&out, all)
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != len(checks()) || len(lines) > 23 {
			t.Errorf("%s: %d lines\n%s", name, len(lines), out.String())
		}
		for _, l := range lines {
			if len(l) > 80 || !strings.HasPrefix(l, "ok    ") {
				t.Errorf("%s: %d columns: %s", name, len(l), l)
			}
		}
	}
}

// TestFindings breaks one thing of the healthy host at a time.
func TestFindings(t *testing.T) {
	unsafe := func(path, reason string) error {
		return &trust.UnsafeError{Path: path, Kind: "directory", Reason: reason}
	}
	dev := func(h *Host) { h.GIDs = []int{156, 158} }
	moks := func(issuer string) []*x509.Certificate {
		return []*x509.Certificate{{Raw: []byte{1}, RawIssuer: []byte(issuer), Issuer: pkix.Name{CommonName: issuer}}}
	}
	for _, tt := range []struct {
		name   string
		change func(*Host)
		check  string
		state  State
		text   string // part of it
		cure   string // all of it
	}{
		{"no groups", func(h *Host) { h.Group = "stapsys:x:157:\n" }, "groups", Cure, ": stapusr stapdev", "sudo stapbox install"},
		{"groups recorded", func(h *Host) { h.Group, h.Recorded = "", "stapusr=156\nstapsys=157\nstapdev=158\n" }, "groups", OK, "stapusr=156", ""},
		{"group recorded otherwise", func(h *Host) { h.Recorded = "stapusr=99\n" }, "groups", Note, "recorded id 99 is not used", "sudo stapbox install"},
		{"records anybody may write", func(h *Host) {
			h.RecordedErr = &trust.UnsafeError{Path: "/etc/stapbox/groups.conf", Kind: "file", Reason: "must not be writable by others"}
		}, "groups", Cure, "must not be writable",
			"sudo rm -f /etc/stapbox/groups.conf && sudo stapbox install"},
		{"records where anybody may write", func(h *Host) {
			h.RecordedErr = &trust.UnsafeError{Path: "/etc/stapbox", Kind: "directory", Reason: "must not be writable by others"}
		}, "groups", Cure, "must not be writable", "sudo chmod go-w /etc/stapbox && sudo rm -f /etc/stapbox/groups.conf && sudo stapbox install"},
		{"in no group", func(h *Host) { h.GIDs = []int{100}; h.Group = strings.ReplaceAll(h.Group, "ann", "") }, "membership", Cure, "none of the groups", "sudo usermod -a -G stapusr ann"},
		{"added after the login", func(h *Host) { h.GIDs = []int{100} }, "membership", Cure, "log in again", "newgrp stapusr"},
		{"stapdev alone", func(h *Host) { h.GIDs = []int{158} }, "membership", Cure, "counts only together", "sudo usermod -a -G stapusr ann"},
		{"a name for a terminal", func(h *Host) {
			h.GIDs, h.Group, h.Passwd = nil, "", "\x1b[2J;rm:x:7:100::/:/bin/sh\n"
		}, "membership", Cure, "?[2J;rm is", `sudo usermod -a -G stapusr $'\033[2J;rm'`},
		{"a user of LDAP", func(h *Host) { h.GIDs, h.Passwd = []int{100}, "" }, "membership", Cure, "uid 7 is in none", `sudo gpasswd -a "$(id -un 7)" stapusr`},
		{"no_new_privs of LDAP", func(h *Host) { h.NoNewPrivs, h.Passwd = true, "" }, "process", Cure, "no effect", `sudo -i -u "$(id -un 7)"`},
		{"not installed", func(h *Host) { h.Staprun = Program{Path: "/usr/bin/staprun", Missing: true} }, "staprun", Cure, "is missing", "sudo stapbox install"},
		{"another's staprun", func(h *Host) { h.Staprun.Ours = false }, "staprun", Cure, "another SystemTap's", "sudo apt-get remove systemtap-runtime"},
		{"another's staprun, Fedora", func(h *Host) { h.Staprun.Ours = false; h.Tool = "dnf" }, "staprun", Cure, "another SystemTap's", "sudo dnf remove systemtap-runtime"},
		{"another's staprun, unknown", func(h *Host) { h.Staprun.Ours = false; h.Tool = "" }, "staprun", Cure, "another SystemTap's", "sudo rm /usr/bin/staprun"},
		{"plain link", func(h *Host) { h.Staprun.Link = true }, "staprun", Cure, "only root loads", "sudo stapbox install"},
		{"owner", func(h *Host) { h.Staprun.UID = 7 }, "staprun", Cure, "belongs to ann", "sudo stapbox install"},
		{"mode", func(h *Host) { h.Staprun.Mode = 0o755 }, "staprun", Cure, "mode 0755", "sudo stapbox install"},
		{"group of staprun", func(h *Host) { h.Staprun.GID = 1 }, "staprun", Cure, "group 1", "sudo stapbox install"},
		{"version", func(h *Host) { h.Staprun.Other = true; h.Self = "/tmp/new one" }, "staprun", Cure, "another version", "sudo '/tmp/new one' install"},
		{"unread", func(h *Host) { h.Staprun.Ours, h.Staprun.Unread = false, true }, "staprun", OK, "", ""},
		{"nosuid", func(h *Host) { h.Staprun.NoSuid = "/usr" }, "staprun", Cure, "mounted nosuid", "sudo mount -o remount,suid /usr"},
		{"hard link", func(h *Host) { h.Staprun.Names = 2 }, "staprun", Note, "2 names", "sudo find / -xdev -samefile /usr/bin/staprun"},
		{"no stapio", func(h *Host) { h.Stapio.Missing = true }, "staprun", Cure, "stapio is missing", "sudo stapbox install"},
		{"interrupted installation", func(h *Host) { h.Stale = []string{"/usr/bin/.stapbox-1"} }, "staprun", Note, "interrupted", "sudo rm /usr/bin/.stapbox-1"},
		{"other stap", func(h *Host) { h.Strange = []Program{{Path: "/usr/local/bin/stap"}}; h.Tool = "" }, "other-systemtap", Cure, "another SystemTap's", "sudo rm /usr/local/bin/stap"},
		{"other stap of no package", func(h *Host) { h.Strange = []Program{{Path: "/home/ann/b\xc3\xbcn/it's/stap"}} }, "other-systemtap", Cure, "another SystemTap's",
			`sudo rm $'/home/ann/b\303\274n/it\'s/stap'`},
		{"a host that is a screen", func(h *Host) {
			c := certificate(-9, -1)
			c.Host = "h" + strings.Repeat(" ", 90) + "$ sudo rm -rf /"
			h.Peers = append(h.Peers, store("/s", false, c))
		}, "peers", Note, "????$?sudo?rm?-rf?/ expired", "sudo stapbox trust revoke abababab"},
		{"a server that is a screen", func(h *Host) { h.Servers[0].Host = "a $ b" + strings.Repeat("c", 900) }, "server", OK, "a?$?bccc", ""},
		{"no_new_privs", func(h *Host) { h.NoNewPrivs = true }, "process", Cure, "no effect", "sudo -i -u ann"},
		{"container", func(h *Host) { h.NoModules, h.Seccomp = true, true }, "process", Cure, "out of reach", "podman run --cap-add=SYS_MODULE ..."},
		{"user namespace", func(h *Host) { h.Namespace = true }, "process", Cure, "user namespace", "exit"},
		{"seccomp", func(h *Host) { h.Seccomp = true }, "process", Note, "finit_module", ""},
		{"no modules", func(h *Host) { h.ModulesFile = false; h.Config["MODULES"] = false }, "kernel", Cure, "without CONFIG_MODULES (", "sudo systemctl reboot"},
		{"no /proc", func(h *Host) { h.ModulesFile = false; h.ConfigFrom = "" }, "kernel", Cure, "no /proc/modules", "sudo mount -t proc proc /proc"},
		{"modules disabled", func(h *Host) { h.Disabled = true }, "kernel", Cure, "modules_disabled", "sudo systemctl reboot"},
		{"no relay", func(h *Host) { delete(h.Config, "RELAY") }, "kernel", Cure, "CONFIG_RELAY", "sudo systemctl reboot"},
		{"lockdown", func(h *Host) { h.Lockdown, h.SecureBoot = "integrity", true }, "lockdown", Cure, "lockdown=integrity (Secure Boot is on)", "sudo mokutil --import signing_key.x509"},
		{"enforced, a foreign key", func(h *Host) { h.Enforced, h.Enrolled = true, moks("Vendor") }, "lockdown", Cure, "module.sig_enforce", "sudo mokutil --import signing_key.x509"},
		{"enforced, our key", func(h *Host) { h.Enforced, h.Enrolled = true, moks("Systemtap") }, "lockdown", OK, "enrolled", ""},
		{"FIPS", func(h *Host) { h.FIPS = true }, "fips", Note, "2048", ""},
		{"hidepid", func(h *Host) { h.ProcOptions = "rw,hidepid=invisible" }, "proc", Note, "hidepid=invisible", "sudo mount -o remount,hidepid=0 /proc"},
		{"subset", func(h *Host) { h.ProcOptions = "rw,subset=pid" }, "proc", Cure, "subset=pid", "sudo mount -t proc proc /proc"},
		{"debugfs", func(h *Host) { h.Debugfs = true }, "proc", OK, "debugfs are there", ""},
		{"no signer", func(h *Host) { h.Signers = Store{None: true, Err: os.ErrNotExist} }, "signers", Cure, "no signer", trustCommand + "192.0.2.7:4321"},
		{"no signer wanted", func(h *Host) { dev(h); h.Signers = Store{None: true, Err: os.ErrNotExist} }, "signers", OK, "not needed", ""},
		{"NSS signers", func(h *Host) {
			h.Signers = Store{Dir: "/etc/systemtap/staprun", NSS: true, Store: &trust.Store{}}
		}, "signers", Cure, "NSS", "sudo stap-authorize-signing-cert --import=/etc/systemtap/staprun"},
		{"store of the group", func(h *Host) { h.Signers.Err = unsafe("/etc/systemtap", "must not be writable by the group") }, "signers", Cure, "writable", "sudo chmod go-w /etc/systemtap"},
		{"store of a user", func(h *Host) { h.Signers.Err = unsafe("/etc/systemtap", "must be owned by root") }, "signers", Cure, "owned", "sudo chown root /etc/systemtap"},
		{"own store of another", func(h *Host) {
			h.Peers[0].Err = unsafe("/home/ann/.systemtap", "must be owned by one of the user ids [7 0], not by 8")
		}, "peers", Cure, "owned", `sudo chown "$USER" /home/ann/.systemtap`},
		{"own store is a link", func(h *Host) { h.Peers[0].Err = unsafe("/home/ann/it's", "must be a directory and not a link") }, "peers", Cure, "not a link", `mv '/home/ann/it'\''s' '/home/ann/it'\''s.old'`},
		{"unreadable", func(h *Host) { h.Peers[1].Err = errors.New("input/output error") }, "peers", Cure, "input/output", "sudo ls -l /etc/systemtap/ssl/client"},
		{"unreadable for users", func(h *Host) {
			h.Signers.Err = fmt.Errorf("opening trust store: %w", &os.PathError{Op: "open", Path: "/etc/systemtap/staprun", Err: unix.EACCES})
		}, "signers", Cure, "permission denied", "sudo chmod a+rX /etc/systemtap /etc/systemtap/staprun"},
		{"expired signer", func(h *Host) { h.Signers = store("/s", false, certificate(-9, -1)) }, "signers", Cure, "no signer", trustCommand + "192.0.2.7:4321"},
		{"one expired", func(h *Host) { h.Signers = store("/s", false, certificate(-9, -1), certificate(-9, 99)) }, "signers", Note, "expired on 2026-05-03", "sudo stapbox trust revoke abababab"},
		{"expiring", func(h *Host) { h.Peers = []Store{store("/s", true, certificate(-9, 3))} }, "peers", Note, "expires on 2026-05-07", ""},
		{"a damaged file", func(h *Host) { h.Peers[0].Warnings = []string{"reading \"\x1b[2J\""} }, "peers", Note, "reading \"?[2J\"", ""},
		{"no peer", func(h *Host) { h.Peers = nil }, "peers", Cure, "no compile server is trusted", trustCommand + "192.0.2.7:4321"},
		{"no peer, no server known", func(h *Host) { h.Peers, h.Servers = nil, nil }, "peers", Cure, "no compile server is trusted", trustAny},
		{"no peer wanted", func(h *Host) { dev(h); h.Peers, h.Headers, h.Lacking = nil, nil, nil }, "peers", OK, "not needed", ""},
		{"NSS peers", func(h *Host) { h.Peers = []Store{{Dir: "/e", NSS: true, None: true}} }, "peers", Cure, "NSS", "sudo stap-authorize-server-cert --import=/e"},
		{"own NSS peers", func(h *Host) { h.Peers = []Store{{Dir: "/h", Mine: true, NSS: true, None: true}} }, "peers", Cure, "NSS", "stap-authorize-cert --import=/h /h"},
		{"no blessed directory", func(h *Host) { h.Blessed.Missing = true }, "blessed", Note, "missing", "sudo stapbox install"},
		{"blessed file", func(h *Host) { h.Blessed.IsDir = false }, "blessed", Cure, "no directory", "sudo rm /lib/modules/6.12.117+deb12-cloud-amd64/systemtap"},
		{"blessed by a user", func(h *Host) { h.Blessed.UID = 7 }, "blessed", Cure, "belong to root", "sudo chown root /lib/modules/6.12.117+deb12-cloud-amd64/systemtap"},
		{"blessed by all", func(h *Host) { h.Blessed.Mode = 0o777 }, "blessed", Cure, "everybody", "sudo chmod o-w /lib/modules/6.12.117+deb12-cloud-amd64/systemtap"},
		{"blessed by a group", func(h *Host) { h.Blessed.Mode, h.Blessed.GID = 0o775, 100 }, "blessed", Cure, "stapdev", "sudo chmod g-w /lib/modules/6.12.117+deb12-cloud-amd64/systemtap"},
		{"blessed by stapdev", func(h *Host) { h.Blessed.Mode, h.Blessed.GID = 0o775, 158 }, "blessed", OK, "", ""},
		{"server without headers", func(h *Host) { h.Server, h.Lacking = "a server is running", nil }, "build", Cure, "(a server is running)", "sudo apt-get install linux-headers-6.12.117+deb12-cloud-amd64"},
		{"server for other kernels", func(h *Host) { h.Server, h.Lacking, h.OtherHeaders = "a server is running", nil, true }, "build", Note, "headers of kernel", "sudo apt-get install linux-headers-6.12.117+deb12-cloud-amd64"},
		{"server without compiler", func(h *Host) { h.Server, h.Headers, h.Tool = "servers are configured", nil, "dnf" }, "build", Cure, "not installed: gcc", "sudo dnf install gcc make binutils"},
		{"port taken", func(h *Host) { h.Port = errors.New("address in use") }, "network", Note, "address in use", "sudo ss -ulpn sport = :5353"},
		{"port taken on a server", func(h *Host) { h.Port, h.Server = errors.New("address in use"), "x" }, "network", Cure, "address in use", "sudo ss -ulpn sport = :5353"},
		{"no interface", func(h *Host) { h.Links = 0 }, "network", Note, "--use-server", ""},
		{"none remembered", func(h *Host) { h.Servers = nil }, "server", OK, "--online", ""},
		{"nobody answers", func(h *Host) { h.Online = true }, "server", Cure, "no compile server answers", "stap-serverd"},
		{"strangers answer", func(h *Host) { h.Online, h.Found = true, 2 }, "server", Cure, "2 servers found, none is trusted", trustAny},
		{"network is broken", func(h *Host) { h.Online, h.AskedErr = true, errors.New("no route") }, "server", Cure, "no route", "ip address"},
		{"identity expired", func(h *Host) { h.Owned = []Identity{{Dir: "/k", Cert: certificate(-9, -1).Certificate}} }, "identity", Cure, "expired on 2026-05-03", "stap-gen-cert /k"},
		{"identity of the service expired", func(h *Host) {
			h.Owned = []Identity{{Dir: "/k", User: "stap-server", Cert: certificate(-9, -1).Certificate}}
		}, "identity", Cure, "expired on 2026-05-03", "sudo -u stap-server stap-gen-cert /k"},
		{"identity expires", func(h *Host) { h.Owned = []Identity{{Dir: "/k", Cert: certificate(-9, 9).Certificate}} }, "identity", Note, "expires on 2026-05-13", "stap-gen-cert --renew /k"},
		{"identity broken", func(h *Host) { h.Owned = []Identity{{Dir: "/k", Err: errors.New("no certificate")}} }, "identity", Cure, "no certificate", "stap-gen-cert /k"},
		{"clock, by a store", func(h *Host) { h.Now = now().AddDate(-5, 0, 0) }, "clock", Cure, "before a certificate", "sudo timedatectl set-ntp true"},
		{"clock, by the identity", func(h *Host) { h.Owned = []Identity{{Dir: "/k", Cert: certificate(2, 9).Certificate}} }, "clock", Cure, "in /k", "sudo timedatectl set-ntp true"},
		{"left by the user", func(h *Host) { h.Modules = []kmod.Loaded{{Name: "a", UID: 7}} }, "leftover-modules", Cure, "module a, loaded by ann, runs with nobody attached", "staprun -d a"},
		{"left by another", func(h *Host) { h.Modules = []kmod.Loaded{{Name: "a;b", UID: 8}} }, "leftover-modules", Cure, "uid 8", "sudo staprun -d 'a;b'"},
		{"modules unreadable", func(h *Host) { h.ModulesErr = errors.New("listing modules") }, "leftover-modules", Cure, "listing modules", "sudo mount -t proc proc /proc"},
	} {
		h := healthy()
		tt.change(h)
		all := Examine(h)
		if !slices.ContainsFunc(all, func(f Finding) bool {
			return f.Check == tt.check && f.State == tt.state && strings.Contains(f.Text, tt.text) && f.Cure == tt.cure
		}) {
			var out bytes.Buffer
			WriteText(&out, all)
			t.Errorf("%s: no %s of %s with %q and %q in\n%s", tt.name, tt.state, tt.check, tt.text, tt.cure, out.String())
		}
		if tt.state == Cure != Refused(all) {
			t.Errorf("%s: refused: %v", tt.name, Refused(all))
		}
		for _, f := range all {
			if strings.ContainsFunc(f.Subject+f.Text+f.Cure, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%s: not printable: %q", tt.name, f)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := WriteJSON(&out, Examine(healthy())); err != nil {
		t.Fatal(err)
	}
	var got []map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != len(checks()) {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, f := range got {
		for _, key := range []string{"check", "state", "subject", "text", "cure"} {
			if _, has := f[key]; !has {
				t.Errorf("%v has no %s", f, key)
			}
		}
	}
}

// Look on this host, whatever it finds: it is quick and leaves no file behind.
func TestLook(t *testing.T) {
	data := t.TempDir()
	write(t, hostpaths.RememberedServers(data), "stapbox servers 1\n1700000000\t192.0.2.7:4321\tbuild\t1.1\tr a\t01\t"+strings.Repeat("a", 64)+"\n")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(data, "stap")
	write(t, other, "#!/bin/sh\n")
	if err := os.Chmod(other, 0o755); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	h := Look(context.Background(), Asker{Self: self, Data: data, Path: data, Names: []string{"stap"}})
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	if len(h.Servers) != 1 || h.Servers[0].Host != "build" || h.Release == "" || h.UID != os.Getuid() {
		t.Errorf("got %+v", h)
	}
	if len(h.Strange) == 0 || h.Strange[0].Path != other {
		t.Errorf("other programs: %+v", h.Strange)
	}
	if all := Examine(h); len(all) < len(checks()) {
		t.Errorf("%d findings", len(all))
	}
	if left, err := os.ReadDir(data); err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What is no program, or as big as a disk, is passed over at once.
func TestStrangeFiles(t *testing.T) {
	dir := t.TempDir()
	pipe, big := filepath.Join(dir, "pipe"), filepath.Join(dir, "big")
	if err := unix.Mkfifo(pipe, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, big, "#!")
	if err := os.Truncate(big, 1<<40); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, big} {
		if IsBox(path) {
			t.Errorf("%s is the box", path)
		}
		if p := program(path, nil, ""); p.Ours || !p.Unread {
			t.Errorf("%s: %+v", path, p)
		}
	}
}

// Servers that say nothing do not hide the one that is trusted.
func TestMeet(t *testing.T) {
	id, err := identity.New(identity.Options{KeyType: identity.ECDSA, NodeName: "build", Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	pair := id.TLS()
	var list []discovery.Server
	listen := func(serve func(net.Conn)) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go serve(c)
			}
		}()
		at := l.Addr().(*net.TCPAddr).AddrPort()
		list = append(list, discovery.Server{Host: "a b", Addr: at.Addr(), Port: int(at.Port())})
	}
	for range 9 {
		listen(func(net.Conn) {})
	}
	listen(func(c net.Conn) {
		tls.Server(c, wire.ServerTLS(func() (*tls.Certificate, error) { return &pair, nil })).Handshake()
	})
	h := &Host{Now: time.Now()}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h.Peers = []Store{store("/s", true, trust.Certificate{Certificate: id.Certificate})}
	h.meet(ctx, list)
	if want := fmt.Sprintf("a?b at 127.0.0.1:%d", list[9].Port); h.Trusted != want || h.Found != 10 || ctx.Err() != nil {
		t.Errorf("got %q of %d, %v", h.Trusted, h.Found, ctx.Err())
	}
	h.Peers = nil
	if h.meet(ctx, list[9:]); h.Trusted != "" || h.Found != 1 {
		t.Errorf("a stranger: %q of %d", h.Trusted, h.Found)
	}
}

// A process counts by its user, for its name is whatever it likes.
func TestRuns(t *testing.T) {
	name, _, _ := strings.Cut(strings.TrimPrefix(text("/proc/self/status"), "Name:\t"), "\n")
	uid := strconv.Itoa(os.Getuid())
	if !runs(name, []string{"4000000", uid}) {
		t.Errorf("%q of %s does not run", name, uid)
	}
	if runs(name, []string{"4000000"}) {
		t.Errorf("%q of another user runs", name)
	}
}

func TestReaders(t *testing.T) {
	const mounts = "22 1 8:1 / / rw,relatime - ext4 /dev/a rw\n" +
		"23 22 8:2 / /usr rw,nosuid - ext4 /dev/b rw\n24 22 0:5 / /proc rw,noexec shared:7 - proc proc rw,hidepid=invisible\n"
	if got := mountOf(mounts, "/usr/bin/staprun"); got != "/usr" {
		t.Errorf("mount point %q", got)
	}
	if got := mountOf(mounts, "/usrlocal/x"); got != "/" {
		t.Errorf("mount point %q", got)
	}
	if got, mounted := optionsOf(mounts, "/proc"); !mounted || got != "rw,noexec,rw,hidepid=invisible" {
		t.Errorf("options %q %v", got, mounted)
	}
	if _, mounted := optionsOf(mounts, "/sys/kernel/debug"); mounted {
		t.Error("debugfs is mounted")
	}
	if got := bracketed("none [integrity] confidentiality\n"); got != "integrity" {
		t.Errorf("lockdown %q", got)
	}
	if got := bracketed(""); got != "" {
		t.Errorf("lockdown %q", got)
	}
	for in, want := range map[string]bool{"         0          0 4294967295\n": true, "": true, "0 1000 1\n": false, "0 0 1\n": false} {
		if wholeNamespace(in) != want {
			t.Errorf("uid_map %q: %v", in, !want)
		}
	}
	on := parseConfig("CONFIG_MODULES=y\n# CONFIG_RELAY is not set\nCONFIG_X=m\nCONFIG_HZ=250\n")
	if !on["MODULES"] || on["RELAY"] || !on["X"] || on["HZ"] {
		t.Errorf("config %v", on)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Name = "config"
	w.Write([]byte("CONFIG_RELAY=y\n"))
	w.Close()
	if b, err := gunzip(z.Bytes()); err != nil || string(b) != "CONFIG_RELAY=y\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func FuzzParseRemembered(f *testing.F) {
	f.Add([]byte("stapbox servers 1\n1700000000\t192.0.2.7:4321\tbuild\t1.1\tr a\t01\tff\n"))
	f.Add([]byte("stapbox servers 1\n-1\t[fe80::1%eth0]:1\t\t\t\t\t\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h := healthy()
		for _, s := range parseRemembered(data) {
			h.Servers = []Server{s}
			if f := Examine(h); Refused(f) {
				t.Errorf("%+v", f)
			}
		}
	})
}

func FuzzGunzip(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x03\x00"))
	f.Add([]byte("\x1f\x8b\x08\x08\x00\x00\x00\x00\x02\x03name\x00\x03\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := gunzip(data); err == nil && len(b) > maxText {
			t.Errorf("%d bytes", len(b))
		}
	})
}
