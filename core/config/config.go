// Package config reads configuration files of VARIABLE=VALUE lines, and files
// of option words, in the part of shell syntax that needs no shell.
//
//	# comment, also after white space behind a value
//	NAME=word            export NAME=word     NAME+=word
//	NAME='literal $x'    NAME="with \" \\ \$ \` escapes"    NAME=a\ b"c d"
//
// Quotes may hold line ends. What a shell would expand or run ($, backquote,
// ;, &, |, <, >, parentheses, and unquoted *, ?, [, ~ at the start) is an error
// with its line number, so that a file never means one thing to us and another
// to the shell scripts that read it too.
package config

import (
	"fmt"
	"strings"
)

// MaxSize is the size of the longest file that is read.
const MaxSize = 1 << 20

// Assignment is one NAME=VALUE or NAME+=VALUE.
type Assignment struct {
	Name   string
	Value  string
	Append bool // NAME+=VALUE
	Line   int
}

// Parse reads assignments in the order of the file.
func Parse(data []byte) ([]Assignment, error) {
	s, err := newScanner(data)
	if err != nil {
		return nil, err
	}
	var out []Assignment
	for {
		line, err := s.words()
		if err != nil {
			return nil, err
		}
		if line == nil {
			return out, nil
		}
		if len(line) > 1 && line[0].text == "export" {
			line = line[1:]
		}
		for _, w := range line {
			name, value, ok := strings.Cut(w.text, "=")
			a := Assignment{Name: name, Value: value, Line: w.line}
			if n, app := strings.CutSuffix(name, "+"); app {
				a.Name, a.Append = n, true
			}
			if !ok || !isName(a.Name) || w.quoted < len(name)+1 {
				return nil, fmt.Errorf("line %d: %q is not an assignment", w.line, w.text)
			}
			out = append(out, a)
		}
	}
}

// Words reads a file of option words, such as ~/.systemtap/rc.
func Words(data []byte) ([]string, error) {
	s, err := newScanner(data)
	if err != nil {
		return nil, err
	}
	var out []string
	for {
		line, err := s.words()
		if err != nil {
			return nil, err
		}
		if line == nil {
			return out, nil
		}
		for _, w := range line {
			out = append(out, w.text)
		}
	}
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

func isName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case c == '_', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case i > 0 && c >= '0' && c <= '9':
		default:
			return false
		}
	}
	return s != ""
}

type word struct {
	text   string
	line   int
	quoted int // offset of the first quoted character; len(text) if there is none
}

type scanner struct {
	data string
	pos  int
	line int
}

func newScanner(data []byte) (*scanner, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("file has more than %d bytes", MaxSize)
	}
	if i := strings.IndexByte(string(data), 0); i >= 0 {
		return nil, fmt.Errorf("line %d: NUL byte", 1+strings.Count(string(data[:i]), "\n"))
	}
	return &scanner{data: string(data), line: 1}, nil
}

// words returns the words of the next line that has any, nil at the end.
func (s *scanner) words() ([]word, error) {
	var out []word
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; c {
		case '\n':
			s.pos++
			s.line++
			if out != nil {
				return out, nil
			}
		case ' ', '\t', '\r':
			s.pos++
		case '#':
			for s.pos < len(s.data) && s.data[s.pos] != '\n' {
				s.pos++
			}
		default:
			w, err := s.word()
			if err != nil {
				return nil, err
			}
			out = append(out, w)
		}
	}
	return out, nil
}

func (s *scanner) word() (word, error) {
	var b strings.Builder
	w := word{line: s.line, quoted: -1}
	mark := func() {
		if w.quoted < 0 {
			w.quoted = b.Len()
		}
	}
	bad := func(c byte) error {
		return fmt.Errorf("line %d: %q has a meaning to the shell only, quote it", s.line, c)
	}
loop:
	for s.pos < len(s.data) {
		c := s.data[s.pos]
		switch c {
		case ' ', '\t', '\r', '\n':
			break loop
		case '\\':
			if s.pos+1 >= len(s.data) {
				return w, fmt.Errorf("line %d: backslash at the end", s.line)
			}
			s.pos++
			if s.data[s.pos] == '\n' {
				s.line++
			} else {
				mark()
				b.WriteByte(s.data[s.pos])
			}
			s.pos++
		case '\'':
			mark()
			end := strings.IndexByte(s.data[s.pos+1:], '\'')
			if end < 0 {
				return w, fmt.Errorf("line %d: missing %q", s.line, c)
			}
			text := s.data[s.pos+1 : s.pos+1+end]
			b.WriteString(text)
			s.line += strings.Count(text, "\n")
			s.pos += end + 2
		case '"':
			mark()
			start := s.line
			s.pos++
			for {
				if s.pos >= len(s.data) {
					return w, fmt.Errorf("line %d: missing %q", start, c)
				}
				c := s.data[s.pos]
				if c == '"' {
					s.pos++
					break
				}
				if c == '$' || c == '`' {
					return w, bad(c)
				}
				if c == '\\' && s.pos+1 < len(s.data) && strings.IndexByte("\\\"$`\n", s.data[s.pos+1]) >= 0 {
					s.pos++
					c = s.data[s.pos]
					if c == '\n' {
						s.pos++
						s.line++
						continue
					}
				}
				if c == '\n' {
					s.line++
				}
				b.WriteByte(c)
				s.pos++
			}
		case '$', '`', ';', '&', '|', '<', '>', '(', ')', '*', '?', '[':
			return w, bad(c)
		default:
			if c == '~' && (b.Len() == 0 || strings.HasSuffix(b.String(), "=")) {
				return w, bad(c)
			}
			b.WriteByte(c)
			s.pos++
		}
	}
	w.text = b.String()
	if w.quoted < 0 {
		w.quoted = len(w.text)
	}
	return w, nil
}
