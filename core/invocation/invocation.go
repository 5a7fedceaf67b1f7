// Package invocation carries what one run of an applet was given: its words,
// streams, environment and working directory. Applets read these fields and
// nothing global, so that a test runs an applet by filling in the struct.
package invocation

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// Invocation is one run of an applet.
type Invocation struct {
	Name    string   // the applet's name, argv[0] without directories
	Path    string   // argv[0] as it was given
	Args    []string // the words after the name
	Environ []string // NAME=VALUE, as the process got them
	Dir     string   // the working directory, absolute
	Umask   int      // the caller's, where the process has another; else -1

	Stdin          io.Reader
	Stdout, Stderr io.Writer

	quiet Quiet
}

// Getenv returns the value of an environment variable, "" when it is unset.
// Of several settings the last counts, as in package os.
func (inv *Invocation) Getenv(name string) string {
	v, _ := inv.LookupEnv(name)
	return v
}

// LookupEnv is Getenv that tells an empty value from an unset one.
func (inv *Invocation) LookupEnv(name string) (string, bool) {
	for i := len(inv.Environ) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(inv.Environ[i], "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

// Errorf writes one line "NAME: text" to standard error.
func (inv *Invocation) Errorf(format string, args ...any) {
	fmt.Fprintf(inv.Stderr, "%s: %s\n", inv.Name, fmt.Sprintf(format, args...))
}

// FromProcess is the invocation of this very process. Quiet is nil in a process that
// has not called EndQuietly.
func FromProcess(name string, args, environ []string, quiet Quiet) *Invocation {
	dir, err := os.Getwd()
	if err != nil {
		dir = "" // a removed working directory matters only to those who need it
	}
	return &Invocation{
		Name: name, Path: name, Args: args, Environ: environ, Dir: dir, Umask: -1,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		quiet: quiet,
	}
}
