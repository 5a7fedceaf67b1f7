package interop

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"stapbox/core/identity"
	"stapbox/e2e/lab"
)

// The matrix is every client with every server: ours, that of SystemTap 4.8 and
// that of 5.6, on one host in a network of the run's own, where avahi-daemon
// runs for upstream's. 4.8 serves its own kernel, 5.6 its own. Our server runs
// in both trees, so that the 4.8 client, which cannot get a module for its
// kernel from its own server, gets one from ours; it is one server to the
// others.
//
// What holds: a pair of one upstream version is measured by what the case says;
// any other client of an upstream server by that server's own client; a client
// of our server by what upstream's 5.6 pair gives.

// Sides.
const (
	sideOurs = "our"
	side48   = "4.8"
	side56   = "5.6"
)

var sides = [...]string{sideOurs, side48, side56}

// asOwn is the outcome of a cell that fails, as 4.8's own client does there.
const asOwn = "as 4.8's own"

// station is a running server.
type station struct {
	side     string
	tree     *lab.Peer
	log      *daemon
	address  string // with port
	certInfo string
	stop     func()
}

// answer is what a client gave.
type answer struct {
	exit           int
	stdout, stderr string
	module         []byte
}

// caseOf is a column of the matrix.
type caseOf struct {
	name   string
	args   func(*station) []string
	module bool           // it gives a module
	exit   int            // of the client
	stdout *regexp.Regexp // nil if nothing is to be there
	stderr *regexp.Regexp // nil if nothing is to be there
	// check is for what differs between servers by design: instead of a
	// comparison, the answer is held to this.
	check func(*station, answer) error
}

const (
	matrixModule = "t_matrix"
	mainScript   = "probe begin { printf(\"%s\\n\", from_library(2)); exit() }\n"
	libScript    = "function from_library:string(n:long) { return sprintf(\"library %d\", n) }\n"
	noRelease    = "9.9.9-none"
)

func cases() []caseOf {
	for_ := func(more ...string) func(*station) []string {
		return func(s *station) []string {
			return append([]string{"--use-server=" + s.address, "-r", s.tree.Kernel.Release}, more...)
		}
	}
	moduleName := regexp.MustCompile(`^` + matrixModule + `\.ko\n$`)
	return []caseOf{
		{name: "--trust-servers", args: func(s *station) []string {
			return []string{"--trust-servers=ssl,no-prompt", "--use-server=" + s.address}
		}, check: checkTrust},
		{name: "--list-servers", args: func(*station) []string { return []string{"--list-servers=online"} }, check: checkListed("online")},
		{name: "--list-servers=trusted", args: func(*station) []string { return []string{"--list-servers=trusted"} }, check: checkListed("trusted")},
		{name: "-p2", args: for_("-p2", "-e", "probe begin { exit() }"), stdout: regexp.MustCompile(`(?s)^# functions\n.*# probes\nbegin /\*`)},
		{name: "parse error", args: for_("-p4", "-e", "probe begin { printf( }"), exit: 1, stderr: regexp.MustCompile(`(?m)^parse error: `)},
		{name: "privilege refusal", args: for_("-p4", "--privilege=stapusr", "-e", `probe kernel.function("vfs_read") { exit() }`), exit: 1, stderr: regexp.MustCompile(`(?m)^semantic error: `)},
		{name: "unknown release", args: func(s *station) []string {
			return []string{"--use-server=" + s.address, "-r", noRelease, "-p4", "-e", "probe begin { exit() }"}
		}, exit: 1, stderr: regexp.MustCompile(`(?m)^Passes: via server failed`), check: checkUnknown},
		{name: "hello", args: for_("-p4", "-m", matrixModule, "-e", string(helloScript.Text)), module: true, stdout: moduleName},
		{name: "two-file script", args: for_("-p4", "-m", matrixModule, "-I", "lib", "main.stp"), module: true, stdout: moduleName},
	}
}

// checkTrust is for the granting of trust; that it counts is shown by the cells
// after it.
func checkTrust(_ *station, a answer) error {
	if a.exit != 0 || strings.Contains(a.stderr, "Unable to") {
		return fmt.Errorf("exit status %d:\n%s%s", a.exit, a.stdout, a.stderr)
	}
	return nil
}

var (
	serverLine = regexp.MustCompile(`(?m)^ host=.*$`)
	noAddress  = regexp.MustCompile(` address=(::|0\.0\.0\.0)[ %]`)
)

// checkListed looks for the server in a listing, online or trusted, with what it
// advertises and the serial number of its certificate.
func checkListed(property string) func(*station, answer) error {
	return func(s *station, a answer) error {
		if head := "Systemtap Compile Server Status for '" + property + "'\n"; a.exit != 0 || a.stdout != "" || !strings.HasPrefix(a.stderr, head) {
			return fmt.Errorf("exit status %d, without %q:\n%s%s", a.exit, head, a.stdout, a.stderr)
		}
		host, port, _ := strings.Cut(s.address, ":")
		fields := []string{" address=" + host + " ", " port=" + port + " ", ` sysinfo="RELEASE x86_64" `, fmt.Sprintf(` certinfo="%s"`, s.certInfo)}
		found := false
		for _, line := range serverLine.FindAllString(a.stderr, -1) {
			// Another address of this server, which must be one.
			if s.side == sideOurs && strings.Contains(line, fields[3]) && noAddress.MatchString(line) {
				return fmt.Errorf("no address: %q", line)
			}
			found = found || !slices.ContainsFunc(fields, func(field string) bool { return !strings.Contains(line, field) })
		}
		if found {
			return nil
		}
		return fmt.Errorf("no line with%s:\n%s", strings.Join(fields, ""), a.stderr)
	}
}

// checkUnknown: upstream's server refuses without a word, ours says why.
func checkUnknown(s *station, a answer) error {
	switch {
	case a.exit != 1 || a.module != nil:
		return fmt.Errorf("exit status %d, module: %v", a.exit, a.module != nil)
	case s.side == sideOurs && !strings.Contains(a.stderr, noRelease):
		return fmt.Errorf("the release is not named: %q", a.stderr)
	}
	return nil
}

// matrix runs all cells and prints a line for each.
// Requirements: R-000-015..016 R-003-002 R-003-135
func (r *run) matrix(ctx context.Context) error {
	begin := time.Now()
	old, err := r.lab.FetchOldPeer(ctx)
	if err != nil {
		return fmt.Errorf("setting up the peer of 4.8: %w", err)
	}
	r.say("SystemTap %s on kernel %s", old.Version, old.Kernel.Release)
	m := &matrixRun{run: r, trees: map[string]*lab.Peer{side48: old, side56: r.peer, sideOurs: r.peer}, done: map[string]answer{}}
	if m.work, err = os.MkdirTemp(r.peer.Dir, "matrix-"); err != nil {
		return err
	}
	defer os.RemoveAll(m.work)
	if err := os.Chmod(m.work, 0o755); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(m.work, "bin"), os.DirFS(filepath.Join(r.work, "bin"))); err != nil {
		return err
	}
	segment, err := r.lab.NewSegment()
	if err != nil {
		return err
	}
	defer segment.Close()
	if m.host, err = segment.Host("alpha", false); err != nil {
		return err
	}
	avahi, err := r.lab.FetchAvahi()
	if err != nil {
		return err
	}
	daemon, err := avahi.Start(m.host, filepath.Join(m.work, "avahi"))
	if err != nil {
		return err
	}
	defer daemon.Stop()
	m.bus = "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/mnt/avahi/bus"
	for _, s := range []*station{{side: sideOurs, tree: r.peer}, {side: sideOurs, tree: old}, {side: side48, tree: old}, {side: side56, tree: r.peer}} {
		if err := m.start(ctx, s); err != nil {
			return fmt.Errorf("starting the server of %s for %s: %w", s.side, s.tree.Kernel.Release, err)
		}
		defer s.stop()
		m.stations = append(m.stations, s)
	}
	m.cells(ctx)
	r.say("the matrix took %v", time.Since(begin).Round(time.Second))
	return ctx.Err()
}

type matrixRun struct {
	*run
	trees    map[string]*lab.Peer
	work     string
	host     *lab.Host
	bus      string
	stations []*station

	mu   sync.Mutex
	done map[string]answer
}

// station is the server of a side that a client asks.
func (m *matrixRun) station(client, server string) *station {
	tree := m.trees[side56]
	if server == side48 || server == sideOurs && client == side48 {
		tree = m.trees[side48]
	}
	i := slices.IndexFunc(m.stations, func(s *station) bool { return s.side == server && s.tree == tree })
	return m.stations[i]
}

// start starts a server as an unprivileged user and waits until it is found.
func (m *matrixRun) start(ctx context.Context, s *station) error {
	// Upstream's stap takes no TMPDIR with a "+" in it, or a "=".
	name := fmt.Sprintf("server%d", len(m.stations))
	for _, dir := range []string{name, name + "/tmp"} {
		full := filepath.Join(m.work, dir)
		if err := errors.Join(os.Mkdir(full, 0o755), os.Chown(full, lab.ServerUID, lab.ServerUID)); err != nil {
			return err
		}
	}
	program := "/mnt/bin/stap-serverd"
	if s.side != sideOurs {
		var err error
		if program, err = s.tree.Find("stap-serverd"); err != nil {
			return err
		}
	}
	home := "/mnt/" + name
	s.log = &daemon{ended: make(chan struct{})}
	life, cancel := context.WithCancel(ctx)
	cmd := s.tree.Command(life, lab.Inside{
		Net: &m.host.Network, UID: lab.ServerUID, Work: m.work,
		Env: []string{"HOME=" + home, "TMPDIR=" + home + "/tmp", "USER=nobody", "SYSTEMTAP_DIR=" + home + "/.systemtap", m.bus},
	}, program, "-r", s.tree.Kernel.Release, "--max-threads=8") // a client is not to wait for what another left running
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		cancel()
		return err
	}
	go func() {
		cmd.Wait()
		close(s.log.ended)
	}()
	s.stop = func() {
		cancel()
		<-s.log.ended
	}
	err := func() error {
		// It is established when it has a certificate.
		for deadline := time.Now().Add(time.Minute); !strings.Contains(s.log.text(), "successfully established"); time.Sleep(100 * time.Millisecond) {
			select {
			case <-s.log.ended:
				return fmt.Errorf("it ended:\n%s", s.log.text())
			case <-ctx.Done():
				return ctx.Err()
			default:
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("it is not advertised:\n%s", s.log.text())
			}
		}
		port := listening.FindStringSubmatch(s.log.text())
		if port == nil {
			return fmt.Errorf("it names no port:\n%s", s.log.text())
		}
		s.address = m.host.IPv4 + ":" + port[1]
		der, err := os.ReadFile(filepath.Join(m.work, name, ".systemtap/ssl/server/stap.cert"))
		if err != nil {
			return err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		s.certInfo = identity.CertInfo(c)
		return nil
	}()
	if err != nil {
		s.stop()
	}
	return err
}

// cells asks every client of every server, two pairs at a time, upstream's own
// pairs first: the others are measured by them.
func (m *matrixRun) cells(ctx context.Context) {
	var pairs [][2]string
	for _, client := range sides {
		for _, server := range sides {
			pair := [2]string{client, server}
			if client == server && client != sideOurs {
				pairs = slices.Insert(pairs, 0, pair)
			} else {
				pairs = append(pairs, pair)
			}
		}
	}
	list := cases()
	jobs := make(chan [2]string)
	var wg sync.WaitGroup
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for p := range jobs {
				for _, c := range list {
					if ctx.Err() != nil {
						return
					}
					a, err := m.ask(ctx, p[0], m.station(p[0], p[1]), c)
					if err != nil {
						a = answer{exit: -1, stderr: err.Error()}
					}
					m.mu.Lock()
					m.done[cell(p[0], p[1], c)] = a
					m.mu.Unlock()
				}
			}
		}()
	}
	for _, p := range pairs {
		jobs <- p
	}
	close(jobs)
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	counts := map[string]int{}
	fmt.Fprintf(m.out, "\n%-6s  %-6s  %-23s  result\n------  ------  -----------------------  ------\n", "client", "server", "case")
	for _, client := range sides {
		for _, server := range sides {
			for _, c := range list {
				outcome, why := m.judge(client, server, c)
				counts[outcome]++
				line := outcome
				if outcome == different {
					line = "differs: " + strings.ReplaceAll(strings.TrimSpace(why), "\n", "\n        ")
					m.rows = append(m.rows, row{cell(client, server, c), different, why})
				}
				fmt.Fprintf(m.out, "%-6s  %-6s  %-23s  %s\n", client, server, c.name, line)
			}
		}
	}
	m.say("matrix: %d cells: %d ok, %d %s client fails, %d differ", len(m.done), counts[ok], counts[asOwn], asOwn, counts[different])
}

func cell(client, server string, c caseOf) string {
	return fmt.Sprintf("%s client, %s server, %s", client, server, c.name)
}

// dir is a name that upstream's stap takes in TMPDIR.
func (c caseOf) dir() string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, c.name), "-")
}

// ask runs a client.
func (m *matrixRun) ask(ctx context.Context, client string, s *station, c caseOf) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, compileTime)
	defer cancel()
	pair := filepath.Join("cells", client+"-"+s.side)
	dir := filepath.Join(pair, c.dir())
	for _, d := range []string{"tmp", "lib"} {
		if err := os.MkdirAll(filepath.Join(m.work, dir, d), 0o755); err != nil {
			return answer{}, err
		}
	}
	for name, text := range map[string]string{"main.stp": mainScript, "lib/library.stp": libScript} {
		if err := os.WriteFile(filepath.Join(m.work, dir, name), []byte(text), 0o644); err != nil {
			return answer{}, err
		}
	}
	program := "stap"
	if client == sideOurs {
		program = "/mnt/bin/stap"
	}
	argv := append([]string{"sh", "-c", `cd "/mnt/$1" && shift && exec "$@"`, "sh", dir, program}, c.args(s)...)
	cmd := m.trees[client].Command(ctx, lab.Inside{Net: &m.host.Network, Work: m.work, Env: []string{
		"HOME=/mnt/" + pair, "SYSTEMTAP_DIR=/mnt/" + pair + "/.systemtap", "TMPDIR=/mnt/" + dir + "/tmp", m.bus,
	}}, argv...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil || ctx.Err() != nil {
		return answer{}, errors.Join(err, ctx.Err())
	}
	a := answer{exit: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: m.mask(stderr.String(), client, s)}
	var err error
	if a.module, err = os.ReadFile(filepath.Join(m.work, dir, matrixModule+".ko")); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return a, err
}

var (
	tempName = regexp.MustCompile(`(/mnt/cells/[^/]*/[^/]*/tmp/stap|<server>/tmp/stap-server\.)[A-Za-z0-9]{6}`)
	// Its place among the messages depends on who of two ends first.
	unfinished = regexp.MustCompile(`(?m)^make.*: \*\*\* Waiting for unfinished jobs\.\.\.\.\n`)
	ownName    = regexp.MustCompile(`stap_[0-9a-f]+(_[0-9]+)?`)
	// Debian's stap ends each failure with it.
	tip = regexp.MustCompile(`(?m)^Tip: .*\n`)
	// Upstream wants debug information or a System.map; we need neither.
	noSymbols = regexp.MustCompile(`(?m)^WARNING: Kernel function symbol table missing \[man warning::symbols\]\n`)
)

// mask takes from messages what is another in each run or tree.
func (m *matrixRun) mask(text, client string, s *station) string {
	text = tempName.ReplaceAllString(text, "TMP")
	text = ownName.ReplaceAllString(text, "stap_NAME")
	text = unfinished.ReplaceAllString(text, "")
	text = noSymbols.ReplaceAllString(tip.ReplaceAllString(text, ""), "")
	return strings.ReplaceAll(text, s.tree.Kernel.Release, "RELEASE")
}

// judge says how a cell came out, and why if it is not ok.
func (m *matrixRun) judge(client, server string, c caseOf) (outcome, why string) {
	a, s := m.done[cell(client, server, c)], m.station(client, server)
	if a.exit < 0 {
		return different, "no answer: " + a.stderr
	}
	if c.check != nil {
		if err := c.check(s, a); err != nil {
			return different, err.Error()
		}
		return ok, ""
	}
	reference := server
	if server == sideOurs {
		reference = side56
	}
	want := m.done[cell(reference, reference, c)]
	if want.exit < 0 {
		return different, reference + "'s own client got no answer: " + want.stderr
	}
	absolute := c.holds(a, s)
	if server == side48 && c.module && c.holds(want, s) != nil {
		// Its own client gets no module either.
		if d := differs(a, want); d != "" {
			return different, "unlike 4.8's own client: " + d
		}
		return asOwn, ""
	}
	if absolute != nil {
		return different, absolute.Error()
	}
	if d := differs(a, want); d != "" {
		return different, "unlike " + reference + "'s own client and server: " + d
	}
	return ok, ""
}

// holds measures an answer by what the case says.
func (c caseOf) holds(a answer, s *station) error {
	match := func(re *regexp.Regexp, text string) bool {
		return re == nil && text == "" || re != nil && re.MatchString(text)
	}
	switch {
	case a.exit != c.exit:
		return fmt.Errorf("exit status %d, not %d:\n%s%s", a.exit, c.exit, a.stdout, a.stderr)
	case !match(c.stdout, a.stdout):
		return fmt.Errorf("stdout: %q", a.stdout)
	case !match(c.stderr, a.stderr):
		return fmt.Errorf("stderr: %q", a.stderr)
	case c.module != (a.module != nil):
		return fmt.Errorf("module: %v", a.module != nil)
	case c.module && !bytes.Contains(a.module, []byte("vermagic="+s.tree.Kernel.Release+" ")):
		return fmt.Errorf("the module is not for %s", s.tree.Kernel.Release)
	}
	return nil
}

// differs compares what users see.
func differs(a, want answer) string {
	if (a.module != nil) != (want.module != nil) {
		return fmt.Sprintf("module: %v, not %v", a.module != nil, want.module != nil)
	}
	return Difference(Result{Status: a.exit, Stdout: a.stdout, Stderr: a.stderr}, Result{Status: want.exit, Stdout: want.stdout, Stderr: want.stderr})
}
