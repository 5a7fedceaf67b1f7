// Package setuid is the privilege gate: what a process does first when the
// kernel started it with more rights than its caller has.
//
// The kernel says so with AT_SECURE in the auxiliary vector (getauxval(3)), for
// setuid, setgid and file capabilities alike. Such a process is staprun or
// nothing. It installs the handlers of fatal signals (invocation.EndQuietly), which
// need nothing of the caller's; before it does anything else it drops the caller's
// environment, forbids tracing and core dumps, and gives itself a known umask,
// personality and set of descriptors.
package setuid

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Applet is the only name a privileged process answers to.
const Applet = "staprun"

const atSecure = 23 // <linux/auxvec.h>

// perQuery asks for the personality without changing it. A caller can leave bits
// behind that change what this process sees: UNAME26 changes the kernel release
// (personality(2)).
const perQuery = 0xffffffff

// Secure reports whether this process was started with more rights than its
// caller has. If the kernel cannot be asked the answer is yes.
func Secure() bool {
	vec, err := unix.Auxv()
	if err != nil {
		return true
	}
	for _, e := range vec {
		if e[0] == atSecure {
			return e[1] != 0
		}
	}
	return true
}

// Caller is what was the caller's and is no longer the privileged process's own.
type Caller struct {
	Environ []string
	Umask   int // -1 where it was left alone
}

// Enter is what main calls right after EndQuietly. It returns what was taken from the
// process, for the programs to come that are the caller's again, or the reason why
// the process must end at once.
func Enter(argv []string) (c Caller, err error) {
	c = Caller{os.Environ(), -1}
	if !Secure() {
		return c, nil
	}
	// The personality is a thread's. Other threads of the Go runtime, which exist
	// already, keep the caller's: what follows stays on the one that resets it.
	runtime.LockOSThread()
	os.Clearenv()
	if len(argv) == 0 || filepath.Base(argv[0]) != Applet {
		name := ""
		if len(argv) > 0 {
			name = argv[0]
		}
		return c, fmt.Errorf("this setuid copy answers only to the name %q, not to %q", Applet, name)
	}
	c.Umask = unix.Umask(0o022)
	return c, harden()
}

// keepDescriptors keeps inherited descriptors from the programs that this process
// executes (close_range(2) with CLOEXEC, Linux 5.11).
func keepDescriptors() error {
	if err := unix.CloseRange(3, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("marking inherited descriptors: %w", err)
	}
	return nil
}

func harden() error {
	// GOGC and GOMEMLIMIT were the caller's.
	debug.SetGCPercent(100)
	debug.SetMemoryLimit(math.MaxInt64)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	// Descriptors 0 to 2 are open: the Go runtime opens /dev/null for missing
	// ones when AT_SECURE is set. All others are not for the programs to come.
	if err := keepDescriptors(); err != nil {
		return err
	}
	for fd := range 3 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return fmt.Errorf("descriptor %d is closed: %w", fd, err)
		}
	}
	if p, _, e := unix.RawSyscall(unix.SYS_PERSONALITY, perQuery, 0, 0); e == 0 && p != 0 {
		if _, _, e := unix.RawSyscall(unix.SYS_PERSONALITY, 0, 0, 0); e != 0 {
			return fmt.Errorf("resetting the personality: %w", e)
		}
	}
	return nil
}
