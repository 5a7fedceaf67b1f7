package e2e

import (
	"strings"
	"testing"
)

// The room for globals in monitor_status may end anywhere, also right behind the
// brace that opens an array: what is left then has a size, not one below zero,
// for which the kernel prints a warning with a stack.
func TestMonitorStatusEndsAnywhere(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		m := built(t, s, "one", `global full, pad, z
probe begin { full = "x"; for (i = 0; i < 16; i++) full .= full; z[1] = 2 }
probe procfs("pad").write { pad = substr(full, 0, strtol($value, 10)) }`, "--monitor", "-DMAXSTRINGLEN=65536")
		got := s.drive(t, m, `dmesg -c >/dev/null; insmod /tmp/one.ko; attach; start
echo 0 > $D/pad; base=$(sed 's/"z": {.*//' $D/monitor_status | tr -d '\n' | wc -c)
for n in $(seq $((131072 - base - 24)) $((131072 - base + 4))); do
	echo $n > $D/pad; grep -o '"z": {[^}]*}' $D/monitor_status || echo none
done | uniq -c | awk '{$1 = $1; print}'
finish; detach; rmmod one; dmesg | grep -c 'cut here'`)
		if out := string(got.Stdout); !strings.HasSuffix(out, "\n0\n") || !strings.Contains(out, ` "z": {"(1)": 2}`+"\n") || !strings.Contains(out, ` "z": {}`+"\n") || !strings.Contains(out, " none\n") {
			t.Errorf("got %q, %q", out, got.Stderr)
		}
	})
}
