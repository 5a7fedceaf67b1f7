package relay

import (
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// start starts a program with no signal blocked. staprun hands over with those
// blocked that end a session, until our handlers are in place; handlers work with
// any mask, but what we start would inherit it.
func start(cmd *exec.Cmd) error {
	result := make(chan error)
	go func() {
		// The thread is not given back: it dies with its mask.
		runtime.LockOSThread()
		var none unix.Sigset_t
		err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
		if err == nil {
			err = cmd.Start()
		}
		result <- err
	}()
	return <-result
}
