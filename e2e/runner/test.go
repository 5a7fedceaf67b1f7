package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"stapbox/e2e/lab"
)

// event is a line of go test -json (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// onKernel finds the kernel in the name of a guest test.
var onKernel = regexp.MustCompile(`/(\d+\.\d+)(/|$)`)

// test runs everything and closes with counts.
func test(l *lab.Lab, args []string) error {
	if err := l.EnsureTools(); err != nil {
		return err
	}
	var headers []string
	for _, v := range lab.Versions() {
		k, err := l.FetchKernel(v)
		if err != nil {
			return err
		}
		headers = append(headers, k.Headers)
	}
	os.Setenv("STAPBOX_KERNEL_HEADERS", strings.Join(headers, ":"))
	fmt.Println("go vet ./...")
	vet := exec.Command("go", "vet", "./...")
	vet.Stdout, vet.Stderr = os.Stdout, os.Stderr
	if err := vet.Run(); err != nil {
		return fmt.Errorf("go vet: %w", err)
	}
	if len(args) == 0 {
		args = []string{"./..."}
	}
	cmd := exec.Command("go", append([]string{"test", "-json", "-count=1", "-timeout=40m"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s := newSummary()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text())
			continue
		}
		s.add(e)
	}
	err = cmd.Wait()
	s.print()
	if err == nil && s.count["fail"] > 0 {
		err = errors.New("tests failed")
	}
	return err
}

// summary counts tests as go test reports them. A test with subtests counts as
// its subtests.
type summary struct {
	start   time.Time
	result  map[string]string   // by package and test
	output  map[string][]string // of tests that have not passed yet
	parents map[string]bool
	count   map[string]int
	took    map[string]float64 // seconds, of tests and of their part on each kernel
}

func newSummary() *summary {
	return &summary{start: time.Now(), result: map[string]string{}, output: map[string][]string{}, parents: map[string]bool{}, count: map[string]int{}, took: map[string]float64{}}
}

func (s *summary) add(e event) {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "output":
		s.output[key] = append(s.output[key], e.Output)
	case "run":
		for i := strings.LastIndexByte(e.Test, '/'); i > 0; i = strings.LastIndexByte(e.Test[:i], '/') {
			s.parents[e.Package+"\x00"+e.Test[:i]] = true
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			fmt.Printf("%-5s %-40s %6.1fs\n", e.Action, e.Package, e.Elapsed)
			if e.Action == "fail" {
				fmt.Print(strings.Join(s.output[key], ""))
			}
			return
		}
		s.result[key] = e.Action
		if m := onKernel.FindStringSubmatchIndex(e.Test); !strings.Contains(e.Test, "/") || m != nil && m[1] == len(e.Test) {
			s.took[e.Test] = e.Elapsed
		}
		if e.Action != "pass" {
			fmt.Printf("%s %s %s\n%s", strings.ToUpper(e.Action), e.Package, e.Test, strings.Join(s.output[key], ""))
		}
		delete(s.output, key)
	}
}

// slowest is how many tests the summary names by the time they took.
const slowest = 25

func (s *summary) print() {
	kernels := map[string]int{}
	for key, result := range s.result {
		if s.parents[key] && result != "skip" {
			continue
		}
		s.count[result]++
		_, name, _ := strings.Cut(key, "\x00")
		if m := onKernel.FindStringSubmatch(name); m != nil && result == "pass" {
			kernels[m[1]]++
		}
	}
	slow := slices.SortedFunc(maps.Keys(s.took), func(a, b string) int { return cmp.Compare(s.took[b], s.took[a]) })
	fmt.Println("\nthe slowest:")
	for _, name := range slow[:min(slowest, len(slow))] {
		fmt.Printf("%6.1f s  %s\n", s.took[name], name)
	}
	fmt.Printf("\n%.0f seconds\n", time.Since(s.start).Seconds())
	for _, v := range slices.Sorted(maps.Keys(kernels)) {
		fmt.Printf("guest tests on kernel %s: %d\n", v, kernels[v])
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", s.count["pass"], s.count["fail"], s.count["skip"])
}
