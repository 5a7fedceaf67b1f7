package e2e

import (
	"strings"
	"testing"
	"time"

	"stapbox/e2e/lab"
)

// What a member of stapusr may load must not bring the host down, whatever the
// script.
func TestUserScriptsCannotHarmTheHost(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		id, _ := signers(t)
		s.forgetSigners(t)
		s.trustSigner(t, id)
		defer s.forgetSigners(t)
		put := func(script string) string {
			m := module(t, s.kernel, "stapusr", script)
			s.put(t, "/tmp/abuse.ko", lab.Usr, 0o644, m)
			s.put(t, "/tmp/abuse.ko.sgn", lab.Usr, 0o644, sign(t, m, id))
			return "/tmp/abuse.ko"
		}
		t.Run("3000 calls in one statement do not exceed the kernel stack", func(t *testing.T) {
			file := put("function f() { return 1 } probe begin { println(" + strings.Repeat("f(),", 3000) + "1) exit() }")
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", file)), 0, strings.Repeat("1", 3001)+"\n")
		})
		t.Run("sorting a large array counts", func(t *testing.T) {
			file := put("global a[1000000], n function fill() { for (i = 0; i < 3000; i++) { a[n++] = (n * 7919) % 1000003 } }\n" +
				strings.Repeat("probe begin { fill() }\n", 50) +
				"probe timer.ms(100) { for (i = 0; i < 1000; i++) { foreach (v = [k] in a- limit 1) n += v foreach (v = [k] in a+ limit 1) n += v } println(n) exit() }")
			start := time.Now()
			got := s.do(t, lab.Command(lab.Usr, "staprun", "-b", "1", file))
			want(t, got, 1, "", "MAXACTION exceeded")
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("that took %v", d)
			}
		})
		t.Run("modules leave memory to others", func(t *testing.T) {
			file := put("probe timer.s(60) { exit() }")
			r := lab.Shell(lab.Usr, "for i in $(seq 8); do staprun -R -b 256 "+file+" 2>/dev/null & sleep 1; done; "+
				// What the relays themselves have is not the modules'.
				"p=$(cat /proc/[0-9]*/status | awk '/^Name:/ {n = $2} /^RssAnon:/ && n ~ /^sta/ {s += $2} END {print s + 0}'); "+
				"awk -v p=$p '/^MemTotal/ {t = $2} /^MemAvailable/ {a = $2} END {print ((a + p) * 20 > t) ? \"enough left\" : a \" and \" p \" of \" t}' /proc/meminfo; "+
				"kill -INT $(jobs -p) 2>/dev/null; wait; true")
			r.Timeout = 90
			want(t, s.do(t, r), 0, "enough left\n")
		})
		t.Run("parameters do not write lines into the kernel log", func(t *testing.T) {
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", put(hello), "\"x\nforged\"=1")), 1, "", "control characters")
		})
	})
}
