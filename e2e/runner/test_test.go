package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stapbox/e2e/lab"
)

// said makes events of lines "ACTION PACKAGE TEST".
func said(s *summary, lines ...string) {
	for _, l := range lines {
		f := append(strings.SplitN(l, " ", 3), "")
		s.add(event{Action: f[0], Package: f[1], Test: f[2]})
	}
}

func summaryOf(t *testing.T) *summary {
	t.Helper()
	s := newSummary(&lab.Lab{Dir: t.TempDir(), Log: io.Discard}, "test")
	s.line.out = io.Discard // it would be counted as the outer run's
	s.run = func(args []string, _ func(event)) error { return fmt.Errorf("not expected: go test %v", args) }
	return s
}

// A test with subtests counts as its subtests; one that fails by itself, and a
// package that fails without a test, count too.
func TestSummaryCounts(t *testing.T) {
	s := summaryOf(t)
	said(s,
		"run a TestA", "run a TestA/x", "run a TestA/y", "pass a TestA/x", "fail a TestA/y", "fail a TestA", "fail a ",
		"run b TestB", "run b TestB/z", "pass b TestB/z", "fail b TestB", "fail b ",
		"fail c ",
		"run d TestD", "skip d TestD", "run d TestE", "pass d TestE", "pass d ",
	)
	if err := s.again(); err != nil {
		t.Fatal(err)
	}
	s.print()
	if s.count["pass"] != 3 || s.count["fail"] != 3 || s.count["skip"] != 1 {
		t.Errorf("counts are %v", s.count)
	}
	if got := fmt.Sprint(s.names()); got != "[a TestA/y b TestB c ]" {
		t.Errorf("failures are %s", got)
	}
	if _, err := os.Stat(s.line.path); err == nil {
		t.Error("a run that failed is kept as a record of what to expect")
	}
}

func (s *summary) names() (out []string) {
	for _, f := range s.failures {
		out = append(out, f.pkg+" "+f.name)
	}
	return out
}

// A guest test that fails runs once more, alone, with what comes before it on its
// kernel. If it passes then it is flaky,
// and its log is kept.
func TestSummaryFlaky(t *testing.T) {
	s := summaryOf(t)
	var ran []string
	s.run = func(args []string, each func(event)) error {
		ran = append(ran, strings.Join(args, " "))
		if strings.Contains(args[1], "TestOften") {
			return errors.New("exit status 1")
		}
		each(event{Action: "pass", Package: "e", Test: "TestRows/6.12/15.3/2"})
		return nil
	}
	said(s, "run e TestRows", "run e TestRows/6.12", "run e TestRows/6.12/15.3/2", "run e TestOften", "run e TestOften/6.1", "run e TestHost")
	s.add(event{Action: "output", Package: "e", Test: "TestRows/6.12/15.3/2", Output: "why it failed\n"})
	said(s, "fail e TestRows/6.12/15.3/2", "fail e TestRows/6.12", "fail e TestRows", "fail e TestOften/6.1", "fail e TestOften", "fail e TestHost", "fail e ")
	if err := s.again(); err != nil {
		t.Fatal(err)
	}
	s.print()
	if got := fmt.Sprint(s.names()); got != "[e TestHost e TestOften/6.1]" {
		t.Errorf("failures are %s", got)
	}
	want := []string{`-run ^TestRows$/^6\.12$ e`, `-run ^TestOften$/^6\.1$ e`}
	if !slices.Equal(ran, want) {
		t.Errorf("ran %q, want %q", ran, want)
	}
	if len(s.flaky) != 1 || !strings.HasPrefix(s.flaky[0], "FLAKY TestRows/6.12/15.3/2 ") {
		t.Fatalf("flaky: %q", s.flaky)
	}
	logs, err := filepath.Glob(filepath.Join(s.lab.Dir, "flaky", "*-TestRows-6.12-15.3-2.log"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("logs: %v, %v", logs, err)
	}
	if b, err := os.ReadFile(logs[0]); err != nil || !strings.Contains(string(b), "why it failed") {
		t.Errorf("log: %q, %v", b, err)
	}
	if s.count["pass"] != 1 || s.count["fail"] != 2 {
		t.Errorf("counts are %v", s.count)
	}
}

// More than three failures are not by chance.
func TestSummaryManyFail(t *testing.T) {
	s := summaryOf(t)
	for i := range mostFlaky + 1 {
		said(s, fmt.Sprintf("run e Test%d/6.1", i), fmt.Sprintf("fail e Test%d/6.1", i))
	}
	if err := s.again(); err != nil || len(s.flaky) > 0 || len(s.failures) != mostFlaky+1 {
		t.Errorf("%v, flaky %v, failures %v", err, s.flaky, s.names())
	}
}

// Guests that died before our code ran are counted.
func TestSummaryRebooted(t *testing.T) {
	s := summaryOf(t)
	s.add(event{Action: "output", Package: "e", Output: "lab: " + lab.Rebooted + "booting kernel 6.12: int3\n"})
	if s.rebooted != 1 {
		t.Errorf("%d", s.rebooted)
	}
}

// A guest test fails once and then passes alone; the other run of the same package
// dies meanwhile: that is a failure.
func TestSummaryLostRun(t *testing.T) {
	s := summaryOf(t)
	dies := errors.New("exit status 1")
	s.run = func(args []string, each func(event)) error {
		for _, l := range strings.Split(args[0], ",") {
			f := append(strings.SplitN(l, " ", 3), "")
			each(event{Action: f[0], Package: f[1], Test: f[2]})
		}
		return dies
	}
	if err := s.goTest("run e TestRows,run e TestRows/6.12,fail e TestRows/6.12,fail e TestRows,fail e "); err != nil {
		t.Errorf("failures that are counted: %v", err)
	}
	if err := s.goTest("run e TestHost,fail e "); !errors.Is(err, dies) {
		t.Errorf("a run that ended early: %v", err)
	}
	s.run = func(args []string, each func(event)) error {
		each(event{Action: "pass", Package: "e", Test: "TestRows/6.12"})
		return nil
	}
	if err := s.again(); err != nil {
		t.Fatal(err)
	}
	s.print()
	if s.count["fail"] != 1 || len(s.flaky) != 1 {
		t.Errorf("flaky %v, failures %v", s.flaky, s.names())
	}
}
