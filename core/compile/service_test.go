package compile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/backend"
	"stapbox/core/privilege"
	"stapbox/core/sandbox"
	"stapbox/core/stapopts"
	"stapbox/core/wire"
)

// The test binary is its own worker: it does what its script says.
func TestMain(m *testing.M) {
	sandbox.Enter()
	if os.Getenv(sandbox.Variable) != "" {
		os.Exit(fakeWorker())
	}
	os.Exit(m.Run())
}

// runsVariable names a file that gets a line from each worker.
const runsVariable = "STAPBOX_TEST_RUNS"

func fakeWorker() int {
	args, err := sandbox.Args()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if path := os.Getenv(runsVariable); path != "" {
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
			fmt.Fprintln(f, args)
			f.Close()
		}
	}
	o, err := stapopts.Parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	module := func(level privilege.Level, name string) {
		os.WriteFile(filepath.Join(o.TempDir, name), fakeModule(level), 0o644)
	}
	if rest, ok := strings.CutPrefix(o.Script, "slow "); ok {
		time.Sleep(500 * time.Millisecond)
		o.Script = rest
	}
	switch {
	case strings.HasPrefix(o.Script, "module "):
		name, made, _ := strings.Cut(strings.TrimPrefix(o.Script, "module "), " ")
		level, _ := privilege.ParseLevel(name)
		module(level, "stap_x.ko")
		backend.LeaveTranslator(o.TempDir, backend.Artifact{Translator: made})
	case o.Script == "two":
		module(o.Privilege, "a.ko")
		module(o.Privilege, "b.ko")
	case o.Script == "nothing":
	case strings.HasPrefix(o.Script, "touch "):
		// From another thread than the one that was restricted.
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- exec.Command("/bin/sh", "-c", strings.TrimPrefix(o.Script, "touch ")).Run()
		}()
		fmt.Println("touched:", <-done == nil)
	case o.Script == "link":
		os.Symlink("/etc/passwd", filepath.Join(o.TempDir, "a.ko"))
	case o.Script == "say":
		fmt.Printf("%q\n", args)
		fmt.Println("command line", len(os.Args))
		fmt.Fprintln(os.Stderr, os.Getenv("HOME")+"/secret", o.TempDir)
		for _, e := range os.Environ() {
			fmt.Fprintln(os.Stderr, "env", e)
		}
		files, _ := filepath.Glob("*/*/*")
		fmt.Println("files", files)
		var lim unix.Rlimit
		unix.Getrlimit(unix.RLIMIT_CPU, &lim)
		nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
		fmt.Println("cpu", lim.Cur, "nnp", nnp, "group", unix.Getpgrp() == os.Getpid())
	case o.Script == "fail":
		fmt.Fprintln(os.Stderr, "semantic error: bad")
		return 1
	case o.Script == "hang":
		time.Sleep(time.Minute)
	case o.Script == "crash":
		// The first process of a pid namespace cannot end itself by a signal; the
		// kernel can.
		unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: 0, Max: 0})
		for {
		}
	case o.Script == "flood":
		for range 100 {
			noise := make([]byte, 100<<10) // text that compresses well would look like a bomb
			rand.Read(noise)
			os.Stdout.Write(noise)
		}
	}
	return 0
}

// fakeModule is a minimal ELF file with a .stap_privilege section.
func fakeModule(level privilege.Level) []byte {
	names := "\x00.shstrtab\x00.stap_privilege\x00"
	var b bytes.Buffer
	w := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	w([]uint16{1, 62})
	w(uint32(1))
	data := uint64(64)
	table := (data + 4 + uint64(len(names)) + 7) &^ 7
	w([]uint64{0, 0, table})
	w(uint32(0))
	w([]uint16{64, 0, 0, 64, 3, 1})
	w(uint32(level))
	b.WriteString(names)
	b.Write(make([]byte, int(table)-b.Len()))
	section := func(name, typ uint32, off, size uint64) {
		w([]uint32{name, typ})
		w([]uint64{0, 0, off, size, 0, 1, 0}) // flags, addr, offset, size, link and info, align, entsize
	}
	section(0, 0, 0, 0)
	section(1, 3, data+4, uint64(len(names)))
	section(11, 1, data, 4)
	return b.Bytes()
}

type testService struct {
	Service
	mu  sync.Mutex
	log []string
}

func newService(t *testing.T) *testService {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &testService{}
	s.Service = Service{
		Releases: []Release{{Name: "6.1.0-1-cloud-amd64"}, {Name: "6.12", BuildDir: "/build/6.12"}}, Arch: "x86_64",
		Options: []string{"-DSERVER=1"}, Rlimits: []sandbox.Limit{{Name: "cpu", Value: 33}},
		Environ: []string{"HOME=/home/server"}, Home: "/home/server", TempDir: t.TempDir(), StateDir: filepath.Join(t.TempDir(), "kernels"),
		WallClock: 10 * time.Second, Limits: wire.RequestLimits(wire.DefaultMaxUncompressed),
		Worker: []string{"/proc/self/exe", "stap"},
		Key:    func() crypto.Signer { return key },
		Log: func(f string, a ...any) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.log = append(s.log, fmt.Sprintf(f, a...))
		},
		Requests: slog.New(slog.DiscardHandler),
	}
	return s
}

func (s *testService) ask(t *testing.T, ctx context.Context, r *wire.Request) *wire.Response {
	t.Helper()
	archive, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.Do(ctx, archive, "test")
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.DecodeResponse(answer)
	if err != nil {
		t.Fatal(err)
	}
	if !got.HasRC || !got.HasStdout || !got.HasStderr || got.Version == "" {
		t.Errorf("answer lacks a member: %+v", got)
	}
	if left, _ := os.ReadDir(s.TempDir); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
	return got
}

func req61(args ...string) *wire.Request {
	return &wire.Request{Version: "5.6", Release: "6.1.0-1-cloud-amd64", Arch: "x86_64", Args: args, HasLocale: true}
}

// Requirements: R-000-035 R-002-096 R-002-104
func TestServiceSigns(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		signed bool
	}{
		{[]string{"-p4", "-emodule stapusr", "--privilege=stapusr"}, true},
		{[]string{"--unprivileged", "-emodule stapusr", "--", "--privilege=stapdev"}, true},
		{[]string{"-emodule stapsys", "--privilege=stapsys"}, true},
		{[]string{"-emodule stapdev"}, false},
		{[]string{"-emodule stapdev", "--", "--privilege=stapusr"}, false},
	} {
		s := newService(t)
		got := s.ask(t, context.Background(), req61(tt.args...))
		modules, sigs := got.Modules()
		if got.RC != 0 || len(modules) != 1 || modules[0].Name != "stap_x.ko" {
			t.Errorf("%q: got status %d, %q, modules %v", tt.args, got.RC, got.Stderr, len(modules))
			continue
		}
		if (sigs[0].Data != nil) != tt.signed {
			t.Errorf("%q: signed is %v, want %v", tt.args, sigs[0].Data != nil, tt.signed)
		}
		if tt.signed && !ed25519.Verify(s.Key().Public().(ed25519.PublicKey), modules[0].Data, sigs[0].Data) {
			t.Errorf("%q: bad signature", tt.args)
		}
	}
}

// Requirements: R-000-022
func TestServiceRefuses(t *testing.T) {
	other := func(release, arch string) *wire.Request {
		r := req61("-emodule stapdev")
		r.Release, r.Arch = release, arch
		return r
	}
	for _, tt := range []struct {
		name string
		req  *wire.Request
		want string
	}{
		{"unknown kernel", other("9.9", "x86_64"), "Target kernel version 9.9 is not supported by this server"},
		{"other architecture", other("6.12", "arm64"), "Target architecture arm64 is not supported"},
		{"unknown kernel by -r", req61("-r5.0", "-ex"), "Target kernel version 5.0 is not supported by this server"},
		{"-r with a path", req61("-r/etc", "-ex"), "Safety pattern mismatch for -r parameter from client"},
		{"other architecture by -a", req61("-aarm64", "-ex"), "Target architecture arm64"},
		{"-k", req61("-k", "-ex"), "ERROR: -k invalid with --client-options"},
		{"--tmpdir", req61("--tmpdir=/x", "-ex"), "ERROR: --tmpdir is invalid with --client-options"},
		{"-D below stapdev", req61("-DX", "--privilege=stapusr", "-ex"), "You can't specify -D when --privilege=stapusr is specified."},
		{"-g below stapdev", req61("-g", "--privilege=stapusr", "-ex"), "You can't specify -g and --privilege=stapusr together."},
		{"unknown option", req61("--nosuch"), "unrecognized option '--nosuch'"},
		{"no script", req61("-v"), "A script must be specified."},
		{"script of the server", req61("/etc/shadow"), "is not part of the request"},
		{"script of the server, by a path through the request", req61("script/../../../etc/shadow"), "is not part of the request"},
		{"tapset of the server", req61("-I", "/etc", "-e", "nothing"), "is not part of the request"},
		{"tapset by a path through the request", req61("-I", "tapset/../../x", "-e", "nothing"), "is not part of the request"},
		{"tapset that is the whole request", req61("-I", "tapset/.", "-e", "nothing"), "is not part of the request"},
		{"script not named as it is in the request", req61("script//../x.stp"), "is not part of the request"},
		{"help", req61("--help"), "answers neither"},
		{"level of the module", req61("-emodule stapdev", "--privilege=stapusr"), "declares privilege level stapdev and not stapusr"},
		{"lower level of the module", req61("-emodule stapusr", "--privilege=stapsys"), "declares privilege level stapusr and not stapsys"},
		{"no module", req61("-enothing"), "Unable to find a module in <server>/stap000000"},
		{"two modules", req61("-etwo"), "Too many modules (2)"},
		{"module is a link", req61("-elink"), "internal error"},
		{"failing script", req61("-efail"), "semantic error: bad"},
		{"crashing translator", req61("-ecrash"), "ended by a signal"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := newService(t).ask(t, context.Background(), tt.req)
			if got.RC != 1 || !strings.Contains(string(got.Stderr), tt.want) || len(got.Files) != 0 {
				t.Errorf("got status %d, %d files, %q; want %q", got.RC, len(got.Files), got.Stderr, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		name    string
		archive []byte
		want    string
	}{
		{"junk", []byte("junk"), "Unable to extract client request"},
		{"empty", nil, "Unable to extract client request"},
	} {
		answer, err := newService(t).Do(context.Background(), tt.archive, "test")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := wire.DecodeResponse(answer); err != nil || got.RC != 1 || !strings.Contains(string(got.Stderr), tt.want) {
			t.Errorf("%s: got %+v, %v", tt.name, got, err)
		}
	}
	s := newService(t)
	s.Limits.Uncompressed = 10
	if got := s.ask(t, context.Background(), req61("-enothing")); !strings.Contains(string(got.Stderr), "is not within the expected range of 1 to 10 bytes") {
		t.Errorf("size: got %q", got.Stderr)
	}
}

// Requirements: R-003-128
func TestServiceWorkerSurroundings(t *testing.T) {
	s := newService(t)
	t.Setenv("SECRET", "x")
	r := req61("-p2", "-r6.12", "-esay", "--", "-x")
	r.Locale = []string{"LANG=C.UTF-8", "bad", "PATH=/x", "LC_ALL=$(x)"}
	r.Files = []wire.File{{Name: "script/home/a.stp", Data: []byte("x")}}
	got := s.ask(t, context.Background(), r)
	out, errOut := string(got.Stdout), string(got.Stderr)
	for _, want := range []string{
		`["-r/build/6.12" "-DSERVER=1" "--tmpdir=<server>/stap000000" "--client-options" "-p2" "-esay" "--" "-x"]`,
		"files [script/home/a.stp]", "cpu 33 nnp 1 group true", "command line 1",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("stdout lacks %s:\n%s", want, out)
		}
	}
	for _, want := range []string{
		"Server: Localization key=value line 'bad' cannot be parsed\n", "Server: Localization key 'PATH' not found in global list\n",
		"Server: Localization value '$(x)' contains illegal characters\n", "<server>/secret <server>/stap000000\n", "env LANG=C.UTF-8\n",
	} {
		if !strings.Contains(errOut, want) {
			t.Errorf("stderr lacks %q:\n%s", want, errOut)
		}
	}
	if strings.Contains(errOut, "SECRET") || strings.Contains(errOut, "LC_ALL") || strings.Contains(errOut, s.TempDir) {
		t.Errorf("stderr shows too much:\n%s", errOut)
	}
	if log := strings.Join(s.log, "\n"); !strings.Contains(log, "Client version is 5.6") || !strings.Contains(log, "Options passed from the client: -p2 -r6.12 -esay -- -x") {
		t.Errorf("log: got %s", log)
	}
}

func TestServiceEndsWorker(t *testing.T) {
	s := newService(t)
	s.WallClock = 200 * time.Millisecond
	start := time.Now()
	got := s.ask(t, context.Background(), req61("-ehang"))
	if got.RC != 1 || !strings.Contains(string(got.Stderr), "took longer than 200ms") || time.Since(start) > 5*time.Second {
		t.Errorf("got %d, %q after %v", got.RC, got.Stderr, time.Since(start))
	}
	s = newService(t)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	archive, err := req61("-ehang").Encode()
	if err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if _, err := s.Do(ctx, archive, "test"); err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("client gone: got %v after %v", err, time.Since(start))
	}
	if left, _ := os.ReadDir(s.TempDir); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestServiceCutsOutput(t *testing.T) {
	got := newService(t).ask(t, context.Background(), req61("-p1", "-eflood"))
	if len(got.Stdout) > maxOutput+100 || !strings.Contains(string(got.Stdout), "[output cut here]") {
		t.Errorf("got %d bytes", len(got.Stdout))
	}
}

func TestPrepare(t *testing.T) {
	s := newService(t)
	if err := s.Prepare(context.Background(), s.Releases[1]); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(s.TempDir); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

// A worker reaches its request directory, the prepared kernels for reading, and
// what a compiler needs; not the key of the server, nor another request.
func TestWorkerReach(t *testing.T) {
	s := newService(t)
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte("key"), 0o644); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "stap-server.1", "request", "script")
	if err := errors.Join(os.MkdirAll(filepath.Dir(other), 0o755), os.WriteFile(other, nil, 0o644), os.MkdirAll(s.StateDir, 0o755)); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(s.StateDir, "recipe")
	if err := os.WriteFile(state, []byte("recipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		command string
		want    bool
	}{
		{"echo x > y && cat y >/dev/null", true},
		{"cat " + state, true},
		{"echo x > " + state, false},
		{"truncate -s 0 " + state, false},
		{"cat " + secret, false},
		{"echo x > " + secret, false},
		{"cat /etc/shadow", false},
		{"cat /etc/passwd", false},
		{"cat " + other, false},
		{fmt.Sprint("kill -0 ", os.Getpid()), false},
	} {
		got := s.ask(t, context.Background(), req61("-p2", "-etouch "+tt.command))
		if want := fmt.Sprintf("touched: %v\n", tt.want); string(got.Stdout) != want {
			t.Errorf("%s: got %q, want %q (%s)", tt.command, got.Stdout, want, got.Stderr)
		}
	}
}

// What a request can make its translator do to the host: the next one is
// answered all the same, and soon.
// Requirements: R-003-128
func TestServiceSurvivesBombs(t *testing.T) {
	s := newService(t)
	s.Rlimits = []sandbox.Limit{{Name: "cpu", Value: 1}, {Name: "as", Value: 2 << 30}, {Name: "fsize", Value: 32 << 20}}
	s.WallClock = 3 * time.Second
	layers := s.Confinement().Layers
	for _, tt := range []struct {
		command string
		all     bool // needs namespaces
	}{
		{"while :; do :; done", false},
		{"i=0; while dd if=/dev/zero of=f$i bs=1M count=8 2>/dev/null; do i=$((i+1)); done; exit 1", false},
		{"tail /dev/zero", false},
		{"f() { f | f & }; f; sleep 1; exit 1", true},
		{"for i in 1 2 3 4; do head -c 900000000 /dev/zero | tail >/dev/null & done; wait; exit 1", true},
		{"i=0; while echo > n$i; do i=$((i+1)); done 2>/dev/null; exit 1", true},
		{"setsid sleep 1000 & setsid sleep 1000 & exit 1", true},
		{"sleep 1000", false},
	} {
		if tt.all && layers&sandbox.Namespaces == 0 {
			continue
		}
		start := time.Now()
		got := s.ask(t, context.Background(), req61("-p2", "-etouch "+tt.command))
		if string(got.Stdout) == "touched: true\n" || time.Since(start) > 10*time.Second {
			t.Errorf("%s: got %d, %q, %q after %v", tt.command, got.RC, got.Stdout, got.Stderr, time.Since(start))
		}
		start = time.Now()
		got = s.ask(t, context.Background(), req61("-emodule stapdev"))
		if got.RC != 0 || time.Since(start) > 2*time.Second {
			t.Errorf("after %s: got %d, %q after %v", tt.command, got.RC, got.Stderr, time.Since(start))
		}
	}
}

// A bug that one request meets costs this request an answer, and nobody else.
func TestServiceSurvivesPanics(t *testing.T) {
	s := newService(t)
	s.SignerName = func(crypto.Signer) string { panic("at the disco") }
	got := s.ask(t, context.Background(), req61("-p4", "-emodule stapusr", "--privilege=stapusr"))
	if got.RC != 1 || len(got.Files) != 0 || string(got.Stderr) != "Server: an internal error ended this request, the log of the server has the details\n" {
		t.Errorf("got %d, %d files, %q", got.RC, len(got.Files), got.Stderr)
	}
	if log := strings.Join(s.log, "\n"); !strings.Contains(log, "A bug: at the disco: ") || !strings.Contains(log, "service.go") {
		t.Errorf("the log has\n%s", log)
	}
	if got := s.ask(t, context.Background(), req61("-p4", "-emodule stapdev")); got.RC != 0 {
		t.Errorf("the next request: %d, %q", got.RC, got.Stderr)
	}
}

// A host without namespaces or Landlock has the other layers.
func TestServiceWithFewerLayers(t *testing.T) {
	have := newService(t).Confinement().Layers
	for l := range sandbox.AllLayers + 1 {
		if l&^have != 0 {
			continue
		}
		s := newService(t)
		s.Sandbox = &sandbox.Sandbox{Program: s.Worker, Layers: l}
		got := s.ask(t, context.Background(), req61("-p4", "-emodule stapusr", "--privilege=stapusr"))
		if modules, _ := got.Modules(); got.RC != 0 || len(modules) != 1 {
			t.Errorf("%v: got %d, %q", l, got.RC, got.Stderr)
		}
		got = s.ask(t, context.Background(), req61("-elink"))
		if got.RC != 1 || !strings.Contains(string(got.Stderr), "internal error") {
			t.Errorf("%v: got %d, %q for a module that is a link", l, got.RC, got.Stderr)
		}
	}
}

func TestHeaders(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "usr/src/linux-headers-x")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := headers(dir); len(got) != 2 || got[1] != filepath.Join(base, "usr") {
		t.Errorf("got %q", got)
	}
	// A tree of the server's user is not a reason to show all of his files.
	own := filepath.Join(base, "home/src/linux")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := headers(own); len(got) != 1 || got[0] != own {
		t.Errorf("got %q", got)
	}
	if got := headers("/src/linux"); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestExposes(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"home/ssl", "app", "linux"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("home", filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	ssl := filepath.Join(base, "home/ssl")
	for _, tt := range []struct {
		readable, build string
		want            bool
	}{
		{"app", "linux", false}, {"home/ssl2", "linux", false}, {"home/ssl/x", "linux", false},
		{"home", "linux", true}, {"home/ssl", "linux", true}, {"link", "linux", true}, {".", "linux", true}, {"app", "home", true},
	} {
		s := &Service{Readable: []string{filepath.Join(base, tt.readable)}, Releases: []Release{{Name: "x", BuildDir: filepath.Join(base, tt.build)}}}
		if err := s.Exposes(ssl); (err != nil) != tt.want {
			t.Errorf("%+v: got %v", tt, err)
		}
	}
}

func TestRemoveLeft(t *testing.T) {
	s := newService(t)
	elsewhere := t.TempDir()
	old := time.Now().Add(-2 * leftTime)
	path := func(name string) string { return filepath.Join(s.TempDir, name) }
	for _, name := range []string{"stap-server.left", "stap-server.used", "stap-server.new", "stap-server-kept.1", "other"} {
		if err := errors.Join(os.MkdirAll(path(name+"/request/script"), 0o700), os.WriteFile(path(name+"/request/x"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		if name != "stap-server.new" {
			if err := os.Chtimes(path(name), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink(elsewhere, path("stap-server.link")); err != nil {
		t.Fatal(err)
	}
	lock, err := lockDir(path("stap-server.used"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	s.RemoveLeft()
	list, err := os.ReadDir(s.TempDir)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	if want := []string{"other", "stap-server-kept.1", "stap-server.link", "stap-server.new", "stap-server.used"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("left: %q, %v", names, err)
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Error(err)
	}
}

func TestPhaseOfPasses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, backend.PassesFile), []byte("1 1000\n2 2000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Service{}
	s.passes(dir) // nobody listens
	var got []string
	s.Phase = func(name string, took time.Duration) { got = append(got, name+" "+took.String()) }
	s.passes(dir)
	if want := []string{"pass1 1ms", "pass2 2s"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
