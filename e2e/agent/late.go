package main

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// late sleeps for a millisecond at a time, ahead of every other process, and
// writes to a file when it woke more than a fifth of one too late: the time since
// the epoch and by how much, in nanoseconds. Who makes it late held the CPU. It
// never returns but for an error.
func late(path string) error {
	runtime.LockOSThread()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 99}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("real time: %w", err)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT); err != nil {
		return fmt.Errorf("locking memory: %w", err)
	}
	for {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return err
		}
		planned := now.Nano() + int64(time.Millisecond)
		ts := unix.NsecToTimespec(planned)
		if err := unix.ClockNanosleep(unix.CLOCK_REALTIME, unix.TIMER_ABSTIME, &ts, nil); err != nil && err != unix.EINTR {
			return err
		}
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return err
		}
		if by := now.Nano() - planned; by > int64(200*time.Microsecond) {
			if _, err := fmt.Fprintln(f, now.Nano(), by); err != nil {
				return err
			}
		}
	}
}
