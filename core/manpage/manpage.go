// Package manpage shows manual pages that are written in Markdown on a terminal.
//
// It reads the part of Markdown that the pages of this project use:
//
//	# heading                   to three levels; the second in capitals
//	text                        paragraphs, filled to the width
//	- item, 1. item             lists, also in lists; lines that go on are indented
//	    code, ```info ... ```   as it is, whatever its width
//	| a | b |                   tables with a line of dashes below the head; cells
//	                            are filled when the table is too wide
//	`code` **strong** *emphasis* [text](address)
//
// Styles are bold and underlined (ECMA-48), or nothing at all. Anything else is
// shown as it is written.
package manpage

import (
	"bufio"
	"io"
	"strings"
	"unicode/utf8"
)

// Options are how a page is shown.
type Options struct {
	Width  int  // of a line; less than 20 counts as 20
	Styled bool // with sequences for a terminal
}

const (
	leastWidth = 20
	textIndent = 4
	codeIndent = 4 // within text
)

// Render writes a page.
func Render(w io.Writer, text string, o Options) error {
	r := &renderer{w: bufio.NewWriter(w), width: max(o.Width, leastWidth), styled: o.Styled}
	r.blocks(strings.Split(strings.TrimRight(text, "\n"), "\n"), textIndent)
	return r.w.Flush()
}

type renderer struct {
	w      *bufio.Writer
	width  int
	styled bool
	begun  bool // something is written: the next block needs an empty line
	tight  bool // the next block needs none if it follows at once
	headed bool // the next block needs none: it is below its heading
}

// blocks renders lines that belong together, indented so much.
func (r *renderer) blocks(lines []string, indent int) {
	for len(lines) > 0 {
		line := lines[0]
		n := 1
		switch marker := listMarker(line); {
		case strings.TrimSpace(line) == "":
			r.tight = false
		case heading(line) > 0:
			r.heading(heading(line), line, indent)
		case strings.HasPrefix(line, "```"):
			for n < len(lines) && !strings.HasPrefix(lines[n], "```") {
				n++
			}
			r.code(lines[1:n], indent)
			n = min(n+1, len(lines))
		case strings.HasPrefix(line, "    "):
			for n < len(lines) && (strings.HasPrefix(lines[n], "    ") || strings.TrimSpace(lines[n]) == "") {
				n++
			}
			for strings.TrimSpace(lines[n-1]) == "" {
				n--
			}
			var code []string
			for _, l := range lines[:n] {
				code = append(code, strings.TrimPrefix(l, "    "))
			}
			r.code(code, indent)
		case marker > 0:
			n = r.item(lines, marker, indent)
		case isTable(lines):
			for n < len(lines) && strings.HasPrefix(lines[n], "|") {
				n++
			}
			r.table(lines[:n], indent)
		default:
			for n < len(lines) && goesOn(lines[n]) {
				n++
			}
			r.paragraph(strings.Join(lines[:n], "\n"), indent, "")
		}
		lines = lines[n:]
	}
}

// goesOn reports whether a line is part of the paragraph before it.
func goesOn(line string) bool {
	return strings.TrimSpace(line) != "" && heading(line) == 0 && listMarker(line) == 0 &&
		!strings.HasPrefix(line, "```") && !strings.HasPrefix(line, "|")
}

// heading is the level of a heading, 0 for anything else.
func heading(line string) int {
	marks := len(line) - len(strings.TrimLeft(line, "#"))
	if marks > 3 || !strings.HasPrefix(line[marks:], " ") {
		return 0
	}
	return marks
}

// listMarker is how many characters are before the text of an item, 0 for what is
// none.
func listMarker(line string) int {
	if strings.HasPrefix(line, "- ") || strings.HasPrefix(line, "* ") {
		return 2
	}
	digits := len(line) - len(strings.TrimLeft(line, "0123456789"))
	if digits > 0 && digits < 4 && strings.HasPrefix(line[digits:], ". ") {
		return digits + 2
	}
	return 0
}

func (r *renderer) heading(level int, line string, indent int) {
	text := strings.TrimSpace(line[level:])
	if level == 2 {
		text = strings.ToUpper(text)
	}
	r.gap()
	left := 0
	if level == 3 {
		left = indent / 2
	}
	for _, words := range fill(words([]run{{bold, strings.ReplaceAll(text, "`", "")}}), r.width-left) {
		r.line(left, words)
	}
	r.headed = level > 1
}

func (r *renderer) code(lines []string, indent int) {
	r.gap()
	for _, l := range lines {
		if l != "" {
			r.w.WriteString(strings.Repeat(" ", indent+codeIndent) + strings.TrimRight(l, " "))
		}
		r.w.WriteByte('\n')
	}
}

// item renders one item of a list and tells how many lines it has.
func (r *renderer) item(lines []string, marker, indent int) int {
	n := 1
	for n < len(lines) && within(lines[n:], marker) {
		n++
	}
	own := []string{lines[0][marker:]}
	for _, l := range lines[1:n] {
		inner := strings.TrimLeft(l, " ")
		own = append(own, l[min(marker, len(l)-len(inner)):])
	}
	first := 1
	for first < len(own) && goesOn(own[first]) && !strings.HasPrefix(own[first], "    ") {
		first++
	}
	r.paragraph(strings.Join(own[:first], "\n"), indent, lines[0][:marker])
	r.tight = true
	r.blocks(own[first:], indent+marker)
	r.tight = n < len(lines) && listMarker(lines[n]) > 0
	return n
}

// within reports whether a line belongs to the item before it: it is indented, or
// goes on with its paragraph, or is empty and the next is indented.
func within(lines []string, marker int) bool {
	indented := func(l string) bool { return len(l)-len(strings.TrimLeft(l, " ")) >= marker }
	if strings.TrimSpace(lines[0]) == "" {
		return len(lines) > 1 && strings.TrimSpace(lines[1]) != "" && indented(lines[1])
	}
	return indented(lines[0]) || goesOn(lines[0])
}

// paragraph fills text; a mark hangs before it.
func (r *renderer) paragraph(text string, indent int, mark string) {
	r.gap()
	inner := indent + len(mark)
	for i, words := range fill(words(inline(text)), r.width-inner) {
		if i == 0 && mark != "" {
			r.w.WriteString(strings.Repeat(" ", indent) + mark)
			r.line(0, words)
			continue
		}
		r.line(inner, words)
	}
}

// gap puts an empty line between blocks.
func (r *renderer) gap() {
	if r.begun && !r.tight && !r.headed {
		r.w.WriteByte('\n')
	}
	r.begun, r.tight, r.headed = true, false, false
}

func (r *renderer) line(indent int, words []word) {
	r.w.WriteString(strings.Repeat(" ", indent))
	r.words(words)
	r.w.WriteByte('\n')
}

func (r *renderer) words(words []word) (width int) {
	for i, w := range words {
		if i > 0 {
			r.w.WriteByte(' ')
			width++
		}
		for _, part := range w {
			width += utf8.RuneCountInString(part.text)
			if on := part.style.on(); r.styled && on != "" {
				r.w.WriteString(on + part.text + off)
			} else {
				r.w.WriteString(part.text)
			}
		}
	}
	return width
}
