package certs

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
	"stapbox/core/invocation"
	"stapbox/core/nssdb"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
	"stapbox/core/version"
)

const authorizeUsage = `Usage: %[1]s [OPTION]... CERTFILE %[2]s
   or: %[1]s [OPTION]... --import=DATABASE %[2]s
Believe the certificate in CERTFILE (DER or PEM), stap.cert of a compile server, or
those of an NSS database: put them into the trust store DIRECTORY%[3]s.

  -h, --help                show this help
  -V, --version             show the version
`

// authorizer is one run of a tool that adds to a trust store.
type authorizer struct {
	inv   *invocation.Invocation
	uid   int
	dir   string // the store
	rules trust.Rules
}

// Authorize runs stap-authorize-cert and, under its older name, stap-add-server-cert,
// stap-authorize-server-cert and stap-authorize-signing-cert. What is believed
// already is no error. Unlike upstream's up to 5.5, success is status 0.
func Authorize(ctx context.Context, inv *invocation.Invocation) int {
	a := &authorizer{inv: inv, uid: os.Geteuid()}
	opts, words, err := getopt.Parse(getopt.Spec{Defs: []getopt.Def{
		{Long: "import", Arg: getopt.RequiredArg},
		{Short: 'h', Long: "help"},
		{Short: 'V', Long: "version"},
	}}, inv.Args)
	if err != nil {
		inv.Errorf("%v", err)
		return 1
	}
	store, where := a.defaultStore()
	database := ""
	for _, o := range opts {
		switch o.Name {
		case "help":
			operand := "DIRECTORY"
			if store != "" {
				operand = "[DIRECTORY]"
			}
			fmt.Fprintf(inv.Stdout, authorizeUsage, inv.Name, operand, where)
			return 0
		case "version":
			fmt.Fprintf(inv.Stdout, "%s (stapbox %s)\n", inv.Name, version.Version)
			return 0
		case "import":
			database = absolute(inv, o.Value)
		}
	}
	file := ""
	if database == "" {
		if len(words) == 0 {
			fmt.Fprintln(inv.Stderr, "Certificate file must be specified")
			return 1
		}
		file, words = words[0], words[1:]
	}
	switch {
	case len(words) > 1:
		inv.Errorf("unexpected word %q", words[1])
		return 1
	case len(words) == 1:
		store = absolute(inv, words[0])
	case store == "":
		fmt.Fprintln(inv.Stderr, "Certificate database directory must be specified")
		return 1
	}
	a.dir, a.rules = store, a.rulesOf(store)
	if database != "" {
		file = database
	}
	certs, err := a.certificates(ctx, file, database)
	if err == nil {
		err = a.add(certs, file)
	}
	if err != nil {
		fmt.Fprintf(inv.Stderr, "%v\nUnable to authorize certificate\n", err)
		return 1
	}
	return 0
}

// defaultStore is the store a tool adds to when none is named, "" if one must
// be, and how its usage says so.
func (a *authorizer) defaultStore() (dir, where string) {
	switch a.inv.Name {
	case "stap-authorize-signing-cert":
		return hostpaths.SignerStore(), "\n(" + hostpaths.SignerStore() + ": who signs modules for this host)"
	case "stap-authorize-server-cert":
		if a.uid == 0 {
			return hostpaths.HostPeerStore(), "\n(" + hostpaths.HostPeerStore() + ": who compiles for the users of this host)"
		}
		if d := dataDir(a.inv); d != "" {
			return hostpaths.UserPeerStore(d), "\n(" + hostpaths.UserPeerStore(d) + ": who compiles for you)"
		}
	}
	return "", ""
}

// rulesOf is who may own a store, from where on.
func (a *authorizer) rulesOf(dir string) trust.Rules {
	if dir == hostpaths.SignerStore() || dir == hostpaths.HostPeerStore() {
		return trust.HostRules()
	}
	if d := dataDir(a.inv); d != "" {
		if rel, err := filepath.Rel(d, dir); err == nil && filepath.IsLocal(rel) {
			return trust.UserRules(a.uid, d)
		}
	}
	// Somewhere else: what is there already may be as it is, up to the store's
	// parent.
	base := filepath.Dir(dir)
	for base != "/" {
		if _, err := os.Stat(base); err == nil {
			break
		}
		base = filepath.Dir(base)
	}
	return trust.Rules{Owners: []int{a.uid, 0}, Base: base}
}

// maxCertFile is the size of the largest certificate file, in bytes.
const maxCertFile = 64 << 10

// certificates reads the file, or the database.
func (a *authorizer) certificates(ctx context.Context, file, database string) ([]*x509.Certificate, error) {
	if database != "" {
		return nssdb.Certificates(ctx, database)
	}
	f, err := os.Open(absolute(a.inv, file))
	if err != nil {
		var no syscall.Errno
		if errors.As(err, &no) {
			err = no
		}
		return nil, fmt.Errorf("Could not open certificate file %s for reading\n%w", file, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCertFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading certificate file %q: %w", file, err)
	}
	if len(data) > maxCertFile {
		return nil, fmt.Errorf("certificate file %q has more than %d bytes", file, maxCertFile)
	}
	list, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("reading certificate file %q: %w", file, err)
	}
	return list, nil
}

// parseCertificates reads one certificate as DER, or any number as PEM.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil {
		cert, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, fmt.Errorf("neither PEM nor DER: %w", err)
		}
		return []*x509.Certificate{cert}, nil
	}
	var list []*x509.Certificate
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it has a block %q, and a certificate is asked for", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, cert)
	}
	return list, nil
}

// add puts certificates into the store. Those of a database whose time is over
// are left out; of a file that is an error.
func (a *authorizer) add(certs []*x509.Certificate, from string) error {
	by := strconv.Itoa(a.uid)
	if u, err := user.LookupId(by); err == nil {
		by = u.Username
	}
	added := 0
	var late error
	for _, c := range certs {
		host := strings.Join(c.DNSNames[:min(1, len(c.DNSNames))], "")
		_, err := edit.Add(a.dir, a.rules, c, edit.Note{Host: host, When: time.Now(), By: by, Scope: a.scope()})
		if errors.Is(err, edit.ErrExpired) {
			late = err
			continue
		}
		if err != nil {
			return err
		}
		added++
	}
	if added == 0 {
		return late
	}
	if late != nil {
		a.inv.Errorf("WARNING: %v", late)
	}
	fmt.Fprintf(a.inv.Stdout, "Certificate %s added to database %s\n", from, a.dir)
	return nil
}

// scope is what the certificate is believed for, for people.
func (a *authorizer) scope() string {
	switch a.dir {
	case hostpaths.SignerStore():
		return "module signer, all users"
	case hostpaths.HostPeerStore():
		return "peer, all users"
	}
	return "peer"
}
