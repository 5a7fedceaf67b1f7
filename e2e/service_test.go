package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/service"
	"stapbox/core/wire"
	"stapbox/e2e/interop"
	"stapbox/e2e/lab"
)

// managed is a host on which an ordinary user manages servers: a network, a home
// directory with a key, and nothing that root made for it.
type managed struct {
	*testing.T
	net  *lab.Network
	home string
	env  []string
}

const managerUID = 12321

func manage(t *testing.T) *managed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("servers in a network of their own need root, for the network namespace")
	}
	n, err := stage.lab.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	dir, err := os.MkdirTemp(stage.dir, "service-")
	if err != nil {
		t.Fatal(err)
	}
	m := &managed{t, n, dir, nil}
	if _, err := identity.Generate(filepath.Join(dir, ".systemtap/ssl/server"), identity.Options{NodeName: "host", KeyType: identity.ECDSA, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	m.own(dir)
	t.Cleanup(func() {
		for _, pid := range m.pids() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return m
}

// own gives a tree to the user.
func (m *managed) own(dir string) {
	m.Helper()
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Lchown(path, managerUID, managerUID))
	})
	if err != nil {
		m.Fatal(err)
	}
}

func (m *managed) stat() string { return filepath.Join(m.home, ".systemtap/stap-server/run") }

// pids are the servers with a status file.
func (m *managed) pids() (list []int) {
	files, _ := filepath.Glob(filepath.Join(m.stat(), "*.stat"))
	for _, f := range files {
		if pid, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(f), ".stat")); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

// file writes one of the user's files about servers.
func (m *managed) file(name, text string) string {
	m.Helper()
	path := filepath.Join(m.home, ".systemtap/stap-server", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.Fatal(err)
	}
	m.own(filepath.Join(m.home, ".systemtap/stap-server"))
	return path
}

// do runs a program as the user.
func (m *managed) do(name string, args ...string) (stdout, stderr string, rc int) {
	m.Helper()
	cmd := m.net.Command(managerUID, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.home}, m.env...),
		append([]string{stage.programs.Applet(name)}, args...)...)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &bad, m.home
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.Fatal(err)
	}
	return out.String(), bad.String(), cmd.ProcessState.ExitCode()
}

// server runs stap-server, which must end with a status and print what matches.
func (m *managed) server(rc int, pattern string, args ...string) string {
	m.Helper()
	stdout, stderr, got := m.do("stap-server", args...)
	stderr = withoutHeaders.ReplaceAllString(stderr, "")
	if got != rc || !regexp.MustCompile("(?s)"+pattern).MatchString(stdout+stderr) {
		m.Errorf("stap-server %q: status %d, want %d and %q:\n%s%s", args, got, rc, pattern, stdout, stderr)
	}
	return stdout
}

// withoutHeaders is what start says about kernels that nothing can be built for: hosts
// of tests have headers or not.
var withoutHeaders = regexp.MustCompile(`(?m)^WARNING: kernel release "[^"]*": kernel headers are not installed: the server builds nothing for it\n`)

// shown are the servers as status --json shows them.
func (m *managed) shown(args ...string) []shownServer {
	m.Helper()
	stdout, stderr, _ := m.do("stap-server", append([]string{"status", "--json"}, args...)...)
	var list []shownServer
	if err := json.Unmarshal([]byte(stdout), &list); err != nil {
		m.Fatalf("%v in %s%s", err, stdout, stderr)
	}
	return list
}

type shownServer struct {
	State, Nickname, Arch, Log string
	PID, Port                  int
	Releases                   []string
	Certificate                struct{ Serial, Sha256 string }
}

func gone(pid int) bool {
	p, err := service.Process("/proc", pid)
	return err != nil || !p.Server()
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// Requirements: R-003-001 R-003-007 R-003-009 R-003-013 R-003-045 R-003-060 R-003-119 R-003-109 A-01 B-12 B-14 R-003-122 R-003-124
func TestServiceCheck01(t *testing.T) {
	m := manage(t)
	begin := time.Now()
	m.server(0, `^Starting stap-server -a "x86_64" -r "[^"]+" -u "12321" --log "`+m.home+`/.systemtap/stap-server/log" OK\nServer (\d+) is process \d+ and listens on port \d+\n$`, "start")
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("starting took %v", took)
	}
	list := m.shown()
	if len(list) != 1 || list[0].State != "running" || list[0].Port == 0 || len(list[0].Certificate.Sha256) != 64 {
		t.Fatalf("got %+v", list)
	}
	// Started means that it accepts.
	m.server(0, `^stap-server -a .* running as PID `+strconv.Itoa(list[0].PID)+`\n$`, "status")
	m.server(0, `^Stopping stap-server -a .* OK\n$`, "stop")
	if !gone(list[0].PID) {
		t.Error("the server lives")
	}
	m.server(3, `^No managed stap-server is running\n$`, "status")
	log := string(read(t, filepath.Join(m.home, ".systemtap/stap-server/log")))
	for _, want := range []string{`(?m)^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d: Starting stap-server -a `, `: Pass: stap-server start -a .* -n "\d+"`, `: Exec: stap-serverd -a `, `: Pass: stap-server stop -a `, `Received signal 15, exiting`} {
		if !regexp.MustCompile(want).MatchString(log) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if strings.Contains(log, "service manager") {
		t.Errorf("the server misses its manager:\n%s", log)
	}
	m.server(0, `^Stopping stap-server: OK\n$`, "stop")
}

// Requirements: R-003-004..005 R-003-008 R-003-010 R-003-016..024 R-003-062 R-003-073..075 R-003-088 R-003-092..093 R-003-107 R-003-115..116 A-02 B-01 B-02 B-25 R-003-110
func TestServiceCheck02(t *testing.T) {
	m := manage(t)
	m.server(0, "OK", "start")
	first := m.pids()
	m.server(0, `^Starting stap-server -a [^\n]* OK\n$`, "start")
	if got := m.pids(); len(got) != 1 || got[0] != first[0] {
		t.Errorf("started %v after %v", got, first)
	}
	m.server(0, "OK", "stop")
	// Nor do managers that start it at the same time start two.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { m.server(0, "OK", "start") })
	}
	all.Wait()
	if got := m.pids(); len(got) != 1 {
		t.Errorf("started %v at the same time", got)
	}
	m.server(0, "OK", "stop")

	// None runs: restart is start, and condrestart is nothing.
	m.server(0, `^No managed stap-server is running OK\n$`, "condrestart")
	m.server(0, `^Starting stap-server [^\n]* OK\n`, "restart")
	m.server(0, `^Stopping stap-server [^\n]* OK\nStarting stap-server [^\n]* OK\n`, "condrestart")
	m.server(0, "OK", "stop")

	m.file("conf.d/c.config", "NICKNAME=no.conf\n")
	m.file("conf.d/a.conf", "NICKNAME=native\nARCH=\nUSER=\nRELEASE=\n")
	m.file("conf.d/b.conf", "NICKNAME=two\nRELEASE=6.1.0-x\nMAXTHREADS=1\nLOG="+m.home+"/two.log")
	m.server(0, `(Starting stap-server [^\n]* OK\nServer (native|two) is [^\n]*\n){2}`, "start")
	before := m.pids()
	m.server(0, `(?s)-n "native".*-n "two"|-n "two".*-n "native"`, "status")
	m.server(0, `Stopping stap-server [^\n]*-n "native"[^\n]*OK\nStarting stap-server`, "restart")
	after := m.pids()
	if len(after) != 2 || after[0] == before[0] && after[1] == before[1] {
		t.Errorf("restarted %v as %v", before, after)
	}
	names := map[string]bool{}
	for _, s := range m.shown() {
		names[s.Nickname+" "+s.State] = true
	}
	if !names["native running"] || !names["two running"] {
		t.Errorf("after the restart: %v", names)
	}
	// A configured server by its name has the defaults of the file's empty values.
	m.server(0, "OK", "stop", "-n", "native")
	m.server(0, `^Starting stap-server -a "x86_64" -r "[^"]+" -u "12321" -n "native" --log`, "start", "-n", "native")
	m.server(0, `^stap-server [^\n]* -n "native" [^\n]* running as PID`, "status", "-n", "native")
	m.server(0, `(native|two) +running [^\n]*\n(native|two) +running`, "list")
	m.server(0, `(?s)(Stopping [^\n]*OK\n){2}(Starting [^\n]*OK\n[^\n]*\n){2}`, "force-reload")
	both := m.pids()
	m.server(0, `(?s)^(Stopping [^\n]*OK\nStarting [^\n]*OK\n[^\n]*\n){2}$`, "condrestart")
	if now := m.pids(); len(now) != 2 || slices.Contains(now, both[0]) || slices.Contains(now, both[1]) {
		t.Errorf("restarted %v as %v", both, now)
	}
	// Those that are named, and only those that run.
	m.server(0, "OK", "stop", "-n", "native")
	two := m.pids()
	m.server(0, `^stap-server [^\n]* -n "native" [^\n]* is not running OK\n$`, "condrestart", "-n", "native")
	m.server(0, `^Stopping [^\n]* -n "two" [^\n]*OK\nStarting [^\n]* -n "two" [^\n]*OK\n`, "try-restart", "-n", "two")
	if now := m.pids(); len(now) != 1 || now[0] == two[0] {
		t.Errorf("restarted %v as %v", two, now)
	}
	m.server(0, `^(Stopping [^\n]*OK\n)?Starting [^\n]* -n "native" `, "restart", "-n", "native")
	m.server(0, `^Stopping [^\n]* -n "native" [^\n]*OK\nStarting [^\n]* -n "native" `, "restart", "-n", "native")
	// A copy of one for another architecture.
	m.server(0, `^Starting stap-server -a "i386" -r "6.1.0-x" [^\n]* OK\n`, "start", "-n", "two", "-a", "i386")
	if len(m.pids()) != 3 {
		t.Errorf("running: %v", m.pids())
	}
	m.server(0, "OK", "stop")
	m.server(0, `^No managed stap-server is running OK\n$`, "try-restart")
	// There is nothing to build modules for that kernel with.
	m.server(1, `stap-server [^\n]* -n "two"[^\n]*: kernel release "6.1.0-x": kernel headers are not installed\n`, "configtest")
	m.server(0, `native +down`, "list")
}

// Requirements: R-003-006 R-003-012 R-003-030..031 R-003-046..048 R-003-052..055 R-003-112 A-03 B-03 B-07 B-10 B-20 B-23 R-003-056..057 C-17
func TestServiceCheck03(t *testing.T) {
	m := manage(t)
	port := freePort(t)
	m.server(0, `-a "i386" .* --log "`+m.home+`/F" --port "`+port+`" OK\nServer \d+ is process \d+ and listens on port `+port+`\n`, "start", "--log", "F", "--port="+port, "-ai386", "-kP")
	pids := m.pids()
	if len(pids) != 1 {
		t.Fatalf("running: %v", pids)
	}
	pid := strconv.Itoa(pids[0])
	m.server(0, "running as PID "+pid, "status", "-p", pid)
	m.server(0, `Stopping stap-server -a "i386".* OK\n$`, "stop", "-p", pid)
	if !gone(pids[0]) {
		t.Error("the server lives")
	}
	if log := string(read(t, filepath.Join(m.home, "F"))); !strings.Contains(log, "-P means nothing here") {
		t.Errorf("-k or -P swallowed a word:\n%s", log)
	}
	m.server(1, `^No stap-server running as pid `+pid+`\n$`, "status", "-p", pid)
	// A key is made where there is none, wherever --ssl and SYSTEMTAP_DIR say, and
	// its own user trusts it.
	trusts := func(dir, clients string) {
		t.Helper()
		cert, err := x509.ParseCertificate(read(t, filepath.Join(dir, "stap.cert")))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(clients, identity.Fingerprint(cert)+".pem")); err != nil {
			t.Errorf("the server of %s is not trusted: %v", dir, err)
		}
	}
	m.server(0, `--ssl "`+m.home+`/own" OK`, "start", "--ssl", "own")
	m.server(0, "OK", "stop", "--ssl=own")
	trusts(filepath.Join(m.home, "own"), filepath.Join(m.home, ".systemtap/ssl/client"))
	m.env = []string{"SYSTEMTAP_DIR=" + m.home + "/else"}
	m.server(0, "OK", "start")
	m.server(0, "OK", "stop")
	trusts(filepath.Join(m.home, "else/ssl/server"), filepath.Join(m.home, "else/ssl/client"))
	m.env = nil
	for _, args := range [][]string{{"start", "--nosuch"}, {"start", "word"}, {"start", "-r"}} {
		m.server(2, `Error: Argument parse error: `, args...)
	}
	m.server(2, `^Usage: `, "begin")
	m.server(2, `^Usage: `)
	m.server(3, `reload is not supported`, "reload")
	m.server(0, `^Usage: `, "usage")
	m.server(2, `^Missing /proc/nonexistent/include/config/kernel.release\nUsage: `, "start", "-r", "/proc/nonexistent")
}

// Requirements: R-000-030 R-003-032..033 R-003-037..039 R-003-052..055 R-003-108 A-04 B-06 B-19 C-08 C-09
func TestServiceCheck04(t *testing.T) {
	m := manage(t)
	m.server(0, `-r "A" -r "B"`, "start", "-r", "A", "-r", "B")
	m.server(3, `^stap-server [^\n]* is not running\n$`, "status", "-r", "A")
	m.server(0, `-r "A" -r "B"`, "status", "-r", "A", "-r", "B")

	p1, p2 := freePort(t), freePort(t)
	out, rc := rooted(t, `
		mkdir -p /lib/modules; mount -t tmpfs -o mode=755 tmpfs /lib/modules
		mkdir -p /lib/modules/6.1-a/build /lib/modules/6.2-b/build /lib/modules/none
		cd /tmp
		setpriv --reuid=stap-server --regid=stap-server --clear-groups env HOME=$home stap-server start -i --port `+p1+` --port=`+p2+` --log $home/L1
		echo "rc=$?"
		setpriv --reuid=stap-server --regid=stap-server --clear-groups env HOME=$home stap-server list
		mkdir $dir/rel && cd $dir/rel && echo LOG_FILE=/proc/nonexistent/log >settings
		setpriv --reuid=stap-server --regid=stap-server --clear-groups env HOME=$home stap-server status -i -c settings >/dev/null; echo "relative=$?"
		mount -t tmpfs tmpfs /lib/modules
		setpriv --reuid=stap-server --regid=stap-server --clear-groups env HOME=$home stap-server start -i; echo "none=$?"
	`)
	def := "/.systemtap/stap-server/log"
	for _, want := range []string{
		`-r "6.1-a" -u "stap-server" --log "\S*/L1" --port "` + p1 + `" OK`, `-r "6.2-b" -u "stap-server" --log "\S*` + def + `" --port "` + p2 + `" OK`, "rc=0",
		`running +\d+ +` + p1 + ` +stap-server +x86_64 +6.1-a`, `running +\d+ +` + p2 + ` .*6.2-b`, `WARNING: none is passed over`,
		`\nrelative=0\n`, `No kernel releases found in /lib/modules\n.*none=1\n`,
	} {
		if rc != 0 || !regexp.MustCompile("(?s)"+want).MatchString(withoutHeaders.ReplaceAllString(out, "")) {
			t.Errorf("status %d, want %q in\n%s", rc, want, out)
		}
	}
}

// Requirements: R-003-014 R-003-040 R-003-043..047 A-05 B-08 B-09
func TestServiceCheck05(t *testing.T) {
	m := manage(t)
	m.server(0, "OK", "start")
	m.server(0, `^Stopping stap-server: OK\n$`, "stop", "--port", "9999")
	m.server(3, `No managed`, "status", "--port", "9999")
	if len(m.pids()) != 1 {
		t.Error("stop --port 9999 stopped the server")
	}
	unknown := `^No configuration found for the nickname 'nobody' FAILED\n`
	m.server(1, unknown, "stop", "-n", "nobody")
	m.server(1, unknown, "condrestart", "-n", "nobody")
	m.server(3, `^No configuration found for the nickname 'nobody'\n$`, "status", "-n", "nobody")
	m.server(0, `-n "second"`, "start", "-r", "x", "-n", "second")
	pids := m.pids()
	if len(pids) != 2 {
		t.Fatalf("running: %v", pids)
	}
	m.server(0, `^(Stopping stap-server [^\n]* OK\n){2}$`, "stop", "-p", strconv.Itoa(pids[0]), "-p", strconv.Itoa(pids[1]))
	if len(m.pids()) != 0 || !gone(pids[0]) || !gone(pids[1]) {
		t.Error("servers live")
	}
}

// Requirements: R-003-064..067 A-06 B-05 B-22 R-003-070 R-003-123
func TestServiceCheck06(t *testing.T) {
	m := manage(t)
	mark := filepath.Join(m.home, "executed")
	config := m.file("settings", "LOG_FILE="+m.home+"/$HOME\n")
	m.server(0, `-a "\$\(touch `+mark+`\)" .* --log "`+m.home+`/\$HOME"`, "start", "-c", config, "-a", "$(touch "+mark+")")
	m.server(0, `running as PID`, "status", "-c", config)
	// What others leave in the directory does not matter.
	for name, text := range map[string]string{"foreign": "x", "99999.stat": "`touch " + mark + "`\n"} {
		if err := os.WriteFile(filepath.Join(m.stat(), name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.server(0, `(?s)running as PID.*WARNING: Invalid input, "`, "status", "-c", config)
	m.server(0, "OK", "stop", "-c", config)
	if _, err := os.Stat(mark); err == nil {
		t.Error("a value was executed")
	}
	if _, err := os.Stat(filepath.Join(m.home, "$HOME")); err != nil {
		t.Errorf("the log: %v", err)
	}
	m.server(2, "control character", "start", "-a", "x\nUSER=root")
}

// rooted runs a script of root on a host of its own: files of the system, users
// and processes that only it sees. $home is the home of user stap-server.
func rooted(t *testing.T, script string, env ...string) (string, int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a host of its own needs root, for namespaces")
	}
	n, err := stage.lab.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	dir, err := os.MkdirTemp(stage.dir, "rooted-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const setup = `
over() { mkdir -p $dir/over$1/up $dir/over$1/work && mount -t overlay overlay -o lowerdir=$1,upperdir=$dir/over$1/up,workdir=$dir/over$1/work $1 || exit 99; }
mkdir $dir/over && mount -t tmpfs tmpfs $dir/over || exit 99
mkdir $dir/lab && mount --bind "$lab" $dir/lab || exit 99
over /etc; over /usr/lib; over /usr/bin; mount -t tmpfs -o mode=755 tmpfs /run && mount -t tmpfs -o mode=755 tmpfs /var/log && mount -t tmpfs -o mode=700 tmpfs /root && mount -t tmpfs -o mode=1777 tmpfs /var/tmp || exit 99
# The lab may be below one of these.
[ -d "$lab" ] || { mkdir -p "$lab" && mount --bind $dir/lab "$lab"; } || exit 99
# What is installed on this host is not on that one.
rm -f /usr/bin/stap*; sed -i /^stap/d /etc/passwd /etc/group
echo stap-server:x:12321: >>/etc/group
echo outsider:x:12322: >>/etc/group
echo "stap-server:x:12321:12321::$home:/usr/sbin/nologin" >>/etc/passwd
echo "outsider:x:12322:12322::/:/usr/sbin/nologin" >>/etc/passwd
rm -rf /etc/systemtap
mkdir -m 750 $home && chown 12321:12321 $home
`
	cmd := n.Command(0, append([]string{"PATH=" + stage.programs.Dir + ":" + os.Getenv("PATH"), "HOME=/root", "dir=" + dir, "lab=" + stage.lab.Dir, "home=" + dir + "/home"}, env...),
		"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", setup+script)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if cmd.ProcessState.ExitCode() == 99 {
		t.Fatalf("setting up the host (overlay file systems are needed): %.4000s", out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Requirements: R-000-025..029 R-000-031 R-000-037 R-003-049..051 R-003-099 R-003-101 R-003-111 R-003-117..118 R-003-120..121 R-003-122 R-003-124 R-003-127 R-003-129 R-003-131..132 A-07 B-16 B-17 B-18 B-23 C-01 C-03 C-25 C-26
func TestServiceCheck07(t *testing.T) {
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	out, rc := rooted(t, `
		mkdir -m 1777 /var/tmp/q
		mkdir -p /etc/init.d && ln -s $(command -v stapbox) /etc/init.d/stap-server
		TMPDIR=/var/tmp/q SYSTEMTAP_DIR=/root/mine /etc/init.d/stap-server start -k -r `+k.Headers+`; echo "start=$?"
		pid=$(basename /run/stap-server/*.stat .stat)
		echo "user=$(stat -c %U /proc/$pid) groups=$(grep Groups /proc/$pid/status | tr -d '[:space:]') mine=$(tr '\0' '\n' </proc/$pid/environ | grep -c SYSTEMTAP_DIR)"
		echo "log=$(stat -c '%U %a' /var/log/stap-server/log) dir=$(stat -c '%U %a' /run/stap-server) server=$(grep -c 'starting as stap-server' /var/log/stap-server/log)"
		echo "peers=$(ls /etc/systemtap/ssl/client | wc -l) signers=$(ls /etc/systemtap/staprun | wc -l)"
		port=$(sed 's/.*"port":\([0-9]*\).*/\1/' /run/stap-server/.$pid.json)
		cd /tmp && mkdir $dir/work && cd $dir/work && stap --use-server=127.0.0.1:$port -r `+k.Release+` -p4 -m hello -e 'probe begin { exit() }'; echo "stap=$?"
		echo "requests=$(ls -d /var/tmp/q/stap-server* | wc -l)"
		/etc/init.d/stap-server start -u outsider; echo "outsider=$?"
		/etc/init.d/stap-server start -u nobody-there; echo "nobody=$?"
		begin=$(date +%s%N)
		stap-server start -u root; echo "root=$?"
		echo "ms=$((($(date +%s%N) - begin) / 1000000))"
		stap-server start; echo "invoker=$?"
		echo "left=$(ls -A /root | wc -l)"
		/etc/init.d/stap-server restart -p $pid; echo "restart=$?"
		/etc/init.d/stap-server stop; echo "stop=$?"
		setpriv --reuid=12322 --regid=12322 --clear-groups /etc/init.d/stap-server start; echo "unprivileged=$?"
		# The user can be named on the command line, for all servers, and for one.
		by() { echo "by $1: $(stat -c %U /proc/$(basename /run/stap-server/*.stat .stat)) $2"; stap-server stop >/dev/null; }
		stap-server start -u stap-server >/dev/null; by option $?
		mkdir -p /etc/sysconfig /etc/stap-server/conf.d
		echo STAP_USER=stap-server >/etc/sysconfig/stap-server; stap-server start >/dev/null; by settings $?
		rm /etc/sysconfig/stap-server
		echo USER=stap-server >/etc/stap-server/conf.d/one.conf; stap-server start >/dev/null; by file $?
		# The limits are those of that user's file.
		echo "--nosuch" >$home/.systemtap/rc; stap-server start; echo "badrc=$?"
		setpriv --reuid=12322 --regid=12322 --clear-groups env HOME=$dir/nowhere stap-server start -u stap-server; echo "other=$?"
	`)
	for _, want := range []string{
		`^Starting stap-server -a "x86_64" -r "` + regexp.QuoteMeta(k.Headers) + `" -u "stap-server" --log "/var/log/stap-server/log" OK\n`,
		`This host trusts sha256:[0-9a-f]{64} \(peer, all users\)\nThis host trusts sha256:[0-9a-f]{64} \(module signer, all users\)\n`,
		"start=0\n", `user=stap-server groups=Groups:12321 mine=0\n`, `log=stap-server 640 dir=stap-server 755 server=1\n`, `peers=1 signers=1\n`,
		`stap=0\n`, `requests=[1-9]`,
		`Cannot run servers as user outsider: it is not a member of group stap-server\n.*outsider=1\n`, `Cannot run servers as user nobody-there: there is no such user\n`, `nobody=1\n`,
		`For security reasons, invocation of stap-server as root is not supported\.\n`, `root=1\n`, `ms=\d{1,3}\n`, `invoker=1\n`, `left=0\n`,
		`restart=0\n`, `stop=0\n`, `stap-server: must be root to manage the service\nunprivileged=4\n`,
		`other=1\n`, `by option: stap-server 0\nby settings: stap-server 0\nby file: stap-server 0\n`, `FAILED\n[^\n]*/home/\.systemtap/rc[^\n]*--nosuch[^\n]*\nbadrc=1\n`,
	} {
		if !regexp.MustCompile("(?s)" + want).MatchString(withoutHeaders.ReplaceAllString(out, "")) {
			t.Errorf("status %d, no %q in\n%s", rc, want, out)
		}
	}
}

// Requirements: R-003-011 R-003-025..026 A-08 B-12 B-15
func TestServiceCheck08(t *testing.T) {
	m := manage(t)
	for _, tt := range [][2]string{
		{"port=99999", `invalid entry: port must be between 0 and 65535 '--port=99999'`},
		{"port=http", `cannot parse number '--port=http'`},
		{"max-threads=-1", `invalid entry: max threads`},
		{"log=" + m.home, `is a directory`},
		{"ssl=" + m.home + "/no/x\x1b", `control character`},
	} {
		begin := time.Now()
		rc := 1
		if strings.Contains(tt[0], "\x1b") {
			rc = 2
		}
		pattern := regexp.QuoteMeta(tt[1])
		if rc == 1 {
			pattern = `^Starting stap-server [^\n]* FAILED\n.*` + pattern
		}
		m.server(rc, pattern, "start", "--"+tt[0])
		if took := time.Since(begin); took > time.Second {
			t.Errorf("%s took %v", tt[0], took)
		}
	}
	m.server(0, "OK", "start")
	port := strconv.Itoa(m.shown()[0].Port)
	begin := time.Now()
	m.server(1, `^Starting stap-server [^\n]* FAILED\n.*Unable to start a systemtap server: \S*/stap-serverd did not start: [^\n]*address already in use`, "start", "-r", "other", "--port", port)
	if took := time.Since(begin); took > time.Second {
		t.Errorf("a busy port took %v", took)
	}
	pid := m.pids()[0]
	syscall.Kill(pid, syscall.SIGKILL)
	for !gone(pid) {
		time.Sleep(10 * time.Millisecond)
	}
	m.server(1, fmt.Sprintf(`started as PID %d is no longer running\n$`, pid), "status")
	m.server(3, `No managed`, "status")
	// A directory of status files that cannot be written: no server is left (B-15).
	if err := os.Chown(m.stat(), 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(m.stat(), ".lock")); err != nil {
		t.Fatal(err)
	}
	m.server(1, "FAILED", "start")
	m.server(1, `Cannot read configuration file /proc/nonexistent`, "status", "-c", "/proc/nonexistent")
}

// One signal, and time to finish (B-13).
// Requirements: R-003-012 R-003-015 A-09 B-13
func TestServiceCheck09(t *testing.T) {
	m := manage(t)
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	// On a busy machine preparing takes longer than stop waits.
	prepared(t, filepath.Join(m.home, ".systemtap"), managerUID, k)
	m.server(0, "OK", "start", "-r", k.Headers)
	o := &operated{serving: &serving{&lab.Server{Dir: m.home, Port: m.shown()[0].Port}, m.net, k}}
	first := o.later(o.frame(t, "-p4", "-e"+strings.Repeat("probe timer.s(1) { println(gettimeofday_s()) }\n", 100)))
	log := filepath.Join(m.home, ".systemtap/stap-server/log")
	for end := time.Now().Add(20 * time.Second); !strings.Contains(string(read(t, log)), "Options passed from the client") && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	m.server(0, "OK", "stop")
	if got := <-first; got.err != nil || got.RC != 0 {
		t.Errorf("the request under way: %+v", got)
	}
	if text := string(read(t, log)); strings.Contains(text, "forced") || !strings.Contains(text, "Received signal 15") || !strings.Contains(text, "Waiting for 1 outstanding requests to complete") {
		t.Errorf("the log:\n%s", text)
	}
	// A server that does not end is told of, and stays known.
	m.server(0, "OK", "start")
	pid := m.pids()[0]
	syscall.Kill(pid, syscall.SIGSTOP)
	m.server(1, fmt.Sprintf("FAILED\n%d not shutting down", pid), "stop", "--wait-stop=1")
	if len(m.pids()) != 1 {
		t.Error("the server is forgotten")
	}
	syscall.Kill(pid, syscall.SIGCONT)
	m.server(0, "OK", "stop")
}

// Requirements: R-003-027..029 R-003-061 R-003-063..072 R-003-077 R-003-095 A-10 B-04 B-21 R-003-125
func TestServiceCheck10(t *testing.T) {
	m := manage(t)
	conf := filepath.Join(m.home, "servers")
	m.file("config", "# crlf\r\n  CONFIG_PATH=~/servers  \r\nLOG_FILE=\r\nSTAT_PATH=")
	for _, d := range []string{conf, filepath.Join(m.home, "tapsets")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(conf, "x.conf"), []byte("\t ARCH= \r\nINCLUDE=~/tapsets\nINCLUDE+=\nDEFINE=A\nDEFINE+=B=1\nBUILD=\"VARIABLE1=VALUE1 VARIABLE2=VALUE2\"\nRUNTIME=/usr\n#\nNICKNAME=last"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.server(0, `-R "/usr" -D "A" -D "B=1" -I "`+m.home+`/tapsets" -B "VARIABLE1=VALUE1 VARIABLE2=VALUE2" -u "12321" -n "last" --log \S* OK\n`, "start")
	// -n is about the files of CONFIG_PATH and STAT_PATH, wherever these are set.
	m.server(0, `-n "last" .* running as PID`, "status", "-n", "last")
	m.server(0, "OK", "stop")
	elsewhere := m.file("elsewhere", "CONFIG_PATH="+conf+"\nSTAT_PATH="+m.home+"/stat")
	m.server(0, `-R "/usr" -D "A" .* -n "last" `, "start", "-n", "last", "-c", elsewhere)
	m.server(0, `-n "last" .* running as PID`, "status", "-n", "last", "-c", elsewhere)
	m.server(3, `-n "last" .* is not running`, "status", "-n", "last")
	m.server(0, "OK", "stop", "-n", "last", "-c", elsewhere)
	for text, line := range map[string]string{"FOO=bar\n": "FOO=bar", "STAT_PATH": "STAT_PATH", "  rm -rf /  ": "rm -rf /"} {
		file := m.file("other", text)
		m.server(1, `^Invalid input, "`+line+`", in `+file+`\n$`, "start", "-c", file)
	}
	if err := os.WriteFile(filepath.Join(conf, "y.conf"), []byte("NICKNAME+=x"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.server(1, `^Invalid input, "NICKNAME\+=x", in \S*/y.conf\n$`, "start")
	m.server(1, `^Invalid input`, "configtest")
	// Of several files the last counts, relative to where one is.
	if err := os.Remove(filepath.Join(conf, "y.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.home, "relative"), []byte("LOG_FILE=/proc/nonexistent/x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.server(1, `Failed to make log directory \(/proc/nonexistent\).*FAILED|FAILED.*Failed to make log directory \(/proc/nonexistent\)`, "start", "-c", "/proc/nonexistent", "-c", "relative")
	m.server(1, `x.conf|no such user`, "configtest", "-u", "nobody-there")
}

// Requirements: R-003-004..006 A-18 B-22
func TestServiceCheck18(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SystemTap's own manager runs in a tree of its own, which needs root")
	}
	if _, err := os.Stat(filepath.Join(stage.lab.Dir, "peer-4.8")); err != nil {
		t.Skip("no tree of Debian 12 with SystemTap 4.8 here: ./e2e/run interop makes it")
	}
	old, err := stage.lab.FetchOldPeer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := interop.Managers(t.Context(), stage.lab, old, stage.programs, &out); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
}

// Requirements: R-004-003..007 R-004-011..020 R-004-038 R-004-043..045 R-004-051..052 R-004-059 A-17 B-11 C-12 C-13
func TestServiceCheck17(t *testing.T) {
	m := manage(t)
	tool := func(rc int, stdout, stderr, name string, args ...string) string {
		t.Helper()
		out, bad, got := m.do(name, args...)
		bad = withoutHeaders.ReplaceAllString(bad, "")
		if got != rc || !regexp.MustCompile("^"+stdout+"$").MatchString(out) || !regexp.MustCompile("^"+stderr+"$").MatchString(bad) {
			t.Errorf("%s %q: status %d, %q, %q", name, args, got, out, bad)
		}
		return strings.TrimSpace(out)
	}
	running := func(word string) int {
		pid, err := strconv.Atoi(word)
		if err != nil || gone(pid) {
			t.Fatalf("no server is process %q", word)
		}
		t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
		return pid
	}
	if err := os.RemoveAll(filepath.Join(m.home, ".systemtap/ssl")); err != nil {
		t.Fatal(err)
	}
	pid := running(tool(0, `\d+\n`, "", "stap-start-server"))
	cert, err := x509.ParseCertificate(read(t, filepath.Join(m.home, ".systemtap/ssl/server/stap.cert")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(m.home, ".systemtap/ssl/client", identity.Fingerprint(cert)+".pem")); err != nil {
		t.Errorf("the server is not trusted by its own user: %v", err)
	}
	tool(0, "", "", "stap-stop-server", "--wait", strconv.Itoa(pid))
	if !gone(pid) {
		t.Error("the server lives")
	}
	tool(1, "", `Usage: stap-stop-server PROCESS_ID\n`, "stap-stop-server")
	for _, word := range []string{strconv.Itoa(pid), "1", "x", "0", "-1x"} {
		if word != "-1x" {
			tool(1, "", word+` is not a systemtap server\n`, "stap-stop-server", word)
		}
	}
	port := freePort(t)
	pid = running(tool(0, `\d+\n`, "", "stap-start-server", port, filepath.Join(m.home, "ssl")))
	if c, err := (&serving{&lab.Server{Port: atoi(t, port)}, m.net, nil}).dial("127.0.0.1"); err != nil {
		t.Errorf("the port of 0.9: %v", err)
	} else {
		c.Close()
	}
	// Half a number is not this server (B-11).
	word := strconv.Itoa(pid)
	tool(1, "", `.* is not a systemtap server\n`, "stap-stop-server", word[:len(word)-1])
	tool(1, "", `Unable to start a systemtap server: \S*/stap-serverd did not start: .*address already in use\n`, "stap-start-server", "--port="+port)
	// One that is announced for this kernel, whose headers this host may lack.
	tree := filepath.Join(m.home, "tree")
	generated := filepath.Join(tree, "include/generated")
	if err := errors.Join(os.MkdirAll(generated, 0o755), os.WriteFile(filepath.Join(generated, "utsrelease.h"), []byte(`#define UTS_RELEASE "`+hostpaths.KernelRelease()+"\"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	m.own(tree)
	announced := running(tool(0, `\d+\n`, "", "stap-start-server", "-r", tree))
	tool(0, `0\n`, "", "stap-find-or-start-server", "--max-threads=x")
	tool(0, "", "", "stap-stop-server", "--wait", strconv.Itoa(announced))
	tool(0, "", "", "stap-stop-server", "--wait", word)
	tool(1, `-1\n`, `Unable to start a systemtap server: cannot parse number '--max-threads=x'\n`, "stap-find-or-start-server", "--max-threads=x")
	pid = running(tool(0, `\d+\n`, "", "stap-find-or-start-server"))
	// It does not look whether the server ends, and one signal is all.
	syscall.Kill(pid, syscall.SIGSTOP)
	tool(0, "", "", "stap-stop-server", strconv.Itoa(pid))
	if gone(pid) {
		t.Error("the server ended while it was stopped")
	}
	syscall.Kill(pid, syscall.SIGCONT)
	for end := time.Now().Add(10 * time.Second); !gone(pid) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if !gone(pid) {
		t.Error("the server lives")
	}
	// As root nothing starts.
	out, _ := rooted(t, `stap-start-server; echo "rc=$?"; ls -A /root | wc -l`)
	if !regexp.MustCompile(`not supported\.\nrc=1\n0\n$`).MatchString(out) {
		t.Errorf("as root: %s", out)
	}
}

// Tapsets of the server are for every client, and what changes in them makes
// other answers. For another architecture there is a server that refuses.
// Requirements: R-003-034 R-003-111
func TestServiceTapsets(t *testing.T) {
	m := manage(t)
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.home, "tapset", "own.stp")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`function own() { return 1 }`)
	m.server(0, "OK", "start", "-r", k.Headers, "-I", "tapset")
	server := m.shown()[0]
	o := &operated{serving: &serving{&lab.Server{Dir: m.home, Port: server.Port}, m.net, k}}
	raw := o.frame(t, "-p2", "-eprobe begin { print(own()) }")
	if r, err := o.send(raw, false); err != nil || r.RC != 0 {
		t.Fatalf("got %+v, %v", r, err)
	}
	write(`function other() { return 1 }`)
	syscall.Kill(server.PID, syscall.SIGHUP)
	log := filepath.Join(m.home, ".systemtap/stap-server/log")
	for end := time.Now().Add(10 * time.Second); !strings.Contains(string(read(t, log)), "Reloaded: ") && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if r, err := o.send(raw, false); err != nil || r.RC == 0 || !strings.Contains(string(r.Stderr), "unresolved function own") {
		t.Errorf("after the change: %+v, %v", r, err)
	}
	m.server(0, "OK", "start", "-n", "foreign", "-a", "i386", "-r", k.Headers)
	for _, s := range m.shown() {
		if s.Nickname == "foreign" {
			o.Port = s.Port
		}
	}
	archive, err := (&wire.Request{Version: wire.Version, Release: k.Release, Arch: "i386", HasLocale: true, Args: []string{"-p4", "-e" + hello}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := o.send(frameOf(archive), false); err != nil || r.RC != 1 || !strings.Contains(string(r.Stderr), `architecture "i386" is not supported`) {
		t.Errorf("another architecture: %+v, %v", r, err)
	}
}

// The directory of running servers belongs to the servers' user, who may write
// into it what he likes. Root makes no file for him elsewhere, starts nothing as
// whom he names, and signals nobody else's servers.
func TestServiceForgedStatus(t *testing.T) {
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	out, rc := rooted(t, `
		as() { setpriv --reuid=$1 --regid=$1 --clear-groups env HOME=$dir/other TMPDIR=/var/tmp sh -c "$2"; }
		mkdir -p $dir/other && chown 12322:12322 $dir/other
		STAP_USER=stap-server stap-server start -n mine -r `+k.Headers+` >/dev/null; echo "start=$?"
		mine=$(basename /run/stap-server/*.stat .stat)
		as 12322 "stap-server start -r `+k.Headers+` >/dev/null"; echo "others=$?"
		other=$(basename $dir/other/.systemtap/stap-server/run/*.stat .stat)
		as 12321 "sed 's,^LOG=.*,LOG=/etc/profile.d/evil.sh,' /run/stap-server/$mine.stat >/run/stap-server/x && rm -f /run/stap-server/$mine.stat && mv /run/stap-server/x /run/stap-server/$mine.stat"
		stap-server restart -p $mine; echo "restart=$?"
		ls /etc/profile.d/evil.sh; echo "evil=$?"
		as 12321 "cp /run/stap-server/$mine.stat /run/stap-server/$other.stat 2>/dev/null || echo USER=x >/run/stap-server/$other.stat"
		stap-server stop -p $other; echo "stop=$?"
		kill -0 $other; echo "lives=$?"
		as 12322 "stap-server stop" >/dev/null; echo "own=$?"
	`)
	for _, want := range []string{
		"start=0\n", "others=0\n", `The status file of process \d+ belongs to user id 12321: root starts nothing by it.*restart=1\n`, `evil=2\n`,
		`The status file of process \d+ belongs to user id 12321, the process does not\n.*stop=1\n`, `lives=0\n`, `own=0\n`,
	} {
		if !regexp.MustCompile("(?s)" + want).MatchString(withoutHeaders.ReplaceAllString(out, "")) {
			t.Errorf("status %d, no %q in\n%s", rc, want, out)
		}
	}
}
