package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"stapbox/e2e/lab"
)

// casesTable lists tests by number, package and name.
const casesTable = "e2e/testdata/cases.txt"

// cases runs the tests of the table and prints one line for each.
func cases(_ *ending, l *lab.Lab, _ []string) error {
	if err := headers(l); err != nil {
		return err
	}
	b, err := os.ReadFile(casesTable)
	if err != nil {
		return err
	}
	type row struct{ number, pkg, test, words string }
	var rows []row
	byPackage := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] == "#" {
			continue
		}
		rows = append(rows, row{f[0], "stapbox/" + f[1], f[2], strings.Join(f[3:], " ")})
		name, _, _ := strings.Cut(f[2], "/")
		if pkg := "stapbox/" + f[1]; !slices.Contains(byPackage[pkg], name) {
			byPackage[pkg] = append(byPackage[pkg], name)
		}
	}
	result, output := map[string]string{}, map[string]string{}
	for _, pkg := range slices.Sorted(maps.Keys(byPackage)) {
		pattern := "^(" + strings.Join(byPackage[pkg], "|") + ")$"
		// Its status is that of all its tests; each is looked at below.
		goTest([]string{"-run", pattern, pkg}, func(e event) {
			key := e.Package + " " + e.Test
			output[key] += e.Output
			if slices.Contains([]string{"pass", "fail", "skip"}, e.Action) {
				result[key] = e.Action
			}
		})
	}
	right := 0
	skipped := regexp.MustCompile(`(?m)^\s*--- SKIP: `)
	for _, r := range rows {
		key := r.pkg + " " + r.test
		outcome := result[key]
		if skipped.MatchString(output[key]) {
			outcome = "skip"
		}
		fmt.Printf("%-5s %s  %s\n", outcome, r.number, r.words)
		if outcome == "pass" {
			right++
		} else {
			fmt.Print(output[key])
		}
	}
	fmt.Printf("%d of %d cases are right\n", right, len(rows))
	if right != len(rows) {
		return errors.New("not all cases are right")
	}
	return nil
}
