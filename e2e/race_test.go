package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// stress says that the long versions of the stress and race tests are wanted.
func stress() bool { return os.Getenv("STAPBOX_STRESS") != "" }

// rounds is a number of rounds in a normal run, and with STAPBOX_STRESS.
func rounds(normal, long int) int {
	if stress() {
		return long
	}
	return normal
}

const (
	testModule = "e2e_test_module_with_long_name"
	// evil is what no test that swaps files under staprun may ever see.
	evil = `probe begin { println("EVIL") exit() }`
)

var (
	listed = regexp.MustCompile(`(?m)^at: (.*)$`)
	acted  = regexp.MustCompile(`(?m)^act: (.*)$`)
)

// calls runs a command once and lists the system calls at which it can be
// stopped, up to the last that contains a text.
func (s *scene) calls(t *testing.T, r request.Request, last string) []string {
	t.Helper()
	r.Break = &request.Break{List: true}
	a := s.do(t, r)
	var list []string
	end := 0
	for _, m := range listed.FindAllStringSubmatch(string(a.Stderr), -1) {
		list = append(list, m[1])
		if strings.Contains(m[1], last) {
			end = len(list)
		}
	}
	if end == 0 {
		t.Fatalf("the command makes no call %q: status %d, stdout %q, stderr %q", last, a.Status, a.Stdout, a.Stderr)
	}
	return list[:end]
}

// putSigned writes a module of level stapusr and its signature.
func (s *scene) putSigned(t *testing.T, path, script string) {
	t.Helper()
	id, _ := signers(t)
	m := module(t, s.kernel, "stapusr", script)
	s.put(t, path, lab.Usr, 0o644, m)
	s.put(t, path+".sgn", lab.Usr, 0o644, sign(t, m, id))
}

// TestKilledAnywhere kills staprun, stapio and staprun -d before system calls all
// along their way. What is left is what staprun -d cleans.
func TestKilledAnywhere(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		id, _ := signers(t)
		s.forgetSigners(t)
		s.trustSigner(t, id)
		defer s.forgetSigners(t)
		s.putSigned(t, "/tmp/kill.ko", `probe begin { println("up") } probe timer.ms(200) { exit() } probe end { println("down") }`)
		run := lab.Command(lab.Usr, "staprun", "/tmp/kill.ko")
		points := s.calls(t, run, "staprun -d exit_group")
		// Those around which something changes, and others between them.
		chosen := map[int]bool{}
		for _, text := range []string{"memfd_create", "finit_module", "openat .cmd", "staprun write", "setresgid", "setresuid", "execve", "stapio openat .cmd", "stapio write", "stapio openat trace0", "staprun -d flock", "staprun -d delete_module", "staprun -d exit_group"} {
			found := false
			for n, p := range points {
				if strings.Contains(p, text) && !chosen[n] {
					chosen[n], found = true, true
					break
				}
			}
			if !found {
				t.Errorf("no point %q in\n%s", text, strings.Join(points, "\n"))
			}
		}
		wanted := rounds(20, len(points))
		for n := len(points) - 1; n >= 0 && len(chosen) < wanted; n -= max(1, len(points)/wanted*2) {
			chosen[n] = true
		}
		for n := range points {
			if len(chosen) < wanted {
				chosen[n] = true
			}
		}
		killed, left, turn := map[string]int{}, 0, 0
		for n := range points {
			if !chosen[n] {
				continue
			}
			// The kernels take turns: together they have all the points.
			if turn++; !s.turn(turn) {
				continue
			}
			r := run
			r.Break = &request.Break{Nth: n + 1}
			a := s.do(t, r)
			m := acted.FindStringSubmatch(string(a.Stderr))
			if m == nil {
				continue // this run made fewer calls
			}
			program, _, _ := strings.Cut(m[1], " ")
			if strings.HasPrefix(m[1], "staprun -d") {
				program = "staprun -d"
			}
			killed[program]++
			if s.loaded(t) != "" {
				left++
			}
			s.cleanAs(t, lab.Usr, m[1])
		}
		if killed["staprun"] == 0 || killed["stapio"] == 0 {
			t.Errorf("killed: %v", killed)
		}
		t.Logf("killed at %d of %d points (%v), %d of them left the module", killed["staprun"]+killed["stapio"]+killed["staprun -d"], len(points), killed, left)
		want(t, s.do(t, run), 0, "up\ndown\n")
	})
}

// TestEndedAnywhere sends SIGTERM to staprun and stapio before system calls all
// along the start of a script that has no end of its own: none is lost, also not
// where one program becomes the other. A stapio that ends the run removes the
// module; one that it ends leaves it for staprun -d.
func TestEndedAnywhere(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		id, _ := signers(t)
		s.forgetSigners(t)
		s.trustSigner(t, id)
		defer s.forgetSigners(t)
		s.putSigned(t, "/tmp/end.ko", `probe begin { println("up") } probe end { println("down") }`)
		s.putSigned(t, "/tmp/kill.ko", `probe begin { println("up") } probe timer.ms(200) { exit() }`)
		points := s.calls(t, lab.Command(lab.Usr, "staprun", "/tmp/kill.ko"), "stapio openat trace0")
		run := lab.Command(lab.Usr, "staprun", "/tmp/end.ko")
		run.Timeout = 30
		ends, missed := map[int]int{}, 0
		step := rounds(10, 1)
		for n, p := range points {
			// The kernels take turns, except where something changes.
			changes := strings.Contains(p, "finit_module") || strings.Contains(p, "execve") || strings.Contains(p, "staprun setresuid")
			if !changes && (n%step > 0 || !s.turn(n/step)) {
				continue
			}
			r := run
			r.Break = &request.Break{Nth: n + 1, Shell: "killall -TERM staprun 2>/dev/null || killall -TERM stapio", Hold: 100}
			a, err := s.guest.Do(r)
			if err != nil {
				t.Errorf("SIGTERM before %q: %v", p, err)
				s.do(t, lab.Shell(lab.Root, "killall -9 staprun stapio; true"))
			}
			if err == nil && !acted.Match(a.Stderr) {
				missed++ // this run made fewer calls, and so was not ended
				s.cleanAs(t, lab.Usr, p)
				continue
			}
			if a.Status != 0 && a.Status != 1 && a.Status != 128+15 {
				t.Errorf("SIGTERM before %q: status %d, stdout %q, stderr %q", p, a.Status, a.Stdout, a.Stderr)
			}
			ends[a.Status]++
			s.cleanAs(t, lab.Usr, p)
		}
		t.Logf("of %d points, %d not reached; exit statuses %v", len(points), missed, ends)
		if missed > 2 {
			t.Errorf("%d points were not reached", missed)
		}
		if ends[0] == 0 || ends[1] == 0 {
			t.Errorf("statuses %v: runs should have ended before and after the start of stapio", ends)
		}
	})
}

// cleanAs lets a user remove what is left after a kill, as soon as it is
// detached, and checks that nothing is left then.
func (s *scene) cleanAs(t *testing.T, u lab.User, when string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		l := s.loaded(t)
		if l == "" {
			break
		}
		name, _, _ := strings.Cut(l, "\n")
		a := s.do(t, lab.Command(u, "staprun", "-d", name))
		if a.Status == 0 {
			continue
		}
		if time.Now().After(deadline) {
			t.Errorf("killed at %q: staprun -d gives status %d, %q; loaded: %q", when, a.Status, a.Stderr, l)
			s.do(t, lab.Shell(lab.Root, "killall -9 staprun stapio; for m in $(ls /proc/systemtap); do rmmod $m; done"))
			break
		}
	}
	if a := s.do(t, lab.Shell(lab.Root, "pidof staprun stapio")); len(a.Stdout) > 0 {
		time.Sleep(time.Second)
		if a := s.do(t, lab.Shell(lab.Root, "pidof staprun stapio")); len(a.Stdout) > 0 {
			t.Errorf("killed at %q: processes left over: %s", when, a.Stdout)
		}
	}
}

// swaps are what a caller, or somebody who may write where he must not, does to
// the things staprun looks at. Each is a pair: to the evil state and back.
type swap struct{ name, file, to, back string }

// swapScene prepares a signed module /tmp/race/m.ko and an evil, unsigned one, and
// gives the swaps of everything that decides.
func (s *scene) swapScene(t *testing.T) []swap {
	t.Helper()
	a, b := signers(t)
	s.forgetSigners(t)
	s.trustSigner(t, a)
	s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/race; mkdir -p /tmp/race/good /tmp/race/bad; chown -R usr /tmp/race"))
	s.putSigned(t, "/tmp/race/good/m.ko", hello)
	m := module(t, s.kernel, "stapusr", evil)
	s.put(t, "/tmp/race/bad/m.ko", lab.Usr, 0o644, m)
	s.put(t, "/tmp/race/bad/m.ko.sgn", lab.Usr, 0o644, sign(t, m, b)) // of nobody trusted
	s.do(t, lab.Shell(lab.Usr, "cd /tmp/race; cp -r good place; ln -s good dir; ln -s good/m.ko link.ko; ln -s good/m.ko.sgn link.ko.sgn; cp good/m.ko.sgn good.sgn; cp bad/m.ko.sgn bad.sgn"))
	return []swap{
		{"the file", "/tmp/race/place/m.ko", "cp /tmp/race/bad/m.ko /tmp/race/place/.n; mv /tmp/race/place/.n /tmp/race/place/m.ko", "cp /tmp/race/good/m.ko /tmp/race/place/.g; mv /tmp/race/place/.g /tmp/race/place/m.ko"},
		{"the file's content", "/tmp/race/place/m.ko", "cat /tmp/race/bad/m.ko >/tmp/race/place/m.ko", "cat /tmp/race/good/m.ko >/tmp/race/place/m.ko"},
		{"a link to the file", "/tmp/race/link.ko", "ln -sfn bad/m.ko /tmp/race/link.ko", "ln -sfn good/m.ko /tmp/race/link.ko"},
		{"the directory", "/tmp/race/dir/m.ko", "ln -sfn bad /tmp/race/dir", "ln -sfn good /tmp/race/dir"},
		{"the signature", "/tmp/race/place/m.ko", "cp /tmp/race/bad.sgn /tmp/race/.n; mv /tmp/race/.n /tmp/race/place/m.ko.sgn", "cp /tmp/race/good.sgn /tmp/race/.g; mv /tmp/race/.g /tmp/race/place/m.ko.sgn"},
	}
}

// TestRaceAtEachCall swaps what staprun looks at before one system call after the
// other: each time it loads what it verified, or refuses.
func TestRaceAtEachCall(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		swaps := s.swapScene(t)
		defer s.forgetSigners(t)
		seen := map[int]int{}
		for i, w := range swaps {
			r := lab.Command(lab.Usr, "staprun", w.file)
			points := s.calls(t, r, "staprun finit_module")
			step := rounds(16, 1)
			for n := i % step; n < len(points); n += step {
				// The kernels take turns here too.
				if !s.turn(n / step) {
					continue
				}
				r := r
				r.Break = &request.Break{Nth: n + 1, Shell: w.to}
				a := s.do(t, r)
				s.do(t, lab.Shell(lab.Usr, w.back))
				seen[a.Status]++
				if strings.Contains(string(a.Stdout), "EVIL") {
					t.Errorf("%s swapped before %q: the evil module ran", w.name, points[n])
				}
				if a.Status == 0 && string(a.Stdout) != "Hello\n" || a.Status != 0 && len(a.Stdout) > 0 {
					t.Errorf("%s swapped before %q: status %d, stdout %q, stderr %q", w.name, points[n], a.Status, a.Stdout, a.Stderr)
				}
			}
		}
		if seen[0] == 0 || seen[255] == 0 {
			t.Errorf("statuses: %v; both verdicts should have been seen", seen)
		}
		t.Logf("statuses: %v", seen)
	})
}

// TestRaceRounds swaps everything at random moments, round after round. The store
// entry of the evil module's signer comes and goes too, in which case the evil
// module may be loaded: then its output says who signed it.
func TestRaceRounds(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		swaps := s.swapScene(t)
		defer s.forgetSigners(t)
		per := rounds(60, 2000) / len(lab.Versions()) / len(swaps)
		if s.kernel.Version == lab.Versions()[0] {
			per += rounds(60, 2000)/len(swaps) - per*len(lab.Versions())
		}
		for _, w := range swaps {
			r := lab.Shell(lab.Usr, fmt.Sprintf(`
				[ "$(staprun -R %[4]s)" = Hello ] || { echo "the good module does not load"; exit 1; }
				rm -f /tmp/race/stop
				while [ ! -e /tmp/race/stop ]; do { %[1]s; %[2]s; } 2>/dev/null; done & swapper=$!
				good=0; refused=0; other=0
				for i in $(seq %[3]d); do
					out=$(staprun -R %[4]s 2>/tmp/race/err); rc=$?
					case "$rc $out" in
					"0 Hello") good=$((good+1));;
					"255 "|"1 ") refused=$((refused+1));;
					*) other=$((other+1)); echo "round $i: status $rc, $out"; cat /tmp/race/err;;
					esac
				done
				touch /tmp/race/stop; wait $swapper # not killed: its last cp or cat would go on alone
				echo "good $good refused $refused other $other"`, w.to, w.back, per, w.file))
			r.Timeout = 60 + per*3
			a := s.do(t, r)
			if a.Status != 0 || !strings.HasSuffix(string(a.Stdout), " other 0\n") || strings.Contains(string(a.Stdout), "EVIL") {
				t.Errorf("%s: status %d, %s%s", w.name, a.Status, a.Stdout, a.Stderr)
			}
			t.Logf("%s: %s", w.name, strings.TrimSpace(string(a.Stdout)))
		}
	})
}

// TestRaceOfTheStore takes the signer's certificate away, and puts it back, while
// modules are loaded: a module is loaded only while its signer is there, and the
// store is never half read.
func TestRaceOfTheStore(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.swapScene(t)
		defer s.forgetSigners(t)
		r := lab.Command(lab.Usr, "staprun", "/tmp/race/place/m.ko")
		points := s.calls(t, r, "staprun finit_module")
		first := -1
		for n, p := range points {
			if strings.HasSuffix(p, ".pem") {
				first = n
			}
		}
		if first < 0 {
			t.Fatalf("no certificate is opened in\n%s", strings.Join(points, "\n"))
		}
		gone := "mv " + signerStore + "*.pem /tmp/race/"
		for n := range points {
			if n%rounds(16, 1) != 0 && n != first && n != first+1 {
				continue
			}
			r := r
			r.Break = &request.Break{Nth: n + 1, Shell: gone}
			a := s.do(t, r)
			s.do(t, lab.Shell(lab.Root, "mv /tmp/race/*.pem "+signerStore))
			if n <= first {
				want(t, a, 255, "", "Unable to verify the signature for the module")
			} else {
				want(t, a, 0, "Hello\n")
			}
		}
	})
}

// TestRemovalRemovesWhatWasProven stops staprun -d right before it removes a
// module. Nobody can put another module in its place meanwhile.
func TestRemovalRemovesWhatWasProven(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/ticker.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
		leave := func(u lab.User) {
			t.Helper()
			r := lab.Command(u, "staprun", "/tmp/ticker.ko")
			r.Signals = []request.Signal{{Number: 19, After: 200}, {Number: 9, After: 300}}
			s.do(t, r)
			if s.loaded(t) == "" {
				t.Fatal("no module is left")
			}
		}
		// A removal that is stopped delays nobody: the name is still taken, and that
		// is said at once. (Waiting for one at work: TestSecurity15LockOfAUser.)
		t.Run("an insertion beside a stopped one", func(t *testing.T) {
			leave(lab.Dev)
			r := lab.Command(lab.Dev, "staprun", "-d", testModule)
			r.Break = &request.Break{Text: "delete_module", Nth: 1, Shell: "cd /tmp; staprun -o /dev/null /tmp/ticker.ko; echo status $?"}
			a := s.do(t, r)
			want(t, a, 0, "", "act: staprun -d delete_module", "File exists", "status 1\n")
			if l := s.loaded(t); l != "" {
				t.Errorf("loaded afterwards: %s", l)
			}
		})
		t.Run("what has taken the name since stays", func(t *testing.T) {
			leave(lab.Dev)
			// Root may do what no lock keeps him from.
			s.put(t, "/tmp/swap.sh", lab.Root, 0o755, []byte("rmmod "+testModule+" && insmod /tmp/ticker.ko"))
			r := lab.Command(lab.Dev, "staprun", "-d", testModule)
			r.Break = &request.Break{Text: "staprun -d faccessat", Nth: 2, Shell: "sh /tmp/swap.sh"}
			a := s.do(t, r)
			want(t, a, 1, "", "Couldn't remove module")
			if s.loaded(t) == "" {
				t.Error("the other module was removed")
			}
			s.do(t, lab.Shell(lab.Root, "staprun -d "+testModule+" || rmmod "+testModule))
		})
	})
}

// TestOnlyTheInsertedIsTakenBack stops staprun between the insertion of a module
// and its introduction. The user cannot have the module removed meanwhile, and
// what root has put in its place stays: taking it back without a proof was
// CVE-2010-4171 once more.
func TestOnlyTheInsertedIsTakenBack(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/ticker.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
		s.put(t, "/tmp/swap.sh", lab.Root, 0o755, []byte("rmmod "+testModule+" && insmod /tmp/ticker.ko"))
		introduced := "staprun openat /proc/systemtap/" + testModule
		t.Run("removal waits", func(t *testing.T) {
			r := lab.Command(lab.Dev, "staprun", "-L", "/tmp/ticker.ko")
			r.Break = &request.Break{Text: introduced, Nth: 1, Shell: `cd /tmp; (su dev -s /bin/sh -c "staprun -d ` + testModule + `"; echo removed $?) >/tmp/second 2>&1 & sleep 1.5; cat /tmp/second`}
			// Once stapio takes over, who comes first is the user's own affair.
			a := s.do(t, r)
			if !strings.Contains(string(a.Stderr), "act: "+introduced) || strings.Contains(string(a.Stderr), "removed") {
				t.Errorf("the removal did not wait: %s", a.Stderr)
			}
			s.do(t, lab.Shell(lab.Root, "for i in $(seq 100); do grep -q removed /tmp/second && break; sleep 0.1; done; staprun -d '*'; rm /tmp/second"))
		})
		t.Run("what has taken the name since stays", func(t *testing.T) {
			r := lab.Command(lab.Dev, "staprun", "-L", "/tmp/ticker.ko")
			r.Break = &request.Break{Text: introduced, Nth: 1, Shell: "sh /tmp/swap.sh"}
			want(t, s.do(t, r), 1, "", "Couldn't remove module '"+testModule+"': it belongs to user 0.")
			if s.loaded(t) == "" {
				t.Error("the other module was removed")
			}
			want(t, s.do(t, lab.Shell(lab.Root, "staprun -d "+testModule)), 0, "")
		})
	})
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
