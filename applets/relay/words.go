package relay

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// commandWords turns the CMD of -c into the words of a command line, as
// wordexp(3) does with WRDE_NOCMD and WRDE_UNDEF (loader-relay 1.7): quotes,
// $VAR, ~, globs and $((..)) work, `..` and $(..) are refused. A command with an
// unquoted character of  | & ; < > ( ) { }  or a newline is given to sh -c.
func commandWords(command string, environ []string, dir string) ([]string, error) {
	kind, comments := wordKind(command)
	switch kind {
	case forShell:
		return []string{"sh", "-c", command}, nil
	case unclosed:
		return nil, errors.New("wordexp: syntax error (unmatched quotes?) in -c COMMAND")
	case substitution:
		return nil, fmt.Errorf("wordexp: parsing error (%d)", wrdeCmdSub)
	}
	text := command
	for _, at := range slices.Backward(comments) {
		text = text[:at] + `\` + text[at:]
	}
	var parsed []*syntax.Word
	err := syntax.NewParser().Words(strings.NewReader(text), func(w *syntax.Word) bool {
		parsed = append(parsed, w)
		return true
	})
	if err != nil {
		return nil, errors.New("wordexp: syntax error (unmatched quotes?) in -c COMMAND")
	}
	cfg := &expand.Config{Env: expand.ListEnviron(environ...), NoUnset: true, ReadDir2: os.ReadDir}
	if dir != "" {
		cfg.Env = expand.ListEnviron(append(environ, "PWD="+dir)...)
	}
	words, err := expand.Fields(cfg, parsed...)
	var unset expand.UnsetParameterError
	switch {
	case errors.As(err, &unset):
		return nil, fmt.Errorf("wordexp: parsing error (%d)", wrdeBadVal)
	case err != nil:
		return nil, fmt.Errorf("wordexp: %v in -c COMMAND", err)
	case len(words) == 0:
		return nil, errors.New("empty -c COMMAND")
	}
	return words, nil
}

// Numbers of wordexp(3)'s errors, which upstream's messages show.
const (
	wrdeBadVal = 3
	wrdeCmdSub = 4
)

type kind int

const (
	plain        kind = iota
	forShell          // has a character that wordexp(3) refuses
	unclosed          // a quote or brace is not closed
	substitution      // runs a command
)

// wordKind looks at the quoting of a command. comments are the places of
// unquoted "#": to wordexp(3) an ordinary character, to a shell more.
func wordKind(s string) (k kind, comments []int) {
	quote := byte(0) // the quote we are in
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			}
		case c == '\\':
			if i++; i == len(s) {
				return unclosed, nil
			}
		case c == '"':
			quote ^= '"'
		case c == '`':
			return substitution, nil
		case c == '$' && strings.HasPrefix(s[i:], "$(("):
			end := strings.Index(s[i:], "))")
			if end < 0 {
				return unclosed, nil
			}
			i += end + 1
		case c == '$' && strings.HasPrefix(s[i:], "$("):
			return substitution, nil
		case c == '$' && strings.HasPrefix(s[i:], "${"):
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				return unclosed, nil
			}
			if strings.ContainsAny(s[i:i+end], "`(") {
				return substitution, nil
			}
			i += end
		case quote != 0:
		case c == '\'':
			quote = c
		case c == '#':
			comments = append(comments, i)
		case strings.IndexByte("|&;<>(){}\n", c) >= 0:
			return forShell, nil
		}
	}
	if quote != 0 {
		return unclosed, nil
	}
	return plain, comments
}
