package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"stapbox/e2e/lab"
)

var smaller = regexp.MustCompile(`WARNING: buffers of (\d+) MB per CPU, not 4000: not enough memory\n`)

// -b 24 gave 16, and -b 100 gave 64, without a word: a ring was a power of two.
func TestBufferSize(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/buf.ko", lab.Root, 0o644, module(t, s.kernel, "", `probe begin { system("cp /proc/vmallocinfo /tmp/vmalloc") } probe timer.s(1) { exit() }`))
		// The kernel adds a page to each area.
		areas := func(mb int) string {
			got := s.do(t, lab.Shell(lab.Root, fmt.Sprintf("grep -c ' %d .*e2e_test_module' /tmp/vmalloc", mb<<20+4096)))
			return strings.TrimSpace(string(got.Stdout))
		}
		for _, mb := range []int{1, 3, 24, 100} {
			want(t, s.do(t, lab.Command(lab.Root, "staprun", "-b", fmt.Sprint(mb), "/tmp/buf.ko")), 0, "")
			if got := areas(mb); got != "2" {
				all := s.do(t, lab.Shell(lab.Root, "tail -n 12 /tmp/vmalloc"))
				t.Errorf("-b %d: %s areas of that size, want one for each of 2 CPUs:\n%s%s", mb, got, all.Stdout, all.Stderr)
			}
		}
		a := s.do(t, lab.Command(lab.Root, "staprun", "-b", "4000", "/tmp/buf.ko"))
		m := smaller.FindStringSubmatch(string(a.Stderr))
		if m == nil || a.Status != 0 {
			t.Fatalf("-b 4000: status %d, stderr %q", a.Status, a.Stderr)
		}
		if mb, _ := strconv.Atoi(m[1]); mb < 64 || areas(mb) != "2" {
			t.Errorf("-b 4000: %s areas of %s MB", areas(mb), m[1])
		}
		// Records of a length that is no divisor of anything, around a ring of 3 MB.
		s.put(t, "/tmp/ring.ko", lab.Root, 0o644, module(t, s.kernel, "", `global n probe timer.ms(1) { for (i = 0; i < 90 && n < 60000; i++) printf("%d %.150s\n", n++, "`+strings.Repeat("x", 151)+`") if (n >= 60000) exit() }`))
		want(t, s.do(t, lab.Shell(lab.Root, `staprun -b 3 -o /tmp/out /tmp/ring.ko && awk '$1 != n++ || length($2) != 150 { bad++ } END { print n, bad + 0 }' /tmp/out`)), 0, "60000 0\n")
	})
}

// The manual said that the content of a procfs file is cut; the probe ends with an
// error, as upstream's does.
func TestProcfsOverflow(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		got := s.drive(t, built(t, s, "one", `probe procfs("small").read { for (i = 0; i < 300; i++) $value .= "0123456789" }`), `insmod /tmp/one.ko
attach; start; message; message; wc -c < $D/small; message; message; finish; detach; rmmod one`)
		want(t, got, 0, msgTransport+msgStart+"511\n"+"R...ERROR: buffer size exceeded, consider .maxsize(521). near identifier '$value' at <input>:1:56 (called from identifier '$value' at <input>:1:56) in probe procfs(\"small\").read\n\n"+msgRequestExit)
	})
}

// The kernel takes a parameter that a module does not have for a remark to its log.
func TestUnknownParameter(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/lim.ko", lab.Root, 0o644, module(t, s.kernel, "", `global top = 1, list[3], my_name = "x" probe begin { list[1] = top println(list[1], " ", my_name) exit() }`))
		for _, tt := range []struct{ word, stdout, stderr string }{
			{"top=5", "5 x\n", ""},
			{"my-name=y", "1 y\n", ""},
			{"tpo=5", "", `the script has no global scalar "tpo", which "tpo=5" is to set`},
			{"list=1", "", `the script has no global scalar "list"`},
			{"name=1", "", `the script has no global scalar "name"`},
		} {
			status := 0
			if tt.stdout == "" {
				status = 1
			}
			want(t, s.do(t, lab.Command(lab.Root, "staprun", "/tmp/lim.ko", tt.word)), status, tt.stdout, tt.stderr)
		}
	})
}
