package relay

import (
	"fmt"
	"io"
	"log/syslog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
	"stapbox/core/report"
	"stapbox/core/runopts"
)

// The background mode of -D (loader-relay 1.9): a new session, working directory
// /, no terminal, messages to the system log. A second process of this program
// takes the module over; the first ends when that one reads the module's output,
// or shows why it cannot.

// daemonMark is the environment variable that makes stapio be the second
// process: the pid of the first.
const daemonMark = "STAPBOX_DAEMON"

// Descriptors of the second process.
const (
	daemonDir    = 3
	daemonStatus = 4
)

// toBackground starts the second process and waits until it has taken over.
func (r *relay) toBackground(module string, signals <-chan os.Signal) int {
	opts := r.opts
	if !filepath.IsAbs(opts.Output) && opts.Output != "" {
		if r.Dir == "" {
			r.report.Errorf("Unable to make output file name absolute: the working directory is gone")
			r.failed = true
			return r.removeModule(module)
		}
		// Only what the user wrote is a template.
		opts = opts.WithOutput(filepath.Join(strings.ReplaceAll(r.Dir, "%", "%%"), opts.Output))
	}
	status, tell, err := os.Pipe()
	if err != nil {
		r.report.Errorf("pipe: %v", err)
		r.failed = true
		return r.removeModule(module)
	}
	defer status.Close()
	cmd := r.self(daemonMark, opts.Relay(daemonDir, module))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = r.Stdout, r.Stderr
	cmd.ExtraFiles = []*os.File{r.dir, tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		r.report.Errorf("Couldn't run in the background: %v", err)
		r.failed = true
		return r.removeModule(module)
	}
	taken := make(chan bool, 1)
	go func() {
		n, _ := status.Read(make([]byte, 1))
		taken <- n == 1
	}()
	for {
		select {
		case s := <-signals:
			cmd.Process.Signal(s)
		case ok := <-taken:
			if ok {
				return exitOK
			}
			return exitOf(cmd.Wait())
		}
	}
}

func exitOf(err error) int {
	if exit, ok := err.(*exec.ExitError); ok && exit.Exited() {
		return exit.ExitCode()
	}
	return exitError
}

// background is the part of the second process, once the module's output can be
// read: it tells its pid to whoever waits for it on standard output, cuts its
// ties with the terminal, and lets the first process end.
func (r *relay) background() error {
	// The program was started as /proc/self/exe; people look for stapio.
	if err := os.WriteFile("/proc/self/comm", []byte("stapio"), 0); err != nil {
		return err
	}
	fmt.Fprintln(r.Stdout, os.Getpid())
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	r.Stdin, r.Stdout, r.Stderr = null, null, systemLog()
	r.report = report.New(r.Stderr, report.Never, r.LookupEnv)
	status := os.NewFile(daemonStatus, "status")
	defer status.Close()
	_, err = status.Write([]byte{1})
	return err
}

// systemLog is a writer to the system log: ident stapio, facility daemon, level
// err. Where no system log listens there is nobody to tell.
func systemLog() io.Writer {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_ERR, "stapio")
	if err != nil {
		return io.Discard
	}
	return w
}

// isDaemon reports whether this is the second process.
func isDaemon(inv *invocation.Invocation, opts runopts.Options) bool {
	return opts.Daemon && marked(inv, daemonMark)
}
