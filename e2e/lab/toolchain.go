package lab

import (
	"os"
	"path/filepath"
	"strings"
)

// FetchPackages unpacks packages of Debian 12 into a directory of the cache,
// without running anything of them, unless the same are there.
func (l *Lab) FetchPackages(name string, packages []string) (string, error) {
	root := filepath.Join(l.Dir, name)
	list := filepath.Join(l.Dir, name+".packages")
	want := strings.Join(packages, "\n") + "\n"
	if b, err := os.ReadFile(list); err == nil && string(b) == want && exists(root) {
		return root, nil
	}
	if err := l.unpackThese(root, packages...); err != nil {
		return "", err
	}
	return root, os.WriteFile(list, []byte(want), 0o644)
}
