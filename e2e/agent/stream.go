package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"stapbox/e2e/agent/request"
)

// watched are the streamed commands that run.
var watched = streams{running: map[int]*stream{}}

type streams struct {
	mu      sync.Mutex
	running map[int]*stream
}

// stream is a running command: what goes to it, its terminal if it has one, and
// its process.
type stream struct {
	stdin   chan []byte // closed at the end of input
	closed  bool
	master  *os.File
	process *os.Process
}

// start starts a command and sends what it prints as it comes. The result waits
// for its end. The command is known to pass when start returns.
func (s *streams) start(r request.Request, send func(request.Answer)) (wait func() request.Answer) {
	failed := func(err error) func() request.Answer {
		return func() request.Answer { return request.Answer{ID: r.ID, Error: err.Error()} }
	}
	description, err := json.Marshal(r)
	if err != nil {
		return failed(err)
	}
	cmd := exec.Command("/proc/self/exe", "become", string(description))
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: r.Terminal}
	cmd.WaitDelay = time.Second
	one := &stream{stdin: make(chan []byte, request.Window)}
	print := func(b []byte) { send(request.Answer{ID: r.ID, Part: true, Stdout: b}) }
	copied := make(chan struct{})
	var stdin io.WriteCloser
	var slave *os.File
	if r.Terminal {
		if one.master, slave, err = newTerminal(r.Rows, r.Columns); err != nil {
			return failed(err)
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		defer slave.Close() // so that the end of the last who has it ends the copying
		stdin = one.master
		go func() {
			io.Copy(part(print), one.master) // EIO when nobody has the terminal any more
			close(copied)
		}()
	} else {
		close(copied)
		cmd.Stdout = part(print)
		cmd.Stderr = part(func(b []byte) { send(request.Answer{ID: r.ID, Part: true, Stderr: b}) })
		if stdin, err = cmd.StdinPipe(); err != nil {
			return failed(err)
		}
	}
	if err := cmd.Start(); err != nil {
		if one.master != nil {
			one.master.Close()
		}
		return failed(err)
	}
	one.process = cmd.Process
	s.mu.Lock()
	s.running[r.ID] = one
	s.mu.Unlock()
	go func() {
		for b := range one.stdin {
			if _, err := stdin.Write(b); err != nil {
				continue // the command has closed its input: no more is asked for
			}
			send(request.Answer{ID: r.ID, Part: true, Taken: true})
		}
		if one.master == nil {
			stdin.Close()
		}
	}()
	return func() request.Answer {
		cmd.Wait() // its status says what there is to say
		s.mu.Lock()
		delete(s.running, r.ID)
		one.close()
		s.mu.Unlock()
		select {
		case <-copied:
		case <-time.After(time.Second): // a background process keeps the terminal
		}
		if one.master != nil {
			one.master.Close()
		}
		return request.Answer{ID: r.ID, Status: statusOf(cmd.ProcessState)}
	}
}

// close is the end of what goes to the command. streams.mu is held.
func (one *stream) close() {
	if !one.closed {
		one.closed = true
		close(one.stdin)
	}
}

// pass gives a running command what a request brings. A command that has ended
// gets nothing. It waits for no command, so that a signal reaches one that does not
// read its input.
func (s *streams) pass(r request.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.running[r.To]
	if one == nil {
		return
	}
	if len(r.Data) > 0 && !one.closed {
		one.stdin <- r.Data // there is room: who sends has request.Window
	}
	if r.EOF {
		one.close()
	}
	if r.Signal != 0 {
		syscall.Kill(-one.process.Pid, syscall.Signal(r.Signal))
	}
	if r.Rows > 0 && one.master != nil {
		resize(one.master, r.Rows, r.Columns)
	}
}

// part is a writer that hands on copies of what is written.
type part func([]byte)

func (p part) Write(b []byte) (int, error) {
	p(append([]byte{}, b...))
	return len(b), nil
}
