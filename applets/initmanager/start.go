package initmanager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/config"
	"stapbox/core/hostpaths"
	"stapbox/core/ownfile"
	"stapbox/core/scriptcache"
)

// state is what a script does.
type state struct {
	loaded  bool
	hasFile bool // a status file
	pid     int  // of stapio, 0 in memory mode
}

func (s state) running() bool { return s.loaded && s.hasFile }

// stateOf looks at a script.
func (m *manager) stateOf(name string) state {
	var s state
	s.loaded = m.loaded()[name]
	data, err := os.ReadFile(m.statFile(name))
	if err == nil {
		s.hasFile = true
		s.pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		s.pid = max(s.pid, 0)
	}
	return s
}

func (m *manager) statFile(name string) string { return filepath.Join(m.StatPath, name) }

// loaded are the modules of the kernel (proc(5), /proc/modules).
func (m *manager) loaded() map[string]bool {
	set := map[string]bool{}
	data, err := os.ReadFile(filepath.Join(m.proc, "modules"))
	if err != nil {
		return set
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 0 {
			set[f[0]] = true
		}
	}
	return set
}

// adopt writes the status files of modules that were started before the service
// could: they are in the cache, and say themselves that they are the service's.
func (m *manager) adopt() {
	found, err := filepath.Glob(filepath.Join(m.proc, "systemtap/*/srvstat"))
	if err != nil {
		return
	}
	for _, path := range found {
		name := filepath.Base(filepath.Dir(path))
		if scriptcache.ValidName(name) != nil || m.opts.dry || exists(m.statFile(name)) || !exists(filepath.Join(m.CachePath, m.kernel.Release, name+".ko")) {
			continue
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "running\n" {
			continue
		}
		if err := m.writeStat(name, 0); err == nil {
			m.log(name + " was started before the service: it is the service's from now on")
		}
	}
}

func (m *manager) writeStat(name string, pid int) error {
	return replace(m.statFile(name), fmt.Appendf(nil, "%d\n", pid), time.Time{})
}

// findStaprun is $SYSTEMTAP_STAPRUN, the installed one, or the one beside our own
// file.
func (m *manager) findStaprun() (string, error) {
	if m.staprun != "" {
		return m.staprun, nil
	}
	if p := m.inv.Getenv("SYSTEMTAP_STAPRUN"); p != "" {
		return p, nil
	}
	p, err := hostpaths.FindStaprun()
	if err != nil {
		return "", fmt.Errorf("%w; hint: stapbox install", err)
	}
	return p, nil
}

func shellWord(s string) string { return config.Quote(s) }

func (m *manager) start(ctx context.Context) int {
	m.say("Starting systemtap: ")
	list, code := m.selected(m.toStart)
	if code != 0 {
		return code
	}
	return m.startList(ctx, list)
}

func (m *manager) startList(ctx context.Context, list []string) int {
	if len(list) == 0 {
		m.say("Warning: No scripts exist.\n")
		m.mark(warning)
		return 0
	}
	down := map[string]bool{}
	failures := 0
	for _, name := range list {
		if ctx.Err() != nil {
			m.failure("Error: %v", context.Cause(ctx))
			m.mark(failed)
			return exitFailure
		}
		if i := slices.IndexFunc(m.requires(name), func(r string) bool { return down[r] }); i >= 0 {
			m.failure(`Skipping "%s": required script "%s" is not running`, name, m.requires(name)[i])
			down[name] = true
			continue
		}
		code := m.startOne(ctx, name)
		if code == 0 {
			continue
		}
		text := fmt.Sprintf(`Failed to run "%s". (%d)`, name, code)
		m.failure("%s", text)
		m.syslog(text)
		down[name] = true
		failures++
		if m.PassAll {
			m.mark(failed)
			return exitFailure
		}
	}
	return m.end("systemtap startup", failures)
}

// startOne starts one script; the code is 0 or says how it failed.
func (m *manager) startOne(ctx context.Context, name string) int {
	switch s := m.stateOf(name); {
	case s.running():
		return 0
	case s.loaded:
		m.failure("%s is dead, but another script is running.", name)
		return 4
	}
	opts, err := m.optionsOf(name)
	if err != nil {
		m.failure("%s: %v", name, err)
		return 2
	}
	if m.opts.dry {
		how := "from its cache"
		if reason := m.check(name, opts); reason != nil {
			how = fmt.Sprintf("after compiling it: %v", reason)
		}
		m.say(" would start %s %s\n", name, how)
		return 0
	}
	if err := m.prepare(ctx, name, opts); err != nil {
		return 1
	}
	staprun, err := m.findStaprun()
	if err != nil {
		m.failure("Error: %v", err)
		return 1
	}
	if opts.Daemon() {
		// The directory of relative output files is ours to make.
		if dir := filepath.Join(filepath.Dir(m.LogFile), "systemtap"); filepath.Dir(opts.Output) == dir {
			os.MkdirAll(dir, 0o755)
		}
	}
	if err := onlyOurs(m.cacheFile(name, ".ko"), "loaded"); err != nil {
		m.failure("Error: %v", err)
		return 1
	}
	m.say(" Starting %s ... ", name)
	cmd := exec.Command(staprun, append(append(slices.Clone(opts.Start), m.cacheFile(name, ".ko")), opts.Params...)...)
	cmd.Args[0] = "staprun"
	cmd.Dir, cmd.Env = "/", m.environ()
	pid, told, err := m.runStaprun(cmd, opts.Daemon())
	if err == nil {
		err = m.writeStat(name, pid)
	}
	if err != nil {
		m.say("error\n")
		m.failure("  %s", reasonOf(told, err))
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			return exit.ExitCode()
		}
		return 1
	}
	m.say("done\n")
	return 0
}

// onlyOurs refuses to have root use a file that somebody else can have put in its
// place: it and the directories above it have to be root's, and no others' to write.
// What is the matter is said with done, as in "loaded".
func onlyOurs(path, done string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return notDone(path, done, ownfile.OnlyOurs(path, 0))
}

func notDone(path, done string, err error) error {
	var foreign *ownfile.ForeignError
	if errors.As(err, &foreign) {
		return fmt.Errorf("%q is not %s: %w", path, done, err)
	}
	return err
}

// readOurs reads a file that onlyOurs accepts, and judges the open one.
func readOurs(path, done string, limit int64) ([]byte, error) {
	if os.Geteuid() != 0 {
		return os.ReadFile(path)
	}
	data, err := ownfile.ReadOurs(path, 0, limit)
	return data, notDone(path, done, err)
}

// daemonWait is how long staprun -D may take until it says its pid.
const daemonWait = 10 * time.Second

// runStaprun runs staprun; in background mode the pid of stapio is the first line
// it prints, which may come after staprun itself has ended.
func (m *manager) runStaprun(cmd *exec.Cmd, daemon bool) (pid int, told []byte, err error) {
	out, err := os.CreateTemp(m.TempPath, "pid.*")
	if err != nil {
		return 0, nil, err
	}
	defer out.Close()
	os.Remove(out.Name())
	cmd.Stdout = out
	told, err = m.logged(cmd, false)
	if err != nil || !daemon {
		return 0, told, err
	}
	for deadline := time.Now().Add(daemonWait); ; time.Sleep(20 * time.Millisecond) {
		var b [64]byte
		n, _ := out.ReadAt(b[:], 0)
		if line, _, ended := strings.Cut(string(b[:n]), "\n"); ended {
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil || pid < 1 {
				return 0, told, fmt.Errorf("staprun says %q, which is no pid", line)
			}
			return pid, told, nil
		}
		if time.Now().After(deadline) {
			return 0, told, fmt.Errorf("staprun does not say the pid of its background process after %v", daemonWait)
		}
	}
}

func (m *manager) restart(ctx context.Context) int {
	words := m.opts.words
	if code := m.stop(ctx); code != 0 {
		return code
	}
	m.opts.words = words
	return m.start(ctx)
}

// condrestart restarts what is running, and nothing else (B-53).
func (m *manager) condrestart(ctx context.Context) int {
	names, err := m.names()
	if err != nil {
		m.failure("Error: %v", err)
		return exitFailure
	}
	if len(m.opts.words) == 0 {
		names = m.statNames()
	}
	running := slices.DeleteFunc(names, func(n string) bool { return !m.stateOf(n).running() })
	if len(running) == 0 {
		return 0
	}
	list, err := m.order(running, m.opts.recursive || m.Recursive)
	if err != nil {
		return m.unsorted(err)
	}
	list = slices.DeleteFunc(list, func(n string) bool { return !m.stateOf(n).running() })
	m.say("Stopping systemtap: ")
	if code := m.stopList(ctx, list, list); code != 0 {
		return code
	}
	m.say("Starting systemtap: ")
	return m.startList(ctx, list)
}

// statNames are the scripts that have a status file.
func (m *manager) statNames() []string {
	var out []string
	for _, n := range baseNames(m.StatPath, "") {
		if scriptcache.ValidName(n) == nil {
			out = append(out, n)
		}
	}
	return out
}

func (m *manager) stop(ctx context.Context) int {
	m.say("Stopping systemtap: ")
	list, code := m.selected(m.statNames)
	if code != 0 {
		return code
	}
	var named []string
	for _, w := range m.opts.words {
		named = append(named, strings.TrimSuffix(w, ".stp"))
	}
	if len(m.opts.words) == 0 {
		// All that run; what they require and does not run is no matter.
		named = m.statNames()
		list = slices.DeleteFunc(list, func(n string) bool { return !slices.Contains(named, n) })
	}
	return m.stopList(ctx, list, named)
}

// stopList stops scripts in the reverse of the given order. Those that nobody
// named stay while a script that was not stopped requires them.
func (m *manager) stopList(ctx context.Context, list, named []string) int {
	failures := 0
	stopped := map[string]bool{}
	for _, name := range slices.Backward(list) {
		if ctx.Err() != nil {
			m.failure("Error: %v", context.Cause(ctx))
			m.mark(failed)
			return exitFailure
		}
		if !slices.Contains(named, name) {
			if user := m.neededBy(name, stopped); user != "" {
				m.log(fmt.Sprintf(`Keeping "%s": script "%s" requires it and is running`, name, user))
				continue
			}
		}
		if m.opts.dry {
			if m.stateOf(name).loaded {
				m.say(" would stop %s\n", name)
			}
			stopped[name] = true
			continue
		}
		if err := m.stopOne(ctx, name); err != nil {
			m.failure("  %v", err)
			m.failure(`Failed to stop "%s". `, name)
			m.syslog(fmt.Sprintf(`Failed to stop "%s". `, name))
			failures++
			if m.PassAll {
				m.mark(failed)
				return exitFailure
			}
			continue
		}
		stopped[name] = true
	}
	return m.end("systemtap stopping ", failures)
}

// neededBy is a running script that requires another, "" if there is none.
func (m *manager) neededBy(name string, stopped map[string]bool) string {
	for _, other := range m.statNames() {
		if !stopped[other] && other != name && slices.Contains(m.requires(other), name) && m.stateOf(other).running() {
			return other
		}
	}
	return ""
}

// stopRounds is how often a script is asked to stop, once a second.
const stopRounds = 10

func (m *manager) stopOne(ctx context.Context, name string) error {
	if s := m.stateOf(name); s.loaded && !s.hasFile && !m.opts.yes {
		return fmt.Errorf("module %q is loaded, but the service did not start it; -y stops it all the same", name)
	}
	for round := range stopRounds {
		s := m.stateOf(name)
		if !s.loaded {
			return m.removeStat(name)
		}
		switch {
		case s.pid > 0 && m.isStapio(s.pid, name):
			// The third signal would cut its end short.
			if round == 0 || round == stopRounds/2 {
				m.log(fmt.Sprintf("Exec: kill -TERM %d", s.pid))
				if err := m.kill(s.pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("ending process %d: %w", s.pid, err)
				}
			}
		default:
			staprun, err := m.findStaprun()
			if err != nil {
				return err
			}
			cmd := exec.Command(staprun, "-d", name)
			cmd.Args[0] = "staprun"
			cmd.Dir, cmd.Env = "/", m.environ()
			if told, err := m.logged(cmd, true); err != nil && m.stateOf(name).loaded {
				return errors.New(reasonOf(told, err))
			}
		}
		for range 20 {
			if !m.stateOf(name).loaded {
				return m.removeStat(name)
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(m.pause / 20):
			}
		}
	}
	return fmt.Errorf(`Failed to stop script "%s" after %d attempts`, name, stopRounds)
}

func (m *manager) removeStat(name string) error {
	if err := os.Remove(m.statFile(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// isStapio reports whether a process is what a status file means, the stapio of
// that script: pids are used again.
func (m *manager) isStapio(pid int, name string) bool {
	dir := filepath.Join(m.proc, strconv.Itoa(pid))
	comm, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil || strings.TrimSpace(string(comm)) != "stapio" {
		return false
	}
	words, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	return err == nil && slices.ContainsFunc(strings.Split(string(words), "\x00"), func(w string) bool {
		return strings.TrimSuffix(filepath.Base(w), ".ko") == name
	})
}
