package e2e

import (
	"strings"
	"testing"

	"stapbox/e2e/lab"
)

// stalls waits until process $W of a shell has its file open, and some time more for
// its call.
const stalls = `until ls -l /proc/$W/fd 2>/dev/null | grep -q /proc/systemtap/; do kill -0 $W || break; sleep 0.1; done; sleep 0.5
`

// A process that wrote a procfs file from a page that never came made the removal
// of the module unkillable, and kept everybody from inserting another. Now an
// open file holds the module, removal says so, and a session ends without it.
func TestSecurity08StalledProcfsCall(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		const name = "e2e_test_module_with_long_name"
		s.put(t, "/tmp/p.ko", lab.Root, 0o644, module(t, s.kernel, "", `probe procfs("x").write { println($value) } probe procfs("d/r").read { $value = "text\n" } probe begin { println("up") } probe end { println("down") }`))
		s.put(t, "/tmp/q.ko", lab.Root, 0o644, built(t, s, "other", hello))
		for _, tt := range []struct{ how, file string }{{"write", "x"}, {"read", "d/r"}} {
			t.Run("removal, "+tt.how, func(t *testing.T) {
				got := s.do(t, lab.Shell(lab.Root, `staprun -L /tmp/p.ko || exit 9
/agent stall `+tt.how+` /proc/systemtap/`+name+`/`+tt.file+` 2>/dev/null & W=$!
`+stalls+`timeout -s KILL 15 staprun -d `+name+`; echo "removal $?"
timeout -s KILL 15 staprun /tmp/q.ko; echo "insertion $?"
echo "process $W" >&2
kill -KILL $W; wait $W 2>/dev/null
staprun -d `+name+`; echo "removal $?"`))
				want(t, got, 0, "removal 1\nHello\ninsertion 0\nremoval 0\n", "Couldn't remove module '"+name+"': Resource temporarily unavailable.\n", "hint: files of module "+name+" are open: process ")
				lines := strings.Split(strings.TrimSpace(string(got.Stderr)), "\n")
				if who := lines[len(lines)-1]; !strings.Contains(string(got.Stderr), "are open: "+who+" (") {
					t.Errorf("stderr %q does not name %s", got.Stderr, who)
				}
			})
			t.Run("end of the session, "+tt.how, func(t *testing.T) {
				r := lab.Shell(lab.Root, `rm -f /tmp/out; staprun /tmp/p.ko > /tmp/out 2>/tmp/err & S=$!
until [ -s /tmp/out ]; do kill -0 $S || break; sleep 0.1; done
/agent stall `+tt.how+` /proc/systemtap/`+name+`/`+tt.file+` 2>/dev/null & W=$!
`+stalls+`kill -INT $S
( sleep 20; kill -KILL $S 2>/dev/null ) & K=$!
wait $S; echo "session $?"; kill $K
cat /tmp/out; cat /tmp/err >&2
cat /proc/systemtap/`+name+`/`+tt.file+`; echo "file $?"
kill -KILL $W; wait $W 2>/dev/null
staprun -d `+name+`; echo "removal $?"`)
				r.Timeout = 90
				a := s.do(t, r)
				if !strings.HasPrefix(string(a.Stdout), "session 1\n") && !strings.HasPrefix(string(a.Stdout), "session 0\n") ||
					!strings.HasSuffix(string(a.Stdout), "\nup\ndown\nfile 1\nremoval 0\n") {
					t.Errorf("stdout %q", a.Stdout)
				}
				for _, w := range []string{"WARNING: a procfs file is still being read or written", "Couldn't remove module"} {
					if !strings.Contains(string(a.Stderr), w) {
						t.Errorf("stderr %q lacks %q", a.Stderr, w)
					}
				}
			})
		}
	})
}
