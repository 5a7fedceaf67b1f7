package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/signing"
	"stapbox/core/trust/edit"
	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// stage is what all tests of this package share. Its parts are made when first
// asked for.
var stage struct {
	lab      *lab.Lab
	programs *lab.Programs
	dir      string

	mu     sync.Mutex
	guests map[string]*guests // by kernel

	compiling sync.Mutex
	modules   map[string][]byte
}

func TestMain(m *testing.M) {
	// A test that waits for its turn in a guest must not keep those of other guests
	// from running. What may run at the same time is limited by turns, few and
	// bootsGuest.
	flag.Set("test.parallel", "128")
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// Under nohup(1), and in the background of a shell, these are ignored, by what a
	// test starts too. What a Go program catches has its default effect after exec.
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	var err error
	if stage.dir, err = os.MkdirTemp("", "stapbox-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(stage.dir)
	os.Chmod(stage.dir, 0o755)
	stage.guests, stage.modules = map[string]*guests{}, map[string][]byte{}
	if stage.lab, err = lab.Open(os.Stderr); err == nil {
		stage.programs, err = lab.Build(stage.dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer closeScenes()
	return m.Run()
}

// perKernel is how many guests of one kernel the tests share from the beginning: one
// where there are two processors. Two of each, beside those that tests boot of their own
// and the tests of this machine, kept both processors busy and took a quarter more of
// their time, since timers, polls and ticks go on while a guest waits for a processor;
// the whole was no faster, and tests of time limits failed beside them. When the tests
// that boot guests of their own are done, each kernel gets one more.
var perKernel = max(1, runtime.NumCPU()/4)

// guests are the shared guests of one kernel: a test has one of them at a time.
type guests struct {
	free chan *scene   // those that no test has
	more chan struct{} // has a token when one more may be made
	all  []*scene      // those that were made
}

func newGuests() *guests {
	g := &guests{free: make(chan *scene, perKernel+1), more: make(chan struct{}, perKernel+1)}
	for range perKernel {
		g.more <- struct{}{}
	}
	go func() {
		ownGuests.Wait()
		g.more <- struct{}{}
	}()
	return g
}

// scene is a guest, the network it is in, and a compile server there.
type scene struct {
	kernel *lab.Kernel
	guest  *lab.Guest // nil where it could not be set up
	net    *lab.Network
	server *lab.Server
}

func closeScenes() {
	for _, g := range stage.guests {
		for _, s := range g.all {
			s.close()
		}
	}
}

func (s *scene) close() {
	if s.guest != nil {
		s.guest.Kill()
	}
	if s.server != nil {
		s.server.Stop()
	}
	if s.net != nil {
		s.net.Close()
	}
}

// kernelState is where prepared kernels are kept between runs.
func kernelState() string { return filepath.Join(stage.lab.Dir, "state") }

// onKernels runs a test in a guest of each kernel of the matrix. A guest has one
// test at a time; the guests do not wait for each other.
func onKernels(t *testing.T, test func(t *testing.T, s *scene)) {
	t.Helper()
	for _, v := range lab.Versions() {
		onKernel(t, v, test)
	}
}

// onKernel runs a test in a guest of one kernel.
func onKernel(t *testing.T, version string, test func(t *testing.T, s *scene)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("guests need root, for a network namespace with a tap device")
	}
	besidesOthers(t)
	t.Run(version, func(t *testing.T) {
		t.Parallel()
		began := time.Now()
		s := takeScene(t, version)
		t.Logf("its turn after %.2f s", time.Since(began).Seconds()) // ./e2e/run test takes that off
		// The order of tests is not fixed: none finds files of another.
		s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/* /tmp/.[!.]* /home/*/* /home/*/.[!.]*"))
		t.Cleanup(func() { s.checkClean(t) }) // after the test's own, also where it gives up
		test(t, s)
	})
}

// onOne runs a test in a guest of one kernel, which its name chooses: what it tests
// came to the same on every kernel. With STAPBOX_KERNELS=all, or in stress runs, it is
// run on all.
func onOne(t *testing.T, test func(t *testing.T, s *scene)) {
	t.Helper()
	if everyCase() {
		onKernels(t, test)
		return
	}
	versions := lab.Versions()
	onKernel(t, versions[crc32.ChecksumIEEE([]byte(t.Name()))%uint32(len(versions))], test)
}

var besides sync.Map // tests that run besides others

// besidesOthers makes a test with parts on several kernels parallel, once.
func besidesOthers(t *testing.T) {
	if _, done := besides.LoadOrStore(t, true); !done {
		t.Parallel()
	}
}

// Tests that run besides each other on this machine, and those that boot guests of
// their own, are limited.
var slots, guestSlots = make(chan struct{}, 4), make(chan struct{}, 2)

// ownGuests are the tests that boot guests of their own and have not ended.
var ownGuests sync.WaitGroup

// few makes a test parallel to few others.
func few(t *testing.T) {
	t.Parallel()
	waitFor(t, slots)
}

// bootsGuest makes a test parallel to few others that boot guests of their own. It comes
// first in a top-level test, so that all that call it are known when the first shared
// guest is taken: a second one waits for them.
func bootsGuest(t *testing.T) {
	stage.mu.Lock()
	if len(stage.guests) == 0 { // not with -count, the second time
		ownGuests.Add(1)
		t.Cleanup(ownGuests.Done)
	}
	stage.mu.Unlock()
	t.Parallel()
	waitFor(t, guestSlots)
}

// waitFor waits for a slot, which is the test's until its end.
func waitFor(t *testing.T, slots chan struct{}) {
	began := time.Now()
	slots <- struct{}{}
	t.Logf("its turn after %.2f s", time.Since(began).Seconds()) // ./e2e/run test takes that off
	t.Cleanup(func() { <-slots })
}

// turn shares cases that are alike out among the kernels: case i is for this one.
// With STAPBOX_KERNELS=all, or in stress runs, every case is for every kernel.
func (s *scene) turn(i int) bool {
	versions := lab.Versions()
	return everyCase() || versions[i%len(versions)] == s.kernel.Version
}

// everyCase says that every case is wanted on every kernel.
func everyCase() bool { return stress() || os.Getenv("STAPBOX_KERNELS") == "all" }

// takeScene waits for a guest of a kernel that no other test has. It is the test's
// until its end.
func takeScene(t *testing.T, version string) *scene {
	t.Helper()
	stage.mu.Lock()
	g := stage.guests[version]
	if g == nil {
		g = newGuests()
		stage.guests[version] = g
	}
	stage.mu.Unlock()
	var s *scene
	select {
	case s = <-g.free:
	default:
		select {
		case s = <-g.free:
		case <-g.more:
			s = &scene{}
			stage.mu.Lock()
			g.all = append(g.all, s)
			stage.mu.Unlock()
		}
	}
	t.Cleanup(func() { g.free <- s })
	if s.guest == nil || s.guest.Ended() {
		// It is new; or it failed another test, and would fail all that come after it.
		s.close()
		*s = scene{}
		if err := s.setUp(version); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *scene) setUp(version string) (err error) {
	if s.kernel, err = stage.lab.FetchKernel(version); err != nil {
		return err
	}
	if s.net, err = stage.lab.NewNetwork(); err != nil {
		return err
	}
	s.guest, err = stage.lab.Boot(lab.GuestConfig{
		Kernel: s.kernel, Agent: stage.programs.Agent, Box: stage.programs.Box, Net: s.net,
	})
	return err
}

// startServer starts the scene's compile server, once.
func (s *scene) startServer(t *testing.T) *lab.Server {
	t.Helper()
	if s.server != nil {
		return s.server
	}
	dir := filepath.Join(stage.dir, "server-"+s.net.Namespace)
	prepared(t, dir, lab.ServerUID, s.kernel)
	var err error
	s.server, err = stage.programs.StartServer(s.net, dir, []*lab.Kernel{s.kernel})
	if err != nil {
		t.Fatal(err)
	}
	return s.server
}

// do runs a command in the guest.
func (s *scene) do(t *testing.T, r request.Request) request.Answer {
	t.Helper()
	a, err := s.guest.Do(r)
	if err != nil {
		t.Fatalf("%q: %v", r.Argv, err)
	}
	if a.TimedOut {
		t.Fatalf("%q: no end after %d s; stdout %q, stderr %q", r.Argv, r.Timeout, a.Stdout, a.Stderr)
	}
	return a
}

// put writes a file into the guest.
func (s *scene) put(t *testing.T, path string, owner lab.User, mode uint32, data []byte) {
	t.Helper()
	if err := s.guest.Write(path, owner, mode, data); err != nil {
		t.Fatal(err)
	}
}

// printing starts a command in the background of a shell, as $!, and goes on when it
// has printed something. Its output is in the file out.
func printing(command string) string {
	return "rm -f out; " + command + " >out & until [ -s out ]; do kill -0 $! || break; sleep 0.1; done; "
}

// want checks an answer: its status, its whole stdout, and parts of its stderr.
func want(t *testing.T, a request.Answer, status int, stdout string, stderr ...string) {
	t.Helper()
	if a.Status != status || string(a.Stdout) != stdout {
		t.Errorf("status %d, stdout %q, stderr %q; want status %d, stdout %q", a.Status, a.Stdout, a.Stderr, status, stdout)
		return
	}
	for _, w := range stderr {
		if !strings.Contains(string(a.Stderr), w) {
			t.Errorf("stderr %q lacks %q", a.Stderr, w)
		}
	}
}

// loaded lists the modules of ours that the guest has loaded.
func (s *scene) loaded(t *testing.T) string {
	t.Helper()
	a := s.do(t, lab.Shell(lab.Root, "ls /proc/systemtap 2>/dev/null; lsmod | grep -v '^Module\\|^virtio\\|failover\\|af_packet\\|efivarfs' | cut -d' ' -f1"))
	return strings.TrimSpace(string(a.Stdout))
}

// checkClean checks what no test may leave behind: modules, processes, and
// complaints of the kernel.
func (s *scene) checkClean(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if l := s.loaded(t); l == "" {
			break
		} else if time.Now().After(deadline) {
			t.Errorf("modules left behind: %s", l)
			s.do(t, lab.Shell(lab.Root, "killall -9 staprun stapio; for m in $(ls /proc/systemtap); do rmmod $m; done"))
			break
		}
	}
	a := s.do(t, lab.Shell(lab.Root, "pidof staprun stapio; dmesg -c | grep -E 'BUG|WARNING|Oops|Call Trace|INFO: task|already registered|Invalid|unknown parameter'"))
	if len(a.Stdout) > 0 {
		t.Errorf("the guest has processes left over, or its kernel complains:\n%s", a.Stdout)
		s.do(t, lab.Shell(lab.Root, "killall -9 staprun stapio; true"))
	}
}

// module compiles a script for a kernel with stap -p4 as root, here. Equal
// requests are compiled once.
func module(t *testing.T, k *lab.Kernel, level, script string, args ...string) []byte {
	t.Helper()
	key := strings.Join(append([]string{k.Release, level, script}, args...), "\x00")
	stage.compiling.Lock()
	defer stage.compiling.Unlock()
	if m := stage.modules[key]; m != nil {
		return m
	}
	dir := t.TempDir()
	argv := append([]string{"-p4", "-r", k.Headers, "-m", "e2e_test_module_with_long_name", "-e", script}, args...)
	if level != "" {
		argv = append(argv, "--privilege="+level)
	}
	cmd := exec.Command(stage.programs.Applet("stap"), argv...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SYSTEMTAP_DIR="+kernelState())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("compiling %q: %v\n%s%s", script, err, out, stderr.Bytes())
	}
	m := read(t, filepath.Join(dir, "e2e_test_module_with_long_name.ko"))
	stage.modules[key] = m
	return m
}

// prepared copies a kernel that is prepared already into the new data directory of a
// server that runs as uid: preparing takes seconds. That servers prepare kernels
// themselves is shown by those of operate and manage, which begin without.
func prepared(t *testing.T, dir string, uid int, k *lab.Kernel) {
	t.Helper()
	module(t, k, "", hello)
	made, err := filepath.Glob(filepath.Join(kernelState(), "kernels", k.Release+"-*"))
	if err != nil || len(made) == 0 {
		t.Fatalf("kernel %s is not prepared in %s, %v", k.Release, kernelState(), err)
	}
	kernels := filepath.Join(dir, "kernels")
	if err := os.MkdirAll(kernels, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{
		append([]string{"cp", "-a", "-t", kernels}, made...),
		{"chown", "-R", "-h", strconv.Itoa(uid), kernels},
	} {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", words, err, out)
		}
	}
}

// hello is the script of the unprivileged-mode guide.
const hello = `probe begin { printf ("Hello\n"); exit (); }`

var (
	signersOnce sync.Once
	signerA     *identity.Identity
	signerB     *identity.Identity
)

// signers are two identities; tests decide which of them are trusted.
func signers(t *testing.T) (a, b *identity.Identity) {
	t.Helper()
	signersOnce.Do(func() {
		var err error
		if signerA, err = identity.New(identity.Options{NodeName: "a.example", Now: time.Now()}); err == nil {
			signerB, err = identity.New(identity.Options{NodeName: "b.example", Now: time.Now().Add(time.Second), KeyType: identity.Ed25519})
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return signerA, signerB
}

func sign(t *testing.T, module []byte, id *identity.Identity) []byte {
	t.Helper()
	s, err := signing.Sign(module, id.Key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const signerStore = "/etc/systemtap/staprun/"

// trustSigner writes a certificate into the guest's signer store.
func (s *scene) trustSigner(t *testing.T, id *identity.Identity) {
	t.Helper()
	s.put(t, signerStore+identity.Fingerprint(id.Certificate)+".pem", lab.Root, 0o644,
		edit.Format(id.Certificate, edit.Note{Host: "test", When: time.Now(), By: "test", Scope: "module signer, all users"}))
}

// forgetSigners empties the guest's signer store.
func (s *scene) forgetSigners(t *testing.T) {
	t.Helper()
	s.do(t, lab.Shell(lab.Root, "rm -rf "+signerStore+"*; chmod 755 "+signerStore+"; chown root:root "+signerStore))
}

// blessed is the directory of approved modules in the guest.
func (s *scene) blessed() string { return "/lib/modules/" + s.kernel.Release + "/systemtap/" }

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
