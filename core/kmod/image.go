// Package kmod reads, seals, inserts and removes kernel modules for the
// privileged loader.
//
// The file is opened once, read once into private memory, and everything that
// is decided is decided on that memory: facts from the ELF sections, the
// signature, the new name. The same bytes then go into a sealed memfd and from
// there into the kernel. Nothing the caller can still write to is looked at
// twice (CVE-2009-0784, CVE-2011-2503).
package kmod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MaxImage bounds the size of a module file. Modules of either translator are
// well below one megabyte.
const MaxImage = 64 << 20

// MaxSignature bounds the size of a signature file: the largest known kind,
// ML-DSA-87, has 4627 bytes.
const MaxSignature = 16 << 10

// ErrNotRegular is returned for directories, FIFOs, devices and sockets.
var ErrNotRegular = errors.New("not a regular file")

// File is an open module file and what its directory said about it.
type File struct {
	Path string      // canonical: absolute, no symbolic links
	Stat unix.Stat_t // of the open file
	file *os.File
}

// Open opens a module. The path is made canonical first, as signatures lie
// beside the real file; the last step never follows a link and never blocks.
// If the file lies directly in the directory beneath, it is opened relative to
// that directory's descriptor, which is then returned too, to be judged by
// privilege.Blessed.
func Open(path, beneath string) (f *File, dir *os.File, err error) {
	canonical, err := Canonical(path)
	if err != nil {
		var inner *os.PathError
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return nil, nil, &CanonicalError{path, err}
	}
	if real, rerr := Canonical(beneath); rerr == nil && filepath.Dir(canonical) == real {
		dfd, err := unix.Open(real, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, nil, &os.PathError{Op: "open", Path: real, Err: err}
		}
		dir = os.NewFile(uintptr(dfd), real)
		f, err = openAt(dfd, filepath.Base(canonical), canonical)
		if err != nil {
			dir.Close()
			return nil, nil, err
		}
		return f, dir, nil
	}
	f, err = openAt(unix.AT_FDCWD, canonical, canonical)
	return f, nil, err
}

// CanonicalError says why a path has no canonical form.
type CanonicalError struct {
	Path string
	Err  error
}

func (e *CanonicalError) Error() string { return fmt.Sprintf("canonicalizing %q: %v", e.Path, e.Err) }

// Unwrap gives the reason.
func (e *CanonicalError) Unwrap() error { return e.Err }

// Canonical is realpath(3).
func Canonical(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// openAt opens a regular file. For a directory descriptor the name may not lead
// out of it (openat2(2), Linux 5.6).
func openAt(dirfd int, name, shown string) (*File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if dirfd != unix.AT_FDCWD {
		how.Resolve |= unix.RESOLVE_BENEATH
	}
	fd, err := unix.Openat2(dirfd, name, &how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: shown, Err: err}
	}
	f := &File{Path: shown, file: os.NewFile(uintptr(fd), shown)}
	if err := unix.Fstat(fd, &f.Stat); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: shown, Err: err}
	}
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, &os.PathError{Op: "open", Path: shown, Err: ErrNotRegular}
	}
	return f, nil
}

// Read reads the whole file into private memory, at most limit bytes.
func (f *File) Read(limit int64) ([]byte, error) {
	if f.Stat.Size > limit {
		return nil, fmt.Errorf("reading %q: %d bytes are more than the %d allowed", f.Path, f.Stat.Size, limit)
	}
	b, err := io.ReadAll(io.LimitReader(f.file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", f.Path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("reading %q: it grew beyond the %d bytes allowed", f.Path, limit)
	}
	return b, nil
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// ReadSignature reads PATH.sgn beside a canonical module path. A missing file,
// or one that is not regular, gives fs.ErrNotExist or ErrNotRegular: the module
// is unsigned.
func ReadSignature(canonical string) ([]byte, error) {
	f, err := openAt(unix.AT_FDCWD, canonical+".sgn", canonical+".sgn")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Read(MaxSignature)
}
