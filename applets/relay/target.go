package relay

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
	"stapbox/core/version"
)

// target is the command of -c. Its process exists before the module starts, so
// that the script knows its pid, and becomes the command when START was
// answered:
//
//	stapio                       child
//	start it  ---------------->  this very program, told so by targetMark
//	          <----------------  one byte: it waits, nothing of it is yet to run
//	START, answered with 0
//	one byte  ---------------->  execve(2) of the command, same pid
//
// If stapio goes away, the pipe closes and the child ends without having run
// anything.
type target struct {
	cmd     *exec.Cmd
	waiting *os.File // one byte comes when the child waits
	release *os.File
	ended   chan error // what Wait said

	released, gone bool
}

// targetMark is the environment variable that makes stapio be the child: the
// pid of its parent.
const targetMark = "STAPBOX_TARGET"

// Descriptors of the child.
const (
	targetGo    = 3
	targetReady = 4
)

// startTarget starts the child that waits to become the command.
func (r *relay) startTarget() (*target, error) {
	words, err := commandWords(r.opts.Command, r.Environ, r.Dir)
	if err != nil {
		return nil, err
	}
	goRead, goWrite, err := os.Pipe()
	if err != nil {
		return nil, os.NewSyscallError("pipe", err)
	}
	defer goRead.Close()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		goWrite.Close()
		return nil, os.NewSyscallError("pipe", err)
	}
	defer readyWrite.Close()
	cmd := r.self(targetMark, append([]string{r.opts.Command}, words...))
	r.streams(cmd)
	cmd.ExtraFiles = []*os.File{goRead, readyWrite}
	t := &target{cmd: cmd, waiting: readyRead, release: goWrite, ended: make(chan error, 1)}
	if err := cmd.Start(); err != nil {
		readyRead.Close()
		goWrite.Close()
		return nil, fmt.Errorf("starting the command of -c: %w", err)
	}
	go func() { t.ended <- cmd.Wait() }()
	return t, nil
}

// self is a command that runs this very program as stapio, marked so that it
// knows its part.
func (r *relay) self(mark string, args []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "stapio"
	cmd.Env = append(slices.Clone(r.Environ), mark+"="+strconv.Itoa(os.Getpid()))
	return cmd
}

// marked reports whether this process was started by self with the mark.
func marked(inv *invocation.Invocation, mark string) bool {
	v, ok := inv.LookupEnv(mark)
	return ok && v == strconv.Itoa(os.Getppid())
}

func (t *target) pid() int32 { return int32(t.cmd.Process.Pid) }

// await waits until the child does nothing but wait, so that no probe of the
// script sees it getting there.
func (t *target) await() {
	t.waiting.SetReadDeadline(time.Now().Add(10 * time.Second))
	t.waiting.Read(make([]byte, 1)) // a child that died is seen in ended
	t.waiting.Close()
}

// run lets the child become the command.
func (t *target) run() {
	t.released = true
	t.release.Write([]byte{1}) // a child that died is seen in ended
	t.release.Close()
}

// abandon ends a child that was not released.
func (t *target) abandon() {
	t.release.Close()
	if !t.gone {
		t.cmd.Process.Kill()
		<-t.ended
	}
}

// targetEnded gives what became of the command; it never does without one.
func (r *relay) targetEnded() <-chan error {
	if r.target == nil {
		return nil
	}
	return r.target.ended
}

// runTarget is the child: it waits, and becomes the command. Its words are the
// command as the user wrote it and the words it consists of.
func runTarget(inv *invocation.Invocation) int {
	ready, start := os.NewFile(targetReady, "ready"), os.NewFile(targetGo, "start")
	ready.Write([]byte{1})
	ready.Close()
	if n, _ := start.Read(make([]byte, 1)); n != 1 || len(inv.Args) < 2 {
		return exitError
	}
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		inv.Errorf("closing descriptors: %v", err)
		return exitError
	}
	err := execute(inv.Args[1:], userEnviron(inv))
	fmt.Fprintf(inv.Stderr, "%s: %s\n", inv.Args[0], describe(err))
	return exitError
}

// userEnviron is the environment without what our own programs tell each other.
func userEnviron(inv *invocation.Invocation) []string {
	return slices.DeleteFunc(slices.Clone(inv.Environ), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return name == targetMark || name == daemonMark || name == guardMark || name == version.Handover || name == version.Interrupted
	})
}

// execute replaces the process by a program, found as execvp(3) finds it.
func execute(argv, environ []string) error {
	name := argv[0]
	if strings.Contains(name, "/") {
		return try(name, argv, environ)
	}
	path := "/bin:/usr/bin"
	for _, e := range environ {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	result := error(unix.ENOENT)
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		switch err := try(filepath.Join(dir, name), argv, environ); err {
		case unix.ENOENT, unix.ENOTDIR:
		case unix.EACCES:
			result = err
		default:
			return err
		}
	}
	return result
}

// try executes one file; a file without a header the kernel knows is a script
// for sh.
func try(file string, argv, environ []string) error {
	err := unix.Exec(file, argv, environ)
	if err == unix.ENOEXEC {
		err = unix.Exec("/bin/sh", append([]string{"sh", file}, argv[1:]...), environ)
	}
	return err
}

// describe is strerror(3): the text of an errno with a capital first letter.
func describe(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return capital(err.Error())
}

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// endText says how the command ended, "" if it ended well.
func endText(err error) string {
	var exit *exec.ExitError
	if err == nil {
		return ""
	}
	if !errors.As(err, &exit) {
		return fmt.Sprintf("Child process was lost: %v", err)
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Sprintf("Child process exited with signal %d (%s)", ws.Signal(), capital(ws.Signal().String()))
	}
	return fmt.Sprintf("Child process exited with status %d", exit.ExitCode())
}

// system runs a command the script asked for (loader-relay 6.7). It is not
// waited for. The command comes from a module of the owner of its control
// channel; for anybody else it is not run (decision L8).
func (r *relay) system(command string) {
	owner, err := r.ch.Owner()
	if err != nil || owner != os.Getuid() {
		r.report.Errorf("Command of user %d's script is not run by user %d: system(\"%s\")", owner, os.Getuid(), command)
		r.failed = true
		return
	}
	if r.commands.Load() >= mostCommands {
		r.show(fmt.Sprintf("ERROR: %d commands of the script are running; not run: system(\"%s\")\n", mostCommands, command))
		return
	}
	cmd := exec.Command("sh", "-c", command)
	cmd.Env, cmd.Dir = userEnviron(r.Invocation), r.Dir
	r.streams(cmd)
	if err := cmd.Start(); err != nil {
		r.report.Errorf("Couldn't run the script's command: %v", err)
		r.failed = true
		return
	}
	r.commands.Add(1)
	go func() {
		cmd.Wait()
		r.commands.Add(-1)
	}()
}

// mostCommands bounds the commands of system() that run at the same time: a
// script that starts them without end must not end stapio, whose module would
// stay.
const mostCommands = 256
