package service

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
	"stapbox/core/service"
)

func TestParse(t *testing.T) {
	for args, want := range map[string]string{
		"start -ai386 --port=5 --por 6 -kP -nx": "a=i386 port=5 port=6 k= P= n=x",
		"stop -p 1 -p2":                         "p=1 p=2",
		"status --max-r 5 --ssl d":              "max-request-size=5 ssl=d",
		"start --":                              "",
	} {
		o, err := parse(strings.Fields(args))
		var got []string
		if err == nil {
			for _, g := range o.list {
				got = append(got, g.Name+"="+g.Value)
			}
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: got %q, %v, want %q", args, got, err, want)
		}
	}
	// An empty word is a word, not the end (B-07).
	for _, args := range [][]string{{"start", ""}, {"start", "x"}, {"start", "-a"}, {"start", "--m"}, {"start", "--wait-ready=x"}, {"stop", "--wait-stop", "-1"}, {"start", "--", "-a"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	if o, err := parse([]string{"stop", "--wait-stop=3", "--wait-ready", "0"}); err != nil || o.stop != 3*time.Second || o.ready == 0 {
		t.Errorf("got %+v, %v", o, err)
	}
}

// Markers stand apart from the text (B-25).
func TestMarkers(t *testing.T) {
	for _, tt := range []struct {
		redHat     bool
		text, want string
	}{
		{false, "Stopping x", "Stopping x OK\n"},
		{false, "Stopping stap-server: ", "Stopping stap-server: OK\n"},
		{true, "Stopping x", "Stopping x" + strings.Repeat(" ", 50) + "[  OK  ]\n"},
		{true, strings.Repeat("x", 70), strings.Repeat("x", 70) + " [  OK  ]\n"},
	} {
		var b bytes.Buffer
		o := output{w: &b, redHat: tt.redHat}
		o.begin(tt.text)
		o.success()
		o.end()
		o.end()
		if b.String() != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, b.String(), tt.want)
		}
	}
}

// What another user's server gets (B-17), and what no server gets.
// Requirements: R-003-131 B-17
func TestEnviron(t *testing.T) {
	own := []string{"HOME=/root", "TMPDIR=/q", "LC_ALL=C", "SYSTEMTAP_DIR=/root/x", "NOTIFY_SOCKET=/run/n", "LISTEN_FDS=1", "WATCHDOG_USEC=1", "TERM=x", "SECRET=1", "DEBUGINFOD_URLS=u", "https_proxy=p"}
	if got, want := environ(own, nil), []string{"HOME=/root", "TMPDIR=/q", "LC_ALL=C", "SYSTEMTAP_DIR=/root/x", "TERM=x", "SECRET=1", "DEBUGINFOD_URLS=u", "https_proxy=p"}; !slices.Equal(got, want) {
		t.Errorf("the same user: got %q", got)
	}
	want := []string{"HOME=/h", "SHELL=/bin/sh", "USER=s", "LOGNAME=s", "PATH=/usr/local/bin:/usr/bin:/bin", "TMPDIR=/q", "LC_ALL=C", "TERM=x", "DEBUGINFOD_URLS=u", "https_proxy=p"}
	if got := environ(own, &account{name: "s", home: "/h"}); !slices.Equal(got, want) {
		t.Errorf("another user: got %q", got)
	}
}

func TestPositional(t *testing.T) {
	for args, want := range map[string]string{
		"":                "",
		"5001":            "--port=5001",
		"5001 /ssl":       "--port=5001 --ssl=/ssl",
		"5001 -a x":       "--port=5001 -a x",
		"--port 1 --ssl=": "--port 1 --ssl=",
		"-1 x":            "-1 x",
	} {
		if got := strings.Join(positional(strings.Fields(args)), " "); got != want {
			t.Errorf("%q: got %q, want %q", args, got, want)
		}
	}
	if got := sslOf([]string{"--ssl", "/a", "--ssl=/b"}); got != "/b" {
		t.Errorf("got %q", got)
	}
}

func TestParseReady(t *testing.T) {
	f := strings.Repeat("a", 64)
	if got := parseReady([]string{"READY=1", "STATUS=x", service.PortFact + "4321", service.CertificateFact + f}); got == nil || got.port != 4321 || got.fingerprint != f {
		t.Errorf("got %+v", got)
	}
	if got := parseReady([]string{"READY=1", service.PortFact + "70000", service.CertificateFact + "x"}); got == nil || got.port != 0 || got.fingerprint != "" {
		t.Errorf("got %+v", got)
	}
	if got := parseReady([]string{"STATUS=READY=1"}); got != nil {
		t.Errorf("got %+v", got)
	}
}

// A process that is no server, ends, or says nothing is a failure with its
// reason, at once or when its time is over (B-12).
func TestLaunchFails(t *testing.T) {
	for _, tt := range []struct {
		script, want string
	}{
		{"exit 3", "it ended with exit status 3"},
		{"kill -9 $$", "it ended with signal: killed"},
		{"exec sleep 60", "it was not ready after 200ms"},
	} {
		script := filepath.Join(t.TempDir(), "server")
		if err := os.WriteFile(script, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err := launcher{executable: script, limit: 200 * time.Millisecond}.run(context.Background())
		if err == nil || err.Error() != tt.want || time.Since(begin) > 2*time.Second {
			t.Errorf("%s: got %v after %v, want %q", tt.script, err, time.Since(begin), tt.want)
		}
	}
	if _, err := (launcher{executable: "/proc/nonexistent", limit: time.Second}).run(context.Background()); err == nil {
		t.Error("no program")
	}
}

// Who is interrupted leaves no server behind.
func TestLaunchInterrupted(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "server")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho $$ >"+dir+"/pid.new; mv "+dir+"/pid.new "+dir+"/pid; exec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(300*time.Millisecond, cancel)
	if _, err := (launcher{executable: script, limit: time.Minute}).run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if p, err := service.Process("/proc", pid); err != nil || p.State == 'Z' {
			return
		}
	}
	t.Errorf("process %d lives", pid)
}

// Only the server itself can say that it is ready.
func TestReadyFromOthers(t *testing.T) {
	socket, err := listenReady()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if _, err := socket.WriteTo([]byte("READY=1"), socket.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if states, err := receive(socket, os.Getpid()); err != nil || states[0] != "READY=1" {
		t.Errorf("one's own message: %q, %v", states, err)
	}
	// Descriptors are not taken from anybody.
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := socket.WriteMsgUnix([]byte("READY=1"), unix.UnixRights(0, 1, 2), socket.LocalAddr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if states, err := receive(socket, os.Getpid()); err != nil || states[0] != "READY=1" {
		t.Errorf("with descriptors: %q, %v", states, err)
	}
	if after, err := os.ReadDir("/proc/self/fd"); err != nil || len(after) > len(before) {
		t.Errorf("%d descriptors, then %d, %v", len(before), len(after), err)
	}
	if _, err := socket.WriteTo([]byte("READY=1"), socket.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	socket.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if states, err := receive(socket, 1); err == nil {
		t.Errorf("the message of another process: %q", states)
	}
}

// A log is not reached through a link, nor is a file of another name changed.
func TestOpenLog(t *testing.T) {
	dir := t.TempDir()
	m := &manager{euid: 1000, now: time.Now, inv: &invocation.Invocation{}}
	f, err := m.openLog(filepath.Join(dir, "new", "log"), "u")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, link := range map[string]func(string, string) error{"symbolic": os.Symlink, "hard": os.Link} {
		path := filepath.Join(dir, name)
		if err := link(target, path); err != nil {
			t.Fatal(err)
		}
		if _, err := m.openLog(path, "u"); err == nil {
			t.Errorf("a %s link is followed", name)
		}
	}
}

// The servers' user cannot have root make files, and give them to him, in other
// places: links in his directories are not followed.
func TestOpenLogBeneathOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a link of another user")
	}
	dir := t.TempDir()
	m := &manager{euid: 0, now: time.Now, inv: &invocation.Invocation{}}
	target := filepath.Join(dir, "target")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	link := func(name, to string, uid int) string {
		path := filepath.Join(dir, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
		return path
	}
	theirs, ours := link("theirs", "target", 12345), link("ours", target, 0)
	for _, path := range []string{theirs + "/log", theirs + "/new/log", theirs + "/new/newer/log"} {
		if f, err := m.openLog(path, "root"); err == nil {
			f.Close()
			t.Errorf("%s is opened", path)
		}
		if err := m.makeDir(filepath.Dir(path), "root"); filepath.Dir(path) != theirs && err == nil {
			t.Errorf("%s is made", filepath.Dir(path))
		}
	}
	if left, _ := os.ReadDir(target); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	for _, path := range []string{ours + "/log", ours + "/new/newer/log", dir + "/./target//log"} {
		f, err := m.openLog(path, "root")
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		f.Close()
	}
	for name, err := range map[string]error{
		"file":  m.makeDir(filepath.Join(ours, "log"), "root"),
		"below": m.makeDir(filepath.Join(ours, "log", "x"), "root"),
		"loop":  m.makeDir(link("loop", "loop", 0)+"/x", "root"),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A status file has root signal only processes that it is about: the directory is
// the servers' user's, who can give another number to root's files too.
func TestOwns(t *testing.T) {
	m := &manager{euid: 0, places: places{dir: service.Dir{Proc: "/proc"}}}
	pid, uid := os.Getpid(), os.Geteuid()
	for _, tt := range []struct {
		owner int
		user  string
		want  bool
	}{
		{0, strconv.Itoa(uid), true},
		{0, "", true},
		{0, "nosuchuser", true}, // removed since
		{0, "nobody", false},
		{uid + 12345, "nobody", false},
	} {
		err := m.owns(&service.Running{PID: pid, Owner: tt.owner, Spec: service.Spec{User: tt.user}})
		if (err == nil) != tt.want {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	m.euid = 1000
	if err := m.owns(&service.Running{PID: pid, Spec: service.Spec{User: "nobody"}}); err != nil {
		t.Errorf("the kernel says what an ordinary user may signal: %v", err)
	}
}

func TestAsService(t *testing.T) {
	for path, want := range map[string]bool{
		"/etc/init.d/stap-server": true, "/etc/rc.d/init.d/stap-server": true, "init.d/stap-server": true,
		"/usr/bin/stap-server": false, "stap-server": false,
	} {
		if got := asService(&invocation.Invocation{Path: path}); got != want {
			t.Errorf("%s: got %v", path, got)
		}
	}
}

func TestCheckNumbers(t *testing.T) {
	for _, tt := range []struct {
		spec service.Spec
		want string
	}{
		{service.Spec{Port: "0", MaxThreads: "0", MaxRequest: "0x10", MaxArchive: "1"}, ""},
		{service.Spec{Port: "65536"}, "--port=65536"},
		{service.Spec{MaxThreads: "-1"}, "--max-threads=-1"},
		{service.Spec{MaxRequest: "0"}, "--max-request-size=0"},
		{service.Spec{MaxArchive: "x"}, "cannot parse number '--max-compressed-request=x'"},
	} {
		err := checkNumbers(&tt.spec)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v", tt.spec, err)
		}
	}
}
