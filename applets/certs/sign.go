package certs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/kmod"
	"stapbox/core/modsig"
	"stapbox/core/mok"
	"stapbox/core/signing"
	"stapbox/core/uname"
	"stapbox/core/version"
)

const signUsage = `Usage: stap-sign-module [OPTION]... MODULE [DIRECTORY]
Sign a module as a compile server does: write MODULE.sgn, which staprun checks.
DIRECTORY holds the key and certificate of the server (~/.systemtap/ssl/server);
they are made if there are none.

      --mok[=FINGERPRINT]   also sign the module for kernels that load signed ones
                            only, with a machine owner key of DIRECTORY/moks
      --mok-cert=FILE       certificate (DER or PEM) and
      --mok-key=FILE        private key (PEM) to do that with instead
      --only-mok            do only that
  -h, --help                show this help
  -V, --version             show the version
`

// signer is one run.
type signer struct {
	inv       *invocation.Invocation
	node      string
	now       time.Time
	mok       bool
	name      string // of the machine owner key, "" for the only one
	cert, key string
	only      bool
}

func signSpec() getopt.Spec {
	return getopt.Spec{Defs: []getopt.Def{
		{Long: "mok", Arg: getopt.OptionalArg},
		{Long: "mok-cert", Arg: getopt.RequiredArg},
		{Long: "mok-key", Arg: getopt.RequiredArg},
		{Long: "only-mok"},
		{Short: 'h', Long: "help"},
		{Short: 'V', Long: "version"},
	}}
}

// Sign runs stap-sign-module. Unlike upstream's it fails when nothing was signed.
func Sign(_ context.Context, inv *invocation.Invocation) int {
	_, _, node := uname.Host()
	s := &signer{inv: inv, node: node, now: time.Now()}
	opts, words, err := getopt.Parse(signSpec(), inv.Args)
	if err != nil {
		inv.Errorf("%v", err)
		return 1
	}
	for _, o := range opts {
		switch o.Name {
		case "help":
			fmt.Fprint(inv.Stdout, signUsage)
			return 0
		case "version":
			fmt.Fprintf(inv.Stdout, "stap-sign-module (stapbox %s)\n", version.Version)
			return 0
		case "mok":
			s.mok, s.name = true, o.Value
		case "mok-cert":
			s.mok, s.cert = true, o.Value
		case "mok-key":
			s.mok, s.key = true, o.Value
		case "only-mok":
			s.mok, s.only = true, true
		}
	}
	switch {
	case len(words) == 0:
		err = errors.New("Module name was not specified.")
	case len(words) > 2:
		err = fmt.Errorf("unexpected word %q", words[2])
	case (s.cert == "") != (s.key == ""):
		err = errors.New("--mok-cert and --mok-key go together")
	case s.cert != "" && s.name != "":
		err = errors.New("--mok=FINGERPRINT and --mok-cert exclude each other")
	default:
		dir := hostpaths.ServerIdentity(dataDir(inv))
		if len(words) == 2 {
			dir = absolute(inv, words[1])
		}
		err = s.sign(absolute(inv, words[0]), dir)
	}
	if err != nil {
		inv.Errorf("%v", err)
		return 1
	}
	return 0
}

// sign signs the module for the kernel, then what has become of it for staprun.
func (s *signer) sign(file, dir string) error {
	path, module, err := readModule(file)
	if err != nil {
		return err
	}
	// A level that nobody stated is nothing to vouch for (decision L1).
	switch _, present, err := kmod.RequiredLevel(module); {
	case err != nil:
		return fmt.Errorf("reading %q: %w", path, err)
	case !present:
		return fmt.Errorf("module %q is not signed: it has no section .stap_privilege, so it does not say for which users it is", path)
	}
	if s.mok {
		key, err := s.machineKey(dir)
		if err != nil {
			return err
		}
		if module, err = modsig.Append(module, key.Certificate, key.Signer); err != nil {
			return fmt.Errorf("signing %q: %w", path, err)
		}
		fmt.Fprintf(s.inv.Stderr, "Module signed with MOK, fingerprint %q\n", key.Fingerprint())
	}
	var sig []byte
	if !s.only {
		id, err := identity.Ensure(dir, identity.Options{NodeName: s.node, Now: s.now}, func(string, ...any) {})
		if err != nil {
			return fmt.Errorf("reading key and certificate: %w", err)
		}
		if sig, err = signing.Sign(module, id.Key); err != nil {
			return fmt.Errorf("signing %q: %w", path, err)
		}
	}
	if s.mok {
		// One from before would be over other bytes.
		if err := os.Remove(path + signing.Extension); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := replace(path, module); err != nil {
			return err
		}
	}
	if s.only {
		return nil
	}
	return replace(path+signing.Extension, sig)
}

// machineKey finds the key to sign with for the kernel.
func (s *signer) machineKey(dir string) (*mok.Key, error) {
	if s.cert != "" {
		return mok.LoadFiles(absolute(s.inv, s.cert), absolute(s.inv, s.key))
	}
	store := filepath.Join(dir, "moks")
	keys := mok.Keys(store, func(err error) { s.inv.Errorf("%v", err) })
	if s.name == "" && len(keys) == 1 {
		return keys[0], nil
	}
	for _, k := range keys {
		if k.Is(s.name) {
			return k, nil
		}
	}
	switch {
	case len(keys) == 0:
		return nil, fmt.Errorf("there is no machine owner key in %q; stap-serverd --make-mok makes one", store)
	case s.name == "":
		return nil, fmt.Errorf("%q has %d machine owner keys: --mok=FINGERPRINT chooses one", store, len(keys))
	}
	return nil, fmt.Errorf("no machine owner key in %q has the fingerprint %q", store, s.name)
}

// readModule reads a module; the signature lies beside the real file.
func readModule(path string) (canonical string, module []byte, err error) {
	f, dir, err := kmod.Open(path, "/")
	if dir != nil {
		dir.Close()
	}
	if err != nil {
		return "", nil, fmt.Errorf("Could not open module file %s: %w", path, err)
	}
	defer f.Close()
	module, err = f.Read(kmod.MaxImage)
	return f.Path, module, err
}

// replace writes a file by rename, with the mode of what it replaces or 0644.
func replace(path string, data []byte) error {
	mode := os.FileMode(0o644)
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".stap-sign-*")
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = unix.Fchmod(int(f.Fd()), uint32(mode))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("writing %q: %w", path, err)
	}
	return nil
}
