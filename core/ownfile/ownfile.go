// Package ownfile reads files of keys and certificates: regular ones, reached by
// no link at their end, that belong to the caller or to root, and that nobody
// else may have changed or, for a key, read. And it locks directories, so that
// nobody else can.
package ownfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Limit is the most bytes such a file has.
const Limit = 64 << 10

// Mode bits that must not be set.
const (
	Certificate fs.FileMode = 0o022
	Key         fs.FileMode = 0o077
)

// WriteNew writes a file that is new: what has the name is removed, not followed or
// written to.
func WriteNew(path string, data []byte, mode fs.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Read reads the file at path. Owner, mode and size are those of the open file.
func Read(path string, forbidden fs.FileMode) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("reading %q: not a regular file", path)
	case ok && int(sys.Uid) != os.Geteuid() && sys.Uid != 0:
		return nil, fmt.Errorf("reading %q: it belongs to user id %d", path, sys.Uid)
	case st.Mode().Perm()&forbidden != 0:
		return nil, fmt.Errorf("reading %q: mode %04o is too open, at most %04o is accepted", path, st.Mode().Perm(), 0o755&^forbidden&^0o111)
	case st.Size() > Limit:
		return nil, fmt.Errorf("reading %q: more than %d bytes", path, Limit)
	}
	return io.ReadAll(io.LimitReader(f, Limit))
}
