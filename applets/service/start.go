package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"stapbox/core/kbuild"
	"stapbox/core/service"
)

const rootRefused = "For security reasons, invocation of stap-server as root is not supported."

// toStart is what to start: the servers of the command line, or the configured
// ones.
func (m *manager) toStart() []*service.Choice {
	if len(m.chosen.Choices) > 0 {
		return m.chosen.Choices
	}
	return m.chosen.Configured(m.configs)
}

func (m *manager) startAll(ctx context.Context, choices []*service.Choice) int {
	rc := exitOK
	for _, c := range choices {
		rc = max(rc, m.start(ctx, c))
	}
	return rc
}

// start starts a server, unless one runs that is meant.
func (m *manager) start(ctx context.Context, c *service.Choice) int {
	if m.interrupted {
		return exitFailure
	}
	spec := c.Fill(m.defaults)
	if c.Base != nil && spec.Nickname == strconv.Itoa(c.Base.PID) {
		spec.Nickname = ""
	}
	action := "stap-server start " + spec.String()
	m.out.begin("Starting stap-server " + spec.String())
	m.log("Starting stap-server " + spec.String())
	for _, r := range m.running {
		if c.Finds(r, m.defaults) && m.dir.Alive(r) {
			return m.passed(action)
		}
	}
	if err := m.believe(c.Base); err != nil {
		m.complain(err.Error())
		return m.failed(action)
	}
	a, err := m.find(spec.User)
	if err != nil {
		m.complain(fmt.Sprintf("Cannot run servers as user %s: %v", spec.User, err))
		return m.failed(action)
	}
	if a.uid == 0 {
		m.complain(rootRefused)
		return m.failed(action)
	}
	for _, err := range m.withoutHeaders(spec) {
		m.complain(fmt.Sprintf("WARNING: %v: the server builds nothing for it", err))
	}
	if f, err := m.openLog(spec.Log, spec.User); err == nil {
		f.Close()
	} else if dir := (*logDirError)(nil); errors.As(err, &dir) {
		m.complain(err.Error())
		return m.failed(action)
	} // else the server says what it cannot write
	server, err := m.launch(ctx, spec, a)
	if err != nil {
		m.interrupted = errors.Is(err, context.Canceled)
		if strings.HasPrefix(err.Error(), "Cannot check/create certificate") {
			m.complain(fmt.Sprintf("Failed to make certificates (%s .systemtap/ssl/server/stap.cert)", spec.User))
		}
		m.complain(fmt.Sprintf("Unable to start a systemtap server: %s did not start: %v", serverPath(m.executable), err))
		return m.failed(action)
	}
	if spec.Nickname == "" {
		spec.Nickname = strconv.Itoa(server.pid)
	}
	r := &service.Running{Spec: *spec, PID: server.pid, Facts: service.Facts{
		Port: server.port, Started: m.now().UTC(), Fingerprint: server.fingerprint,
	}}
	if p, err := service.Process(m.dir.Proc, server.pid); err == nil {
		r.Facts.StartTime = p.Start
	}
	if err := m.dir.Write(r); err != nil {
		// Nobody could stop it later.
		if h, _ := service.Hold(m.dir.Proc, server.pid, 0); h != nil {
			h.Signal(15)
			h.Close()
		}
		m.complain(err.Error())
		return m.failed(action)
	}
	if c.Base != nil && !c.Modified && c.Base.PID != r.PID && !m.dir.Alive(c.Base) {
		m.dir.Remove(c.Base.PID)
	}
	m.running = append(m.running, r)
	m.passed("stap-server start " + spec.String())
	m.out.begin(fmt.Sprintf("Server %s is process %d and listens on port %d", spec.Nickname, r.PID, r.Facts.Port))
	if err := m.trust(r, a); err != nil {
		m.out.end()
		m.complain(fmt.Sprintf("Unable to have this host trust the server: %v", err))
		return exitFailure
	}
	return exitOK
}

// serverPath is the program that a server is: what is told when it did not start. One
// executable has all names.
func serverPath(executable string) string {
	real, err := filepath.EvalSymlinks(executable)
	if err != nil {
		return executable
	}
	path := filepath.Join(filepath.Dir(real), service.ServerName)
	if a, err := os.Stat(path); err == nil {
		if b, err := os.Stat(real); err == nil && os.SameFile(a, b) {
			return path
		}
	}
	return real + " as " + service.ServerName
}

// withoutHeaders says for which kernels of a server there is nothing to build modules
// with. For another architecture SystemTap translates, which looks for itself.
func (m *manager) withoutHeaders(spec *service.Spec) (errs []error) {
	if spec.Arch != m.defaults.Arch {
		return nil
	}
	for _, r := range spec.Releases {
		if strings.HasPrefix(r, "/") {
			continue // looked at by name
		}
		if _, err := kbuild.FindKernel(r); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// believe refuses to start what somebody else says was running: root would make
// his log files and run programs as whom he names.
func (m *manager) believe(base *service.Running) error {
	if m.euid != 0 || base == nil || base.Owner == 0 {
		return nil
	}
	return fmt.Errorf("The status file of process %d belongs to user id %d: root starts nothing by it; name the server's configuration (-n) or options", base.PID, base.Owner)
}

// launch starts the process.
func (m *manager) launch(ctx context.Context, spec *service.Spec, a account) (*launched, error) {
	l := launcher{executable: m.executable, args: spec.Args(m.opts.flags), limit: readyTime}
	dir := m.inv.Getenv("SYSTEMTAP_DIR")
	if a.uid != m.euid {
		l.account, dir = &a, ""
	} else if dir != "" && !filepath.IsAbs(dir) {
		dir = filepath.Join(m.inv.Dir, dir) // the server has another directory
	}
	l.environ = environ(m.inv.Environ, l.account)
	if dir != "" {
		l.environ = append(l.environ, "SYSTEMTAP_DIR="+dir)
	}
	if needsKey(spec.SSL, dir, a) {
		l.limit = keyTime
	}
	if m.opts.ready != 0 {
		l.limit = m.opts.ready
	}
	m.log("Exec: " + service.ServerName + " " + words(l.args))
	return l.run(ctx)
}

// again is how a running server is started once more.
func again(r *service.Running) *service.Choice {
	return &service.Choice{Spec: *r.Spec.Clone(), Base: r}
}

// allRunning are the servers with a status file that lists without a server
// select, or all.
func (m *manager) allRunning() []*service.Running {
	var list []*service.Running
	for _, r := range m.running {
		if m.chosen.Selects(r) {
			list = append(list, r)
		}
	}
	return list
}

// meant are the servers with a status file that a choice means.
func (m *manager) meant(c *service.Choice) []*service.Running {
	var list []*service.Running
	for _, r := range m.running {
		if c.Finds(r, m.defaults) {
			list = append(list, r)
		}
	}
	return list
}

func (m *manager) restart(ctx context.Context) int {
	choices := m.chosen.Choices
	if len(choices) == 0 {
		all := m.allRunning()
		if len(all) == 0 {
			return m.startAll(ctx, m.toStart())
		}
		for _, r := range all {
			choices = append(choices, again(r))
		}
	}
	rc := exitOK
	for _, c := range choices {
		rc = max(rc, m.restartOne(ctx, c, m.meant(c)))
	}
	return rc
}

func (m *manager) restartOne(ctx context.Context, c *service.Choice, running []*service.Running) int {
	rc := exitOK
	if len(running) == 0 {
		m.notRunning("Stopping stap-server " + c.Fill(m.defaults).String())
	}
	for _, r := range running {
		rc = max(rc, m.stop(r))
	}
	if rc != exitOK {
		return rc
	}
	return m.start(ctx, c)
}

// alive are those that live.
func (m *manager) alive(list []*service.Running) (live []*service.Running) {
	for _, r := range list {
		if m.dir.Alive(r) {
			live = append(live, r)
		}
	}
	return live
}

// conditional is condrestart.
func (m *manager) conditional(ctx context.Context) int {
	if len(m.chosen.Choices) == 0 {
		all := m.alive(m.allRunning())
		if len(all) == 0 {
			m.out.begin("No managed stap-server is running")
			m.out.success()
			return exitOK
		}
		rc := exitOK
		for _, r := range all {
			rc = max(rc, m.restartOne(ctx, again(r), []*service.Running{r}))
		}
		return rc
	}
	rc := exitOK
	for _, c := range m.chosen.Choices {
		if c.Unknown != "" {
			rc = max(rc, m.unknown(c.Unknown))
			continue
		}
		alive := m.alive(m.meant(c))
		if len(alive) == 0 {
			m.out.begin("stap-server " + c.Fill(m.defaults).String() + " is not running")
			m.out.success()
			continue
		}
		for _, r := range alive {
			rc = max(rc, m.restartOne(ctx, again(r), []*service.Running{r}))
		}
	}
	return rc
}

// unknown refuses a nickname.
func (m *manager) unknown(nickname string) int {
	text := fmt.Sprintf("No configuration found for the nickname '%s'", nickname)
	m.out.begin(text)
	m.log(text)
	return m.failed("stap-server " + m.opts.action + " -n " + strconv.Quote(nickname))
}

// forceReload stops all, reads the files of servers again, and starts.
func (m *manager) forceReload(ctx context.Context) int {
	rc := exitOK
	for _, r := range m.running {
		rc = max(rc, m.stop(r))
	}
	configs, err := service.ReadConfigs(m.confd, m.home)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return max(rc, m.refuse(err))
	}
	m.configs = configs
	return max(rc, m.startAll(ctx, m.toStart()))
}
