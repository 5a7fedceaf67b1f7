// Package config reads configuration files of VARIABLE=VALUE lines, and files
// of option words, in the part of shell syntax that runs nothing.
//
//	# comment, also after white space behind a value
//	NAME=word            export NAME=word     NAME+=word      A=1; B=2
//	NAME='literal $x'    NAME="with \" \\ \$ \` escapes"    NAME=a\ b"c d"
//
// Quotes may hold line ends. Evaluate also knows
//
//	$NAME  ${NAME}  ${NAME:-word}     from earlier assignments, else the environment
//	~  ~/path  ~user/path             at the start of a value
//
// Everything else that a shell would expand or run is an error with its line
// number, so that a file never means one thing to us and another to the shell
// scripts that read it too. The grammar is that of bash(1), parsed by
// mvdan.cc/sh/v3/syntax; nothing is ever run.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os/user"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// MaxSize is the size of the longest file that is read.
const MaxSize = 1 << 20

// ErrShell is wrapped by errors about what only a shell could do. Nothing has
// been assigned then.
var ErrShell error = constError("has a meaning to the shell only")

type constError string

func (e constError) Error() string { return string(e) }

// Assignment is one NAME=VALUE or NAME+=VALUE.
type Assignment struct {
	Name   string
	Value  string
	Append bool // NAME+=VALUE
	Line   int
}

// Parse reads assignments in the order of the file, without any expansion.
func Parse(data []byte) ([]Assignment, error) {
	var out []Assignment
	r := reader{}
	err := r.assignments(data, func(a Assignment) { out = append(out, a) })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Evaluate makes the assignments of a file in vars. lookup is the environment.
// After an error vars is unchanged.
func Evaluate(data []byte, vars map[string]string, lookup func(string) (string, bool)) error {
	next := maps.Clone(vars)
	r := reader{lookup: func(name string) (string, bool) {
		if v, ok := next[name]; ok {
			return v, true
		}
		return lookup(name)
	}}
	err := r.assignments(data, func(a Assignment) {
		if a.Append {
			before, _ := r.lookup(a.Name)
			a.Value = before + a.Value
		}
		next[a.Name] = a.Value
	})
	if err != nil {
		return err
	}
	maps.Copy(vars, next)
	return nil
}

// Words reads a file of option words, such as ~/.systemtap/rc.
func Words(data []byte) ([]string, error) {
	data, err := check(data)
	if err != nil {
		return nil, err
	}
	var out []string
	r := reader{words: true}
	for w, err := range syntax.NewParser(syntax.Variant(syntax.LangBash)).WordsSeq(bytes.NewReader(data)) {
		if err != nil {
			return nil, parseError(err)
		}
		text, err := r.word(w)
		if err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, nil
}

// Split splits one value into words at blanks. Quotes and backslashes group as
// in a shell; no other character has a meaning.
func Split(value string) ([]string, error) {
	var out []string
	var b strings.Builder
	begun := false
	var quote byte
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case c == '\\' && quote != '\'':
			if i+1 == len(value) {
				return nil, errors.New("backslash at the end")
			}
			i++
			if quote == '"' && strings.IndexByte("\\\"$`", value[i]) < 0 {
				b.WriteByte(c)
			}
			b.WriteByte(value[i])
			begun = true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, begun = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if begun {
				out = append(out, b.String())
				b.Reset()
			}
			begun = false
		default:
			b.WriteByte(c)
			begun = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("missing %q", quote)
	}
	if begun {
		out = append(out, b.String())
	}
	return out, nil
}

// Values folds assignments into a map: the last one counts, += appends.
func Values(list []Assignment) map[string]string {
	m := make(map[string]string)
	for _, a := range list {
		if a.Append {
			m[a.Name] += a.Value
		} else {
			m[a.Name] = a.Value
		}
	}
	return m
}

// Quote writes a value so that Parse, and a shell, read it back.
func Quote(value string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-+./,:@%=", r)
	}
	if value != "" && strings.IndexFunc(value, func(r rune) bool { return !plain(r) }) < 0 {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}

// check refuses what is no text of a sensible size, and reads line ends of DOS
// as line ends.
func check(data []byte) ([]byte, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("file has more than %d bytes", MaxSize)
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return nil, fmt.Errorf("line %d: NUL byte", 1+bytes.Count(data[:i], []byte("\n")))
	}
	return bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")), nil
}

func parseError(err error) error {
	var pe syntax.ParseError
	if errors.As(err, &pe) {
		return fmt.Errorf("line %d: %s", pe.Pos.Line(), pe.Text)
	}
	return err
}

// reader evaluates what the parser has found.
type reader struct {
	lookup func(string) (string, bool) // nil: nothing is expanded
	words  bool                        // words are not values: a pattern would name files
}

func (r *reader) assignments(data []byte, do func(Assignment)) error {
	data, err := check(data)
	if err != nil {
		return err
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(bytes.NewReader(data), "")
	if err != nil {
		return parseError(err)
	}
	for _, s := range file.Stmts {
		list, err := assigns(s)
		if err != nil {
			return err
		}
		for _, a := range list {
			line := a.Pos().Line()
			if a.Naked || a.Index != nil || a.Array != nil || !syntax.ValidName(a.Name.Value) {
				return shellError(line, "this assignment")
			}
			out := Assignment{Name: a.Name.Value, Append: a.Append, Line: int(line)}
			if a.Value != nil {
				if out.Value, err = r.word(a.Value); err != nil {
					return err
				}
			}
			do(out)
		}
	}
	return nil
}

// assigns are the assignments of a statement that is nothing else.
func assigns(s *syntax.Stmt) ([]*syntax.Assign, error) {
	line := s.Pos().Line()
	if s.Negated || s.Background || s.Coprocess || s.Disown || len(s.Redirs) > 0 {
		return nil, shellError(line, "this statement")
	}
	switch c := s.Cmd.(type) {
	case *syntax.CallExpr:
		if len(c.Args) == 0 {
			return c.Assigns, nil
		}
		return nil, fmt.Errorf("line %d: %q is not an assignment: it %w", line, c.Args[0].Lit(), ErrShell)
	case *syntax.DeclClause:
		if c.Variant.Value == "export" {
			return c.Args, nil
		}
	}
	return nil, shellError(line, "this statement")
}

func shellError(line uint, what string) error {
	return fmt.Errorf("line %d: %s %w", line, what, ErrShell)
}

func quoteIt(line uint, what string) error {
	return fmt.Errorf("line %d: '%s' %w, quote it", line, what, ErrShell)
}

func (r *reader) word(w *syntax.Word) (string, error) {
	var b strings.Builder
	for i, p := range w.Parts {
		if lit, ok := p.(*syntax.Lit); ok {
			text := lit.Value
			if i == 0 && strings.HasPrefix(text, "~") {
				home, rest, err := r.tilde(lit, len(w.Parts) == 1)
				if err != nil {
					return "", err
				}
				b.WriteString(home)
				text = rest
			}
			if err := r.bare(&b, text, lit.Pos().Line()); err != nil {
				return "", err
			}
			continue
		}
		if err := r.part(&b, p); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// tilde expands the start of a value: to a home directory, and the rest.
func (r *reader) tilde(lit *syntax.Lit, whole bool) (home, rest string, err error) {
	name, rest, slash := strings.Cut(lit.Value[1:], "/")
	if r.lookup == nil || !slash && !whole || strings.Contains(name, "\\") {
		return "", "", quoteIt(lit.Pos().Line(), "~")
	}
	if slash {
		rest = "/" + rest
	}
	if name == "" {
		if home, ok := r.lookup("HOME"); ok {
			return home, rest, nil
		}
		u, err := user.Current()
		if err != nil {
			return "", "", fmt.Errorf("line %d: finding the home directory: %w", lit.Pos().Line(), err)
		}
		return u.HomeDir, rest, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return "", "", fmt.Errorf("line %d: finding the home directory of %q: %w", lit.Pos().Line(), name, err)
	}
	return u.HomeDir, rest, nil
}

// bare reads text outside quotes.
func (r *reader) bare(b *strings.Builder, text string, line uint) error {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\':
			if i+1 == len(text) {
				return fmt.Errorf("line %d: backslash at the end", line)
			}
			i++
			if text[i] != '\n' {
				b.WriteByte(text[i])
			}
		case r.words && (c == '*' || c == '?' || c == '['):
			return quoteIt(line, string(c))
		case (c == '~') && i > 0 && (text[i-1] == ':' || r.words && text[i-1] == '='):
			return quoteIt(line, "~")
		default:
			b.WriteByte(c)
		}
	}
	return nil
}

// part reads what is no bare text.
func (r *reader) part(b *strings.Builder, p syntax.WordPart) error {
	line := p.Pos().Line()
	switch p := p.(type) {
	case *syntax.SglQuoted:
		if p.Dollar {
			return quoteIt(line, "$")
		}
		b.WriteString(p.Value)
	case *syntax.DblQuoted:
		if p.Dollar {
			return quoteIt(line, "$")
		}
		for _, q := range p.Parts {
			if lit, ok := q.(*syntax.Lit); ok {
				inQuotes(b, lit.Value)
			} else if err := r.part(b, q); err != nil {
				return err
			}
		}
	case *syntax.ParamExp:
		return r.param(b, p)
	case *syntax.CmdSubst:
		if p.Backquotes {
			return quoteIt(line, "`")
		}
		return quoteIt(line, "$")
	case *syntax.ArithmExp:
		return quoteIt(line, "$")
	default:
		return shellError(line, "this word")
	}
	return nil
}

// inQuotes reads text between double quotes.
func inQuotes(b *strings.Builder, text string) {
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+1 < len(text) && strings.IndexByte("\\\"$`\n", text[i+1]) >= 0 {
			i++
			if text[i] == '\n' {
				continue
			}
		}
		b.WriteByte(text[i])
	}
}

func (r *reader) param(b *strings.Builder, p *syntax.ParamExp) error {
	line := p.Pos().Line()
	plain := p.Param != nil && syntax.ValidName(p.Param.Value) && !p.Excl && !p.Length && !p.Width && !p.IsSet &&
		p.Flags == nil && p.Index == nil && p.Slice == nil && p.Repl == nil && p.Names == 0 && len(p.Modifiers) == 0 &&
		(p.Exp == nil || p.Exp.Op == syntax.DefaultUnsetOrNull)
	if r.lookup == nil || !plain {
		return quoteIt(line, "$")
	}
	value, _ := r.lookup(p.Param.Value)
	if value == "" && p.Exp != nil && p.Exp.Word != nil {
		var err error
		if value, err = r.word(p.Exp.Word); err != nil {
			return err
		}
	}
	b.WriteString(value)
	return nil
}
