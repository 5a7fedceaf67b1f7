package e2e

import (
	"bufio"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	requirementsList  = "testdata/requirements.txt"
	requirementsTable = "testdata/requirements.md"
)

// requirement is a line of the list.
type requirement struct {
	id, concern, words string
}

// requirementRanges are all ids.
const requirementRanges = "R-000-001..046 R-001-001..018 R-002-001..112 R-003-001..140 R-004-001..062 B-01..28 B-40..56 B-60..62 A-01..18 C-01..27"

// TestRequirements holds the list to the ids it must have, every requirement that
// is met to a test that names it in a line "Requirements: ID ...", every other one
// to a reason, and the table to all that.
func TestRequirements(t *testing.T) {
	ids, err := expandIDs(requirementRanges)
	if err != nil {
		t.Fatal(err)
	}
	list := readRequirements(t)
	var have []string
	for _, r := range list {
		have = append(have, r.id)
		if !slices.Contains([]string{"here", "decided"}, r.concern) || r.words == "" || strings.Contains(r.words, "|") {
			t.Errorf("%s: %q %q does not fit the table", r.id, r.concern, r.words)
		}
	}
	if !slices.Equal(have, ids) {
		t.Errorf("the list has %d ids %q, not the %d of %s", len(have), have, len(ids), requirementRanges)
	}
	shown := requirementTests(t)
	for _, id := range slices.Sorted(maps.Keys(shown)) {
		if !slices.Contains(ids, id) {
			t.Errorf("%s is named by %q and not in the list", id, shown[id])
		}
	}
	for _, r := range list {
		if r.concern == "here" && len(shown[r.id]) == 0 {
			t.Errorf("no test shows %s: %s", r.id, r.words)
		}
		if r.concern == "decided" && (len(shown[r.id]) > 0 || !decisionName.MatchString(r.words)) {
			t.Errorf("%s is decided otherwise, by no decision that %q ends with or in spite of %q", r.id, r.words, shown[r.id])
		}
	}
	var b strings.Builder
	b.WriteString("# Requirements\n\nMade by TestRequirements from requirements.txt and the lines \"Requirements:\" of the tests;\n`STAPBOX_UPDATE=1 go test ./e2e -run '^TestRequirements$'` writes it. What has no test is decided otherwise, by the decision of the design in parentheses.\n\n| id | requirement | shown by |\n|---|---|---|\n")
	for _, r := range list {
		by := strings.Join(shown[r.id], ", ")
		if by == "" {
			by = "none: " + r.concern
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.id, r.words, by)
	}
	if *update || os.Getenv("STAPBOX_UPDATE") != "" {
		if err := os.WriteFile(requirementsTable, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(read(t, requirementsTable)); got != b.String() {
		t.Errorf("%s is not what list and tests say; STAPBOX_UPDATE=1 go test ./e2e -run '^TestRequirements$' writes it", requirementsTable)
	}
}

func readRequirements(t *testing.T) []requirement {
	t.Helper()
	var list []requirement
	for line := range strings.Lines(string(read(t, requirementsList))) {
		if f := strings.Fields(line); len(f) > 2 && f[0] != "#" {
			list = append(list, requirement{f[0], f[1], strings.Join(f[2:], " ")})
		}
	}
	return list
}

// expandIDs reads ids parted by blanks; R-004-008..010 is three.
func expandIDs(text string) ([]string, error) {
	var out []string
	for _, word := range strings.Fields(text) {
		first, last, isRange := strings.Cut(word, "..")
		if !requirementID.MatchString(first) {
			return nil, fmt.Errorf("%q is no id", word)
		}
		if !isRange {
			out = append(out, first)
			continue
		}
		prefix := strings.LastIndexByte(first, '-') + 1
		from, err1 := strconv.Atoi(first[prefix:])
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || len(last) != len(first)-prefix || to <= from {
			return nil, fmt.Errorf("%q is no range of ids", word)
		}
		for n := from; n <= to; n++ {
			out = append(out, fmt.Sprintf("%s%0*d", first[:prefix], len(last), n))
		}
	}
	return out, nil
}

var (
	requirementID = regexp.MustCompile(`^(R-\d{3}-\d{3}|[ABC]-\d{2})$`)
	decisionName  = regexp.MustCompile(`\([A-Z]\d+\)$`)
	testFunction  = regexp.MustCompile(`^func (?:\([^)]*\) )?(\w+)\(`)
)

// requirementTests gives the tests that name each id: functions below their
// comment, scripts of testdata/cli by their comments.
func requirementTests(t *testing.T) map[string][]string {
	t.Helper()
	shown := map[string][]string{}
	note := func(path, line, test string) {
		_, text, _ := strings.Cut(line, "Requirements: ")
		ids, err := expandIDs(text)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for _, id := range ids {
			shown[id] = append(shown[id], test)
		}
	}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		inTests := strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "../e2e/interop/") && strings.HasSuffix(path, ".go")
		inScript := strings.HasSuffix(path, ".txt") && filepath.Base(filepath.Dir(path)) == "cli"
		if !inTests && !inScript {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		name := strings.TrimPrefix(path, "../")
		pending := ""
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			line := lines.Text()
			switch {
			case inScript && strings.HasPrefix(line, "# Requirements: "):
				note(name, line, name)
			case inScript:
			case strings.HasPrefix(line, "// Requirements: "):
				if pending != "" {
					t.Errorf("%s: %q stands above no function", name, pending)
				}
				pending = line
			case pending != "":
				if m := testFunction.FindStringSubmatch(line); m != nil {
					note(name, pending, filepath.Dir(name)+" "+m[1])
					pending = ""
				} else if !strings.HasPrefix(line, "//") {
					t.Errorf("%s: %q stands above no function", name, pending)
					pending = ""
				}
			}
		}
		return lines.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tests := range shown {
		slices.Sort(tests)
	}
	return shown
}

func TestExpandIDs(t *testing.T) {
	got, err := expandIDs("R-000-001 R-004-009..011")
	if want := []string{"R-000-001", "R-004-009", "R-004-010", "R-004-011"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, bad := range []string{"R-1-2", "R-000-001..1", "R-000-002..001", "R-000-001,R-000-002"} {
		if got, err := expandIDs(bad); err == nil {
			t.Errorf("%q: got %q", bad, got)
		}
	}
}
