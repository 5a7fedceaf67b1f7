// Package script is the front end of the translator: it turns the text of a
// SystemTap script into a checked program, in the two passes of stap(1).
//
// Parse (pass 1) and Check (pass 2) are separate so that a caller can time
// and stop between them. Both report failure as a *diag.List, which a
// diag.Renderer shows the way stap does.
package script

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/check"
	"stapbox/core/script/diag"
	"stapbox/core/script/parser"
	"stapbox/core/script/tapset"
	"stapbox/core/script/token"
)

// Compatible is the language version: systemtap_v of the preprocessor.
const Compatible = "5.6"

// Source is a script with the name that messages show: "<input>" for -e and
// standard input.
type Source struct{ Name, Text string }

// Options is what a script is translated for.
type Options struct {
	Args       []string          // arguments: $1, @1 ...
	Release    string            // kernel release
	Arch       string            // of the kernel build system: x86_64, arm64 ...
	Config     map[string]string // CONFIG_ values for the preprocessor
	Compatible string            // --compatible; Compatible when empty
	// Privilege is the level of --privilege; zero means stapdev.
	Privilege       privilege.Level
	Guru            bool          // -g
	Unoptimized     bool          // -u
	NoGlobalDisplay bool          // --no-global-var-display
	Timeout         time.Duration // -T: when the script ends, 0 for never

	Scripts []Source // -E: scripts beside the main one
	Library []Source // .stp files of the -I directories, in the order they are searched
	Macros  []Source // .stpm files of the -I directories
}

func (o Options) parser() parser.Options {
	level := o.Privilege
	if level == privilege.None {
		level = privilege.All
	}
	compatible := o.Compatible
	if compatible == "" {
		compatible = Compatible
	}
	return parser.Options{Args: o.Args, Release: o.Release, Arch: o.Arch, Config: o.Config,
		Compatible: compatible, Privilege: level.String(), Guru: o.Guru}
}

// Parsed is the result of pass 1.
type Parsed struct {
	Scripts []*ast.File // the script, and those of Options.Scripts
	Library []*ast.File // -I directories, then the tapset of the translator
	// Problems are messages to show whether there is an error or not: library
	// files that cannot be read are left out.
	Problems []Problem
	opts     Options
	used     []bool    // which arguments the scripts name
	timeout  *ast.File // the probe of -T, or nil
}

// Problem is the failure of one file.
type Problem struct {
	*diag.List
	Macros string // name of the file, when it is one of macros
}

// Parse is pass 1. The result is never nil.
func Parse(src Source, opts Options) (*Parsed, error) {
	p := &Parsed{opts: opts, used: make([]bool, len(opts.Args))}
	po := opts.parser()
	var err error
	if po.Own, err = tapset.Macros(po); err != nil {
		return p, err
	}
	clash := false
	for _, s := range opts.Macros {
		if po.Macros == nil {
			po.Macros = &parser.Macros{}
		}
		c, failure := po.Macros.Add(&token.File{Name: s.Name, Text: s.Text, Library: true}, po)
		clash = clash || c
		if failure != nil {
			p.Problems = append(p.Problems, Problem{failure, s.Name})
		}
	}
	if clash {
		return p, &diag.List{Pass: 1}
	}
	for _, s := range opts.Library {
		lo := po
		lo.Args = nil
		lo.Used = nil
		f, err := parser.Parse(&token.File{Name: s.Name, Text: s.Text, Library: true}, lo)
		var failure *diag.List
		switch {
		case err == nil:
			p.Library = append(p.Library, f)
		case errors.As(err, &failure) && len(failure.Errors) > 0:
			p.Problems = append(p.Problems, Problem{List: failure})
		}
	}
	var last *diag.List
	for i, s := range append([]Source{src}, opts.Scripts...) {
		po.Used = p.used
		f, err := parser.Parse(&token.File{Name: s.Name, Text: s.Text}, po)
		var failure *diag.List
		switch {
		case err == nil:
			p.Scripts = append(p.Scripts, f)
		case errors.As(err, &failure):
			if last != nil {
				p.Problems = append(p.Problems, Problem{List: last})
			}
			last = failure
		default:
			return p, fmt.Errorf("parsing script %d: %w", i+1, err)
		}
	}
	if last != nil {
		return p, last
	}
	po.Used, po.Macros = nil, nil
	arguments, err := tapset.Arguments(po)
	if err != nil {
		return p, err
	}
	if opts.Timeout > 0 {
		// Part of the script, but not of what the user wrote.
		text := fmt.Sprintf("probe timer.ms(%d) { exit() }", opts.Timeout.Milliseconds())
		if p.timeout, err = parser.Parse(&token.File{Name: "<timeout>", Text: text, Tapset: true, Synthetic: true}, po); err != nil {
			return p, err
		}
	}
	own, err := tapset.Parse(po)
	p.Library = append(append(p.Library, arguments...), own...)
	return p, err
}

// Dump writes the parsed scripts as -p1 shows them.
func (p *Parsed) Dump(w io.Writer) error { return ast.Dump(w, p.Scripts...) }

func (p *Parsed) options() check.Options {
	return check.Options{Privilege: p.opts.Privilege, Guru: p.opts.Guru,
		Unoptimized: p.opts.Unoptimized, NoGlobalDisplay: p.opts.NoGlobalDisplay}
}

// Check is pass 2. It uses the parsed trees up. The program holds the
// warnings also when there is an error.
func (p *Parsed) Check() (*check.Program, error) {
	user := p.Scripts
	if p.timeout != nil {
		user = append(slices.Clone(user), p.timeout)
	}
	prog, err := check.Check(user, p.Library, p.options())
	if len(p.used) > 32 && prog.Arguments {
		prog.Warnings = append(prog.Warnings, &diag.Diagnostic{Severity: diag.Warning, Message: fmt.Sprintf("argv has the first 32 of %d arguments", len(p.used))})
	}
	for i, used := range p.used {
		if !used && !prog.Arguments {
			prog.Warnings = append(prog.Warnings, &diag.Diagnostic{Severity: diag.Warning, Message: fmt.Sprintf("unused command line option $%d/@%d", i+1, i+1)})
		}
	}
	return prog, err
}

// List is pass 2 of -l and -L: the probe points of the first script, and what is
// wrong with its patterns: they stand for something that this translator lacks.
// It uses the parsed trees up.
func (p *Parsed) List() ([]check.Listed, *diag.List) {
	return check.List(p.Scripts, p.Library, p.options())
}

// Load runs both passes.
func Load(src Source, opts Options) (*ast.File, *check.Program, error) {
	p, err := Parse(src, opts)
	if err != nil {
		return nil, nil, err
	}
	prog, err := p.Check()
	return p.Scripts[0], prog, err
}
