package systemd

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	for _, name := range []string{path, "@stapbox-test-" + strconv.Itoa(os.Getpid())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		n, err := NewNotifier(name)
		if err != nil {
			t.Fatal(err)
		}
		reloading, err := Reloading()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{Ready + "\n" + "STATUS=two lines", reloading, Stopping} {
			if err := n.Send(strings.Split(want, "\n")...); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 4096)
			l.SetReadDeadline(time.Now().Add(time.Second))
			k, err := l.Read(buf)
			if err != nil || string(buf[:k]) != want {
				t.Errorf("got %q, %v; want %q", buf[:k], err, want)
			}
		}
		var now unix.Timespec
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
		_, usec, _ := strings.Cut(reloading, "MONOTONIC_USEC=")
		if at, err := strconv.ParseInt(usec, 10, 64); err != nil || at > now.Nano()/1000 || at < now.Nano()/1000-10e6 {
			t.Errorf("reloading at %q, now %d", usec, now.Nano()/1000)
		}
	}
	if got := Status("a\nREADY=1"); got != "STATUS=a READY=1" {
		t.Errorf("status %q", got)
	}
	if n, err := NewNotifier(""); n != nil || err != nil || n.Send(Ready) != nil {
		t.Errorf("no manager: %v, %v", n, err)
	}
	for _, bad := range []string{"relative", "vsock:2:1", "/", "/" + strings.Repeat("x", 200)} {
		if n, err := NewNotifier(bad); err == nil {
			t.Errorf("%q: got %v", bad, n)
		}
	}
	gone, _ := NewNotifier(filepath.Join(t.TempDir(), "gone"))
	if err := gone.Send(Ready); err == nil || !strings.Contains(err.Error(), "notifying the service manager") {
		t.Errorf("got %v", err)
	}
}

func TestWatchdogTime(t *testing.T) {
	for _, tt := range []struct {
		usec, pid string
		want      time.Duration
		bad       bool
	}{
		{"", "", 0, false}, {"3000000", "", 3 * time.Second, false}, {"3000000", "7", 3 * time.Second, false},
		{"3000000", "8", 0, false}, {"x", "7", 0, true}, {"0", "", 0, true}, {"-1", "", 0, true}, {"99999999999999", "", 0, true},
	} {
		if got, err := WatchdogTime(tt.usec, tt.pid, 7); got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%q, %q: got %v, %v", tt.usec, tt.pid, got, err)
		}
	}
}

// place puts descriptors of files behind each other, from a number on.
func place(t *testing.T, first int, files ...*os.File) {
	t.Helper()
	for i, f := range files {
		if err := unix.Dup3(int(f.Fd()), first+i, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func file(t *testing.T, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestListeners(t *testing.T) {
	const first = 200
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "s")
	local, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	place(t, first, file(t, tcp.(*net.TCPListener)), file(t, local.(*net.UnixListener)))
	list, err := listeners("7", "2", "unknown:metrics", 7, first)
	if err != nil || len(list) != 2 || list[0].Name != "" || list[1].Name != "metrics" || list[0].Addr().String() != tcp.Addr().String() {
		t.Fatalf("got %+v, %v", list, err)
	}
	for fd := first; fd < first+2; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("descriptor %d is still open: %v", fd, err)
		}
	}
	go net.Dial("tcp", tcp.Addr().String())
	c, err := list[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, l := range list {
		l.Close()
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the manager's socket: %v", err)
	}

	// What is not a listening stream socket is refused, and nothing stays open.
	udp, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	conn, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for want, f := range map[string]*os.File{
		"it is not a stream socket": file(t, udp),
		"it does not listen":        file(t, conn.(*net.TCPConn)),
		"is not a socket":           null,
	} {
		place(t, first, file(t, tcp.(*net.TCPListener)), f)
		if list, err := listeners("7", "2", "", 7, first); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v", want, list, err)
		}
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		pid, fds, names string
		n               int
		want            string
	}{
		{"", "1", "", 0, ""}, {"7", "", "", 0, ""}, {"8", "1", "", 0, ""}, {"7", "0", "", 0, ""}, {"7", "2", "a:b", 2, ""}, {"7", "1", "", 1, ""},
		{"x", "1", "", 0, "LISTEN_PID"}, {"0", "1", "", 0, "LISTEN_PID"}, {"-7", "1", "", 0, "LISTEN_PID"},
		{"7", "x", "", 0, "LISTEN_FDS"}, {"7", "-1", "", 0, "LISTEN_FDS"}, {"7", "65", "", 0, "LISTEN_FDS"},
		{"7", "2", "a", 0, "LISTEN_FDNAMES has 1 names"}, {"7", "1", "a:b", 0, "LISTEN_FDNAMES has 2 names"},
	} {
		n, _, err := parse(tt.pid, tt.fds, tt.names, 7)
		if n != tt.n || tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: got %d, %v", tt, n, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("7", "2", "a:b")
	f.Add("7", "65", "")
	f.Add("", "1", "unknown")
	f.Fuzz(func(t *testing.T, pid, fds, names string) {
		n, list, err := parse(pid, fds, names, 7)
		if n < 0 || n > maxSockets || n != len(list) && err == nil && n > 0 {
			t.Errorf("%d sockets, names %q, %v", n, list, err)
		}
	})
}
