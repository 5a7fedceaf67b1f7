package manpage

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// style is how characters look on a terminal.
type style byte

const (
	plain style = iota
	bold
	underlined
)

// on are the sequences of ECMA-48 (SGR) that begin a style; off ends any.
func (s style) on() string {
	switch s {
	case bold:
		return "\x1b[1m"
	case underlined:
		return "\x1b[4m"
	}
	return ""
}

const off = "\x1b[0m"

// run is text of one style.
type run struct {
	style style
	text  string
}

// word is what is not broken; its runs have no space.
type word []run

func (w word) width() (n int) {
	for _, r := range w {
		n += utf8.RuneCountInString(r.text)
	}
	return n
}

// inline reads `code`, **strong**, *emphasis*, [text](address) and \ before a
// sign. What is not closed stands for itself.
func inline(s string) []run {
	var out []run
	add := func(st style, text string) {
		if n := len(out); n > 0 && out[n-1].style == st {
			out[n-1].text += text
		} else if text != "" {
			out = append(out, run{st, text})
		}
	}
	before := ' '
	for s != "" {
		c, size := utf8.DecodeRuneInString(s)
		took := 0
		switch {
		case c == '\\' && len(s) > 1 && strings.ContainsRune("\\`*_[]|<>#-", rune(s[1])):
			add(plain, s[1:2])
			took = 2
		case c == '`':
			marks := len(s) - len(strings.TrimLeft(s, "`"))
			if text, _, closed := strings.Cut(s[marks:], s[:marks]); closed {
				if took = len(text) + 2*marks; marks > 1 {
					text = strings.TrimSpace(text)
				}
				add(bold, text)
			}
		case strings.HasPrefix(s, "**"):
			if text, _, closed := strings.Cut(s[2:], "**"); closed && tight(text) {
				add(bold, text)
				took = len(text) + 4
			}
		case c == '*' && !wordly(before):
			if text, _, closed := strings.Cut(s[1:], "*"); closed && tight(text) {
				add(underlined, text)
				took = len(text) + 2
			}
		case c == '[':
			text, rest, closed := strings.Cut(s[1:], "](")
			address, _, ended := strings.Cut(rest, ")")
			if closed && ended && !strings.ContainsAny(text, "[]") {
				for _, r := range inline(text) {
					add(r.style, r.text)
				}
				if strings.Contains(address, "://") {
					add(plain, " <"+address+">")
				}
				took = len(text) + len(address) + 4
			}
		}
		if took == 0 {
			add(plain, s[:size])
			took = size
		}
		before, _ = utf8.DecodeLastRuneInString(s[:took])
		s = s[took:]
	}
	return out
}

// tight reports whether text may stand between marks of emphasis.
func tight(s string) bool {
	return s != "" && strings.TrimSpace(s) == s && !strings.Contains(s, "`")
}

func wordly(c rune) bool { return unicode.IsLetter(c) || unicode.IsDigit(c) }

// words breaks runs at their spaces.
func words(runs []run) []word {
	var all []word
	joined := false
	for _, r := range runs {
		for i, part := range strings.FieldsFunc(r.text, unicode.IsSpace) {
			first, _ := utf8.DecodeRuneInString(r.text)
			if i == 0 && joined && !unicode.IsSpace(first) {
				all[len(all)-1] = append(all[len(all)-1], run{r.style, part})
			} else {
				all = append(all, word{{r.style, part}})
			}
			joined = true
		}
		if last, _ := utf8.DecodeLastRuneInString(r.text); unicode.IsSpace(last) {
			joined = false
		}
	}
	return all
}

// fill puts words into lines of at most width characters. A word that is wider
// has a line of its own.
func fill(all []word, width int) [][]word {
	var lines [][]word
	used := 0
	for _, w := range all {
		n := w.width()
		if len(lines) == 0 || used+1+n > width {
			lines = append(lines, nil)
			used = -1
		}
		lines[len(lines)-1] = append(lines[len(lines)-1], w)
		used += 1 + n
	}
	return lines
}
