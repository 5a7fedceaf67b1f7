// Package report writes the lines that start with ERROR: or WARNING: on
// standard error, with the tag coloured as the user wishes (loader-relay 8).
//
// A coloured tag is ESC[<sgr>m ESC[K TAG ESC[m ESC[K; only the tag is coloured,
// and a blank follows it. SYSTEMTAP_COLORS holds key=sgr pairs separated by
// colons; unset means error=01;31:warning=00;33:source=00;34:caret=01:token=01.
package report

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const defaultColors = "error=01;31:warning=00;33:source=00;34:caret=01:token=01"

// When says whether colours are used: the argument of -C.
type When string

// The values of When.
const (
	Auto   When = "auto"
	Never  When = "never"
	Always When = "always"
)

// Printer writes tagged lines. The zero value of Colors means no colour.
type Printer struct {
	W      io.Writer
	Colors map[string]string // sgr by key
}

// New makes a Printer. lookup reads the environment.
func New(w io.Writer, when When, lookup func(string) (string, bool)) *Printer {
	p := &Printer{W: w}
	term, _ := lookup("TERM")
	if when == Always || when == Auto && IsTerminal(w) && term != "dumb" {
		p.Colors = Colors(lookup)
	}
	return p
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Colors reads SYSTEMTAP_COLORS. What follows a malformed element is not used.
func Colors(lookup func(string) (string, bool)) map[string]string {
	list, set := lookup("SYSTEMTAP_COLORS")
	if !set {
		list = defaultColors
	}
	colors := map[string]string{}
	for _, e := range strings.Split(list, ":") {
		key, sgr, ok := strings.Cut(e, "=")
		if !ok || key == "" || sgr == "" || strings.Trim(sgr, "0123456789;") != "" {
			break
		}
		if _, twice := colors[key]; !twice {
			colors[key] = sgr
		}
	}
	return colors
}

// Paint colours text by a key of SYSTEMTAP_COLORS.
func (p *Printer) Paint(key, text string) string {
	if sgr := p.Colors[key]; sgr != "" {
		return "\x1b[" + sgr + "m\x1b[K" + text + "\x1b[m\x1b[K"
	}
	return text
}

// Errorf writes an ERROR line.
func (p *Printer) Errorf(format string, args ...any) {
	p.tagged("error", "ERROR:", fmt.Sprintf(format, args...))
}

// Warningf writes a WARNING line.
func (p *Printer) Warningf(format string, args ...any) {
	p.tagged("warning", "WARNING:", fmt.Sprintf(format, args...))
}

// Hintf writes a line that names a cure.
func (p *Printer) Hintf(format string, args ...any) {
	fmt.Fprintf(p.W, "hint: %s\n", fmt.Sprintf(format, args...))
}

// Tagged writes text that a module sent: if it begins with one of the tags, the
// tag is coloured, else it is written as it stands. One write a text.
func (p *Printer) Tagged(text string) {
	if rest, ok := strings.CutPrefix(text, "ERROR: "); ok {
		io.WriteString(p.W, p.Paint("error", "ERROR:")+" "+rest)
		return
	}
	if rest, ok := strings.CutPrefix(text, "WARNING: "); ok {
		io.WriteString(p.W, p.Paint("warning", "WARNING:")+" "+rest)
		return
	}
	io.WriteString(p.W, text)
}

func (p *Printer) tagged(key, tag, text string) {
	io.WriteString(p.W, p.Paint(key, tag)+" "+text+"\n")
}
