package lab

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"
)

// FetchPackages unpacks packages of Debian 12 into a directory of the cache,
// without running anything of them, unless the same are there.
func (l *Lab) FetchPackages(name string, packages []string) (string, error) {
	root := filepath.Join(l.Dir, fmt.Sprintf("%s-%.4x", name, sha256.Sum256([]byte(strings.Join(packages, "\n")))))
	if exists(root) {
		return root, nil
	}
	return root, l.unpackThese(root, packages...)
}
