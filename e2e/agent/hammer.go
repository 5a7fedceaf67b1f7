package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hammer does to a module's files, for some seconds and from many threads at
// once, whatever their owner can: messages of every type and length, reads of
// every size, seeks, maps and ioctls. It prints how much it did.
func hammer(dir string, args []string) error {
	seconds, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(time.Duration(seconds) * time.Second)
	var calls, written atomic.Uint64
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(n)))
			for time.Now().Before(deadline) {
				names, err := filepath.Glob(filepath.Join(dir, "trace*"))
				if err != nil || len(names) == 0 {
					return // the module is gone
				}
				name := names[r.IntN(len(names))]
				if n%2 == 0 {
					name = filepath.Join(dir, ".cmd")
				}
				fd, err := unix.Open(name, []int{unix.O_RDWR, unix.O_RDONLY, unix.O_WRONLY}[r.IntN(3)]|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
				calls.Add(1)
				if err != nil {
					continue
				}
				for range 20 {
					calls.Add(1)
					if abuse(r, fd) {
						written.Add(1)
					}
				}
				unix.Close(fd)
			}
		})
	}
	wg.Wait()
	fmt.Printf("%d calls, %d messages taken\n", calls.Load(), written.Load())
	return nil
}

// abuse does one thing to an open file, and tells whether it was a write that
// succeeded. START is left out: it would run the script.
func abuse(r *rand.Rand, fd int) bool {
	buf := make([]byte, r.IntN(700))
	for i := range buf {
		buf[i] = byte(r.Uint32())
	}
	switch r.IntN(9) {
	case 0, 1, 2:
		if len(buf) >= 4 {
			kind := 0x51 + r.Uint32N(0x14)
			if r.IntN(8) == 0 {
				kind = r.Uint32()
			}
			if kind == 0x50 {
				kind = 0x51
			}
			*(*uint32)(unsafe.Pointer(&buf[0])) = kind
		}
		_, err := unix.Write(fd, buf)
		return err == nil
	case 3, 4:
		unix.Read(fd, buf)
	case 5:
		fds := []unix.PollFd{{Fd: int32(fd), Events: int16(r.Uint32())}}
		unix.Poll(fds, 0)
	case 6:
		unix.Pread(fd, buf, r.Int64()>>r.IntN(63))
		unix.Seek(fd, r.Int64()>>r.IntN(63), r.IntN(4))
	case 7:
		if m, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED); err == nil {
			unix.Munmap(m)
		}
	case 8:
		unix.IoctlGetInt(fd, uint(r.Uint32()))
		unix.Write(fd, nil)
		unix.Syscall(unix.SYS_WRITE, uintptr(fd), 1, uintptr(len(buf))) // a bad address
		unix.Syscall(unix.SYS_READ, uintptr(fd), 1, uintptr(len(buf)))
	}
	return false
}
