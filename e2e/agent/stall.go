package main

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stall reads or writes a file by memory that never becomes ready: whoever has
// registered its pages with userfaultfd(2) does not answer. The call into the
// kernel then waits for the page, until the process is killed.
func stall(how, path string) error {
	const (
		apiIoctl      = 0xc018aa3f // UFFDIO_API
		registerIoctl = 0xc020aa00 // UFFDIO_REGISTER
		api           = 0xaa
		missing       = 1
	)
	ioctl := func(fd, request uintptr, arg unsafe.Pointer) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno != 0 {
			return errno
		}
		return nil
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	version := struct{ api, features, ioctls uint64 }{api: api}
	if err := ioctl(fd, apiIoctl, unsafe.Pointer(&version)); err != nil {
		return fmt.Errorf("userfaultfd, version: %w", err)
	}
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	r := struct{ start, size, mode, ioctls uint64 }{uint64(uintptr(unsafe.Pointer(&page[0]))), uint64(len(page)), missing, 0}
	if err := ioctl(fd, registerIoctl, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("userfaultfd, pages: %w", err)
	}
	flags := map[string]int{"read": unix.O_RDONLY, "write": unix.O_WRONLY}[how]
	file, err := unix.Open(path, flags, 0)
	if err != nil {
		return fmt.Errorf("opening %q: %w", path, err)
	}
	if how == "read" {
		_, err = unix.Read(file, page[:8])
	} else {
		_, err = unix.Write(file, page[:8])
	}
	return fmt.Errorf("the call has returned: %v", err)
}
