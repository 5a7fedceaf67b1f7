package e2e

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"stapbox/e2e/lab"
)

var update = flag.Bool("update", false, "write the golden files anew")

// row is one statement of the specification of staprun and stapio
// (loader-relay) and the test of it in a guest.
type row struct {
	section string // of the specification: "2.2"
	id      string // within the section
	what    string // the statement, in one line
	run     func(t *testing.T, s *scene)
}

// pin says how many rows a section has and what was counted for that.
type pin struct {
	section string
	rows    int
	counted string
}

func allRows() []row { return append(rowsLoader(), rowsRelay()...) }

func allPins() []pin { return append(pinsLoader(), pinsRelay()...) }

const rowsTable = "testdata/rows.md"

// TestRowTable holds the number of rows of each section to what was counted in
// the specification, and the table in testdata to the rows.
func TestRowTable(t *testing.T) {
	have, want := map[string]int{}, map[string]int{}
	seen := map[string]bool{}
	for _, r := range allRows() {
		have[r.section]++
		if key := r.section + " " + r.id; seen[key] {
			t.Errorf("row %s is there twice", key)
		} else {
			seen[key] = true
		}
		if strings.ContainsAny(r.what, "|\n") {
			t.Errorf("row %s %s: %q does not fit a table", r.section, r.id, r.what)
		}
	}
	for _, p := range allPins() {
		want[p.section] += p.rows
	}
	for section := range have {
		if have[section] != want[section] {
			t.Errorf("section %s: %d rows, %d were counted in the specification", section, have[section], want[section])
		}
	}
	for section := range want {
		if have[section] == 0 {
			t.Errorf("section %s has no rows", section)
		}
	}
	table := formatRows()
	if *update {
		if err := os.WriteFile(rowsTable, []byte(table), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(read(t, rowsTable)); got != table {
		t.Errorf("%s is not what the rows say; go test ./e2e -run TestRowTable -update writes it", rowsTable)
	}
}

// formatRows is the table of all rows as Markdown.
func formatRows() string {
	var b strings.Builder
	b.WriteString("# Rows of the specification\n\nMade by TestRowTable from rows_*_test.go; TestRows runs each row in a guest.\n\n| section | rows | counted |\n|---|---|---|\n")
	for _, p := range allPins() {
		fmt.Fprintf(&b, "| %s | %d | %s |\n", p.section, p.rows, p.counted)
	}
	b.WriteString("\n| section | row | statement |\n|---|---|---|\n")
	for _, r := range allRows() {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.section, r.id, r.what)
	}
	return b.String()
}

// TestRows runs every row in a guest, the rows shared out among the kernels, and
// prints one line a row. STAPBOX_KERNELS=all runs every row on every kernel.
func TestRows(t *testing.T) {
	rows := allRows()
	results := make([]string, len(rows))
	var mu sync.Mutex
	t.Cleanup(func() {
		for _, r := range results {
			if r != "" {
				fmt.Print(r)
			}
		}
	})
	for _, version := range lab.Versions() {
		onKernel(t, version, func(t *testing.T, s *scene) {
			for i, r := range rows {
				if !s.turn(i) {
					continue
				}
				result := ""
				t.Run(r.section+"/"+r.id, func(t *testing.T) {
					result = "FAIL"
					defer func() {
						if !t.Failed() {
							result = "ok"
						}
					}()
					r.run(t, s)
					if l := s.loaded(t); l != "" {
						t.Errorf("left loaded: %s", l)
						s.do(t, lab.Shell(lab.Root, "killall -9 staprun stapio 2>/dev/null; for m in $(ls /proc/systemtap); do rmmod $m; done"))
					}
				})
				if result == "" {
					continue // left out by -run
				}
				mu.Lock()
				results[i] += fmt.Sprintf("%-4s %-6s %-6s %-4s %s\n", result, version, r.section, r.id, r.what)
				mu.Unlock()
			}
		})
	}
}
