package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"stapbox/e2e/lab"
)

// event is a line of go test -json (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64

	early bool // a package that failed for another reason than its tests, or before they ended
}

// onKernel finds the kernel in the name of a guest test.
var onKernel = regexp.MustCompile(`/(\d+\.\d+)(/|$)`)

// itsTurn is what a guest test says when its guest is free.
var itsTurn = regexp.MustCompile(`its turn after ([0-9.]+) s`)

// quickTests are those of the built binary that test quick runs: the command
// line, and the walk of a request in one guest.
const (
	quickTests  = "^(TestCLI|TestWalk)$"
	quickKernel = "6.12"
)

// e2ePackage is the package of the tests of the built binary.
const e2ePackage = "stapbox/e2e"

// test runs everything and closes with counts.
func test(_ *ending, l *lab.Lab, args []string) error {
	quick := len(args) > 0 && args[0] == "quick"
	if quick {
		args = args[1:]
		os.Setenv("STAPBOX_KERNELS", quickKernel)
	}
	if os.Geteuid() != 0 {
		fmt.Println("Not root: guests, servers' users and network namespaces are skipped, which is most of e2e. As root: sudo ./e2e/run test")
	}
	if err := headers(l); err != nil {
		return err
	}
	s := newSummary(l, cmp.Or(strings.Join(args, " "), map[bool]string{true: "quick", false: "all"}[quick]))
	vetted := make(chan error, 1)
	go func() { vetted <- vet() }()
	var err error
	switch {
	case len(args) > 0:
		err = s.goTest(args...)
	case quick:
		var others []string
		if others, err = packagesBut(e2ePackage); err == nil {
			err = s.together(others, []string{"-run", quickTests, e2ePackage})
		}
	default:
		err = s.everything()
	}
	s.line.clear()
	if err := s.again(); err != nil {
		return err
	}
	s.print()
	if s.count["fail"] > 0 {
		return errors.Join(errors.New("tests failed"), <-vetted)
	}
	return errors.Join(err, <-vetted)
}

// headers gets what tests build modules with, and tells them where it is.
func headers(l *lab.Lab) error {
	if err := l.EnsureTools(); err != nil {
		return err
	}
	var dirs []string
	for _, v := range lab.Versions() {
		k, err := l.FetchKernel(v)
		if err != nil {
			return err
		}
		dirs = append(dirs, k.Headers)
	}
	return os.Setenv("STAPBOX_KERNEL_HEADERS", strings.Join(dirs, string(filepath.ListSeparator)))
}

// everything runs all tests. Those of guests wait for them most of the time, and so
// run beside those of this machine.
func (s *summary) everything() error {
	others, err := packagesBut(e2ePackage)
	if err != nil {
		return err
	}
	guests, err := testsThatCall("e2e", guestFunctions...)
	if err != nil {
		return err
	}
	pattern := "^(" + strings.Join(guests, "|") + ")$"
	return s.together([]string{"-run", pattern, e2ePackage}, []string{"-skip", pattern, e2ePackage}, others)
}

func vet() error {
	if out, err := exec.Command("go", "vet", "./...").CombinedOutput(); err != nil {
		return fmt.Errorf("go vet ./...: %w\n%s", err, out)
	}
	return nil
}

// packagesBut lists the packages of the module without one.
func packagesBut(name string) ([]string, error) {
	out, err := exec.Command("go", "list", "./...").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(p string) bool { return p == name }), nil
}

// together runs go test with each list of arguments, side by side.
func (s *summary) together(lists ...[]string) error {
	errs := make([]error, len(lists))
	var wg sync.WaitGroup
	for i, args := range lists {
		wg.Go(func() { errs[i] = s.goTest(args...) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// goTest runs go test and counts what it says.
func (s *summary) goTest(args ...string) error {
	open, failed := map[string]string{}, map[string]bool{} // of this run: tests that have not ended, packages with a failed one
	err := s.run(args, func(e event) {
		key := e.Package + "\x00" + e.Test
		switch {
		case e.Test != "" && e.Action == "run":
			open[key] = e.Package
		case e.Test != "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip"):
			delete(open, key)
			failed[e.Package] = failed[e.Package] || e.Action == "fail"
		case e.Test == "" && e.Action == "fail":
			e.early = !failed[e.Package] || slices.Contains(slices.Collect(maps.Values(open)), e.Package)
		}
		s.add(e)
	})
	if slices.Contains(slices.Collect(maps.Values(failed)), true) {
		return nil // what failed is counted
	}
	return err
}

func goTest(args []string, each func(event)) error {
	cmd := exec.Command("go", append([]string{"test", "-json", "-count=1", "-vet=off", "-timeout=40m"}, args...)...) // vet has all of it
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if len(line) > 0 {
			if json.Unmarshal(line, &e) != nil {
				e = event{Action: "output", Output: string(line)}
			}
			each(e)
		}
		if err != nil {
			if err != io.EOF {
				return errors.Join(err, cmd.Wait())
			}
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go test %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// failure is a test that failed, and what it printed.
type failure struct{ pkg, name, output string }

// summary counts tests as go test reports them. A test with subtests counts as
// its subtests.
type summary struct {
	lab      *lab.Lab
	run      func(args []string, each func(event)) error
	start    time.Time
	line     *progress
	rebooted int      // guests that died before our code ran
	flaky    []string // tests that failed, and passed alone; with the log of the failure

	mu       sync.Mutex
	result   map[string]string   // by package and test
	output   map[string][]string // of tests that have not passed yet
	parents  map[string]bool
	count    map[string]int
	waited   map[string]float64 // seconds until a guest was free
	took     map[string]float64 // seconds, of tests and of their part on each kernel
	failures []failure          // leaves, and packages that fail without a test
}

func newSummary(l *lab.Lab, what string) *summary {
	return &summary{lab: l, run: goTest, start: time.Now(), line: newProgress(l, what), result: map[string]string{}, output: map[string][]string{}, parents: map[string]bool{}, count: map[string]int{}, took: map[string]float64{}, waited: map[string]float64{}}
}

func (s *summary) add(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "output":
		s.output[key] = append(s.output[key], e.Output)
		if m := itsTurn.FindStringSubmatch(e.Output); m != nil {
			s.waited[key], _ = strconv.ParseFloat(m[1], 64) // the pattern is a number
		}
		if strings.Contains(e.Output, lab.Rebooted) {
			s.rebooted++
			s.line.print(e.Output)
		}
	case "run":
		s.line.runs(e.Test)
		for i := strings.LastIndexByte(e.Test, '/'); i > 0; i = strings.LastIndexByte(e.Test[:i], '/') {
			s.parents[e.Package+"\x00"+e.Test[:i]] = true
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.line.print(fmt.Sprintf("%-5s %-40s %6.1fs\n", e.Action, e.Package, e.Elapsed))
			if e.Action == "fail" && (e.early || !s.explained(e.Package, "")) {
				// It did not build, or ended early.
				text := fmt.Sprintf("FAIL %s\n%s", e.Package, strings.Join(s.output[key], ""))
				s.line.print(text)
				s.failures = append(s.failures, failure{e.Package, "", text})
			}
			return
		}
		s.result[key] = e.Action
		s.line.ends(e.Test)
		if m := onKernel.FindStringSubmatchIndex(e.Test); !strings.Contains(e.Test, "/") || m != nil && m[1] == len(e.Test) {
			s.took[e.Test] = e.Elapsed - s.waited[key]
		}
		if e.Action != "pass" {
			text := fmt.Sprintf("%s %s %s\n%s", strings.ToUpper(e.Action), e.Package, e.Test, strings.Join(s.output[key], ""))
			s.line.print(text)
			if e.Action == "fail" && !s.explained(e.Package, e.Test+"/") {
				s.failures = append(s.failures, failure{e.Package, e.Test, text})
			}
		}
		delete(s.output, key)
	}
}

// explained says whether the failure of a package, or of a test with subtests,
// is that of a test in it, which has been reported.
func (s *summary) explained(pkg, prefix string) bool {
	return slices.ContainsFunc(s.failures, func(f failure) bool {
		return f.pkg == pkg && f.name != "" && strings.HasPrefix(f.name, prefix)
	})
}

// mostFlaky is how many guest tests that failed are run once more. When more
// fail it is not by chance.
const mostFlaky = 3

// again runs guest tests that failed once more, alone. One that passes then is
// flaky: a defect, whose log is kept, but no reason to stop everybody.
func (s *summary) again() error {
	var guests, others []failure
	for _, f := range s.failures {
		if onKernel.MatchString(f.name) {
			guests = append(guests, f)
		} else {
			others = append(others, f)
		}
	}
	if len(guests) > mostFlaky {
		fmt.Printf("%d guest tests failed, more than %d: none is run again\n", len(guests), mostFlaky)
		return nil
	}
	for _, f := range guests {
		var parts []string
		for _, p := range strings.Split(f.name, "/") {
			parts = append(parts, "^"+regexp.QuoteMeta(p)+"$")
			if onKernel.MatchString("/" + p) {
				break // what is below may need what came before it
			}
		}
		fmt.Printf("once more, alone: %s\n", f.name)
		passed := false
		var output strings.Builder
		err := s.run([]string{"-run", strings.Join(parts, "/"), f.pkg}, func(e event) {
			output.WriteString(e.Output)
			passed = passed || e.Action == "pass" && e.Test == f.name
		})
		if err != nil || !passed {
			fmt.Printf("it fails again:\n%s", output.String())
			others = append(others, f)
			continue
		}
		path := filepath.Join(s.lab.Dir, "flaky", time.Now().Format("20060102-150405-")+strings.ReplaceAll(f.name, "/", "-")+".log")
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(f.output), 0o644)); err != nil {
			return err
		}
		s.flaky = append(s.flaky, fmt.Sprintf("FLAKY %s (failed, then passed alone; its log: %s)", f.name, path))
		s.passed(f)
	}
	s.failures = others
	return nil
}

// passed takes a failure back, and that of the tests above it.
func (s *summary) passed(f failure) {
	for name := f.name; name != ""; name = name[:max(strings.LastIndexByte(name, '/'), 0)] {
		s.result[f.pkg+"\x00"+name] = "pass"
	}
}

// slowest is how many tests the summary names by the time they took.
const slowest = 25

func (s *summary) print() {
	kernels := map[string]int{}
	for key, result := range s.result {
		if result == "fail" || s.parents[key] && result != "skip" {
			continue
		}
		s.count[result]++
		_, name, _ := strings.Cut(key, "\x00")
		if m := onKernel.FindStringSubmatch(name); m != nil && result == "pass" {
			kernels[m[1]]++
		}
	}
	s.count["fail"] = len(s.failures)
	slow := slices.SortedFunc(maps.Keys(s.took), func(a, b string) int { return cmp.Compare(s.took[b], s.took[a]) })
	fmt.Println("\nthe slowest:")
	for _, name := range slow[:min(slowest, len(slow))] {
		fmt.Printf("%6.1f s  %s\n", s.took[name], name)
	}
	for _, f := range s.failures {
		fmt.Printf("\n%s", f.output)
	}
	fmt.Printf("\n%.0f seconds\n", time.Since(s.start).Seconds())
	for _, v := range slices.Sorted(maps.Keys(kernels)) {
		fmt.Printf("guest tests on kernel %s: %d\n", v, kernels[v])
	}
	if s.rebooted > 0 {
		fmt.Printf("guests that died before our code ran, and were booted again: %d\n", s.rebooted)
	}
	for _, f := range s.flaky {
		fmt.Println(f)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", s.count["pass"], s.count["fail"], s.count["skip"])
	s.line.keep(s.count["fail"] == 0)
}

// progress is a line on the terminal: how many tests are done, which runs, and
// how long it takes. What to expect is what the last run with the same arguments
// that passed took.
type progress struct {
	out     io.Writer
	on      bool
	path    string // of the record
	what    string
	start   time.Time
	done    int
	running []string
	last    map[string]record
	shown   time.Time
}

// record is a run that passed.
type record struct {
	Tests   int
	Seconds float64
}

func newProgress(l *lab.Lab, what string) *progress {
	p := &progress{out: os.Stdout, path: filepath.Join(l.Dir, "runs.json"), what: what, start: time.Now(), last: map[string]record{}}
	p.on = isTerminal(os.Stdout)
	if b, err := os.ReadFile(p.path); err == nil {
		json.Unmarshal(b, &p.last) // an unreadable record is none
	}
	return p
}

func (p *progress) runs(test string) {
	p.running = append(p.running, test)
	p.show()
}

func (p *progress) ends(test string) {
	p.done++
	if i := slices.Index(p.running, test); i >= 0 {
		p.running = slices.Delete(p.running, i, i+1)
	}
	p.show()
}

// width is that of the line: what is longer would wrap, and stay.
const width = 78

func (p *progress) show() {
	if !p.on || time.Since(p.shown) < 100*time.Millisecond {
		return
	}
	p.shown = time.Now()
	text := fmt.Sprint(p.done)
	last, ok := p.last[p.what]
	if ok {
		text += fmt.Sprintf("/%d", max(last.Tests, p.done))
	}
	text += "  " + clock(time.Since(p.start).Seconds())
	if ok {
		text += " of " + clock(last.Seconds)
	}
	if len(p.running) > 0 {
		text += "  " + p.running[len(p.running)-1]
	}
	fmt.Fprintf(p.out, "\r\033[K%.*s", width, text)
}

func clock(seconds float64) string { return fmt.Sprintf("%d:%02d", int(seconds)/60, int(seconds)%60) }

// print prints lines where the progress is.
func (p *progress) print(text string) {
	p.clear()
	fmt.Fprint(p.out, text)
}

func (p *progress) clear() {
	if p.on {
		fmt.Fprint(p.out, "\r\033[K")
	}
}

// keep records a run for those to come.
func (p *progress) keep(passed bool) {
	if !passed {
		return
	}
	p.last[p.what] = record{p.done, time.Since(p.start).Seconds()}
	b, err := json.Marshal(p.last)
	if err == nil {
		err = os.WriteFile(p.path, b, 0o644)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: the time of this run is not kept: %v\n", err)
	}
}
