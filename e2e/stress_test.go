package e2e

import (
	"fmt"
	"strings"
	"testing"

	"stapbox/e2e/lab"
)

// counters is a shell function that prints what a load must give back: modules,
// control directories, processes, open files and threads of the whole guest, files
// in /tmp and /run, and memory in kilobytes that is neither free nor cache nor a
// process's.
const counters = `counters() {
	echo modules $(grep -c . /proc/modules)
	echo directories $(ls /proc/systemtap 2>/dev/null | wc -l)
	echo processes $(ls -d /proc/[0-9]* | wc -l)
	echo files $(cut -f1 /proc/sys/fs/file-nr)
	echo threads $(ls -d /proc/[0-9]*/task/* | wc -l)
	echo names $(find /tmp /run /home /root | wc -l)
	awk '/^(MemTotal|MemFree|Buffers|Cached|AnonPages|SReclaimable|SUnreclaim|VmallocUsed):/ {v[$1] = $2}
		END {print "memory", v["MemTotal:"] - v["MemFree:"] - v["Buffers:"] - v["Cached:"] - v["AnonPages:"] - v["SReclaimable:"]
			print "slab", v["SUnreclaim:"]; print "vmalloc", v["VmallocUsed:"]}' /proc/meminfo
}
`

// TestStressCycles loads and unloads a module again and again, two at a time, as
// a user with a signed module. What the guest has afterwards is what it had before.
func TestStressCycles(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/stress.ko", hello)
		cycle := func(n int) {
			t.Helper()
			for done := 0; done < n; done += 100 {
				r := lab.Shell(lab.Usr, fmt.Sprintf(`n=0; for i in $(seq %d); do
					staprun -R /tmp/stress.ko >/tmp/s1 2>&1 & a=$!
					staprun -R /tmp/stress.ko >/tmp/s2 2>&1 & b=$!
					wait $a && wait $b && [ "$(cat /tmp/s1 /tmp/s2)" = "$(printf 'Hello\nHello')" ] && n=$((n+2)) || cat /tmp/s1 /tmp/s2
				done; echo $n; rm -f /tmp/s1 /tmp/s2`, min(100, n-done)/2))
				r.Timeout = 300
				want(t, s.do(t, r), 0, fmt.Sprintf("%d\n", min(100, n-done)/2*2))
			}
		}
		count := func() map[string]int {
			t.Helper()
			// The least memory of some seconds: pages that are free come back late.
			a := s.do(t, lab.Shell(lab.Root, counters+"sync; for i in 1 2 3 4 5; do echo 3 >/proc/sys/vm/drop_caches; sleep 1; counters; done"))
			m := map[string]int{}
			for line := range strings.Lines(string(a.Stdout)) {
				name, n, ok := strings.Cut(strings.TrimSpace(line), " ")
				if old, again := m[name]; ok && (!again || name != "memory" || atoi(t, n) < old) {
					m[name] = atoi(t, n)
				}
			}
			if len(m) != 9 {
				t.Fatalf("counters: %q, %q", a.Stdout, a.Stderr)
			}
			return m
		}
		cycle(30) // caches of the kernel and of busybox
		before := count()
		n := rounds(80, 10000) / len(lab.Versions()) // as many on all kernels together
		cycle(n / 2)
		middle := count()
		cycle(n / 2)
		after := count()
		t.Logf("%d cycles: before %v, in the middle %v, after %v", n, before, middle, after)
		for name, slack := range map[string]int{
			"modules": 0, "directories": 0, "names": 0,
			"processes": 3, "threads": 6, "files": 64, // kernel threads and the agent's own come and go
		} {
			if after[name] > before[name]+slack {
				t.Errorf("%s: %d before, %d after %d cycles", name, before[name], after[name], n)
			}
		}
		// Memory that a leak takes grows in the second half like in the first. All of
		// it together goes up and down by some 50 MB on an idle guest, as the kernel
		// frees pages late: that shows leaks of many pages, the other two small ones.
		for name, slack := range map[string]int{"memory": 48 << 10, "slab": 1024 + n/8, "vmalloc": 512} {
			if after[name] > middle[name]+slack {
				t.Errorf("%s: %d kB after %d cycles, %d kB after %d", name, middle[name], n/2, after[name], n)
			}
		}
	})
}
