package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"stapbox/e2e/fakemodule"
)

// A stapio that waits for somebody else in a system call still ends at the third
// signal, and has the module removed: SIGKILL would leave it behind.
func TestRelayStuck(t *testing.T) {
	insist := func(r *relayRun) {
		t.Helper()
		for range 3 {
			time.Sleep(150 * time.Millisecond)
			r.signal(syscall.SIGTERM)
		}
		if s := r.wait(); s != 0 {
			t.Errorf("status %d; %s", s, r.state())
		}
		r.removed(removal)
	}
	full := func() *os.File {
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pr.Close(); pw.Close() })
		if _, err := pw.Write(make([]byte, 1<<16)); err != nil {
			t.Fatal(err)
		}
		return pw
	}
	generations(t, func(t *testing.T, g int) {
		t.Run("nobody opens the FIFO of -o", func(t *testing.T) {
			m := fake(t, fakemodule.Config{Generation: g, Begin: one})
			r := relayCommand(t, m, "-o", "fifo", "fake")
			if err := syscall.Mkfifo(filepath.Join(r.dir, "fifo"), 0o600); err != nil {
				t.Fatal(err)
			}
			r.start()
			r.until("attaching", 3*time.Second, m.Attached)
			insist(r)
		})
		t.Run("nobody reads standard output", func(t *testing.T) {
			m := fake(t, fakemodule.Config{Generation: g, Begin: one})
			r := relayCommand(t, m, "fake")
			r.cmd.Stdout = full()
			r.start()
			r.until("START", 3*time.Second, func() bool { return m.Seen(fakemodule.START) && m.Unread() == 0 })
			insist(r)
		})
		t.Run("nobody reads standard error", func(t *testing.T) {
			m := fake(t, fakemodule.Config{Generation: g, Begin: func(m *fakemodule.Module) { m.Send(fakemodule.OOB_DATA, []byte("WARNING: stuck\n")) }})
			r := relayCommand(t, m, "fake")
			r.cmd.Stderr = full()
			r.start()
			r.until("START", 3*time.Second, func() bool { return m.Seen(fakemodule.START) })
			insist(r)
		})
	})
}

// A working directory that is gone ends the background mode before it begins, and
// leaves no module.
func TestRelayDaemonWithoutDirectory(t *testing.T) {
	m := fake(t, fakemodule.Config{Generation: 5, Begin: one})
	r := relayCommand(t, m, "-D", "-o", "out", "fake")
	gone := t.TempDir()
	script := filepath.Join(t.TempDir(), "start")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncd '"+gone+"' && rmdir '"+gone+"' && exec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.cmd.Args = append([]string{script, r.cmd.Path}, r.cmd.Args[1:]...)
	r.cmd.Path = script
	r.start()
	r.check(1, "", "", "Unable to make output file name absolute")
	r.removed(removal)
}
