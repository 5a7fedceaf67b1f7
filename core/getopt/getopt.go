// Package getopt reads command lines the way getopt_long(3) does.
//
//	-p4  -p 4        option with argument, glued or as the next word
//	-vvv             three options without argument
//	-u  -u/path      optional argument: only glued
//	--name=value     long option; --name value when the argument is required
//	--na=value       unambiguous abbreviation of a long option
//	--               the end of the options
//	-                a word, not an option
//
// Options and words may be mixed; words keep their order. With Spec.Posix the
// first word ends the options, as the environment variable POSIXLY_CORRECT
// does for getopt(3); this package never looks at the environment.
//
// Parse keeps the order of options, for command lines whose meaning depends on
// it. Canonical turns the result into words that a plain flag library reads
// without knowing getopt: every option as --name or --name=value, then "--",
// then the words.
package getopt

import (
	"fmt"
	"strings"
)

// Arg says whether an option takes an argument.
type Arg int

// The three kinds of options.
const (
	NoArg Arg = iota
	RequiredArg
	OptionalArg
)

// Def defines one option. Either name may be empty; when both are set they are
// the same option.
type Def struct {
	Short rune
	Long  string
	Arg   Arg
}

// Name is the canonical name: the long one if there is one.
func (d Def) Name() string {
	if d.Long != "" {
		return d.Long
	}
	return string(d.Short)
}

// Spec is the set of options a program knows.
type Spec struct {
	Defs  []Def
	Posix bool // the first word that is no option ends the options
}

// Short makes a Spec from a getopt(3) option string such as "ALu::vihb:".
func Short(optstring string) Spec {
	var s Spec
	runes := []rune(optstring)
	for i := 0; i < len(runes); i++ {
		d := Def{Short: runes[i]}
		for i+1 < len(runes) && runes[i+1] == ':' && d.Arg < OptionalArg {
			d.Arg++
			i++
		}
		s.Defs = append(s.Defs, d)
	}
	return s
}

// Option is one option of a command line.
type Option struct {
	Name  string // canonical name
	Value string // the argument, "" if there is none
	Given bool   // an argument was given; it may be empty
	Short bool   // written as a single letter
}

// Parse splits args into options and words. The error text is getopt(3)'s,
// without the program name. Options read before the error are returned too,
// because some programs act on them (a -v before the mistake).
func Parse(s Spec, args []string) (opts []Option, words []string, err error) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			return opts, append(words, args[i+1:]...), nil
		case strings.HasPrefix(arg, "--"):
			o, used, err := s.long(arg[2:], args[i+1:])
			if err != nil {
				return opts, words, err
			}
			i += used
			opts = append(opts, o)
		case len(arg) > 1 && arg[0] == '-':
			more, used, err := s.short(arg[1:], args[i+1:])
			opts = append(opts, more...)
			if err != nil {
				return opts, words, err
			}
			i += used
		case s.Posix:
			return opts, append(words, args[i:]...), nil
		default:
			words = append(words, arg)
		}
	}
	return opts, words, nil
}

func (s Spec) long(arg string, rest []string) (Option, int, error) {
	name, value, given := strings.Cut(arg, "=")
	d, err := s.findLong(name)
	if err != nil {
		return Option{}, 0, err
	}
	o := Option{Name: d.Name(), Value: value, Given: given}
	switch {
	case given && d.Arg == NoArg:
		return o, 0, fmt.Errorf("option '--%s' doesn't allow an argument", d.Long)
	case !given && d.Arg == RequiredArg:
		if len(rest) == 0 {
			return o, 0, fmt.Errorf("option '--%s' requires an argument", d.Long)
		}
		o.Value, o.Given = rest[0], true
		return o, 1, nil
	}
	return o, 0, nil
}

func (s Spec) findLong(name string) (Def, error) {
	var found []Def
	for _, d := range s.Defs {
		if d.Long == name && name != "" {
			return d, nil
		}
		if d.Long != "" && name != "" && strings.HasPrefix(d.Long, name) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return Def{}, fmt.Errorf("unrecognized option '--%s'", name)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, d := range found {
		names = append(names, "'--"+d.Long+"'")
	}
	return Def{}, fmt.Errorf("option '--%s' is ambiguous; possibilities: %s", name, strings.Join(names, " "))
}

func (s Spec) short(arg string, rest []string) (opts []Option, used int, err error) {
	for i, r := range arg {
		d, ok := s.findShort(r)
		if !ok {
			return opts, 0, fmt.Errorf("invalid option -- '%c'", r)
		}
		o := Option{Name: d.Name(), Short: true}
		tail := arg[i+len(string(r)):]
		switch {
		case d.Arg == NoArg:
			opts = append(opts, o)
			continue
		case tail != "":
			o.Value, o.Given = tail, true
		case d.Arg == RequiredArg:
			if len(rest) == 0 {
				return opts, 0, fmt.Errorf("option requires an argument -- '%c'", r)
			}
			o.Value, o.Given = rest[0], true
			used = 1
		}
		return append(opts, o), used, nil
	}
	return opts, 0, nil
}

func (s Spec) findShort(r rune) (Def, bool) {
	for _, d := range s.Defs {
		if d.Short == r && r != ':' && r != 0 {
			return d, true
		}
	}
	return Def{}, false
}

// Canonical is the command line rewritten for a plain flag library.
func Canonical(opts []Option, words []string) []string {
	var out []string
	for _, o := range opts {
		w := "--" + o.Name
		if o.Given {
			w += "=" + o.Value
		}
		out = append(out, w)
	}
	return append(append(out, "--"), words...)
}

// Words is the command line rewritten as getopt(3) permutes it: options first,
// in the form they were given, then the words. A "--" separates them only when
// a word could be taken for an option.
func (s Spec) Words(opts []Option, words []string) []string {
	var out []string
	for _, o := range opts {
		switch {
		case !o.Short && o.Given:
			out = append(out, "--"+o.Name+"="+o.Value)
		case !o.Short:
			out = append(out, "--"+o.Name)
		default:
			out = append(out, s.shortWord(o)...)
		}
	}
	for _, w := range words {
		if len(w) > 1 && w[0] == '-' {
			out = append(out, "--")
			break
		}
	}
	return append(out, words...)
}

func (s Spec) shortWord(o Option) []string {
	for _, d := range s.Defs {
		if d.Name() == o.Name && d.Short != 0 {
			w := "-" + string(d.Short)
			if o.Given && o.Value == "" {
				return []string{w, ""}
			}
			return []string{w + o.Value}
		}
	}
	return nil
}
