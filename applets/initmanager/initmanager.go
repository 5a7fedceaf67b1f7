// Package initmanager is the applet systemtap (and systemtap-service): it runs
// user scripts as a service, with dependencies between them, from modules that
// are compiled beforehand or on demand (services section 3).
//
// A script NAME.stp is compiled by stap -p4 into CACHE_PATH/RELEASE/NAME.ko, and
// started by staprun: with -L, in memory (flight recorder, read by staprun -A),
// or with -D when its options name an output file. STAT_PATH/NAME is there while
// it runs, one line with the pid of stapio, 0 in memory mode.
//
// Every command but status, logs and the like takes the lock STAT_PATH/.lock.
package initmanager

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/depend"
	"stapbox/core/getopt"
	"stapbox/core/initconf"
	"stapbox/core/invocation"
	"stapbox/core/kbuild"
	"stapbox/core/ownfile"
	"stapbox/core/scriptcache"
	"stapbox/core/version"
)

// Exit codes (services 3.8).
const (
	exitFailure = 1
	exitUsage   = 3 // also: nothing is running
	exitConfig  = 6 // configuration, dependencies
)

// manager is one run.
type manager struct {
	inv  *invocation.Invocation
	opts options
	initconf.Settings
	console

	proc    string   // /proc
	stap    []string // program and argv[0]
	staprun string   // "" to look for it
	kill    func(int, unix.Signal) error
	pause   time.Duration // between the looks of stop
	now     func() time.Time
	stdin   *bufio.Reader
	kernel  scriptcache.Kernel // the running one
	target  string             // release of the caches in question
	lock    *os.File
}

// options of the command line.
type options struct {
	action    string
	config    string
	release   string
	recursive bool
	yes       bool
	json      bool
	quiet     bool
	dry       bool
	words     []string
}

func spec() getopt.Spec {
	return getopt.Spec{Defs: []getopt.Def{
		{Short: 'c', Arg: getopt.RequiredArg}, {Short: 'r', Arg: getopt.RequiredArg}, {Short: 'R'}, {Short: 'y'},
		{Short: 'n', Long: "dry-run"}, {Short: 'q', Long: "quiet"}, {Long: "json"}, {Short: 'h', Long: "help"}, {Long: "version"},
	}}
}

const usageText = `Usage: systemtap {start|stop|status|restart|compile|cleanup|condrestart|try-restart|reload|force-reload} [OPTIONS] [SCRIPTS]
       systemtap {enable|disable} SCRIPTS
       systemtap logs SCRIPT
       systemtap {export|import} [-r RELEASE] FILE
Options:
  -c FILE      configuration, in place of /etc/systemtap/config
  -r RELEASE   kernel to compile, clean up or export for; or a build directory
  -R           also the scripts that the named ones require
  -y           answer yes to every question
  -n           say what would be done, and do nothing
  -q           show failures only
  --json       status as JSON
`

// Main runs systemtap.
func Main(ctx context.Context, inv *invocation.Invocation) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	self, err := os.Executable()
	if err != nil {
		inv.Errorf("finding this program: %v", err)
		return exitFailure
	}
	m := &manager{inv: inv, proc: "/proc", stap: []string{self, "stap"}, kill: unix.Kill, pause: time.Second, now: time.Now}
	return m.run(ctx)
}

func (m *manager) run(ctx context.Context) int {
	m.stdin = bufio.NewReader(m.inv.Stdin)
	m.console = console{out: m.inv.Stdout, err: m.inv.Stderr, now: m.now, brackets: exists(redHatFunctions)}
	defer m.console.close()
	if code, done := m.arguments(); done {
		return code
	}
	if code := m.configure(ctx); code != 0 {
		return code
	}
	act, ok := m.action(m.opts.action)
	if !ok {
		return m.usage(fmt.Errorf("unknown command %q", m.opts.action))
	}
	if m.opts.dry {
		return act.do(ctx)
	}
	if err := os.MkdirAll(m.StatPath, 0o755); err != nil {
		m.failure("Failed to make stat directory (%s): %v", m.StatPath, err)
		m.mark(failed)
		return exitFailure
	}
	if act.locks {
		if err := m.takeLock(ctx); err != nil {
			m.failure("Error: %v", err)
			return exitFailure
		}
		defer m.lock.Close()
	}
	m.adopt()
	return act.do(ctx)
}

type action struct {
	do    func(context.Context) int
	locks bool
}

func (m *manager) action(name string) (action, bool) {
	switch name {
	case "start":
		return action{m.start, true}, true
	case "stop":
		return action{m.stop, true}, true
	case "restart", "reload", "force-reload":
		return action{m.restart, true}, true
	case "condrestart", "try-restart":
		return action{m.condrestart, true}, true
	case "status":
		return action{m.status, false}, true
	case "compile":
		return action{m.compile, true}, true
	case "cleanup":
		return action{m.cleanup, true}, true
	case "export":
		return action{m.export, true}, true
	case "import":
		return action{m.imports, true}, true
	case "logs":
		return action{m.logs, false}, true
	case "enable", "disable":
		return action{m.enable, true}, true
	}
	return action{}, false
}

// arguments reads the command line. done is true when the run ends here.
func (m *manager) arguments() (code int, done bool) {
	args := m.inv.Args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		m.opts.action, args = args[0], args[1:]
	}
	list, words, err := getopt.Parse(spec(), args)
	for _, o := range list {
		switch o.Name {
		case "help":
			fmt.Fprint(m.inv.Stdout, usageText)
			return 0, true
		case "version":
			fmt.Fprintf(m.inv.Stdout, "systemtap (stapbox) %s\n", version.Version)
			return 0, true
		case "c":
			m.opts.config = o.Value
		case "r":
			m.opts.release = o.Value
		case "R":
			m.opts.recursive = true
		case "y":
			m.opts.yes = true
		case "dry-run":
			m.opts.dry = true
		case "quiet":
			m.opts.quiet = true
			m.console.quiet = true
		case "json":
			m.opts.json = true
		}
	}
	m.opts.words = words
	switch {
	case err != nil:
		return m.usage(err), true
	case m.opts.action == "":
		return m.usage(errors.New("no command is given")), true
	case m.opts.action == "onboot":
		return m.usage(errors.New("onboot is not among the commands: images for the boot loader are made by dracut; systemtap.service starts scripts at boot")), true
	}
	if _, ok := m.action(m.opts.action); !ok {
		return m.usage(fmt.Errorf("unknown command %q", m.opts.action)), true
	}
	return 0, false
}

// usage ends a run that was asked for in a wrong way.
func (m *manager) usage(err error) int {
	m.syslog("Error: Argument parse error: " + err.Error())
	fmt.Fprintf(m.inv.Stderr, "%s: %v\n", m.inv.Name, err)
	m.console.quiet = false
	m.mark(failed)
	fmt.Fprint(m.inv.Stderr, usageText)
	return exitUsage
}

// runningKernel is what uname(2) says, and uname -a as coreutils writes it.
func runningKernel() (scriptcache.Kernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return scriptcache.Kernel{}, fmt.Errorf("asking for the kernel release: %w", err)
	}
	s := func(b []byte) string { return unix.ByteSliceToString(b) }
	k := scriptcache.Kernel{Release: s(u.Release[:]), Machine: s(u.Machine[:]), Node: s(u.Nodename[:]), Version: s(u.Version[:])}
	k.Uname = strings.Join([]string{s(u.Sysname[:]), k.Node, k.Release, k.Version, k.Machine, "GNU/Linux"}, " ")
	return k, nil
}

// forKernel finds the kernel that -r names. Only some commands work for another
// kernel than the running one.
func (m *manager) forKernel() error {
	if m.kernel.Release == "" {
		k, err := runningKernel()
		if err != nil {
			return err
		}
		m.kernel = k
	}
	m.target = m.kernel.Release
	r := m.opts.release
	if r == "" {
		return nil
	}
	if strings.Contains(r, "/") {
		if !filepath.IsAbs(r) {
			r = filepath.Join(m.inv.Dir, r)
		}
		k, err := kbuild.FindKernel(r)
		if err != nil {
			return err
		}
		m.opts.release, m.target = r, k.Release
	} else {
		if !scriptcache.ValidRelease(r) {
			return fmt.Errorf("-r: %q is not a kernel release", r)
		}
		m.target = r
	}
	switch m.opts.action {
	case "compile", "cleanup", "export", "import":
		return nil
	}
	if m.target != m.kernel.Release {
		return fmt.Errorf("-r %s: %s works on the running kernel %s; -r selects another one for compile, cleanup, export and import only", m.target, m.opts.action, m.kernel.Release)
	}
	return nil
}

// cache is the directory of the compiled scripts in question.
func (m *manager) cache() string { return filepath.Join(m.CachePath, m.target) }

func (m *manager) scriptFile(name string) string { return filepath.Join(m.ScriptPath, name+".stp") }
func (m *manager) cacheFile(name, suffix string) string {
	return filepath.Join(m.cache(), name+suffix)
}

// takeLock waits for other commands to end.
func (m *manager) takeLock(ctx context.Context) error {
	dir, err := os.Open(m.StatPath)
	if err != nil {
		return fmt.Errorf("opening the lock: %w", err)
	}
	defer dir.Close()
	f, err := ownfile.OpenLock(dir, ownfile.LockName)
	if err != nil {
		return fmt.Errorf("opening the lock: %w", err)
	}
	for n := 0; ; n++ {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			m.lock = f
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return fmt.Errorf("locking %q: %w", f.Name(), err)
		}
		if n == 20 {
			fmt.Fprintf(m.inv.Stderr, "%s: waiting for another %s command to end%s\n", m.inv.Name, m.inv.Name, ownfile.Holder(f))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return fmt.Errorf("waiting for another command to end: %w", context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// names are the scripts of the command line, without ".stp".
func (m *manager) names() ([]string, error) {
	var out []string
	for _, w := range m.opts.words {
		n := strings.TrimSuffix(w, ".stp")
		if err := scriptcache.ValidName(n); err != nil {
			m.log(err.Error())
			if m.PassAll {
				return nil, err
			}
			m.failure("%v", err)
			continue
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

// valid drops names that no script can have, with a line in the log.
func (m *manager) valid(names []string) []string {
	var out []string
	for _, n := range names {
		if err := scriptcache.ValidName(n); err != nil {
			m.log(err.Error())
			continue
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// all are the scripts there are.
func (m *manager) all() []string {
	names := baseNames(m.ScriptPath, ".stp")
	if m.AllowCacheOnly {
		names = append(names, baseNames(m.cache(), ".ko")...)
	}
	slices.Sort(names)
	return m.valid(names)
}

// baseNames are the names of the regular files of a directory that end in a
// suffix, without it.
func baseNames(dir, suffix string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		if info, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && info.Mode().IsRegular() {
			out = append(out, name)
		}
	}
	return out
}

// order puts scripts behind those they require. follow tells whether these are
// added.
func (m *manager) order(names []string, follow bool) ([]string, error) {
	var bad error
	list, err := depend.Order(names, func(name string) []string {
		var out []string
		for _, r := range m.requires(name) {
			if err := scriptcache.ValidName(r); err != nil {
				bad = fmt.Errorf("%s_REQ: %w", name, err)
			} else if follow || slices.Contains(names, r) {
				out = append(out, r)
			}
		}
		return out
	})
	if err == nil && follow {
		err = bad
	}
	return list, err
}

// requires are the names of NAME_REQ, without ".stp".
func (m *manager) requires(name string) []string {
	var out []string
	for _, r := range m.Requires(name) {
		out = append(out, strings.TrimSuffix(r, ".stp"))
	}
	return out
}

// selected are the scripts a command is about, in the order of their
// dependencies: the named ones, or those that byDefault finds.
func (m *manager) selected(byDefault func() []string) (list []string, code int) {
	names, err := m.names()
	if err != nil {
		m.failure("Error: %v", err)
		m.mark(failed)
		return nil, exitFailure
	}
	follow := m.opts.recursive || m.Recursive
	if len(m.opts.words) == 0 {
		names, follow = byDefault(), true
	}
	list, err = m.order(names, follow)
	if err == nil {
		return list, 0
	}
	switch m.opts.action {
	case "status":
		return names, 0
	case "stop", "cleanup":
		// What runs can be stopped, whatever the configuration has become.
		m.failure("Warning: %v", err)
		return names, 0
	}
	return nil, m.unsorted(err)
}

func (m *manager) unsorted(err error) int {
	m.failure("%v", err)
	m.failure("Failed to sort dependency")
	m.syslog(err.Error())
	m.mark(failed)
	return exitConfig
}

// toStart are the scripts that start without names: DEFAULT_START, or all.
func (m *manager) toStart() []string {
	if m.HasDefaultStart {
		return m.valid(m.DefaultStart)
	}
	return m.all()
}

// stapVersion is what a cache records about its translator.
func stapVersion() string { return version.Protocol + "/stapbox " + version.Version }
