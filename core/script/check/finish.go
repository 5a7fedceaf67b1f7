package check

import (
	"fmt"
	"sort"
	"strings"

	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/token"
)

// privileges checks what the tapset functions in use are annotated with:
//
//	/* unprivileged */          every level
//	/* myproc-unprivileged */   every level; the function itself looks at
//	                            the owner of the process
//
// (/* guru */ is looked at where the call is: tapsets may call such functions.)
// A function without C text is as privileged as what it calls.
func (c *checker) privileges() {
	for _, f := range c.order {
		if f.C == nil {
			continue
		}
		if c.opts.Privilege != privilege.StapUsr {
			continue // members of stapsys and stapdev may call everything
		}
		if !unprivileged(f.C) {
			c.err(f.Tok, "function may not be used when --privilege=%s is specified", c.opts.Privilege)
		}
	}
	if c.opts.Privilege != privilege.StapUsr {
		return
	}
	look := func(body ast.Stmt, in *token.Token) {
		refuse := func(e *ast.EmbedC) {
			if !unprivileged(e) {
				c.err(e.Tok, "embedded expression may not be used when --privilege=%s is specified", c.opts.Privilege).Tok2 = in
			}
		}
		ast.Walk(body, func(s ast.Stmt) {
			if e, ok := s.(*ast.EmbedStmt); ok {
				refuse(e.C)
			}
		}, func(x ast.Expr) {
			if e, ok := x.(*ast.Embed); ok {
				refuse(e.C)
			}
		})
	}
	for _, p := range c.prog.Probes {
		look(p.Body, nil)
	}
	for _, f := range c.order {
		if f.Body != nil {
			look(f.Body, f.Tok)
		}
	}
}

// unprivileged reports whether C text is annotated as fit for level stapusr.
func unprivileged(e *ast.EmbedC) bool { return e.Has("unprivileged") || e.Has("myproc-unprivileged") }

// display adds an end probe for each global that is written and never read,
// as stap(1), VARIABLES documents.
func (c *checker) display() {
	if c.opts.NoGlobalDisplay {
		return
	}
	u := newUses()
	u.script = true
	u = c.collect(u)
	added := false
	for _, f := range c.user {
		for _, g := range f.Globals {
			if !c.globals[g] || u.read[g] || !u.written[g] || g.Type == ast.Unknown {
				continue
			}
			c.prog.Probes = append(c.prog.Probes, c.displayProbe(g))
			added = true
		}
	}
	if added {
		c.types()
	}
}

func (c *checker) displayProbe(g *ast.Var) *Probe {
	src := &token.File{Name: g.Tok.Pos.File.Name, Synthetic: true}
	tok := &token.Token{Kind: token.Ident, Text: g.Name, Pos: token.Pos{File: src, Line: g.Tok.Pos.Line, Col: g.Tok.Pos.Col}}
	eb := ast.ExprBase{Tok: tok}
	sb := ast.StmtBase{Tok: tok}
	p := &Probe{Kind: End, Point: "end", Name: "end", Derivation: []string{"end"}, Synthetic: true,
		Source: &ast.Probe{Tok: tok}, tok: tok}
	literal := func(s string) ast.FormatPart {
		return ast.FormatPart{Literal: s, Width: -1, Prec: -1, Arg: -1, WidthExpr: -1, PrecExpr: -1}
	}
	conv := func(t ast.Type, alt bool) ([]ast.FormatPart, string) {
		d := ast.FormatPart{Conv: 'd', Alt: alt, Width: -1, Prec: -1, Arg: -1, WidthExpr: -1, PrecExpr: -1}
		if t != ast.String {
			if alt {
				return []ast.FormatPart{d}, "%#d"
			}
			return []ast.FormatPart{d}, "%d"
		}
		d.Conv, d.Alt = 's', true
		return []ast.FormatPart{literal(`"`), d, literal(`"`)}, `\"%#s\"`
	}
	pr := &ast.Print{ExprBase: eb, Name: "printf", Format: true}
	add := func(parts []ast.FormatPart, raw string) {
		pr.Parts = append(pr.Parts, parts...)
		pr.Raw += raw
	}
	text := func(s string) { add([]ast.FormatPart{literal(s)}, s) }
	sym := func(v *ast.Var) *ast.Symbol { return &ast.Symbol{ExprBase: eb, Name: v.Name, Var: v} }
	text(g.Name)
	aggregate := func(x ast.Expr) {
		for _, op := range []string{"count", "min", "max", "sum", "avg"} {
			text(" @" + op + "=")
			add(conv(ast.Long, false))
			pr.Args = append(pr.Args, &ast.Stat{ExprBase: eb, Op: op, X: ast.CloneExpr(x)})
		}
	}
	var stmt ast.Stmt
	switch {
	case g.Arity <= 0:
		if g.Type == ast.Stats {
			aggregate(sym(g))
		} else {
			text("=")
			add(conv(g.Type, false))
			pr.Args = []ast.Expr{sym(g)}
		}
		stmt = &ast.ExprStmt{StmtBase: sb, X: pr}
	default:
		fe := &ast.Foreach{StmtBase: sb, Array: sym(g), SortDir: -1}
		text("[")
		for i, k := range g.Keys {
			v := &ast.Var{Name: fmt.Sprintf("__idx%d", i), Tok: tok, Type: k, Synthetic: true}
			p.Locals = append(p.Locals, v)
			fe.Keys = append(fe.Keys, sym(v))
			pr.Args = append(pr.Args, sym(v))
			if i > 0 {
				text(",")
			}
			add(conv(k, true))
		}
		text("]")
		if g.Type == ast.Stats {
			fe.SortAggr = "count"
			aggregate(&ast.Index{ExprBase: eb, Array: sym(g), Keys: append([]ast.Expr(nil), pr.Args...)})
			fe.Body = &ast.ExprStmt{StmtBase: sb, X: pr}
			stmt = fe
			break
		}
		text("=")
		v := &ast.Var{Name: "__val", Tok: tok, Type: g.Type, Synthetic: true}
		p.Locals = append(p.Locals, v)
		fe.Value = sym(v)
		pr.Args = append(pr.Args, sym(v))
		add(conv(g.Type, false))
		fe.Body = &ast.ExprStmt{StmtBase: sb, X: pr}
		stmt = fe
	}
	pr.Parts = append(pr.Parts, literal("\n"))
	pr.Raw += `\n`
	p.Body = &ast.Block{StmtBase: sb, Stmts: []ast.Stmt{stmt}}
	return p
}

// touched is the set of globals a body reads and writes and the functions it
// calls.
type touched struct {
	read, write map[*ast.Var]bool
	calls       []*ast.Function
}

// c adds what C text says it touches.
func (t *touched) c(e *ast.EmbedC) {
	for _, v := range e.Reads {
		t.read[v] = true
	}
	for _, v := range e.Writes {
		t.write[v] = true
	}
}

func touch(body ast.Stmt, cond ast.Expr) *touched {
	t := &touched{read: map[*ast.Var]bool{}, write: map[*ast.Var]bool{}}
	store := func(x ast.Expr, read bool) {
		if v := deleteTarget(x); v.Tok != nil && v.Kind == ast.Global {
			t.write[v] = true
			if read {
				t.read[v] = true
			}
		}
	}
	note := func(s *ast.Symbol) {
		if s != nil && s.Var != nil && s.Var.Kind == ast.Global {
			t.write[s.Var] = true
		}
	}
	plain := map[ast.Expr]bool{} // stored to, not read
	lvalue := func(x ast.Expr) {
		plain[x] = true
		if i, ok := x.(*ast.Index); ok {
			plain[i.Array] = true
		}
	}
	expr := func(x ast.Expr) {
		switch x := x.(type) {
		case *ast.Assign:
			store(x.L, x.Op != "=")
			lvalue(x.L)
		case *ast.IncDec:
			store(x.X, true)
		case *ast.Symbol:
			if x.Var != nil && x.Var.Kind == ast.Global && !plain[x] {
				t.read[x.Var] = true
			}
		case *ast.Call:
			t.calls = append(t.calls, x.Funcs...)
		case *ast.Embed:
			t.c(x.C)
		}
	}
	ast.WalkExpr(cond, expr)
	ast.Walk(body, func(s ast.Stmt) {
		switch s := s.(type) {
		case *ast.EmbedStmt:
			t.c(s.C)
		case *ast.Delete:
			store(s.X, false)
			lvalue(s.X)
		case *ast.Foreach:
			for _, k := range s.Keys {
				note(k)
			}
			note(s.Value)
		case *ast.TryCatch:
			note(s.Var)
		}
	}, expr)
	return t
}

// finish names everything, orders it and works out what touches what.
func (c *checker) finish() {
	taken, settable := map[string]bool{}, map[string]bool{}
	unique := func(base string) string {
		name := base
		for i := 1; taken[name]; i++ {
			name = fmt.Sprintf("%s__%d", base, i)
		}
		taken[name] = true
		return name
	}
	for pass := range 2 { // public names first: they are what -G names
		for _, list := range [][]*ast.File{c.user, c.library} {
			for _, f := range list {
				for _, g := range f.Globals {
					if !c.globals[g] || (pass == 0) == g.Private {
						continue
					}
					base := g.Name
					if g.Private {
						base = "private_" + g.Name
					}
					g.Unique = unique(strings.ReplaceAll(base, "$", "_D_"))
					g.Settable = g.Arity <= 0 && !f.Source.Tapset && !g.Private && !settable[g.Name]
					settable[g.Name] = settable[g.Name] || g.Settable
					g.Arity = max(g.Arity, 0)
				}
			}
		}
	}
	for _, list := range [][]*ast.File{c.user, c.library} {
		for _, f := range list {
			for _, g := range f.Globals {
				if c.globals[g] {
					c.prog.Globals = append(c.prog.Globals, g)
				}
			}
		}
	}
	// Upstream lists constants, in effect, last.
	u := c.uses()
	sort.SliceStable(c.prog.Globals, func(i, j int) bool {
		a, b := c.prog.Globals[i], c.prog.Globals[j]
		return !(a.Init != nil && !u.written[a]) && b.Init != nil && !u.written[b]
	})
	index := map[*ast.Var]int{}
	for i, g := range c.prog.Globals {
		index[g] = i
	}
	sort.SliceStable(c.order, func(i, j int) bool { return c.order[i].Name < c.order[j].Name })
	taken = map[string]bool{}
	facts := map[*ast.Function]*touched{}
	for _, f := range c.order {
		f.Unique = unique(strings.ReplaceAll(f.Name, "$", "_D_"))
		if f.Body != nil {
			facts[f] = touch(f.Body, nil)
		} else {
			facts[f] = &touched{read: map[*ast.Var]bool{}, write: map[*ast.Var]bool{}}
			facts[f].c(f.C)
		}
	}
	for again := true; again; {
		again = false
		for _, f := range c.order {
			for _, g := range facts[f].calls {
				again = merge(facts[f].read, facts[g].read) || again
				again = merge(facts[f].write, facts[g].write) || again
			}
		}
	}
	list := func(set map[*ast.Var]bool) []*ast.Var {
		var out []*ast.Var
		for v := range set {
			if _, ok := index[v]; ok {
				out = append(out, v)
			}
		}
		sort.Slice(out, func(i, j int) bool { return index[out[i]] < index[out[j]] })
		return out
	}
	for _, f := range c.order {
		f.Reads, f.Writes = list(facts[f].read), list(facts[f].write)
	}
	c.recursion(facts)
	c.prog.Functions = c.order
	c.bodies(func(b ast.Stmt, _ []*ast.Var) {
		ast.Walk(b, func(s ast.Stmt) {
			if f, ok := s.(*ast.Foreach); ok {
				c.iteration(f, facts)
			}
		}, nil)
	})
	for _, p := range c.prog.Probes {
		t := touch(p.Body, p.Cond)
		for _, f := range t.calls {
			merge(t.read, facts[f].read)
			merge(t.write, facts[f].write)
		}
		p.Reads, p.Writes = list(t.read), list(t.write)
		if p.Cond != nil {
			p.CondReads = list(touch(nil, p.Cond).read)
		}
	}
}

// iteration refuses what changes the array of a foreach inside the loop.
func (c *checker) iteration(f *ast.Foreach, facts map[*ast.Function]*touched) {
	v := arrayVar(f.Array)
	if v == nil {
		return
	}
	store := func(x ast.Expr) {
		if deleteTarget(x) == v {
			c.err(x.Token(), "variable '%s' modified during 'foreach' iteration", v.Name)
		}
	}
	ast.Walk(f.Body, func(s ast.Stmt) {
		if d, ok := s.(*ast.Delete); ok {
			store(d.X)
		}
	}, func(x ast.Expr) {
		switch x := x.(type) {
		case *ast.Assign:
			store(x.L)
		case *ast.IncDec:
			store(x.X)
		case *ast.Call:
			for _, g := range x.Funcs {
				if facts[g].write[v] {
					c.err(x.Tok, "function call modifies var '%s' during 'foreach' iteration", v.Name)
					break
				}
			}
		}
	})
}

func merge(into, from map[*ast.Var]bool) bool {
	changed := false
	for v := range from {
		if !into[v] {
			into[v] = true
			changed = true
		}
	}
	return changed
}

// recursion marks the functions that can reach themselves: those on a cycle
// of the call graph (Tarjan's strongly connected components).
func (c *checker) recursion(facts map[*ast.Function]*touched) {
	num := map[*ast.Function]int{}
	low := map[*ast.Function]int{}
	on := map[*ast.Function]bool{}
	var stack []*ast.Function
	var visit func(f *ast.Function)
	visit = func(f *ast.Function) {
		num[f] = len(num) + 1
		low[f] = num[f]
		stack = append(stack, f)
		on[f] = true
		for _, g := range facts[f].calls {
			if g == f {
				f.Recursive = true
			}
			if num[g] == 0 {
				visit(g)
				low[f] = min(low[f], low[g])
			} else if on[g] {
				low[f] = min(low[f], num[g])
			}
		}
		if low[f] != num[f] {
			return
		}
		for i := len(stack) - 1; ; i-- {
			g := stack[i]
			on[g] = false
			if i < len(stack)-1 || g != f {
				g.Recursive = true
			}
			if g == f {
				f.Recursive = f.Recursive || i < len(stack)-1
				stack = stack[:i]
				return
			}
		}
	}
	for _, f := range c.order {
		if num[f] == 0 {
			visit(f)
		}
	}
}
