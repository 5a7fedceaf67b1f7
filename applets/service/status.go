package service

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"stapbox/core/identity"
	"stapbox/core/service"
	"stapbox/core/wire"
)

// condition is what became of a server.
type condition int

const (
	down  condition = iota // not running
	dead                   // not running any more, with a status file
	alive                  // running
)

// report is a server that status tells of.
type report struct {
	spec      *service.Spec
	running   *service.Running // nil when down
	condition condition
	unknown   string // a nickname
	foreign   bool   // of the host, not of this user
}

// reports collects what status tells of.
func (m *manager) reports() []report {
	var list []report
	add := func(r *service.Running, dir service.Dir, foreign bool) {
		c := dead
		if dir.Alive(r) {
			c = alive
		}
		list = append(list, report{spec: r.Fill(m.defaults), running: r, condition: c, foreign: foreign})
	}
	if len(m.chosen.Choices) == 0 {
		for _, r := range m.allRunning() {
			add(r, m.dir, false)
		}
		if m.host.Path != "" && m.host.Path != m.dir.Path {
			// Who started them looks after their files.
			others, _ := m.host.Read()
			for _, r := range others {
				if m.chosen.Selects(r) && m.host.Alive(r) {
					add(r, m.host, true)
				}
			}
		}
		return list
	}
	for _, c := range m.chosen.Choices {
		if c.Unknown != "" {
			list = append(list, report{unknown: c.Unknown})
			continue
		}
		running := m.meant(c)
		if len(running) == 0 {
			list = append(list, report{spec: c.Fill(m.defaults)})
		}
		for _, r := range running {
			add(r, m.dir, false)
		}
	}
	return list
}

// status prints the servers. Dead ones are forgotten: the next time they are not
// running.
func (m *manager) status() int {
	list := m.reports()
	rc := exitOK
	if len(list) == 0 {
		rc = exitDown
	}
	for _, r := range list {
		switch {
		case r.condition == dead:
			rc = exitDead
			m.remove(r.running)
		case r.condition == down && rc != exitDead:
			rc = exitDown
		}
	}
	if m.opts.json {
		return max(rc, m.printJSON(list))
	}
	if len(list) == 0 {
		fmt.Fprintln(m.inv.Stdout, "No managed stap-server is running")
	}
	for _, r := range list {
		switch {
		case r.unknown != "":
			fmt.Fprintf(m.inv.Stdout, "No configuration found for the nickname '%s'\n", r.unknown)
		case r.condition == alive:
			fmt.Fprintf(m.inv.Stdout, "stap-server %s running as PID %d\n", r.spec, r.running.PID)
		case r.condition == dead:
			fmt.Fprintf(m.inv.Stdout, "stap-server %s started as PID %d is no longer running\n", r.spec, r.running.PID)
		default:
			fmt.Fprintf(m.inv.Stdout, "stap-server %s is not running\n", r.spec)
		}
	}
	return rc
}

// remove forgets a server that was dead, unless somebody is just changing
// things, and unless its file is another one by now.
func (m *manager) remove(r *service.Running) {
	unlock, err := m.dir.Lock(func() bool { return false })
	if err != nil {
		return // not this user's to change, or not now
	}
	defer unlock()
	list, _ := m.dir.Read()
	for _, now := range list {
		if now.PID == r.PID && !m.dir.Alive(now) {
			m.dir.Remove(r.PID)
		}
	}
}

// shown is a server for programs.
type shown struct {
	State       string       `json:"state"` // running, dead, down or unknown
	Nickname    string       `json:"nickname,omitempty"`
	PID         int          `json:"pid,omitempty"`
	User        string       `json:"user,omitempty"`
	Arch        string       `json:"arch,omitempty"`
	Releases    []string     `json:"releases,omitempty"`
	Port        int          `json:"port,omitempty"`
	Log         string       `json:"log,omitempty"`
	SSL         string       `json:"ssl,omitempty"`
	Certificate *certificate `json:"certificate,omitempty"`
	Started     *time.Time   `json:"started,omitempty"`
	Uptime      int64        `json:"uptime_seconds,omitempty"`
	Active      *int         `json:"active_requests,omitempty"`
	Options     string       `json:"options,omitempty"`
	Host        bool         `json:"host,omitempty"` // of the host, not of this user
}

type certificate struct {
	Serial      string    `json:"serial"`
	NotAfter    time.Time `json:"not_after"`
	Fingerprint string    `json:"sha256"`
}

func (m *manager) show(r report) shown {
	if r.unknown != "" {
		return shown{State: "unknown", Nickname: r.unknown}
	}
	s := shown{
		State: [...]string{down: "down", dead: "dead", alive: "running"}[r.condition], Nickname: r.spec.Nickname,
		User: r.spec.User, Arch: r.spec.Arch, Releases: r.spec.Releases, Log: r.spec.Log, SSL: r.spec.SSL,
		Options: r.spec.String(), Host: r.foreign,
	}
	if r.running == nil {
		return s
	}
	s.PID = r.running.PID
	if s.Port = r.running.Facts.Port; s.Port == 0 {
		s.Port, _ = strconv.Atoi(r.spec.Port) // of another manager's server
	}
	if r.condition != alive {
		return s
	}
	if began := r.running.Facts.Started; !began.IsZero() {
		s.Started, s.Uptime = &began, int64(m.now().Sub(began).Seconds())
	}
	return s
}

// ask adds what the server itself shows.
func (m *manager) ask(s *shown) {
	if s.State != "running" {
		return
	}
	if n, err := service.Children(m.dir.Proc, s.PID); err == nil {
		s.Active = &n
	}
	if s.Port != 0 {
		s.Certificate = askCertificate(net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)))
	}
}

// askCertificate has a server show its certificate, which is not believed, only
// shown. nil if it does not.
func askCertificate(address string) *certificate {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	client := &wire.Client{Address: address, Verify: func(*x509.Certificate) error { return nil }}
	cert, err := client.Contact(ctx)
	if err != nil {
		return nil
	}
	return &certificate{identity.CertInfo(cert), cert.NotAfter.UTC(), identity.Fingerprint(cert)}
}

func (m *manager) printJSON(list []report) int {
	all := []shown{}
	for _, r := range list {
		s := m.show(r)
		m.ask(&s)
		all = append(all, s)
	}
	enc := json.NewEncoder(m.inv.Stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(all); err != nil {
		fmt.Fprintf(m.inv.Stderr, "%s: %v\n", m.inv.Name, err)
		return exitFailure
	}
	return exitOK
}

// list prints the servers that run and those that are configured.
func (m *manager) list() int {
	all := m.reports()
	if len(m.chosen.Choices) == 0 {
		for _, f := range m.configs {
			c := service.Choice{Spec: f.Spec}
			if !slices.ContainsFunc(all, func(r report) bool {
				return r.running != nil && (f.Nickname != "" && r.running.Nickname == f.Nickname || c.Finds(r.running, m.defaults))
			}) {
				all = append(all, report{spec: f.Fill(m.defaults)})
			}
		}
	}
	if m.opts.json {
		return m.printJSON(all)
	}
	rows := [][]string{{"NICKNAME", "STATE", "PID", "PORT", "USER", "ARCH", "RELEASES"}}
	for _, r := range all {
		s := m.show(r)
		rows = append(rows, []string{
			dash(s.Nickname), s.State, dash(strconv.Itoa(s.PID)), dash(strconv.Itoa(s.Port)), dash(s.User), dash(s.Arch), dash(strings.Join(s.Releases, ",")),
		})
	}
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&b, "%-*s ", width[i], cell)
		}
		fmt.Fprintln(m.inv.Stdout, strings.TrimRight(b.String(), " "))
	}
	return exitOK
}

func dash(s string) string {
	if s == "" || s == "0" {
		return "-"
	}
	return s
}

// configtest looks at what start would start, and starts nothing.
func (m *manager) configtest() int {
	choices := m.toStart()
	rc := exitOK
	bad := func(c *service.Choice, format string, args ...any) {
		fmt.Fprintf(m.inv.Stderr, "stap-server %s: %s\n", c.Fill(m.defaults), fmt.Sprintf(format, args...))
		rc = exitFailure
	}
	names := map[string]bool{}
	for _, c := range choices {
		spec := c.Fill(m.defaults)
		if spec.Nickname != "" && names[spec.Nickname] {
			bad(c, "another server has the nickname %q too", spec.Nickname)
		}
		names[spec.Nickname] = true
		switch a, err := m.find(spec.User); {
		case err != nil:
			bad(c, "Cannot run servers as user %s: %v", spec.User, err)
		case a.uid == 0:
			bad(c, "%s", rootRefused)
		}
		for _, r := range spec.Releases {
			if !strings.HasPrefix(r, "/") {
				continue
			}
			if _, err := os.Stat(filepath.Join(r, "include/config/kernel.release")); err != nil {
				bad(c, "%v", &service.MissingError{File: filepath.Join(r, "include/config/kernel.release")})
			}
		}
		for _, err := range m.withoutHeaders(spec) {
			bad(c, "%v", err)
		}
		if !filepath.IsAbs(spec.Log) {
			bad(c, "the log %q is not an absolute path", spec.Log)
		}
		if err := checkNumbers(spec); err != nil {
			bad(c, "%v", err)
		}
	}
	if rc == exitOK {
		fmt.Fprintf(m.inv.Stdout, "The configuration is good: %d servers to start; files in %s, running servers in %s, log %s\n", len(choices), m.confd, m.dir.Path, m.logFile)
	}
	return rc
}

// checkNumbers holds numbers to what stap-serverd accepts.
func checkNumbers(spec *service.Spec) error {
	for _, l := range []struct {
		name        string
		base        int
		least, most int64
	}{{service.Port, 0, 0, 65535}, {service.MaxThreads, 0, 0, 1 << 62}, {service.MaxRequest, 0, 1, 1 << 62}, {service.MaxArchive, 0, 1, 1 << 62}} {
		value := *spec.Handed(l.name)
		if value == "" {
			continue
		}
		n, err := strconv.ParseInt(value, l.base, 64)
		switch {
		case errors.Is(err, strconv.ErrSyntax):
			return fmt.Errorf("cannot parse number '--%s=%s'", l.name, value)
		case err != nil, n < l.least, n > l.most:
			return fmt.Errorf("invalid entry: '--%s=%s' is not between %d and %d", l.name, value, l.least, l.most)
		}
	}
	return nil
}
