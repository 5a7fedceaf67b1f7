package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stapbox/e2e/fakemodule"
)

// buffer collects the output of a running program.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// relayRun is stapio running against a fake module.
type relayRun struct {
	t              *testing.T
	module         *fakemodule.Module
	cmd            *exec.Cmd
	stdout, stderr buffer
	dir            string // the working directory
	calls          string // what staprun was called with, a line each
	ended          chan error
	at             time.Time // when it ended
}

// fake mounts a module of one generation.
func fake(t *testing.T, c fakemodule.Config) *fakemodule.Module {
	t.Helper()
	m, err := fakemodule.Mount(filepath.Join(t.TempDir(), "module"), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// relayCommand prepares stapio for the module; staprun is a script that logs
// its arguments.
func relayCommand(t *testing.T, m *fakemodule.Module, args ...string) *relayRun {
	t.Helper()
	dir := t.TempDir()
	r := &relayRun{t: t, module: m, dir: dir, calls: filepath.Join(dir, "staprun.log"), ended: make(chan error, 1)}
	script := filepath.Join(t.TempDir(), "staprun")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$*\" >> '"+r.calls+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r.cmd = exec.Command(stage.programs.Applet("stapio"), append([]string{"-F3"}, args...)...)
	r.cmd.Dir, r.cmd.ExtraFiles = dir, []*os.File{d}
	r.cmd.Env = append(os.Environ(), "SYSTEMTAP_STAPRUN="+script, "TERM=dumb")
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	r.cmd.WaitDelay = 2 * time.Second
	return r
}

func (r *relayRun) start() *relayRun {
	r.t.Helper()
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		err := r.cmd.Wait()
		r.at = time.Now()
		r.ended <- err
	}()
	r.t.Cleanup(func() { r.cmd.Process.Kill() })
	return r
}

// until waits for a condition.
func (r *relayRun) until(what string, limit time.Duration, condition func() bool) {
	r.t.Helper()
	if !r.module.Wait(limit, condition) {
		r.t.Errorf("no %s within %v; %s", what, limit, r.state())
	}
}

func (r *relayRun) signal(s syscall.Signal) { r.cmd.Process.Signal(s) }

// wait gives the exit status, 128+n after a signal.
func (r *relayRun) wait() int {
	r.t.Helper()
	select {
	case err := <-r.ended:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
				return 128 + int(ws.Signal())
			}
			return exit.ExitCode()
		}
		if err != nil {
			r.t.Error(err)
		}
		return 0
	case <-time.After(15 * time.Second):
		r.t.Fatalf("stapio does not end; %s", r.state())
		return -1
	}
}

func (r *relayRun) state() string {
	return fmt.Sprintf("stdout %q, stderr %q, messages %q", r.stdout.String(), r.stderr.String(), r.messages())
}

// messages are those the module was sent but for READY, each run of equal ones
// once.
func (r *relayRun) messages() string {
	var all []string
	for _, m := range r.module.Log() {
		if s := m.String(); m.Type != fakemodule.READY && (len(all) == 0 || all[len(all)-1] != s) {
			all = append(all, s)
		}
	}
	return strings.Join(all, " ")
}

// check holds the end of a run against what it should be.
func (r *relayRun) check(status int, stdout, messages string, stderr ...string) {
	r.t.Helper()
	if got := r.wait(); got != status {
		r.t.Errorf("status %d, want %d; %s", got, status, r.state())
	}
	if got := r.stdout.String(); got != stdout {
		r.t.Errorf("stdout %.300q, want %.300q; stderr %q", got, stdout, r.stderr.String())
	}
	if got := r.messages(); got != messages {
		r.t.Errorf("messages %q, want %q; stderr %q", got, messages, r.stderr.String())
	}
	if got := r.stderr.String(); len(stderr) == 0 && got != "" {
		r.t.Errorf("stderr %q, want nothing", got)
	}
	for _, want := range stderr {
		if got := strings.Count(r.stderr.String(), want); got != 1 {
			r.t.Errorf("%q is %d times in stderr %q, want once", want, got, r.stderr.String())
		}
	}
}

// removed checks that the module was removed, once, with these words.
func (r *relayRun) removed(words string) {
	r.t.Helper()
	b, err := os.ReadFile(r.calls)
	if words == "" {
		if !errors.Is(err, os.ErrNotExist) {
			r.t.Errorf("staprun was called with %q, %v; want no call", b, err)
		}
		return
	}
	if string(b) != words+"\n" {
		r.t.Errorf("staprun was called with %q, %v; want %q", b, err, words)
	}
}

func (r *relayRun) files() string {
	var all []string
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(r.calls) {
			b, err := os.ReadFile(filepath.Join(r.dir, e.Name()))
			if err != nil {
				r.t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%s=%.60q", e.Name(), b))
		}
	}
	return strings.Join(all, " ")
}

// generations runs a test for both generations of modules.
func generations(t *testing.T, test func(t *testing.T, g int)) {
	t.Helper()
	if m := fakemodule.Missing(); m != "" {
		t.Skip(m)
	}
	for _, g := range []int{4, 5} {
		t.Run(fmt.Sprint("generation ", g), func(t *testing.T) { test(t, g) })
	}
}

const (
	normal  = "BULK=EINVAL START EXIT"
	removal = "-d -C auto fake"
)

func one(m *fakemodule.Module) { m.Record(0, 1, []byte("one\n")) }

func oneAndExit(m *fakemodule.Module) {
	one(m)
	m.Send(fakemodule.REQUEST_EXIT, nil)
}

// cpus is the number of trace files: stapio opens those of the CPUs there are.
func cpus(c fakemodule.Config) fakemodule.Config { c.CPUs = 2; return c }

// Check 1 of loader-relay 15: one stapio completes the sequences of 1.10 and 6.7
// with modules of both generations.
func relaySequences(t *testing.T) {
	oob := func(text string) func(*fakemodule.Module) {
		return func(m *fakemodule.Module) {
			m.Send(fakemodule.OOB_DATA, []byte(text))
			oneAndExit(m)
		}
	}
	for _, tt := range []struct {
		name     string
		config   fakemodule.Config
		args     []string
		during   func(r *relayRun)
		status   int
		stdout   string
		messages string
		removed  string
		stderr   []string
	}{
		{name: "script exit", config: fakemodule.Config{Begin: oneAndExit}, stdout: "one\n", messages: normal, removed: removal},
		{name: "empty reads are EAGAIN", config: fakemodule.Config{Begin: oneAndExit, Empty: syscall.EAGAIN}, stdout: "one\n", messages: normal, removed: removal},
		{name: "empty reads are 0", config: fakemodule.Config{Begin: oneAndExit, Empty: fakemodule.EOF}, stdout: "one\n", messages: normal, removed: removal},
		{name: "writes are answered with four bytes less", config: fakemodule.Config{Begin: oneAndExit, ShortCount: true}, stdout: "one\n", messages: normal, removed: removal},
		{name: "two CPUs", config: cpus(fakemodule.Config{Begin: func(m *fakemodule.Module) {
			m.Record(1, 2, []byte("two\n"))
			oneAndExit(m)
		}, End: func(m *fakemodule.Module) { m.Record(1, 3, []byte("three\n")) }}), stdout: "one\ntwo\nthree\n", messages: normal, removed: removal},
		{name: "verbose", args: []string{"-vv", "-C", "never"}, config: fakemodule.Config{Begin: oneAndExit}, stdout: "one\n", messages: normal, removed: "-v -v -d -C never fake"},
		{name: "error at start", config: fakemodule.Config{StartResult: -22, Begin: func(m *fakemodule.Module) { m.Send(fakemodule.OOB_DATA, []byte("ERROR: boo\n")) }},
			status: 1, messages: "BULK=EINVAL START", removed: removal, stderr: []string{"ERROR: boo\n"}},
		{name: "error while running", config: fakemodule.Config{Begin: oob("ERROR: late\n")}, status: 1, stdout: "one\n", messages: normal, removed: removal, stderr: []string{"ERROR: late\n"}},
		{name: "warning", config: fakemodule.Config{Begin: oob("WARNING: careful\n")}, stdout: "one\n", messages: normal, removed: removal, stderr: []string{"WARNING: careful\n"}},
		{name: "warning twice", config: fakemodule.Config{Begin: func(m *fakemodule.Module) {
			m.Send(fakemodule.OOB_DATA, []byte("WARNING: w\n"))
			oob("WARNING: w\n")(m)
		}},
			stdout: "one\n", messages: normal, removed: removal, stderr: []string{"WARNING: w\n"}},
		{name: "warning with -w", args: []string{"-w"}, config: fakemodule.Config{Begin: oob("WARNING: careful\n")}, stdout: "one\n", messages: normal, removed: removal},
		{name: "overflow text with its NUL", config: fakemodule.Config{Begin: oob("ERROR: too many pending (error) messages\x00")}, status: 1, stdout: "one\n", messages: normal, removed: removal, stderr: []string{"ERROR: too many pending (error) messages"}},
		{name: "neither warning nor error", config: fakemodule.Config{Begin: oob("just text\n")}, stdout: "one\n", messages: normal, removed: removal, stderr: []string{"just text\n"}},
		{name: "unknown message", config: fakemodule.Config{Begin: func(m *fakemodule.Module) { m.Send(70, nil); oneAndExit(m) }}, stdout: "one\n", messages: normal, removed: removal, stderr: []string{"WARNING: Ignored message of type"}},
		{name: "interrupt", config: fakemodule.Config{Begin: one}, during: func(r *relayRun) {
			r.until("output", 3*time.Second, func() bool { return r.stdout.String() == "one\n" })
			r.signal(syscall.SIGINT)
		}, stdout: "one\n", messages: normal, removed: removal},
		{name: "hang-up", config: fakemodule.Config{Begin: one}, during: func(r *relayRun) {
			r.until("output", 3*time.Second, func() bool { return r.stdout.String() == "one\n" })
			r.signal(syscall.SIGHUP)
		}, stdout: "one\n", messages: normal, removed: removal},
		{name: "three interrupts without an answer", config: fakemodule.Config{OnMessage: func(m *fakemodule.Module, msg fakemodule.Message) syscall.Errno {
			if msg.Type == fakemodule.EXIT {
				time.Sleep(3 * time.Second)
			}
			return 0
		}}, during: func(r *relayRun) {
			r.until("START", 3*time.Second, func() bool { return r.module.Seen(fakemodule.START) })
			for range 3 {
				time.Sleep(100 * time.Millisecond)
				r.signal(syscall.SIGTERM)
			}
		}, messages: normal, removed: removal},
		{name: "detach by SIGQUIT", config: fakemodule.Config{Begin: one}, during: func(r *relayRun) {
			r.until("output", 3*time.Second, func() bool { return r.stdout.String() == "one\n" })
			r.signal(syscall.SIGQUIT)
		}, stdout: "one\n", messages: "BULK=EINVAL START", stderr: []string{"\nDisconnecting from systemtap module.\nTo reconnect, type \"staprun -A fake\"\n"}},
		{name: "detach by -L", args: []string{"-L"}, config: fakemodule.Config{Begin: one}, messages: "START", stderr: []string{"\nDisconnecting from systemtap module.\nTo reconnect, type \"staprun -A fake\"\n"}},
		{name: "-L with an error at start", args: []string{"-L"}, config: fakemodule.Config{StartResult: -22}, status: 1, messages: "START", removed: removal},
		{name: "attach", args: []string{"-A"}, config: fakemodule.Config{Running: true}, during: func(r *relayRun) {
			r.module.Record(0, 700, []byte("seven\n"))
			r.module.Record(0, 701, []byte("eight\n"))
			r.until("output", 3*time.Second, func() bool { return r.stdout.String() == "seven\neight\n" })
			r.signal(syscall.SIGINT)
		}, stdout: "seven\neight\n", messages: "BULK=EINVAL EXIT", removed: removal},
		{name: "attach and script exit", args: []string{"-A"}, config: fakemodule.Config{Running: true}, during: func(r *relayRun) {
			r.module.Record(0, 9, []byte("x"))
			r.module.Send(fakemodule.REQUEST_EXIT, nil)
		}, stdout: "x", messages: "BULK=EINVAL EXIT", removed: removal},
		{name: "target", args: []string{"-c", "echo from target"}, config: fakemodule.Config{}, stdout: "from target\n", messages: normal, removed: removal},
		{name: "target fails", args: []string{"-c", "sh -c 'exit 3'"}, config: fakemodule.Config{}, status: 1, messages: normal, removed: removal, stderr: []string{"WARNING: Child process exited with status 3\n"}},
		{name: "target is killed", args: []string{"-c", "sh -c 'kill -9 $$'"}, config: fakemodule.Config{}, status: 1, messages: normal, removed: removal, stderr: []string{"WARNING: Child process exited with signal 9 (Killed)\n"}},
		{name: "target not started because of an error", args: []string{"-c", "echo never"}, config: fakemodule.Config{StartResult: -1}, status: 1, messages: "BULK=EINVAL START", removed: removal},
		{name: "no such target", args: []string{"-c", "/proc/nonexistent/program"}, config: fakemodule.Config{}, status: 1, messages: normal, removed: removal, stderr: []string{"/proc/nonexistent/program: No such file or directory\n", "WARNING: Child process exited with status 1\n"}},
		{name: "system()", config: fakemodule.Config{Begin: func(m *fakemodule.Module) {
			m.Send(fakemodule.SYSTEM, []byte("echo helper\x00"))
		}}, during: func(r *relayRun) {
			r.until("output", 3*time.Second, func() bool { return r.stdout.String() == "helper\n" })
			r.module.Send(fakemodule.REQUEST_EXIT, nil)
		}, stdout: "helper\n", messages: normal, removed: removal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			few(t)
			generations(t, func(t *testing.T, g int) {
				tt.config.Generation = g
				r := relayCommand(t, fake(t, tt.config), append(tt.args, "fake")...).start()
				if tt.during != nil {
					tt.during(r)
				}
				r.check(tt.status, tt.stdout, tt.messages, tt.stderr...)
				r.removed(tt.removed)
				t.Logf("generation %d: %s; status and output as wanted: %v", g, r.messages(), !t.Failed())
			})
		})
	}
}

// START carries the target of -x, or the pid of the command of -c.
func TestRelayTarget(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		target := func(m *fakemodule.Module) int {
			for _, e := range m.Log() {
				if e.Type == fakemodule.START {
					return int(e.Payload[0]) | int(e.Payload[1])<<8 | int(e.Payload[2])<<16
				}
			}
			return -1
		}
		m := fake(t, fakemodule.Config{Generation: g, Begin: oneAndExit})
		relayCommand(t, m, "-x", "1234", "fake").start().check(0, "one\n", normal)
		if got := target(m); got != 1234 {
			t.Errorf("-x 1234: START has %d", got)
		}
		m = fake(t, fakemodule.Config{Generation: g})
		r := relayCommand(t, m, "-c", "sh -c 'echo $$'", "fake").start()
		r.wait()
		if got := r.stdout.String(); got != strconv.Itoa(target(m))+"\n" {
			t.Errorf("the target says it is %q, START has %d", got, target(m))
		}
	})
}

// Check 2: what a module does not know of -N does not end the run.
func relayNamespaces(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		for _, tt := range []struct {
			pid, mount bool
			want       string
		}{
			{false, false, "BULK=EINVAL NAMESPACES_PID=EINVAL MNT_NS_FDS=EINVAL START EXIT"},
			{true, false, "BULK=EINVAL NAMESPACES_PID MNT_NS_FDS=EINVAL START EXIT"},
			{true, true, "BULK=EINVAL NAMESPACES_PID MNT_NS_FDS START EXIT"},
		} {
			if tt.mount && g == 4 {
				continue
			}
			m := fake(t, fakemodule.Config{Generation: g, Namespaces: tt.pid, MountNamespaces: tt.mount, Begin: oneAndExit})
			r := relayCommand(t, m, "-N", strconv.Itoa(os.Getpid()), "fake").start()
			r.wait()
			if got := r.messages(); r.stdout.String() != "one\n" || got != tt.want && got != strings.Replace(tt.want, " MNT_NS_FDS=EINVAL", "", 1) {
				t.Errorf("pid %v, mount %v: %s; want %q", tt.pid, tt.mount, r.state(), tt.want)
			}
			r.removed(removal)
		}
	})
}

// Check 3: a START that blocks. Signals are honoured after it, and the target
// waits for it.
func TestRelayStartBlocks(t *testing.T) {
	const delay = 5 * time.Second
	t.Parallel()
	generations(t, func(t *testing.T, g int) {
		t.Parallel()
		t.Run("signal", func(t *testing.T) {
			few(t)
			m := fake(t, fakemodule.Config{Generation: g, StartDelay: delay, Begin: one})
			r := relayCommand(t, m, "fake").start()
			r.until("START", 3*time.Second, func() bool { return strings.HasSuffix(r.messages(), "START") })
			r.signal(syscall.SIGINT)
			r.check(0, "one\n", normal)
			r.removed(removal)
		})
		t.Run("target", func(t *testing.T) {
			few(t)
			m := fake(t, fakemodule.Config{Generation: g, StartDelay: delay})
			before := time.Now()
			r := relayCommand(t, m, "-c", "echo released", "fake").start()
			r.check(0, "released\n", normal)
			if d := r.at.Sub(before); d < delay {
				t.Errorf("the run took %v", d)
			}
		})
		// Upstream loses the EXIT and never ends (10.3).
		t.Run("target dies before START is answered", func(t *testing.T) {
			few(t)
			m := fake(t, fakemodule.Config{Generation: g, StartDelay: delay})
			r := relayCommand(t, m, "-c", "sleep 1000", "fake").start()
			r.until("START", 3*time.Second, func() bool { return strings.HasSuffix(r.messages(), "START") })
			start := m.Log()[len(m.Log())-1]
			syscall.Kill(int(start.Payload[0])|int(start.Payload[1])<<8|int(start.Payload[2])<<16, syscall.SIGKILL)
			r.check(1, "", normal, "WARNING: Child process exited with signal 9 (Killed)\n")
		})
	})
}

// Check 4: all data that is there when EXIT is answered appears, in order, and
// nothing waits for a fixed time.
func TestRelayDrains(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		const records = 20000
		var want strings.Builder
		for i := range records {
			fmt.Fprintf(&want, "line %d\n", i+1)
		}
		var answered time.Time
		m := fake(t, cpus(fakemodule.Config{Generation: g, Begin: func(m *fakemodule.Module) { m.Send(fakemodule.REQUEST_EXIT, nil) }, End: func(m *fakemodule.Module) {
			var chunk [2][]byte
			for i := range records {
				line := fmt.Appendf(nil, "line %d\n", i+1)
				cpu := i / 7 % 2
				chunk[cpu] = append(append(chunk[cpu], m.Header(uint32(i+1), uint32(len(line)))...), line...)
			}
			m.Raw(1, chunk[1])
			m.Raw(0, chunk[0])
			answered = time.Now()
		}}))
		r := relayCommand(t, m, "-T", "3000", "fake").start()
		r.check(0, want.String(), normal)
		if d := r.at.Sub(answered); d > 1500*time.Millisecond {
			t.Errorf("stapio ended %v after the data was there (upstream waits for twice -T)", d)
		} else {
			t.Logf("%d records in order, end %v after EXIT", records, d.Round(time.Millisecond))
		}
	})
}

// Check 5: a gap delays output about two seconds and is counted once; what came
// before attaching is not counted.
func relayGaps(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		few(t)
		m := fake(t, cpus(fakemodule.Config{Generation: g, Begin: one}))
		r := relayCommand(t, m, "fake").start()
		r.until("first record", 3*time.Second, func() bool { return r.stdout.String() == "one\n" })
		before := time.Now()
		m.Record(0, 4, []byte("four\n"))
		r.until("record after the gap", 4*time.Second, func() bool { return r.stdout.String() == "one\nfour\n" })
		if d := time.Since(before); d < time.Second || d > 3*time.Second {
			t.Errorf("the record after the gap came after %v, want about 2 s", d)
		}
		m.Send(fakemodule.REQUEST_EXIT, nil)
		r.check(0, "one\nfour\n", normal, "WARNING: There were 2 lost messages, 0 lost bytes, and 0 unexpected sequences.\n")

		m = fake(t, fakemodule.Config{Generation: g, Running: true})
		m.Record(0, 0xfffffffe, []byte("a"))
		m.Record(0, 0xffffffff, []byte("b"))
		m.Record(0, 0, []byte("c"))
		m.Record(0, 1, []byte("d"))
		r = relayCommand(t, m, "-A", "fake").start()
		r.until("output", 3*time.Second, func() bool { return r.stdout.String() == "abcd" })
		m.Send(fakemodule.REQUEST_EXIT, nil)
		r.check(0, "abcd", "BULK=EINVAL EXIT")
	})
}

// Check 6: damage in a trace.
func relayDamage(t *testing.T) {
	record := func(m *fakemodule.Module, seq uint32, text string) []byte {
		return append(m.Header(seq, uint32(len(text))), text...)
	}
	for _, tt := range []struct {
		name   string
		fill   func(m *fakemodule.Module)
		stdout string
		lost   bool
		only   int
	}{
		{name: "header split", fill: func(m *fakemodule.Module) {
			for _, b := range record(m, 1, "one\n") {
				m.Raw(0, []byte{b})
			}
			m.Raw(0, record(m, 2, "two\n"))
		}, stdout: "one\ntwo\n"},
		{name: "garbage before a header", fill: func(m *fakemodule.Module) {
			m.Raw(0, []byte("garbage\xff\xf0"))
			m.Raw(0, record(m, 1, "one\n"))
			m.Raw(0, record(m, 2, "two\n"))
			m.Raw(0, record(m, 3, "three\n"))
		}, stdout: "one\ntwo\nthree\n", lost: true},
		{name: "garbage between records", fill: func(m *fakemodule.Module) {
			m.Raw(0, append(record(m, 1, "one\n"), "\xff\xfe\xfd"...))
			m.Raw(0, record(m, 2, "two\n"))
			m.Raw(0, record(m, 3, "three\n"))
		}, stdout: "one\ntwo\nthree\n", lost: true},
		{name: "zero padding", only: 5, fill: func(m *fakemodule.Module) {
			m.Raw(0, append(record(m, 1, "one\n"), make([]byte, 11)...))
			m.Raw(0, record(m, 2, "two\n"))
		}, stdout: "one\ntwo\n"},
		{name: "length 0", fill: func(m *fakemodule.Module) {
			m.Raw(0, record(m, 1, "one\n"))
			m.Raw(0, m.Header(2, 0))
			m.Raw(0, record(m, 2, "two\n"))
			m.Raw(0, record(m, 3, "three\n"))
		}, stdout: "one\ntwo\nthree\n", lost: true},
		{name: "length 131073", fill: func(m *fakemodule.Module) {
			m.Raw(0, record(m, 1, "one\n"))
			m.Raw(0, m.Header(2, 131073))
			m.Raw(0, record(m, 2, "two\n"))
			m.Raw(0, record(m, 3, "three\n"))
		}, stdout: "one\ntwo\nthree\n", lost: true},
		{name: "length 131072", fill: func(m *fakemodule.Module) {
			m.Raw(0, record(m, 1, strings.Repeat("x", 131072)))
			m.Raw(0, record(m, 2, "two\n"))
		}, stdout: strings.Repeat("x", 131072) + "two\n"},
		{name: "body cut at the end", fill: func(m *fakemodule.Module) {
			m.Raw(0, record(m, 1, "one\n"))
			m.Raw(0, record(m, 2, "two and more\n")[:len(m.Header(0, 0))+3])
		}, stdout: "one\ntwo", lost: true},
		{name: "header cut at the end", fill: func(m *fakemodule.Module) {
			m.Raw(0, record(m, 1, "one\n"))
			m.Raw(0, m.Header(2, 4)[:7])
		}, stdout: "one\n", lost: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			generations(t, func(t *testing.T, g int) {
				if tt.only != 0 && g != tt.only {
					return
				}
				r := relayCommand(t, fake(t, fakemodule.Config{Generation: g, Begin: func(m *fakemodule.Module) {
					tt.fill(m)
					m.Send(fakemodule.REQUEST_EXIT, nil)
				}}), "fake").start()
				var stderr []string
				if tt.lost {
					stderr = []string{"lost bytes, and"}
				}
				r.check(0, tt.stdout, normal, stderr...)
				t.Logf("%s", r.stderr.String())
			})
		})
	}
}

// Check 7: output that cannot be written ends the run in order, with one
// message.
func relayWriteErrors(t *testing.T) {
	stream := func(m *fakemodule.Module) {
		for i := range uint32(1000) {
			m.Record(0, i+1, []byte("a line\n"))
		}
	}
	generations(t, func(t *testing.T, g int) {
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		pr.Close()
		r := relayCommand(t, fake(t, fakemodule.Config{Generation: g, Begin: stream}), "fake")
		r.cmd.Stdout = pw
		r.start().check(1, "", normal, "ERROR: ", "Broken pipe")
		pw.Close()
		r.removed(removal)
		t.Logf("%s", r.stderr.String())

		r = relayCommand(t, fake(t, fakemodule.Config{Generation: g, Begin: stream}), "-o", "/dev/full", "fake").start()
		r.check(1, "", normal, "ERROR: ", "No space left on device")
		r.removed(removal)
		t.Logf("%s", r.stderr.String())
	})
}

// Files of -o, -S and bulk mode (7.6).
func TestRelayFiles(t *testing.T) {
	lines := func(m *fakemodule.Module) {
		m.Record(0, 1, []byte("one\n"))
		m.Record(1, 2, []byte("two\n"))
		m.Send(fakemodule.REQUEST_EXIT, nil)
	}
	generations(t, func(t *testing.T, g int) {
		m := fake(t, cpus(fakemodule.Config{Generation: g, Begin: lines}))
		r := relayCommand(t, m, "-o", "out", "fake").start()
		r.check(0, "", normal)
		if got, want := r.files(), `out="one\ntwo\n"`; got != want {
			t.Errorf("-o: %s, want %s", got, want)
		}

		head := func(seq uint32) string { return string(m.Header(seq, 4)) }
		for _, tt := range []struct {
			args []string
			want string
		}{
			{nil, fmt.Sprintf("stpd_cpu0=%q stpd_cpu1=%q", head(1)+"one\n", head(2)+"two\n")},
			{[]string{"-o", "out"}, fmt.Sprintf("out_0=%q out_1=%q", head(1)+"one\n", head(2)+"two\n")},
			{[]string{"-o", "out", "-S", "1"}, fmt.Sprintf("out_cpu0.0=%q out_cpu1.0=%q", head(1)+"one\n", head(2)+"two\n")},
		} {
			r := relayCommand(t, fake(t, cpus(fakemodule.Config{Generation: g, Bulk: true, Begin: lines})), append(tt.args, "fake")...).start()
			r.check(0, "", "BULK START EXIT")
			if got := r.files(); got != tt.want {
				t.Errorf("bulk %q: %s, want %s", tt.args, got, tt.want)
			}
			// What stap-merge makes of it.
			merge := exec.Command(stage.programs.Applet("stap-merge"), globs(t, r.dir, "*[0-9]*")...)
			if out, err := merge.Output(); string(out) != "one\ntwo\n" || err != nil {
				t.Errorf("bulk %q: merged: %q, %v", tt.args, out, err)
			}
		}

		// Three files of a megabyte, the newest two kept.
		m = fake(t, fakemodule.Config{Generation: g, Begin: func(m *fakemodule.Module) {
			for i := range uint32(40) {
				m.Record(0, i+1, bytes.Repeat([]byte{'a' + byte(i)}, 1<<16))
			}
			m.Send(fakemodule.REQUEST_EXIT, nil)
		}})
		r = relayCommand(t, m, "-o", "big", "-S", "1,2", "fake").start()
		r.check(0, "", normal)
		var names []string
		for _, f := range globs(t, r.dir, "big*") {
			names = append(names, filepath.Base(f))
		}
		if !slices.Equal(names, []string{"big.1", "big.2"}) {
			t.Errorf("-S 1,2: %q", names)
		}

		// SIGUSR2 switches files.
		m = fake(t, fakemodule.Config{Generation: g, Begin: one})
		r = relayCommand(t, m, "-o", "turn", "fake").start()
		r.until("first file", 3*time.Second, func() bool { return r.files() == `turn="one\n"` })
		r.signal(syscall.SIGUSR2)
		time.Sleep(300 * time.Millisecond)
		m.Record(0, 2, []byte("two\n"))
		m.Send(fakemodule.REQUEST_EXIT, nil)
		r.check(0, "", normal)
		if got, want := r.files(), `turn="one\n" turn.1="two\n"`; got != want {
			t.Errorf("SIGUSR2: %s, want %s", got, want)
		}
	})
}

func globs(t *testing.T, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// -i: standard input goes to the script's file.
func TestRelayStdin(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		var in buffer
		m := fake(t, fakemodule.Config{Generation: g, Begin: one, Files: map[string]fakemodule.File{"__stdin": {Write: func(b []byte) { in.Write(b) }}}})
		r := relayCommand(t, m, "-i", "fake")
		r.cmd.Stdin = strings.NewReader("to the script\n")
		r.start()
		r.until("input", 3*time.Second, func() bool { return in.String() == "to the script\n" })
		m.Send(fakemodule.REQUEST_EXIT, nil)
		r.check(0, "one\n", normal)
	})
}

// A stapio that was killed leaves a module another one can attach to.
func TestRelayKilled(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		m := fake(t, fakemodule.Config{Generation: g, Begin: one})
		r := relayCommand(t, m, "fake").start()
		r.until("output", 3*time.Second, func() bool { return r.stdout.String() == "one\n" })
		second := relayCommand(t, m, "-A", "fake").start()
		second.check(1, "", "BULK=EINVAL START", "ERROR: Cannot attach to module fake control channel; not running?\n", "ERROR: Failed to initialize control channel.")
		r.signal(syscall.SIGKILL)
		if s := r.wait(); s != 137 {
			t.Errorf("status %d", s)
		}
		r.until("release", time.Second, func() bool { return !m.Attached() })
		m.Record(0, 2, []byte("two\n"))
		r = relayCommand(t, m, "-A", "fake").start()
		r.until("output", 3*time.Second, func() bool { return r.stdout.String() == "two\n" })
		m.Send(fakemodule.REQUEST_EXIT, nil)
		r.check(0, "two\n", "BULK=EINVAL START BULK=EINVAL EXIT")
		r.removed(removal)
	})
}

// Check 12: the daemon. Its pid line is readable, it is silent, in a session of
// its own, in the root directory, and ends like any other.
func TestRelayDaemon(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		m := fake(t, fakemodule.Config{Generation: g, Begin: one})
		r := relayCommand(t, m, "-D", "-o", "out", "fake").start()
		if s := r.wait(); s != 0 {
			t.Fatalf("status %d; %s", s, r.state())
		}
		r.until("pid line", 3*time.Second, func() bool { return strings.HasSuffix(r.stdout.String(), "\n") })
		pid, err := strconv.Atoi(strings.TrimSpace(r.stdout.String()))
		if err != nil || pid == r.cmd.Process.Pid {
			t.Fatalf("pid line %q of process %d", r.stdout.String(), r.cmd.Process.Pid)
		}
		r.until("output", 3*time.Second, func() bool { return r.files() == `out="one\n"` })
		if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); dir != "/" || err != nil {
			t.Errorf("working directory %q, %v", dir, err)
		}
		stat := strings.Fields(string(read(t, fmt.Sprintf("/proc/%d/stat", pid))))
		if session := stat[5]; session == stageSession() {
			t.Errorf("session %s is the caller's", session)
		}
		for fd := range 3 {
			if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err == nil && to != "/dev/null" {
				t.Errorf("descriptor %d is %q", fd, to)
			}
		}
		m.Send(fakemodule.OOB_DATA, []byte("WARNING: for the log\n"))
		syscall.Kill(pid, syscall.SIGTERM)
		r.until("removal", 5*time.Second, func() bool { b, _ := os.ReadFile(r.calls); return len(b) > 0 })
		r.removed(removal)
		if got := r.messages(); got != normal {
			t.Errorf("messages %q, want %q", got, normal)
		}
		if r.stderr.String() != "" {
			t.Errorf("stderr %q", r.stderr.String())
		}
		r.until("end of the daemon", 3*time.Second, func() bool { return syscall.Kill(pid, 0) != nil })
	})
}

// -D with -A: the module is there already, the background takes it over.
func TestRelayDaemonAttaches(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		m := fake(t, fakemodule.Config{Generation: g, Running: true})
		r := relayCommand(t, m, "-A", "-D", "-o", "out", "fake").start()
		if s := r.wait(); s != 0 {
			t.Fatalf("status %d; %s", s, r.state())
		}
		r.until("pid line", 3*time.Second, func() bool { return strings.HasSuffix(r.stdout.String(), "\n") })
		pid, err := strconv.Atoi(strings.TrimSpace(r.stdout.String()))
		if err != nil || pid == r.cmd.Process.Pid {
			t.Fatalf("pid line %q of process %d", r.stdout.String(), r.cmd.Process.Pid)
		}
		m.Record(0, 5, []byte("five\n"))
		r.until("output", 3*time.Second, func() bool { return r.files() == `out="five\n"` })
		syscall.Kill(pid, syscall.SIGTERM)
		r.until("removal", 5*time.Second, func() bool { b, _ := os.ReadFile(r.calls); return len(b) > 0 })
		r.removed(removal)
		if got := r.messages(); got != "BULK=EINVAL EXIT" {
			t.Errorf("messages %q", got)
		}
		r.until("end of the daemon", 3*time.Second, func() bool { return syscall.Kill(pid, 0) != nil })
	})
}

// A script that starts commands without end gets an error, not the end of stapio.
func TestRelayManyCommands(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // all that wait for a writer go on, and end
		f, err := os.OpenFile(fifo, os.O_RDWR, 0)
		os.Remove(fifo)
		if err != nil {
			t.Error(err)
			return
		}
		f.Close()
	})
	command := "exec cat " + fifo + " >/dev/null 2>&1"
	m := fake(t, fakemodule.Config{Generation: 5, Begin: func(m *fakemodule.Module) {
		for range 260 {
			m.Send(fakemodule.SYSTEM, []byte(command+"\x00"))
		}
		oneAndExit(m)
	}})
	r := relayCommand(t, m, "fake").start()
	r.check(1, "one\n", normal, "ERROR: 256 commands of the script are running; not run: system(\""+command+"\")\n")
}

// The module's owner need not be root; others, and the owner of another module,
// are refused.
func TestRelayOwner(t *testing.T) {
	const owner = 65534
	generations(t, func(t *testing.T, g int) {
		for _, uid := range []uint32{owner, owner - 1} {
			m := fake(t, fakemodule.Config{Generation: g, UID: owner, GID: owner, Begin: oneAndExit})
			r := relayCommand(t, m, "fake")
			for dir, mode := range map[string]os.FileMode{r.dir: 0o777, filepath.Dir(r.dir): 0o755} {
				if err := os.Chmod(dir, mode); err != nil {
					t.Fatal(err)
				}
			}
			r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			r.start()
			if uid != owner {
				r.check(1, "", "", "ERROR: Cannot attach to module fake control channel; not running?\n", "permission denied")
				r.removed("")
				continue
			}
			r.check(0, "one\n", normal)
			r.removed(removal)
			for _, e := range m.Log() {
				if e.UID != owner {
					t.Errorf("%v was written by uid %d", e, e.UID)
				}
			}
		}
	})
}

// A reader that does not read: memory stays bounded (upstream's 5.x grows
// without limit, 10.3), and all the output arrives when it does.
func TestRelayBlockedOutput(t *testing.T) {
	const records, size = 1500, 1 << 15 // 48 MiB
	generations(t, func(t *testing.T, g int) {
		m := fake(t, cpus(fakemodule.Config{Generation: g, Begin: func(m *fakemodule.Module) {
			for i := range uint32(records) {
				m.Record(int(i%2), i+1, bytes.Repeat([]byte{'a' + byte(i%26)}, size))
			}
			m.Send(fakemodule.REQUEST_EXIT, nil)
		}}))
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer pr.Close()
		r := relayCommand(t, m, "fake")
		r.cmd.Stdout = pw
		r.start()
		pw.Close()
		time.Sleep(1500 * time.Millisecond)
		peak := ""
		for line := range strings.Lines(string(read(t, fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid)))) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				peak = strings.TrimSpace(v)
			}
		}
		kb, err := strconv.Atoi(strings.TrimSuffix(peak, " kB"))
		if err != nil || kb > 40<<10 {
			t.Errorf("peak memory %q with a blocked output, want at most 40 MiB", peak)
		}
		t.Logf("peak %s, %d bytes not read from the module", peak, m.Unread())
		out, err := io.ReadAll(pr)
		if err != nil || len(out) != records*size {
			t.Fatalf("%d bytes, %v; want %d", len(out), err, records*size)
		}
		for i := range records {
			if out[i*size] != 'a'+byte(i%26) {
				t.Fatalf("record %d is out of order", i+1)
			}
		}
		if s := r.wait(); s != 0 {
			t.Errorf("status %d; %s", s, r.stderr.String())
		}
	})
}

// Detaching from a module that could not start was reported as success.
func TestDefect_10_3_12_DetachingWaitsForTheStart(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		m := fake(t, fakemodule.Config{Generation: g, StartResult: -22})
		r := relayCommand(t, m, "-L", "fake").start()
		r.check(1, "", "START")
		if strings.Contains(r.stderr.String(), "Disconnecting") {
			t.Errorf("stderr %q", r.stderr.String())
		}
	})
}

// While a record is missing and a queue is full, stapio waits: reader and writer
// that woke each other kept the processor from the reader that had the record.
func TestRelayWaitsQuietly(t *testing.T) {
	const records, size = 64, 1 << 15 // twice what a queue holds
	generations(t, func(t *testing.T, g int) {
		m := fake(t, cpus(fakemodule.Config{Generation: g, Begin: func(m *fakemodule.Module) {
			for i := range uint32(records) {
				m.Record(0, i+2, bytes.Repeat([]byte{'b'}, size))
			}
		}}))
		r := relayCommand(t, m, "fake").start()
		time.Sleep(1500 * time.Millisecond)
		m.Record(1, 1, []byte("a"))
		r.until("output", 5*time.Second, func() bool { return len(r.stdout.String()) == 1+records*size })
		m.Send(fakemodule.REQUEST_EXIT, nil)
		if s := r.wait(); s != 0 || !strings.HasPrefix(r.stdout.String(), "ab") {
			t.Errorf("status %d, output begins with %.10q", s, r.stdout.String())
		}
		if used := r.cmd.ProcessState.UserTime() + r.cmd.ProcessState.SystemTime(); used > 400*time.Millisecond {
			t.Errorf("%v of the processor, for 2 MiB and a wait of 1.5 s", used)
		}
	})
}

// Defects of upstream in switching files (10.3): -S 0,N with SIGUSR2 crashes, and
// -o /dev/null with -S removes the device.
func TestRelaySwitching(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		m := fake(t, fakemodule.Config{Generation: g, Begin: one})
		r := relayCommand(t, m, "-o", "out", "-S", "0,2", "fake").start()
		r.until("START", 3*time.Second, func() bool { return m.Seen(fakemodule.START) && m.Unread() == 0 })
		for i := range uint32(4) {
			r.signal(syscall.SIGUSR2)
			time.Sleep(150 * time.Millisecond)
			m.Record(0, i+2, []byte("x"))
			r.until("reading", 3*time.Second, func() bool { return m.Unread() == 0 })
			time.Sleep(50 * time.Millisecond)
		}
		m.Send(fakemodule.REQUEST_EXIT, nil)
		r.check(0, "", normal)
		if got := len(globs(t, r.dir, "out*")); got != 2 {
			t.Errorf("%d files, want the newest 2: %s", got, r.files())
		}

		m = fake(t, fakemodule.Config{Generation: g, Begin: func(m *fakemodule.Module) {
			for i := range uint32(64) {
				m.Record(0, i+1, make([]byte, 1<<16))
			}
			m.Send(fakemodule.REQUEST_EXIT, nil)
		}})
		relayCommand(t, m, "-o", "/dev/null", "-S", "1,1", "fake").start().check(0, "", normal)
		if fi, err := os.Stat("/dev/null"); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
			t.Fatalf("/dev/null: %v, %v", fi, err)
		}
	})
}

func stageSession() string {
	b, _ := os.ReadFile("/proc/self/stat")
	if f := strings.Fields(string(b)); len(f) > 5 {
		return f[5]
	}
	return ""
}

// -M without a terminal passes the output through (9.1).
func TestRelayMonitorPassesThrough(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		m := fake(t, fakemodule.Config{Generation: g, Begin: oneAndExit, Files: map[string]fakemodule.File{
			"monitor_status": {Read: func() []byte { return []byte(`{"uptime": "00:00:01"}`) }}, "monitor_control": {Write: func([]byte) {}},
		}})
		relayCommand(t, m, "-M", "1", "fake").start().check(0, "one\n", normal)
	})
}
