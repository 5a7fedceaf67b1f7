package man

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pack makes what pages.gz unpacks to.
func pack(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("pages: %v, %v", files, err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasSuffix(b, []byte("\n")) {
			t.Errorf("%s ends without a newline", f)
		}
		all.WriteString("-- " + f + " --\n" + string(b))
	}
	return all.String()
}

// The executable has the pages of this folder.
func TestPacked(t *testing.T) {
	want := pack(t)
	if os.Getenv("STAPBOX_UPDATE") != "" {
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(z, want)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("pages.gz", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		packed = b.String()
	}
	z, err := gzip.NewReader(strings.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("pages.gz is not what the pages are: STAPBOX_UPDATE=1 go test ./man")
	}
}

// noProgram is about files.
const noProgram = "stappaths.md"

func TestPages(t *testing.T) {
	all, err := Pages()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, p := range all {
		if first := strings.TrimSuffix(p.File, ".md"); p.Names[0] != first || !strings.HasPrefix(p.Text, "# "+first+"\n\n") {
			t.Errorf("%s is called %q and begins %.40q", p.File, p.Names, p.Text)
		}
		for _, n := range p.Names {
			if seen[n] != "" {
				t.Errorf("%q is in %s and %s", n, seen[n], p.File)
			}
			seen[n] = p.File
		}
		if len(p.Summary) < 10 || len(p.Summary) > 90 || strings.HasSuffix(p.Summary, ".") {
			t.Errorf("%s: summary %q", p.File, p.Summary)
		}
		if p.File == noProgram {
			continue
		}
		at := 0
		for _, section := range []string{"Synopsis", "Description", "Exit status", "Security", "Examples", "See also"} {
			n := strings.Index(p.Text, "\n## "+section+"\n")
			if n < at {
				t.Errorf("%s has no section %q, or not in its place", p.File, section)
			}
			at = max(at, n)
		}
	}
	for name, want := range map[string]string{
		"stap": "stap.md", "stapbox": "stapbox.md", "systemtap-service": "systemtap.md",
		"stap-add-server-cert": "stap-authorize-cert.md", "": "", "stap.md": "",
	} {
		if p, found := Find(all, name); p.File != want || found != (want != "") {
			t.Errorf("%q is in %q, want %q", name, p.File, want)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	for what, text := range map[string]string{
		"text before the first name":                               "no name\n",
		`manual page "a.md" does not begin with its names`:         "-- a.md --\n# a\n\nno dash\n",
		"reading the manual pages: gzip: invalid header":           "",
		`manual page "b.md" does not begin with its names and a s`: "-- b.md --\n",
	} {
		var b bytes.Buffer
		if z := gzip.NewWriter(&b); text != "" {
			io.WriteString(z, text)
			z.Close()
		} else {
			b.WriteString("something else")
		}
		if _, err := unpack(b.String()); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := unpack(packed[:len(packed)/2]); err == nil {
		t.Error("half of the pages are enough")
	}
}

// Every example is one that tests run (e2e.TestExamples, TestGuestExamples), or
// says why none does: the block begins with "```shown: REASON".
func TestExamplesAreRun(t *testing.T) {
	all, err := Pages()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		_, section, _ := strings.Cut(p.Text, "\n## Examples\n")
		section, _, _ = strings.Cut(section, "\n## ")
		ran, inside, runs := 0, false, false
		for line := range strings.Lines(section) {
			line = strings.TrimSuffix(line, "\n")
			switch {
			case inside:
				inside = line != "```"
				if runs && strings.HasPrefix(line, "$ ") {
					ran++
				}
			case strings.HasPrefix(line, "```"):
				inside = true
				info := line[3:]
				reason, shown := strings.CutPrefix(info, "shown: ")
				kinds := []string{"console", "console guest root", "console guest usr", "console guest dev", "console guest sys", "console guest nobody"}
				if runs = slices.Contains(kinds, info); !runs && !(shown && len(reason) > 10) {
					t.Errorf("%s: examples that begin %q are not run, and it is not said why", p.File, line)
				}
			case strings.HasPrefix(line, "    "):
				t.Errorf("%s: %q is not run, and it is not said why", p.File, line)
			}
		}
		if ran == 0 && p.File != noProgram {
			t.Errorf("%s has no example that is run", p.File)
		}
	}
}
