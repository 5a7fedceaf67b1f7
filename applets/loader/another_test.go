package loader

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
	"stapbox/core/report"
)

// Another user's stapio has nothing of root's environment but names of a terminal,
// a locale and a time zone.
func TestSecurity01EnvironmentOfAnother(t *testing.T) {
	l := &loader{Invocation: &invocation.Invocation{Environ: []string{
		"ROOT_SECRET=hunter2", "HOME=/root", "PATH=/root/bin", "TERM=xterm-256color", "LANG=de_DE.UTF-8@euro", "LC_ALL=a b", "TZ=Europe/Berlin",
		"LC_CTYPE=/root/x", "SYSTEMTAP_DIR=/root/x", "SSH_AUTH_SOCK=/tmp/x", "LD_PRELOAD=x", "SYSTEMTAP_STAPRUN=/opt/staprun",
	}}}
	got := l.othersEnvironment("m_1")
	slices.Sort(got)
	want := []string{
		"LANG=de_DE.UTF-8@euro", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "STAPBOX_HANDOVER=", "SYSTEMTAP_MODULE=m_1",
		"SYSTEMTAP_STAPRUN=/opt/staprun", "SYSTEMTAP_VERBOSE=0", "TERM=xterm-256color", "TZ=Europe/Berlin",
	}
	for i, w := range want {
		if len(got) != len(want) || !strings.HasPrefix(got[i], w) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestSecurity01TerminalGetsNoControlCharacters(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain\ttext\n", "plain\ttext\n"},
		{"grün 漢字 €\n", "grün 漢字 €\n"},
		{"\x1b]0;t\a", `\033]0;t\007`},
		{"a\rb\b\x7f", `a\015b\010\177`},
		{"\u009bm \u202e", `\302\233m \342\200\256`},
		{"\x9b\xff", `\233\377`},
		{"cut \xe6\xbc", `cut \346\274`},
		{"\ufffd", "\ufffd"},
	} {
		for cut := range len(tt.in) + 1 {
			c := cleaner{terminal: true}
			got := string(c.text([]byte(tt.in[:cut]))) + string(c.text([]byte(tt.in[cut:]))) + string(c.rest())
			if got != tt.want {
				t.Errorf("%q cut at %d: got %q, want %q", tt.in, cut, got, tt.want)
			}
		}
		c := cleaner{}
		if got := string(c.text([]byte(tt.in))) + string(c.rest()); got != tt.in {
			t.Errorf("%q for a file: got %q", tt.in, got)
		}
	}
}

func FuzzCleaner(f *testing.F) {
	f.Add([]byte("a\x1b[0mb"), 2)
	f.Add([]byte("\xe6\xbc\xa2"), 1)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		cut = min(max(cut, 0), len(b))
		c := cleaner{terminal: true}
		out := slices.Concat(c.text(b[:cut]), c.text(b[cut:]), c.rest())
		for _, x := range out {
			if x < ' ' && x != '\n' && x != '\t' || x == 0x7f {
				t.Fatalf("%q becomes %q", b, out)
			}
		}
	})
}

// What is in the pipe when stapio ends is copied, and a command that keeps the pipe
// open, or goes on writing, is not waited for.
func TestSecurity01OutputAfterTheEnd(t *testing.T) {
	to, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	text := strings.Repeat("0123456789abcdef", 2000)
	io.WriteString(w, text)
	ended := make(chan struct{})
	close(ended)
	done := make(chan bool)
	go func() {
		relayOutput(r, int(to.Fd()), ended)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the pipe is waited for")
	}
	if got, err := os.ReadFile(to.Name()); string(got) != text {
		t.Errorf("%d of %d bytes, %v", len(got), len(text), err)
	}
}

// The working directory, the descriptors, the environment and the session of a program
// that runs as another user.
func TestSecurity01Delegate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root goes on as another")
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.MkdirTemp("/tmp", "delegate")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	private := base + "/private"
	out := base + "/out"
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(base, 0o755)
	os.Chmod(out, 0o666)
	script := base + "/stapio"
	// What root has open without FD_CLOEXEC, his caller's for example.
	inherited, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD, 40)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	stdin := os.Stdin
	defer func() { os.Stdin = stdin }()
	if os.Stdin, err = os.Open("/etc/passwd"); err != nil {
		t.Fatal(err)
	}
	defer os.Stdin.Close()
	text := fmt.Sprintf(`#!/bin/sh
in=$(readlink /proc/$$/fd/0) out=$(readlink /proc/$$/fd/1) err=$(readlink /proc/$$/fd/2)
{
	pwd; id -u; id -G; cut -d' ' -f7 /proc/self/stat; grep CapEff /proc/self/status
	[ "$(cut -d' ' -f6 /proc/self/stat)" = $$ ] && echo a session of its own
	echo "secret $SECRET, input $in"
	for f in 0 1 2 3 4 5 6 %d; do [ -e /proc/$$/fd/$f ] && echo fd $f; done
	echo "output $out $err"
} >%s
exit 7
`, inherited, out)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	l := &loader{
		Invocation: &invocation.Invocation{Dir: private, Stderr: &stderr, Environ: []string{"SECRET=1"}},
		report:     report.New(&stderr, report.Never, func(string) (string, bool) { return "", false }),
	}
	stop := catch(func(os.Signal) {})
	stop.inserting()
	status, err := l.delegate(script, "m", dir, &another{4242, 4243, []int{4243, 4244}}, stop)
	got, _ := os.ReadFile(out)
	text, output, _ := strings.Cut(string(got), "output ")
	for fd := 1; fd <= 2; fd++ {
		if ours, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || !strings.HasPrefix(output, "pipe:") || slices.Contains(strings.Fields(output), ours) {
			t.Errorf("its output goes to %q, ours to %q, %v", output, ours, err)
		}
	}
	if want := "/\n4242\n4243 4244\n0\nCapEff:\t0000000000000000\na session of its own\nsecret , input /dev/null\nfd 0\nfd 1\nfd 2\nfd 3\n"; err != nil || status != 7 || text != want {
		t.Errorf("status %d, %v, %q; got %q, want %q", status, err, stderr.String(), got, want)
	}

	// Root's working directory has been removed.
	if dir, err = os.Open(base); err != nil {
		t.Fatal(err)
	}
	l.Dir = ""
	stop = catch(func(os.Signal) {})
	stop.inserting()
	status, err = l.delegate(script, "m", dir, &another{4242, 4243, []int{4243}}, stop)
	got, _ = os.ReadFile(out)
	if at, _, _ := strings.Cut(string(got), "\n"); err != nil || status != 7 || at != "/" {
		t.Errorf("without a directory: status %d, %v, %q; in %q", status, err, stderr.String(), at)
	}
}

// Root's process keeps no id of the user's, who could send it signals, and has nothing
// in its credentials that a child would get whatever its ids are.
func TestSecurity01RootAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root goes on as another")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends with it
		defer unix.Setresuid(0, 0, 0)
		defer unix.Setresgid(0, 0, 0)
		const chown = 0 // <linux/capability.h>
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		err := unix.Capget(&header, &caps[0])
		caps[0].Inheritable |= 1 << chown
		if err = errors.Join(err, unix.Capset(&header, &caps[0]), unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, chown, 0, 0),
			unix.Setresgid(4242, 0, 0), unix.Setresuid(4242, 0, 0)); err != nil {
			t.Error(err)
			return
		}
		roots, noKeys := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
		if err := (&loader{}).rootAgain(); err != nil {
			t.Error(err)
		}
		if uid, euid, suid := unix.Getresuid(); uid != 0 || euid != 0 || suid != 0 {
			t.Errorf("user ids %d, %d, %d", uid, euid, suid)
		}
		if gid, egid, sgid := unix.Getresgid(); gid != 0 || egid != 0 || sgid != 0 {
			t.Errorf("group ids %d, %d, %d", gid, egid, sgid)
		}
		if err := unix.Capget(&header, &caps[0]); err != nil || caps[0].Inheritable != 0 || caps[1].Inheritable != 0 {
			t.Errorf("inheritable capabilities %#x, %#x, %v", caps[0].Inheritable, caps[1].Inheritable, err)
		}
		if set, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, chown, 0, 0); err != nil || set != 0 {
			t.Errorf("ambient capability: %d, %v", set, err)
		}
		if noKeys != nil {
			t.Logf("no keys here: %v", noKeys)
		} else if id, err := unix.KeyctlInt(unix.KEYCTL_GET_KEYRING_ID, unix.KEY_SPEC_SESSION_KEYRING, 0, 0, 0); err != nil || id == roots {
			t.Errorf("session keyring %d, root's is %d, %v", id, roots, err)
		}
	}()
	<-done
}

// Another user's process opens its own standard output for reading and takes what
// root has polled for, and keeps it open for writing: root's staprun ends all the same.
func TestSecurity01StolenOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", w.Fd())
	for range 8 {
		fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			b := make([]byte, 4096)
			for {
				if n, _ := syscall.Read(fd, b); n <= 0 {
					return
				}
			}
		}()
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ended, done := make(chan struct{}), make(chan struct{})
	go func() { relayOutput(r, int(null.Fd()), ended); close(done) }()
	for range 300 {
		w.Write([]byte("x"))
		time.Sleep(time.Millisecond)
	}
	close(ended)
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		t.Error("root's staprun still waits 3 s after stapio has ended")
	}
}

// Bits that would give a user rights of root's are cleared, or root does not go on;
// others stay, and a process without CAP_SETPCAP and without such bits goes on.
func TestSecurity01Securebits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has securebits to set")
	}
	const noSetuidFixupLocked, noCapAmbientRaise, noCapAmbientRaiseLocked = 1 << 3, 1 << 6, 1 << 7
	const setpcap = 8 // <linux/capability.h>
	for _, tt := range []struct {
		name      string
		bits      int
		noSetpcap bool
		want      int // -1: refused
	}{
		{"none", 0, false, 0},
		{"none, in a container", 0, true, 0},
		{"capabilities would stay", noSetuidFixup | keepCaps, false, 0},
		{"capabilities would stay, in a container", noSetuidFixup, true, -1},
		{"locked", noSetuidFixup | noSetuidFixupLocked, false, -1},
		{"others are locked", noRoot | noSetuidFixup | noCapAmbientRaise | noCapAmbientRaiseLocked, false, noCapAmbientRaise | noCapAmbientRaiseLocked},
		{"others, in a container", noCapAmbientRaise, true, noCapAmbientRaise},
		{"setuid programs, in a container", noRoot, true, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				runtime.LockOSThread() // and the thread ends with it
				if err := unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(tt.bits), 0, 0, 0); err != nil {
					t.Error(err)
					return
				}
				if tt.noSetpcap {
					header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
					var caps [2]unix.CapUserData
					err := unix.Capget(&header, &caps[0])
					caps[0].Effective &^= 1 << setpcap
					caps[0].Permitted &^= 1 << setpcap
					if err := errors.Join(err, unix.Capset(&header, &caps[0])); err != nil {
						t.Error(err)
						return
					}
				}
				err := (&loader{}).rootAgain()
				if tt.want < 0 {
					if !errors.Is(err, unix.EPERM) {
						t.Errorf("got %v, want EPERM", err)
					}
					return
				}
				if got, gerr := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0); err != nil || gerr != nil || got != tt.want {
					t.Errorf("got %#x, %v, %v; want %#x", got, err, gerr, tt.want)
				}
			}()
			<-done
		})
	}
}
