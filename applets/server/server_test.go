package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"stapbox/core/compile"
	"stapbox/core/discovery"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/sandbox"
	"stapbox/core/stapopts"
	"stapbox/core/trust"
	"stapbox/core/wire"
)

// The test binary is the worker of the servers it starts.
func TestMain(m *testing.M) {
	sandbox.Enter()
	if os.Getenv(sandbox.Variable) != "" {
		args, err := sandbox.Args()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		o, err := stapopts.Parse(args)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if strings.HasPrefix(o.Script, "sleep") {
			time.Sleep(time.Minute)
		}
		if o.Script == "who" {
			time.Sleep(300 * time.Millisecond)
			fmt.Println("worker", time.Now().UnixNano()) // its pid is always 1
			os.Exit(0)
		}
		fmt.Println("script", o.Script)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// safe is a buffer that a server writes and a test reads.
type safe struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safe) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safe) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type nothing struct{}

func (nothing) Close() error { return nil }

type running struct {
	*server
	out  *safe
	addr string
	stop func() int
	pub  [][]discovery.Service
}

const testRelease = "6.1.0-test"

func start(t *testing.T, args ...string) *running {
	t.Helper()
	home := t.TempDir()
	opts, err := parse(append([]string{"--key-type=ecdsa"}, args...), 2)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{out: &safe{}}
	r.server = &server{
		inv: &invocation.Invocation{Name: "stap-serverd", Environ: []string{"HOME=" + home, "TMPDIR=" + t.TempDir()}, Dir: "/", Stderr: r.out, Stdout: io.Discard},
		// Whoever runs the test: the server takes him for a user.
		euid: 1000, uid: os.Getuid(), user: "tester", node: "vm", arch: "x86_64", opts: opts, now: time.Now, clock: 20 * time.Second,
		findHeaders: func(compile.Release) error { return nil },
		publish: func(_ string, s []discovery.Service, _ func(string, ...any)) (io.Closer, error) {
			r.pub = append(r.pub, s)
			return nothing{}, nil
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int, 1)
	go func() { done <- r.run(ctx, testRelease) }()
	var code *int
	r.stop = func() int {
		cancel()
		if code == nil {
			c := <-done
			code = &c
		}
		return *code
	}
	t.Cleanup(func() { r.stop() })
	port := regexp.MustCompile(`Using network address \[::\]:(\d+)`)
	r.wait(t, "Kernel "+testRelease+" is ready")
	at := port.FindStringSubmatch(r.out.String())
	if at == nil {
		t.Fatalf("the log does not say where the server listens:\n%s", r.out)
	}
	r.addr = "127.0.0.1:" + at[1]
	return r
}

func (r *running) wait(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(r.out.String(), text) {
			return
		}
	}
	t.Fatalf("the log lacks %q:\n%s", text, r.out.String())
}

func anybody(*x509.Certificate) error { return nil }

func request(t *testing.T, args ...string) []byte {
	t.Helper()
	data, err := (&wire.Request{Version: "5.6", Release: testRelease, Arch: "x86_64", Args: args}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (r *running) ask(t *testing.T, archive []byte) *wire.Response {
	t.Helper()
	answer, err := (&wire.Client{Address: r.addr, Verify: anybody, Attempts: 1}).Exchange(context.Background(), archive)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.out.String())
	}
	got, err := wire.DecodeResponse(answer)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Requirements: R-002-098 R-003-002..003 R-004-002 R-004-004 R-004-043..045
func TestServer(t *testing.T) {
	r := start(t, "-DX=1")
	if got := r.ask(t, request(t, "-p2", "-ehello")); got.RC != 0 || string(got.Stdout) != "script hello\n" {
		t.Errorf("got %d, %q, %q", got.RC, got.Stdout, got.Stderr)
	}
	// The certificate is the one in the directory, and the user's own client trusts it.
	cert, err := (&wire.Client{Address: r.addr, Verify: anybody}).Contact(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Load(hostpaths.ServerIdentity(r.data), time.Now())
	if err != nil || !id.Certificate.Equal(cert) {
		t.Errorf("identity: %v", err)
	}
	store, err := trust.Read(hostpaths.UserPeerStore(r.data), trust.UserRules(os.Getuid(), r.data))
	if err != nil || store.Trusts(cert.Raw, time.Now()) != nil {
		t.Errorf("own trust: %v", err)
	}
	if len(r.pub) != 1 || len(r.pub[0]) != 1 || r.pub[0][0].TXT[0] != "sysinfo=6.1.0-test x86_64" || r.pub[0][0].TXT[1] != "optinfo=-DX=1" {
		t.Errorf("published: %+v", r.pub)
	}
	if code := r.stop(); code != 0 {
		t.Errorf("status %d", code)
	}
	log := r.out.String()
	for _, want := range []string{
		"===== compile server pid ", " starting as tester =====\n", "Using a maximum of 2 threads\n", "Certificate database ", "Accepted connection from 127.0.0.1:",
		"Processing 1 request...\n", "Client version is 5.6\n", "Options passed from the client: -p2 -ehello\n", "msg=request", "level=stapdev", "Request from 127.0.0.1:",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	// Tools read the address as the ninth word of its line.
	for _, line := range strings.Split(log, "\n") {
		if f := strings.Fields(line); strings.Contains(line, "Using network address") && (len(f) != 9 || !strings.HasPrefix(f[8], "[::]:")) {
			t.Errorf("line %q", line)
		}
	}
}

// The largest scripts that are published take 5.4 KB packed, and a server takes
// three times as much where nobody has set another limit.
func TestServerTakesLargeScripts(t *testing.T) {
	r := start(t)
	random := rand.New(rand.NewPCG(1, 2))
	text := []byte("-eprobe begin { exit() } # ")
	for range 20000 {
		text = append(text, "abcdefghijklmnopqrstuvwxyz0123456789_"[random.IntN(37)])
	}
	archive := request(t, "-p2", string(text))
	if len(archive) < 12000 {
		t.Fatalf("the request has only %d bytes", len(archive))
	}
	if a := r.ask(t, archive); strings.Contains(string(a.Stderr), "too large") || strings.Contains(string(a.Stderr), "Uncompressed") {
		t.Errorf("%d bytes packed: %s", len(archive), a.Stderr)
	}
}

// Each of these is answered, or dropped, while another client is being served.
func TestServerRefusesMalformed(t *testing.T) {
	r := start(t, "--max-compressed-request=2000", "--max-request-size=4000")
	busy := make(chan *wire.Response, 1)
	go func() {
		answer, _ := (&wire.Client{Address: r.addr, Verify: anybody}).Exchange(context.Background(), request(t, "-p2", "-ehello"))
		got, _ := wire.DecodeResponse(answer)
		busy <- got
	}()
	frame := func(n int32, body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(n)), body...)
	}
	big, err := wire.Frame(request(t, "-p2", "-e"+strings.Repeat("A", 5000)))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		raw  []byte
		want string
	}{
		{"negative length", frame(-5, ""), "Invalid request size: negative value"},
		{"oversized length", frame(1<<30, strings.Repeat("x", 100000)), " request file is too large"},
		{"truncated", frame(100, "abc"), "Expected 100 bytes, got 3"},
		{"no length", []byte{0, 0}, "Error reading size of request file"},
		{"junk", frame(4, "junk"), "Unable to extract client request"},
		{"inflates too much", big, "Uncompressed request size of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			c.Write(tt.raw)
			c.CloseWrite()
			answer, err := io.ReadAll(c)
			if len(answer) == 0 {
				t.Fatalf("no answer: %v", err)
			}
			got, err := wire.DecodeResponse(answer)
			if err != nil || got.RC != 1 || !got.HasStdout || got.Version != "5.6" || !strings.Contains(string(got.Stderr), tt.want) {
				t.Errorf("got %+v, %v; want %q", got, err, tt.want)
			}
			if !strings.Contains(r.out.String(), tt.want) {
				t.Errorf("the log lacks %q", tt.want)
			}
		})
	}
	if got := <-busy; got == nil || got.RC != 0 {
		t.Errorf("the other client got %+v", got)
	}
}

// Connections that say nothing do not keep others from being served.
func TestServerIdleConnections(t *testing.T) {
	r := start(t, "--max-threads=1")
	for range 20 {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if got := r.ask(t, request(t, "-p2", "-ehello")); got.RC != 0 {
		t.Errorf("got %d, %q", got.RC, got.Stderr)
	}
}

// Requirements: R-003-058
func TestServerConcurrency(t *testing.T) {
	r := start(t, "--max-threads=3")
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for i := range 4 {
		archive := request(t, "-p2", fmt.Sprintf("-esleep %d", i))
		clients.Go(func() {
			(&wire.Client{Address: r.addr, Verify: anybody}).Exchange(ctx, archive)
		})
	}
	r.wait(t, "Processing 3 concurrent requests...")
	r.wait(t, "Server is overloaded. Processing times may be longer than normal.")
	// The clients go away: their workers end, and the slots are free again.
	cancel()
	clients.Wait()
	begin := time.Now()
	if got := r.ask(t, request(t, "-p2", "-ehello")); got.RC != 0 || time.Since(begin) > 10*time.Second {
		t.Errorf("got %d, %q after %v", got.RC, got.Stderr, time.Since(begin))
	}
}

// A client that has said all it has to say still gets its answer; one that is
// gone leaves no worker behind.
func TestServerClientsThatStop(t *testing.T) {
	r := start(t)
	send := func(script string) *tls.Conn {
		t.Helper()
		conn, err := tls.Dial("tcp", r.addr, wire.ClientTLS("", anybody))
		if err != nil {
			t.Fatal(err)
		}
		frame, err := wire.Frame(request(t, "-p2", "-e"+script))
		if err == nil {
			_, err = conn.Write(frame)
		}
		if err == nil {
			err = conn.CloseWrite()
		}
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	for range 20 {
		conn := send("hello")
		answer, err := io.ReadAll(conn)
		conn.Close()
		if got, derr := wire.DecodeResponse(answer); err != nil || derr != nil || string(got.Stdout) != "script hello\n" {
			t.Fatalf("%+v, %v, %v", got, err, derr)
		}
	}
	conn := send("sleep")
	r.wait(t, "Options passed from the client: -p2 -esleep")
	began := time.Now()
	conn.Close()
	r.wait(t, "the client is gone")
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("the worker ended after %v", d)
	}
}

func TestServerShutdownEndsWorkers(t *testing.T) {
	r := start(t, "--drain-time=2")
	ended := make(chan error, 1)
	go func() {
		_, err := (&wire.Client{Address: r.addr, Verify: anybody, Attempts: 1}).Exchange(context.Background(), request(t, "-p2", "-esleep"))
		ended <- err
	}()
	r.wait(t, "Processing 1 request...")
	begin := time.Now()
	if code := r.stop(); code != 0 || time.Since(begin) > r.limits().drain+5*time.Second {
		t.Errorf("status %d after %v", code, time.Since(begin))
	}
	<-ended
	if log := r.out.String(); !strings.Contains(log, "Waiting for 1 outstanding requests to complete...") || !strings.Contains(log, "Timeout reached, exiting (forced)") {
		t.Errorf("log:\n%s", log)
	}
}

// A known request is answered octet for octet as before, without a worker: its
// answer names the process that made it. So do those of fifty clients at once.
func TestServerCache(t *testing.T) {
	r := start(t)
	ask := func(archive []byte) []byte {
		answer, err := (&wire.Client{Address: r.addr, Verify: anybody, Attempts: 1}).Exchange(context.Background(), archive)
		if err != nil {
			t.Error(err)
		}
		return answer
	}
	archive := request(t, "-p2", "-ewho")
	answers := make([][]byte, 50)
	var clients sync.WaitGroup
	for i := range answers {
		clients.Go(func() { answers[i] = ask(archive) })
	}
	clients.Wait()
	for i, a := range answers {
		if !bytes.Equal(a, answers[0]) {
			t.Errorf("answer %d is another", i)
		}
	}
	if got, err := wire.DecodeResponse(answers[0]); err != nil || !strings.HasPrefix(string(got.Stdout), "worker ") {
		t.Errorf("got %+v, %v", got, err)
	}
	r.compiler().Wait()
	began := time.Now()
	again := ask(archive)
	t.Logf("a known request took %v", time.Since(began))
	if !bytes.Equal(again, answers[0]) {
		t.Error("the answer from the cache is another")
	}
	log := r.out.String()
	for want, n := range map[string]int{"cache=miss": 1, "cache=hit": 1, "msg=request": 51} {
		// A late one of the fifty may find the answer in the cache.
		if got := strings.Count(log, want); got < n || got > n && want != "cache=hit" {
			t.Errorf("%s: %d times in the log, want %d", want, got, n)
		}
	}
	if !regexp.MustCompile(`cache=hit key=[0-9a-f]{12}\n`).MatchString(log) || !strings.Contains(log, "Cache "+hostpaths.Answers(r.data)+" has 0 answers") {
		t.Errorf("log:\n%s", log)
	}
	if other := ask(request(t, "-p2", "-v", "-ewho")); bytes.Equal(other, again) || !strings.Contains(r.out.String(), "cache=off") {
		t.Error("-v was answered from the cache")
	}
}

func TestServerCacheOptions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "here")
	r := start(t, "--cache-dir="+dir, "--cache-size=1M")
	r.wait(t, "Cache "+dir+" has 0 answers in 0 bytes, at most 1048576\n")
	r.ask(t, request(t, "-p2", "-ehello"))
	r.stop()
	if entries, err := filepath.Glob(filepath.Join(dir, "??", strings.Repeat("?", 64))); err != nil || len(entries) != 1 {
		t.Errorf("entries: %v, %v", entries, err)
	}

	r = start(t, "--cache-size=0")
	r.wait(t, "Answers are not cached\n")
	for range 2 {
		r.ask(t, request(t, "-p2", "-ehello"))
	}
	if _, err := os.Stat(hostpaths.Answers(r.data)); err == nil || strings.Count(r.out.String(), "cache=off") != 2 {
		t.Errorf("log:\n%s", r.out)
	}

	for arg, want := range map[string]string{"--cache-size=1X": "is not a number of bytes", "--cache-size=-1": "is not a number of bytes", "--cache-dir=": "names no directory"} {
		if _, err := parse([]string{arg}, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", arg, err, want)
		}
	}

	// A directory that is open to others: an error if it was asked for.
	open := t.TempDir()
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &server{inv: &invocation.Invocation{Dir: "/", Stderr: io.Discard}, opts: &options{cacheDir: open, cacheSize: 1 << 20}, log: &logger{w: &safe{}, now: time.Now}}
	if err := s.openCache(); err == nil || !strings.Contains(err.Error(), "is open to others (mode 0755)") {
		t.Errorf("asked for: got %v", err)
	}
	out := &safe{}
	s = &server{data: t.TempDir(), service: &compile.Service{}, opts: &options{cacheSize: 1 << 20}, log: &logger{w: out, now: time.Now}}
	if err := errors.Join(os.Mkdir(hostpaths.Answers(s.data), 0o755), os.Chmod(hostpaths.Answers(s.data), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := s.openCache(); err != nil || s.service.Cache != nil || !strings.Contains(out.String(), "Answers are not cached: cache ") {
		t.Errorf("default: got %v, log %s", err, out)
	}
}

// 200 requests of every kind, one after the other, leave nothing behind.
func TestServerKeepsNothing(t *testing.T) {
	r := start(t)
	frame := func(archive []byte) []byte {
		f, err := wire.Frame(archive)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	honest := frame(request(t, "-p2", "-ehello"))
	kinds := []struct {
		raw  []byte
		want int // status of the answer
	}{
		{honest, 0},
		{frame(request(t, "-p2", "-g", "--privilege=stapusr", "-ehello")), 1},
		{frame(request(t, "-p2", "-I/etc", "-ehello")), 1},
		{frame([]byte("no archive")), 1},
		{[]byte{0xff, 0xff, 0xff, 0xf0}, 1},
		{[]byte{0x7f, 0xff, 0xff, 0xff}, 1},
	}
	ask := func(n int) {
		k := kinds[n%len(kinds)]
		conn, err := tls.Dial("tcp", r.addr, wire.ClientTLS("", anybody))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Write(k.raw); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := wire.DecodeResponse(answer); err != nil || got.RC != k.want {
			t.Fatalf("request %d: %+v, %v; want status %d", n, got, err, k.want)
		}
	}
	count := func() (goroutines, files int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	for n := range kinds {
		ask(n)
	}
	time.Sleep(200 * time.Millisecond)
	g0, f0 := count()
	for n := range 200 {
		ask(n)
	}
	g, f := count()
	for deadline := time.Now().Add(time.Minute); (g > g0 || f > f0) && time.Now().Before(deadline); g, f = count() {
		time.Sleep(20 * time.Millisecond)
	}
	if g > g0 || f > f0 {
		t.Errorf("goroutines %d, then %d; files %d, then %d", g0, g, f0, f)
	}
	if left, _ := filepath.Glob(filepath.Join(r.inv.Getenv("TMPDIR"), "*")); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}

// A host that opens connections and says nothing keeps nobody else out.
func TestServerConnectionsOfOneHost(t *testing.T) {
	r := start(t)
	for range maxConnections {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		c, err := d.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r.wait(t, fmt.Sprintf("%d connections from this host are open", maxPerPeer))
	if got := r.ask(t, request(t, "-p2", "-ehello")); got.RC != 0 {
		t.Errorf("got %d, %q", got.RC, got.Stderr)
	}
}

func TestPeerOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:5":             "192.0.2.1",
		"[::ffff:192.0.2.1]:5":    "192.0.2.1",
		"[2001:db8::1]:5":         "2001:db8::/64",
		"[2001:db8::ffff:ffff]:5": "2001:db8::/64",
		"[fe80::1]:5":             "fe80::1",
	} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := peerOf(a); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
}

func TestRefusesRoot(t *testing.T) {
	var out bytes.Buffer
	opts, err := parse(nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{inv: &invocation.Invocation{Stderr: &out}, opts: opts, now: time.Now}
	if code := s.run(context.Background(), testRelease); code != 1 || !strings.Contains(out.String(), "For security reasons, invocation of stap-serverd as root is not supported.") {
		t.Errorf("got %d, %q", code, out.String())
	}
}

// Requirements: R-000-029 R-003-059..060
func TestParseRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"--port=x": "cannot parse number '--port=x'", "--port=70000": "invalid entry: port must be between 0 and 65535 '--port=70000'",
		"--max-threads=-1":             "invalid entry: max threads must not be negative '--max-threads=-1'",
		"--max-threads=a":              "cannot parse number '--max-threads=a'",
		"--max-request-size=0":         "invalid entry: max (uncompressed) request size must be greater than 0 '--max-request-size=0'",
		"--max-compressed-request=0":   "invalid entry: max compressed request size must be greater than 0 '--max-compressed-request=0'",
		"--max-compressed-request=abc": "cannot parse number '--max-compressed-request=abc'",
		"--key-type=dsa":               `"dsa"`,
		"-I tapset":                    "option '-I tapset' needs an absolute path",
		"-I /a:b":                      "option '-I /a:b' needs an absolute path without colons",
		"-D a-b":                       "Safety pattern mismatch",
		"-r /proc/nonexistent":         `"/proc/nonexistent"`,
		"--nosuch":                     "unrecognized option",
	} {
		if _, err := parse(strings.Fields(args), 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
	// One worker a core, and 0 is one after the other.
	for args, want := range map[string]int{"-r6.1": 3, "-r6.1 --max-threads=0": 0} {
		if o, err := parse(strings.Fields(args), 3); err != nil || o.threads != want {
			t.Errorf("%s: got %+v, %v", args, o, err)
		}
	}
	o, err := parse([]string{"--port=0x10", "--max-threads=010", "-r6.1", "-r5.9", "word"}, 1)
	if err != nil || o.port != 16 || o.threads != 8 || len(o.ignored) != 1 {
		t.Errorf("got %+v, %v", o, err)
	}
	// What only upstream's server has a use for is no mistake.
	with, err := parse([]string{"-P", "-R", "/runtime", "-BX=1", "-I/tapset/"}, 1)
	if err != nil || len(with.idle) != 3 || !slices.Equal(with.tapsets, []string{"/tapset"}) {
		t.Errorf("got %+v, %v", with, err)
	}
	// A running kernel without headers is served only where nothing else is.
	if k := o.kernels("6.0-none"); len(k) != 2 || k[0].Name != "5.9" || k[1].Name != "6.1" {
		t.Errorf("kernels: got %+v", k)
	}
	if k := (&options{}).kernels("6.0-none"); len(k) != 1 || k[0].Name != "6.0-none" {
		t.Errorf("kernels: got %+v", k)
	}
}

// Requirements: R-003-129..130
func TestBadRC(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{"--rlimit-cpu=$X": "'$'", "--nosuch": "unrecognized option"} {
		if err := os.WriteFile(filepath.Join(dir, "rc"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := (&server{data: dir}).rc(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	// What it sets holds for workers, in place of what is set without it.
	if err := os.WriteFile(filepath.Join(dir, "rc"), []byte("--rlimit-cpu=8 --rlimit-cpu=7 --rlimit-nproc=9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	words, limits, err := (&server{data: dir}).rc()
	want := []sandbox.Limit{{Name: "as", Value: 3 << 30}, {Name: "cpu", Value: 7}, {Name: "fsize", Value: 256 << 20}, {Name: "nproc", Value: 9}}
	if err != nil || len(words) != 3 || !slices.Equal(limits, want) {
		t.Errorf("got %q, %+v, %v", words, limits, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rc"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, limits, err := (&server{data: dir}).rc(); err != nil || len(limits) != 3 || errors.Is(err, os.ErrNotExist) {
		t.Errorf("no limits set: got %+v, %v", limits, err)
	}
}

// The port is the one that was asked for; requests are worked on below TMPDIR, or
// /tmp where there is none.
// Requirements: R-003-131..133
func TestPortAndWorkSpace(t *testing.T) {
	free, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(free.Addr().String())
	free.Close()
	r := start(t, "--port="+port)
	if r.addr != "127.0.0.1:"+port {
		t.Errorf("it listens on %s, not on port %s", r.addr, port)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go (&wire.Client{Address: r.addr, Verify: anybody}).Exchange(ctx, request(t, "-p2", "-esleep"))
	found := false
	for end := time.Now().Add(10 * time.Second); !found && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		list, _ := filepath.Glob(filepath.Join(r.inv.Getenv("TMPDIR"), "stap-server*"))
		found = len(list) > 0
	}
	if !found {
		t.Error("nothing below TMPDIR while a request runs")
	}
	cancel()
	r.stop()
	r.inv.Environ = r.inv.Environ[:1]
	r.run(ctx, testRelease)
	if r.temp != "/tmp" {
		t.Errorf("without TMPDIR: %q", r.temp)
	}
}

// What is in the tapsets of -I makes answers others.
func TestDigestTapsets(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sub", "x.stp")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, text := range []string{"", "function a() {}", "function b() {}"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		d, _, err := digestTapsets([]string{dir})
		if err != nil || seen[d] || len(d) != 64 {
			t.Errorf("%q: got %q, %v", text, d, err)
		}
		seen[d] = true
	}
	if d, _, err := digestTapsets(nil); d != "" || err != nil {
		t.Errorf("no tapsets: got %q, %v", d, err)
	}
	if _, _, err := digestTapsets([]string{filepath.Join(dir, "none")}); err == nil || !strings.Contains(err.Error(), "option '-I ") {
		t.Errorf("got %v", err)
	}
}

// Requirements: R-003-059..060
func TestThreads(t *testing.T) {
	for args, want := range map[string]int{"": 7, "--max-threads=0": 0, "--max-threads=3": 3} {
		if o, err := parse(strings.Fields(args), 7); err != nil || o.threads != want {
			t.Errorf("%q: got %+v, %v", args, o, err)
		}
	}
}
