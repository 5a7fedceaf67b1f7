package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/wire"
	"stapbox/e2e/lab"
)

// serving is a compile server for the first kernel of the matrix, alone in a
// network of its own.
type serving struct {
	*lab.Server
	net    *lab.Network
	kernel *lab.Kernel
}

func serve(t *testing.T, name string, args ...string) *serving {
	t.Helper()
	return serveBy(t, stage.programs, name, args...)
}

// serverHost is where a server can run: a network of its own, and a kernel to
// build for.
func serverHost(t *testing.T) (*lab.Network, *lab.Kernel) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a compile server in a network of its own needs root, for the network namespace")
	}
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	n, err := stage.lab.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n, k
}

func serveBy(t *testing.T, programs *lab.Programs, name string, args ...string) *serving {
	t.Helper()
	n, k := serverHost(t)
	dir := filepath.Join(stage.dir, "server-"+name)
	prepared(t, dir, lab.ServerUID, k)
	s, err := programs.StartServer(n, dir, []*lab.Kernel{k}, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if err := s.WaitLog("is ready after", 90*time.Second); err != nil {
		t.Fatal(err)
	}
	return &serving{s, n, k}
}

// inside runs f on a thread in the server's network. Sockets stay in the
// network they were made in.
func (s *serving) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		fd, err := unix.Open("/run/netns/"+s.net.Namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// dial connects from an address of 127.0.0.0/8.
func (s *serving) dial(from string) (conn net.Conn, err error) {
	err = s.inside(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
		conn, err = d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
		return err
	})
	return conn, err
}

// send sends octets in a TLS connection and gives the answer. With half the
// sending side is closed after them, as by a client that breaks off.
func (s *serving) send(raw []byte, half bool) (*wire.Response, error) {
	low, err := s.dial("127.0.0.1")
	if err != nil {
		return nil, err
	}
	conn := tls.Client(low, wire.ClientTLS("", func(*x509.Certificate) error { return nil }))
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := conn.Write(raw); err != nil {
		return nil, err
	}
	if half {
		if err := conn.CloseWrite(); err != nil {
			return nil, err
		}
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return nil, err
	}
	return wire.DecodeResponse(answer)
}

// frame is the request an honest client sends.
func (s *serving) frame(t *testing.T, args ...string) []byte {
	t.Helper()
	archive, err := (&wire.Request{Version: wire.Version, Release: s.kernel.Release, Arch: "x86_64", HasLocale: true, Args: args}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return frameOf(archive)
}

func frameOf(archive []byte) []byte { return lengthAnd(int32(len(archive)), archive) }

func lengthAnd(n int32, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(n)), body...)
}

// archive is an honest request with one more member.
func (s *serving) archive(t *testing.T, h *zip.FileHeader, text string, raw bool) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, m := range [][2]string{
		{"version", wire.Version}, {"sysinfo", "sysinfo: " + s.kernel.Release + " x86_64"}, {"locale", ""},
		{"argv1", "-p4"}, {"argv2", "-e" + hello},
	} {
		w, err := z.Create(m[0])
		if err == nil {
			_, err = io.WriteString(w, m[1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	create := z.CreateHeader
	if raw {
		create = z.CreateRaw
	}
	w, err := create(h)
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func header(name string, mode fs.FileMode) *zip.FileHeader {
	h := &zip.FileHeader{Name: name, Method: zip.Deflate}
	h.SetMode(mode)
	return h
}

// malformed is what no honest client sends, and what the server says to it.
type malformed struct {
	name string
	raw  []byte
	half bool
	want string
}

func (s *serving) malformed(t *testing.T) []malformed {
	const limits = "Server: Error size of (compressed) request file is too large: "
	// A member of three megabytes that says it has ten bytes.
	var packed bytes.Buffer
	z := zip.NewWriter(&packed)
	w, err := z.Create("x")
	if err == nil {
		_, err = w.Write(make([]byte, 3<<20))
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(packed.Bytes()), int64(packed.Len()))
	if err != nil {
		t.Fatal(err)
	}
	body, err := r.File[0].OpenRaw()
	if err != nil {
		t.Fatal(err)
	}
	deflated, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	liar := header("script/bomb", 0o644)
	liar.UncompressedSize64, liar.CompressedSize64, liar.CRC32 = 10, uint64(len(deflated)), crc32.ChecksumIEEE(make([]byte, 10))

	member := func(name string, mode fs.FileMode, text string) []byte {
		return frameOf(s.archive(t, header(name, mode), text, false))
	}
	return []malformed{
		{"truncated frame", lengthAnd(500, []byte("PK")), true, "Server: Expected 500 bytes, got 2 while reading client request from socket\n"},
		{"truncated length", []byte{0, 0}, true, "Server: Error reading size of request file\n"},
		{"oversized length", lengthAnd(0x7fffffff, nil), false, limits + "2147483647 bytes, at most 20000 are accepted (--max-compressed-request)\n"},
		{"negative length", lengthAnd(-5, nil), false, "Server: Invalid request size: negative value\n"},
		{"no archive", frameOf([]byte("this is no zip archive")), false, "Unable to extract client request: reading the archive: zip: not a valid zip file\n"},
		{"half an archive", frameOf(s.frame(t, "-p4", "-e"+hello)[4:200]), false, "Unable to extract client request: reading the archive: zip: not a valid zip file\n"},
		{"zip bomb of 60 MB", member("script/bomb", 0o644, string(make([]byte, 60<<20))), false, limits},
		{"zip bomb in 4 KB", member("script/bomb", 0o644, string(make([]byte, 3<<20))), false, "is not within the expected range of 1 to 200000 bytes. (--max-request-size)\n"},
		{"zip bomb that lies about its size", frameOf(s.archive(t, liar, string(deflated), true)), false, `Unable to extract client request: archive member "script/bomb": zip: not a valid zip file` + "\n"},
		{"../ path", member("../../escape", 0o644, "x"), false, `Unable to extract client request: archive member "../../escape": name has the part ".."` + "\n"},
		{"../ inside a tree", member("script/../../escape", 0o644, "x"), false, `name has the part ".."` + "\n"},
		{"absolute path", member("/etc/escape", 0o644, "x"), false, `Unable to extract client request: archive member "/etc/escape": absolute name` + "\n"},
		{"symlink member", member("script/link", fs.ModeSymlink|0o777, "/etc/shadow"), false, `Unable to extract client request: archive member "script/link": a symbolic link, not a regular file` + "\n"},
		{"device member", member("script/dev", fs.ModeDevice|0o666, ""), false, `Unable to extract client request: archive member "script/dev": a device, not a regular file` + "\n"},
		{"a member twice", member("version", 0o644, "5.6"), false, `Unable to extract client request: archive member "version": name occurs twice` + "\n"},
	}
}

// usage is what a process holds.
type usage struct {
	files    []string
	children string
	temp     []string
	rss      int // KiB
}

func (s *serving) usage(t *testing.T) usage {
	t.Helper()
	var u usage
	dir := fmt.Sprintf("/proc/%d", s.PID)
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fds {
		if target, err := os.Readlink(dir + "/fd/" + f.Name()); err == nil {
			u.files = append(u.files, target)
		}
	}
	tasks, err := filepath.Glob(dir + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err == nil { // else the thread ended
			u.children += string(b)
		}
	}
	err = filepath.WalkDir(filepath.Join(s.Dir, "tmp"), func(path string, _ fs.DirEntry, err error) error {
		u.temp = append(u.temp, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(read(t, dir+"/status"))) {
		fmt.Sscanf(line, "VmRSS: %d kB", &u.rss)
	}
	if len(u.files) < 3 || u.rss == 0 {
		t.Fatalf("%s tells nothing: %+v", dir, u)
	}
	return u
}

// TestServerLeavesNothing sends 200 requests of every kind, one after the other,
// and compares what the server holds afterwards with what it held before the
// first. That no goroutine stays is shown in its own process, by
// TestServerKeepsNothing of applets/server.
func TestServerLeavesNothing(t *testing.T) {
	s := serve(t, "leaves-nothing", "--cache-size=0")
	type kind struct {
		malformed
		rc      int
		modules int
	}
	var kinds []kind
	for _, script := range []string{
		hello,
		`global n probe timer.ms(100) { if (n++ > 3) exit() } probe end { printf("%d\n", n) }`,
		`global a probe begin { for (i = 0; i < 10; i++) a[i, "x"] = i * i; foreach ([k, s] in a- limit 3) println(k, s, a[k, s]); exit() }`,
	} {
		kinds = append(kinds, kind{malformed{raw: s.frame(t, "-p4", "--privilege=stapusr", "-e"+script)}, 0, 1})
	}
	kinds = append(kinds,
		kind{malformed{raw: s.frame(t, "-p4", "-eprobe begin { exit( }"), want: "parse error: "}, 1, 0},
		kind{malformed{raw: s.frame(t, "-p4", "-eprobe begin { foo() }"), want: "semantic error: unresolved function foo"}, 1, 0},
		kind{malformed{raw: s.frame(t, "-p4", "--privilege=stapusr", "-eprobe begin { println(ctime(0)) }"), want: "function may not be used when --privilege=stapusr is specified"}, 1, 0},
		kind{malformed{raw: s.frame(t, "-p4", "--privilege=stapusr", "-mname", "-e"+hello), want: "You can't specify -m when --privilege=stapusr is specified."}, 1, 0},
		kind{malformed{raw: s.frame(t, "-k", "-e"+hello), want: "ERROR: -k invalid with --client-options"}, 1, 0},
	)
	for _, m := range s.malformed(t) {
		kinds = append(kinds, kind{m, 1, 0})
	}
	before := s.usage(t)
	for n := range 200 {
		k := kinds[n%len(kinds)]
		got, err := s.send(k.raw, k.half)
		if err != nil {
			t.Fatalf("request %d %s: %v", n, k.name, err)
		}
		modules, signatures := got.Modules()
		if got.RC != k.rc || len(modules) != k.modules || !strings.Contains(string(got.Stderr), k.want) {
			t.Fatalf("request %d %s: status %d, %d modules, stderr %q; want %d, %d, %q", n, k.name, got.RC, len(modules), got.Stderr, k.rc, k.modules, k.want)
		}
		if k.modules > 0 && len(signatures[0].Data) == 0 {
			t.Fatalf("request %d: the module is not signed", n)
		}
	}
	// A connection ends a moment after its answer.
	after := s.usage(t)
	for deadline := time.Now().Add(5 * time.Second); len(after.files) != len(before.files) && time.Now().Before(deadline); after = s.usage(t) {
		time.Sleep(50 * time.Millisecond)
	}
	slices.Sort(before.files)
	slices.Sort(after.files)
	if len(after.files) != len(before.files) {
		t.Errorf("open files before:\n%s\nafter:\n%s", strings.Join(before.files, "\n"), strings.Join(after.files, "\n"))
	}
	if after.children != "" {
		t.Errorf("children: %s", after.children)
	}
	if !slices.Equal(after.temp, before.temp) || len(after.temp) != 1 {
		t.Errorf("temporary files: %q", after.temp)
	}
	if grown := after.rss - before.rss; grown > 5<<10 {
		t.Errorf("the server had %d KiB of memory, then %d: %d more", before.rss, after.rss, grown)
	}
	t.Logf("memory %d KiB, then %d KiB", before.rss, after.rss)
}

// TestServerRefusesMalformed sends each malformed request while an honest client
// is being served, and checks the text of the refusal.
func TestServerRefusesMalformed(t *testing.T) {
	few(t)
	s := serve(t, "malformed", "--cache-size=0")
	honest := s.frame(t, "-p4", "--privilege=stapusr", "-e"+hello)
	for _, m := range s.malformed(t) {
		t.Run(m.name, func(t *testing.T) {
			served := make(chan error, 1)
			go func() {
				got, err := s.send(honest, false)
				if err == nil && got.RC != 0 {
					err = fmt.Errorf("status %d: %s", got.RC, got.Stderr)
				}
				served <- err
			}()
			got, err := s.send(m.raw, m.half)
			if err != nil {
				t.Fatal(err)
			}
			if modules, _ := got.Modules(); got.RC != 1 || len(modules) > 0 || !strings.Contains(string(got.Stderr), m.want) {
				t.Errorf("status %d, stderr %q; want %q", got.RC, got.Stderr, m.want)
			}
			if err := <-served; err != nil {
				t.Errorf("the honest client: %v", err)
			}
		})
	}
	for _, path := range []string{"/etc/escape", filepath.Join(s.Dir, "escape"), filepath.Join(s.Dir, "tmp", "escape")} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestServerIdleConnections fills the server with connections that say nothing,
// or very little, and measures how long an honest client waits.
// Requirements: B-28
func TestServerIdleConnections(t *testing.T) {
	s := serve(t, "idle", "--max-threads=2", "--cache-size=0")
	honest := s.frame(t, "-p4", "--privilege=stapusr", "-e"+hello)
	median := func() time.Duration {
		t.Helper()
		var times []time.Duration
		for range 5 {
			start := time.Now()
			if got, err := s.send(honest, false); err != nil || got.RC != 0 {
				t.Fatalf("the honest client: %+v, %v", got, err)
			}
			times = append(times, time.Since(start))
		}
		slices.Sort(times)
		return times[len(times)/2]
	}
	alone := median()
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for n := range 600 {
		c, err := s.dial("127.0.0.2")
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
		if n%20 != 0 {
			continue
		}
		// Some come as far as the middle of a request.
		conn := tls.Client(c, wire.ClientTLS("", func(*x509.Certificate) error { return nil }))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if conn.HandshakeContext(ctx) == nil {
			conn.Write(honest[:20+n/20])
		}
		cancel()
	}
	crowded := median()
	t.Logf("alone %v, among idle connections %v", alone, crowded)
	if crowded > 2*alone+500*time.Millisecond {
		t.Errorf("the honest client waits %v, alone it is %v", crowded, alone)
	}
}

// TestServerRefusals is about what stap shows when a server refuses, with its
// status, and that it leaves nothing that could be loaded.
// Requirements: R-000-016 R-000-022 R-000-027 R-002-105 R-002-104 R-002-110..111 R-002-096
func TestServerRefusals(t *testing.T) {
	s := serve(t, "refusals")
	home, err := os.MkdirTemp(stage.dir, "home-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, lab.ServerUID, lab.ServerUID); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", s.Port)
	stap := func(args ...string) (stdout, stderr string, status int) {
		t.Helper()
		cmd := s.net.Command(lab.ServerUID, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home}, append([]string{stage.programs.Applet("stap")}, args...)...)
		cmd.Dir = home
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
	}
	use := []string{"--use-server=" + address, "-p4", "-r", s.kernel.Release}

	t.Run("a server that is no trusted peer", func(t *testing.T) {
		stdout, stderr, status := stap(append(use, "-e", hello)...)
		for _, want := range []string{"Unable to connect to a server.\n", "hint: stap --trust-servers --use-server=" + address + ", after comparing the fingerprint with the one in the server's log\n", "Passes: via server failed."} {
			if !strings.Contains(stderr, want) {
				t.Errorf("stderr %q lacks %q", stderr, want)
			}
		}
		if status != 1 || stdout != "" {
			t.Errorf("status %d, stdout %q", status, stdout)
		}
		if strings.Contains(s.Log(), "Options passed from the client") {
			t.Error("the server got the request all the same")
		}
	})
	if _, stderr, status := stap("--trust-servers=ssl,no-prompt", "--use-server="+address); status != 0 || !strings.Contains(stderr, "Adding trust in the following servers as an SSL peer for the current user") {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"a kernel it cannot build for", []string{"--use-server=" + address, "-p4", "-r", "9.9.9-none", "-e", hello}, "Target kernel version 9.9.9-none is not supported by this server\n"},
		{"a probe beyond the privilege", append(use, "--privilege=stapusr", "-e", `probe kernel.function("vfs_read") { exit() }`), "semantic error: probe point is not allowed for --privilege=stapusr: keyword at "},
		{"a function beyond the privilege", append(use, "--privilege=stapusr", "-e", `probe begin { println(ctime(0)) exit() }`), "semantic error: function may not be used when --privilege=stapusr is specified: identifier 'ctime' at "},
		{"a name for a module below stapdev", append(use, "--privilege=stapusr", "-m", "mine", "-e", hello), "You can't specify -m when --privilege=stapusr is specified.\n"},
		{"a macro below stapdev", append(use, "--privilege=stapusr", "-DMAXACTION=1000000", "-e", hello), "You can't specify -D when --privilege=stapusr is specified.\n"},
		{"an error of syntax", append(use, "-e", `probe begin { exit( }`), "parse error: expected literal string or number\n"},
		{"a request too large", append(use, "-e", "probe begin { exit() } # "+noise(60000)), "Error size of (compressed) request file is too large: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, status := stap(tt.args...)
			if status != 1 || stdout != "" || !strings.Contains(stderr, tt.want) || !strings.Contains(stderr, "Passes: via server failed.") {
				t.Errorf("status %d, stdout %q, stderr %q; want %q", status, stdout, stderr, tt.want)
			}
			if left, _ := filepath.Glob(filepath.Join(home, "[^.]*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
	t.Run("and an honest request after all that", func(t *testing.T) {
		for level, signed := range map[string]bool{"--privilege=stapusr": true, "--unprivileged": true, "-w": false} {
			stdout, stderr, status := stap(append(use, level, "-e", hello)...)
			name := strings.TrimSpace(stdout)
			if status != 0 || stderr != "" {
				t.Fatalf("%s: status %d, stderr %q", level, status, stderr)
			}
			if st, err := os.Stat(filepath.Join(home, name)); err != nil || st.Size() == 0 {
				t.Errorf("%s: %v", level, err)
			}
			if st, err := os.Stat(filepath.Join(home, name+".sgn")); signed && (err != nil || st.Size() == 0) || !signed && err == nil {
				t.Errorf("%s: the signature: %v", level, err)
			}
			os.Remove(filepath.Join(home, name))
			os.Remove(filepath.Join(home, name+".sgn"))
		}
	})
}

// noise is text that does not compress well.
func noise(n int) string {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[x>>26]
	}
	return string(b)
}
