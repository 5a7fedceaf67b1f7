// Agent runs inside the test guest and executes commands for the tests: it
// reads requests from a virtio port, one JSON object per line, and answers each
// with one line. Commands run as the user, and in the surroundings, that the
// request describes.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/e2e/agent/request"
)

func main() {
	if len(os.Args) > 2 && (os.Args[1] == "become" || os.Args[1] == "become-traced") {
		fmt.Fprintf(os.Stderr, "agent: %v\n", become(os.Args[2], os.Args[1] == "become-traced"))
		os.Exit(125)
	}
	if len(os.Args) > 2 && os.Args[1] == "trace" {
		fmt.Fprintf(os.Stderr, "agent: %v\n", trace(os.Args[2]))
		os.Exit(125)
	}
	if len(os.Args) == 5 && os.Args[1] == "hammer" {
		if err := hammer(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintf(os.Stderr, "agent: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "slow" {
		if err := slow(os.Args[2]); err != nil {
			fmt.Fprintf(os.Stderr, "agent: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 4 && os.Args[1] == "stall" {
		fmt.Fprintf(os.Stderr, "agent: %v\n", stall(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	if len(os.Args) == 3 && os.Args[1] == "late" {
		fmt.Fprintf(os.Stderr, "agent: %v\n", late(os.Args[2]))
		os.Exit(1)
	}
	if len(os.Args) > 2 && os.Args[1] == "terminal" {
		status, err := terminal(os.Args[2:])
		if err != nil {
			fmt.Fprintf(os.Stderr, "agent: %v\n", err)
			status = 1
		}
		os.Exit(status)
	}
	port, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
	if err == nil {
		err = serve(port)
	}
	fmt.Fprintf(os.Stderr, "agent: %v\n", err)
	os.Exit(1)
}

func serve(port *os.File) error {
	var mu sync.Mutex
	answer := func(a request.Answer) {
		b, err := json.Marshal(a)
		if err != nil {
			b, _ = json.Marshal(request.Answer{ID: a.ID, Error: err.Error()})
		}
		mu.Lock()
		defer mu.Unlock()
		port.Write(append(b, '\n'))
	}
	// The shell that started the agent in the background ignores these. The agent
	// catches them, so that they end a streamed command from its first moment.
	var ignored []int
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(s) {
			ignored = append(ignored, int(s))
		}
		signal.Notify(make(chan os.Signal, 1), s)
	}
	answer(request.Answer{Ready: true})
	lines := bufio.NewReaderSize(port, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		var r request.Request
		if err := json.Unmarshal(line, &r); err != nil {
			answer(request.Answer{ID: r.ID, Error: err.Error()})
			continue
		}
		switch {
		case r.To != 0:
			watched.pass(r) // in the order in which they come
		case r.Stream:
			wait := watched.start(r, answer)
			go func() { answer(wait()) }()
		default:
			r.Ignored = append(r.Ignored, ignored...) // as of a command in the background
			go func() { answer(handle(r)) }()
		}
	}
}

func handle(r request.Request) request.Answer {
	a := request.Answer{ID: r.ID}
	if r.WritePath != "" {
		if err := os.WriteFile(r.WritePath, r.Data, os.FileMode(r.Mode)); err != nil {
			a.Error = err.Error()
		} else if err := errors.Join(os.Chown(r.WritePath, r.UID, r.GID), os.Chmod(r.WritePath, os.FileMode(r.Mode))); err != nil {
			a.Error = err.Error()
		}
		return a
	}
	if r.ReadPath != "" {
		b, err := os.ReadFile(r.ReadPath)
		if err != nil {
			a.Error = err.Error()
		}
		a.Stdout = b
		return a
	}
	description, err := json.Marshal(r)
	if err != nil {
		a.Error = err.Error()
		return a
	}
	how := "become"
	if r.Break != nil {
		how = "trace"
	}
	cmd := exec.Command("/proc/self/exe", how, string(description))
	cmd.Env = []string{}
	cmd.Dir = "/"
	stdout, stderr := &output{printed: make(chan struct{})}, &bytes.Buffer{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(r.Data), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		a.Error = err.Error()
		return a
	}
	ended := make(chan struct{})
	for _, s := range r.Signals {
		go func() {
			select {
			case <-stdout.printed:
			case <-ended:
				return
			}
			select {
			case <-time.After(time.Duration(s.After) * time.Millisecond):
				syscall.Kill(cmd.Process.Pid, syscall.Signal(s.Number))
			case <-ended:
			}
		}()
	}
	late := time.AfterFunc(time.Duration(max(r.Timeout, 1))*time.Second, func() {
		a.TimedOut = true
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
	start := time.Now()
	cmd.Wait() // its status says what there is to say
	close(ended)
	late.Stop()
	a.Millis = time.Since(start).Milliseconds()
	a.Stdout, a.Stderr = stdout.text.Bytes(), stderr.Bytes()
	a.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Microseconds()
	a.Status = statusOf(cmd.ProcessState)
	return a
}

// output is what a command prints.
type output struct {
	text    bytes.Buffer // not embedded: its ReadFrom would be used in place of Write
	once    sync.Once
	printed chan struct{} // closed when there is something
}

func (o *output) Write(b []byte) (int, error) {
	o.once.Do(func() { close(o.printed) })
	return o.text.Write(b)
}

// statusOf is a process's exit status, or 128 and the signal's number.
func statusOf(p *os.ProcessState) int {
	if ws, ok := p.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.ExitCode()
}

// become turns this process into the described command, one that stops for its
// tracer if there is one. It returns only on failure.
func become(description string, traced bool) error {
	runtime.LockOSThread()
	var r request.Request
	if err := json.Unmarshal([]byte(description), &r); err != nil {
		return err
	}
	for name, value := range r.Limits {
		resource, ok := map[string]int{"fsize": unix.RLIMIT_FSIZE, "nofile": unix.RLIMIT_NOFILE, "core": unix.RLIMIT_CORE, "nproc": unix.RLIMIT_NPROC, "cpu": unix.RLIMIT_CPU}[name]
		if !ok {
			return fmt.Errorf("no limit %q", name)
		}
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
			return err
		}
	}
	if traced {
		if err := stopAtTraced(); err != nil {
			return fmt.Errorf("filtering system calls: %w", err)
		}
	}
	if err := syscall.Setgroups(r.Groups); err != nil {
		return err
	}
	if err := syscall.Setresgid(r.GID, r.GID, r.GID); err != nil {
		return err
	}
	if err := syscall.Setresuid(r.UID, r.UID, r.UID); err != nil {
		return err
	}
	if r.Dir != "" {
		if err := os.Chdir(r.Dir); err != nil {
			return err
		}
	}
	for _, s := range r.Ignored {
		// A Go program that ignores a signal leaves it ignored for what it executes.
		signal.Ignore(syscall.Signal(s))
	}
	if r.UserNamespace {
		// Changing ids made /proc/self root's, where the maps are written.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return err
		}
		return inUserNamespace(r)
	}
	if r.Personality != 0 {
		if _, _, e := unix.RawSyscall(unix.SYS_PERSONALITY, uintptr(r.Personality), 0, 0); e != 0 {
			return e
		}
	}
	if len(r.Blocked) > 0 {
		var set unix.Sigset_t
		for _, s := range r.Blocked {
			set.Val[(s-1)/64] |= 1 << ((s - 1) % 64)
		}
		if err := unix.PthreadSigmask(unix.SIG_SETMASK, &set, nil); err != nil {
			return err
		}
	}
	for _, fd := range r.Closed {
		unix.Close(fd)
	}
	return unix.Exec(r.Path, r.Argv, r.Env)
}

// inUserNamespace runs the command in a new user namespace in which the user is
// uid 0.
func inUserNamespace(r request.Request) error {
	cmd := &exec.Cmd{Path: r.Path, Args: r.Argv, Env: r.Env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: r.UID, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: r.GID, Size: 1}},
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		return err
	}
	os.Exit(0)
	return nil
}
