package lab

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"stapbox/e2e/agent/request"
)

// A command that does not read gets a window of input and no more, so that a
// signal does not wait. What it takes makes room; its end ends the copying.
func TestInputWindow(t *testing.T) {
	here, agent := net.Pipe()
	defer agent.Close()
	g := &Guest{agent: here, exited: make(chan struct{}), waiting: map[int]chan request.Answer{}, parts: map[int]func(request.Answer){}}
	go g.receive()
	requests := json.NewDecoder(agent)
	next := func() (r request.Request) {
		t.Helper()
		agent.SetReadDeadline(time.Now().Add(10 * time.Second))
		if err := requests.Decode(&r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	started := make(chan *Streamed)
	go func() {
		s, err := g.Stream(request.Request{}, io.Discard, io.Discard)
		if err != nil {
			t.Error(err)
		}
		started <- s
	}()
	id := next().ID
	s := <-started
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	copied := make(chan error, 1)
	go func() { copied <- s.Input(zero) }()
	for i := range request.Window {
		if r := next(); len(r.Data) != request.Chunk {
			t.Fatalf("request %d has %d bytes of input", i, len(r.Data))
		}
	}
	go s.Signal(2)
	if r := next(); r.Signal != 2 {
		t.Fatalf("after a window of input: signal %d, %d bytes of input", r.Signal, len(r.Data))
	}
	answers := json.NewEncoder(agent)
	answers.Encode(request.Answer{ID: id, Part: true, Taken: true})
	if r := next(); len(r.Data) != request.Chunk {
		t.Fatalf("with room in the window: %d bytes of input", len(r.Data))
	}
	answers.Encode(request.Answer{ID: id, Status: 130})
	if err := <-copied; !errors.Is(err, errEnded) {
		t.Errorf("the copying ends with %v", err)
	}
	if status, err := s.Wait(); status != 130 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
}
