// Package sandbox runs a program on files and words of somebody who is not
// trusted: the compiler, assembler and linker of a request, and the translator
// itself, may be made to do anything that this package does not prevent.
//
// A process is started in four layers, each of which holds without the others as
// far as the kernel goes:
//
//   - Namespaces (user, mount, pid, network, ipc, uts). The process sees a root
//     of its own with the toolchain and the directories it was given, read-only,
//     and a directory for its work: a tmpfs of limited size, from which no
//     program can be run. What is not there can neither be read nor truncated,
//     and its mode cannot be changed; processes that are not there cannot be
//     signalled or traced. When its first process ends, all others do. Where the
//     parent is root the process gets a uid that owns nothing.
//   - Landlock, which refuses the same files once more, and bounds what can be
//     done to those that are there.
//   - seccomp: a list of system calls that a compiler needs. All others do not
//     exist for it, neither do those of other ABIs of the same processor.
//   - Limits: resources of each process (setrlimit(2)), number of processes,
//     resident memory of all together, size of the work directory, and
//     no_new_privs, no capabilities, an own process group.
//
// Without namespaces the filter of system calls is narrower: no modes are
// changed, no file is truncated by name, no other process is signalled. Landlock
// does not cover these in all versions: truncate(2) from ABI 3 (Linux 6.2) on,
// signals from ABI 6 (6.12) on, chmod(2) never.
//
// The parent starts its own program anew. Enter, which the program calls first,
// reads on descriptor 3 what to do, a sequence of "KEY=VALUE", each ended by a
// NUL octet, after the length of all in four octets, highest first:
//
//	path=FILE        program to run; none: this program
//	arg=WORD         after argv[0], in order
//	env=NAME=VALUE   its environment
//	dir=DIR          its working directory
//	read=PATH        may be read and executed
//	write=DIR        may be changed
//	private=DIR      is replaced by a copy in memory
//	size=N           bytes of private and of /tmp together
//	limit=NAME=N     a resource limit
//	layers=N         sum of 1 namespaces, 2 Landlock, 4 seccomp
//	uid=N            of the process, where it is not the parent's
//
// and answers with "ok", accompanied by descriptors of the copy and of the
// process' /proc, or with the reason why not.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Variable marks the environment of what this package starts: "init" until Enter
// has set everything up, "1" for the program itself.
const Variable = "STAPBOX_WORKER"

// Layers of confinement.
type Layers int

const (
	Namespaces Layers = 1 << iota
	Landlock
	Seccomp

	AllLayers = Namespaces | Landlock | Seccomp
)

func (l Layers) String() string {
	var names []string
	for _, n := range [...]struct {
		l    Layers
		name string
	}{{Namespaces, "namespaces"}, {Landlock, "Landlock"}, {Seccomp, "seccomp"}} {
		if l&n.l != 0 {
			names = append(names, n.name)
		}
	}
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// Sandbox starts processes with the layers this host has.
type Sandbox struct {
	// Program is this program and its argv[0]; it calls Enter.
	Program []string
	Layers  Layers
	// Missing says, for each layer that is not in Layers, why.
	Missing []string
}

// Spec is one process.
type Spec struct {
	Path string   // program; "" for this program, which finds its words with Args
	Args []string // after argv[0]
	Env  []string
	Dir  string

	Read    []string // files and directories besides the toolchain
	Write   []string // directories
	Private string   // directory that is replaced by a copy in memory; see Cmd.Fetch

	Size   uint64  // bytes in Private, 0 for DefaultSize
	Memory uint64  // resident bytes of all processes together, 0 for no limit
	Limits []Limit // of each process
}

// Defaults of limits that nobody set.
const (
	DefaultSize      = 256 << 20
	DefaultProcesses = 256 // threads count too
	maxFiles         = 1 << 16
)

// foreignID is the uid and gid of processes of a parent that is root. Nobody else
// has it: it is beyond what user management and containers hand out.
const foreignID = 2147000000

// Off is a sandbox of resource limits and no_new_privs only.
func Off(program []string) *Sandbox {
	return &Sandbox{Program: program, Missing: []string{"it was switched off"}}
}

// Detect finds out by trial what this host allows.
func Detect(ctx context.Context, program []string) *Sandbox {
	s := &Sandbox{Program: program}
	for _, l := range [...]Layers{Namespaces, Landlock, Seccomp} {
		if err := trial(ctx, program, l); err != nil {
			s.Missing = append(s.Missing, fmt.Sprintf("%v: %v", l, err))
			continue
		}
		s.Layers |= l
	}
	if s.Layers == 0 {
		return s
	}
	// Together they must work too.
	if err := trial(ctx, program, s.Layers); err != nil {
		s.Missing = append(s.Missing, fmt.Sprintf("%v together: %v", s.Layers, err))
		s.Layers = 0
	}
	return s
}

// trial runs this program with some layers.
func trial(ctx context.Context, program []string, l Layers) error {
	if l == Landlock && LandlockABI() == 0 {
		return errors.New("this kernel has none")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	t := Sandbox{Program: program, Layers: l}
	dir, err := os.MkdirTemp("", "stap-sandbox.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return t.Command(ctx, Spec{Env: []string{Variable + "=trial"}, Dir: dir, Private: dir, Size: 1 << 20}).Run()
}

// Limit is a resource limit of each process.
type Limit struct {
	Name  string // as, cpu, nproc, stack, fsize
	Value uint64
}

// Confine sets limits and no_new_privs for this process.
func Confine(limits []Limit) error {
	if err := setLimits(limits); err != nil {
		return err
	}
	return noNewPrivileges()
}

func setLimits(limits []Limit) error {
	for _, l := range limits {
		if err := setLimit(l); err != nil {
			return err
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	return nil
}

func setLimit(l Limit) error {
	var resource int
	switch l.Name {
	case "as":
		resource = unix.RLIMIT_AS
	case "cpu":
		resource = unix.RLIMIT_CPU
	case "nproc":
		resource = unix.RLIMIT_NPROC
	case "stack":
		resource = unix.RLIMIT_STACK
	case "fsize":
		resource = unix.RLIMIT_FSIZE
	default:
		return fmt.Errorf("resource limit %q is unknown", l.Name)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(resource, &old); err != nil {
		return fmt.Errorf("reading resource limit %s: %w", l.Name, err)
	}
	// A hard limit that is lower already stays.
	value := min(l.Value, old.Max)
	if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
		return fmt.Errorf("setting resource limit %s to %d: %w", l.Name, value, err)
	}
	return nil
}
