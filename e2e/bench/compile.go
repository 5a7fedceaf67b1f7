package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"stapbox/e2e/lab"
)

// side is one of the two that are compared.
type side struct {
	name        string
	stap, serve string // paths inside the tree
}

func (b *bench) sides() (theirs, ours side, err error) {
	serverd, err := b.peer.Find("stap-serverd")
	return side{"upstream", "stap", serverd}, side{"ours", "/mnt/bin/stap", "/mnt/bin/stap-serverd"}, err
}

func (s side) env() []string {
	return []string{"HOME=/mnt/" + s.name, "SYSTEMTAP_DIR=/mnt/" + s.name + "/.systemtap"}
}

// timed runs "$@" and prints the microseconds it took, without what entering
// the tree took.
const timed = `begin=$EPOCHREALTIME
"$@" >/mnt/log 2>&1 || { echo "status $?"; cat /mnt/log; exit 1; }
end=$EPOCHREALTIME
echo $(( ${end/./} - ${begin/./} ))`

// inTree runs a bash script in the tree, as root, with a side's home.
func (b *bench) inTree(ctx context.Context, s side, script string, args ...string) (string, error) {
	argv := append([]string{"bash", "-c", script, "bash"}, args...)
	out, err := b.peer.Command(ctx, lab.Inside{Net: b.net, Work: b.work, Env: s.env()}, argv...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s, %.200q: %w\n%s", s.name, args, err, out)
	}
	return string(out), nil
}

// time runs a command in the tree and gives its seconds.
func (b *bench) time(ctx context.Context, s side, argv ...string) (float64, error) {
	out, err := b.inTree(ctx, s, timed, argv...)
	if err != nil {
		return 0, err
	}
	us, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	return us / 1e6, err
}

// hello is the hello script with a number that makes it new.
func (b *bench) hello() []string {
	return []string{"-e", fmt.Sprintf(`probe begin { printf ("Hello %d\n"); exit (); }`, b.number())}
}

// large is a script of 200 lines: functions, an array, loops, sorting, strings
// and timers, as a long script has them.
func (b *bench) large() string {
	var s strings.Builder
	fmt.Fprintf(&s, "global seen, count, text\nfunction last(x, y) { return x ^ y }\n")
	for i := range 14 {
		fmt.Fprintf(&s, `function f%[1]d(x, y) {
  if (x > y + %[2]d) return x * %[3]d - y
  for (i = 0; i < x %% 7; i++) {
    count += i * y
    text = sprintf("%%d %%s", i, text)
  }
  return last(x, count) + strlen(text)
}
probe timer.ms(%[4]d) {
  seen[%[1]d] = f%[1]d(seen[%[1]d], %[1]d)
  foreach (k in seen- limit 5)
    printf("%%d %%d %%s\n", k, seen[k], execname())
  if (count > 1000000) exit()
}
`, i, b.number(), i+3, 100+i)
	}
	s.WriteString("probe end {\n  println(count)\n}\n")
	return s.String()
}

func (b *bench) p4(s side, args ...string) []string {
	return append([]string{s.stap, "-p4", "-r", b.peer.Kernel.Release}, args...)
}

// compile measures stap -p4 without server.
func (b *bench) compile(ctx context.Context) error {
	theirs, ours, err := b.sides()
	if err != nil {
		return err
	}
	warm := &row{what: "new script (hello), warm, stap -p4 without server", unit: seconds, most: 0.15, ratio: 0.1}
	for i := range runs + 1 {
		for _, x := range []struct {
			side
			to *[]float64
		}{{theirs, &warm.theirs}, {ours, &warm.ours}} {
			took, err := b.time(ctx, x.side, b.p4(x.side, b.hello()...)...)
			if err != nil {
				return err
			}
			if i > 0 { // the first one warms up
				*x.to = append(*x.to, took)
			}
		}
	}
	b.add(warm)
	large := &row{what: "new 200-line script, warm", unit: seconds, most: 0.3}
	for range runs {
		text := b.large()
		if lines := strings.Count(text, "\n"); lines < 200 {
			return fmt.Errorf("the large script has %d lines", lines)
		}
		if err := os.WriteFile(filepath.Join(b.work, "large.stp"), []byte(text), 0o644); err != nil {
			return err
		}
		took, err := b.time(ctx, ours, b.p4(ours, "/mnt/large.stp")...)
		if err != nil {
			return err
		}
		large.ours = append(large.ours, took)
	}
	b.add(large)
	return nil
}

// server is a running stap-serverd in the tree.
type server struct {
	address string
	cmd     *exec.Cmd
	stop    func()

	mu    sync.Mutex
	log   strings.Builder
	ended chan struct{}
}

func (s *server) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

func (s *server) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// waitLog waits for what the server logs.
func (s *server) waitLog(ctx context.Context, pattern *regexp.Regexp) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if m := pattern.FindStringSubmatch(s.text()); m != nil {
			return m, nil
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("the server ended:\n%s", s.text())
		case <-ctx.Done():
			return nil, fmt.Errorf("the server does not log %q: %w\n%s", pattern, ctx.Err(), s.text())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

var (
	listening  = regexp.MustCompile(`Using network address \[?[^\]]*\]?:(\d+)`)
	generating = regexp.MustCompile(`Generating a new certificate`)
	prepared   = regexp.MustCompile(`is ready after`)
)

// startServer starts a side's server as an unprivileged user, with the data of
// its earlier runs.
func (b *bench) startServer(ctx context.Context, x side) (*server, error) {
	home := filepath.Join(b.work, x.name+"-server")
	for _, d := range []string{home, filepath.Join(home, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
		if err := os.Chown(d, lab.ServerUID, lab.ServerUID); err != nil {
			return nil, err
		}
	}
	life, stop := context.WithCancel(ctx)
	s := &server{ended: make(chan struct{})}
	in := "/mnt/" + x.name + "-server"
	s.cmd = b.peer.Command(life, lab.Inside{
		Net: b.net, UID: lab.ServerUID, Work: b.work,
		Env: []string{"HOME=" + in, "TMPDIR=" + in + "/tmp", "USER=nobody", "SYSTEMTAP_DIR=" + in + "/.systemtap"},
	}, x.serve, "-r", b.peer.Kernel.Release)
	s.cmd.Stdout, s.cmd.Stderr = s, s
	if err := s.cmd.Start(); err != nil {
		stop()
		return nil, err
	}
	go func() {
		s.cmd.Wait()
		close(s.ended)
	}()
	s.stop = func() {
		stop()
		<-s.ended
	}
	m, err := s.waitLog(ctx, listening)
	if err != nil {
		s.stop()
		return nil, err
	}
	s.address = "127.0.0.1:" + m[1]
	return s, nil
}

// pid is the server's process, below those that made its namespaces.
func (s *server) pid() (int, error) {
	for pid := s.cmd.Process.Pid; ; {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return 0, err
		}
		if string(comm) == "stap-serverd\n" {
			return pid, nil
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
		if err != nil {
			return 0, err
		}
		if _, err := fmt.Sscan(string(children), &pid); err != nil {
			return 0, fmt.Errorf("finding the server below process %d: %w", s.cmd.Process.Pid, err)
		}
	}
}

// resident is the server's memory in bytes (proc(5), VmRSS).
func (s *server) resident() (float64, error) {
	pid, err := s.pid()
	if err != nil {
		return 0, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kb), "kB")), 64)
			return n * 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

// forget removes all that a server has made but its key and certificate.
func (b *bench) forget(x side) error {
	dir := filepath.Join(b.work, x.name+"-server", ".systemtap")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "ssl" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// serve measures compile servers.
func (b *bench) serve(ctx context.Context) error {
	theirs, ours, err := b.sides()
	if err != nil {
		return err
	}
	first := &row{what: "first compile on a new server (hello), from its start", unit: seconds, most: 4}
	warm := &row{what: "new script (hello), warm, over TLS", unit: seconds, most: 0.2}
	idle := &row{what: "server memory, idle", unit: mebibytes, most: 20 << 20}
	growth := &row{what: fmt.Sprintf("server memory, growth over %d new scripts (budget: 10,000 requests)", manyScript), unit: mebibytes, most: 10 << 20}
	for _, x := range []struct {
		side
		first, warm, idle *[]float64
	}{{theirs, &first.theirs, &warm.theirs, &idle.theirs}, {ours, &first.ours, &warm.ours, &idle.ours}} {
		if err := os.Mkdir(filepath.Join(b.work, x.name), 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		var s *server
		ask := func() (float64, error) {
			took, err := b.time(ctx, x.side, b.p4(x.side, append(b.hello(), "--use-server="+s.address)...)...)
			if err != nil {
				err = fmt.Errorf("%w\nthe server:\n%s", err, s.text())
			}
			return took, err
		}
		// A server makes its key and is trusted, once.
		if s, err = b.startServer(ctx, x.side); err != nil {
			return err
		}
		if generating.MatchString(s.text()) {
			time.Sleep(3 * time.Second) // upstream's listens first and then makes it
		}
		_, err = b.inTree(ctx, x.side, `"$@"`, x.stap, "--trust-servers=ssl,no-prompt", "--use-server="+s.address)
		s.stop()
		if err != nil {
			return err
		}
		for range firstRuns {
			if err := b.forget(x.side); err != nil {
				return err
			}
			if s != nil {
				s.stop()
			}
			start := time.Now()
			if s, err = b.startServer(ctx, x.side); err != nil {
				return err
			}
			if _, err := ask(); err != nil {
				s.stop()
				return err
			}
			*x.first = append(*x.first, time.Since(start).Seconds())
		}
		err = func() error {
			defer func() { s.stop() }()
			for range runs {
				took, err := ask()
				if err != nil {
					return err
				}
				*x.warm = append(*x.warm, took)
			}
			// Memory is that of a server that has all it needs, before and after.
			s.stop()
			if s, err = b.startServer(ctx, x.side); err != nil {
				return err
			}
			if x.side == ours {
				if _, err := s.waitLog(ctx, prepared); err != nil {
					return err
				}
			}
			time.Sleep(2 * time.Second)
			before, err := s.resident()
			if err != nil {
				return err
			}
			*x.idle = []float64{before}
			if x.side != ours {
				return nil
			}
			if err := b.many(ctx, x.side, s.address); err != nil {
				return fmt.Errorf("%w\nthe server:\n%.2000s", err, s.text())
			}
			time.Sleep(2 * time.Second)
			after, err := s.resident()
			growth.ours = []float64{max(after-before, 0)}
			return err
		}()
		if err != nil {
			return err
		}
	}
	for _, r := range []*row{first, warm, idle, growth} {
		b.add(r)
	}
	return nil
}

// many has a client ask for many new scripts, one after the other.
func (b *bench) many(ctx context.Context, x side, address string) error {
	start := b.number()
	b.numbers += manyScript
	_, err := b.inTree(ctx, x, `for ((i = 0; i < $3; i++)); do
	/mnt/bin/stap -p4 -r "$1" --use-server="$2" -m many -e "probe begin { printf (\"Hello $(($4 + i))\\n\"); exit (); }" >/mnt/log 2>&1 || { cat /mnt/log; exit 1; }
done`, b.peer.Kernel.Release, address, strconv.Itoa(manyScript), strconv.Itoa(start))
	return err
}

// start measures how long staprun -V takes: the start of the program.
func (b *bench) start(ctx context.Context) error {
	theirs, err := b.peer.Find("staprun")
	if err != nil {
		return err
	}
	// Both run in the tree's root, started from here in the same way.
	box := filepath.Join(b.peer.Root, "tmp", filepath.Base(b.work))
	if err := os.Mkdir(box, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(box)
	text, err := os.ReadFile(b.programs.Box)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(box, "staprun"), text, 0o755); err != nil {
		return err
	}
	r := &row{what: "staprun -V, start to exit", unit: milliseconds, ratio: 1.3}
	for range startRuns {
		for _, x := range []struct {
			path string
			to   *[]float64
		}{{theirs, &r.theirs}, {strings.TrimPrefix(filepath.Join(box, "staprun"), b.peer.Root), &r.ours}} {
			cmd := &exec.Cmd{Path: x.path, Args: []string{"staprun", "-V"}, Dir: "/", Env: []string{"PATH=/usr/bin:/bin"}}
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: b.peer.Root}
			begin := time.Now()
			err := cmd.Run()
			took := time.Since(begin).Seconds()
			if err != nil {
				return fmt.Errorf("running %q -V: %w", x.path, err)
			}
			*x.to = append(*x.to, took)
		}
	}
	b.add(r)
	return ctx.Err()
}
