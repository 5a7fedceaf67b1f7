// Package diag holds the errors and warnings of passes 1 and 2 and renders
// them the way stap 5.6 does:
//
//	parse error: WHAT
//	        saw: operator '}' at <input>:1:19
//	     source: probe begin { x = }
//	                               ^
//
//	semantic error: WHAT: identifier 'x' at <input>:1:15
//	        source: probe begin { x = 1 . 2 }
//	                              ^
package diag

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"stapbox/core/script/token"
)

// Severity says what kind of message a Diagnostic is.
type Severity int

// The severities.
const (
	ParseError Severity = iota
	SemanticError
	Warning
)

// Diagnostic is one error or warning.
type Diagnostic struct {
	Severity Severity
	Message  string
	Tok      *token.Token
	Tok2     *token.Token
	// Saw: the token is where the parser stood, not what the message is
	// about.
	Saw bool
	// Site tells messages with one text apart that are shown once each.
	Site string
	// Lacks marks an error that is no mistake of the script: SystemTap has what it
	// names, and this translator does not.
	Lacks bool
	// Unknown marks a name that is neither known here nor to be SystemTap's, though
	// a library that is installed with SystemTap may have it.
	Unknown bool
	// Firm marks an error that stays one where a probe point has ? or !.
	Firm bool
	// Cause is the error behind this one ("while resolving probe point").
	Cause *Diagnostic
}

// Error is the message alone.
func (d *Diagnostic) Error() string { return d.Message }

// Has reports whether is holds for d or what is behind it.
func (d *Diagnostic) Has(is func(*Diagnostic) bool) bool {
	for ; d != nil; d = d.Cause {
		if is(d) {
			return true
		}
	}
	return false
}

// Lacking reports whether d, or what is behind it, is something that this
// translator lacks.
func (d *Diagnostic) Lacking() bool { return d.Has(func(d *Diagnostic) bool { return d.Lacks }) }

// Colors are SGR parameters for the parts of a message; an empty one means
// plain text.
type Colors struct{ Error, Warning, Source, Caret, Token string }

func paint(sgr, text string) string {
	if sgr == "" {
		return text
	}
	return "\033[" + sgr + "m\033[K" + text + "\033[m\033[K"
}

// describe is "identifier 'x' at <input>:1:2".
func describe(t *token.Token, c Colors) string {
	if t.Kind == token.EOF {
		return t.Pos.File.Name + " EOF"
	}
	if t.Kind == token.Keyword || t.Kind == token.EmbedC {
		return t.Kind.String() + " at " + t.Pos.String()
	}
	return fmt.Sprintf("%s '%s' at %s", t.Kind, paint(c.Token, t.Text), t.Pos)
}

// Renderer writes the messages of one run. Like upstream it leaves out the
// file name of a semantic message's place when the place named before was in
// the same file.
type Renderer struct {
	W       io.Writer
	Colors  Colors
	Verbose bool

	file       *token.File
	suppressed int
}

func (r *Renderer) describe(t *token.Token) string {
	s := describe(t, r.Colors)
	if r.file != nil && t.Pos.File == r.file {
		at := t.Pos.String()
		s = strings.TrimSuffix(s, at) + strings.TrimPrefix(at, t.Pos.File.Name)
	}
	r.file = t.Pos.File
	return s
}

// Warnings writes warnings, each text once.
func (r *Renderer) Warnings(list []*Diagnostic) {
	suppressed := 0
	seen := map[string]bool{}
	for _, d := range list {
		if seen[d.Message] && !r.Verbose {
			suppressed++
			continue
		}
		seen[d.Message] = true
		io.WriteString(r.W, r.text(d))
	}
	r.suppressed = suppressed
}

// Close writes how many warnings were not shown. It is called when the pass
// is over and its failure, if any, has been written.
func (r *Renderer) Close() {
	if r.suppressed > 0 {
		fmt.Fprintf(r.W, "Number of similar warning messages suppressed: %d.\nRerun with -v to see them.\n", r.suppressed)
		r.suppressed = 0
	}
}

// maxLine is the longest source line that is shown.
const maxLine = 8192

// source writes the source line of t and a caret below it, with the label
// right-aligned in a column of the given width.
func source(b *strings.Builder, t *token.Token, width int, c Colors) {
	if t == nil || t.Pos.File == nil || t.Kind == token.EOF {
		return
	}
	line := t.Pos.File.Line(t.Pos.Line)
	if len(line) > maxLine {
		return
	}
	fmt.Fprintf(b, "%*s: %s\n%*s  ", width, paint(c.Source, "source"), line, width, "")
	for i := 0; i < t.Pos.Col-1 && i < len(line); i++ {
		if line[i] == '\t' {
			b.WriteByte('\t')
		} else {
			b.WriteByte(' ')
		}
	}
	b.WriteString(paint(c.Caret, "^") + "\n")
}

// text is the whole message with its source lines.
func (r *Renderer) text(d *Diagnostic) string {
	var b strings.Builder
	c := r.Colors
	switch d.Severity {
	case ParseError:
		b.WriteString(paint(c.Error, "parse error:") + " " + d.Message + "\n")
		if d.Tok != nil {
			word := "at"
			if d.Saw {
				word = "saw"
			}
			fmt.Fprintf(&b, "%11s: %s\n", word, describe(d.Tok, c))
			source(&b, d.Tok, 11, c)
			for t := d.Tok.Chain; t != nil; t = t.Chain {
				fmt.Fprintf(&b, "\tin expansion of macro: %s\n", describe(t, c))
				source(&b, t, 11, c)
			}
			if d.Tok.Hint != "" {
				b.WriteString("hint: " + d.Tok.Hint + "\n")
			}
		}
		b.WriteString("\n")
	default:
		word, width := paint(c.Error, "semantic error:"), 14
		if d.Severity == Warning {
			word, width = paint(c.Warning, "WARNING:"), 7
		}
		b.WriteString(word + " " + d.Message)
		place := func(t *token.Token) {
			b.WriteString(r.describe(t) + "\n")
			source(&b, t, width, c)
			for t = t.Chain; t != nil; t = t.Chain {
				b.WriteString("\tin expansion of macro: " + r.describe(t) + "\n")
				source(&b, t, width, c)
			}
		}
		if d.Tok == nil {
			b.WriteString("\n")
		} else {
			b.WriteString(": ")
			place(d.Tok)
		}
		if d.Tok2 != nil {
			place(d.Tok2)
		}
		if d.Severity == SemanticError {
			b.WriteString("\n")
		}
		if d.Cause != nil {
			b.WriteString(r.text(d.Cause))
		}
	}
	return b.String()
}

// List is the outcome of a pass that found errors. It renders itself as
// stap shows it, the closing lines included.
type List struct {
	Pass   int
	Errors []*Diagnostic
	// Notes are lines shown as they are.
	Notes []string
}

// Lacks reports whether one of the errors is something that SystemTap has and
// this translator does not.
func (l *List) Lacks() bool {
	return slices.ContainsFunc(l.Errors, (*Diagnostic).Lacking)
}

// Unknown reports whether one of the errors is a name that a library installed
// with SystemTap may have.
func (l *List) Unknown() bool {
	return slices.ContainsFunc(l.Errors, func(d *Diagnostic) bool { return d.Has(func(d *Diagnostic) bool { return d.Unknown }) })
}

// Error is the first message with the number of further ones.
func (l *List) Error() string {
	if len(l.Errors) == 0 {
		return fmt.Sprintf("pass %d: %s", l.Pass, strings.Join(l.Notes, "; "))
	}
	first := l.Errors[0]
	word := "semantic error"
	if first.Severity == ParseError {
		word = "parse error"
	}
	at := ""
	if first.Tok != nil {
		at = " at " + first.Tok.Pos.String()
	}
	more := ""
	if n := len(l.Errors) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Sprintf("%s: %s%s%s", word, first.Message, at, more)
}

// Problem writes the messages of a file that does not end the pass. macros is the
// name of a library file of macros, which is then left out.
func (r *Renderer) Problem(l *List, macros string) {
	suppressed := r.list(l, macros == "")
	if macros != "" {
		fmt.Fprintf(r.W, "%s macro tapset \"%s\" has errors, and will be skipped.\n", paint(r.Colors.Warning, "WARNING:"), macros)
	}
	r.suppressedErrors(suppressed)
}

// Failure writes the messages of a pass that failed and its closing lines.
// Of errors with one text only the first is shown, unless Verbose is set.
func (r *Renderer) Failure(l *List) {
	suppressed := r.list(l, true)
	if l.Pass == 1 {
		io.WriteString(r.W, "Pass 1: parse failed.  [man error::pass1]\n")
	} else {
		io.WriteString(r.W, "Pass 2: analysis failed.  [man error::pass2]\n")
	}
	r.suppressedErrors(suppressed)
}

func (r *Renderer) suppressedErrors(n int) {
	if n > 0 {
		fmt.Fprintf(r.W, "Number of similar error messages suppressed: %d.\nRerun with -v to see them.\n", n)
	}
}

// list writes messages, and how many there are, and answers how many it left out.
func (r *Renderer) list(l *List, count bool) (suppressed int) {
	w, verbose := r.W, r.Verbose
	seen := map[string]bool{}
	for _, d := range l.Errors {
		key := d.Message + "\n" + d.Site
		for x := d.Cause; x != nil; x = x.Cause {
			key += "\n" + x.Message
		}
		if seen[key] && !verbose {
			suppressed++
			continue
		}
		seen[key] = true
		io.WriteString(w, r.text(d))
	}
	for _, n := range l.Notes {
		io.WriteString(w, n+"\n")
	}
	if l.Pass == 1 && count {
		switch n := len(l.Errors); {
		case len(l.Notes) > 0:
		case n == 1:
			io.WriteString(w, "1 parse error.\n")
		case n > 1:
			fmt.Fprintf(w, "%d parse errors.\n", n)
		}
	}
	return suppressed
}
