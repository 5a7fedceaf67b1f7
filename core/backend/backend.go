// Package backend turns a script into a kernel module.
//
// A Job describes one translator run (passes 1 to 4 of stap). A Translator runs
// it: Builtin is ours, in this process; Systemtap is an installed upstream stap;
// Auto is the first and, for what it lacks, the second. A compile server never
// calls one in its own process (core/compile): it re-executes itself as a worker
// in a sandbox, and the worker does, with Job.TempDir to leave the module in.
package backend

import (
	"context"
	"io"
	"time"

	"stapbox/core/privilege"
	"stapbox/core/script/diag"
)

// Source is the text of one script and the name errors give it: "<input>" for
// -e, the path as the user wrote it for a file.
type Source struct {
	Name string
	Text []byte
}

// Tapset is a directory of library files: the name that messages give it, as
// the user wrote it with -I, and where it is.
type Tapset struct{ Name, Path string }

// Job is one translator run.
type Job struct {
	Source  Source
	Scripts []Source // -E: scripts beside Source
	Tapsets []Tapset // -I
	List    rune     // 'l' or 'L': Source is "probe PATTERN {}", and what it stands for is listed
	Pattern string   // of List
	// Compatible is the language version of --compatible, "" for the newest.
	Compatible                string
	Args                      []string // $1, @1 ... of the script
	LastPass                  int      // 1 to 4: stop after parse, semantic analysis, C, module
	Verbose                   int      // -v count: from 1 on, one timing line per pass on Stderr
	Keep                      bool     // -k: leave TempDir behind and say where
	Name                      string   // -m: name of the module, "" for one made from the content
	Kernel                    string   // -r: kernel release or build directory, "" for the running kernel
	Arch                      string   // -a: normalised architecture, "" for this machine's
	ServerDefines             int      // how many of Defines are a server's own, for every script
	Defines                   []string // -D: NAME or NAME=VALUE, in order
	Globals                   []string // -G: NAME=VALUE, checked here, applied by staprun
	Privilege                 privilege.Level
	Guru                      bool          // -g
	Target                    int           // -x PID, or 0
	Command                   string        // -c COMMAND, or ""
	Suppress                  int           // -w count: warnings are not shown from 1 on
	Strict                    bool          // -W: warnings are errors
	Unoptimized               bool          // -u
	Timing                    bool          // -t, which is in Defines too
	Coverage                  bool          // -q
	Timeout                   time.Duration // -T: when the script ends, 0 for never
	QuietErrors, NoTimeLimits bool          // --suppress-handler-errors, --suppress-time-limits
	TempDir                   string        // private directory for intermediate files; the caller removes it unless Keep
	StateDir                  string        // prepared kernels (recipes, runtime objects) live here

	Colors         diag.Colors // of messages; the zero value is none
	Stdout, Stderr io.Writer

	Passed func(pass int) // is called after each pass, if it is not nil
}

// Unprivileged tells whether the script is for users below stapdev.
func (j *Job) Unprivileged() bool { return j.Privilege != privilege.StapDev }

// Artifact is what a successful run to pass 4 leaves.
type Artifact struct {
	Name string // module name, without ".ko"
	Path string // the module, inside Job.TempDir
	// Elsewhere tells of a run that failed that it may succeed on another host, or
	// with another translator: the script is not to blame. Only the built-in
	// translator knows.
	Elsewhere bool
	// Translator made it: stapopts.TranslatorBuiltin or stapopts.TranslatorSystemtap.
	Translator string
}

// Translator runs jobs. It reports errors in the script, the kernel or the build
// on job.Stderr as stap does and answers the exit status, 0 for success.
type Translator interface {
	Translate(ctx context.Context, job *Job) (Artifact, int)
}
