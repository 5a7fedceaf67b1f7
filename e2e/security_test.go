package e2e

import (
	"fmt"
	"strings"
	"testing"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// look writes down what a command of a script has that could be root's.
const look = `#!/bin/sh
{
echo "uid $(id -u) groups $(id -G)"
echo "terminal number $(cut -d' ' -f7 /proc/self/stat)"
tty
echo "standard input $(readlink /proc/self/fd/0)"
for p in self $PPID; do
	for f in /proc/$p/fd/*; do echo "descriptor $(readlink $f)"; done
	tr '\0' '\n' </proc/$p/environ | sed 's/^/environment /'
done
cat <&7
cat /proc/$(pidof staprun)/environ
ls -d /proc/self/cwd/.
echo "directory $(pwd)"
cat /proc/keys
} >/tmp/seen 2>&1
chmod 666 /tmp/seen
printf 'terminal \033]0;title\007 \302\233 end\n'
`

// What one user can do to another, or to root, by way of staprun. The scenes of
// each kernel share a guest.
func TestSecurityLoader(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		defer s.forgetSigners(t)
		t.Run("01RootAttachesWithoutTerminal", func(t *testing.T) { s.security01(t) })
		t.Run("09LinksOfOthersInProc", func(t *testing.T) { s.security09(t) })
		t.Run("10MaxModulesAfterChown", func(t *testing.T) { s.security10(t) })
		t.Run("11NamesInPidNamespaces", func(t *testing.T) { s.security11(t) })
		t.Run("15ReadOnlyRun", func(t *testing.T) { s.security15(t) })
		t.Run("15LockInOrder", func(t *testing.T) { s.security15Order(t) })
		t.Run("StoppedStaprunDelaysNobody", func(t *testing.T) { s.securityStopped(t) })
	})
}

// Root attaches to a user's module, or loads one as that user, from his terminal,
// with a secret in the environment and in a descriptor.
func (s *scene) security01(t *testing.T) {
	s.put(t, "/tmp/look.sh", lab.Root, 0o755, []byte(look))
	s.do(t, lab.Shell(lab.Root, "mkdir -p /root; chmod 700 /root; echo 'only root reads this' >/root/secret; chmod 600 /root/secret; chmod 1777 /tmp"))
	s.putSigned(t, "/tmp/look.ko", `global n probe timer.ms(700) { if (n++ == 0) { system("/tmp/look.sh") } }`)
	// What is typed meanwhile is for root's next command.
	root := func(command string) request.Answer {
		r := lab.Command(lab.Root, "/agent", "terminal", "sh", "-c", "cd /root; rm -f /tmp/seen; export ROOT_SECRET=hunter2; exec 7</root/secret\n"+
			command+"; echo status $?; read a b; echo root typed $a $b")
		r.Data = []byte("root password\n")
		return s.do(t, r)
	}
	seen := func(t *testing.T, a request.Answer) {
		t.Helper()
		out := string(a.Stdout)
		for _, w := range []string{`terminal \033]0;title\007 \302\233 end`, "status 0", "Disconnecting from systemtap module.", "root typed root password"} {
			if !strings.Contains(out, w) {
				t.Errorf("root's terminal lacks %q:\n%q", w, out)
			}
		}
		if strings.ContainsAny(out, "\x1b\a") || strings.Contains(out, "\u009b") {
			t.Errorf("control characters reach root's terminal: %q", out)
		}
		got := string(s.do(t, lab.Shell(lab.Root, "cat /tmp/seen")).Stdout)
		for _, w := range []string{"uid 1002 groups 1002 156\n", "terminal number 0\n", "not a tty\n", "standard input /dev/null\n", "environment PATH=", "directory /\n"} {
			if !strings.Contains(got, w) {
				t.Errorf("the user's command lacks %q:\n%s", w, got)
			}
		}
		for _, w := range []string{"hunter2", "only root reads", "/root/secret", "/dev/pts", "/dev/tty", "environment HOME", "environment PWD"} {
			if strings.Contains(got, w) {
				t.Errorf("the user's command has %q of root's:\n%s", w, got)
			}
		}
		want(t, s.do(t, lab.Shell(lab.Root, "staprun -d "+testModule)), 0, "")
	}
	t.Run("attach", func(t *testing.T) {
		s.do(t, lab.Command(lab.Usr, "staprun", "-L", "/tmp/look.ko"))
		seen(t, root("timeout -s QUIT 5 staprun -A "+testModule))
	})
	t.Run("SYSTEMTAP_REAL_UID", func(t *testing.T) {
		seen(t, root("SYSTEMTAP_REAL_UID=1002 timeout -s QUIT 5 staprun /tmp/look.ko"))
	})
	t.Run("bytes for a file stay as they are", func(t *testing.T) {
		s.do(t, lab.Command(lab.Usr, "staprun", "-L", "/tmp/look.ko"))
		a := s.do(t, lab.Shell(lab.Root, "timeout -s INT 4 staprun -A "+testModule))
		want(t, a, 0, "terminal \x1b]0;title\a \u009b end\n")
	})
	t.Run("the user can neither stop nor see root's process", func(t *testing.T) {
		s.do(t, lab.Command(lab.Usr, "staprun", "-L", "/tmp/look.ko"))
		a := s.do(t, lab.Shell(lab.Root, `ROOT_SECRET=hunter2 staprun -A `+testModule+` >/dev/null & p=$!; sleep 2
			su usr -c "kill -STOP $p; cat /proc/$p/environ"; grep -c State:.T /proc/$p/status; kill -TERM $p; wait $p; echo $?`))
		if string(a.Stdout) != "0\n0\n" || strings.Count(string(a.Stderr), "ermi") != 2 {
			t.Errorf("status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
		}
	})
	t.Run("standard input goes to a command of root's, and its status is told", func(t *testing.T) {
		a := s.do(t, lab.Shell(lab.Root, `echo text | SYSTEMTAP_REAL_UID=1002 staprun -c 'sh -c "cat; id -u; exit 3"' /tmp/look.ko; echo $?`))
		want(t, a, 0, "text\n1002\n1\n", "Child process exited with status 3")
	})
	t.Run("a stapio that is killed", func(t *testing.T) {
		a := s.do(t, lab.Shell(lab.Root, "SYSTEMTAP_REAL_UID=1002 staprun /tmp/look.ko >/tmp/killed & p=$!; until grep -q end /tmp/killed; do sleep 0.1; done; killall -KILL stapio; wait $p; s=$?; cat /tmp/killed; echo $s; staprun -d "+testModule))
		want(t, a, 0, "terminal \x1b]0;title\a \u009b end\n137\n", "stapio of user 1002 was ended by a signal: killed")
	})
	s.do(t, lab.Shell(lab.Root, "rm -f /tmp/seen /root/secret"))
}

// Where links in another user's /proc lead is not told.
func (s *scene) security09(t *testing.T) {
	a := s.do(t, lab.Shell(lab.Usr, "readlink /proc/1/exe; staprun -v -v /proc/1/exe; staprun -v -v /proc/1/cwd/bin/busybox"))
	if out := string(a.Stdout) + string(a.Stderr); strings.Contains(out, "/bin/busybox.sgn") || strings.Contains(out, "/agent.sgn") ||
		strings.Contains(out, "Signature file") || strings.Count(out, "Permission denied") < 4 {
		t.Errorf("got %s", out)
	}
	// Root's own rights to files are not the less.
	want(t, s.do(t, lab.Shell(lab.Root, "staprun -v -v /proc/1/exe 2>&1 | grep -c 'Signature file'")), 0, "1\n")
}

// A module counts for who has loaded it, whoever its control file belongs to.
func (s *scene) security10(t *testing.T) {
	s.putSigned(t, "/tmp/ticker.ko", ticker)
	s.put(t, "/etc/stapbox/load.conf", lab.Root, 0o644, []byte("max-modules=2\n"))
	defer s.do(t, lab.Shell(lab.Root, "rm /etc/stapbox/load.conf; staprun -d '*'"))
	for range 2 {
		s.detached(t, lab.Usr, "-R", "/tmp/ticker.ko")
	}
	s.do(t, lab.Shell(lab.Root, "chown 100000 /proc/systemtap/*/.cmd"))
	const all = "You have 2 modules loaded, which is all that max-modules=2 allows"
	want(t, s.do(t, lab.Command(lab.Usr, "staprun", "-R", "/tmp/ticker.ko")), 255, "", all)
	// Others have their own count, and what is removed does not count.
	s.detached(t, lab.Usr2, "-R", "/tmp/ticker.ko")
	want(t, s.do(t, lab.Shell(lab.Root, "staprun -d '*' | wc -l; find /run/stapbox/loaded -type f | wc -l")), 0, "3\n0\n")
	for range 2 {
		s.detached(t, lab.Usr, "-R", "/tmp/ticker.ko")
	}
	want(t, s.do(t, lab.Command(lab.Usr, "staprun", "-R", "/tmp/ticker.ko")), 255, "", all)
	// A module that something else than staprun has removed is forgotten.
	s.do(t, lab.Shell(lab.Root, "for m in $(ls /proc/systemtap); do rmmod $m; done"))
	s.detached(t, lab.Usr, "-R", "/tmp/ticker.ko")
	want(t, s.do(t, lab.Shell(lab.Usr, "staprun -d '*' | wc -l")), 0, "1\n")
}

// Two containers have processes of the same id.
func (s *scene) security11(t *testing.T) {
	s.putSigned(t, "/tmp/short.ko", `probe timer.s(4) { exit() } probe end { println("end") }`)
	a := s.do(t, lab.Shell(lab.Root, "for i in 1 2 3; do unshare -p -f su usr -c 'staprun -R /tmp/short.ko; echo status $?' & done; wait"))
	if out := string(a.Stdout); strings.Count(out, "end\n") != 3 || strings.Count(out, "status 0\n") != 3 || len(a.Stderr) > 0 {
		t.Errorf("stdout %q, stderr %q", out, a.Stderr)
	}
}

// Where /run/stapbox cannot be made, root loads, everybody removes, and users are
// told what keeps them from loading.
func (s *scene) security15(t *testing.T) {
	s.putSigned(t, "/tmp/ticker.ko", ticker)
	s.detached(t, lab.Usr, "/tmp/ticker.ko")
	r := lab.Shell(lab.Root, `unshare -m sh -c '
mount -t tmpfs -o mode=755 none /run; mount -o remount,ro /run
su usr -c "staprun -d `+testModule+`; echo removed \$?"
su usr -c "staprun /tmp/ticker.ko; echo refused \$?"
timeout -s INT 3 staprun -o /dev/null /tmp/ticker.ko; echo loaded $?'`)
	want(t, s.do(t, r), 0, "removed 0\nrefused 1\nloaded 0\n", "the lock file cannot be opened: mkdir /run/stapbox: read-only file system")
}

// As many as a user may have at once come in, in the order in which they wait.
func (s *scene) security15Order(t *testing.T) {
	const n = 24
	s.putSigned(t, "/tmp/ticker.ko", ticker)
	r := lab.Shell(lab.Root, fmt.Sprintf("for i in $(seq %d); do su usr -c 'staprun -R -L -b 1 /tmp/ticker.ko >/dev/null 2>/tmp/failed.'$i' || cat /tmp/failed.'$i & done; wait; ls /proc/systemtap | wc -l; rm -f /tmp/failed.*", n))
	r.Timeout = 200
	want(t, s.do(t, r), 0, fmt.Sprintf("%d\n", n))
	want(t, s.do(t, lab.Shell(lab.Usr, "staprun -d '*' | wc -l")), 0, fmt.Sprintf("%d\n", n))
}

// A user stops his staprun while it has the lock of insertions. Others go on at
// once, and so does his own when it may.
func (s *scene) securityStopped(t *testing.T) {
	s.putSigned(t, "/tmp/ticker.ko", ticker)
	took := func(r request.Request) (ms int) {
		t.Helper()
		a := s.do(t, r)
		var out strings.Builder
		for line := range strings.Lines(string(a.Stdout) + string(a.Stderr)) {
			if _, err := fmt.Sscanf(line, "took %d", &ms); err != nil {
				out.WriteString(line)
			}
		}
		if a.Status != 0 || ms == 0 {
			t.Fatalf("status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
		}
		return ms
	}
	const other = `su usr2 -c 'read a b </proc/uptime; staprun -R -L /tmp/ticker.ko || exit; read c d </proc/uptime; a=${a%.*}${a#*.} c=${c%.*}${c#*.}; echo took $(((c-a)*10))'`
	alone := took(lab.Shell(lab.Root, other))
	r := lab.Command(lab.Usr, "staprun", "-R", "-L", "/tmp/ticker.ko")
	r.Break = &request.Break{Text: "staprun finit_module", Nth: 1, Shell: other + " 2>&1"}
	a := s.do(t, r)
	stopped := 0
	for line := range strings.Lines(string(a.Stderr)) {
		fmt.Sscanf(line, "took %d", &stopped)
	}
	t.Logf("alone %d ms, beside a stopped one %d ms", alone, stopped)
	if a.Status != 0 || stopped == 0 || stopped > alone+1500 {
		t.Errorf("alone it takes %d ms, beside a stopped staprun %d ms; status %d, stderr %q", alone, stopped, a.Status, a.Stderr)
	}
	want(t, s.do(t, lab.Shell(lab.Root, "staprun -d '*' | wc -l")), 0, "3\n")
}
