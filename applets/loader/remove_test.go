package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/transport"
)

// channelOf is the control channel of a module that the kernel does not have.
const channelOf = "stap_test_not_loaded"

// withChannel has a control channel of an owner and a mode in a directory of the
// test's, where staprun -d looks for it.
func withChannel(t *testing.T, owner int, mode os.FileMode) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root removes modules")
	}
	inRun(t)
	old := transport.Dirs
	t.Cleanup(func() { transport.Dirs = old })
	base, err := os.MkdirTemp("/tmp", "channel") // which users can enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	transport.Dirs = []string{base}
	cmd := filepath.Join(base, channelOf, ".cmd")
	if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(filepath.Dir(cmd), 0o755), os.WriteFile(cmd, nil, 0o600),
		os.Chmod(cmd, mode), os.Chown(cmd, owner, owner)); err != nil {
		t.Fatal(err)
	}
}

// removeAs is staprun -d of a user.
func removeAs(t *testing.T, uid int) error {
	t.Helper()
	if err := unix.Setresuid(uid, 0, 0); err != nil {
		t.Fatal(err)
	}
	err := (&loader{}).removeModule(channelOf)
	if err := unix.Setresuid(0, 0, 0); err != nil {
		t.Fatal(err)
	}
	return err
}

// The owner of a module's control channel, who may give it any mode, does not make it
// anybody else's to remove, nor to attach to.
func TestSecurity10RemovalByTheOwner(t *testing.T) {
	for _, tt := range []struct {
		name          string
		caller, owner int
		mode          os.FileMode
		proven        bool
	}{
		{"his own", 4242, 4242, 0o600, true},
		{"root", 0, 4242, 0o600, true},
		{"his own, and closed to him", 4242, 4242, 0o000, false},
		{"another's", 4242, 100000, 0o600, false},
		{"another's, for everybody", 4242, 100000, 0o666, false},
		{"root's, for everybody", 4242, 0, 0o666, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withChannel(t, tt.owner, tt.mode)
			err := removeAs(t, tt.caller)
			// The kernel has no such module, or lets nobody ask.
			if err == nil || errors.Is(err, errNotProven) == tt.proven || !tt.proven && !errors.Is(err, fs.ErrPermission) {
				t.Errorf("got %v", err)
			}
			if owner, err := attachAs(t, tt.caller); (err == nil) != tt.proven || err == nil && owner != tt.owner || err != nil && !errors.Is(err, fs.ErrPermission) {
				t.Errorf("attaching to the module of user %d: got %d, %v", tt.owner, owner, err)
			}
		})
	}
}

// attachAs is the proof of staprun -A of a user.
func attachAs(t *testing.T, uid int) (owner int, err error) {
	t.Helper()
	if err := unix.Setresuid(uid, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir, st, err := provenDir(channelOf)
	if err := unix.Setresuid(0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		dir.Close()
	}
	return int(st.Uid), err
}

// ignoredSignals is the mask of the signals that the process ignores (proc_pid_status(5)).
func ignoredSignals(t *testing.T) (mask uint64) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Error(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nSigIgn:")
	if _, err := fmt.Sscanf(rest, "%x", &mask); err != nil {
		t.Error(err)
	}
	return mask
}

// ^C, ^\, ^Z and the end of a terminal neither end nor stop staprun between the proof and the
// removal, and do again afterwards, when staprun goes on with the next module.
func TestRemovalIsNotInterrupted(t *testing.T) {
	withChannel(t, 4242, 0o600)
	before := ignoredSignals(t)
	fd, err := openLock()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil { // the removal waits for idleTime
		t.Fatal(err)
	}
	during := make(chan uint64)
	go func() {
		time.Sleep(idleTime / 2)
		during <- ignoredSignals(t)
	}()
	if err := removeAs(t, 4242); errors.Is(err, errNotProven) {
		t.Error(err)
	}
	ignored := <-during
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU} {
		if ignored&(1<<(s-1)) == 0 {
			t.Errorf("%v is not ignored during the removal", s)
		}
	}
	if after := ignoredSignals(t); after != before {
		t.Errorf("ignored before %#x, after %#x", before, after)
	}
	// The Go runtime's handlers are there again.
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGINT)
	defer signal.Stop(c)
	unix.Kill(os.Getpid(), unix.SIGINT)
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Error("SIGINT has no effect afterwards")
	}
}

// inKernel has modules in a directory of the test's, which stands for /sys/module.
func inKernel(t *testing.T, modules ...string) {
	t.Helper()
	old := sysModule
	t.Cleanup(func() { sysModule = old })
	sysModule = t.TempDir()
	for _, m := range modules {
		if err := os.Mkdir(filepath.Join(sysModule, m), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// loadAgain removes a module and loads another of its name.
func loadAgain(t *testing.T, module string) {
	t.Helper()
	dir := filepath.Join(sysModule, module)
	// The old inode stays in use, or the file system could give it to the new one.
	if err := errors.Join(os.Rename(dir, filepath.Join(t.TempDir(), "old")), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
}

// A user who stops his staprun behind the insertion and gives the control channel to
// an id of his own waits for that staprun, as that id too. Nobody else who claims the
// name is waited for by a user who is known to have loaded the module, and nobody
// at all by the owner of a module whose name nobody else claims, as after SystemTap's own
// staprun.
func TestSecurity10RemovalOfWhatWasGivenAway(t *testing.T) {
	const user, subordinate = 4242, 100000
	for _, tt := range []struct {
		name           string
		owner, atWork  int    // who is at work claims
		claimed        string // this name
		claim, confirm bool   // the owner's
		again          bool   // another module has the name since
		waits          bool
	}{
		{"given away", subordinate, user, channelOf, false, false, false, true},
		{"given away to one who claims it too", subordinate, user, channelOf, true, false, false, true},
		{"given away to one who has loaded an older one of the name", subordinate, user, channelOf, true, true, true, true},
		{"his own insertion", user, user, channelOf, true, false, false, true},
		{"his own removal", user, user, channelOf, true, true, false, true},
		{"loaded by the owner", user, 4711, channelOf, true, true, false, false},
		{"loaded by SystemTap's staprun", user, 4711, "another_module", false, false, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withChannel(t, tt.owner, 0o600)
			inKernel(t, channelOf)
			if tt.claim {
				if _, err := claim(tt.owner, channelOf); err != nil {
					t.Fatal(err)
				}
			}
			if tt.confirm {
				confirm(tt.owner, channelOf)
			}
			if tt.again {
				loadAgain(t, channelOf)
			}
			// One more, who is not at work.
			if _, err := claim(4100, channelOf); err != nil {
				t.Fatal(err)
			}
			if _, err := claim(tt.atWork, tt.claimed); err != nil {
				t.Fatal(err)
			}
			unlock, _, err := lockUser(tt.atWork)
			if err != nil {
				t.Fatal(err)
			}
			const held = 300 * time.Millisecond
			time.AfterFunc(held, unlock)
			start := time.Now()
			if err := removeAs(t, tt.owner); errors.Is(err, errNotProven) {
				t.Error(err)
			}
			if waited := time.Since(start) >= held; waited != tt.waits {
				t.Errorf("waited: %v, want %v", waited, tt.waits)
			}
		})
	}
}

// Who removes a module keeps nobody else from anything but from removing it: he can
// stop his staprun, whatever it has locked.
func TestSecurity10RemovalHoldsNobodyElsesLock(t *testing.T) {
	inRun(t)
	inKernel(t, "m")
	if _, err := claim(4243, "m"); err != nil {
		t.Fatal(err)
	}
	held, unlock, err := (&loader{}).lockRemoval(4242, 4242, "m")
	if err != nil || !held {
		t.Fatalf("got %v, %v", held, err)
	}
	other, taken := tryUser(4243)
	if !taken {
		t.Fatal("the lock of a user who claims the name is held")
	}
	other()
	if _, release, err := (&loader{}).lockRemoval(4243, 4243, "other"); err != nil {
		t.Errorf("his removal of another module: %v", err)
	} else {
		release()
	}
	if _, _, err := (&loader{}).lockRemoval(4243, 4243, "m"); err == nil || !strings.Contains(err.Error(), "another staprun is removing it") {
		t.Errorf("a removal of the same module: %v", err)
	}
	unlock()
	if _, _, err := (&loader{}).lockRemoval(4243, 4243, "m"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// The removal by an owner who is not known to have loaded the module ends, too, while
// one who claims its name is at work, as where he has stopped staprun.
func TestSecurity10RemovalBesideAStoppedClaimant(t *testing.T) {
	inRun(t)
	if _, err := claim(4243, "m"); err != nil {
		t.Fatal(err)
	}
	stopped, taken := tryUser(4243)
	if !taken {
		t.Fatal("no lock")
	}
	defer stopped()
	start := time.Now()
	_, _, err := (&loader{}).lockRemoval(4242, 4242, "m")
	if d := time.Since(start); err == nil || !strings.Contains(err.Error(), "may have loaded it and is at work") || d < lockWait || d > 2*lockWait {
		t.Errorf("got %v after %v", err, d)
	}
	// Nothing is held afterwards.
	if unlock, taken := tryUser(4242); !taken {
		t.Error("the owner's lock is held")
	} else {
		unlock()
	}
}

// A name that a module has is nobody's to claim, and a claim of an older module of the
// name is none.
func TestSecurity10StaleClaims(t *testing.T) {
	inRun(t)
	inKernel(t, "m")
	if _, err := claim(4242, "m"); err != nil {
		t.Fatal(err)
	}
	confirm(4242, "m")
	loadAgain(t, "m") // as by another user, after root's rmmod
	if got, err := claimants(-1, "m"); err != nil || len(got) != 0 {
		t.Errorf("claimants %v, %v", got, err)
	}
	if n, err := claimed(4242, nil); err != nil || n != 0 {
		t.Errorf("modules of the user: %d, %v", n, err)
	}
	// Who is about to load one of that name is a claimant, whatever he claimed before.
	if _, err := claim(4243, "m"); err != nil {
		t.Fatal(err)
	}
	confirm(4243, "m")
	loadAgain(t, "m")
	if news, err := claim(4243, "m"); err != nil || news {
		t.Errorf("news %v, %v", news, err)
	}
	if got, err := claimants(-1, "m"); err != nil || len(got) != 1 || got[0] != 4243 {
		t.Errorf("claimants %v, %v", got, err)
	}
}

// What is loaded is told from what is only about to be, and who claims it from who
// has other modules.
func TestSecurity10Claimants(t *testing.T) {
	inRun(t)
	inKernel(t, "m", "other")
	for uid, module := range map[int]string{4242: "m", 4243: "m", 4244: "other"} {
		if _, err := claim(uid, module); err != nil || confirmed(uid, module) {
			t.Fatalf("user %d: confirmed %v, %v", uid, confirmed(uid, module), err)
		}
	}
	confirm(4243, "m")
	if confirmed(4242, "m") || !confirmed(4243, "m") || confirmed(4244, "m") {
		t.Error("a module is confirmed for the wrong user")
	}
	loadAgain(t, "m")
	if confirmed(4243, "m") {
		t.Error("a claim of an older module stands for a newer one")
	}
	confirm(4242, "m")
	if !confirmed(4242, "m") || confirmed(4243, "m") {
		t.Error("the newer module is confirmed for the wrong user")
	}
	if err := os.Remove(filepath.Join(sysModule, "m")); err != nil {
		t.Fatal(err)
	}
	confirm(4243, "m")
	if confirmed(4242, "m") || confirmed(4243, "m") {
		t.Error("a module is confirmed that the kernel does not have")
	}
	if got, err := claimants(4243, "m"); err != nil || len(got) != 1 || got[0] != 4242 { // the kernel cannot be asked any more
		t.Errorf("got %v, %v", got, err)
	}
	hostpaths.Runstatedir += "/missing"
	if got, err := claimants(4243, "m"); err != nil || len(got) > 0 {
		t.Errorf("no claims: got %v, %v", got, err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(hostpaths.LoadClaims()), 0o755), os.WriteFile(hostpaths.LoadClaims(), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got, err := claimants(4243, "m"); err == nil {
		t.Errorf("claims that cannot be read: got %v", got)
	}
}
