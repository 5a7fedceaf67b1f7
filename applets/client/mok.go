package client

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"stapbox/core/hostpaths"
	"stapbox/core/kmod"
	"stapbox/core/modsig"
	"stapbox/core/mok"
	"stapbox/core/ownfile"
)

// kernelKeys is what a client needs to know where the kernel loads only modules
// that are signed with a key it trusts (server-client 8.5).
type kernelKeys struct {
	required     bool
	enrolled     []*x509.Certificate // machine owner keys
	fingerprints []string            // of those that may be a server's, or "missing"
}

// sysDir is where the kernel tells about itself.
const sysDir = "/sys"

// accepts reports whether a server with these fingerprints can sign for this
// kernel: it has a key that is enrolled, or none is yet and its can be.
func (k kernelKeys) accepts(server []string) bool {
	return !k.required || slices.Contains(k.fingerprints, mok.Missing) ||
		slices.ContainsFunc(server, func(f string) bool { return slices.Contains(k.fingerprints, f) })
}

// requireKernelKeys finds out whether the module must be signed for the kernel.
// Then only a server can make it, unless --sign-module says that this user has
// the key. SYSTEMTAP_SIGN and SYSTEMTAP_NOSIGN, whatever their values, decide
// before the kernel does.
func (c *client) requireKernelKeys() error {
	if c.opts.LastPass < 4 || c.opts.List != 0 || c.opts.ClientOptions {
		return nil
	}
	sys := c.sys
	if sys == "" {
		sys = sysDir
	}
	_, sign := c.inv.LookupEnv("SYSTEMTAP_SIGN")
	_, nosign := c.inv.LookupEnv("SYSTEMTAP_NOSIGN")
	if !sign && !c.opts.SignModule {
		if _, enforced := kmod.SignatureRule(sys); nosign || !enforced {
			return nil
		}
	}
	if c.opts.Verbose >= 2 {
		c.say("This host requires module signing.")
	}
	certs, err := mok.Host{Sys: sys}.Enrolled()
	if err != nil {
		return fmt.Errorf("Failed to get list of machine owner keys (MOK) for module signing: %w", err)
	}
	c.kernel = kernelKeys{required: true, enrolled: certs, fingerprints: mok.Fingerprints(certs)}
	if c.opts.SignModule {
		return nil
	}
	c.reasons = append(c.reasons,
		"The kernel on your system requires modules to be signed for loading.\nThe module created by compiling your script must be signed by a systemtap compile-server.  [man stap-server]")
	if len(c.opts.UseServer) == 0 {
		c.opts.UseServer = []string{""}
		c.reasons = append(c.reasons, "--use-server was automatically selected in order to request compilation by a compile-server.")
	}
	return nil
}

// signModule signs a module that was made here for the kernel (--sign-module):
// with a machine owner key of this user's own store that is enrolled. If there is
// none, what to enrol is said; a key is made for that if there is none at all.
func (c *client) signModule(out outcome) error {
	store := filepath.Join(hostpaths.ServerIdentity(c.data), "moks")
	keys := mok.Keys(store, func(err error) { c.say("%v", err) })
	for _, k := range keys {
		if !slices.ContainsFunc(c.kernel.enrolled, k.Certificate.Equal) {
			continue
		}
		image, err := os.ReadFile(out.module)
		if err != nil {
			return fmt.Errorf("ERROR: reading the module: %w", err)
		}
		if image, err = modsig.Append(image, k.Certificate, k.Signer); err != nil {
			return fmt.Errorf("ERROR: signing the module: %w", err)
		}
		if err := ownfile.WriteNew(out.module, image, 0o600); err != nil {
			return fmt.Errorf("ERROR: writing the module: %w", err)
		}
		c.say("Module signed with MOK, fingerprint %q", k.Fingerprint())
		return nil
	}
	if len(keys) == 0 {
		k, err := mok.Generate(store, c.now())
		if err != nil {
			return fmt.Errorf("ERROR: making a machine owner key (MOK): %w", err)
		}
		keys = append(keys, k)
	}
	return fmt.Errorf("There is no machine owner key (MOK) in common with this system.\nUse the following command to import a MOK into this system, then reboot:\n\n\t# sudo mokutil --import %s", filepath.Join(store, keys[0].Fingerprint(), mok.CertFile))
}

// checkKernelSignature refuses a module that this kernel would refuse. Servers of
// upstream leave the signature out without a word when a script has arguments.
func (c *client) checkKernelSignature(name string, image []byte) error {
	if !c.kernel.required {
		return nil
	}
	_, message, err := modsig.Split(image)
	if errors.Is(err, modsig.ErrUnsigned) {
		return fmt.Errorf("The server returned the module %q without a signature for the kernel.", name)
	}
	if err == nil {
		_, err = modsig.Parse(message)
	}
	for _, cert := range c.kernel.enrolled {
		if err != nil {
			break
		}
		if _, verr := modsig.Verify(image, cert); verr == nil {
			return nil
		}
	}
	if err == nil {
		err = errors.New("no enrolled machine owner key (MOK) made it")
	}
	return fmt.Errorf("The server returned the module %q with a signature that this kernel does not take: %w", name, err)
}

// maxCertificate is the size of the largest certificate that is saved.
const maxCertificate = 16 << 10

// saveSigningKey puts the certificate that the server offers to enrol into the
// working directory. It replaces no other file there, and its name is not the
// server's to choose.
func (c *client) saveSigningKey(der []byte) {
	cert, err := x509.ParseCertificate(der)
	if err != nil || len(der) > maxCertificate {
		c.say("WARNING: what the server sent as %s is not a certificate, it is not saved", mok.CertFile)
		return
	}
	path := filepath.Join(c.inv.Dir, mok.CertFile)
	old, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(old, der):
	case err == nil:
		c.say("WARNING: %s is another certificate already, so that of the server is not saved; move it away and try again", path)
		return
	default:
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			_, err = f.Write(der)
			if cerr := f.Close(); err == nil {
				err = cerr
			}
		}
		if err != nil {
			c.say("WARNING: saving %s: %v", mok.CertFile, err)
			return
		}
	}
	c.say("hint: before you import %s compare its SHA1 fingerprint, %s, with that in the log of the server: whoever has its key can load modules here", mok.CertFile, mok.Fingerprint(cert.Raw))
}
