package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestSecurityTable holds the table of security findings to its rows, and each test
// that it names to one that is there.
func TestSecurityTable(t *testing.T) {
	var sources strings.Builder
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		sources.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text := sources.String()
	rows := map[string]int{}
	name := regexp.MustCompile(`^Test\w+(/\w+)?$`)
	for line := range strings.Lines(string(read(t, "testdata/security.md"))) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 4 || cells[0] == "| finding" {
			continue
		}
		rows[strings.TrimPrefix(cells[0], "| ")]++
		tests := strings.Fields(cells[2])
		if len(tests) == 0 || len(cells[1]) < 20 {
			t.Errorf("row %q has no test or no rule", line)
		}
		for _, test := range tests {
			function, part, _ := strings.Cut(test, "/")
			if !name.MatchString(test) || !strings.Contains(text, "\nfunc "+function+"(t *testing.T) {") ||
				part != "" && !strings.Contains(text, `t.Run("`+part+`", `) {
				t.Errorf("there is no test %s", test)
			}
		}
	}
	for n := 1; n <= 15; n++ {
		if rows[strconv.Itoa(n)] == 0 {
			t.Errorf("finding %d has no row", n)
		}
		delete(rows, strconv.Itoa(n))
	}
	if rows["residual"] < 4 || len(rows) != 1 {
		t.Errorf("rows besides the findings: %v", rows)
	}
}
