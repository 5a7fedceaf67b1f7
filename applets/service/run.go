package service

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stapbox/core/service"
)

// A service manager runs one configured server itself: run becomes that server,
// and trust, which the manager runs as root when the server is ready, has the
// host trust it. Neither writes a status file: such a server is the service
// manager's to stop.

// one is the only server of the command line, by -n: the configured one of that
// nickname, which options after -n may change, or that of file NICK.conf.
func (m *manager) one() (*service.Choice, error) {
	if len(m.chosen.Choices) != 1 || m.chosen.Choices[0].Nickname == "" {
		return nil, errors.New("this needs one server, by -n NICK")
	}
	c := m.chosen.Choices[0]
	switch {
	case c.Base != nil && m.dir.Alive(c.Base):
		return nil, fmt.Errorf("the server '%s' is running already, as process %d", c.Nickname, c.Base.PID)
	case c.Base == nil && c.Unknown == "":
		return c, nil
	}
	for _, named := range []func(*service.Config) bool{
		func(f *service.Config) bool { return f.Nickname == c.Nickname },
		func(f *service.Config) bool { return filepath.Base(f.File) == c.Nickname+".conf" },
	} {
		if i := slices.IndexFunc(m.configs, named); i >= 0 {
			found := &service.Choice{Spec: *m.configs[i].Clone()}
			found.Nickname = c.Nickname
			return found, nil
		}
	}
	return nil, fmt.Errorf("No configuration found for the nickname '%s'", c.Nickname)
}

// runHere makes this process the server. It logs to standard error unless its
// own file names a log.
func (m *manager) runHere() int {
	c, err := m.one()
	if err != nil {
		return m.refuse(err)
	}
	spec := c.Fill(m.defaults)
	spec.Log = c.Log
	a, err := m.find(spec.User)
	switch {
	case err != nil:
		return m.refuse(fmt.Errorf("Cannot run servers as user %s: %w", spec.User, err))
	case a.uid == 0:
		return m.refuse(errors.New(rootRefused))
	case a.uid != m.euid:
		return m.refuse(fmt.Errorf("the server '%s' is for user %s, who has to run it", spec.Nickname, a.name))
	}
	m.out.end()
	args := slices.DeleteFunc(spec.Args(m.opts.flags), func(w string) bool { return w == "--log=" })
	err = m.exec(m.executable, append([]string{service.ServerName}, args...), m.inv.Environ)
	return m.refuse(fmt.Errorf("running %s: %w", service.ServerName, err))
}

// trustRunning is trust for a server that a service manager runs, as MAINPID
// says.
func (m *manager) trustRunning() int {
	c, err := m.one()
	if err != nil {
		return m.refuse(err)
	}
	spec := c.Fill(m.defaults)
	a, err := m.find(spec.User)
	if err != nil {
		return m.refuse(fmt.Errorf("Cannot find user %s: %w", spec.User, err))
	}
	pid, ok := service.ParsePID(m.inv.Getenv("MAINPID"))
	if !ok {
		return m.refuse(errors.New("MAINPID does not have the process id of a server; a service manager sets it"))
	}
	h, err := service.Hold(m.dir.Proc, pid, 0)
	if err != nil {
		return m.refuse(err)
	}
	if h == nil {
		return m.refuse(fmt.Errorf("process %d is not a server", pid))
	}
	defer h.Close()
	if !m.trusts(spec.SSL, a) {
		m.out.begin("Trust in server " + spec.Nickname + " is not for this command to add")
		m.out.end()
		return exitOK
	}
	r := &service.Running{Spec: *spec, PID: pid}
	if r.Facts.Fingerprint, err = m.fingerprintOf(pid); err == nil {
		err = m.trust(r, a)
	}
	if err != nil {
		return m.refuse(fmt.Errorf("Unable to have this host trust the server: %w", err))
	}
	return exitOK
}

// fingerprintOf asks a server for its certificate, at one of the ports on which
// the process listens.
func (m *manager) fingerprintOf(pid int) (string, error) {
	ports, err := service.Listening(m.dir.Proc, pid)
	if err != nil {
		return "", err
	}
	for _, port := range ports {
		for _, host := range []string{"127.0.0.1", "::1"} {
			if c := askCertificate(net.JoinHostPort(host, strconv.Itoa(port))); c != nil {
				return c.Fingerprint, nil
			}
		}
	}
	return "", fmt.Errorf("process %d shows no certificate at its ports %s", pid, strings.Trim(fmt.Sprint(ports), "[]"))
}

// execve replaces this process.
func execve(path string, argv, env []string) error { return unix.Exec(path, argv, env) }
