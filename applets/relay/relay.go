// Package relay is stapio: it starts a loaded module, brings the output of all
// CPUs into order, prints it, and has the module removed at the end. It runs as
// the invoking user with no privilege at all.
//
//	stapio                          module
//	READY  ---------------------->
//	       <---------------------- TRANSPORT
//	BULK   ---------------------->           EINVAL: stream mode
//	START  ---------------------->           begin probes run inside this write
//	       <---------------------- START     its result
//	       <---------------------- REQUEST_EXIT, or a signal comes
//	EXIT   ---------------------->           end probes run inside this write
//	       <---------------------- EXIT      from here on all data is readable
//	drain, close, staprun -d
//
// Files: control.go is the conversation above, trace.go reads and orders the
// records, output.go writes them, target.go runs the commands of -c and of
// system(), stdin.go is -i, daemon.go is -D, monitor.go is -M.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/invocation"
	"stapbox/core/report"
	"stapbox/core/runopts"
	"stapbox/core/transport"
	"stapbox/core/version"
)

// Exit statuses (loader-relay 13).
const (
	exitOK       = 0
	exitError    = 1
	exitNoRemove = 255 // staprun -d could not be run
)

// relay is one run of stapio.
type relay struct {
	*invocation.Invocation
	opts   runopts.Options
	report *report.Printer
	dir    *os.File
	ch     *transport.Channel
	name   string // of the module
	output *output
	screen *screen // of -M
	trace  *traceReaders
	target *target    // of -c
	input  *forwarder // of -i
	daemon bool       // this is the process that runs in the background

	commands   atomic.Int32    // of system(), running
	namespaces []*os.File      // of -N
	failed     bool            // exit 1 at the end
	shown      map[string]bool // texts already printed, for the suppression of duplicates
}

// Main runs stapio.
func Main(_ context.Context, inv *invocation.Invocation) int {
	// The work is system calls: more processors for Go code only look for some, which
	// takes a fifth of all time. What it asks of threads is said at await and withoutSignals.
	runtime.GOMAXPROCS(1)
	if marked(inv, targetMark) {
		return runTarget(inv)
	}
	if marked(inv, guardMark) {
		return runGuard(inv)
	}
	opts, err := runopts.Parse(inv.Args)
	r := &relay{
		Invocation: inv, opts: opts, shown: map[string]bool{}, daemon: isDaemon(inv, opts),
		report: report.New(inv.Stderr, opts.Color, inv.LookupEnv),
	}
	if err == nil && !opts.Help && !opts.Version && opts.Module == "" {
		err = runopts.UsageErrorf("Need a module name or path to load.")
	}
	switch {
	case err != nil:
		var g runopts.GetoptError
		if errors.As(err, &g) {
			inv.Errorf("%v", err)
		} else {
			r.report.Errorf("%v", err)
		}
		if errors.Is(err, runopts.ErrUsage) {
			io.WriteString(inv.Stdout, runopts.Usage(inv.Name, hostpaths.KernelRelease()))
		}
		return exitError
	case opts.Help:
		io.WriteString(inv.Stdout, runopts.Usage(inv.Name, hostpaths.KernelRelease()))
		return exitOK
	case opts.Version:
		fmt.Fprintf(inv.Stdout, "Systemtap module loader/runner (stapbox %s, SystemTap protocol %s)\n", version.Version, version.Protocol)
		return exitOK
	}
	if v, ok := inv.LookupEnv(version.Handover); ok && v != version.Version {
		r.report.Errorf("This is stapio %s, but staprun %s handed over to it: the installation is mixed.", version.Version, v)
		r.report.Hintf("run stapbox install once more; staprun -d %s removes the module", opts.Module)
		return exitError
	}
	return r.run()
}

func (r *relay) run() int {
	// From here on signals are orderly: they make the module exit and be
	// removed. SIGPIPE becomes an error of write(2). None is ignored: programs we
	// start would inherit that.
	signals, pipe := make(chan os.Signal, 16), make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR2)
	signal.Notify(pipe, unix.SIGPIPE)
	r.Handles(unix.SIGQUIT)

	name, err := runopts.ModuleName(r.opts.Module)
	if err != nil {
		r.report.Errorf("%v", err)
		return exitError
	}
	if err := r.attach(name); err != nil {
		r.report.Errorf("Cannot attach to module %s control channel; not running?", name)
		r.report.Errorf("Failed to initialize control channel. (%v)", err)
		if _, started := r.LookupEnv(version.Handover); started && !r.opts.Attach {
			r.failed = true
			r.removeModule(name) // what staprun has just loaded must not stay
		}
		return exitError
	}
	if r.opts.Daemon && !r.daemon {
		r.ch.Close()
		return r.toBackground(name, signals)
	}
	return r.session(name, signals)
}

// session is all there is to do with an attached module: until its removal, or
// until detaching from it.
func (r *relay) session(name string, signals <-chan os.Signal) int {
	r.name = name
	defer r.passScreen()
	how := aborted
	err := r.prepare()
	if err != nil {
		r.report.Errorf("%v", err)
		r.failed = true
	}
	insistence := r.insist()
	if err == nil {
		how = r.converse(signals)
	}
	if r.input != nil {
		r.input.restore()
	}
	if how != exited || !r.screen.viewing() {
		r.passScreen()
	}
	r.finish(how, signals)
	r.exitScreen()
	if r.target != nil && !r.target.released {
		r.target.abandon()
	}
	r.ch.Close()
	r.dir.Close()
	if r.output != nil && how != aborted && !r.trace.stuck() {
		if err := r.output.Close(); err != nil {
			r.report.Errorf("%v", err)
			r.failed = true
		}
	}
	insistence.mine()
	if how == detached {
		fmt.Fprintf(r.Stderr, "\nDisconnecting from systemtap module.\nTo reconnect, type \"staprun -A %s\"\n", name)
		return exitOK
	}
	status := r.removeModule(name)
	r.holdScreen(signals)
	return status
}

// prepare starts what -M, -c and -i ask for.
func (r *relay) prepare() (err error) {
	if r.screen, err = r.newScreen(); err != nil {
		return err
	}
	if r.opts.HasCommand {
		if r.target, err = r.startTarget(); err != nil {
			return err
		}
	}
	if r.opts.Input && !r.keysAreInput() {
		r.forward()
	}
	return nil
}

// forward begins to send standard input to the script.
func (r *relay) forward() {
	r.input = forwardInput(r.dir, r.Stdin, func() {
		r.report.Warningf("The script has no input probe: standard input goes nowhere.")
	})
}

// streams are those of the commands of -c and system(). Standard input is
// theirs unless it is the script's or the monitor's.
func (r *relay) streams(cmd *exec.Cmd) {
	if !r.opts.Input && !r.keysAreInput() {
		cmd.Stdin = r.Stdin
	}
	cmd.Stdout, cmd.Stderr = r.Stdout, r.Stderr
	if r.screen != nil {
		cmd.Stdout, cmd.Stderr = r.screen.commands, r.screen.commands
	}
}

// destination is where the output goes.
func (r *relay) destination() destination {
	return destination{
		template: r.opts.Output, dir: r.Dir, rotate: r.opts.Rotate, limit: r.opts.FileLimit, keep: r.opts.FileCount,
		stdout: r.Stdout, now: time.Now,
	}
}

// targetPID is the process START names: the command's, or that of -x.
func (r *relay) targetPID() int32 {
	if r.target != nil {
		return r.target.pid()
	}
	return r.opts.Target
}

// attach opens the control channel: below the descriptor staprun handed over,
// or by name.
func (r *relay) attach(name string) (err error) {
	if r.opts.RelayFD >= 0 {
		if _, err := unix.FcntlInt(uintptr(r.opts.RelayFD), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return fmt.Errorf("descriptor %d: %w", r.opts.RelayFD, err)
		}
		r.dir = os.NewFile(uintptr(r.opts.RelayFD), "/proc/systemtap/"+name)
	} else if r.dir, err = transport.OpenDir(name); err != nil {
		return err
	}
	if r.ch, err = transport.OpenChannel(r.dir); err != nil {
		r.dir.Close()
	}
	return err
}

// removeModule runs staprun -d, which is setuid again, and gives the exit
// status of the whole run.
func (r *relay) removeModule(name string) int {
	program := r.Getenv("SYSTEMTAP_STAPRUN")
	if program == "" {
		program = hostpaths.Staprun()
	}
	var args []string
	for range min(r.opts.Verbose, 2) {
		args = append(args, "-v")
	}
	cmd := exec.Command(program, append(args, "-d", "-C", string(r.opts.Color), name)...)
	cmd.Env = userEnviron(r.Invocation)
	cmd.Stdout, cmd.Stderr = r.Stdout, r.Stderr
	cmd.SysProcAttr = ownGroup() // a ^C at the terminal must not end it half way
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return exitError
	case err != nil:
		r.report.Errorf("Couldn't run %s: %v", program, err)
		r.report.Hintf("%s -d %s removes the module", program, name)
		return exitNoRemove
	case r.failed:
		return exitError
	}
	return exitOK
}

func cpuCount() (int, error) {
	// /sys/devices/system/cpu/possible is "0-N" or "0": the trace files of
	// offline CPUs are simply not there.
	b, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return runtime.NumCPU(), nil
	}
	var first, last int
	s := strings.TrimSpace(string(b))
	s = s[strings.LastIndexByte(s, ',')+1:]
	switch n, _ := fmt.Sscanf(s, "%d-%d", &first, &last); n {
	case 2:
		first = last
	case 0:
		return 0, fmt.Errorf("reading the number of CPUs: %q is not a list", s)
	}
	const most = 1024
	if first >= most {
		return 0, fmt.Errorf("Too many CPUs: %d vs MAX_NR_CPUS=%d", first+1, most)
	}
	return first + 1, nil
}
