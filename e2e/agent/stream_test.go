package main

import (
	"encoding/json"
	"os"
	"syscall"
	"testing"
	"time"

	"stapbox/e2e/agent/request"
)

// Commands run in the agent's own executable at first.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "become" {
		main()
	}
	os.Exit(m.Run())
}

// The agent says what a command has taken of its input. One that takes no more of a
// whole window gets a signal all the same.
func TestSignalPassesInput(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the agent needs root, to become a user")
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.SetNonblock(fds[1], true) // for the deadline
	port, host := os.NewFile(uintptr(fds[0]), "port"), os.NewFile(uintptr(fds[1]), "host")
	defer host.Close()
	go serve(port)
	requests, answers := json.NewEncoder(host), json.NewDecoder(host)
	if err := requests.Encode(request.Request{ID: 1, Stream: true, Path: "/bin/sh", Argv: []string{"sh", "-c", "echo up; exec sleep 1000"}}); err != nil {
		t.Fatal(err)
	}
	host.SetReadDeadline(time.Now().Add(20 * time.Second))
	next := func() (a request.Answer) {
		t.Helper()
		if err := answers.Decode(&a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	for string(next().Stdout) != "up\n" {
	}
	give := func() {
		if err := requests.Encode(request.Request{To: 1, Data: make([]byte, request.Chunk)}); err != nil {
			t.Fatal(err)
		}
	}
	const pipe = 65536 / request.Chunk // what the command's pipe takes, pipe(7)
	for range request.Window {
		give()
	}
	for range pipe {
		if a := next(); !a.Taken {
			t.Fatalf("%+v", a)
		}
		give()
	}
	if err := requests.Encode(request.Request{To: 1, Signal: 2}); err != nil {
		t.Fatal(err)
	}
	a := next()
	for a.Taken {
		a = next()
	}
	if a.Part || a.Status != 130 {
		t.Errorf("%+v, want status 130", a)
	}
}
