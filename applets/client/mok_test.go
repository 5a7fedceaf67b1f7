package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stapbox/core/modsig"
	"stapbox/core/mok"
	"stapbox/core/privilege"
	"stapbox/core/wire"
)

func machineKey(t *testing.T) *mok.Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"Systemtap"}},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &mok.Key{Certificate: cert, Signer: key}
}

// enforcing makes a /sys of a kernel that loads signed modules only, with these
// keys enrolled.
func enforcing(t *testing.T, keys ...*mok.Key) string {
	t.Helper()
	sys := t.TempDir()
	put := func(path, text string) {
		path = filepath.Join(sys, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("module/module/parameters/sig_enforce", "Y\n")
	list := "\x06\x00\x00\x00"
	for _, k := range keys {
		list += string(mok.SignatureList(k.Certificate.Raw))
	}
	if len(keys) > 0 {
		put("firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23", list)
	}
	return sys
}

// signedBy answers with a module that has a signature for the kernel.
func signedBy(t *testing.T, k *mok.Key) func(*wire.Request) *wire.Response {
	return func(r *wire.Request) *wire.Response {
		a := good("stap_1")(r)
		if k != nil {
			image, err := modsig.Append([]byte("module"), k.Certificate, k.Signer)
			if err != nil {
				t.Error(err)
			}
			a.Files[0].Data = image
		}
		return a
	}
}

// TestKernelKeys: on a kernel that loads signed modules only, root's script goes
// to a server with the fingerprints of what is enrolled, and only a module
// signed with such a key is run, under its own name.
func TestKernelKeys(t *testing.T) {
	key, other := machineKey(t), machineKey(t)
	for _, tt := range []struct {
		name   string
		env    string
		sys    string
		answer *mok.Key // that signed what the server returns
		args   []string
		code   int
		mok    []string // that the request has
		out    string
		err    string
	}{
		{"right key", "", enforcing(t, other, key), key, nil, 0, []string{other.Fingerprint(), key.Fingerprint()}, "args: MODULE\n", ""},
		{"no signature", "", enforcing(t, key), nil, nil, 1, []string{key.Fingerprint()}, "", `The server returned the module "stap_1" without a signature for the kernel.`},
		{"another key", "", enforcing(t, key), other, nil, 1, []string{key.Fingerprint()}, "", "no enrolled machine owner key (MOK) made it"},
		{"nothing enrolled", "", enforcing(t), other, nil, 1, []string{"missing"}, "", "no enrolled machine owner key (MOK) made it"},
		{"by the environment", "SYSTEMTAP_SIGN=", t.TempDir(), nil, nil, 1, []string{"missing"}, "", "without a signature for the kernel"},
		{"not by the environment", "SYSTEMTAP_NOSIGN=1", enforcing(t, key), nil, []string{"--use-server"}, 0, nil, "args: -R MODULE\n", ""},
		{"not for -p2", "", enforcing(t, key), nil, []string{"-p2", "--use-server"}, 0, nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newServer(t, signedBy(t, tt.answer))
			f.moks = []string{"99:e7", key.Fingerprint()}
			d := newDesk(t, privilege.GroupDev, f)
			d.user = privilege.User{UID: 0}
			d.trust(t, f, d.peerStore())
			d.sys = tt.sys
			if tt.env != "" {
				d.inv.Environ = append(d.inv.Environ, tt.env)
			}
			code := d.stap(append([]string{"-e", hello}, tt.args...)...)
			if code != tt.code {
				t.Errorf("status %d, want %d\n%s", code, tt.code, d.err.String())
			}
			if len(f.requests) != 1 {
				t.Fatalf("%d requests\n%s", len(f.requests), d.err.String())
			}
			if got := f.requests[0].MOK; !slices.Equal(got, tt.mok) {
				t.Errorf("the request has %q, want %q", got, tt.mok)
			}
			contains(t, "stdout", d.out.String(), tt.out)
			contains(t, "stderr", d.err.String(), tt.err)
			if tt.code != 0 {
				contains(t, "stderr", d.err.String(), "The kernel on your system requires modules to be signed for loading.\nThe module created by")
				if strings.Contains(d.out.String(), "args:") {
					t.Error("the module was run")
				}
			}
		})
	}
}

// TestSignModule: with --sign-module no server is asked; the module gets a
// signature by a key of this user that is enrolled, or there is no module.
func TestSignModule(t *testing.T) {
	stranger := machineKey(t)
	d := newDesk(t, privilege.GroupDev)
	d.user = privilege.User{UID: 0}
	d.translator = &fakeBackend{}
	store := filepath.Join(d.peerStore(), "../server/moks")
	// The first time there is no key: one is made, and is to be enrolled.
	d.sys = enforcing(t, stranger)
	if code := d.stap("--sign-module", "-e", hello); code != 1 || strings.Contains(d.out.String(), "args:") {
		t.Errorf("status %d\n%s", code, d.out.String())
	}
	keys := mok.Keys(store, func(err error) { t.Error(err) })
	if len(keys) != 1 {
		t.Fatalf("%d keys were made\n%s", len(keys), d.err.String())
	}
	key := keys[0]
	contains(t, "stderr", d.err.String(), "There is no machine owner key (MOK) in common with this system.\nUse the following command to import a MOK into this system, then reboot:\n\n\t# sudo mokutil --import "+filepath.Join(filepath.Clean(store), key.Fingerprint(), mok.CertFile)+"\n")
	// The next time the same is named.
	if code := d.stap("--sign-module", "-e", hello); code != 1 || !strings.Contains(d.err.String(), key.Fingerprint()) {
		t.Errorf("status %d\n%s", code, d.err.String())
	}
	// It is enrolled: the module runs under the name that was signed.
	d.sys = enforcing(t, stranger, key)
	if code := d.stap("--sign-module", "-e", hello); code != 0 {
		t.Errorf("status %d\n%s", code, d.err.String())
	}
	contains(t, "stdout", d.out.String(), "args: MODULE\n")
	contains(t, "stderr", d.err.String(), "Module signed with MOK, fingerprint \""+key.Fingerprint()+"\"\n")
	// With -p4 it is saved so.
	if code := d.stap("--sign-module", "-p4", "-e", hello); code != 0 {
		t.Errorf("status %d\n%s", code, d.err.String())
	}
	image, err := os.ReadFile(filepath.Join(d.dir, "local.ko"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := modsig.Verify(image, key.Certificate); err != nil || !strings.HasPrefix(string(image), "module") {
		t.Errorf("the signature of %.20q: %v", image, err)
	}
	// A script that is not compiled to the end needs no key.
	d.sys = t.TempDir()
	if code := d.stap("--sign-module", "-p2", "-e", hello); code != 0 {
		t.Errorf("status %d\n%s", code, d.err.String())
	}
}

// TestKernelKeysInCommon: a server that has none of the enrolled keys is not asked.
func TestKernelKeysInCommon(t *testing.T) {
	key := machineKey(t)
	f := newServer(t, signedBy(t, key))
	f.moks = []string{"99:e7"}
	d := newDesk(t, privilege.GroupDev, f)
	d.user = privilege.User{UID: 0}
	d.trust(t, f, d.peerStore())
	d.sys = enforcing(t, key)
	if code := d.stap("-vvvv", "-e", hello); code != 1 || len(f.requests) != 0 {
		t.Errorf("status %d, %d requests", code, len(f.requests))
	}
	contains(t, "stderr", d.err.String(), "Rejected server (common mok): host=no-such-host.local ",
		"No servers matched the selection criteria of online,trusted,compatible.\nConsider removing the local MOK to associate with a new server\n# sudo mokutil --list-enrolled\n# sudo mokutil --export / --delete  OR  --reset\n")
}

// TestKernelKeysUnreadable: a list of the firmware that cannot be read is no
// empty one.
func TestKernelKeysUnreadable(t *testing.T) {
	d := newDesk(t, privilege.GroupDev)
	d.sys = enforcing(t, machineKey(t))
	list := filepath.Join(d.sys, "firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23")
	if err := os.WriteFile(list, []byte("abcdefg"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := d.stap("-e", hello); code != 1 {
		t.Errorf("status %d", code)
	}
	contains(t, "stderr", d.err.String(), "Failed to get list of machine owner keys (MOK) for module signing: reading MokListRT: ")
}

// TestSigningKey: what a server offers to enrol is saved under the one name, if
// it is a certificate, and replaces nothing.
func TestSigningKey(t *testing.T) {
	key, other := machineKey(t), machineKey(t)
	for _, tt := range []struct {
		name        string
		there, sent []byte
		left        []byte
		want        string
	}{
		{"saved", nil, key.Certificate.Raw, key.Certificate.Raw, "compare its SHA1 fingerprint, " + key.Fingerprint()},
		{"there already", key.Certificate.Raw, key.Certificate.Raw, key.Certificate.Raw, "compare its SHA1 fingerprint, " + key.Fingerprint()},
		{"another is there", other.Certificate.Raw, key.Certificate.Raw, other.Certificate.Raw, "is another certificate already"},
		{"no certificate", nil, []byte("#!/bin/sh"), nil, "is not a certificate, it is not saved"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newServer(t, func(*wire.Request) *wire.Response {
				return &wire.Response{Version: "5.6", RC: 1, Stderr: []byte("Server: Use the following command\n"), SigningKey: tt.sent}
			})
			d := newDesk(t, privilege.GroupDev, f)
			d.trust(t, f, d.peerStore())
			d.sys = enforcing(t)
			path := filepath.Join(d.dir, mok.CertFile)
			if tt.there != nil {
				if err := os.WriteFile(path, tt.there, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if code := d.stap("-e", hello); code != 1 {
				t.Errorf("status %d", code)
			}
			contains(t, "stderr", d.err.String(), "Server: Use the following command\n", tt.want)
			if got, err := os.ReadFile(path); (err == nil) != (tt.left != nil) || !slices.Equal(got, tt.left) {
				t.Errorf("left is a file of %d bytes, %v, want %d", len(got), err, len(tt.left))
			}
		})
	}
}
