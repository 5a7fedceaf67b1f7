package check

import (
	"slices"
	"strings"

	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/token"
)

// Listed is one line of -l and -L.
type Listed struct {
	Name  string // as a script may write it: the alias, or the resolved probe point
	Point string // the resolved probe point
	Vars  string // " name:type" for each variable that the handlers of aliases set
}

// List resolves the probe points of the first file and answers what they stand
// for, without those that stand for nothing. Mistakes in handlers are no
// matter, but then types are unknown.
func List(user, library []*ast.File, opts Options) []Listed {
	if opts.Privilege == privilege.None {
		opts.Privilege = privilege.All
	}
	c := &checker{opts: opts, user: user, library: library, prog: &Program{Privilege: opts.Privilege},
		done: map[*ast.Function]bool{}, firstAt: map[*ast.Var]*token.Token{}, typeAt: map[any]*token.Token{},
		globals: map[*ast.Var]bool{}, listing: true}
	c.index()
	c.derive()
	var probes []*Probe
	for _, p := range c.prog.Probes {
		if p.Source.Tok.Pos.File == user[0].Source {
			probes = append(probes, p)
		}
	}
	if len(probes) == 0 {
		return nil
	}
	c.errs = nil
	c.resolveAll()
	if len(c.errs) == 0 {
		c.types()
	}
	var list []Listed
	for _, p := range probes {
		var vars strings.Builder
		for _, v := range p.Locals {
			vars.WriteString(" " + v.Name + ":" + v.Type.String())
		}
		list = append(list, Listed{p.Name, p.Point, vars.String()})
	}
	slices.SortStableFunc(list, func(a, b Listed) int { return strings.Compare(a.Name+a.Vars, b.Name+b.Vars) })
	return list
}
