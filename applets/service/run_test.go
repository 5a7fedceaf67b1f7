package service

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"stapbox/core/invocation"
	"stapbox/core/service"
)

// runs is a manager of the files of an ordinary user that starts nothing.
func runs(t *testing.T, env []string, args ...string) (m *manager, stdout, stderr *bytes.Buffer, executed *[]string) {
	t.Helper()
	o, err := parse(args)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	confd := filepath.Join(dir, "conf.d")
	if err := os.Mkdir(confd, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"native.conf": "NICKNAME=native\nRELEASE=1.2\nPORT=5\n",
		"plain.conf":  "ARCH=i386\n",
		"logs.conf":   "LOG=" + dir + "/its.log\n",
		"other.conf":  "USER=root\n",
		"nobody.conf": "USER=nosuchuser\n",
	} {
		if err := os.WriteFile(filepath.Join(confd, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	executed = new([]string)
	m = &manager{
		inv:  &invocation.Invocation{Name: "stap-server", Environ: append(env, "HOME="+dir), Dir: dir, Stdout: stdout, Stderr: stderr},
		opts: o, euid: 1000, now: time.Now,
		exec: func(path string, argv, env []string) error {
			*executed = append(append([]string{path}, argv...), env...)
			return errors.New("no program")
		},
		places: places{
			confd: confd, dir: service.Dir{Path: filepath.Join(dir, "run"), Proc: "/proc"}, logFile: filepath.Join(dir, "log"),
			modules: dir, devLog: filepath.Join(dir, "dev"), executable: "/this",
		},
	}
	if err := os.Mkdir(m.dir.Path, 0o777); err != nil {
		t.Fatal(err)
	}
	return m, stdout, stderr, executed
}

// run becomes the server of a file, with the environment of the service manager
// and without a log of its own.
func TestRunHere(t *testing.T) {
	for _, tt := range []struct{ nick, want string }{
		{"native", "/this stap-serverd -a ARCH -r 1.2 --port 5 NOTIFY_SOCKET=/n"},
		{"plain", "/this stap-serverd -a i386 -r RELEASE NOTIFY_SOCKET=/n"},
		{"logs", "/this stap-serverd -a ARCH -r RELEASE --log=DIR/its.log NOTIFY_SOCKET=/n"},
	} {
		m, _, _, executed := runs(t, []string{"NOTIFY_SOCKET=/n"}, "run", "-n", tt.nick)
		rc := m.run(context.Background())
		got := strings.Join(*executed, " ")
		want := strings.NewReplacer("ARCH", m.defaults.Arch, "RELEASE", m.defaults.Release, "DIR", m.inv.Dir).Replace(tt.want) + " HOME=" + m.inv.Dir
		if rc != exitFailure || got != want {
			t.Errorf("%s: got %q, status %d, want %q", tt.nick, got, rc, want)
		}
	}
	for _, tt := range []struct {
		args, want string
	}{
		{"run", "this needs one server, by -n NICK"},
		{"run -n native -n plain", "this needs one server"},
		{"run -n absent", "No configuration found for the nickname 'absent'"},
		{"run -n other", rootRefused},
		{"run -n nobody", "Cannot run servers as user nosuchuser"},
		{"trust -n native", "MAINPID does not have the process id"},
		{"trust", "this needs one server"},
		{"trust -n nobody", "Cannot find user nosuchuser"},
	} {
		m, _, stderr, executed := runs(t, nil, strings.Fields(tt.args)...)
		if rc := m.run(context.Background()); rc != exitFailure || !strings.Contains(stderr.String(), tt.want) || *executed != nil {
			t.Errorf("%s: status %d, %q, executed %q, want %q", tt.args, rc, stderr, *executed, tt.want)
		}
	}
}

// Only a server is believed, whatever MAINPID says.
func TestTrustRunningRefuses(t *testing.T) {
	m, _, stderr, _ := runs(t, []string{"MAINPID=" + strconv.Itoa(os.Getpid())}, "trust", "-n", "native")
	if rc := m.run(context.Background()); rc != exitFailure || !strings.Contains(stderr.String(), "is not a server") {
		t.Errorf("status %d, %q", rc, stderr)
	}
	// The rule of who is trusted is that of start.
	root := &manager{euid: 0}
	for _, tt := range []struct {
		m    *manager
		ssl  string
		user string
		want bool
	}{
		{root, "", "stap-server", true},
		{root, "/elsewhere", "stap-server", false},
		{root, "", "alice", false},
		{&manager{euid: 155}, "", "stap-server", false},
	} {
		if got := tt.m.trusts(tt.ssl, account{name: tt.user}); got != tt.want {
			t.Errorf("%+v: got %v", tt, got)
		}
	}
}
