package client

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/backend"
	"stapbox/core/privilege"
	"stapbox/core/wire"
)

// pty is a terminal and what was written to it.
type pty struct {
	slave *os.File
	mu    sync.Mutex
	text  bytes.Buffer
	done  chan struct{}
}

func newPTY(t *testing.T, columns uint16) *pty {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("missing: pseudo terminals (%v)", err)
	}
	m := os.NewFile(uintptr(master), "/dev/ptmx")
	t.Cleanup(func() { m.Close() })
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	p := &pty{done: make(chan struct{})}
	if p.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		buf := make([]byte, 4096)
		for {
			n, err := m.Read(buf)
			if n <= 0 || err != nil {
				return // EIO: the other side is closed
			}
			p.mu.Lock()
			p.text.Write(buf[:n])
			p.mu.Unlock()
		}
	}()
	return p
}

// all closes the terminal and gives what was written to it.
func (p *pty) all() string {
	p.slave.Close()
	<-p.done
	return strings.ReplaceAll(p.text.String(), "\r\n", "\n")
}

// screen is what a terminal of one line of interest shows in the end: carriage
// returns and erasures are obeyed.
func screen(text string) string {
	var lines []string
	for _, line := range strings.Split(text, "\n") {
		shown := ""
		for _, part := range strings.Split(line, "\r") {
			if i := strings.LastIndex(part, "\x1b[K"); i >= 0 {
				kept := part[:i]
				if j := strings.LastIndex(kept, "\x1b[K"); j >= 0 {
					kept = kept[j+len("\x1b[K"):]
				}
				shown, part = kept, kept+part[i+len("\x1b[K"):]
			}
			if len(part) < len(shown) {
				part += shown[len(part):]
			}
			shown = part
		}
		lines = append(lines, shown)
	}
	return strings.Join(lines, "\n")
}

func slow(d time.Duration, answer func(*wire.Request) *wire.Response) func(*wire.Request) *wire.Response {
	return func(r *wire.Request) *wire.Response {
		time.Sleep(d)
		return answer(r)
	}
}

func TestProgressOfServer(t *testing.T) {
	line := regexp.MustCompile(`Compiling on no-such-host\.local, [12] s\x1b\[K`)
	for _, tt := range []struct {
		name  string
		takes time.Duration
		args  []string
		env   string
		file  bool
		want  bool
	}{
		{name: "slow", takes: 1300 * time.Millisecond, want: true},
		{name: "quick"},
		{name: "slow, with -v", takes: 1300 * time.Millisecond, args: []string{"-v"}},
		{name: "slow, with -w", takes: 1300 * time.Millisecond, args: []string{"-w"}},
		{name: "slow, dumb", takes: 1300 * time.Millisecond, env: "TERM=dumb"},
		{name: "slow, not a terminal", takes: 1300 * time.Millisecond, file: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newServer(t, slow(tt.takes, good("stap_1")))
			d := newDesk(t, privilege.GroupDev, f)
			d.trust(t, f, d.peerStore())
			d.inv.Environ = append(d.inv.Environ, "TERM=linux", tt.env)
			p := newPTY(t, 80)
			if !tt.file {
				d.inv.Stderr = p.slave
			}
			if code := d.stap(append(tt.args, "-p4", "--use-server=no-such-host.local", "-e", hello)...); code != 0 {
				t.Errorf("status %d", code)
			}
			text := p.all() + d.err.String()
			if got := line.MatchString(text); got != tt.want {
				t.Errorf("shown: %v, want %v: %q", got, tt.want, text)
			}
			if !tt.want && strings.Contains(text, "\x1b") {
				t.Errorf("got %q", text)
			}
			if s := screen(text); strings.Contains(s, "Compiling on") || !strings.Contains(s, "err\n") {
				t.Errorf("what is left: %q", s)
			}
			if strings.Contains(d.out.String(), "Compiling") {
				t.Errorf("stdout: %q", d.out.String())
			}
		})
	}
}

// slowBackend takes its time in pass 4, and says something in the middle.
type slowBackend struct{}

func (slowBackend) Translate(_ context.Context, job *backend.Job) (backend.Artifact, int) {
	for pass := 1; pass <= 3; pass++ {
		job.Passed(pass)
	}
	time.Sleep(1200 * time.Millisecond)
	fmt.Fprintln(job.Stderr, "WARNING: something")
	time.Sleep(1100 * time.Millisecond)
	fmt.Fprintln(job.Stderr, "Pass 2: analysis failed.")
	return backend.Artifact{}, 1
}

func TestProgressHere(t *testing.T) {
	d := newDesk(t, privilege.GroupDev)
	d.inv.Environ = append(d.inv.Environ, "TERM=linux")
	p := newPTY(t, 30)
	d.inv.Stderr = p.slave
	d.translator = slowBackend{}
	if code := d.stap("-p4", "-e", hello); code != 1 {
		t.Errorf("status %d", code)
	}
	text := p.all()
	// 29 of 30 columns.
	if got := strings.Count(text, "\rCompiling on this host, pass \x1b[K"); got != 2 {
		t.Errorf("shown %d times, want 2: %q", got, text)
	}
	if got := screen(text); got != "WARNING: something\nPass 2: analysis failed.\n" {
		t.Errorf("what is left: %q", got)
	}
}
