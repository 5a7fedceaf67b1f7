package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/kmod"
)

// inRun has the lock and the claims in a directory of the test's.
func inRun(t *testing.T) {
	t.Helper()
	old := hostpaths.Runstatedir
	hostpaths.Runstatedir = t.TempDir()
	t.Cleanup(func() { hostpaths.Runstatedir = old })
}

func TestLockInsertions(t *testing.T) {
	inRun(t)
	unlock := lockInsertions()
	text, err := os.ReadFile(hostpaths.LoadLock())
	if tid, perr := strconv.Atoi(string(text[:max(len(text)-1, 0)])); err != nil || perr != nil || unix.Access("/proc/self/task/"+strconv.Itoa(tid), unix.F_OK) != nil {
		t.Errorf("the lock names %q, %v", text, err)
	}
	took := make(chan time.Duration)
	start := time.Now()
	go func() {
		lockInsertions()()
		took <- time.Since(start)
	}()
	// This thread is at work for longer than idleTime.
	for time.Since(start) < 2*idleTime {
	}
	unlock()
	unlock() // does nothing more
	if d := <-took; d < idleTime || d > lockWait {
		t.Errorf("the second waited for %v", d)
	}
}

// A process that holds the lock and is stopped, or sleeps, is not waited for.
func TestSecurityStoppedHolderOfTheLock(t *testing.T) {
	inRun(t)
	for _, tt := range []struct {
		name  string
		state holding
		limit time.Duration
		stop  bool
	}{
		{"stopped", stopped, idleTime, true},
		{"idle", idling, time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := os.StartProcess("/bin/sleep", []string{"sleep", "30"}, &os.ProcAttr{})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Wait()
			defer p.Kill()
			if tt.stop {
				p.Signal(unix.SIGSTOP)
			}
			fd, err := openLock()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}
			unix.Pwrite(fd, []byte(strconv.Itoa(p.Pid)+"\n"), 0)
			for begun := time.Now(); holderState(fd) != tt.state; time.Sleep(time.Millisecond) {
				if time.Since(begun) > 10*time.Second {
					t.Fatalf("the holder is in state %v, want %v", holderState(fd), tt.state)
				}
			}
			start := time.Now()
			lockInsertions()()
			if d := time.Since(start); d > tt.limit {
				t.Errorf("waited for %v", d)
			}
		})
	}
}

func TestStateOf(t *testing.T) {
	for stat, want := range map[string]holding{
		"12 (staprun) R 1 2": working, "12 (a) S (b)) D 1": working, "12 (staprun) T 1": stopped, "12 (x) t 1": stopped,
		"12 (staprun) S 1": idling, "12 (staprun) I 1": idling, "": idling, "12 (x)": idling, "12 (x) ": idling,
	} {
		if got := stateOf(stat); got != want {
			t.Errorf("%q: got %v, want %v", stat, got, want)
		}
	}
}

func FuzzStateOf(f *testing.F) {
	f.Add("12 (staprun) R 1 2")
	f.Fuzz(func(t *testing.T, stat string) { stateOf(stat) })
}

// Waiters of one user come in one after the other; the limit holds for each. Nobody
// waits for another user, and root goes on in the end.
func TestSecurity15LockOfAUser(t *testing.T) {
	inRun(t)
	fd, err := openLock()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	take := func() error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Start: 4242, Len: 1})
	}
	if err := take(); err != nil {
		t.Fatal(err)
	}
	second, err := openLock()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, taken, err := wait(second, 100*time.Millisecond, nil, func() error {
		return unix.FcntlFlock(uintptr(second), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Start: 4242, Len: 1})
	})
	if d := time.Since(start); taken || err != nil || d < 100*time.Millisecond || d > 2*time.Second {
		t.Errorf("got %v, %v after %v", taken, err, d)
	}
	if os.Getuid() != 0 {
		t.Skip("only root goes on without the lock")
	}
	start = time.Now()
	unlock, _, err := lockUser(4243)
	if d := time.Since(start); err != nil || d > lockWait/2 {
		t.Fatalf("another user's: %v after %v", err, d)
	}
	unlock()
	start = time.Now()
	unlock, _, err = lockUser(4242)
	if d := time.Since(start); err != nil || d < lockWait || d > 2*lockWait {
		t.Fatalf("this user's: %v after %v, want %v", err, d, lockWait)
	}
	unlock()
}

// Whoever waits first has a lock first, be it a user's or that of all insertions.
func TestSecurity15WaitersInOrder(t *testing.T) {
	inRun(t)
	fd, err := openLock()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// The holder is at work: for an idle one nobody waits long.
	holder, stop := make(chan int), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		holder <- unix.Gettid()
		for {
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	defer close(stop)
	if _, err := unix.Pwrite(fd, fmt.Appendf(nil, "%d\n", <-holder), 0); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name       string
		hold, free func() error
		wait       func() (func(), bool)
	}{
		{"a user's",
			func() error { return byteLock(fd, unix.F_OFD_SETLKW, 4242) },
			func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}) },
			func() (func(), bool) { unlock, taken, err := lockUser(4242); return unlock, taken && err == nil }},
		{"of all insertions",
			func() error { return unix.Flock(fd, unix.LOCK_EX) },
			func() error { return unix.Flock(fd, unix.LOCK_UN) },
			func() (func(), bool) {
				other, err := openLock()
				if err != nil {
					return nil, false
				}
				return behind(other)
			}},
	} {
		if err := tt.hold(); err != nil {
			t.Fatal(err)
		}
		const waiters = 8
		order := make(chan int, waiters)
		for i := range waiters {
			go func() {
				unlock, taken := tt.wait()
				order <- i
				if taken {
					unlock()
				} else {
					t.Errorf("%s: waiter %d gives up", tt.name, i)
				}
			}()
			if !soon(func() bool { return waiting(t, fd) == i+1 }) {
				t.Fatalf("%s: %d wait, want %d", tt.name, waiting(t, fd), i+1)
			}
		}
		if err := tt.free(); err != nil {
			t.Fatal(err)
		}
		for i := range waiters {
			if got := <-order; got != i {
				t.Errorf("%s: waiter %d comes as number %d", tt.name, got, i)
			}
		}
	}
}

// waiting is how many wait in the kernel for locks of a file (proc_locks(5)).
func waiting(t *testing.T, fd int) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	return len(regexp.MustCompile(fmt.Sprintf(`(?m)^\d+: +-> .*:%d `, st.Ino)).FindAll(locks, -1))
}

// Root who removes everything waits once for a user whose staprun is stopped, and for
// others as ever.
func TestSecurity15RootWaitsOnceForAUser(t *testing.T) {
	inRun(t)
	if os.Getuid() != 0 {
		t.Skip("only root goes on without the lock")
	}
	unlock, _, err := lockUser(4242)
	if err != nil {
		t.Fatal(err)
	}
	l := &loader{}
	for _, tt := range []struct {
		module string
		owner  int
		waits  bool
		held   bool
	}{
		{"first", 4242, true, false}, {"second", 4242, false, false}, {"another's", 4243, false, true}, {"third", 4242, false, false},
	} {
		start := time.Now()
		held, release, err := l.lockRemoval(0, tt.owner, tt.module)
		if waited := time.Since(start) >= lockWait; err != nil || waited != tt.waits || held != tt.held {
			t.Errorf("%s: waited %v, want %v; got %v, %v", tt.module, waited, tt.waits, held, err)
		}
		release()
	}
	unlock()
	if !soon(func() bool {
		held, release, err := l.lockRemoval(0, 4242, "goes on")
		release()
		return err == nil && held
	}) {
		t.Error("the lock is not taken any more when the staprun has gone on")
	}
}

// A run directory in which nothing can be made keeps nobody from removing.
func TestSecurity15NoLockFile(t *testing.T) {
	inRun(t)
	hostpaths.Runstatedir += "/missing"
	lockInsertions()()
	if _, err := openLock(); err == nil {
		t.Fatal("a lock file was made")
	}
	if os.Getuid() != 0 {
		if _, _, err := lockUser(4242); !errors.Is(err, errNoLock) {
			t.Errorf("got %v", err)
		}
		t.Skip("only root removes modules")
	}
	unlock, _, err := lockUser(4242)
	if err != nil {
		t.Fatalf("root: %v", err)
	}
	unlock()
	// A user removes, and does not load.
	withChannel(t, 4242, 0o600)
	hostpaths.Runstatedir += "/missing"
	if err := removeAs(t, 4242); err == nil || errors.Is(err, errNoLock) || errors.Is(err, errNotProven) {
		t.Errorf("a user removes: got %v", err)
	}
	if err := unix.Setresuid(4242, 0, 0); err != nil {
		t.Fatal(err)
	}
	_, _, err = lockUser(4242)
	if back := unix.Setresuid(0, 0, 0); back != nil {
		t.Fatal(back)
	}
	if !errors.Is(err, errNoLock) {
		t.Errorf("a user loads: got %v", err)
	}
}

// A module counts for whoever loaded it, whoever its control file belongs to.
func TestSecurity10ClaimsOfModules(t *testing.T) {
	inRun(t)
	const uid = 4242
	for _, name := range []string{"../x", "a/b", "", ".."} {
		if _, err := claim(uid, name); err == nil {
			t.Errorf("%q is claimed", name)
		}
	}
	if news, err := claim(0, "m"); news || err != nil {
		t.Errorf("root: got %v, %v", news, err)
	}
	// What is in /sys/module is loaded; the names of these are always there.
	if news, err := claim(uid, "kernel"); !news || err != nil {
		t.Fatalf("got %v, %v", news, err)
	}
	if news, err := claim(uid, "kernel"); news || err != nil {
		t.Errorf("once more: got %v, %v", news, err)
	}
	if _, err := claim(uid, "no_such_module"); err != nil {
		t.Fatal(err)
	}
	loaded := []kmod.Loaded{{Name: "kernel", UID: 100000}, {Name: "mine", UID: uid}, {Name: "other", UID: 7}}
	if n, err := claimed(uid, loaded); n != 2 || err != nil {
		t.Errorf("got %d, %v, want 2", n, err)
	}
	if left, _ := os.ReadDir(claimDir(uid)); len(left) != 1 {
		t.Errorf("what is not loaded is not forgotten: %v", left)
	}
	disclaimAll("kernel")
	if n, err := claimed(uid, loaded); n != 1 || err != nil {
		t.Errorf("got %d, %v, want 1", n, err)
	}
}

// soon waits for something to be so: who has waited for a lock in vain leaves a thread
// behind, which takes the lock for a moment when it is free.
func soon(is func() bool) bool {
	for begun := time.Now(); time.Since(begun) < 10*time.Second; time.Sleep(time.Millisecond) {
		if is() {
			return true
		}
	}
	return false
}

// Root drops nobody's claim beside an insertion of that user's, which may be about to
// load the next module of the name.
func TestSecurity10ClaimsBesideRootsRemoval(t *testing.T) {
	inRun(t)
	for _, uid := range []int{4242, 4243} {
		if _, err := claim(uid, "m"); err != nil {
			t.Fatal(err)
		}
	}
	unlock, _, err := lockUser(4242)
	if err != nil {
		t.Fatal(err)
	}
	disclaimAll("m")
	if left, err := claimants(-1, "m"); err != nil || len(left) != 1 || left[0] != 4242 {
		t.Errorf("beside an insertion of user 4242: got %v, %v", left, err)
	}
	if os.Getuid() == 0 {
		held, release, err := (&loader{}).lockRemoval(0, 4242, "m")
		if err != nil || held {
			t.Errorf("the owner's lock is not taken: got %v, %v", held, err)
		}
		release()
	}
	unlock()
	if !soon(func() bool {
		disclaimAll("m")
		left, err := claimants(-1, "m")
		return err == nil && len(left) == 0
	}) {
		t.Error("afterwards a claim is left")
	}
}

// Only a module that the kernel does not have is forgotten, not one that cannot be
// looked at; and the look is root's.
func TestSecurity10ClaimsThatCannotBeCounted(t *testing.T) {
	inRun(t)
	const uid = 4242
	if _, err := claim(uid, "m"); err != nil {
		t.Fatal(err)
	}
	old := sysModule
	t.Cleanup(func() { sysModule = old })
	base := t.TempDir()
	notMounted, notADirectory, hidden := filepath.Join(base, "none"), filepath.Join(base, "file"), filepath.Join(base, "hidden")
	if err := errors.Join(os.WriteFile(notADirectory, nil, 0o644), os.MkdirAll(filepath.Join(hidden, "m"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{notMounted, notADirectory} {
		sysModule = dir
		n, err := claimed(uid, nil)
		if _, gone := os.Lstat(filepath.Join(claimDir(uid), "m")); err == nil || gone != nil {
			t.Errorf("%s: got %d, %v; the claim: %v", filepath.Base(dir), n, err, gone)
		}
	}
	// Nor can claims be counted that are not to be read.
	sysModule = hidden
	claims := claimDir(uid)
	if err := errors.Join(os.Rename(claims, claims+"-"), os.WriteFile(claims, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if n, err := claimed(uid, nil); err == nil {
		t.Errorf("no directory of claims: got %d", n)
	}
	if err := errors.Join(os.Remove(claims), os.Rename(claims+"-", claims)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root looks for users")
	}
	if err := errors.Join(os.Chmod(base, 0o700), unix.Setresuid(uid, 0, 0)); err != nil {
		t.Fatal(err)
	}
	n, err := claimed(uid, nil)
	if err := unix.Setresuid(0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if n != 1 || err != nil {
		t.Errorf("hidden from users: got %d, %v, want 1", n, err)
	}
}
