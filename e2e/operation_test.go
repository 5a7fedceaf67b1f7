package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/metrics/metricstest"
	"stapbox/core/wire"
	"stapbox/e2e/lab"
)

// operated is a server whose process a test holds in its own hands.
type operated struct {
	*serving
	cmd   *exec.Cmd
	ended chan struct{}
	mu    sync.Mutex
	log   bytes.Buffer
}

func (o *operated) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Write(p)
}

func (o *operated) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.String()
}

// wait waits for the log.
func (o *operated) wait(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if m := re.FindStringSubmatch(o.text()); m != nil {
			return m
		}
	}
	t.Fatalf("the log lacks %q:\n%s", pattern, o.text())
	return nil
}

func (o *operated) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := o.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// exits waits for the end, which must be a good one.
func (o *operated) exits(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case <-o.ended:
		if code := o.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("status %d:\n%s", code, o.text())
		}
	case <-time.After(within):
		t.Fatalf("the server still runs after %v:\n%s", within, o.text())
	}
}

// operation is a server that has not started, in a network of its own.
func operation(t *testing.T, name string) *operated {
	t.Helper()
	n, k := serverHost(t)
	dir := filepath.Join(stage.dir, "operate-"+name)
	for _, d := range []string{dir, filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, lab.ServerUID, lab.ServerUID); err != nil {
			t.Fatal(err)
		}
	}
	return &operated{serving: &serving{&lab.Server{Dir: dir}, n, k}, ended: make(chan struct{})}
}

// environ is a server's environment.
func (o *operated) environ(more ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + o.Dir, "SYSTEMTAP_DIR=" + o.Dir, "TMPDIR=" + filepath.Join(o.Dir, "tmp"),
	}, more...)
}

// start starts the command of the server and collects its log.
func (o *operated) start(t *testing.T) {
	t.Helper()
	o.cmd.Stdout, o.cmd.Stderr = o, o
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // its end would end the server (Pdeathsig)
		err := o.cmd.Start()
		started <- err
		if err == nil {
			o.cmd.Wait()
			close(o.ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
}

// operate starts a server for a kernel, in a network of its own. What is made
// once for the kernel takes seconds; requests wait for it.
func operate(t *testing.T, name string, env []string, files []*os.File, args ...string) *operated {
	t.Helper()
	o := operation(t, name)
	// The process id is the same all the way down.
	argv := append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", stage.programs.Applet("stap-serverd"), "--key-type=ecdsa", "-r", o.kernel.Headers}, args...)
	o.cmd = o.net.Command(lab.ServerUID, o.environ(env...), argv...)
	o.cmd.ExtraFiles = files
	o.start(t)
	o.PID = o.cmd.Process.Pid
	t.Cleanup(func() {
		o.cmd.Process.Kill()
		<-o.ended
	})
	return o
}

// listens waits until the server accepts.
func (o *operated) listens(t *testing.T) *operated {
	t.Helper()
	o.Port, _ = strconv.Atoi(o.wait(t, `Using network address \[?[^\]]*\]?:(\d+)`)[1])
	return o
}

type answered struct {
	*wire.Response
	err error
}

func (o *operated) later(raw []byte) <-chan answered {
	c := make(chan answered, 1)
	go func() {
		r, err := o.send(raw, false)
		c <- answered{r, err}
	}()
	return c
}

// A request that is under way when SIGTERM comes is finished; who comes then is
// told why not.
// Requirements: A-09
func TestServerDrain(t *testing.T) {
	few(t)
	o := operate(t, "drain", nil, nil, "--drain-time=60").listens(t)
	raw := o.frame(t, "-p4", "--privilege=stapusr", "-e"+hello)
	first := o.later(raw)
	o.wait(t, "Options passed from the client")
	o.signal(t, syscall.SIGTERM)
	o.wait(t, "Received signal 15, exiting")
	o.wait(t, "Waiting for 1 outstanding requests to complete...")
	late, err := o.send(raw, false)
	if err != nil || late.RC != 1 || string(late.Stderr) != "Server: this server is shutting down. Try another one, or again later.\n" {
		t.Errorf("a request during the drain: %+v, %v", late, err)
	}
	got := <-first
	if got.err != nil || got.RC != 0 {
		t.Errorf("the request under way: %+v", got)
	} else if modules, signatures := got.Modules(); len(modules) != 1 || len(signatures[0].Data) == 0 {
		t.Errorf("%d modules", len(modules))
	}
	o.exits(t, 10*time.Second)
}

// The drain has an end: its time, or a second signal.
// Requirements: A-09
func TestServerDrainEnds(t *testing.T) {
	for _, tt := range []struct {
		arg  string
		sig  syscall.Signal
		want string
	}{
		{"--drain-time=1", 0, "Timeout reached, exiting (forced)"},
		{"--drain-time=600", syscall.SIGTERM, "Received another signal 15, exiting (forced)"},
		{"--drain-time=600", syscall.SIGINT, "Received another signal 2, exiting (forced)"},
	} {
		t.Run(tt.arg+fmt.Sprint(tt.sig), func(t *testing.T) {
			o := operate(t, fmt.Sprintf("ends%d", tt.sig), nil, nil, tt.arg).listens(t)
			got := o.later(o.frame(t, "-p4", "-e"+hello))
			o.wait(t, "Options passed from the client")
			o.signal(t, syscall.SIGINT)
			o.wait(t, "Received signal 2, exiting")
			began := time.Now()
			if tt.sig != 0 {
				o.signal(t, tt.sig)
			}
			o.exits(t, 5*time.Second)
			if d := time.Since(began); d > 4*time.Second || !strings.Contains(o.text(), tt.want) {
				t.Errorf("after %v:\n%s", d, o.text())
			}
			<-got
		})
	}
}

// SIGHUP in the middle of a request, with a good rc file and a bad one; SIGUSR1
// after the log was moved; SIGPIPE and SIGCHLD mean nothing.
// Requirements: B-24
func TestServerSignals(t *testing.T) {
	logFile := filepath.Join(stage.dir, "operate-signals", "log")
	o := operate(t, "signals", nil, nil, "--log="+logFile)
	file := func(name string) string {
		b, _ := os.ReadFile(name)
		return string(b)
	}
	logs := func(name, text string) {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); !strings.Contains(file(name), text); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s lacks %q:\n%s", name, text, file(name))
			}
		}
	}
	logs(logFile, "Using network address [::]:")
	o.Port, _ = strconv.Atoi(regexp.MustCompile(`\[::\]:(\d+)`).FindStringSubmatch(file(logFile))[1])
	raw := o.frame(t, "-p4", "--privilege=stapusr", "-e"+hello)
	first := o.later(raw)
	logs(logFile, "Options passed from the client")
	rc := filepath.Join(o.Dir, "rc")
	if err := os.WriteFile(rc, []byte("--rlimit-cpu=77\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o.signal(t, syscall.SIGHUP)
	logs(logFile, "Reloaded: ")
	if got := <-first; got.err != nil || got.RC != 0 {
		t.Errorf("the request that was under way: %+v", got)
	}
	if err := os.WriteFile(rc, []byte("--nosuch\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o.signal(t, syscall.SIGHUP)
	logs(logFile, "Reloading failed, all settings stay as they were: reading ")
	o.wait(t, "Reloading failed, all settings stay as they were: reading ") // on standard error too
	if got, err := o.send(raw, false); err != nil || got.RC != 0 {
		t.Errorf("after a bad rc: %+v, %v", got, err)
	}
	if err := os.Rename(logFile, logFile+".1"); err != nil {
		t.Fatal(err)
	}
	o.signal(t, syscall.SIGUSR1)
	logs(logFile, "log file opened again")
	o.signal(t, syscall.SIGPIPE)
	o.signal(t, syscall.SIGCHLD)
	if got, err := o.send(raw, false); err != nil || got.RC != 0 {
		t.Errorf("after all signals: %+v, %v", got, err)
	}
	logs(logFile, "msg=request")
	if strings.Count(file(logFile+".1"), "msg=request") != 2 {
		t.Errorf("the moved log:\n%s", file(logFile+".1"))
	}
	// On a busy machine the answer before may still be on its way into the cache.
	line := regexp.MustCompile(`msg=request peer=127\.0\.0\.1:\d+ digest=[0-9a-f]{32} rc=0 signature=signed time=\S+ script=[0-9a-f]{64} module=stap_\w+ module_sha256=[0-9a-f]{64} signer=([0-9a-f]{64}) release=\S+ client=5\.6 level=stapusr (translator=builtin )?cache=(hit|joined) key=[0-9a-f]{12}\n`)
	m := line.FindStringSubmatch(file(logFile))
	if m == nil || !strings.Contains(file(logFile+".1"), "sha256="+m[1]+"\n") {
		t.Errorf("no audit line, or another signer: %q\n%s", m, file(logFile))
	}
	o.signal(t, syscall.SIGTERM)
	o.exits(t, 10*time.Second)
}

// states collects what a server tells its manager.
type states struct {
	path string
	c    chan string
}

func manager(t *testing.T, name string) *states {
	t.Helper()
	path := filepath.Join(stage.dir, name)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &states{path, make(chan string, 1000)}
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			s.c <- string(b[:n])
		}
	}()
	return s
}

// next is the next state but WATCHDOG=1, and how many of those came before it.
func (s *states) next(t *testing.T) (state string, alive int) {
	t.Helper()
	for {
		select {
		case m := <-s.c:
			if m != "WATCHDOG=1" {
				return m, alive
			}
			alive++
		case <-time.After(30 * time.Second):
			t.Fatal("the server tells nothing")
		}
	}
}

func TestServerSystemd(t *testing.T) {
	few(t)
	m := manager(t, "notify")
	request, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer request.Close()
	scrape, err := net.Listen("unix", filepath.Join(stage.dir, "scrape"))
	if err != nil {
		t.Fatal(err)
	}
	defer scrape.Close()
	var files []*os.File
	for _, l := range []interface{ File() (*os.File, error) }{request.(*net.TCPListener), scrape.(*net.UnixListener)} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	o := operate(t, "systemd", []string{
		"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=200000", "LISTEN_FDS=2", "LISTEN_FDNAMES=stap-serverd.socket:metrics",
	}, files, "--log-format=json")
	if got, _ := m.next(t); !strings.HasPrefix(got, "READY=1\nSTATUS=Serving ") {
		t.Errorf("got %q", got)
	}
	o.signal(t, syscall.SIGHUP)
	got, _ := m.next(t)
	if !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+$`).MatchString(got) {
		t.Errorf("got %q", got)
	}
	if got, _ := m.next(t); got != "READY=1" {
		t.Errorf("got %q", got)
	}
	// The sockets are the manager's: this test's network, not the server's.
	conn, err := net.Dial("unix", scrape.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
	page, err := io.ReadAll(conn)
	conn.Close()
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(page), "\r\n\r\n")
	samples, err := metricstest.Parse(body)
	if err != nil {
		t.Fatalf("%v in\n%s", err, page)
	}
	if n, ok := samples.Get("stapbox_reloads_total", "result", "ok"); !ok || n != 1 {
		t.Errorf("reloads %v, %v", n, ok)
	}
	archive := o.frame(t, "-p2", "-e"+hello)[4:]
	client := &wire.Client{Address: request.Addr().String(), Verify: func(*x509.Certificate) error { return nil }}
	answer, err := client.Exchange(t.Context(), archive)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := wire.DecodeResponse(answer); err != nil || r.RC != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	time.Sleep(500 * time.Millisecond)
	o.signal(t, syscall.SIGTERM)
	if got, alive := m.next(t); got != "STOPPING=1" || alive < 3 {
		t.Errorf("got %q after %d signs of life", got, alive)
	}
	o.exits(t, 10*time.Second)
	for line := range strings.Lines(o.text()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %q", line)
		}
	}
	// They are still there for the next server.
	if _, err := os.Stat(scrape.Addr().String()); err != nil {
		t.Error(err)
	}
}

// What a manager must not give ends the start, with words.
func TestServerSystemdRefuses(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for want, env := range map[string][]string{
		`taking over socket 1 of 1 \(""\) from the service manager: descriptor 3 is not a socket`: {"LISTEN_FDS=1"},
		`LISTEN_FDS="x" is not a number of sockets`:                                               {"LISTEN_FDS=x"},
		`LISTEN_FDNAMES has 2 names for LISTEN_FDS=1`:                                             {"LISTEN_FDS=1", "LISTEN_FDNAMES=a:b"},
		`NOTIFY_SOCKET="nowhere" is neither an absolute path`:                                     {"NOTIFY_SOCKET=nowhere"},
		`WATCHDOG_USEC="-5" is not a number of microseconds`:                                      {"WATCHDOG_USEC=-5"},
	} {
		o := operate(t, "refuses", env, []*os.File{null})
		o.wait(t, want)
		<-o.ended
		if code := o.cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("%s: status %d", want, code)
		}
	}
}

// A client shows the certificate in its data directory; without it the server
// that wants one refuses, with words.
func TestServerClientCertificate(t *testing.T) {
	few(t)
	id, err := identity.New(identity.Options{NodeName: "client", KeyType: identity.ECDSA, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.Certificate.Raw})
	der, err := x509.MarshalPKCS8PrivateKey(id.Key)
	if err != nil {
		t.Fatal(err)
	}
	accepted := filepath.Join(stage.dir, "accepted.pem")
	if err := os.WriteFile(accepted, cert, 0o644); err != nil {
		t.Fatal(err)
	}
	o := operate(t, "client-certificate", nil, nil, "--client-ca="+accepted, "--require-client-cert", "--metrics="+filepath.Join(stage.dir, "operate-client-certificate", "metrics")).listens(t)
	home := filepath.Join(o.Dir, "tmp")
	stap := func(args ...string) (string, error) {
		cmd := o.net.Command(lab.ServerUID, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home}, append([]string{stage.programs.Applet("stap"), fmt.Sprintf("--use-server=127.0.0.1:%d", o.Port)}, args...)...)
		cmd.Dir = home
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := stap("--trust-servers=ssl,no-prompt"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	compile := []string{"-p2", "-r", o.kernel.Release, "-e", hello}
	if out, err := stap(compile...); err == nil || !strings.Contains(out, "Server: this server answers only clients that show a certificate (--require-client-cert).\n") {
		t.Errorf("got %v\n%s", err, out)
	}
	own := filepath.Join(home, ".systemtap", "ssl", "own")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"client.crt": cert, "client.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		path := filepath.Join(own, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, lab.ServerUID, lab.ServerUID); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := stap(compile...); err != nil {
		t.Errorf("got %v\n%s", err, out)
	}
	o.wait(t, `msg=request peer=127\.0\.0\.1:\d+ .* certificate=`+identity.Fingerprint(id.Certificate)+` subject="`)
	o.wait(t, `msg=refused peer=127\.0\.0\.1:\d+ reason=certificate `)
	// The metrics have counted both.
	conn, err := net.Dial("unix", filepath.Join(o.Dir, "metrics"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\n\r\n")
	page, _ := io.ReadAll(conn)
	_, body, _ := strings.Cut(string(page), "\r\n\r\n")
	samples, err := metricstest.Parse(body)
	if n, ok := samples.Get("stapbox_refusals_total", "reason", "certificate"); err != nil || !ok || n != 1 {
		t.Errorf("refusals %v, %v, %v", n, ok, err)
	}
	if n, ok := samples.Get("stapbox_pass_seconds_count", "pass", "2"); !ok || n != 1 {
		t.Errorf("pass 2: %v, %v in\n%s", n, ok, body)
	}
}

// Headers or a compiler are upgraded while a server runs: what was prepared does
// not fit any more, and is made anew without a restart.
func TestServerPreparesAgain(t *testing.T) {
	few(t)
	o := operate(t, "again", nil, nil).listens(t)
	if got := <-o.later(o.frame(t, "-p4", "-e"+hello)); got.err != nil || got.RC != 0 {
		t.Fatalf("got %+v, %v", got.Response, got.err)
	}
	left, err := filepath.Glob(filepath.Join(o.Dir, "kernels", "*", "recipe.json"))
	if err != nil || len(left) != 1 {
		t.Fatalf("prepared: %q, %v", left, err)
	}
	if err := os.RemoveAll(filepath.Dir(left[0])); err != nil {
		t.Fatal(err)
	}
	const other = `probe begin { println("other") exit() }`
	got := <-o.later(o.frame(t, "-p4", "-e"+other))
	if got.err != nil || got.RC != 0 {
		t.Fatalf("got %+v, %v", got.Response, got.err)
	}
	o.wait(t, "is prepared anew: kernel is not prepared")
}
