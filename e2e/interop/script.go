package interop

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// Script is a file NAME.stp of the corpus. Comment lines at its head say how to
// compile and run it:
//
//	// options: WORDS   for stap, such as -DMAXACTION=10
//	// args: WORDS      arguments of the script; 'a b' is one word
//	// globals: WORDS   name=value, as from stap -G
//	// staprun: WORDS   options for staprun
//	// mask: PATTERN    what differs from run to run, shown as <...>
//	// digest: yes      stdout is large: compare its number of lines, their order and its SHA-256
//
// What upstream printed stands beside it in NAME.out, NAME.err (absent when
// there was nothing) and NAME.status (absent when it was 0).
type Script struct {
	Name    string
	Path    string
	Text    []byte
	Options []string
	Args    []string
	Globals []string
	Staprun []string
	Mask    *regexp.Regexp
	Digest  bool

	compiled bool // by both translators
}

// Load reads the corpus, in order of names.
func Load(dir string) ([]*Script, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.stp"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no scripts in %q", dir)
	}
	slices.Sort(files)
	var out []*Script
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		s, err := parse(strings.TrimSuffix(filepath.Base(f), ".stp"), text)
		if err != nil {
			return nil, err
		}
		s.Path = f
		out = append(out, s)
	}
	return out, nil
}

func parse(name string, text []byte) (*Script, error) {
	s := &Script{Name: name, Text: text}
	for line := range strings.Lines(string(text)) {
		line, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "// ")
		if !ok {
			break
		}
		key, value, ok := strings.Cut(line, ": ")
		list := map[string]*[]string{"options": &s.Options, "args": &s.Args, "globals": &s.Globals, "staprun": &s.Staprun}[key]
		switch {
		case !ok:
		case list != nil:
			words, err := split(value)
			if err != nil {
				return nil, fmt.Errorf("script %q: %s: %w", name, key, err)
			}
			*list = words
		case key == "mask":
			var err error
			if s.Mask, err = regexp.Compile(value); err != nil {
				return nil, fmt.Errorf("script %q: mask: %w", name, err)
			}
		case key == "digest":
			s.Digest = value == "yes"
		}
	}
	return s, nil
}

// split cuts a line into words at blanks outside of single quotes.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	quoted, some := false, false
	for _, r := range line {
		switch {
		case r == '\'':
			quoted, some = !quoted, true
		case r == ' ' && !quoted:
			if some {
				words = append(words, word.String())
			}
			word.Reset()
			some = false
		default:
			word.WriteRune(r)
			some = true
		}
	}
	if quoted {
		return nil, errors.New("quote without end")
	}
	if some {
		words = append(words, word.String())
	}
	return words, nil
}

// Module is the name of the script's kernel module.
func (s *Script) Module() string { return "t_" + s.Name }

// Compile gives the words after "stap" that compile the script in a directory
// that holds it. The release may be a build directory.
func (s *Script) Compile(release string) []string {
	argv := []string{"-p4", "-r", release, "-m", s.Module()}
	argv = append(argv, s.Options...)
	for _, g := range s.Globals {
		argv = append(argv, "-G", g)
	}
	argv = append(argv, s.Name+".stp")
	return append(argv, s.Args...)
}

// Pair is a staprun with its stapio.
type Pair struct {
	Name    string
	Staprun string
	Env     []string
}

// OurPair is what stapbox install puts into the guest.
var OurPair = Pair{Name: "ours", Staprun: "/usr/bin/staprun"}

// digestScript runs the command "$@" and prints what there is to say about its
// output: lines that begin with their number, counted from 0.
const digestScript = `"$@" >/tmp/stdout
status=$?
wc -l </tmp/stdout
sha256sum </tmp/stdout
awk '$1 + 0 != NR - 1 { bad = NR; exit } END { print bad ? "out of order at line " bad : "in order" }' /tmp/stdout
rm /tmp/stdout
exit $status`

// Request is the run of the script's module, a file of the guest, by root.
func (s *Script) Request(p Pair, module string) request.Request {
	argv := append([]string{p.Staprun}, s.Staprun...)
	argv = append(append(argv, module), s.Globals...)
	if s.Digest {
		argv = append([]string{"/bin/sh", "-c", digestScript, "sh"}, argv...)
	}
	r := lab.Command(lab.Root, argv...)
	r.Env = append(r.Env, p.Env...)
	r.Timeout = 120
	return r
}

// Result is what a run of a script shows.
type Result struct {
	Stdout, Stderr string
	Status         int
}

// ResultOf takes the result of the script out of the agent's answer.
func (s *Script) ResultOf(a request.Answer) Result {
	r := Result{string(a.Stdout), string(a.Stderr), a.Status}
	if s.Mask != nil {
		r.Stdout = s.Mask.ReplaceAllLiteralString(r.Stdout, "<...>")
		r.Stderr = s.Mask.ReplaceAllLiteralString(r.Stderr, "<...>")
	}
	return r
}

// Golden is the recorded result.
func (s *Script) Golden() (Result, error) {
	base := strings.TrimSuffix(s.Path, ".stp")
	var r Result
	out, err := os.ReadFile(base + ".out")
	if err != nil {
		return r, err
	}
	stderr, err := os.ReadFile(base + ".err")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	status, err := os.ReadFile(base + ".status")
	switch {
	case err == nil:
		if _, err := fmt.Sscan(string(status), &r.Status); err != nil {
			return r, fmt.Errorf("reading %q: %w", base+".status", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return r, err
	}
	r.Stdout, r.Stderr = string(out), string(stderr)
	return r, nil
}

// Record makes a result the recorded one.
func (s *Script) Record(r Result) error {
	base := strings.TrimSuffix(s.Path, ".stp")
	put := func(ext, text string, always bool) error {
		if text == "" && !always {
			if err := os.Remove(base + ext); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		return os.WriteFile(base+ext, []byte(text), 0o644)
	}
	status := ""
	if r.Status != 0 {
		status = fmt.Sprintln(r.Status)
	}
	return errors.Join(put(".out", r.Stdout, true), put(".err", r.Stderr, false), put(".status", status, false))
}

// Difference describes how a result differs from the wanted one, "" if it does
// not.
func Difference(got, want Result) string {
	var b bytes.Buffer
	if got.Status != want.Status {
		fmt.Fprintf(&b, "status %d, want %d\n", got.Status, want.Status)
	}
	lines(&b, "stdout", got.Stdout, want.Stdout)
	lines(&b, "stderr", got.Stderr, want.Stderr)
	return b.String()
}

// shown bounds how many differing lines are described.
const shown = 12

func lines(b *bytes.Buffer, what, got, want string) {
	if got == want {
		return
	}
	g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
	at := func(list []string, i, from int) string {
		if i < len(list) {
			return fmt.Sprintf("%.300q", list[i][from:])
		}
		return "nothing"
	}
	n := 0
	for i := range max(len(g), len(w)) {
		if i < len(g) && i < len(w) && g[i] == w[i] {
			continue
		}
		if n++; n > shown {
			fmt.Fprintf(b, "%s: and more\n", what)
			return
		}
		from := 0 // long lines are shown from shortly before the difference
		for i < len(g) && i < len(w) && from < min(len(g[i]), len(w[i])) && g[i][from] == w[i][from] {
			from++
		}
		from = max(0, from-100)
		fmt.Fprintf(b, "%s line %d:\n\tgot  %s\n\twant %s\n", what, i+1, at(g, i, from), at(w, i, from))
	}
}
