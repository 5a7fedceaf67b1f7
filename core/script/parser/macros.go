package parser

import (
	"strings"

	"stapbox/core/script/diag"
	"stapbox/core/script/token"
)

// Macros are the public macros of a library: those that its .stpm files define
// for all other files (stap(1), PREPROCESSOR MACROS).
type Macros struct {
	byName map[string]*macro
}

// Add reads one .stpm file: @define and conditionals around them. Of a file with
// errors nothing is taken. clash tells that the error is a macro of a name that
// another file has defined, after which the script is not read either.
func (m *Macros) Add(f *token.File, opts Options) (clash bool, failure *diag.List) {
	var errs []*diag.Diagnostic
	opts.errors = &errs
	opts.Guru = true
	if m.byName == nil {
		m.byName = map[string]*macro{}
	}
	opts.Macros = m
	if len(f.Text) > token.MaxSource {
		return false, &diag.List{Pass: 1, Notes: []string{"Input file '" + f.Name + "' is larger than " + itoa(token.MaxSource) + " bytes."}}
	}
	p := &preprocessor{opts: &opts, scan: token.NewScanner(f, nil, nil), macros: map[string]*macro{}, library: true}
	if d := p.definitions(f); d != nil {
		opts.report(d)
	}
	for _, name := range p.defined {
		if old := m.byName[name]; old != nil {
			opts.report(&diag.Diagnostic{Message: "duplicate definition of library macro '@" + name + "'", Tok: p.macros[name].tok})
			opts.report(&diag.Diagnostic{Message: "macro '@" + name + "' first defined here", Tok: old.tok})
			clash = true
		}
	}
	if len(errs) > 0 {
		return clash, &diag.List{Pass: 1, Errors: errs}
	}
	for _, name := range p.defined {
		m.byName[name] = p.macros[name]
	}
	return false, nil
}

// definitions reads a whole file that may hold nothing but macros.
func (p *preprocessor) definitions(f *token.File) (failure *diag.Diagnostic) {
	defer func() {
		if r := recover(); r != nil {
			d, ok := r.(*diag.Diagnostic)
			if !ok {
				panic(r)
			}
			failure = d
		}
	}()
	if t := p.next(); t.Kind != token.EOF {
		failAt(t, "unexpected token in library macro file '"+strings.TrimSpace(f.Name)+"'")
	}
	return nil
}
