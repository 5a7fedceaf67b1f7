// Package service is the applet stap-server, the manager of compile servers, and
// the old tools stap-start-server, stap-stop-server and
// stap-find-or-start-server (services 2 and 4).
//
// A server is started when it says so: it tells its port and certificate on a
// socket made for that (sd_notify(3)), and whoever ends before has told why.
// Servers are recorded in a directory that SystemTap's own manager can share,
// see package core/service.
//
//	service.go     what actions there are
//	options.go     the command line
//	settings.go    files, places, users
//	output.go      markers, log, syslog
//	start.go       start, restart, condrestart, force-reload
//	launch.go      one process
//	run.go         one that a service manager runs
//	trust.go       trust in the host's own servers
//	stop.go        stop
//	status.go      status, list, configtest
//	legacy.go      the old tools
package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
	"stapbox/core/invocation"
	"stapbox/core/service"
	"stapbox/core/uname"
	"stapbox/core/version"
)

// Exit statuses, as the LSB has them for init scripts.
const (
	exitOK      = 0
	exitFailure = 1
	exitDead    = 1 // status: dead, with a status file
	exitUsage   = 2
	exitMissing = 3 // the action
	exitDown    = 3 // status: not running
	exitNotRoot = 4
)

// manager is one run of stap-server.
type manager struct {
	inv  *invocation.Invocation
	opts *options
	euid int
	node string // uname -n
	now  func() time.Time
	exec func(path string, argv, env []string) error

	places
	global   service.Global
	defaults service.Defaults
	out      output

	complaints  []string // about the line that is begun
	interrupted bool     // nothing more is started

	running []*service.Running
	configs []*service.Config
	chosen  *service.Chosen
}

// Main runs stap-server.
func Main(ctx context.Context, inv *invocation.Invocation) int {
	o, err := parse(inv.Args)
	switch {
	case err != nil:
		fmt.Fprintf(inv.Stderr, "%s: %v\nError: Argument parse error: %s\n", inv.Name, err, words(inv.Args))
		fmt.Fprintf(inv.Stdout, usage, inv.Name)
		return exitUsage
	case o.version:
		fmt.Fprintf(inv.Stdout, "stap-server (stapbox %s, protocol version %s)\n", version.Version, version.Protocol)
		return exitOK
	case o.help:
		fmt.Fprintf(inv.Stdout, usage, inv.Name)
		return exitOK
	case o.action == "reload":
		fmt.Fprintf(inv.Stderr, "%s: reload is not supported; SIGHUP has a server read its settings again\n", inv.Name)
		return exitMissing
	case !o.known():
		fmt.Fprintf(inv.Stderr, usage, inv.Name)
		return exitUsage
	}
	m := &manager{inv: inv, opts: o, euid: os.Geteuid(), now: time.Now, exec: execve, places: systemPlaces()}
	return m.run(ctx)
}

// asService reports whether an init system calls: by a name in its directory.
func asService(inv *invocation.Invocation) bool {
	return filepath.Base(filepath.Dir(inv.Path)) == "init.d"
}

func (m *manager) run(ctx context.Context) int {
	if asService(m.inv) {
		if m.euid != 0 {
			fmt.Fprintln(m.inv.Stderr, "stap-server: must be root to manage the service")
			return exitNotRoot
		}
		if m.inv.Getenv("STAP_USER") == "" {
			m.inv.Environ = append(m.inv.Environ, "STAP_USER="+hostpaths.ServerUser)
		}
	}
	m.out = output{w: m.inv.Stdout, redHat: m.redHat}
	if err := m.settings(); err != nil {
		fmt.Fprintf(m.inv.Stderr, "%v\n", err)
		return exitFailure
	}
	m.defaults.Release, m.defaults.Arch, m.node = uname.Host()
	return m.act(ctx)
}

// act reads what there is, and does what is asked.
func (m *manager) act(ctx context.Context) int {
	reads := false
	switch m.opts.action {
	case "status", "list", "configtest", "run", "trust":
		reads = true
	}
	defer m.out.end()
	if !reads {
		if m.opts.starts() {
			if err := m.makeStatus(); err != nil {
				m.complain(fmt.Sprintf("Failed to make stat directory (%s): %v", m.dir.Path, err))
				m.out.failure()
				return exitFailure
			}
		}
		unlock, err := m.lock()
		if err != nil {
			m.complain(err.Error())
			m.out.failure()
			return exitFailure
		}
		defer unlock()
		m.dir.Tidy()
	}
	if err := m.choose(); err != nil {
		return m.refuse(err)
	}
	switch m.opts.action {
	case "start":
		return m.startAll(ctx, m.toStart())
	case "stop":
		return m.stopAll()
	case "restart":
		return m.restart(ctx)
	case "condrestart", "try-restart":
		return m.conditional(ctx)
	case "force-reload":
		return m.forceReload(ctx)
	case "status":
		return m.status()
	case "list":
		return m.list()
	case "run":
		return m.runHere()
	case "trust":
		return m.trustRunning()
	default:
		return m.configtest()
	}
}

// lock locks the directory of running servers, if there is one.
func (m *manager) lock() (func(), error) {
	if _, err := os.Stat(m.dir.Path); errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	told, end := false, m.now().Add(lockTime)
	return m.dir.Lock(func() bool {
		if !told {
			fmt.Fprintf(m.inv.Stderr, "%s: waiting for another %s that changes %s\n", m.inv.Name, m.inv.Name, m.dir.Path)
		}
		told = true
		return m.now().Before(end)
	})
}

// lockTime is how long another manager may take. One that takes longer may be the
// servers' user, who keeps root from stopping his servers.
const lockTime = 3 * time.Minute

// choose reads servers and their files, and what the command line means.
func (m *manager) choose() error {
	if err := m.readRunning(); err != nil {
		return err
	}
	var err error
	if m.configs, err = service.ReadConfigs(m.confd, m.home); err != nil {
		return err
	}
	list := m.opts.list
	if m.global.Combine == "yes" {
		list = append(slices.Clone(list), getopt.Option{Name: "combine"})
	}
	m.chosen, err = service.Choose(list, service.Known{
		Running: m.running, Configs: m.configs, Modules: m.modules, Dir: m.inv.Dir,
	})
	if err == nil {
		for _, r := range m.chosen.Left {
			fmt.Fprintf(m.inv.Stderr, "%s: WARNING: %s is passed over: there is no build tree %s\n", m.inv.Name, r, filepath.Join(m.modules, r, "build"))
		}
	}
	return err
}

func (m *manager) readRunning() error {
	var bad []error
	m.running, bad = m.dir.Read()
	for _, err := range bad {
		fmt.Fprintf(m.inv.Stderr, "%s: WARNING: %v\n", m.inv.Name, err)
	}
	return nil
}

// refuse tells why nothing is done.
func (m *manager) refuse(err error) int {
	var unmanaged *service.UnmanagedError
	var missing *service.MissingError
	switch {
	case errors.As(err, &unmanaged):
		fmt.Fprintln(m.inv.Stdout, err)
		return exitFailure
	case errors.As(err, &missing):
		fmt.Fprintln(m.inv.Stdout, err)
		fmt.Fprintf(m.inv.Stdout, usage, m.inv.Name)
		return exitUsage
	case errors.Is(err, service.ErrUsage):
		fmt.Fprintf(m.inv.Stderr, "%s: %v\n", m.inv.Name, err)
		return exitUsage
	}
	m.complain(err.Error())
	return exitFailure
}
