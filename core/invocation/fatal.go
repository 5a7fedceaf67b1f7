package invocation

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
	"unsafe"
)

// fatal are the signals at which the Go runtime writes the stacks of everything
// that runs, whoever sent them. A user who types ^\ is not to see that, nor what of
// ours is in them.
var fatal = []os.Signal{
	syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGBUS, syscall.SIGFPE,
	syscall.SIGSEGV, syscall.SIGSYS, syscall.SIGSTKFLT,
}

// Fatal are these signals, for programs that handle all of them.
func Fatal() []os.Signal { return slices.Clone(fatal) }

// EndQuietly has the process end by these signals as a program in C does, without
// a word. Faults of the program itself are not signals from elsewhere: they panic as
// before. The result is for FromProcess.
//
// main calls it first of all. What remains are the milliseconds from exec(2) to main.
// The Go runtime installs its own handlers before it starts any package, and of
// packages without a need for each other it starts ours, by name, among the last; so
// an init would gain nothing, and debug.SetTraceback shows no less than what
// GOTRACEBACK in the caller's environment asks for, which is the stacks if it is not
// set. A signal in that time still shows them; from a setuid copy it shows its name
// only (runtime, "secure mode").
func EndQuietly() Quiet {
	q := make(chan os.Signal, 1)
	signal.Notify(q, fatal...)
	go func() {
		if s, ok := (<-q).(syscall.Signal); ok {
			EndBy(s)
		}
	}()
	return q
}

// Quiet are the signals of EndQuietly that no applet listens to.
type Quiet chan os.Signal

// Handles says that an applet listens to some of these signals itself by now.
func (inv *Invocation) Handles(signals ...os.Signal) {
	if inv.quiet == nil {
		return
	}
	signal.Stop(inv.quiet)
	rest := slices.DeleteFunc(Fatal(), func(s os.Signal) bool { return slices.Contains(signals, s) })
	if len(rest) > 0 {
		signal.Notify(inv.quiet, rest...)
	}
}

// EndBy ends the process by a signal, so that its parent sees which. There is no core
// dump: private keys would be in it.
func EndBy(s syscall.Signal) {
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	Default(s)
	_ = syscall.Kill(os.Getpid(), s)
	time.Sleep(time.Second) // another thread may get it
	os.Exit(128 + int(s))   // the signal is blocked
}

// Default gives signals the kernel's default action, for good: package os/signal
// cannot (it would be the runtime's).
func Default(signals ...syscall.Signal) {
	var action [4]uintptr // struct sigaction of <asm/signal.h>: SIG_DFL, no flags, empty mask
	for _, s := range signals {
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	}
}
