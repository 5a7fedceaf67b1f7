package initmanager

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/config"
	"stapbox/core/scriptcache"
)

// Exit codes of status for what does not run.
const (
	statusStale   = 1 // stopped, with a status file left
	statusStopped = 3
	statusForeign = 4 // a module of that name which the service did not start
)

// scriptStatus is one script, as --json shows it.
type scriptStatus struct {
	Name     string         `json:"name"`
	State    string         `json:"state"` // running, stopped, foreign
	PID      int            `json:"pid,omitempty"`
	Output   string         `json:"output,omitempty"`
	Requires []scriptStatus `json:"requires,omitempty"`
}

func (m *manager) statusOf(name string) (scriptStatus, int) {
	s := m.stateOf(name)
	switch {
	case s.running():
		return scriptStatus{Name: name, State: "running", PID: s.pid}, 0
	case s.loaded:
		return scriptStatus{Name: name, State: "foreign"}, statusForeign
	case s.hasFile:
		return scriptStatus{Name: name, State: "stopped"}, statusStale
	}
	return scriptStatus{Name: name, State: "stopped"}, statusStopped
}

func (m *manager) status(context.Context) int {
	m.console.quiet = false
	list, code := m.selected(func() []string {
		names := append(m.all(), m.statNames()...)
		slices.Sort(names)
		return slices.Compact(names)
	})
	if code != 0 {
		return code
	}
	if len(m.opts.words) == 0 {
		slices.Sort(list)
	}
	code = statusStopped
	running := false
	all := []scriptStatus{}
	for _, name := range list {
		st, c := m.statusOf(name)
		running, code = running || c == 0, c
		for _, r := range m.requires(name) {
			need, _ := m.statusOf(r)
			st.Requires = append(st.Requires, need)
		}
		if opts, err := m.optionsOf(name); err == nil {
			st.Output = opts.Output
		}
		all = append(all, st)
	}
	if running {
		code = 0
	}
	if m.opts.json {
		e := json.NewEncoder(m.inv.Stdout)
		e.SetIndent("", "  ")
		if err := e.Encode(all); err != nil {
			return exitFailure
		}
		return code
	}
	if len(list) == 0 {
		fmt.Fprintln(m.inv.Stdout, "No systemtap scripts are present")
		return code
	}
	for _, st := range all {
		switch {
		case st.State == "running" && st.PID > 0:
			fmt.Fprintf(m.inv.Stdout, "%s(%d) is running...\n", st.Name, st.PID)
		case st.State == "running":
			fmt.Fprintf(m.inv.Stdout, "%s is running...\n", st.Name)
		case st.State == "foreign":
			fmt.Fprintf(m.inv.Stdout, "%s is dead, but another script is running.\n", st.Name)
		default:
			fmt.Fprintf(m.inv.Stdout, "%s is stopped\n", st.Name)
		}
		if len(st.Requires) > 0 {
			var parts []string
			for _, r := range st.Requires {
				parts = append(parts, fmt.Sprintf("%s (%s)", r.Name, r.State))
			}
			fmt.Fprintf(m.inv.Stdout, "  requires: %s\n", strings.Join(parts, ", "))
		}
	}
	return code
}

// cleanup removes compiled scripts: the named ones, or all of one kernel, those
// without a script included.
func (m *manager) cleanup(context.Context) int {
	m.say("Cleaning up systemtap scripts: ")
	names := func() []string {
		var out []string
		for _, s := range scriptcache.Suffixes() {
			out = append(out, baseNames(m.cache(), s)...)
		}
		slices.Sort(out)
		return m.valid(out)
	}
	var list []string
	if len(m.opts.words) == 0 {
		list = names()
	} else {
		var code int
		if list, code = m.selected(names); code != 0 {
			return code
		}
	}
	var files []string
	for _, n := range list {
		for _, s := range scriptcache.Suffixes() {
			if exists(m.cacheFile(n, s)) {
				files = append(files, n+s)
			}
		}
	}
	if len(files) == 0 {
		m.say("no cache")
		m.mark(passed)
		return 0
	}
	m.say("Removing caches: %s\n", strings.Join(files, " "))
	if m.opts.dry {
		m.mark(passed)
		return 0
	}
	if !m.confirm("Do you really want to remove above caches") {
		return 0
	}
	for _, f := range files {
		if err := os.Remove(filepath.Join(m.cache(), f)); err != nil {
			m.failure("Error: %v", err)
			m.mark(failed)
			return exitFailure
		}
	}
	// The uprobes module of old releases is needed while a mark is left.
	if len(baseNames(m.cache(), ".uprobes")) == 0 {
		os.RemoveAll(filepath.Join(m.cache(), "uprobes"))
	}
	os.Remove(m.cache()) // if it is empty
	m.say("done")
	m.mark(passed)
	return 0
}

// logs attaches to what a script keeps in memory.
func (m *manager) logs(context.Context) int {
	names, err := m.names()
	if err == nil && len(names) != 1 {
		return m.usage(fmt.Errorf("logs takes one script, not %d", len(names)))
	}
	if err != nil {
		return m.usage(err)
	}
	name := names[0]
	st, code := m.statusOf(name)
	if code != 0 {
		m.inv.Errorf("%s is not running (%s)", name, st.State)
		return code
	}
	if opts, err := m.optionsOf(name); err == nil && st.PID > 0 {
		m.inv.Errorf("%s writes to %s, there is nothing to attach to", name, opts.Output)
		return exitFailure
	}
	staprun, err := m.findStaprun()
	if err != nil {
		m.inv.Errorf("%v", err)
		return exitFailure
	}
	cmd := exec.Command(staprun, "-A", name)
	cmd.Args[0] = "staprun"
	cmd.Env, cmd.Dir = m.environ(), m.inv.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = m.inv.Stdin, m.inv.Stdout, m.inv.Stderr
	return m.attach(cmd)
}

// attach becomes staprun where it can: signals are staprun's then.
func (m *manager) attach(cmd *exec.Cmd) int {
	if m.inv.Stdout == any(os.Stdout) {
		if err := unix.Exec(cmd.Path, cmd.Args, cmd.Env); err != nil {
			m.inv.Errorf("running %q: %v", cmd.Path, err)
		}
		return exitFailure
	}
	if err := cmd.Run(); err != nil {
		return exitFailure
	}
	return 0
}

// enabledFile is where enable and disable keep DEFAULT_START. It comes last in
// CONFIG_PATH.
const enabledFile = "zz-default-start.conf"

// enable is the commands enable and disable: which scripts start by default.
func (m *manager) enable(context.Context) int {
	names, err := m.names()
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("%s takes names of scripts", m.opts.action)
	}
	if err != nil {
		return m.usage(err)
	}
	before := m.toStart()
	after := slices.Clone(before)
	for _, n := range names {
		at := slices.Index(after, n)
		switch {
		case m.opts.action == "disable" && at >= 0:
			after = slices.Delete(after, at, at+1)
		case m.opts.action == "enable" && at < 0:
			if !exists(m.scriptFile(n)) && !exists(m.cacheFile(n, ".ko")) {
				m.inv.Errorf("no script file(%s)", m.scriptFile(n))
				return exitFailure
			}
			after = append(after, n)
		}
	}
	if slices.Equal(before, after) {
		fmt.Fprintf(m.inv.Stdout, "nothing to do: %s\n", describeStart(m.HasDefaultStart, before))
		return 0
	}
	value := strings.Join(after, " ")
	if value == "" {
		value = " " // empty would be all
	}
	if !m.opts.dry {
		text := "# Written by systemtap enable and disable: the scripts that start by default.\nDEFAULT_START=" + config.Quote(value) + "\n"
		err := os.MkdirAll(m.ConfigPath, 0o755)
		if err == nil {
			err = replace(filepath.Join(m.ConfigPath, enabledFile), []byte(text), time.Time{})
		}
		if err != nil {
			m.inv.Errorf("writing the configuration: %v", err)
			return exitFailure
		}
	}
	m.log(fmt.Sprintf("DEFAULT_START=%s", config.Quote(value)))
	fmt.Fprintln(m.inv.Stdout, describeStart(true, after))
	return 0
}

func describeStart(set bool, names []string) string {
	switch {
	case !set:
		return "all scripts start by default"
	case len(names) == 0:
		return "no script starts by default"
	}
	return "by default start: " + strings.Join(names, " ")
}
