package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"stapbox/core/ownfile"
)

// Names of the files of a client that shows a certificate to servers that ask
// for one (hostpaths.ClientIdentity): the certificate, and those of the
// authorities between it and the root if there are any, PEM; and its key, PEM,
// which nobody else may read.
const (
	ClientCertFile = "client.crt"
	ClientKeyFile  = "client.key"
)

// LoadClient reads what a client shows, nil if it has nothing.
func LoadClient(dir string) (*tls.Certificate, error) {
	chain, err := ownfile.Read(filepath.Join(dir, ClientCertFile), ownfile.Certificate)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	key, err := ownfile.Read(filepath.Join(dir, ClientKeyFile), ownfile.Key)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(key); block != nil && x509.IsEncryptedPEMBlock(block) { //nolint:staticcheck // to name the reason
		return nil, fmt.Errorf("reading %q: the key is encrypted, and nobody is asked for a password", filepath.Join(dir, ClientKeyFile))
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("reading the client certificate in %q: %w", dir, err)
	}
	return &cert, nil
}
