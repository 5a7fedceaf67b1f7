package e2e

import (
	"fmt"
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
	text := testSources(t)
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

// testSources is the text of all tests.
func testSources(t *testing.T) string {
	t.Helper()
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
	return sources.String()
}

// TestCaseTable holds the table of e2e/run cases to the tests.
func TestCaseTable(t *testing.T) {
	text := testSources(t)
	n := 0
	for line := range strings.Lines(string(read(t, "testdata/cases.txt"))) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		n++
		if len(f) < 4 || f[0] != fmt.Sprintf("%02d", n) {
			t.Fatalf("row %d is %q", n, line)
		}
		function, part, _ := strings.Cut(f[2], "/")
		if !strings.Contains(text, "\nfunc "+function+"(t *testing.T) {") {
			t.Errorf("there is no test %s", function)
		}
		if part != "" {
			read(t, "testdata/cases/"+part+".txt")
		}
	}
	if files, err := filepath.Glob("testdata/cases/*.txt"); err != nil || len(files) != 13 {
		t.Errorf("%d files, %v; each has a row", len(files), err)
	}
	if n != 24 {
		t.Errorf("%d cases, not 24", n)
	}
}
