// Package token holds the lexical tokens of the SystemTap language and the
// scanner that makes them (stap(1), GENERAL SYNTAX).
//
// The scanner knows characters, literals, comments and script arguments ($1,
// @1, $#, @#). Macros and %( %) conditionals are the parser's business.
package token

import "fmt"

// Kind says what a token is.
type Kind int

// The kinds of tokens.
const (
	EOF      Kind = iota
	Junk          // text that is no token; Err may say why
	Ident         // name, $name, @name
	Operator      // + << { %( and so on
	String        // string literal, escapes already read
	Number        // integer literal, as written
	EmbedC        // text between %{ and %}
	Keyword       // reserved word
)

// String is the name upstream's diagnostics give the kind.
func (k Kind) String() string {
	switch k {
	case EOF:
		return "end-of-file"
	case Junk:
		return "junk"
	case Ident:
		return "identifier"
	case Operator:
		return "operator"
	case String:
		return "string"
	case Number:
		return "number"
	case EmbedC:
		return "embedded-code"
	case Keyword:
		return "keyword"
	}
	return "unknown token"
}

// File is a source text with the name that messages show.
type File struct {
	Name string
	Text string
	// Tapset marks files of the embedded library: they may hold embedded C
	// and their private names are not visible to scripts.
	Tapset bool
	// Library marks files of -I directories: they may hold embedded C, and
	// only those that declare something the script needs are part of it.
	Library bool
	// Synthetic marks text the translator made up itself.
	Synthetic bool

	lines []int // offsets of line starts, made on first use
}

// Pos is a place in a file: line and column count from 1, columns in bytes.
type Pos struct {
	File *File
	Line int
	Col  int
}

// String is file:line:column.
func (p Pos) String() string {
	if p.File == nil {
		return "<unknown>"
	}
	return fmt.Sprintf("%s:%d:%d", p.File.Name, p.Line, p.Col)
}

// Token is one token and where it was read.
type Token struct {
	Kind Kind
	Text string
	Pos  Pos
	// Chain is the macro invocation or alias this token came from, if any.
	Chain *Token
	// Err is the message of a Junk token that is wrong wherever it stands.
	Err string
	// Hint says what may have been meant by a Junk token.
	Hint string
	// Arg marks text inserted from a script argument.
	Arg bool
}

// Is reports whether t is the operator or keyword text.
func (t *Token) Is(text string) bool {
	return t != nil && t.Text == text && (t.Kind == Operator || t.Kind == Keyword || t.Kind == Ident)
}

// IsOp reports whether t is the operator text.
func (t *Token) IsOp(text string) bool {
	return t != nil && t.Kind == Operator && t.Text == text
}

// IsKeyword reports whether t is the reserved word text.
func (t *Token) IsKeyword(text string) bool {
	return t != nil && t.Kind == Keyword && t.Text == text
}

// Line is the text of line n of the file, without its line end.
func (f *File) Line(n int) string {
	if f.lines == nil {
		f.lines = []int{0}
		for i := 0; i < len(f.Text); i++ {
			if f.Text[i] == '\n' {
				f.lines = append(f.lines, i+1)
			}
		}
	}
	if n < 1 || n > len(f.lines) {
		return ""
	}
	from, to := f.lines[n-1], len(f.Text)
	if n < len(f.lines) {
		to = f.lines[n] - 1
	}
	return f.Text[from:to]
}
