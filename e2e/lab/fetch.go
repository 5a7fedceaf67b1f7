// Package lab sets the stage for end-to-end tests: it fetches kernels and
// tools, builds initramfs images, boots them in QEMU and runs compile servers
// for them in a network namespace.
package lab

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Lab is the place where fetched and built things are kept between runs.
type Lab struct {
	Dir     string    // the cache directory
	Log     io.Writer // progress for people
	Sources string    // a sources.list(5) in place of the machine's
}

// Open finds the cache: $STAPBOX_LAB, else /var/cache/stapbox for root, else the
// user's cache directory.
func Open(log io.Writer) (*Lab, error) {
	dir := os.Getenv("STAPBOX_LAB")
	switch {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/var/cache/stapbox"
	default:
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(base, "stapbox")
	}
	return &Lab{Dir: dir, Log: log}, os.MkdirAll(dir, 0o755)
}

func (l *Lab) say(format string, args ...any) { fmt.Fprintf(l.Log, "lab: "+format+"\n", args...) }

// Kernel is an unpacked Debian kernel with its headers.
type Kernel struct {
	Version string // "6.1": the name tests use
	Release string // uname -r
	Image   string // vmlinuz
	Headers string // build directory
	Modules string // /lib/modules/RELEASE of the package
}

// Packages of Debian 12 for each kernel of the matrix.
var kernelPackages = map[string][2]string{
	"6.1":  {"linux-image-cloud-amd64", "linux-headers-cloud-amd64"},
	"6.12": {"linux-image-6.12-cloud-amd64", "linux-headers-6.12-cloud-amd64"},
}

// Versions of the matrix, oldest first. STAPBOX_KERNELS may name one of them, for
// a quick look.
func Versions() []string {
	versions := []string{"6.1", "6.12"}
	if v := os.Getenv("STAPBOX_KERNELS"); slices.Contains(versions, v) {
		return []string{v}
	}
	return versions
}

// tools that tests and demo need, programs or files, and the packages that have
// them.
var tools = []struct{ name, pkg string }{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"gcc-12", "gcc-12"},
	{"x86_64-linux-gnu-gcc-12", "gcc-12"},
	{"make", "make"},
	{"ld", "binutils"},
	{"ip", "iproute2"},
	{"strace", "strace"},
	{"certutil", "libnss3-tools"},
	{"openssl", "openssl"},
	{"setpriv", "util-linux"},
	{"/usr/lib/x86_64-linux-gnu/libelf.so.1", "libelf1"}, // objtool is linked with it
}

// EnsureTools installs missing programs with apt-get and says which.
func (l *Lab) EnsureTools() error {
	var missing []string
	for _, t := range tools {
		_, err := exec.LookPath(t.name)
		if filepath.IsAbs(t.name) {
			_, err = os.Stat(t.name)
		}
		if err != nil && !slices.Contains(missing, t.pkg) {
			missing = append(missing, t.pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return l.install(missing...)
}

// wanted are the dependencies of kernel packages that matter for building
// modules; gcc itself is installed by EnsureTools.
var wanted = regexp.MustCompile(`^linux-(image|headers|kbuild|compiler)-`)

// FetchKernel unpacks a kernel of the matrix, its headers and what they need.
func (l *Lab) FetchKernel(version string) (*Kernel, error) {
	names, ok := kernelPackages[version]
	if !ok {
		return nil, fmt.Errorf("kernel %q is not in the matrix %v", version, Versions())
	}
	root := filepath.Join(l.Dir, "kernels", version)
	if k, err := FindKernel(version, root); err == nil {
		return k, nil
	}
	err := l.unpack(root, "kernel "+version+" with headers", func() ([]string, error) { return l.closure(names[:], wanted) })
	if err != nil {
		return nil, err
	}
	return FindKernel(version, root)
}

// FetchBusybox gives the path of a static busybox.
func (l *Lab) FetchBusybox() (string, error) {
	root := filepath.Join(l.Dir, "busybox")
	path := filepath.Join(root, "bin/busybox")
	if exists(path) {
		return path, nil
	}
	return path, l.unpackThese(root, "busybox-static")
}

// unpackThese unpacks packages by their names.
func (l *Lab) unpackThese(root string, packages ...string) error {
	return l.unpack(root, strings.Join(packages, " "), func() ([]string, error) { return packages, nil })
}

// FindKernel looks at an unpacked tree.
func FindKernel(version, root string) (*Kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%q holds %d kernel images, not 1", root, len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	k := &Kernel{
		Version: version, Release: release, Image: images[0],
		Headers: filepath.Join(root, "usr/src/linux-headers-"+release),
	}
	for _, lib := range []string{"lib", "usr/lib"} {
		if dir := filepath.Join(root, lib, "modules", release); exists(filepath.Join(dir, "kernel")) {
			k.Modules = dir
		}
	}
	if k.Modules == "" || !exists(filepath.Join(k.Headers, "Makefile")) {
		return nil, fmt.Errorf("%q lacks modules or headers of kernel %s", root, release)
	}
	return k, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// run runs a program and shows what it said only when it fails.
func (l *Lab) run(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	return shown(cmd)
}
