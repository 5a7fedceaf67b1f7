package client

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"stapbox/core/hostpaths"
	"stapbox/core/kmod"
)

// staprunArgs are the words for staprun, in upstream's order (loader-relay
// 1.2).
func (c *client) staprunArgs(out outcome) []string {
	var args []string
	for i := 1; i < c.opts.Verbose; i++ {
		args = append(args, "-v")
	}
	if c.opts.Suppress > 0 {
		args = append(args, "-w")
	}
	if c.opts.Output != "" {
		args = append(args, "-o", c.opts.Output)
	}
	if c.opts.HasCmd {
		args = append(args, "-c", c.opts.Command)
	}
	if c.opts.Target != 0 {
		args = append(args, "-t", strconv.Itoa(c.opts.Target))
	}
	if c.opts.Namespaces != 0 {
		args = append(args, "-N", strconv.Itoa(c.opts.Namespaces))
	}
	if c.opts.BufferMB != 0 {
		args = append(args, "-b", strconv.Itoa(c.opts.BufferMB))
	}
	if readsInput(out.module) {
		args = append(args, "-i")
	}
	switch {
	case c.opts.Flight && c.opts.Output != "":
		args = append(args, "-D")
	case c.opts.Flight:
		args = append(args, "-L")
	}
	if c.renames() {
		args = append(args, "-R")
	}
	if c.opts.FileSize != "" {
		args = append(args, "-S", c.opts.FileSize)
	}
	if c.opts.Color != "auto" {
		args = append(args, "-C", c.opts.Color)
	}
	if c.opts.Monitor != 0 {
		args = append(args, "-M", strconv.Itoa(c.opts.Monitor))
	}
	return append(append(args, out.module), c.opts.Globals...)
}

// checkGlobals holds -G against a module: staprun would set them, and names the
// module, not the option.
func (c *client) checkGlobals(module string) error {
	if len(c.opts.Globals) == 0 {
		return nil
	}
	image, err := os.ReadFile(module)
	if err != nil {
		return err
	}
	known, err := kmod.Parameters(image)
	if err != nil {
		return nil // no module: staprun says so
	}
	for _, g := range c.opts.Globals {
		if name, _, _ := strings.Cut(g, "="); !slices.Contains(known, name) {
			return fmt.Errorf("-G %s: the script has no global scalar %q", g, name)
		}
	}
	return nil
}

// renames reports whether staprun gives the module a name of its own. A module
// that is signed for the kernel would not be what was signed any more.
func (c *client) renames() bool { return c.opts.Module == "" && !c.kernel.required }

// removeLeftover removes the module of a staprun that a request to end has ended
// before it could do so itself: it is deaf to signals while it becomes stapio.
// After SIGKILL the module stays, for staprun -A.
func (c *client) removeLeftover(staprun, name string, pid int, by syscall.Signal) {
	if by == syscall.SIGKILL {
		return
	}
	pattern := "*_" + strconv.Itoa(pid) // the name that -R gives
	if !c.renames() {
		pattern = name
	}
	left, err := filepath.Glob(filepath.Join("/proc/systemtap", pattern))
	if err != nil || len(left) != 1 {
		return // nothing was loaded
	}
	cmd := exec.Command(staprun, "-d", filepath.Base(left[0]))
	cmd.Env = c.inv.Environ
	cmd.Stderr = c.inv.Stderr
	if err := cmd.Run(); err != nil {
		c.say("hint: staprun -d %s removes the module that was left", filepath.Base(left[0]))
	}
}

// readsInput reports whether a module has input probes. Our own modules say so in
// their information; those of upstream have the name of the probes' file among
// their strings, which a string of the script may also be: then stapio says that
// nobody reads.
func readsInput(module string) bool {
	image, err := os.ReadFile(module)
	if err != nil {
		return false
	}
	if !kmod.Own(image) {
		return bytes.Contains(image, []byte("\x00__stdin\x00"))
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return false
	}
	info, err := f.Section(".modinfo").Data()
	return err == nil && slices.Contains(strings.Split(string(info), "\x00"), "stapbox_stdin=1")
}

// findStaprun is $SYSTEMTAP_STAPRUN, the installed one, or one beside our own
// file (a box that was not installed).
func (c *client) findStaprun() (string, error) {
	if p := c.inv.Getenv("SYSTEMTAP_STAPRUN"); p != "" {
		return p, nil
	}
	if c.staprun != "" {
		return c.staprun, nil
	}
	p, err := hostpaths.FindStaprun()
	if err != nil {
		return "", fmt.Errorf("ERROR: %w", err)
	}
	return p, nil
}

// pass5 runs the module.
func (c *client) pass5(ctx context.Context, out outcome) int {
	failed := func() int {
		c.say("Pass 5: run failed.  [man error::pass5]")
		return 1
	}
	path, err := c.findStaprun()
	if err != nil {
		c.say("%v\nhint: stapbox install", err)
		return failed()
	}
	if c.opts.Verbose > 0 {
		c.say("Pass 5: starting run.")
	}
	cmd := exec.Command(path, c.staprunArgs(out)...)
	cmd.Env, cmd.Dir = c.inv.Environ, c.inv.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.inv.Stdin, c.inv.Stdout, c.inv.Stderr
	// Signals before the start ended the run; from now on they are staprun's. One
	// that comes in between is in c.interrupts too.
	start := c.now()
	if ctx.Err() != nil {
		return 1
	}
	if err := cmd.Start(); err != nil {
		c.say("ERROR: starting %q: %v", path, err)
		if errors.Is(err, os.ErrPermission) {
			c.say("hint: only members of group stapusr may run it, and group membership counts from the next login on")
		}
		return failed()
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case <-c.interrupts:
			// As upstream: whatever came, SIGTERM goes to the child, which asks
			// the module to end and drains it. From a terminal it has the
			// signal already and counts two; three would cut it short.
			cmd.Process.Signal(syscall.SIGTERM)
			continue
		case err = <-done:
		}
		break
	}
	if c.opts.Verbose > 0 {
		c.say("Pass 5: run completed in %dusr/%dsys/%dreal ms.", cmd.ProcessState.UserTime().Milliseconds(),
			cmd.ProcessState.SystemTime().Milliseconds(), c.now().Sub(start).Milliseconds())
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			c.removeLeftover(path, out.name, cmd.Process.Pid, ws.Signal())
			c.say("WARNING: %s exited with signal: %d (%s)", path, ws.Signal(), ws.Signal())
		} else {
			c.say("WARNING: %s exited with status: %d", path, exit.ExitCode())
		}
	default:
		c.say("ERROR: running %q: %v", path, err)
	}
	return failed()
}
