package kmod

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Seal copies an image into a memfd that nobody can change any more
// (memfd_create(2), Linux 3.17; MFD_NOEXEC_SEAL, Linux 6.3).
func Seal(image []byte) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("stapbox-module", flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("stapbox-module", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("creating memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:stapbox-module")
	if _, err := f.Write(image); err != nil {
		f.Close()
		return nil, fmt.Errorf("copying module: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("sealing module: %w", err)
	}
	return f, nil
}

// Insert inserts a sealed module (finit_module(2), Linux 3.8). The error is the
// kernel's; Explain has upstream's words for it.
func Insert(sealed *os.File, params string) error {
	for {
		err := unix.FinitModule(int(sealed.Fd()), params, 0)
		if err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
}

// Explain is the text for an error of Insert (loader-relay 5.2).
func Explain(err error) string {
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return "Invalid module format"
	case errors.Is(err, unix.ENOENT):
		return "Unknown symbol in module"
	case errors.Is(err, unix.ESRCH):
		return "Module has wrong symbol version"
	case errors.Is(err, unix.EINVAL):
		return "Invalid parameters"
	}
	return Strerror(err)
}

// Strerror is the text of strerror(3) for a bare error number, which is Go's
// with a capital letter; any other error has its own text.
func Strerror(err error) string {
	text := err.Error()
	var number unix.Errno
	if errors.As(err, &number) && text == number.Error() && text != "" {
		return strings.ToUpper(text[:1]) + text[1:]
	}
	return text
}

// Remove unloads a module (delete_module(2), without waiting for users of it).
// A reference that is just going away is waited for, 600 microseconds at most.
func Remove(name string) error {
	var err error
	for i := range 5 {
		time.Sleep(time.Duration(i) * 100 * time.Microsecond)
		err = unix.DeleteModule(name, unix.O_NONBLOCK)
		if err != unix.EINTR && err != unix.EAGAIN && err != unix.EWOULDBLOCK {
			return err
		}
	}
	return err
}
