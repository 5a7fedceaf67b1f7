package initmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"stapbox/core/config"
	"stapbox/core/hostpaths"
	"stapbox/core/initconf"
	"stapbox/core/ownfile"
	"stapbox/core/scriptopt"
)

// configure reads the configuration: the file of -c or the default one, then the
// files of CONFIG_PATH, into the same variables.
func (m *manager) configure(ctx context.Context) int {
	vars := map[string]string{}
	path := m.opts.config
	if path == "" {
		path = hostpaths.InitConfig()
	} else if !filepath.IsAbs(path) {
		path = filepath.Join(m.inv.Dir, path)
	}
	fail := func(err error) int {
		m.syslog("Error: " + err.Error())
		fmt.Fprintf(m.inv.Stderr, "%s: %v\n", m.inv.Name, err)
		m.console.quiet = false
		m.mark(failed)
		return exitConfig
	}
	if err := m.readConfig(ctx, path, vars); err != nil {
		if !errors.Is(err, fs.ErrNotExist) || m.opts.config != "" {
			return fail(fmt.Errorf("Cannot read configuration file %s: %w", path, err))
		}
	}
	first, _, err := initconf.New(vars)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", path, err))
	}
	if err := m.readConfigDir(ctx, first.ConfigPath, vars); err != nil {
		return fail(err)
	}
	settings, warnings, err := initconf.New(vars)
	if err != nil {
		return fail(err)
	}
	m.Settings = settings
	if err := m.forKernel(); err != nil {
		return m.usage(err)
	}
	if m.opts.dry {
		// Nothing is done, so nothing is to be told.
	} else if err := m.openLog(m.LogFile); err != nil && m.opts.action != "status" {
		fmt.Fprintf(m.inv.Stderr, "%s: WARNING: opening the log: %v\n", m.inv.Name, err)
	}
	for _, w := range warnings {
		m.log("Warning: " + w)
		fmt.Fprintf(m.inv.Stderr, "%s: WARNING: %s\n", m.inv.Name, w)
	}
	return 0
}

// readConfigDir reads the files of CONFIG_PATH by name.
func (m *manager) readConfigDir(ctx context.Context, dir string, vars map[string]string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("Cannot read configuration directory: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		kind := initconf.KindOf(e.Name())
		if info, err := os.Stat(path); kind == initconf.Ignored || err != nil || !info.Mode().IsRegular() {
			continue
		}
		if kind == initconf.IfOptions {
			data, err := readOurs(path, "read", config.MaxSize)
			if err == nil {
				err = initconf.OnlyOptions(data)
			}
			if err != nil {
				w := fmt.Sprintf("%s is not read: its name does not end in .conf, and it is no plain list of options (%v)", path, err)
				m.log("Warning: " + w)
				fmt.Fprintf(m.inv.Stderr, "%s: WARNING: %s\n", m.inv.Name, w)
				continue
			}
		}
		if err := m.readConfig(ctx, path, vars); err != nil {
			return fmt.Errorf("Cannot read configuration file %s: %w", path, err)
		}
	}
	return nil
}

// readConfig reads one file. What needs a shell is given to one if nobody but
// root can have written it (contradiction C-15).
func (m *manager) readConfig(ctx context.Context, path string, vars map[string]string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	if os.Geteuid() == 0 {
		if err := ownfile.Check(f, 0); err != nil {
			return err
		}
	}
	data := make([]byte, min(info.Size(), config.MaxSize+1))
	n, err := f.ReadAt(data, 0)
	if n < len(data) {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	err = config.Evaluate(data, vars, m.inv.LookupEnv)
	if !errors.Is(err, config.ErrShell) {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || st.Uid != 0:
		return fmt.Errorf("%w (a shell reads it only if it belongs to root)", err)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%w (a shell reads it only if nobody but root may write to it)", err)
	}
	if _, serr := os.Stat(bash); serr != nil {
		return fmt.Errorf("%w (and there is no %s)", err, bash)
	}
	m.log(fmt.Sprintf("%s is read by %s: %v", path, bash, err))
	return shellConfig(ctx, data, vars)
}

const bash = "/bin/bash"

// shellScript reads assignments from descriptor 3 and lists all variables, each
// name and value ended by a zero byte, then an empty name.
const shellScript = `. /dev/fd/3 >&2
for v in $(compgen -v); do printf '%s\0%s\0' "$v" "${!v}"; done
printf '\0'`

// shellConfig has bash read a file whose bytes are given.
func shellConfig(ctx context.Context, data []byte, vars map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	go func() {
		w.Write(data)
		w.Close()
	}()
	cmd := exec.CommandContext(ctx, bash, "--noprofile", "--norc", "-c", shellScript)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	for k, v := range vars {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Dir, cmd.ExtraFiles, cmd.WaitDelay = "/", []*os.File{r}, time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("running %s: %w: %s", bash, err, bytes.TrimSpace(stderr.Bytes()))
	}
	fields := strings.Split(string(out), "\x00")
	if len(fields) < 2 || fields[len(fields)-2] != "" {
		return fmt.Errorf("%s ended before the end of the file: %s", bash, bytes.TrimSpace(stderr.Bytes()))
	}
	for i := 0; i+1 < len(fields) && fields[i] != ""; i += 2 {
		vars[fields[i]] = fields[i+1]
	}
	return nil
}

// optionsOf are the options of one script: NAME_OPT, else those in the file
// NAME.options beside the script, whose variables are STAP_OPTIONS (of stap) and
// STAPRUN_OPTIONS (of staprun).
func (m *manager) optionsOf(name string) (scriptopt.Options, error) {
	words, set, err := m.Options(name)
	if err != nil {
		return scriptopt.Options{}, fmt.Errorf("Failed to parse parameters. (%w)", err)
	}
	path := filepath.Join(m.ScriptPath, name+".options")
	data, err := readOurs(path, "read", config.MaxSize)
	if set || errors.Is(err, fs.ErrNotExist) {
		if set && err == nil {
			m.log(fmt.Sprintf("Warning: %s_OPT is set, %s is not read", name, path))
		}
		return m.divide(scriptopt.Parse(words))
	}
	if err != nil {
		return scriptopt.Options{}, fmt.Errorf("Failed to parse parameters. (%w)", err)
	}
	list, err := config.Parse(data)
	if err != nil {
		return scriptopt.Options{}, fmt.Errorf("Failed to parse parameters. (%s: %w)", path, err)
	}
	values := config.Values(list)
	if words, err = config.Split(values["STAP_OPTIONS"]); err != nil {
		return scriptopt.Options{}, fmt.Errorf("Failed to parse parameters. (%s: STAP_OPTIONS: %w)", path, err)
	}
	o, err := scriptopt.Parse(words)
	if err != nil {
		return o, err
	}
	if words, err = config.Split(values["STAPRUN_OPTIONS"]); err != nil {
		return scriptopt.Options{}, fmt.Errorf("Failed to parse parameters. (%s: STAPRUN_OPTIONS: %w)", path, err)
	}
	return m.divide(o.WithStart(words))
}

// divide gives a relative output file its place.
func (m *manager) divide(o scriptopt.Options, err error) (scriptopt.Options, error) {
	if err == nil && o.Daemon() && !filepath.IsAbs(o.Output) {
		// Only what the user wrote is a template for strftime(3).
		dir := strings.ReplaceAll(filepath.Join(filepath.Dir(m.LogFile), "systemtap"), "%", "%%")
		o = o.WithOutput(filepath.Join(dir, o.Output))
	}
	return o, err
}
