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
	output *output
	trace  *traceReaders

	failed bool            // exit 1 at the end
	shown  map[string]bool // texts already printed, for the suppression of duplicates
}

// Main runs stapio.
func Main(ctx context.Context, inv *invocation.Invocation) int {
	opts, err := runopts.Parse(inv.Args)
	r := &relay{
		Invocation: inv, opts: opts, shown: map[string]bool{},
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
	return r.run(ctx)
}

func (r *relay) run(ctx context.Context) int {
	// From here on signals are orderly: they make the module exit and be
	// removed. SIGPIPE becomes an error of write(2).
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	signal.Ignore(unix.SIGPIPE, unix.SIGUSR2)

	name, err := runopts.ModuleName(r.opts.Module)
	if err != nil {
		r.report.Errorf("%v", err)
		return exitError
	}
	if err := r.attach(name); err != nil {
		r.report.Errorf("Cannot attach to module %s control channel; not running?", name)
		r.report.Errorf("Failed to initialize control channel. (%v)", err)
		if _, started := r.LookupEnv(version.Handover); started {
			r.failed = true
			r.removeModule(name) // what staprun has just loaded must not stay
		}
		return exitError
	}
	r.output, err = openOutput(r.opts.Output, r.Dir, time.Now(), r.Stdout)
	if err != nil {
		r.report.Errorf("%v", err)
		r.failed = true
	} else {
		r.converse(ctx, signals)
	}
	r.ch.Close()
	r.dir.Close()
	if err := r.output.Close(); err != nil {
		r.report.Errorf("error writing output: %v", err)
		r.failed = true
	}
	return r.removeModule(name)
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
	cmd.Env = r.Environ
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
