package kbuild

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel is a kernel that modules can be built for.
type Kernel struct {
	Release  string // uname -r of the kernel
	BuildDir string // its headers as the distribution packs them, absolute
}

// ErrNoHeaders is returned when the build directory of a kernel is not there.
var ErrNoHeaders = errors.New("kernel headers are not installed")

// validRelease reports whether a text may be part of a path as a release.
func validRelease(s string) bool {
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_.+-", c) >= 0) {
			return false
		}
	}
	return s != "" && s[0] != '.' && s[0] != '-'
}

// FindKernel resolves the argument of -r: a release or an absolute build
// directory; "" is the running kernel. Searched for a release are
// /lib/modules/RELEASE/build and /usr/src/linux-headers-RELEASE, and for a
// kernel of another distribution's layout /usr/src/kernels/RELEASE.
func FindKernel(spec string) (Kernel, error) {
	if spec == "" {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return Kernel{}, fmt.Errorf("asking for the kernel release: %w", err)
		}
		spec = unix.ByteSliceToString(u.Release[:])
	}
	if filepath.IsAbs(spec) {
		dir := filepath.Clean(spec)
		release, err := buildRelease(dir)
		if err != nil {
			return Kernel{}, fmt.Errorf("build directory %q: %w", dir, err)
		}
		return Kernel{release, dir}, nil
	}
	if !validRelease(spec) {
		return Kernel{}, fmt.Errorf("kernel release %q is not made of letters, digits and _.+-", spec)
	}
	for _, dir := range []string{
		filepath.Join("/lib/modules", spec, "build"),
		"/usr/src/linux-headers-" + spec,
		"/usr/src/kernels/" + spec,
	} {
		if release, err := buildRelease(dir); err == nil && release == spec {
			return Kernel{spec, dir}, nil
		}
	}
	return Kernel{Release: spec}, fmt.Errorf("kernel release %q: %w", spec, ErrNoHeaders)
}

// buildRelease is the release a build directory is of: what its modules will
// carry. (include/config/kernel.release is the bare version on Debian 12.)
func buildRelease(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "include/generated/utsrelease.h"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, `#define UTS_RELEASE "`); ok {
			if release, _, ok := strings.Cut(v, `"`); ok && validRelease(release) {
				return release, nil
			}
		}
	}
	return "", errors.New("include/generated/utsrelease.h names no release")
}

// identity is what a prepared kernel depends on, as text: the files that change
// whenever the headers do.
func (k Kernel) identity() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", k.Release, k.BuildDir)
	for _, name := range []string{"Makefile", ".config", "Module.symvers", "include/generated/autoconf.h", "include/generated/utsrelease.h"} {
		b.WriteString(fileIdentity(filepath.Join(k.BuildDir, name)))
	}
	return b.String()
}

// fileIdentity tells one version of a file from another without reading it.
func fileIdentity(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return path + " absent\n"
	}
	return fmt.Sprintf("%s %d %d\n", path, st.Size(), st.ModTime().UnixNano())
}

// shadow fills dir with links to everything in the build directory. Debian's
// Makefile there includes another by an absolute path, which leads nowhere when
// the packages were unpacked below another root: then the path is rewritten. What
// it includes names the directory that kbuild calls the source tree: if make does
// not take its path, that directory is shadowed too, as commonDir.
func (k Kernel) shadow(dir string) error {
	makefile, err := os.ReadFile(filepath.Join(k.BuildDir, "Makefile"))
	if err != nil {
		return err
	}
	if err := linkAll(k.BuildDir, dir, "Makefile"); err != nil {
		return err
	}
	makefile = relocateIncludes(makefile, k.BuildDir)
	if common := included(makefile); common != "" && !Plain(common) {
		at := filepath.Join(dir, commonDir)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := linkAll(filepath.Dir(common), at, filepath.Base(common)); err != nil {
			return err
		}
		// Its name must not resolve to the other tree.
		b, err := os.ReadFile(common)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(at, filepath.Base(common)), b, 0o644); err != nil {
			return err
		}
		makefile = []byte(strings.ReplaceAll(string(makefile), "include "+common+"\n", "include "+filepath.Join(at, filepath.Base(common))+"\n"))
	}
	return os.WriteFile(filepath.Join(dir, "Makefile"), makefile, 0o644)
}

// commonDir is the shadow of the source tree in that of the build directory.
const commonDir = ".common"

// linkAll makes links in dir to everything in another directory but one file.
func linkAll(from, dir, but string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == but {
			continue
		}
		if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// included is the file that a Makefile includes by an absolute path, or "".
func included(makefile []byte) string {
	for line := range strings.Lines(string(makefile)) {
		if target, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "include /"); ok {
			return "/" + target
		}
	}
	return ""
}

func relocateIncludes(makefile []byte, buildDir string) []byte {
	var out strings.Builder
	for line := range strings.Lines(string(makefile)) {
		target, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "include /")
		if ok && !fileExists("/"+target) {
			for root := filepath.Dir(buildDir); root != "/"; root = filepath.Dir(root) {
				if moved := filepath.Join(root, target); fileExists(moved) {
					line = "include " + moved + "\n"
					break
				}
			}
		}
		out.WriteString(line)
	}
	return []byte(out.String())
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
