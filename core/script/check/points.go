package check

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/parser"
	"stapbox/core/script/token"
	"stapbox/core/script/upstream"
)

// maxProbes and maxAliasDepth bound what aliases may grow to.
const (
	maxProbes     = 20000
	maxSteps      = 20000   // probe points looked at
	maxCopies     = 1 << 20 // statements and expressions in all handlers
	maxAliasDepth = 32
	maxDerivation = 400
)

// timerUnits are the timers with the length of their unit in nanoseconds and
// the largest interval upstream takes (a day); 0 means jiffies or frequency.
var timerUnits = []struct {
	name   string
	length int64
}{
	{"s", 1e9}, {"sec", 1e9}, {"ms", 1e6}, {"msec", 1e6}, {"us", 1e3}, {"usec", 1e3}, {"ns", 1}, {"nsec", 1}, {"jiffies", 0}, {"hz", 0},
}

func timerUnit(name string) (length int64, ok bool) {
	for _, u := range timerUnits {
		if u.name == name {
			return u.length, true
		}
	}
	return 0, false
}

const (
	day       = int64(86400) * 1e9
	minHRTime = int64(100000) // ns; the shortest interval of fine timers
)

// derive resolves every probe point of the script.
func (c *checker) derive() {
	for _, f := range c.user {
		c.deriveFile(f)
	}
	if len(c.errs) == 0 && len(c.prog.Probes) == 0 {
		c.err(nil, "no probes found")
	}
}

// deriveFile resolves the probe points of one file.
func (c *checker) deriveFile(f *ast.File) {
	for _, p := range f.Probes {
		whole := pointList(p.Points, ",")
		for _, q := range p.Points {
			c.wildcards(q)
			var found []*Probe
			d := c.resolvePoint(q, p, p.Body, []string{whole}, nil, &found)
			if d != nil {
				// What this translator lacks is not absent from the kernel.
				if (!q.Optional || d.Has(firm)) && len(c.errs) < maxMessages {
					c.errs = append(c.errs, wrap(q, d))
				}
				continue
			}
			c.prog.Probes = append(c.prog.Probes, found...)
			if len(found) > 0 && q.Sufficient {
				break
			}
			if len(c.prog.Probes) > maxProbes {
				c.err(q.Tok, "too many probes")
				return
			}
		}
	}
}

// limit is the error of what is too much for this translator.
func limit(what string) *diag.Diagnostic {
	d := cause(nil, "%s", what)
	d.Firm = true
	return d
}

// firm tells errors that no ? or ! silences.
func firm(d *diag.Diagnostic) bool { return d.Lacks || d.Firm }

func pointList(list []*ast.Point, sep string) string {
	var out []string
	for _, p := range list {
		s := p.String()
		out = append(out, s)
	}
	return strings.Join(out, sep)
}

func wrap(p *ast.Point, d *diag.Diagnostic) *diag.Diagnostic {
	outer := cause(p.Components[0].Tok, "while resolving probe point")
	outer.Cause = d
	return outer
}

func hasWildcard(s string) bool { return strings.ContainsAny(s, "*?[") }

// resolvePoint appends the probes that q stands for, or says why there is
// none. Aliases win over built-in points.
func (c *checker) resolvePoint(q *ast.Point, src *ast.Probe, body *ast.Block, chain []string, open []*token.Token, out *[]*Probe) *diag.Diagnostic {
	first := q.Components[0].Tok
	for _, t := range open {
		if t == first {
			return cause(nil, "recursive loop in alias expansion of %s at %s", q.Name(), first.Pos)
		}
	}
	if open = append(open[:len(open):len(open)], first); len(open) > maxAliasDepth {
		return limit("aliases are nested too deeply")
	}
	if c.steps++; c.steps > maxSteps {
		return limit("aliases stand for too many probe points")
	}
	before := len(*out)
	matched := false
	for _, list := range [][]*ast.File{c.user, c.library} {
		for _, f := range list {
			for _, a := range f.Aliases {
				for _, n := range a.Names {
					if !aliasMatches(n, q) {
						continue
					}
					matched = true
					c.take(f.Source)
					if d := c.expandAlias(a, n, q, src, body, chain, open, out); d != nil && !c.listing {
						return d
					}
				}
			}
		}
	}
	if matched && !hasWildcard(q.Components[0].Name) {
		if len(*out) == before {
			return cause(nil, "no match")
		}
		return nil
	}
	d := c.builtin(q, src, body, chain, open, out)
	if d != nil && len(*out) > before {
		return nil // aliases of that pattern
	}
	return d
}

// aliasMatches compares the alias name with the first words of q.
func aliasMatches(n, q *ast.Point) bool {
	// "**" as the last word stands for any number of words.
	if last := len(q.Components) - 1; strings.Contains(q.Components[last].Name, "**") && q.Components[last].Arg == nil && len(n.Components) > last {
		var words []string
		for _, k := range n.Components[last:] {
			words = append(words, k.Name)
		}
		if !parser.Match(q.Components[last].Name, strings.Join(words, ".")) {
			return false
		}
		head := *q
		head.Components = q.Components[:last]
		return last == 0 || aliasMatches(&ast.Point{Components: n.Components[:last]}, &head)
	}
	if len(q.Components) < len(n.Components) {
		return false
	}
	for i, k := range n.Components {
		h := q.Components[i]
		if k.Name != h.Name && !(hasWildcard(h.Name) && parser.Match(h.Name, k.Name)) {
			return false
		}
		if (k.Arg == nil) != (h.Arg == nil) {
			return false
		}
		if k.Arg != nil && ast.ExprString(k.Arg) != ast.ExprString(h.Arg) {
			return false
		}
	}
	return true
}

func (c *checker) expandAlias(a *ast.Alias, n, q *ast.Point, src *ast.Probe, body *ast.Block, chain []string, open []*token.Token, out *[]*Probe) *diag.Diagnostic {
	rest := q.Components[min(len(n.Components), len(q.Components)):]
	whole := &ast.Block{StmtBase: ast.StmtBase{Tok: body.Tok}}
	written := writtenNames(body)
	if a.Prologue != nil {
		whole.Stmts = append(whole.Stmts, withProbeWrite(a.Prologue, written))
	}
	whole.Stmts = append(whole.Stmts, body)
	if a.Epilogue != nil {
		whole.Stmts = append(whole.Stmts, withProbeWrite(a.Epilogue, written))
	}
	from := arrows(chain)
	if len(from) > maxDerivation {
		from = from[:maxDerivation] + "..." // it doubles with each alias
	}
	op := " = "
	if a.Epi {
		op = " += "
	}
	text := n.Name() + op + ast.Points(a.Points, ", ") + " /* " + from + " */ "
	next := append([]string{text}, chain...)
	var failed *diag.Diagnostic
	for _, p := range a.Points {
		np := &ast.Point{Tok: q.Tok, Components: append(append([]*ast.Component{}, p.Components...), rest...), Optional: p.Optional, Sufficient: p.Sufficient, Cond: q.Cond}
		if p.Cond != nil && np.Cond != nil {
			np.Cond = &ast.Binary{ExprBase: ast.ExprBase{Tok: p.Cond.Token()}, Op: "&&", L: ast.CloneExpr(p.Cond), R: ast.CloneExpr(q.Cond)}
		} else if p.Cond != nil {
			np.Cond = p.Cond
		}
		was := len(*out)
		if d := c.resolvePoint(np, src, whole, next, open, out); d != nil {
			if !p.Optional && !q.Optional || d.Has(firm) {
				if len(c.errs) < maxMessages {
					c.errs = append(c.errs, wrap(p, d))
				}
				failed = d
			}
			continue
		}
		if p.Sufficient && len(*out) > was {
			break
		}
	}
	if failed != nil {
		return cause(nil, "no match")
	}
	return nil
}

// size counts the statements and expressions of a body.
func size(s ast.Stmt) int {
	n := 0
	ast.Walk(s, func(ast.Stmt) { n++ }, func(ast.Expr) { n++ })
	return n
}

// writtenNames are the variables a handler body stores to: what @probewrite
// in an alias asks for.
func writtenNames(b *ast.Block) map[string]bool {
	names := map[string]bool{}
	name := func(x ast.Expr) {
		switch x := x.(type) {
		case *ast.Symbol:
			names[x.Name] = true
		case *ast.Target:
			names[x.Name] = true
		}
	}
	ast.Walk(b, nil, func(x ast.Expr) {
		switch x := x.(type) {
		case *ast.Assign:
			name(x.L)
		case *ast.IncDec:
			name(x.X)
		}
	})
	return names
}

// withProbeWrite copies an alias body with @probewrite replaced.
func withProbeWrite(b *ast.Block, written map[string]bool) ast.Stmt {
	s := ast.CloneStmt(b)
	var fix func(p *ast.Expr)
	fix = func(p *ast.Expr) {
		if x, ok := (*p).(*ast.AtOp); ok && x.Name == "probewrite" {
			n := &ast.Number{ExprBase: ast.ExprBase{Tok: x.Tok, T: ast.Long}}
			switch a := x.Args[0].(type) {
			case *ast.Symbol:
				if written[a.Name] {
					n.Value = 1
				}
			case *ast.Target:
				if written[a.Name] {
					n.Value = 1
				}
			}
			*p = n
			return
		}
		for _, q := range ast.Slots(*p) {
			fix(q)
		}
	}
	ast.Walk(s, func(s ast.Stmt) {
		es, _ := ast.StmtSlots(s)
		for _, e := range es {
			fix(e)
		}
	}, nil)
	return s
}

func arrows(chain []string) string {
	s := ""
	for _, t := range chain {
		s += " <- " + t
	}
	return s
}

func (c *checker) pointNames() []string {
	out := []string{"begin", "end", "error", "never", "timer", "procfs", "input"}
	for _, f := range c.user {
		for _, a := range f.Aliases {
			for _, n := range a.Names {
				out = append(out, n.Components[0].Name)
			}
		}
	}
	return out
}

// builtin resolves begin, end, error, never and timers.
func (c *checker) builtin(q *ast.Point, src *ast.Probe, body *ast.Block, chain []string, open []*token.Token, out *[]*Probe) *diag.Diagnostic {
	first := q.Components[0]
	add := func(p *Probe, point string) *diag.Diagnostic {
		switch {
		case q.Sufficient:
			point += "!"
		case q.Optional:
			point += "?"
		}
		p.Point, p.Derivation, p.Source = point, chain, src
		if c.copied += size(body); c.copied > maxCopies {
			return limit("probe handlers are too large together")
		}
		p.Body = ast.CloneStmt(body)
		p.Cond = ast.CloneExpr(q.Cond)
		p.Name, p.tok = point, src.Tok
		if len(chain) > 1 {
			p.Name, _, _ = strings.Cut(chain[len(chain)-2], " = ")
			p.Name, _, _ = strings.Cut(p.Name, " += ")
			p.tok = open[0]
		}
		*out = append(*out, p)
		return nil
	}
	mismatch := func(at *token.Token, name string, list []string) *diag.Diagnostic {
		return cause(at, "probe point mismatch%s", similar(name, list))
	}
	if last := len(q.Components) - 1; first.Name == "procfs" && last > 0 && hasWildcard(q.Components[last].Name) {
		found := false
		for _, w := range []string{"read", "write"} {
			if !parser.Match(q.Components[last].Name, w) {
				continue
			}
			np, nc := *q, *q.Components[last]
			nc.Name = w
			np.Components = append(slices.Clone(q.Components[:last]), &nc)
			found = c.builtin(&np, src, body, chain, open, out) == nil || found
		}
		if !found {
			return mismatch(q.Components[last].Tok, q.Components[last].Name, []string{"read", "umask", "write"})
		}
		return nil
	}
	if first.Name == "procfs" {
		p, point, d := c.procfs(q)
		if d != nil {
			return d
		}
		if d := add(p, point); d != nil {
			return d
		}
		c.value(p)
		return nil
	}
	if first.Name != "timer" && !hasWildcard(first.Name) {
		kinds := map[string]Kind{"begin": Begin, "end": End, "error": Error, "never": Never}
		kind, ok := kinds[first.Name]
		if !ok {
			if upstream.Class(first.Name) {
				return c.unsupportedPoint(q)
			}
			return mismatch(first.Tok, first.Name, c.pointNames())
		}
		p := &Probe{Kind: kind}
		point := first.Name
		if first.Arg != nil {
			n, ok := first.Arg.(*ast.Number)
			if !ok || kind == Never {
				return mismatch(first.Tok, first.Name, c.pointNames())
			}
			p.Priority = n.Value
			point = fmt.Sprintf("%s(%d)", first.Name, n.Value)
		}
		if len(q.Components) > 1 {
			return cause(q.Components[1].Tok, "invalid suffix for probe")
		}
		return add(p, point)
	}
	if hasWildcard(first.Name) {
		found := false
		for _, w := range []string{"begin", "end", "error", "never", "timer"} {
			if !parser.Match(first.Name, w) {
				continue
			}
			np := *q
			np.Components = append([]*ast.Component{}, q.Components...)
			nc := *first
			nc.Name = w
			np.Components[0] = &nc
			if c.builtin(&np, src, body, chain, open, out) == nil {
				found = true
			}
		}
		if !found {
			return mismatch(first.Tok, first.Name, c.pointNames())
		}
		return nil
	}
	var units []string
	for _, u := range timerUnits {
		units = append(units, u.name)
	}
	sort.Strings(units)
	if first.Arg != nil || len(q.Components) < 2 {
		return mismatch(first.Tok, first.Name, c.pointNames())
	}
	unit := q.Components[1]
	if hasWildcard(unit.Name) {
		found := false
		for _, u := range append(slices.Clone(units), "profile") {
			if !parser.Match(unit.Name, u) {
				continue
			}
			np := *q
			np.Components = append([]*ast.Component{}, q.Components...)
			nc := *unit
			nc.Name = u
			np.Components[1] = &nc
			if c.builtin(&np, src, body, chain, open, out) == nil {
				found = true
			}
		}
		if !found {
			return mismatch(unit.Tok, unit.Name, units)
		}
		return nil
	}
	length, ok := timerUnit(unit.Name)
	if unit.Name == "profile" && unit.Arg == nil {
		return c.profile(q, add)
	}
	n, isNum := unit.Arg.(*ast.Number)
	if !ok || !isNum {
		return mismatch(unit.Tok, unit.Name, units)
	}
	p := &Probe{Kind: Timer, Unit: Nanoseconds}
	point := fmt.Sprintf("timer.%s(%d)", unit.Name, n.Value)
	random := int64(0)
	rest := q.Components[2:]
	if len(rest) > 0 && rest[0].Name == "randomize" && unit.Name != "hz" {
		r, ok := rest[0].Arg.(*ast.Number)
		if !ok {
			return mismatch(rest[0].Tok, rest[0].Name, []string{"randomize"})
		}
		random = r.Value
		point += fmt.Sprintf(".randomize(%d)", random)
		rest = rest[1:]
	}
	if len(rest) > 0 {
		return cause(rest[0].Tok, "invalid suffix for probe")
	}
	switch unit.Name {
	case "jiffies":
		if n.Value < 1 || n.Value > 1000000 {
			return cause(nil, "invalid interval for jiffies timer")
		}
		if random < 0 || random > n.Value {
			return cause(nil, "invalid randomize for jiffies timer")
		}
		p.Unit, p.Interval, p.Randomize = Jiffies, n.Value, random
	case "hz":
		if n.Value < 1 {
			return cause(nil, "frequency must be greater than 0")
		}
		p.Interval = 1000000000 / n.Value
		if p.Interval < minHRTime {
			return cause(nil, "interval value out of range (%d, %d)", minHRTime, day)
		}
	default:
		lo, hi := max(1, minHRTime/length), day/length
		if n.Value < lo || n.Value > hi {
			return cause(nil, "interval value out of range (%d, %d)", lo, hi)
		}
		if random < 0 || random > n.Value {
			return cause(nil, "randomization value out of range")
		}
		p.Interval, p.Randomize = n.Value*length, random*length
	}
	return add(p, point)
}

// profile resolves timer.profile and timer.profile.tick: a tick on every CPU,
// whoever runs there, and so not for all.
func (c *checker) profile(q *ast.Point, add func(*Probe, string) *diag.Diagnostic) *diag.Diagnostic {
	point, rest := "timer.profile", q.Components[2:]
	if len(rest) > 0 && (rest[0].Name == "tick" || hasWildcard(rest[0].Name) && parser.Match(rest[0].Name, "tick")) && rest[0].Arg == nil {
		point, rest = point+".tick", rest[1:]
	}
	if len(rest) > 0 && rest[0].Name == "freq" {
		return c.unsupportedPoint(q)
	}
	if len(rest) > 0 {
		return cause(rest[0].Tok, "invalid suffix for probe")
	}
	if d := c.forbidden(q); d != nil {
		return d
	}
	return add(&Probe{Kind: Timer, Unit: Jiffies, Interval: 1, EveryCPU: true}, point)
}

// forbidden says that the privilege level does not allow q, if so.
func (c *checker) forbidden(q *ast.Point) *diag.Diagnostic {
	if c.opts.Privilege.Contains(privilege.StapDev) || c.opts.Privilege.Contains(privilege.StapSys) {
		return nil
	}
	d := cause(q.Components[len(q.Components)-1].Tok, "probe point is not allowed for --privilege=%s", c.opts.Privilege)
	d.Firm = true
	return d
}

// unsupportedPoint refuses a probe point of upstream: because of the
// privilege level if that is the reason, else because this translator lacks
// it.
func (c *checker) unsupportedPoint(q *ast.Point) *diag.Diagnostic {
	if d := c.forbidden(q); d != nil && q.Components[0].Name != "process" {
		return d
	}
	return lack(q.Components[0].Tok, "probe point "+q.Name())
}
