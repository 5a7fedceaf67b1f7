package check

import (
	"slices"
	"strings"

	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/token"
	"stapbox/core/script/upstream"
)

// Listed is one line of -l and -L.
type Listed struct {
	Name  string // as a script may write it: the alias, or the resolved probe point
	Point string // the resolved probe point
	Vars  string // " name:type" for each variable that the handlers of aliases set
}

// List resolves the probe points of the first file and answers what they stand
// for, without those that stand for nothing, and which of them this translator
// lacks. Mistakes in handlers are no matter, but then types are unknown.
func List(user, library []*ast.File, opts Options) ([]Listed, *diag.List) {
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
	lacks := c.listLacks()
	if len(probes) == 0 {
		return nil, lacks
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
	return list, lacks
}

// supported reports whether this translator has a probe point of SystemTap, which
// is given without arguments.
func supported(point string) bool {
	class, rest, _ := strings.Cut(point, ".")
	switch class {
	case "begin", "end", "error", "never", "init", "oneshot", "procfs", "input":
		return true
	case "timer":
		return rest != "profile.freq" && !strings.HasPrefix(rest, "profile.freq.")
	}
	return false
}

// listLacks are the errors of a listing that ? does not silence, or nil.
func (c *checker) listLacks() *diag.List {
	l := &diag.List{Pass: 2}
	for _, d := range c.errs {
		if d.Has(firm) {
			l.Errors = append(l.Errors, d)
		}
	}
	if len(l.Errors) == 0 {
		return nil
	}
	return l
}

// patternSteps is what a pattern counts of maxSteps: it is held against all names.
const patternSteps = 50

// wildcards names the probe points that SystemTap has for a pattern and this
// translator does not: what the script gets would be a part only of what it asks
// for. Where the first word has no wildcard and its class is missing, that is
// said anyway.
func (c *checker) wildcards(q *ast.Point) {
	var words []string
	for _, k := range q.Components {
		words = append(words, k.Name)
	}
	if !hasWildcard(strings.Join(words, "")) || !hasWildcard(words[0]) && !supported(words[0]+".") {
		return
	}
	pattern := strings.Join(words, ".")
	if c.patterns[pattern] {
		return
	}
	if c.patterns == nil {
		c.patterns = map[string]bool{}
	}
	c.patterns[pattern] = true
	if c.steps += patternSteps; c.steps > maxSteps {
		return // the point itself is too much, which will be said
	}
	var names []string
	for _, point := range upstream.Points(words) {
		if !supported(point) {
			names = append(names, point)
		}
	}
	for len(names) > 0 {
		class, _, _ := strings.Cut(names[0], ".")
		n := 1
		for n < len(names) && strings.HasPrefix(names[n], class+".") {
			n++
		}
		what := "probe point " + names[0]
		if n > 1 || strings.HasSuffix(names[0], ".**") {
			what = "each of the probe points " + class + ".**"
		}
		c.lacks(q.Components[0].Tok, what)
		names = names[n:]
	}
}
