package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal runs a command in a pseudo terminal of 80x24, as its session leader:
// what is read from standard input are its keys, and its screen is copied to
// standard output. The result is the command's status, 128+n after a signal.
func terminal(args []string) (status int, err error) {
	master, slave, err := newTerminal(24, 80)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TERM=linux")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	slave.Close()
	go io.Copy(master, os.Stdin)
	copied := make(chan struct{})
	go func() {
		io.Copy(os.Stdout, master) // EIO when nobody has the terminal any more
		close(copied)
	}()
	err = cmd.Wait()
	<-copied
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	return statusOf(exit.ProcessState), nil
}

// newTerminal makes a pseudo terminal (pts(4)).
func newTerminal(rows, columns int) (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = resize(master, rows, columns)
	}
	if err != nil {
		master.Close()
		return nil, nil, os.NewSyscallError("ioctl", err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

// resize tells a terminal, and who runs in it, its size.
func resize(master *os.File, rows, columns int) error {
	return unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(columns)})
}
