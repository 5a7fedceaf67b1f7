package service

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The files of the manager, of servers and of what runs hold a line for each
// setting (services 2.3):
//
//	# a comment; blank lines mean nothing either
//	VARIABLE=VALUE      VARIABLE+=VALUE for a list
//
// Blanks at both ends of a line do not count, a carriage return is one, and the
// last line may lack its end. The value is what stands after "=", as it is: no
// shell looks at it. One pair of quotes around it, single or double, is taken
// off; within, no character is special. A value that is a path may begin with
// "~" or "~user".

// maxFile is the size of the largest file that is read.
const maxFile = 1 << 20

// InvalidLine is a line that is no setting.
type InvalidLine struct{ Line, File string }

func (e *InvalidLine) Error() string {
	return fmt.Sprintf("Invalid input, %q, in %s", e.Line, e.File)
}

// line is one setting.
type line struct {
	name, value string
	add         bool // +=
	text        string
}

// parseLines splits a file into settings. Which names there are is for others
// to know.
func parseLines(data []byte, file string) ([]line, error) {
	var list []line
	for text := range strings.SplitSeq(string(data), "\n") {
		text = strings.Trim(text, " \t\r\v\f")
		if text == "" || text[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(text, "=")
		l := line{text: text}
		l.name, l.add = strings.CutSuffix(name, "+")
		if !ok || l.name == "" || strings.Trim(l.name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" || CheckValue("", value) != nil {
			return nil, &InvalidLine{text, file}
		}
		l.value = Unquote(value)
		list = append(list, l)
	}
	return list, nil
}

// Unquote takes off one pair of quotes.
func Unquote(value string) string {
	if n := len(value); n >= 2 && value[0] == value[n-1] && (value[0] == '"' || value[0] == '\'') {
		return value[1 : n-1]
	}
	return value
}

// quoted is a value as a file has it, so that it is read as it is.
func quoted(value string) string {
	if value != Unquote(value) || value != strings.Trim(value, " \t") || strings.HasPrefix(value, "~") {
		return `"` + value + `"`
	}
	return value
}

// Home finds the home directory of a user, of the caller for "".
type Home func(user string) (string, error)

// expand replaces "~" and "~user" at the beginning of a path. A quoted value is
// a path as it stands.
func (l line) expand(home Home) (string, error) {
	_, written, _ := strings.Cut(l.text, "=")
	if !strings.HasPrefix(written, "~") || home == nil {
		return l.value, nil
	}
	user, rest, _ := strings.Cut(l.value[1:], "/")
	dir, err := home(user)
	if err != nil {
		return "", fmt.Errorf("expanding %q: %w", l.value, err)
	}
	return filepath.Join(dir, rest), nil
}

// readFile reads a regular file. With nofollow it is not reached by a link.
func readFile(path string, nofollow int) ([]byte, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|nofollow, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("reading %q: not a regular file", path)
	}
	if err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("reading %q: more than %d bytes", path, maxFile)
	}
	return data, st, err
}

// ParseSpec reads the description of a server. home is nil for what a manager
// wrote itself: there "~" is a character as any other.
func ParseSpec(data []byte, file string, home Home) (Spec, error) {
	var s Spec
	lines, err := parseLines(data, file)
	for i := 0; err == nil && i < len(lines); i++ {
		err = s.set(lines[i], file, home)
	}
	return s, err
}

func (s *Spec) set(l line, file string, home Home) error {
	path := func(field *string) (err error) {
		*field, err = l.expand(home)
		return err
	}
	list := func(field *[]string, isPath bool) error {
		value, empty := l.value, l.value == "" || l.value == "()"
		if isPath && !empty {
			if err := path(&value); err != nil {
				return err
			}
		}
		if !l.add {
			*field = nil
		}
		if !empty {
			*field = append(*field, value)
		}
		return nil
	}
	switch l.name {
	case "RELEASE":
		return list(&s.Releases, true)
	case "INCLUDE":
		return list(&s.Include, true)
	case "BUILD":
		return list(&s.Build, false)
	case "DEFINE":
		return list(&s.Define, false)
	}
	if l.add {
		return &InvalidLine{l.text, file}
	}
	switch l.name {
	case "ARCH":
		s.Arch = l.value
	case "USER":
		s.User = l.value
	case "NICKNAME":
		s.Nickname = l.value
	case "RUNTIME":
		return path(&s.Runtime)
	case "LOG":
		return path(&s.Log)
	case "SSL":
		return path(&s.SSL)
	case "PORT":
		s.Port = l.value
	case "MAXTHREADS":
		s.MaxThreads = l.value
	case "MAXREQSIZE":
		s.MaxRequest = l.value
	case "MAXCOMPRESSEDREQ":
		s.MaxArchive = l.value
	default:
		return &InvalidLine{l.text, file}
	}
	return nil
}

// Format is the spec as a status file has it (services 2.6).
func (s *Spec) Format() []byte {
	var b strings.Builder
	scalar := func(name, value string) { fmt.Fprintf(&b, "%s=%s\n", name, quoted(value)) }
	list := func(name string, values []string) {
		for _, v := range values {
			fmt.Fprintf(&b, "%s+=%s\n", name, quoted(v))
		}
	}
	scalar("ARCH", s.Arch)
	scalar("USER", s.User)
	list("BUILD", s.Build)
	list("INCLUDE", s.Include)
	list("DEFINE", s.Define)
	scalar("NICKNAME", s.Nickname)
	scalar("RUNTIME", s.Runtime)
	list("RELEASE", s.Releases)
	scalar("LOG", s.Log)
	scalar("PORT", s.Port)
	scalar("SSL", s.SSL)
	scalar("MAXTHREADS", s.MaxThreads)
	scalar("MAXREQSIZE", s.MaxRequest)
	scalar("MAXCOMPRESSEDREQ", s.MaxArchive)
	return []byte(b.String())
}

// Config is the file of a server.
type Config struct {
	Spec
	File string
}

// ReadConfigs reads the files DIR/*.conf, in order. One that is wrong ends it;
// without the directory there are none.
func ReadConfigs(dir string, home Home) ([]*Config, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []*Config
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		if !strings.HasSuffix(e.Name(), ".conf") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if st, err := os.Stat(file); err != nil || !st.Mode().IsRegular() {
			continue
		}
		data, _, err := readFile(file, 0)
		if err != nil {
			return nil, err
		}
		s, err := ParseSpec(data, file, home)
		if err != nil {
			return nil, err
		}
		list = append(list, &Config{s, file})
	}
	return list, nil
}
