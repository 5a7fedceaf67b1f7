package monitor

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// visible makes text of others harmless for a terminal: control characters,
// invisible ones and those that reorder a line are written out, tabs become
// spaces.
func visible(s string) string {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] >= ' ' && s[i] < 0x7f
	}
	if plain {
		return s
	}
	var b strings.Builder
	column := 0
	add := func(t string, width int) {
		b.WriteString(t)
		column += width
	}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			add(fmt.Sprintf("\\x%02x", s[i]), 4)
		case r == '\t':
			k := 8 - column%8
			add(strings.Repeat(" ", k), k)
		case r < ' ' || r == 0x7f:
			add("^"+string(r^0x40), 2)
		case !unicode.IsPrint(r):
			t := fmt.Sprintf("\\u%04x", r)
			add(t, len(t))
		default:
			add(s[i:i+n], runeWidth(r))
		}
		i += n
	}
	return b.String()
}

// runeWidth is the number of cells a printable rune takes.
func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case 0x1100 <= r && r <= 0x115f, 0x2e80 <= r && r <= 0xa4cf, 0xac00 <= r && r <= 0xd7a3, 0xf900 <= r && r <= 0xfaff,
		0xfe30 <= r && r <= 0xfe6f, 0xff00 <= r && r <= 0xff60, 0xffe0 <= r && r <= 0xffe6,
		0x1f300 <= r && r <= 0x1f64f, 0x1f680 <= r && r <= 0x1f6ff, 0x1f900 <= r && r <= 0x1f9ff, 0x20000 <= r && r <= 0x3fffd:
		return 2
	}
	return 1
}

// cut gives the part of visible text that fits in width cells, and the rest.
func cut(s string, width int) (head, rest string) {
	cells := 0
	for i, r := range s {
		if cells += runeWidth(r); cells > width {
			if i == 0 { // one wide rune in one cell: it must go somewhere
				return "?", s[utf8.RuneLen(r):]
			}
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// fit is visible text in exactly width cells.
func fit(s string, width int) string {
	s, _ = cut(s, width)
	cells := 0
	for _, r := range s {
		cells += runeWidth(r)
	}
	return s + strings.Repeat(" ", max(width-cells, 0))
}

// wrap gives the rows of a line.
func wrap(s string, width int) []string {
	if len(s) <= width {
		return []string{s}
	}
	var rows []string
	for {
		var head string
		head, s = cut(s, width)
		rows = append(rows, head)
		if s == "" {
			return rows
		}
	}
}

// maxHistory is the number of lines of output that are kept, maxLine the bytes
// after which a line is broken.
const (
	maxHistory = 8192
	maxLine    = 1024
)

// history is the last lines of output. All of it is visible text.
type history struct {
	lines   []string // a ring once it is full
	first   int
	total   int    // lines ever added
	partial []byte // the line that has not ended, as it came
}

func (h *history) len() int { return len(h.lines) }

func (h *history) at(i int) string { return h.lines[(h.first+i)%len(h.lines)] }

func (h *history) add(line string) {
	line = visible(strings.TrimSuffix(line, "\r"))
	h.total++
	if len(h.lines) < maxHistory {
		h.lines = append(h.lines, line)
		return
	}
	h.lines[h.first] = line
	h.first = (h.first + 1) % maxHistory
}

// write adds output, which may end within a line.
func (h *history) write(p []byte) {
	for len(p) > 0 {
		i := bytes.IndexByte(p[:min(len(p), maxLine)], '\n')
		switch {
		case i >= 0:
			h.add(string(h.partial) + string(p[:i]))
			h.partial = h.partial[:0]
			p = p[i+1:]
		case len(h.partial)+len(p) < maxLine:
			h.partial = append(h.partial, p...)
			return
		default:
			n := min(max(maxLine-len(h.partial), 1), len(p))
			h.add(string(h.partial) + string(p[:n]))
			h.partial = h.partial[:0]
			p = p[n:]
		}
	}
}

// message adds whole lines, after the line that has not ended.
func (h *history) message(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		h.add(line)
	}
}
