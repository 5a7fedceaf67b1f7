package manpage

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func render(t testing.TB, text string, o Options) string {
	t.Helper()
	var b strings.Builder
	if err := Render(&b, text, o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestRender(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"headings", "# stap\n\nstap - compile\n\n## Exit status\n\ntext\n\n### The end\n\nmore\n",
			"stap\n\n    stap - compile\n\nEXIT STATUS\n    text\n\n  The end\n    more\n"},
		{"paragraphs are filled", "one two three four five six seven\neight nine\n\nten\n",
			"    one two three four five\n    six seven eight nine\n\n    ten\n"},
		{"a word that is too wide", "a `/a/path/that/is/wider/than/the/line` b\n",
			"    a\n    /a/path/that/is/wider/than/the/line\n    b\n"},
		{"inline", "`a b` **c** *d* e_f_g 2*3*4 a\\*b [text](https://x.y) [page](stap.md) `` ` `` <x>\n",
			"    a b c d e_f_g 2*3*4 a*b\n    text <https://x.y> page `\n    <x>\n"},
		{"what is not closed", "a `b *c **d [e](f\n", "    a `b *c **d [e](f\n"},
		{"code", "x:\n\n    if (a)\n        b  \n\n    end\n\ny\n", "    x:\n\n        if (a)\n            b\n\n        end\n\n    y\n"},
		{"fences", "```console guest usr\n$ stap -e 'probe begin { a very long line }'\n\n  b\n```\n",
			"        $ stap -e 'probe begin { a very long line }'\n\n          b\n"},
		{"a fence that is not closed", "```\na\n", "        a\n"},
		{"a list", "- `-v` - says more, and more of\n  it, and more\n- b\n  - c\n    goes on here and here and here\n- d\n\nend\n",
			"    - -v - says more, and more\n      of it, and more\n    - b\n      - c goes on here and\n        here and here\n    - d\n\n    end\n"},
		{"numbers", "1. a\n10. b\nlazy\n", "    1. a\n    10. b lazy\n"},
		{"code in a list", "- a\n\n      code\n\n  more\n- b\n", "    - a\n\n          code\n\n      more\n    - b\n"},
		{"a table", "| what | x |\n|---|:-:|\n| `a|b` | 1 |\n| c \\| d | |\n",
			"    what   x\n    -----  -\n    a|b    1\n    c | d\n"},
		{"a wide table", "| a | words |\n|---|---|\n| key | many words in this cell |\n| x | y |\n",
			"    a    words\n    ---  ---------------------\n    key  many words in this\n         cell\n    x    y\n"},
		{"no table", "| a | b |\n", "    | a | b |\n"},
		{"wide characters are counted", "äöü äöü äöü äöü äöü äöü äöü\n", "    äöü äöü äöü äöü äöü äöü\n    äöü\n"},
		{"nothing", "", ""},
	} {
		if got := render(t, c.text, Options{Width: 30}); strings.TrimRight(got, "\n") != strings.TrimRight(c.want, "\n") {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestStyled(t *testing.T) {
	got := render(t, "## Files\n\n`a b`c *d* e\n\n| x |\n|---|\n| y |\n", Options{Width: 80, Styled: true})
	want := "\x1b[1mFILES\x1b[0m\n    \x1b[1ma\x1b[0m \x1b[1mb\x1b[0mc \x1b[4md\x1b[0m e\n\n    \x1b[1mx\x1b[0m\n    y\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

var notLetters = regexp.MustCompile(`[^\p{L}]+`)

// The pages of this project lose no word, and only code and what has no space is
// wider than the line.
func TestPages(t *testing.T) {
	files, err := filepath.Glob("../../man/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("pages: %v, %v", files, err)
	}
	fence := regexp.MustCompile("(?m)^```.*$")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got := render(t, string(b), Options{Width: 80})
		source := strings.ToLower(notLetters.ReplaceAllString(fence.ReplaceAllString(string(b), ""), ""))
		if shown := strings.ToLower(notLetters.ReplaceAllString(got, "")); len(shown) != len(source) && !strings.Contains(string(b), "\n|") {
			t.Errorf("%s has %d letters, %d are shown", f, len(source), len(shown))
		}
		for line := range strings.Lines(got) {
			line = strings.TrimRight(line, "\n")
			if utf8.RuneCountInString(line) > 80 && !strings.HasPrefix(line, "        ") && strings.Contains(strings.TrimSpace(line), " ") && !strings.Contains(line, "  ") {
				t.Errorf("%s: %q is wider than 80", f, line)
			}
			if strings.Contains(line, "](") || strings.Contains(line, "```") || strings.HasPrefix(strings.TrimSpace(line), "| ") {
				t.Errorf("%s: %q is not rendered", f, line)
			}
		}
	}
}

func FuzzRender(f *testing.F) {
	files, err := filepath.Glob("../../man/*.md")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b), 80)
	}
	f.Add("- a\n\n      b\n- `c\n1. d\n```\n| a |\n|-|\n| ", 1)
	f.Fuzz(func(t *testing.T, text string, width int) {
		if len(text) > 1<<13 {
			return
		}
		plain := render(t, text, Options{Width: min(width, 1000)})
		if strings.Contains(text, "\x1b") {
			return
		}
		if styled := render(t, text, Options{Width: min(width, 1000), Styled: true}); strings.Contains(plain, "\x1b") || len(styled) == 0 != (len(plain) == 0) {
			t.Errorf("%q", styled)
		}
	})
}
