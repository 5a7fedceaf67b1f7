package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"stapbox/e2e/agent/request"
)

// Streamed is a command that runs in a guest and is watched while it does.
type Streamed struct {
	guest  *Guest
	id     int
	answer chan request.Answer
	ended  chan struct{}
	window chan struct{} // an element for each request with input that is not taken
}

// Stream starts a command. What it prints is written as it comes, all of it to
// stdout if the request is for a terminal.
func (g *Guest) Stream(r request.Request, stdout, stderr io.Writer) (*Streamed, error) {
	s := &Streamed{guest: g, answer: make(chan request.Answer, 1), ended: make(chan struct{}), window: make(chan struct{}, request.Window)}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next++
	r.ID, r.Stream = g.next, true
	s.id = r.ID
	g.waiting[s.id] = s.answer
	g.parts[s.id] = func(a request.Answer) {
		switch {
		case a.Taken:
			<-s.window
		case a.Part:
			stdout.Write(a.Stdout)
			stderr.Write(a.Stderr)
		default:
			close(s.ended)
		}
	}
	return s, g.send(r)
}

// send writes a request. Guest.mu is held.
func (g *Guest) send(r request.Request) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = g.agent.Write(append(b, '\n'))
	return err
}

func (s *Streamed) tell(r request.Request) error {
	s.guest.mu.Lock()
	defer s.guest.mu.Unlock()
	r.To = s.id
	return s.guest.send(r)
}

// errEnded is a command that gets no more input.
var errEnded = errors.New("the command has ended")

// give sends input to the command. It waits as long as request.Window requests
// before are not taken; a signal does not.
func (s *Streamed) give(b []byte) error {
	for chunk := range slices.Chunk(b, request.Chunk) {
		select {
		case s.window <- struct{}{}:
			if err := s.tell(request.Request{Data: chunk}); err != nil {
				return err
			}
		case <-s.ended:
			return errEnded
		case <-s.guest.exited:
			return errEnded
		}
	}
	return nil
}

// Input copies a reader to the command's standard input until its end.
func (s *Streamed) Input(r io.Reader) error {
	buf := make([]byte, request.Chunk)
	for {
		n, err := r.Read(buf)
		if err := s.give(buf[:n]); err != nil {
			return err
		}
		if err != nil {
			return s.tell(request.Request{EOF: true})
		}
	}
}

// Type sends text to the command's standard input.
func (s *Streamed) Type(text string) error { return s.give([]byte(text)) }

// Signal sends a signal to the command's process group.
func (s *Streamed) Signal(number int) error { return s.tell(request.Request{Signal: number}) }

// Resize gives the command's terminal another size.
func (s *Streamed) Resize(rows, columns int) error {
	return s.tell(request.Request{Rows: rows, Columns: columns})
}

// Wait waits for the command's end: its exit status, or 128 and the signal's
// number.
func (s *Streamed) Wait() (status int, err error) {
	select {
	case a := <-s.answer:
		if a.Error != "" {
			return 0, errors.New(a.Error)
		}
		return a.Status, nil
	case <-s.guest.exited:
		return 0, fmt.Errorf("the guest has ended; console:\n%s", s.guest.Console.Text())
	}
}
