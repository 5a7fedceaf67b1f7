// Runner is ./e2e/run: the demo, all tests, interoperability with upstream, and
// benchmarks.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"stapbox/e2e/lab"
)

var commands = []struct {
	name, what string
	run        func(e *ending, l *lab.Lab, args []string) error
}{
	{"build", "the one static file, ./stapbox or another PATH", build},
	{"image", "images for containers, stapbox-{client,server}.oci.tar, into DIR", images},
	{"demo", "the main job, end to end, as a transcript; --short: up to Hello (root)", demo},
	{"test", "all tests: unit, fuzz seeds, testscript, guests (root); test quick: the main walk and what is fast", test},
	{"guest", "a production host for one's own scripts: -k KERNEL -u USER --server -- COMMAND (root)", guest},
	{"cases", "scripts and commands of users that were once misread, one line each (root)", cases},
	{"interop", "with upstream SystemTap 5.6 on its own kernel, and 4.8 over the wire (root, 4 GB, minutes)", interoperate},
	{"bench", "side by side with upstream: medians, ratios, budgets (root, 2 GB, minutes)", benchmark},
	{"fuzz", "every fuzz target for a TIME such as 30s", fuzz},
	{"malformed", "send malformed requests to ADDRESS:PORT (used by demo)", malformed},
}

func main() {
	if os.Args[0] == afterwards && len(os.Args) >= 3 {
		signal.Ignore(syscall.SIGPIPE) // an error that nobody reads must not end what takes away
		takeAway(os.Args[1], familyOf(os.Args[3:]))
		status, _ := strconv.Atoi(os.Args[2]) // as end has written it
		os.Exit(status)
	}
	name := "help"
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	l, err := lab.Open(os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	for _, c := range commands {
		if c.name != name {
			continue
		}
		os.Exit(play(l, name, c.run, os.Args[2:]))
	}
	fmt.Println("usage: ./e2e/run COMMAND")
	for _, c := range commands {
		fmt.Printf("  %-10s %s\n", c.name, c.what)
	}
	if name != "help" {
		os.Exit(2)
	}
}

// play runs a command, and gives the exit status.
func play(l *lab.Lab, name string, run func(*ending, *lab.Lab, []string) error, args []string) int {
	e, err := begin()
	if err == nil {
		err = run(e, l, args)
	}
	if e != nil {
		defer e.settle()
		err = errors.Join(err, os.RemoveAll(e.dir))
	}
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errUsage):
		return 2
	}
	// ^C may end a child, and so what it was for, before this process has ended the
	// run: the signal says more than the error.
	time.Sleep(100 * time.Millisecond)
	fmt.Fprintf(os.Stderr, "e2e: %s: %v\n", name, err)
	return 1
}
