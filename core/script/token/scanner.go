package token

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxSource is the largest script text the scanner takes, arguments
// included. Real scripts are a hundred times smaller.
const MaxSource = 4 << 20

func keywords(s string) bool {
	switch s {
	case "probe", "global", "private", "function", "if", "else", "for", "foreach", "in", "limit",
		"return", "delete", "while", "break", "continue", "next", "string", "long", "try", "catch":
		return true
	}
	return false
}

// Operators of two and three characters, longest first.
var operators = []string{
	"<<<", "<<=", ">>=",
	"&&", "||", "++", "--", "->", "<<", ">>", "==", "!=", "<=", ">=", "=~", "!~",
	"+=", "-=", "*=", "/=", "%=", "&=", "^=", "|=", ".=",
	"%(", "%)", "%?", "%:", "%}", "::",
}

// Scanner splits a file into tokens.
type Scanner struct {
	file *File
	text string
	off  int
	line int
	col  int

	arg    string // rest of an inserted argument, read before text
	argPos Pos    // where its $ is
	args   []string
	used   []bool // which of args were asked for
	budget int    // bytes that arguments may still insert
}

// NewScanner makes a scanner that inserts args for $1, @1, $# and @#. In used,
// which is nil or as long as args, it marks those that the text names.
func NewScanner(f *File, args []string, used []bool) *Scanner {
	return &Scanner{file: f, text: f.Text, line: 1, col: 1, args: args, used: used, budget: MaxSource}
}

// peek is the character n places ahead, or -1 at the end.
func (s *Scanner) peek(n int) int {
	if n < len(s.arg) {
		return int(s.arg[n])
	}
	n += s.off - len(s.arg)
	if n < len(s.text) {
		return int(s.text[n])
	}
	return -1
}

func (s *Scanner) skip(n int) {
	for ; n > 0; n-- {
		if s.arg != "" {
			s.arg = s.arg[1:]
			continue
		}
		if s.off >= len(s.text) {
			return
		}
		if s.text[s.off] == '\n' {
			s.line++
			s.col = 1
		} else {
			s.col++
		}
		s.off++
	}
}

func (s *Scanner) read() int {
	c := s.peek(0)
	s.skip(1)
	return c
}

func identStart(c int) bool {
	return c == '_' || c == '$' || c == '@' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func digit(c int) bool { return c >= '0' && c <= '9' }

func alnum(c int) bool {
	return digit(c) || c == '_' || c == '$' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// Next returns the next token; EOF again and again at the end. The Text of a
// String keeps its escapes (see Unquote).
func (s *Scanner) Next() *Token {
	for {
		s.space()
		pos := Pos{s.file, s.line, s.col}
		fromArg := s.arg != ""
		if fromArg {
			pos = s.argPos
		}
		t := &Token{Pos: pos, Arg: fromArg}
		c := s.peek(0)
		switch {
		case c < 0:
			t.Kind = EOF
			return t
		case (c == '$' || c == '@') && fromArg && (digit(s.peek(1)) || s.peek(1) == '#'):
			// The user's word is not searched for further arguments.
			s.skip(len(s.arg))
			t.Kind, t.Err = Junk, "invalid nested substitution of command line arguments"
			return t
		case (c == '$' || c == '@') && (digit(s.peek(1)) || s.peek(1) == '#'):
			s.skip(1)
			text, ok := s.argument()
			if !ok {
				t.Kind, t.Arg, t.Err = Junk, true, "command line argument out of range [1-"+itoa(len(s.args))+"]"
				return t
			}
			if s.budget -= len(text); s.budget < 0 {
				t.Kind, t.Err = Junk, "script arguments are inserted too often"
				return t
			}
			if c == '@' {
				t.Kind, t.Text = String, Quote(text)
				return t
			}
			s.arg, s.argPos = text, pos
			continue
		case identStart(c):
			var b strings.Builder
			for first := true; first || alnum(s.peek(0)); first = false {
				b.WriteByte(byte(s.read()))
			}
			t.Text = b.String()
			switch {
			case c == '@':
				t.Kind = Operator
			case keywords(t.Text):
				t.Kind = Keyword
			default:
				t.Kind = Ident
			}
			return t
		case digit(c):
			var b strings.Builder
			for alnum(s.peek(0)) && s.peek(0) != '$' && s.peek(0) != '_' {
				b.WriteByte(byte(s.read()))
			}
			t.Kind, t.Text = Number, b.String()
			return t
		case c == '"':
			return s.str(t)
		case c == '%' && s.peek(1) == '{':
			return s.embed(t)
		case c < ' ' || c >= 0x7f:
			return s.junk(t)
		}
		t.Kind = Operator
		for _, op := range operators {
			match := true
			for i := range len(op) {
				if s.peek(i) != int(op[i]) {
					match = false
					break
				}
			}
			if match {
				t.Text = op
				s.skip(len(op))
				return t
			}
		}
		t.Text = string([]byte{byte(c)})
		s.skip(1)
		return t
	}
}

// junk reads a character that no token starts with. Its text is the character
// itself if it is one that prints, else the escapes of its bytes.
func (s *Scanner) junk(t *Token) *Token {
	t.Kind = Junk
	var b []byte
	for n := range utf8.UTFMax {
		if c := s.peek(n); c >= 0 {
			b = append(b, byte(c))
		}
	}
	r, size := utf8.DecodeRune(b)
	s.skip(size)
	if t.Text = string(b[:size]); r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r) {
		t.Text = ""
		for _, c := range b[:size] {
			t.Text += `\x` + string("0123456789abcdef"[c>>4]) + string("0123456789abcdef"[c&15])
		}
	}
	switch {
	case r == '\ufeff':
		t.Hint = "the script has a byte order mark, which must go"
	case unicode.Is(unicode.Pi, r) || unicode.Is(unicode.Pf, r) || r == '\u201a' || r == '\u201e':
		t.Hint = "strings stand in plain quotes, \""
	case r >= utf8.RuneSelf && unicode.IsSpace(r):
		t.Hint = "this is a blank of a kind that a script may not have"
	}
	return t
}

// space skips blanks and comments. "#" starts a comment; $# and @# are read
// as arguments before it can get here.
func (s *Scanner) space() {
	for {
		switch c := s.peek(0); {
		case c == ' ' || c >= '\t' && c <= '\r':
			s.skip(1)
		case c == '#' || c == '/' && s.peek(1) == '/':
			for s.peek(0) >= 0 && s.peek(0) != '\n' {
				s.skip(1)
			}
		case c == '/' && s.peek(1) == '*':
			s.skip(2)
			for s.peek(0) >= 0 && (s.peek(0) != '*' || s.peek(1) != '/') {
				s.skip(1)
			}
			s.skip(2)
		default:
			return
		}
	}
}

// argument reads "#" or a number and returns the text it stands for.
func (s *Scanner) argument() (string, bool) {
	if s.peek(0) == '#' {
		s.skip(1)
		return itoa(len(s.args)), true
	}
	n := 0
	for digit(s.peek(0)) {
		n = min(n*10+s.read()-'0', 1<<20)
	}
	if n < 1 || n > len(s.args) {
		return "", false
	}
	if s.used != nil {
		s.used[n-1] = true
	}
	return s.args[n-1], true
}

// str reads a string literal. Escapes that C knows stay in the text as they
// are (Unquote reads them); of others only the backslash is dropped.
func (s *Scanner) str(t *Token) *Token {
	t.Kind = String
	s.skip(1)
	var b strings.Builder
	for {
		c := s.read()
		switch {
		case c < 0 || c == '"' || c == '\\' && s.peek(0) < 0:
			t.Text = b.String()
			if c != '"' {
				t.Kind, t.Err, t.Text = Junk, "Could not find matching closing quote", `"`+t.Text
			}
			return t
		case c == '\\':
			c = s.read()
			switch {
			case c == 'a' || c == 'b' || c == 't' || c == 'n' || c == 'v' || c == 'f' || c == 'r' ||
				c == 'x' || c == '\\' || c == '"' || c >= '0' && c <= '7':
				b.WriteByte('\\')
				b.WriteByte(byte(c))
			default:
				b.WriteByte(byte(c))
			}
		default:
			b.WriteByte(byte(c))
		}
	}
}

func (s *Scanner) embed(t *Token) *Token {
	t.Kind = EmbedC
	s.skip(2)
	var b strings.Builder
	for {
		switch c := s.peek(0); {
		case c < 0:
			t.Kind, t.Err = Junk, "Could not find matching '%}' to close embedded function block"
			t.Text = "%{" + strings.TrimRight(b.String(), "}")
			return t
		case c == '%' && s.peek(1) == '}':
			s.skip(2)
			t.Text = b.String()
			return t
		default:
			b.WriteByte(byte(c))
			s.skip(1)
		}
	}
}

func itoa(n int) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
}

// Quote gives text the escapes that make it the inside of a string literal.
func Quote(text string) string {
	var b strings.Builder
	for i := range len(text) {
		switch c := text[i]; c {
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Unquote reads the escapes of a string token as C does. The result ends at
// the first zero character.
func Unquote(raw string) string {
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '\\' && i+1 < len(raw) {
			i++
			switch e := raw[i]; {
			case e == 'a':
				c = 7
			case e == 'b':
				c = 8
			case e == 't':
				c = 9
			case e == 'n':
				c = 10
			case e == 'v':
				c = 11
			case e == 'f':
				c = 12
			case e == 'r':
				c = 13
			case e == 'x':
				v, n := 0, 0
				for i+1 < len(raw) && hexval(raw[i+1]) >= 0 {
					i++
					v = (v*16 + hexval(raw[i])) & 0xff
					n++
				}
				if n == 0 {
					c = 'x'
				} else {
					c = byte(v)
				}
			case e >= '0' && e <= '7':
				v := int(e - '0')
				for n := 0; n < 2 && i+1 < len(raw) && raw[i+1] >= '0' && raw[i+1] <= '7'; n++ {
					i++
					v = v*8 + int(raw[i]-'0')
				}
				c = byte(v)
			default:
				c = e
			}
		}
		if c == 0 {
			break
		}
		b.WriteByte(c)
	}
	return b.String()
}

func hexval(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
