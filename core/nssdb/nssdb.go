// Package nssdb takes certificates and keys out of the NSS databases of an
// existing SystemTap installation (server-client 2.4), so that a host changes
// over without new trust:
//
//	DIR/cert9.db   certificates and what they are trusted for (SQLite)
//	DIR/key4.db    private keys, of a server
//
// The databases are read by the programs that are installed beside them,
// certutil(1) and pk12util(1), and never changed: decision T4. What pk12util
// writes (PKCS #12 in BER, of indefinite lengths) openssl(1) opens.
package nssdb

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"stapbox/core/ownfile"
)

// Nickname is what SystemTap calls the certificate of a server, in every one of
// its databases. Several certificates may have it.
const Nickname = "stap-server"

// CertFile is the file by which a directory is known to be a database.
const CertFile = "cert9.db"

// ErrNotDatabase is about a directory that holds no database of a known form.
var ErrNotDatabase = errors.New("no NSS database")

// Has tells whether there is a database in dir.
func Has(dir string) bool {
	st, err := os.Stat(filepath.Join(dir, CertFile))
	return err == nil && st.Mode().IsRegular()
}

// Certificates are those of servers that the database in dir trusts.
func Certificates(ctx context.Context, dir string) ([]*x509.Certificate, error) {
	out, err := run(ctx, dir, "certutil", "-L", "-d", "sql:"+dir, "-n", Nickname, "-a")
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for {
		var block *pem.Block
		if block, out = pem.Decode(out); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading a certificate of %q: %w", dir, err)
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("the database %q has no certificate with the name %q", dir, Nickname)
	}
	return list, nil
}

// Identity is the key and the certificate of the server whose database is in
// dir. passwordFile holds the password of the database, "" is for none.
func Identity(ctx context.Context, dir, passwordFile string) (crypto.Signer, *x509.Certificate, error) {
	// Between pk12util and us the key lies in a file that only we can read,
	// under a password that nobody knows.
	temp, err := os.MkdirTemp("", "stap-import.")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(temp)
	secret := rand.Text()
	word, bundle := filepath.Join(temp, "password"), filepath.Join(temp, "key.p12")
	if err := os.WriteFile(word, []byte(secret+"\n"), 0o600); err != nil {
		return nil, nil, err
	}
	open := []string{"-K", ""}
	if passwordFile != "" {
		open = []string{"-k", passwordFile}
	}
	if _, err := run(ctx, dir, "pk12util", append([]string{"-o", bundle, "-n", Nickname, "-d", "sql:" + dir, "-w", word}, open...)...); err != nil {
		return nil, nil, err
	}
	text, err := run(ctx, dir, "openssl", "pkcs12", "-in", bundle, "-passin", "file:"+word, "-nocerts", "-nodes")
	if err != nil {
		return nil, nil, err
	}
	key, err := ownfile.ParseKey(text)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the key of %q: %w", dir, err)
	}
	list, err := Certificates(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range list {
		if k, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); ok && k.Equal(c.PublicKey) {
			return key, c, nil
		}
	}
	return nil, nil, fmt.Errorf("the database %q has no certificate of its key", dir)
}

// packages are where the programs are, for those who lack them.
func packages(program string) string {
	if program == "openssl" {
		return "package openssl"
	}
	return "Debian: package libnss3-tools, Fedora: nss-tools"
}

// run runs a program for the database in dir.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	if !Has(dir) {
		return nil, fmt.Errorf("%w in %q: it has no file %s", ErrNotDatabase, dir, CertFile)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("reading NSS databases takes the program %s (%s): %w", name, packages(name), err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(errs.String() + out.String())
		return nil, fmt.Errorf("reading the database %q: %s: %w: %.300q", dir, name, err, said)
	}
	return out.Bytes(), nil
}
