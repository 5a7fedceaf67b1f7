package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/e2e/fakemodule"
	"stapbox/e2e/lab"
)

// terminal is a pseudo terminal of 80x24 and what was written to it.
type terminal struct {
	master *os.File
	slave  *os.File
	before unix.Termios
	text   buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	x := &terminal{master: os.NewFile(uintptr(master), "/dev/ptmx")}
	t.Cleanup(func() { x.master.Close() })
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	if x.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.slave.Close() })
	x.before = x.settings(t)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := x.master.Read(buf)
			if err != nil || n <= 0 {
				return
			}
			x.text.Write(buf[:n])
		}
	}()
	return x
}

func (x *terminal) settings(t *testing.T) unix.Termios {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(x.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *s
}

func (x *terminal) press(keys string) { x.master.WriteString(keys) }

// The sequences that begin and end a view.
const (
	viewBegins = "\x1b[?1049h"
	viewEnds   = "\x1b[?1049l"
)

// monitorRun is stapio -M 1 in a terminal, with a fake module that has the files
// of the monitor.
type monitorRun struct {
	*relayRun
	x     *terminal
	mu    sync.Mutex
	words []string // written to monitor_control
}

func (m *monitorRun) sent() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.words, " ")
}

// inTerminal starts stapio in a terminal. The module exits at the word quit; with
// change its configuration is another.
func inTerminal(t *testing.T, g int, change func(*fakemodule.Config), args ...string) *monitorRun {
	t.Helper()
	r := &monitorRun{x: newTerminal(t)}
	var m *fakemodule.Module
	c := fakemodule.Config{Generation: g, Begin: one, Files: map[string]fakemodule.File{
		"monitor_status": {Read: func() []byte {
			return []byte(`{"uptime": "00:00:07", "uid": "1", "memory": "5kb", "module_name": "fake", "globals": {"n": 42}, "probe_list": [{"index": 0, "state": "on", "hits": 3, "min": 1, "avg": 2, "max": 3, "name": "timer.s(1)"}, ]}`)
		}},
		"monitor_control": {Write: func(b []byte) {
			r.mu.Lock()
			r.words = append(r.words, string(b))
			r.mu.Unlock()
			if string(b) == "quit" {
				m.Send(fakemodule.REQUEST_EXIT, nil)
			}
		}},
	}}
	if change != nil {
		change(&c)
	}
	m = fake(t, c)
	r.relayRun = relayCommand(t, m, append(args, "-M", "1", "fake")...)
	r.cmd.Env = append(r.cmd.Env, "TERM=linux")
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = r.x.slave, r.x.slave, r.x.slave
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	r.start()
	return r
}

// shows waits for a text on the terminal.
func (m *monitorRun) shows(text string) {
	m.t.Helper()
	m.until(fmt.Sprintf("%q on the terminal", text), 115*time.Second, func() bool { return strings.Contains(m.x.text.String(), text) })
}

// ends waits for the end and checks that the terminal was given back, and what
// is on it then.
func (m *monitorRun) ends(status int, messages, after string) {
	m.t.Helper()
	if got := m.wait(); got != status {
		m.t.Errorf("status %d, want %d; %s", got, status, m.x.text.String())
	}
	m.givenBack()
	m.shows(viewEnds + strings.ReplaceAll(after, "\n", "\r\n"))
	if _, rest, _ := strings.Cut(m.x.text.String(), viewEnds); strings.ReplaceAll(rest, "\r\n", "\n") != after {
		m.t.Errorf("after the view: %q, want %q", rest, after)
	}
	if got := m.messages(); messages != "" && got != messages {
		m.t.Errorf("messages %q, want %q", got, messages)
	}
}

func (m *monitorRun) givenBack() {
	m.t.Helper()
	m.shows(viewEnds)
	if after := m.x.settings(m.t); after != m.x.before {
		m.t.Errorf("the terminal's settings are %+v, were %+v", after, m.x.before)
	}
	if n := strings.Count(m.x.text.String(), viewBegins); n != 1 {
		m.t.Errorf("%d views", n)
	}
}

// The view of -M: output and messages are in it, also those of START, keys become
// words, and it stays after the end until q.
func TestMonitorView(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		r := inTerminal(t, g, func(c *fakemodule.Config) {
			c.Begin = func(m *fakemodule.Module) {
				m.Send(fakemodule.OOB_DATA, []byte("WARNING: early\n"))
				one(m)
			}
			c.End = func(m *fakemodule.Module) { m.Record(0, 3, []byte("at the end\n")) }
		}, "-C", "never", "-c", "sh -c 'echo from target; sleep 30'")
		r.shows("module: fake")
		for _, text := range []string{"WARNING: early", "one", "from target", "timer.s(1)", "n: 42"} {
			r.shows(text)
		}
		r.module.Record(0, 2, []byte("an escape \x1b]0;title\x07\n"))
		r.shows("an escape ^[]0;title^G")
		r.x.press("pt0\rrc")
		r.until("words", 15*time.Second, func() bool { return r.sent() == "pause 0 resume clear" })
		r.module.Send(fakemodule.OOB_DATA, []byte("ERROR: late\n"))
		r.shows("ERROR: late")
		r.x.press("q")
		r.shows("at the end")
		r.shows("EXITED: press q again to quit")
		select {
		case <-r.ended:
			t.Fatal("the view did not stay")
		case <-time.After(200 * time.Millisecond):
		}
		r.removed("-d -C never fake") // the module does not wait for the user
		r.x.press("q")
		r.ends(1, normal, "ERROR: late\n") // what became of it can be read without the view
		if strings.Contains(r.x.text.String(), "\x1b]0;") {
			t.Error("an escape sequence of the script reached the terminal")
		}
	})
}

// Any signal ends the view at once, and the script in order; SIGQUIT leaves it
// running.
func TestMonitorSignals(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		for _, tt := range []struct {
			sig             syscall.Signal
			messages, after string
			removed         string
		}{
			{syscall.SIGINT, normal, "bye\n", removal},
			{syscall.SIGTERM, normal, "bye\n", removal},
			{syscall.SIGHUP, normal, "bye\n", removal},
			{syscall.SIGQUIT, "BULK=EINVAL START", "\nDisconnecting from systemtap module.\nTo reconnect, type \"staprun -A fake\"\n", ""},
		} {
			t.Run(tt.sig.String(), func(t *testing.T) {
				r := inTerminal(t, g, func(c *fakemodule.Config) {
					c.End = func(m *fakemodule.Module) { m.Record(0, 2, []byte("bye\n")) }
				})
				r.shows("one")
				r.signal(tt.sig)
				r.ends(0, tt.messages, tt.after)
				r.removed(tt.removed)
			})
		}
		t.Run("after the end", func(t *testing.T) {
			r := inTerminal(t, g, func(c *fakemodule.Config) { c.Begin = oneAndExit })
			r.shows("EXITED")
			// EXITED may be shown a moment before staprun -d is called.
			for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				if b, _ := os.ReadFile(r.calls); len(b) > 0 {
					break
				}
			}
			r.removed(removal)
			r.signal(syscall.SIGTERM)
			r.ends(0, normal, "")
		})
		t.Run("a module that does not answer", func(t *testing.T) {
			r := inTerminal(t, g, func(c *fakemodule.Config) {
				c.OnMessage = func(_ *fakemodule.Module, m fakemodule.Message) syscall.Errno {
					if m.Type == fakemodule.EXIT {
						return syscall.EINVAL
					}
					return 0
				}
			})
			r.shows("one")
			r.signal(syscall.SIGINT)
			r.ends(0, "BULK=EINVAL START EXIT=EINVAL", "")
			r.removed(removal)
		})
	})
}

// However stapio dies, the terminal is given back.
func TestMonitorTerminalIsGivenBack(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGABRT, syscall.SIGSEGV} {
			t.Run(sig.String(), func(t *testing.T) {
				r := inTerminal(t, g, nil)
				r.shows("module: fake")
				r.signal(sig) // a panic ends it as SIGABRT does: nothing of it runs any more
				r.wait()
				r.givenBack()
			})
		}
		t.Run("the module vanishes", func(t *testing.T) {
			r := inTerminal(t, g, nil, "-C", "never")
			r.shows("module: fake")
			r.module.Close()
			r.wait()
			r.givenBack()
			r.shows(viewEnds + "ERROR: Unexpected EOF in read")
		})
		t.Run("the terminal hangs up", func(t *testing.T) {
			r := inTerminal(t, g, nil)
			r.shows("module: fake")
			r.x.master.Close()
			r.wait()
			if got := r.messages(); got != normal {
				t.Errorf("messages %q, want %q", got, normal)
			}
			r.removed(removal)
		})
	})
}

// Where there is no view everything is as without -M.
func TestMonitorWithoutView(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		for _, tt := range []struct {
			name   string
			change func(*fakemodule.Config)
			args   []string
			env    string
			status int
			want   string
		}{
			{"no files", func(c *fakemodule.Config) { c.Begin, c.Files = oneAndExit, nil }, nil, "", 0,
				"WARNING: There is no monitor: module fake was not compiled with --monitor, or ends at once\n"},
			{"no files, and a command", func(c *fakemodule.Config) { c.Files = nil }, []string{"-c", "echo from target"}, "", 0, "from target\n"},
			{"error at start", func(c *fakemodule.Config) {
				c.StartResult = -22
				c.Begin = func(m *fakemodule.Module) { one(m); m.Send(fakemodule.OOB_DATA, []byte("ERROR: boo\n")) }
			}, nil, "", 1, "ERROR: boo\n"},
			{"-L", nil, []string{"-L"}, "", 0, "Disconnecting from systemtap module"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				r := inTerminal(t, g, tt.change, append([]string{"-C", "never"}, tt.args...)...)
				if got := r.wait(); got != tt.status {
					t.Errorf("status %d, want %d", got, tt.status)
				}
				r.shows(strings.ReplaceAll(tt.want, "\n", "\r\n"))
				if tt.name != "-L" {
					r.shows("one\r\n")
				}
				if strings.Contains(r.x.text.String(), viewBegins) || r.x.settings(t) != r.x.before {
					t.Errorf("there is a view in %q", r.x.text.String())
				}
			})
		}
		t.Run("-o", func(t *testing.T) {
			r := inTerminal(t, g, func(c *fakemodule.Config) { c.Begin = oneAndExit }, "-o", "out")
			if got := r.wait(); got != 0 || r.files() != `out="one\n"` || r.x.text.String() != "" {
				t.Errorf("status %d, files %s, terminal %q", got, r.files(), r.x.text.String())
			}
		})
		t.Run("TERM=dumb", func(t *testing.T) {
			x := newTerminal(t)
			m := fake(t, fakemodule.Config{Generation: g, Begin: oneAndExit, Files: map[string]fakemodule.File{"monitor_status": {Read: func() []byte { return []byte("{}") }}}})
			r := relayCommand(t, m, "-M", "1", "fake")
			r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = x.slave, x.slave, x.slave
			r.start()
			if got := r.wait(); got != 0 {
				t.Errorf("status %d", got)
			}
			r.until("output", time.Second, func() bool { return x.text.String() == "one\r\n" })
		})
	})
}

// -M with -A shows the module that is attached to; -i leaves the terminal's keys
// to the monitor, and other input goes to the script.
func TestMonitorTogetherWith(t *testing.T) {
	generations(t, func(t *testing.T, g int) {
		t.Run("-A", func(t *testing.T) {
			r := inTerminal(t, g, func(c *fakemodule.Config) { c.Running = true }, "-A")
			r.shows("module: fake")
			r.module.Record(0, 70, []byte("seventy\n"))
			r.shows("seventy")
			r.x.press("q")
			r.shows("EXITED")
			r.x.press("q")
			r.ends(0, "BULK=EINVAL EXIT", "")
		})
		t.Run("-i", func(t *testing.T) {
			r := inTerminal(t, g, nil, "-i")
			r.shows("The keys of this terminal are the monitor's")
			r.signal(syscall.SIGINT)
			r.ends(0, normal, "")
		})
		t.Run("-i from a pipe", func(t *testing.T) {
			var in buffer
			x := newTerminal(t)
			m := fake(t, fakemodule.Config{Generation: g, Begin: one, Files: map[string]fakemodule.File{
				"monitor_status": {Read: func() []byte { return []byte("{}") }}, "monitor_control": {Write: func([]byte) {}},
				"__stdin": {Write: func(b []byte) { in.Write(b) }},
			}})
			r := relayCommand(t, m, "-M", "1", "-i", "fake")
			r.cmd.Env = append(r.cmd.Env, "TERM=linux")
			r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = strings.NewReader("typed"), x.slave, x.slave
			r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
			r.start()
			r.until("input", 15*time.Second, func() bool { return in.String() == "typed" })
			r.until("view", 15*time.Second, func() bool { return strings.Contains(x.text.String(), "one") })
			r.module.Send(fakemodule.REQUEST_EXIT, nil)
			r.until("end", 15*time.Second, func() bool { return strings.Contains(x.text.String(), "EXITED") })
			x.press("q")
			if got := r.wait(); got != 0 {
				t.Errorf("status %d", got)
			}
		})
	})
}

// Real modules in a terminal of the guest: the probes and globals are shown, keys
// reach the module, and what is there at the end is seen.
func TestMonitorGuest(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		const script = `global n, text = "hello" probe begin { println("begin") } probe timer.ms(20) { n++ } probe end { printf("end of %s\n", text) }`
		const terminal = `mkfifo keys; /agent terminal staprun -M 1 m.ko <keys >screen & p=$!; exec 3>keys; `
		for _, tt := range []struct{ name, sh string }{
			{"keys", `await "grep -q 'module: ' screen" && await "grep -q 'text: hello' screen" && await "grep -q 'timer.ms(20)' screen"
printf t3 >&3; printf '\r' >&3; await "grep -q ' 3 *off' screen"; printf q >&3; await "grep -q EXITED screen"; await "grep -q 'end of hello' screen"; gone; printf q >&3; wait $p; echo $?`},
			{"^C", `await "grep -q 'text: hello' screen"; printf '\003' >&3; wait $p; echo $?; gone; grep -c 'end of hello' screen`},
			{"terminal is closed", `await "grep -q 'text: hello' screen"; kill -9 $p; gone; echo 0`},
		} {
			t.Run(tt.name, func(t *testing.T) {
				got := inGuest(t, s, script, terminal+tt.sh, "--monitor")
				wanted := map[string]string{"^C": "0\n1\n"}[tt.name]
				if wanted == "" {
					wanted = "0\n"
				}
				if string(got.Stdout) != wanted || got.Status != 0 {
					t.Errorf("status %d, stdout %q, stderr %q", got.Status, got.Stdout, got.Stderr)
					t.Logf("screen %q", s.do(t, lab.Shell(lab.Root, "tail -c 3000 /tmp/row/screen")).Stdout)
				}
			})
		}
		t.Run("the last status", func(t *testing.T) {
			got := inGuest(t, s, `global n = 5 probe timer.ms(500) { n = 7 println(n) exit() }`, `mkfifo keys; /agent terminal staprun -M 9 m.ko <keys >screen & p=$!; exec 3>keys
await "grep -q EXITED screen"; await "grep -q 'n: 7' screen"; printf q >&3; wait $p; echo $?`, "--monitor")
			want(t, got, 0, "0\n")
		})
		t.Run("stap --monitor", func(t *testing.T) {
			server := s.startServer(t)
			if err := server.WaitLog("is ready after", 90*time.Second); err != nil {
				t.Fatal(err)
			}
			address := fmt.Sprintf("--use-server=%s:%d", lab.HostAddress, server.Port)
			want(t, inGuest(t, s, "", `stap --trust-servers=ssl,no-prompt `+address+` 2>/dev/null
mkfifo keys; /agent terminal stap --monitor `+address+` -e '`+script+`' <keys >screen & p=$!; exec 3>keys
await "grep -q 'text: hello' screen"; printf q >&3; await "grep -q EXITED screen"; printf q >&3; wait $p; echo $?
rm -rf ~/.systemtap`), 0, "0\n")
		})
		t.Run("a module without it", func(t *testing.T) {
			got := inGuest(t, s, scriptHello, `/agent terminal staprun -C never -M 1 m.ko </dev/null | tr -d '\r' | sort`)
			want(t, got, 0, "WARNING: There is no monitor: module e2e_test_module_with_long_name was not compiled with --monitor, or ends at once\nbegin\nend\n")
		})
	})
}
