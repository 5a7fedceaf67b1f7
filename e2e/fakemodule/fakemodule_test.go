package fakemodule

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mounted(t *testing.T, c Config) *Module {
	t.Helper()
	if m := Missing(); m != "" {
		t.Skip(m)
	}
	m, err := Mount(filepath.Join(t.TempDir(), "module"), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func open(t *testing.T, m *Module, name string, flags int) int {
	t.Helper()
	fd, err := unix.Open(filepath.Join(m.Dir, name), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("opening %s: %v", name, err)
	}
	return fd
}

// The files behave as those of a module do (loader-relay 6.2, 6.3, 7.2).
func TestFiles(t *testing.T) {
	for _, tt := range []struct {
		generation int
		base       byte
		transport  string
		record     string
	}{
		{4, 0, "\x04\x00\x00\x00", "\x01\x00\x00\x00\x04\x00\x00\x00one\n"},
		{5, 0x50, "\x54\x00\x00\x00", "\xf0\x9f\xa9\xba\x01\x00\x00\x00\x04\x00\x00\x00one\n"},
	} {
		t.Run(fmt.Sprint(tt.generation), func(t *testing.T) {
			m := mounted(t, Config{Generation: tt.generation, CPUs: 2})
			entries, err := os.ReadDir(m.Dir)
			if err != nil || len(entries) != 3 {
				t.Fatalf("directory: %v, %v", entries, err)
			}
			fd := open(t, m, ".cmd", unix.O_RDWR|unix.O_NONBLOCK)
			if _, err := unix.Open(filepath.Join(m.Dir, ".cmd"), unix.O_RDWR, 0); err != unix.EBUSY {
				t.Errorf("second open: got %v, want EBUSY", err)
			}
			buf := make([]byte, 8192)
			if n, err := unix.Read(fd, buf); string(buf[:max(n, 0)]) != tt.transport || err != nil {
				t.Errorf("first message: got %q, %v", buf[:max(n, 0)], err)
			}
			if _, err := unix.Read(fd, buf); err != unix.EAGAIN {
				t.Errorf("empty queue: got %v, want EAGAIN", err)
			}
			write := func(b string) error { _, err := unix.Write(fd, []byte(b)); return err }
			for _, w := range []struct {
				data string
				want error
			}{
				{string([]byte{tt.base + 8, 0, 0, 0}), nil},
				{string([]byte{0x58 - tt.base, 0, 0, 0}), unix.EINVAL},
				{string([]byte{tt.base + 7, 0, 0, 0}) + strings.Repeat("\x00", 128), unix.EINVAL},
				{string([]byte{tt.base + 60, 0, 0, 0}), unix.EINVAL},
			} {
				if err := write(w.data); !errors.Is(err, w.want) {
					t.Errorf("writing %q: got %v, want %v", w.data[:4], err, w.want)
				}
			}
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, 0); n != 0 || err != nil {
				t.Errorf("poll of an empty queue: got %d, %v", n, err)
			}
			go func() {
				time.Sleep(50 * time.Millisecond)
				m.Send(OOB_DATA, []byte("WARNING: text\n"))
			}()
			before := time.Now()
			if n, err := unix.Poll(fds, 5000); n != 1 || err != nil || time.Since(before) > 2*time.Second {
				t.Errorf("poll: got %d, %v after %v", n, err, time.Since(before))
			}
			if n, err := unix.Read(fd, buf); string(buf[4:max(n, 4)]) != "WARNING: text\n" || err != nil {
				t.Errorf("got %q, %v", buf[4:max(n, 4)], err)
			}

			tfd := open(t, m, "trace1", unix.O_RDONLY|unix.O_NONBLOCK)
			if _, err := unix.Read(tfd, buf); err != unix.ENODATA {
				t.Errorf("empty trace: got %v, want ENODATA", err)
			}
			m.Record(1, 1, []byte("one\n"))
			if n, err := unix.Read(tfd, buf); string(buf[:max(n, 0)]) != tt.record || err != nil {
				t.Errorf("record: got %q, %v", buf[:max(n, 0)], err)
			}
			unix.Close(tfd)
			unix.Close(fd)
			if !m.Wait(time.Second, func() bool { return !m.Attached() }) {
				t.Error("still attached after close")
			}
		})
	}
}

// START blocks as long as begin probes run, while messages can be read.
func TestStartBlocks(t *testing.T) {
	const delay = 300 * time.Millisecond
	m := mounted(t, Config{Generation: 5, StartDelay: delay, StartResult: -22})
	fd := open(t, m, ".cmd", unix.O_RDWR)
	start := append([]byte{0x50, 0, 0, 0}, make([]byte, 8)...)
	ended := make(chan time.Duration)
	before := time.Now()
	go func() {
		unix.Write(fd, start)
		ended <- time.Since(before)
	}()
	buf := make([]byte, 8192)
	if n, err := unix.Read(fd, buf); n != 4 || err != nil || time.Since(before) > delay {
		t.Errorf("TRANSPORT: got %d, %v after %v", n, err, time.Since(before))
	}
	if n, err := unix.Read(fd, buf); n != 12 || err != nil || int32(ne.Uint32(buf[8:])) != -22 {
		t.Errorf("reply to START: got %x, %v", buf[:max(n, 0)], err)
	}
	if d := <-ended; d < delay {
		t.Errorf("START blocked only %v", d)
	}
	unix.Close(fd)
}

// Plain files are read from their start and written.
func TestPlainFiles(t *testing.T) {
	n, got := 0, ""
	m := mounted(t, Config{Generation: 5, UID: 65534, Files: map[string]File{
		"monitor_status":  {Read: func() []byte { n++; return fmt.Appendf(nil, "status %d", n) }},
		"monitor_control": {Write: func(b []byte) { got += string(b) }},
	}})
	for i := 1; i < 3; i++ {
		b, err := exec.Command("cat", filepath.Join(m.Dir, "monitor_status")).Output()
		if want := fmt.Sprintf("status %d", i); string(b) != want || err != nil {
			t.Errorf("got %q, %v; want %q", b, err, want)
		}
	}
	if out, err := exec.Command("sh", "-c", "printf pause > "+filepath.Join(m.Dir, "monitor_control")).CombinedOutput(); err != nil || got != "pause" {
		t.Errorf("wrote %q, %v, %s", got, err, out)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(m.Dir, ".cmd"), &st); err != nil || st.Uid != 65534 || st.Mode&0o777 != 0o600 {
		t.Errorf("owner %d, mode %o, %v", st.Uid, st.Mode, err)
	}
}

func TestMountRefuses(t *testing.T) {
	if _, err := Mount(t.TempDir(), Config{Generation: 3}); err == nil {
		t.Error("generation 3 was accepted")
	}
}
