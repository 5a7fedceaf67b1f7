package initmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/kmod"
	"stapbox/core/scriptcache"
	"stapbox/core/scriptopt"
)

// compile is the command: it compiles whether there are caches or not. With -r it
// is also the check before a change of the kernel: it goes on after a failure and
// tells about every script.
func (m *manager) compile(ctx context.Context) int {
	m.say("Compiling systemtap scripts: ")
	list, code := m.selected(m.all)
	if code != 0 {
		return code
	}
	if !m.opts.dry && !m.mayOverwrite(list) {
		m.say("nothing is compiled\n")
		return 0
	}
	enabled := m.enabledSet()
	ahead := m.opts.release != ""
	failures := 0
	var verdicts []string
	for _, name := range list {
		if ctx.Err() != nil {
			m.mark(failed)
			return exitFailure
		}
		reason := m.compileOne(ctx, name)
		note := ""
		if !enabled[name] {
			note = " (not started by default)"
		}
		if reason == nil {
			verdicts = append(verdicts, fmt.Sprintf("  %s: ready for %s%s", name, m.target, note))
			continue
		}
		verdicts = append(verdicts, fmt.Sprintf("  %s: would fail on %s: %v%s", name, m.target, reason, note))
		if ahead && note != "" && len(m.opts.words) == 0 {
			continue
		}
		failures++
		if m.PassAll && !ahead {
			m.failure("%s compilation failed ", name)
			m.mark(failed)
			return exitFailure
		}
	}
	if ahead && !m.opts.dry {
		for _, v := range verdicts {
			if strings.Contains(v, ": would fail on ") {
				m.failure("%s", v)
			} else {
				m.say("%s\n", v)
			}
		}
		if failures > 0 {
			m.log(fmt.Sprintf("Error: %d of %d scripts would fail on %s", failures, len(list), m.target))
			m.mark(failed)
			return exitFailure
		}
	}
	return m.end("systemtap compiled ", failures)
}

// end closes a command that has gone through all its scripts.
func (m *manager) end(what string, failures int) int {
	if failures > 0 {
		m.log(fmt.Sprintf("Warning: %d failure occurred.", failures))
		m.log("Warning: " + what)
		m.mark(warning)
		return 0
	}
	m.log("Pass: " + what)
	m.mark(passed)
	return 0
}

// enabledSet are the scripts that start without being named, and what they
// require.
func (m *manager) enabledSet() map[string]bool {
	set := map[string]bool{}
	list, err := m.order(m.toStart(), true)
	if err != nil {
		list = m.toStart()
	}
	for _, n := range list {
		set[n] = true
	}
	return set
}

// mayOverwrite asks before caches are replaced.
func (m *manager) mayOverwrite(list []string) bool {
	var files []string
	for _, n := range list {
		if !exists(m.scriptFile(n)) {
			continue
		}
		for _, s := range scriptcache.Suffixes() {
			if exists(m.cacheFile(n, s)) {
				files = append(files, n+s)
			}
		}
	}
	if len(files) == 0 || m.opts.yes {
		return true
	}
	m.say("Updating caches: %s\n", strings.Join(files, " "))
	return m.confirm("Do you really want to update above caches")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// compileOne compiles a script for the command compile; the error is the reason
// for the user.
func (m *manager) compileOne(ctx context.Context, name string) error {
	opts, err := m.optionsOf(name)
	if err != nil {
		m.failure("%s: %v", name, err)
		return err
	}
	return m.build(ctx, name, opts)
}

// build compiles a script into the cache.
func (m *manager) build(ctx context.Context, name string, opts scriptopt.Options) error {
	script := m.scriptFile(name)
	if info, err := os.Stat(script); err != nil || !info.Mode().IsRegular() {
		if m.AllowCacheOnly && exists(m.cacheFile(name, ".ko")) {
			m.failure("Warning: no script file(%s). Use compiled cache.", script)
			if err := m.check(name, opts); err != nil {
				return err
			}
			return nil
		}
		m.failure("Error: no script file(%s).", script)
		return fmt.Errorf("no script file %s", script)
	}
	if err := onlyOurs(script, "compiled"); err != nil {
		m.failure("Error: %v", err)
		return err
	}
	if m.opts.dry {
		m.say(" would compile %s for %s\n", name, m.target)
		return nil
	}
	for _, w := range opts.Warnings {
		m.failure("Warning: %s: %s", name, w)
	}
	m.say(" Compiling %s ... ", name)
	reason := m.stapInto(ctx, name, script, opts)
	if reason != nil {
		m.say("error\n")
		m.failure("  %v", reason)
		m.log(fmt.Sprintf("Failed to compile script(%s).", name))
		m.syslog(fmt.Sprintf("Failed to compile script(%s).", name))
		return reason
	}
	m.say("done\n")
	return nil
}

// stapInto runs stap in a directory of its own and moves what it made into the
// cache.
func (m *manager) stapInto(ctx context.Context, name, script string, opts scriptopt.Options) error {
	dir, err := os.MkdirTemp(m.TempPath, "cache.")
	if err != nil {
		m.log(fmt.Sprintf("Failed to create temporary directory. (%v)", err))
		return fmt.Errorf("Failed to create temporary directory. (%w)", err)
	}
	defer os.RemoveAll(dir)
	begin := m.now()
	cmd := exec.CommandContext(ctx, m.stap[0])
	cmd.Args = append([]string{m.stap[1]}, m.stapArgs(name, script, opts)...)
	cmd.Dir, cmd.Env = dir, append(m.environ(), "TMPDIR="+m.TempPath)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	told, err := m.logged(cmd, true)
	if err != nil {
		return errors.New(reasonOf(told, err))
	}
	image, err := os.ReadFile(filepath.Join(dir, name+".ko"))
	if err != nil {
		return fmt.Errorf("stap left no module: %w", err)
	}
	vermagic, _, err := kmod.Info(image, "vermagic")
	if err != nil {
		return fmt.Errorf("reading the module that stap made: %w", err)
	}
	if release, _, _ := strings.Cut(vermagic, " "); release != m.target {
		return fmt.Errorf("stap made a module for kernel %q, not %q", release, m.target)
	}
	signature, err := os.ReadFile(filepath.Join(dir, name+".ko.sgn"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	record := scriptcache.Record{Uname: m.kernel.Uname, Release: m.target, Machine: m.kernel.Machine, Stap: stapVersion(), Options: opts.Line()}
	return m.store(name, begin, image, signature, record.Format())
}

// store writes the files of a compiled script, the record last. The time of the
// module is that of the begin of its compilation, so that a script which was
// changed meanwhile is newer.
func (m *manager) store(name string, when time.Time, image, signature, record []byte) error {
	if err := os.MkdirAll(m.cache(), 0o755); err != nil {
		return fmt.Errorf("making the cache directory: %w", err)
	}
	os.Remove(m.cacheFile(name, ".opts"))
	os.Remove(m.cacheFile(name, ".ko.sgn"))
	os.Remove(m.cacheFile(name, ".uprobes"))
	for _, f := range []struct {
		suffix string
		data   []byte
	}{{".ko", image}, {".ko.sgn", signature}, {".opts", record}} {
		if f.data == nil {
			continue
		}
		if err := replace(m.cacheFile(name, f.suffix), f.data, when); err != nil {
			return fmt.Errorf("writing the cache: %w", err)
		}
	}
	return nil
}

// replace writes a file by rename.
func replace(path string, data []byte, when time.Time) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && !when.IsZero() {
		err = os.Chtimes(f.Name(), when, when)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// srvstat is compiled into every script: the file /proc/systemtap/NAME/srvstat
// tells that a module is one of the service's, also when it was started before
// the service could write a status file.
const srvstat = `probe procfs("srvstat").read {$value = "running\n"}`

// stapArgs is the command line of stap.
func (m *manager) stapArgs(name, script string, opts scriptopt.Options) []string {
	var args []string
	if m.SrvStat && !slices.ContainsFunc([]string{"privilege", "unprivileged", "runtime", "bpf", "dyninst"}, opts.Has) {
		args = append(args, "-E", srvstat)
	}
	release := m.opts.release
	if release == "" {
		release = m.target
	}
	args = append(args, "-m", name, "-p4", "-r", release)
	if m.ServerFallback && !opts.Has("use-server") && !opts.Has("use-server-on-error") {
		args = append(args, "--use-server-on-error")
	}
	for _, w := range opts.Compile {
		// Kernels have uprobes built in (decision L12): there is nothing to save.
		if w != "--save-uprobes" {
			args = append(args, w)
		}
	}
	return append(args, script)
}

// environ is the environment of the programs we run: at boot there may be little
// in it.
func (m *manager) environ() []string {
	env := slices.Clone(m.inv.Environ)
	if m.inv.Getenv("PATH") == "" {
		env = append(env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return env
}

// logged runs a program with its messages in the log, and returns them too.
func (m *manager) logged(cmd *exec.Cmd, stdout bool) (told []byte, err error) {
	words := make([]string, len(cmd.Args))
	for i, a := range cmd.Args {
		words[i] = shellWord(a)
	}
	m.log("Exec: " + strings.Join(words, " "))
	// A file, not a pipe: what stays in the background may keep it open.
	f, err := os.CreateTemp(m.TempPath, "log.*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	os.Remove(f.Name())
	cmd.Stderr = f
	if stdout {
		cmd.Stdout = f
	}
	err = cmd.Run()
	if _, serr := f.Seek(0, io.SeekStart); serr == nil {
		told, _ = io.ReadAll(io.LimitReader(f, 1<<20))
	}
	if m.file != nil {
		m.file.Write(told)
		if len(told) > 0 && told[len(told)-1] != '\n' {
			io.WriteString(m.file, "\n")
		}
	}
	return told, err
}

// reasonOf is the line of a program's messages that says why it failed, with the
// hint if there is one.
func reasonOf(told []byte, err error) string {
	var reason, last, hint string
	for line := range bytes.Lines(told) {
		l := strings.TrimSpace(clean(string(line)))
		if l == "" {
			continue
		}
		switch {
		case strings.HasPrefix(l, "hint:"):
			hint = "; " + l
			continue
		case reason == "" && (strings.Contains(l, "ERROR: ") || strings.Contains(l, "error: ")):
			reason = l
		}
		last = l
	}
	if reason == "" {
		reason = last
	}
	if reason == "" {
		reason = err.Error()
	}
	return reason + hint
}

// clean makes text of programs fit for a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// check says why the compiled script must not be used.
func (m *manager) check(name string, opts scriptopt.Options) error {
	ko := m.cacheFile(name, ".ko")
	info, err := os.Stat(ko)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no compiled module")
	}
	var image []byte
	if err == nil {
		image, err = os.ReadFile(ko)
	}
	if err != nil {
		return err
	}
	k := m.kernel
	k.Release = m.target
	if k.Vermagic, _, err = kmod.Info(image, "vermagic"); err != nil {
		return err
	}
	script, err := os.Stat(m.scriptFile(name))
	hasScript := err == nil
	if hasScript && script.ModTime().After(info.ModTime()) {
		return errors.New("the script is newer than the compiled module")
	}
	var record *scriptcache.Record
	if data, err := os.ReadFile(m.cacheFile(name, ".opts")); err == nil {
		r, err := scriptcache.ParseRecord(data)
		if err != nil {
			return err
		}
		record = &r
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return scriptcache.Check(record, k, opts.Line(), hasScript)
}

// prepare makes sure that there is a module to start.
func (m *manager) prepare(ctx context.Context, name string, opts scriptopt.Options) error {
	if !exists(m.scriptFile(name)) {
		return m.build(ctx, name, opts) // the cache alone, or an error
	}
	reason := m.check(name, opts)
	if reason == nil {
		return nil
	}
	m.log(fmt.Sprintf("No valid cache for %s: %v", name, reason))
	if m.AutoCompile {
		return m.build(ctx, name, opts)
	}
	m.failure("No valid cache for %s: %v (AUTOCOMPILE is no)", name, reason)
	m.syslog("No valid cache for " + name)
	return fmt.Errorf("No valid cache for %s: %w", name, reason)
}
