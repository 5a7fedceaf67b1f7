package kbuild

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Plain says whether make, sh and the linker take a path as it is. Make has no
// way to write a file name with a blank, "#", ":", "%" or "$" in it, kbuild hands
// names to sh without quotes, and gcc splits -Wp, at commas. What is learned from
// kbuild is learned in a directory with a plain path; the programs that a recipe
// runs later get their words as they are, without a shell, and take any path.
func Plain(path string) bool {
	for i := range len(path) {
		if c := path[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("/._+-", c) >= 0) {
			return false
		}
	}
	return path != ""
}

// PlainTemp makes a directory with a plain path in one of some directories, in
// $TMPDIR, in /tmp or in /var/tmp.
func PlainTemp(dirs ...string) (string, error) {
	var tried []error
	for _, d := range append(dirs, os.TempDir(), "/tmp", "/var/tmp") {
		if !Plain(d) {
			tried = append(tried, fmt.Errorf("%q has characters that make does not take", d))
			continue
		}
		dir, err := os.MkdirTemp(d, ".preparing-")
		if err == nil {
			return dir, nil
		}
		tried = append(tried, err)
	}
	return "", fmt.Errorf("a directory to build in, whose path has only letters, digits and ._+-: %w", errors.Join(tried...))
}

// copyTree copies files, links and directories to a directory that is made.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		at := filepath.Join(to, name)
		switch {
		case d.IsDir():
			return os.MkdirAll(at, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, at)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(at, b, st.Mode().Perm())
	})
}
