// Package script is the front end of the translator: it turns the text of a
// SystemTap script into a checked program, in the two passes of stap(1).
//
// Parse (pass 1) and Check (pass 2) are separate so that a caller can time
// and stop between them. Both report failure as a *diag.List, which a
// diag.Renderer shows the way stap does.
package script

import (
	"io"

	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/check"
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
	Guru            bool // -g
	Unoptimized     bool // -u
	NoGlobalDisplay bool // --no-global-var-display
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
	Script  *ast.File
	Library []*ast.File
	opts    Options
}

// Parse is pass 1.
func Parse(src Source, opts Options) (*Parsed, error) {
	f, err := parser.Parse(&token.File{Name: src.Name, Text: src.Text}, opts.parser())
	if err != nil {
		return nil, err
	}
	lib, err := tapset.Parse(opts.parser())
	if err != nil {
		return nil, err
	}
	return &Parsed{f, lib, opts}, nil
}

// Dump writes the parsed script as -p1 shows it.
func (p *Parsed) Dump(w io.Writer) error { return ast.Dump(w, p.Script) }

// Check is pass 2. It uses the parsed trees up. The program holds the
// warnings also when there is an error.
func (p *Parsed) Check() (*check.Program, error) {
	return check.Check([]*ast.File{p.Script}, p.Library, check.Options{Privilege: p.opts.Privilege, Guru: p.opts.Guru,
		Unoptimized: p.opts.Unoptimized, NoGlobalDisplay: p.opts.NoGlobalDisplay})
}

// Load runs both passes.
func Load(src Source, opts Options) (*ast.File, *check.Program, error) {
	p, err := Parse(src, opts)
	if err != nil {
		return nil, nil, err
	}
	prog, err := p.Check()
	return p.Script, prog, err
}
