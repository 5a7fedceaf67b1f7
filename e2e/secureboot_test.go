package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/modsig"
	"stapbox/core/mok"
	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// bootEnforcing starts a guest with UEFI whose kernel loads only modules that
// are signed with a key it trusts, and trusts this one. The certificate is in db,
// from which Debian's kernels trust modules also where Secure Boot is off, and in
// MokListRT, where shim puts what the owner has enrolled and clients look.
func bootEnforcing(t *testing.T, version string, key *mok.Key) *scene {
	t.Helper()
	firmware, err := stage.lab.FetchFirmware()
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{}
	t.Cleanup(s.close)
	if s.kernel, err = stage.lab.FetchKernel(version); err != nil {
		t.Fatal(err)
	}
	if s.net, err = stage.lab.NewNetwork(); err != nil {
		t.Fatal(err)
	}
	list := mok.SignatureList(key.Certificate.Raw)
	s.guest, err = stage.lab.Boot(lab.GuestConfig{
		Kernel: s.kernel, Agent: stage.programs.Agent, Box: stage.programs.Box, Net: s.net, Firmware: firmware,
		Variables: []lab.Variable{
			{Name: "db", GUID: [16]byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}, Data: list},
			{Name: "MokListRT", GUID: [16]byte{0x50, 0xab, 0x5d, 0x60, 0x46, 0xe0, 0x00, 0x43, 0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23}, Data: list},
		},
		Append: "module.sig_enforce=1",
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ownedByServer gives a tree to the user that test servers run as.
func ownedByServer(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, lab.ServerUID, lab.ServerUID)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSecureBoot is a host whose kernel loads only modules signed with a machine
// owner key: what is not, the kernel itself refuses; what our server signs with
// it runs, for root and for a user; a script needs no option for that.
func TestSecureBoot(t *testing.T) {
	bootsGuest(t)
	if os.Geteuid() != 0 {
		t.Skip("guests need root, for a network namespace with a tap device")
	}
	for _, version := range lab.Versions() {
		t.Run(version, func(t *testing.T) { secureBoot(t, version) })
	}
}

func secureBoot(t *testing.T, version string) {
	dir := filepath.Join(stage.dir, "secureboot-"+version)
	key, err := mok.Generate(filepath.Join(dir, "ssl/server/moks"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := mok.Generate(filepath.Join(t.TempDir(), "moks"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := bootEnforcing(t, version, key)
	a := s.do(t, lab.Shell(lab.Root, "cat /sys/module/module/parameters/sig_enforce; dmesg | grep X.509"))
	t.Logf("%s", a.Stdout)
	if !strings.HasPrefix(string(a.Stdout), "Y\n") || !strings.Contains(string(a.Stdout), "Systemtap module signing key") {
		t.Fatalf("the kernel does not enforce signatures or does not trust the key:\n%s", a.Stdout)
	}

	// By hand, from a module that no kernel key has signed.
	plain := module(t, s.kernel, "stapusr", hello)
	byHand := func(k *mok.Key) []byte {
		t.Helper()
		path := filepath.Join(t.TempDir(), "e2e_test_module_with_long_name.ko")
		if err := os.WriteFile(path, plain, 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(stage.programs.Applet("stap-sign-module"), "--mok-cert="+filepath.Join(k.Dir, mok.CertFile), "--mok-key="+filepath.Join(k.Dir, mok.KeyFile), path, filepath.Join(t.TempDir(), "ssl"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("stap-sign-module: %v\n%s", err, out)
		}
		info, err := stage.lab.Modinfo(path)
		if err != nil {
			t.Fatal(err)
		}
		serial := strings.ToUpper(hex.EncodeToString(k.Certificate.SerialNumber.Bytes()))
		for _, want := range []string{"sig_id:         PKCS#7", "signer:         Systemtap module signing key", "sig_hashalgo:   sha256"} {
			if !strings.Contains(string(info), want+"\n") {
				t.Errorf("modinfo lacks %q:\n%s", want, info)
			}
		}
		if got := strings.ReplaceAll(string(info), ":", ""); !strings.Contains(got, serial) {
			t.Errorf("modinfo lacks sig_key %s:\n%s", serial, info)
		}
		return read(t, path)
	}
	signed := byHand(key)
	changed := bytes.Clone(signed)
	changed[bytes.Index(changed, []byte("Hello"))] ^= 1
	for _, tt := range []struct {
		name   string
		image  []byte
		opts   []string
		status int
		stdout string
		stderr []string
	}{
		{"unsigned", plain, nil, 1, "", []string{"Key was rejected by service", "The kernel loads only modules that are signed with a key it trusts (/sys/module/module/parameters/sig_enforce), and this one is not signed for it."}},
		{"unsigned, renamed", plain, []string{"-R"}, 1, "", []string{"Key was rejected by service", "is not signed for it"}},
		{"another key", byHand(stranger), nil, 1, "", []string{"The kernel does not take the signature at the end of the module"}},
		{"changed", changed, nil, 1, "", []string{"Key was rejected by service", "The kernel does not take the signature at the end of the module"}},
		{"right key", signed, nil, 0, "Hello\n", nil},
		{"right key, not renamed", signed, []string{"-R"}, 0, "Hello\n", []string{"is signed for the kernel, which loads no others (/sys/module/module/parameters/sig_enforce): ignoring -R."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.put(t, "/root/x.ko", lab.Root, 0o644, tt.image)
			want(t, s.do(t, lab.Command(lab.Root, append(append([]string{"staprun"}, tt.opts...), "/root/x.ko")...)), tt.status, tt.stdout, tt.stderr...)
			if a := s.do(t, lab.Shell(lab.Root, "dmesg -c | grep -E 'Loading of|module verification|signature'")); len(a.Stdout) > 0 {
				t.Logf("kernel: %s", bytes.TrimSpace(a.Stdout))
			}
		})
	}

	// By a server, without a word about it.
	ownedByServer(t, dir)
	if s.server, err = stage.programs.StartServer(s.net, dir, []*lab.Kernel{s.kernel}); err != nil {
		t.Fatal(err)
	}
	if err := s.server.WaitLog("is ready after", 120*time.Second); err != nil {
		t.Fatal(err)
	}
	der := read(t, s.server.Certificate())
	id := &identity.Identity{}
	if id.Certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	s.trustSigner(t, id)
	address := fmt.Sprintf("%s:%d", lab.HostAddress, s.server.Port)
	r := lab.Command(lab.Root, "stap", "--trust-servers=ssl,all-users,no-prompt", "--use-server="+address)
	if a := s.do(t, r); a.Status != 0 {
		t.Fatalf("trusting the server: %s", a.Stderr)
	}
	stap := func(u lab.User, args ...string) request.Answer {
		t.Helper()
		r := lab.Command(u, append([]string{"stap"}, args...)...)
		r.Timeout = 90
		return s.do(t, r)
	}
	message := fmt.Sprintf("Module signed with MOK, fingerprint %q\n", key.Fingerprint())
	nonce := make([]byte, 8)
	rand.Read(nonce)
	script := fmt.Sprintf(`probe begin { println(%q, " ", @1) exit() }`, hex.EncodeToString(nonce))
	for _, u := range []lab.User{lab.Root, lab.Usr} {
		t.Run("stap of "+u.Name, func(t *testing.T) {
			// Without --use-server a server is looked for, with it this one is taken.
			for _, server := range [][]string{nil, {"--use-server=" + address}} {
				want(t, stap(u, append(server, "-e", script, "argument")...), 0, hex.EncodeToString(nonce)+" argument\n", message)
			}
		})
	}
	t.Run("-p4", func(t *testing.T) {
		a := stap(lab.Usr, "-p4", "--privilege=stapusr", "--use-server="+address, "-e", hello)
		name := strings.TrimSpace(string(a.Stdout))
		want(t, a, 0, name+"\n", message)
		if _, err := modsig.Verify(s.do(t, lab.Shell(lab.Usr, "cat "+name)).Stdout, key.Certificate); err != nil {
			t.Error(err)
		}
		want(t, s.do(t, lab.Command(lab.Usr, "staprun", "./"+name)), 0, "Hello\n")
	})
	t.Run("no key in common", func(t *testing.T) {
		if err := os.RemoveAll(filepath.Join(dir, "ssl/server/moks", key.Fingerprint())); err != nil {
			t.Fatal(err)
		}
		a := stap(lab.Root, "--use-server="+address, "-e", hello)
		want(t, a, 1, "", "The server has no machine owner keys (MOK) in common with this\nsystem.")
		other, err := mok.Generate(filepath.Join(dir, "ssl/server/moks"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ownedByServer(t, dir)
		want(t, stap(lab.Root, "--use-server="+address, "-e", hello), 1, "", "\t# sudo mokutil --import signing_key.x509\n", "compare its SHA1 fingerprint, "+other.Fingerprint())
		if got := s.do(t, lab.Shell(lab.Root, "cat signing_key.x509")).Stdout; !bytes.Equal(got, other.Certificate.Raw) {
			t.Errorf("signing_key.x509 has %d bytes, want %d", len(got), len(other.Certificate.Raw))
		}
	})
	s.checkClean(t)
}

// TestSecureBootElsewhere is the same module on kernels that take any: -R takes
// the signature that it would make a false one off, and ours is over both.
func TestSecureBootElsewhere(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		key, err := mok.Generate(filepath.Join(t.TempDir(), "moks"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		signer, _ := signers(t)
		s.forgetSigners(t)
		s.trustSigner(t, signer)
		plain := module(t, s.kernel, "stapusr", hello)
		signed, err := modsig.Append(plain, key.Certificate, key.Signer)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name   string
			user   lab.User
			opts   []string
			image  []byte
			over   []byte // what the signature beside is over, nil for none
			status int
			stdout string
			stderr string
		}{
			{"of root", lab.Root, nil, signed, nil, 0, "Hello\n", ""},
			{"renamed", lab.Root, []string{"-R"}, signed, nil, 0, "Hello\n", ""},
			{"of a user, renamed", lab.Usr, []string{"-R"}, signed, signed, 0, "Hello\n", ""},
			{"signed for the kernel after it was for staprun", lab.Usr, nil, signed, plain, 255, "", "It may have been altered since it was created."},
			{"without the signature for the kernel", lab.Usr, nil, plain, signed, 255, "", "It may have been altered since it was created."},
		} {
			t.Run(tt.name, func(t *testing.T) {
				s.do(t, lab.Shell(lab.Root, "rm -f /tmp/s.ko /tmp/s.ko.sgn"))
				s.put(t, "/tmp/s.ko", tt.user, 0o644, tt.image)
				if tt.over != nil {
					s.put(t, "/tmp/s.ko.sgn", tt.user, 0o644, sign(t, tt.over, signer))
				}
				want(t, s.do(t, lab.Command(tt.user, append(append([]string{"staprun"}, tt.opts...), "/tmp/s.ko")...)), tt.status, tt.stdout, tt.stderr)
			})
		}
	})
}
