package bench

import (
	"strings"
	"testing"
)

func TestRowVerdicts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		row    row
		held   bool
		budget string
	}{
		{"below an absolute budget", row{unit: seconds, ours: []float64{9, 0.1, 0.2}, most: 0.2}, true, "<= 0.2 s"},
		{"above it", row{unit: seconds, ours: []float64{0.1, 0.3, 0.3}, most: 0.2}, false, "<= 0.2 s"},
		{"below a ratio", row{unit: milliseconds, ours: []float64{0.0013}, theirs: []float64{0.001}, ratio: 1.3}, true, "<= 1.3x"},
		{"above a ratio", row{unit: milliseconds, ours: []float64{0.0014}, theirs: []float64{0.001}, ratio: 1.3}, false, "<= 1.3x"},
		{"one of two missed", row{unit: seconds, ours: []float64{0.1}, theirs: []float64{0.5}, most: 0.15, ratio: 0.1}, false, "<= 0.15 s, 0.1x"},
		{"a ratio to nothing", row{unit: seconds, ours: []float64{0.1}, ratio: 0.1}, false, "<= 0.1x"},
		{"nothing measured", row{unit: bytes, most: 64 << 10}, false, "<= 65536 bytes"},
		{"memory", row{unit: mebibytes, ours: []float64{20 << 20}, most: 20 << 20}, true, "<= 20 MiB"},
		{"shown without budget", row{unit: perSecond, ours: []float64{400}}, true, "-"},
		{"nothing lost", row{unit: records, ours: []float64{0, 0, 0}, none: true}, true, "none"},
		{"something lost", row{unit: records, ours: []float64{0, 1, 1}, none: true}, false, "none"},
	} {
		if got := tt.row.held(); got != tt.held {
			t.Errorf("%s: held is %v, want %v", tt.name, got, tt.held)
		}
		if got := tt.row.budget(); got != tt.budget {
			t.Errorf("%s: budget %q, want %q", tt.name, got, tt.budget)
		}
	}
}

func TestTableFailsWithAMissedBudget(t *testing.T) {
	var out strings.Builder
	b := &bench{out: &out}
	b.add(&row{what: "first", unit: seconds, ours: []float64{1}, theirs: []float64{4}, most: 2})
	if err := b.close(); err != nil {
		t.Errorf("all budgets hold, but: %v\n%s", err, &out)
	}
	b.add(&row{what: "second", unit: seconds, ours: []float64{3}, most: 2})
	if err := b.close(); err == nil || !strings.Contains(out.String(), "MISSED") {
		t.Errorf("got %v, want an error and MISSED in\n%s", err, &out)
	}
}

func TestLargeScript(t *testing.T) {
	b := &bench{}
	first, second := b.large(), b.large()
	if first == second {
		t.Error("the large script is the same each time")
	}
	if n := strings.Count(first, "\n"); n < 200 || n > 205 {
		t.Errorf("the large script has %d lines, not 200", n)
	}
}

func TestReadLoss(t *testing.T) {
	got, err := readLoss("90000 12000\nWARNING: generated 1000\nWARNING: There were 90 transport failures. Try stap -s\nWARNING: There were 10 lost messages, 5 lost bytes, and 0 unexpected sequences.\n")
	if want := (loss{generated: 1000, arrived: 900, dropped: 90, lost: 10, peak: 12000}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "x", "90000 12000\n"} {
		if l, err := readLoss(bad); err == nil {
			t.Errorf("%q: got %+v", bad, l)
		}
	}
}
