// Package interop holds the product against upstream's SystemTap, which lives
// in a Debian sid tree with the kernel it works on: every script of the corpus
// compiled and run by both, modules of each under the loader and relay of the other,
// clients of each with the server of the other; and beside it with SystemTap 4.8
// in a tree of Debian 12, every client with every server.
//
// Environment:
//
//	STAPBOX_UPDATE=1      upstream's results become the recorded ones
//	STAPBOX_ONLY=PATTERN  only scripts whose name matches, and nothing else;
//	                      ^servers$ is the clients and servers alone,
//	                      ^matrix$ the clients and servers of all versions,
//	                      ^managers$ the managers of servers,
//	                      ^systemd$ the services of systemd,
//	                      ^sessions$ the uses of staprun and stapio
package interop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"stapbox/e2e/lab"
)

// ScriptDir is the corpus, below the module's root.
const ScriptDir = "e2e/testdata/scripts"

// Times that steps may take.
const (
	setupTime   = 30 * time.Minute
	compileTime = 3 * time.Minute
	serverTime  = 2 * time.Minute
)

// run is one run of the comparison.
type run struct {
	lab      *lab.Lab
	programs *lab.Programs
	peer     *lab.Peer
	out      io.Writer
	work     string // /mnt in the tree
	modules  string // upstream's modules, kept between runs
	update   bool
	guest    *lab.Guest
	theirs   Pair

	mu   sync.Mutex
	rows []row
}

// row is a line of the closing table.
type row struct {
	name, outcome, detail string
}

// Run makes all comparisons, says what it does, and fails if anything differs.
func Run(ctx context.Context, l *lab.Lab, programs *lab.Programs, out io.Writer) error {
	// Interrupted, it ends what it started before it ends.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	r := &run{lab: l, programs: programs, out: out, update: os.Getenv("STAPBOX_UPDATE") != ""}
	setup, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	only := os.Getenv("STAPBOX_ONLY")
	// Each part stands alone: one that fails does not keep the next from being
	// looked at. What failed is said again at the end.
	var failures []error
	part := func(name, what string, do func() error) {
		if only != "" && only != name {
			return
		}
		err := ctx.Err()
		if err == nil {
			err = do()
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
			r.say("FAILED: %v", err)
			failures = append(failures, err)
		}
	}
	ends := func(names ...string) bool { return slices.Contains(names, only) }

	part("^systemd$", "services of systemd", func() error { return Systemd(ctx, l, programs, out) })
	if ends("^systemd$") {
		return r.close(failures)
	}
	release := func() {}
	var scripts []*Script
	// Everything after this needs the peer.
	err := func() (err error) {
		if r.peer, err = l.FetchPeer(setup); err != nil {
			return fmt.Errorf("setting up the peer: %w", err)
		}
		r.say("SystemTap %s on kernel %s", r.peer.Version, r.peer.Kernel.Release)
		if scripts, err = corpus(); err != nil {
			return err
		}
		release, err = r.prepare()
		return err
	}()
	if err != nil {
		return r.close(append(failures, err))
	}
	defer release()

	part("^matrix$", "clients and servers of all versions", func() error { return r.matrix(ctx) })
	part("^managers$", "stap-server of SystemTap 4.8 and of this program", func() error {
		old, err := l.FetchOldPeer(setup)
		if err != nil {
			return err
		}
		return Managers(ctx, l, old, programs, out)
	})
	if ends("^matrix$", "^managers$") {
		return r.close(failures)
	}
	if err := r.scripts(ctx, only, scripts); err != nil {
		r.say("FAILED: %v", err)
		failures = append(failures, err)
	}
	return r.close(failures)
}

// scripts compares what scripts and sessions do in a guest with the peer's
// kernel, and the servers there.
func (r *run) scripts(ctx context.Context, only string, scripts []*Script) error {
	if only != "" {
		pattern, err := regexp.Compile(only)
		if err != nil {
			return err
		}
		var some []*Script
		for _, s := range scripts {
			if pattern.MatchString(s.Name) {
				some = append(some, s)
			}
		}
		scripts = some
	}
	image := lab.NewImage()
	var runs []*session
	compiled := scripts
	if only == "" || only == "^sessions$" {
		runs = sessions()
		for _, s := range runs {
			compiled = append(compiled, s.script)
		}
	}
	if err := r.compileAll(ctx, compiled, image); err != nil {
		return err
	}
	var exchanged []exchange
	if only == "" || only == "^servers$" {
		exchanged = r.servers(ctx, image)
	}
	if err := r.boot(ctx, image); err != nil {
		return err
	}
	defer r.guest.Kill()
	for _, s := range scripts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.compiled {
			r.compare(s)
		}
	}
	if only == "" {
		r.crosswise()
	}
	r.compareSessions(ctx, runs)
	r.runExchanged(exchanged)
	return nil
}

func (r *run) say(format string, args ...any) { fmt.Fprintf(r.out, "interop: "+format+"\n", args...) }

// result adds a line to the table, and prints it.
func (r *run) result(name, outcome, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, row{name, outcome, detail})
	fmt.Fprintf(r.out, "%-9s %s\n", outcome, name)
	for line := range strings.Lines(detail) {
		fmt.Fprintf(r.out, "          %s\n", strings.TrimSuffix(line, "\n"))
	}
}

const (
	same      = "same"
	ok        = "ok"
	different = "DIFFERENT"
	failed    = "FAILED"
)

// corpus loads the scripts of the source tree this process runs in.
func corpus() ([]*Script, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	mod := strings.TrimSpace(string(out))
	if err != nil || mod == "" || mod == os.DevNull {
		return nil, errors.Join(err, errors.New("not inside the source tree"))
	}
	return Load(filepath.Join(filepath.Dir(mod), ScriptDir))
}

// prepare makes the working directory, for this process alone.
func (r *run) prepare() (release func(), err error) {
	r.modules = filepath.Join(r.peer.Dir, "modules")
	r.work = filepath.Join(r.peer.Dir, "work")
	for _, d := range []string{r.modules, filepath.Join(r.work, "bin"), filepath.Join(r.work, "state")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(r.work, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another run uses %q: %w", r.work, err)
	}
	for _, d := range []string{"bin", "up", "our", "server"} {
		if err := os.RemoveAll(filepath.Join(r.work, d)); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Join(r.work, "bin"), 0o755); err != nil {
		return nil, err
	}
	box, err := os.ReadFile(r.programs.Box)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(r.work, "bin/stapbox"), box, 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"stap", "stap-serverd"} {
		if err := os.Symlink("stapbox", filepath.Join(r.work, "bin", name)); err != nil {
			return nil, err
		}
	}
	return func() { lock.Close() }, nil
}

// compileAll compiles every script with both translators, two at a time.
func (r *run) compileAll(ctx context.Context, scripts []*Script, image *lab.Image) error {
	all := append(append([]*Script{}, scripts...), helloScript)
	r.say("compiling %d scripts with both translators", len(all))
	// The first compile prepares the kernel; the others find it prepared.
	if _, _, err := r.compileOurs(ctx, helloScript); err != nil {
		return err
	}
	jobs := make(chan *Script)
	var wg sync.WaitGroup
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for s := range jobs {
				up, upText, err := r.compileTheirs(ctx, s)
				if err != nil {
					r.result(s.Name+", compiled by upstream", failed, err.Error())
				}
				our, ourText, ourErr := r.compileOurs(ctx, s)
				if ourErr != nil {
					r.result(s.Name+", compiled by us", failed, ourErr.Error())
				}
				if err == nil && ourErr == nil && ourText != upText {
					r.result(s.Name+", messages of the translators", different, Difference(Result{Stderr: ourText}, Result{Stderr: upText}))
				}
				r.mu.Lock()
				s.compiled = err == nil && ourErr == nil
				if err == nil {
					image.File("modules/up/"+s.Module()+".ko", 0o644, up)
				}
				if ourErr == nil {
					image.File("modules/our/"+s.Module()+".ko", 0o644, our)
				}
				r.mu.Unlock()
			}
		}()
	}
	for i, s := range all {
		if i > 0 && i%10 == 0 {
			r.say("%d of %d", i, len(all))
		}
		jobs <- s
	}
	close(jobs)
	wg.Wait()
	return ctx.Err()
}

var helloScript = &Script{Name: "hello", Text: []byte("probe begin { printf (\"Hello\\n\"); exit (); }\n")}

// compileIn runs a stap, a path inside the tree, for a script. It gives the
// module and what stap wrote to stderr.
func (r *run) compileIn(ctx context.Context, dir, stap string, s *Script) ([]byte, string, error) {
	host := filepath.Join(r.work, dir, s.Name)
	if err := os.MkdirAll(filepath.Join(host, "tmp"), 0o755); err != nil {
		return nil, "", err
	}
	if err := os.WriteFile(filepath.Join(host, s.Name+".stp"), s.Text, 0o644); err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, compileTime)
	defer cancel()
	// Both see the script under one name, and their own state elsewhere.
	argv := append([]string{"sh", "-c", `cd /mnt/"$1" && shift && exec "$@"`, "sh", filepath.Join(dir, s.Name), stap}, s.Compile(r.peer.Kernel.Release)...)
	cmd := r.peer.Command(ctx, lab.Inside{Work: r.work, Env: []string{"SYSTEMTAP_DIR=/mnt/state", "TMPDIR=/mnt/" + filepath.Join(dir, s.Name, "tmp")}}, argv...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, "", fmt.Errorf("%w\n%s%s", err, stdout.String(), stderr.String())
	}
	m, err := os.ReadFile(filepath.Join(host, s.Module()+".ko"))
	// Upstream wants debug information or a System.map; we need neither.
	text := strings.ReplaceAll(stderr.String(), "WARNING: Kernel function symbol table missing [man warning::symbols]\n", "")
	return m, text, err
}

func (r *run) compileOurs(ctx context.Context, s *Script) ([]byte, string, error) {
	return r.compileIn(ctx, "our", "/mnt/bin/stap", s)
}

// compileTheirs takes upstream's module from the store, if it has been made
// before.
func (r *run) compileTheirs(ctx context.Context, s *Script) ([]byte, string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%q\x00", r.peer.Version, r.peer.Kernel.Release, s.Compile(r.peer.Kernel.Release))
	h.Write(s.Text)
	kept := filepath.Join(r.modules, fmt.Sprintf("%s-%x", s.Name, h.Sum(nil)[:8]))
	if m, err := os.ReadFile(kept + ".ko"); err == nil {
		if text, err := os.ReadFile(kept + ".stderr"); err == nil {
			return m, string(text), nil
		}
	}
	m, text, err := r.compileIn(ctx, "up", "stap", s)
	if err != nil {
		return nil, "", err
	}
	if err := errors.Join(os.WriteFile(kept+".stderr", []byte(text), 0o644), os.WriteFile(kept+".ko", m, 0o644)); err != nil {
		return nil, "", err
	}
	return m, text, nil
}

// boot starts the guest with both pairs.
func (r *run) boot(ctx context.Context, image *lab.Image) error {
	staprun, env, err := r.peer.Runtime(ctx, image, "peer")
	if err != nil {
		return err
	}
	r.theirs = Pair{Name: "upstream's", Staprun: staprun, Env: env}
	r.say("booting kernel %s", r.peer.Kernel.Release)
	r.guest, err = r.lab.Boot(lab.GuestConfig{
		Kernel: r.peer.Kernel, Image: image, Agent: r.programs.Agent, Box: r.programs.Box, Memory: 2048,
	})
	return err
}

// module is a file of the guest.
func module(dir string, s *Script) string { return "/modules/" + dir + "/" + s.Module() + ".ko" }

// do runs a script's module under a pair, and checks that the kernel has no
// complaints and nothing is left loaded.
func (r *run) do(s *Script, p Pair, file string) (Result, error) {
	a, err := r.guest.Do(s.Request(p, file))
	if err != nil {
		return Result{}, err
	}
	if a.TimedOut {
		r.guest.Do(lab.Shell(lab.Root, "killall -9 stapio staprun; sleep 1; rmmod "+s.Module()))
		return s.ResultOf(a), errors.New("no end within its time")
	}
	check, err := r.guest.Do(lab.Shell(lab.Root, "dmesg -c | grep -E 'BUG|WARNING|Oops|Call Trace|INFO: task|Unknown symbol'; lsmod | grep '^t_'; true"))
	if err != nil {
		return s.ResultOf(a), err
	}
	if len(check.Stdout) > 0 {
		return s.ResultOf(a), fmt.Errorf("the kernel complains, or a module is left:\n%s", check.Stdout)
	}
	return s.ResultOf(a), nil
}

// compare runs both modules of a script, each under its own pair.
func (r *run) compare(s *Script) {
	theirs, err := r.do(s, r.theirs, module("up", s))
	if err != nil {
		r.result(s.Name, failed, fmt.Sprintf("upstream's module under its own staprun: %v\n%s%s", err, theirs.Stdout, theirs.Stderr))
		return
	}
	if r.update {
		if err := s.Record(theirs); err != nil {
			r.result(s.Name, failed, err.Error())
			return
		}
	}
	ours, err := r.do(s, OurPair, module("our", s))
	if err != nil {
		r.result(s.Name, failed, fmt.Sprintf("our module under our staprun: %v\n%s%s", err, ours.Stdout, ours.Stderr))
		return
	}
	if d := Difference(ours, theirs); d != "" {
		r.result(s.Name, different, d)
		return
	}
	if golden, err := s.Golden(); err != nil {
		r.result(s.Name, failed, err.Error())
	} else if d := Difference(theirs, golden); d != "" {
		r.result(s.Name, different, "upstream's result is not the recorded one:\n"+d)
	} else {
		r.result(s.Name, same, "")
	}
}

// crosswise runs hello of each side under the pair of the other, and ours under
// our own.
func (r *run) crosswise() {
	r.hello("our hello under our staprun", OurPair, module("our", helloScript))
	r.hello("upstream's hello under our staprun", OurPair, module("up", helloScript))
	r.hello("our hello under upstream's staprun", r.theirs, module("our", helloScript))
}

func (r *run) hello(name string, p Pair, file string) {
	got, err := r.do(helloScript, p, file)
	if err != nil {
		r.result(name, failed, fmt.Sprintf("%v\n%s%s", err, got.Stdout, got.Stderr))
		return
	}
	if d := Difference(got, Result{Stdout: "Hello\n"}); d != "" {
		r.result(name, different, d)
		return
	}
	r.result(name, ok, "")
}

// close prints the table and says whether all is well.
func (r *run) close(failures []error) error {
	counts := map[string]int{}
	width := 0
	for _, x := range r.rows {
		counts[x.outcome]++
		width = max(width, len(x.name))
	}
	if len(r.rows) == 0 {
		return errors.Join(failures...) // the matrix alone, with nothing to say
	}
	fmt.Fprintf(r.out, "\n%-*s  result\n%s  ---------\n", width, "comparison with SystemTap "+r.peer.Version, strings.Repeat("-", width))
	for _, x := range r.rows {
		fmt.Fprintf(r.out, "%-*s  %s\n", width, x.name, x.outcome)
	}
	bad := counts[different] + counts[failed]
	fmt.Fprintf(r.out, "\n%d scripts the same, %d exchanges worked, %d different, %d failed\n", counts[same], counts[ok], counts[different], counts[failed])
	if bad > 0 {
		failures = append(failures, fmt.Errorf("%d of %d comparisons with upstream did not hold", bad, len(r.rows)))
	}
	return errors.Join(failures...)
}
