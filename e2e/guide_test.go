package e2e

import (
	"slices"
	"strings"
	"testing"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// The two programs of the security guide, as the kernel sees them: staprun, with
// root's power until the module is there, and stapio, the user's own.
// Requirements: R-001-001..002 R-001-013..018
func TestTwoPrograms(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/two.ko", `probe begin { println("up") } probe timer.ms(300) { exit() } probe end { println("down") }`)

		// No other way leads into the kernel for those who are not root.
		for _, u := range []lab.User{lab.Usr, lab.Dev} {
			want(t, s.do(t, lab.Shell(u, "which sudo; insmod /tmp/two.ko; echo rc=$?")), 0, "rc=1\n", "Operation not permitted")
		}

		run := lab.Command(lab.Usr, "staprun", "/tmp/two.ko")
		calls := s.calls(t, run, "staprun -d exit_group")
		last := -1
		for _, step := range []string{
			"staprun finit_module", "staprun openat .cmd", "staprun setresgid", "staprun setresuid", "staprun capset", "staprun execve /usr/libexec/stapbox/stapio",
			"stapio openat .cmd", "stapio write", "stapio openat trace0", "stapio execve /usr/bin/staprun", "staprun -d delete_module " + testModule,
		} {
			at := slices.IndexFunc(calls[last+1:], func(c string) bool { return strings.HasPrefix(c, step) })
			if at < 0 {
				t.Fatalf("no %q after the first %d of\n%s", step, last+1, strings.Join(calls, "\n"))
			}
			last += 1 + at
		}
		// What each program does not do.
		for _, c := range calls {
			for _, bad := range []string{"staprun openat trace", "stapio finit_module", "stapio delete_module", "stapio setresuid", "stapio memfd_create"} {
				if strings.HasPrefix(c, bad) {
					t.Errorf("%q in\n%s", bad, strings.Join(calls, "\n"))
				}
			}
		}

		// Nothing of root's is left when staprun becomes stapio, nor later, and the
		// process the user started ends when the script does.
		const nothing = "Uid:\t1002\t1002\t1002\t1002\nGid:\t1002\t1002\t1002\t1002\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"
		for _, at := range []string{"staprun execve /usr/libexec/stapbox/stapio", "stapio openat trace0"} {
			r := run
			name, _, _ := strings.Cut(at, " ")
			r.Break = &request.Break{Text: at, Nth: 1, Shell: "grep -E '^(Uid|Gid|CapInh|CapPrm|CapEff):' /proc/$(pidof " + name + ")/status"}
			want(t, s.do(t, r), 0, "up\ndown\n", nothing)
		}
		// Before the module is there it is root's program that acts.
		r := run
		r.Break = &request.Break{Text: "staprun finit_module", Nth: 1, Shell: "grep ^Uid: /proc/$(pidof staprun)/status"}
		want(t, s.do(t, r), 0, "up\ndown\n", "Uid:\t1002\t0\t0\t")
	})
}
