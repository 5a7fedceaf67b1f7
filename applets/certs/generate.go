package certs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/nssdb"
	"stapbox/core/uname"
	"stapbox/core/version"
)

const generateUsage = `Usage: stap-gen-cert [OPTION]... [DIRECTORY [DNSNAME]...]
Make the key and the certificate of a compile server: stap.key and stap.cert in
DIRECTORY (~/.systemtap/ssl/server). What was there is replaced: clients must
trust the new certificate. DNSNAMEs are names the server has besides the host's.

      --key-type=TYPE       rsa (default), ecdsa or ed25519; loaders of upstream
                            check rsa only
      --renew               make the certificate that takes over shortly before the
                            end of the present one; a running server announces it
      --import=DATABASE     take key and certificate from an NSS database that
                            clients trust already
      --password-file=FILE  password of DATABASE
  -h, --help                show this help
  -V, --version             show the version
`

// generator is one run of stap-gen-cert.
type generator struct {
	inv      *invocation.Invocation
	dir      string
	options  identity.Options
	renew    bool
	database string
	password string
}

// Generate runs stap-gen-cert.
func Generate(ctx context.Context, inv *invocation.Invocation) int {
	spec := getopt.Spec{Defs: []getopt.Def{
		{Short: 'P'},
		{Long: "key-type", Arg: getopt.RequiredArg},
		{Long: "renew"},
		{Long: "import", Arg: getopt.RequiredArg},
		{Long: "password-file", Arg: getopt.RequiredArg},
		{Short: 'h', Long: "help"},
		{Short: 'V', Long: "version"},
	}}
	opts, words, err := getopt.Parse(spec, inv.Args)
	if err != nil {
		inv.Errorf("%v", err)
		return 1
	}
	_, _, node := uname.Host()
	g := &generator{inv: inv, options: identity.Options{NodeName: node, Now: time.Now()}}
	for _, o := range opts {
		switch o.Name {
		case "help":
			fmt.Fprint(inv.Stdout, generateUsage)
			return 0
		case "version":
			fmt.Fprintf(inv.Stdout, "stap-gen-cert (stapbox %s)\n", version.Version)
			return 0
		case "P":
			err = errors.New("option -P is not supported: the key is protected by the owner and mode of its file, not by a password")
		case "key-type":
			g.options.KeyType, err = identity.ParseKeyType(o.Value)
		case "renew":
			g.renew = true
		case "import":
			g.database = absolute(inv, o.Value)
		case "password-file":
			g.password = absolute(inv, o.Value)
		}
		if err != nil {
			inv.Errorf("%v", err)
			return 1
		}
	}
	if len(words) > 0 {
		g.dir, words = absolute(inv, words[0]), words[1:]
	} else if d := dataDir(inv); d != "" {
		g.dir = hostpaths.ServerIdentity(d)
	}
	g.options.DNSNames = words
	switch {
	case g.dir == "":
		err = errors.New("neither a directory nor HOME or SYSTEMTAP_DIR says where to")
	case g.database != "" && (g.renew || g.options.KeyType != "" || len(words) > 0):
		err = errors.New("--import takes key and certificate as they are: it goes with no --renew, --key-type or DNSNAME")
	case g.password != "" && g.database == "":
		err = errors.New("--password-file is the password of a database, and goes with --import")
	default:
		for _, name := range words {
			if !isDNSName(name) {
				err = fmt.Errorf("%q is not a DNS name: letters, digits and inner hyphens, in parts of at most 63 with dots between", name)
			}
		}
	}
	if err == nil {
		err = g.run(ctx)
	}
	if err != nil {
		inv.Errorf("%v", err)
		fmt.Fprintln(inv.Stderr, "Unable to generate certificate")
		return 1
	}
	return 0
}

func (g *generator) run(ctx context.Context) error {
	if err := g.forOneself(); err != nil {
		return err
	}
	// A replaced certificate is one that clients trust in vain.
	old, err := identity.Load(g.dir, g.options.Now)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, identity.ErrNotValid) && !errors.Is(err, identity.ErrBroken) {
		return err
	}
	var id *identity.Identity
	switch {
	case g.renew:
		if old == nil {
			return fmt.Errorf("there is no certificate in %q to renew", g.dir)
		}
		next, made, err := identity.Prepare(g.dir, g.options)
		if err != nil {
			return err
		}
		if !made {
			g.inv.Errorf("the next certificate is there already: sha256=%s", identity.Fingerprint(next.Certificate))
			return nil
		}
		takes := old.Certificate.NotAfter.Add(-identity.ChangeBefore)
		g.inv.Errorf("the next certificate is sha256=%s; it takes over at %s", identity.Fingerprint(next.Certificate), takes.UTC().Format(time.DateTime+" UTC"))
		return nil
	case g.database != "":
		key, cert, err := nssdb.Identity(ctx, g.database, g.password)
		if err != nil {
			return err
		}
		if id, err = identity.Adopt(g.dir, key, cert, g.options.Now); err != nil {
			return fmt.Errorf("importing %q: %w", g.database, err)
		}
	default:
		if id, err = identity.Generate(g.dir, g.options); err != nil {
			return err
		}
	}
	// The next one of another key is not its successor.
	if err := os.RemoveAll(identity.NextDir(g.dir)); err != nil {
		return err
	}
	if old != nil && !old.Certificate.Equal(id.Certificate) {
		g.inv.Errorf("the certificate sha256=%s is replaced: clients that trust it must trust sha256=%s instead",
			identity.Fingerprint(old.Certificate), identity.Fingerprint(id.Certificate))
	}
	return nil
}

// forOneself refuses to have root make a key in another user's directory: he
// decides what lies there, and his server could not read root's file.
func (g *generator) forOneself() error {
	var st unix.Stat_t
	at := g.dir
	err := unix.Stat(at, &st)
	for err == unix.ENOENT && at != "/" {
		at = filepath.Dir(at)
		err = unix.Stat(at, &st)
	}
	if err == nil && os.Geteuid() == 0 && st.Uid != 0 {
		return fmt.Errorf("%q belongs to user id %d, who has to make the key of his server himself", at, st.Uid)
	}
	return nil
}

// isDNSName accepts host names (RFC 1123, 2.1).
func isDNSName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for part := range strings.SplitSeq(name, ".") {
		if part == "" || len(part) > 63 || part[0] == '-' || part[len(part)-1] == '-' {
			return false
		}
		for _, c := range []byte(part) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}
