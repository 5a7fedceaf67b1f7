// Package check is pass 2: it resolves names, probe points and types of a parsed
// script, holds it against the privilege level, and leaves a Program that holds
// only what the probes reach, ready for package translate.
package check

import (
	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/token"
)

// Program is a checked script: everything is resolved and typed, and holds
// only what the probes reach.
type Program struct {
	Globals   []*ast.Var
	Functions []*ast.Function
	Probes    []*Probe
	// TopC is top level embedded C of the files in use, in order.
	TopC []*ast.EmbedC
	// Privilege is the level the program was checked for.
	Privilege privilege.Level
	// Arguments tells that the script looks at its arguments by variables: argc,
	// argv and its kin. It is set when there is an error, too.
	Arguments bool
	// Warnings in the order upstream shows them.
	Warnings []*Diagnostic
}

// Kind is the kind of event a probe waits for.
type Kind int

// The kinds of probes.
const (
	Begin Kind = iota
	End
	Error
	Never
	Timer
	ProcfsRead
	ProcfsWrite
)

// String is the first word of the probe point.
func (k Kind) String() string {
	return [...]string{"begin", "end", "error", "never", "timer", "procfs", "procfs"}[k]
}

// Unit is the unit of a timer interval.
type Unit int

// The units of timers. Interval counts milliseconds, microseconds and
// nanoseconds after conversion of s, sec, msec, usec, nsec and hz; jiffies
// timers count jiffies.
const (
	Jiffies Unit = iota
	Nanoseconds
)

// Probe is one resolved probe.
type Probe struct {
	Kind Kind
	// Priority orders begin, end and error probes: smaller runs first, equal
	// ones in program order (Probes is already sorted within a kind only by
	// program order).
	Priority int64
	// Interval and Randomize are in Unit; timers only.
	Unit      Unit
	Interval  int64
	Randomize int64
	EveryCPU  bool // fires on each CPU: timer.profile
	// Path, Umask and MaxSize are those of procfs probes; MaxSize is 0 when not
	// given. Value stands for $value in the body.
	Path    string
	Umask   int64
	MaxSize int64
	Value   *ast.Var
	// Point is the resolved probe point as pp() gives it, with its ? or !.
	Point string
	// Name is what pn() gives: the name of the alias used, else Point.
	Name string
	// Derivation lists the probe points from Point's alias chain up to what
	// the script wrote (the text after "<-" of -p2).
	Derivation []string
	Cond       ast.Expr // or nil
	Locals     []*ast.Var
	Body       ast.Stmt
	// Reads and Writes are the globals touched by body, condition and the
	// functions called, in program order. A written global is in Writes even
	// if it is read too; both sets may share members.
	Reads, Writes []*ast.Var
	// CondReads are the globals the condition reads.
	CondReads []*ast.Var
	// Synthetic marks the end probes that display unread globals.
	Synthetic bool
	Source    *ast.Probe

	tok *token.Token // for messages: the definition, or the alias used
}
