package check

import "stapbox/core/script/ast"

// elide removes code without effect, as upstream does before it looks at
// types: so an ill-typed assignment to a variable nobody reads is only a
// warning. Warnings come from the first round alone.
func (c *checker) elide() {
	if c.opts.Unoptimized {
		return
	}
	for round := range maxRounds {
		changed := false
		u := c.uses()
		pure := c.pureFunctions()
		e := &eliding{c: c, u: u, pure: pure, warn: round == 0}
		c.each(func(p *ast.Stmt) {
			e.assignments(p)
		})
		c.each(func(p *ast.Stmt) {
			*p = e.statements(*p)
		})
		changed = e.changed
		if round == 0 {
			for _, f := range c.order {
				if f.Body != nil && empty(f.Body) {
					c.warn(f.Tok, "side-effect-free function '%s'", f.Name)
				}
			}
		}
		if !changed {
			break
		}
	}
	var kept []*Probe
	for _, p := range c.prog.Probes {
		if empty(p.Body) && p.Cond == nil {
			c.warn(p.tok, "Probe '%s' has been elided", p.Point)
			continue
		}
		kept = append(kept, p)
	}
	c.prog.Probes = kept
	if len(kept) == 0 {
		c.err(nil, "no probes found")
		return
	}
	c.reach()
}

// reach recomputes which functions and globals are in use.
func (c *checker) reach() {
	seen := map[*ast.Function]bool{}
	globals := map[*ast.Var]bool{}
	var order []*ast.Function
	var visit func(s ast.Stmt)
	note := func(v *ast.Var) {
		if v != nil && v.Kind == ast.Global {
			globals[v] = true
		}
	}
	embed := func(e *ast.EmbedC) {
		for _, v := range append(e.Reads[:len(e.Reads):len(e.Reads)], e.Writes...) {
			note(v)
		}
	}
	expr := func(x ast.Expr) {
		switch x := x.(type) {
		case *ast.Symbol:
			note(x.Var)
		case *ast.Embed:
			embed(x.C)
		case *ast.Call:
			for _, f := range x.Funcs {
				if !seen[f] {
					seen[f] = true
					order = append(order, f)
				}
			}
		}
	}
	visit = func(s ast.Stmt) {
		ast.Walk(s, func(s ast.Stmt) {
			switch s := s.(type) {
			case *ast.EmbedStmt:
				embed(s.C)
			case *ast.Foreach:
				for _, k := range s.Keys {
					note(k.Var)
				}
				if s.Value != nil {
					note(s.Value.Var)
				}
			case *ast.TryCatch:
				if s.Var != nil {
					note(s.Var.Var)
				}
			}
		}, expr)
	}
	for _, p := range c.prog.Probes {
		ast.WalkExpr(p.Cond, expr)
		visit(p.Body)
	}
	for i := 0; i < len(order); i++ {
		if order[i].C != nil {
			embed(order[i].C)
		} else {
			visit(order[i].Body)
		}
	}
	c.order, c.globals = order, globals
	for _, p := range c.prog.Probes {
		p.Locals = usedLocals(p.Body, p.Locals)
	}
	for _, f := range order {
		if f.Body != nil {
			f.Locals = usedLocals(f.Body, f.Locals)
		}
	}
}

func usedLocals(body ast.Stmt, locals []*ast.Var) []*ast.Var {
	used := map[*ast.Var]bool{}
	ast.Walk(body, func(s ast.Stmt) {
		switch s := s.(type) {
		case *ast.Foreach:
			for _, k := range s.Keys {
				used[k.Var] = true
			}
			if s.Value != nil {
				used[s.Value.Var] = true
			}
		case *ast.TryCatch:
			if s.Var != nil {
				used[s.Var.Var] = true
			}
		}
	}, func(x ast.Expr) {
		if s, ok := x.(*ast.Symbol); ok {
			used[s.Var] = true
		}
	})
	var out []*ast.Var
	for _, v := range locals {
		if used[v] {
			out = append(out, v)
		}
	}
	return out
}

// each calls f with the place of every body.
func (c *checker) each(f func(*ast.Stmt)) {
	for _, p := range c.prog.Probes {
		f(&p.Body)
	}
	for _, fn := range c.order {
		if fn.Body != nil {
			f(&fn.Body)
		}
	}
}

func empty(s ast.Stmt) bool {
	switch s := s.(type) {
	case nil, *ast.Null:
		return true
	case *ast.Block:
		for _, q := range s.Stmts {
			if !empty(q) {
				return false
			}
		}
		return true
	}
	return false
}

// pureFunctions are the functions whose call can be left out when nobody
// wants the value.
func (c *checker) pureFunctions() map[*ast.Function]bool {
	pure := map[*ast.Function]bool{}
	for _, f := range c.order {
		pure[f] = f.C == nil || f.C.Has("pure")
	}
	for again := true; again; {
		again = false
		for _, f := range c.order {
			if !pure[f] || f.C != nil {
				continue
			}
			bad := false
			ast.Walk(f.Body, func(s ast.Stmt) {
				switch s := s.(type) {
				case *ast.Delete:
					bad = bad || deleteTarget(s.X).Kind == ast.Global
				case *ast.EmbedStmt:
					bad = true
				}
			}, func(x ast.Expr) {
				switch x := x.(type) {
				case *ast.Assign:
					bad = bad || globalTarget(x.L)
				case *ast.IncDec:
					bad = bad || globalTarget(x.X)
				case *ast.Call:
					for _, g := range x.Funcs {
						bad = bad || !pure[g]
					}
				case *ast.Print:
					bad = bad || !x.String
				case *ast.Embed:
					bad = bad || !x.C.Has("pure")
				}
			})
			if bad {
				pure[f] = false
				again = true
			}
		}
	}
	return pure
}

func deleteTarget(x ast.Expr) *ast.Var {
	switch x := x.(type) {
	case *ast.Symbol:
		if x.Var != nil {
			return x.Var
		}
	case *ast.Index:
		if s, ok := x.Array.(*ast.Symbol); ok && s.Var != nil {
			return s.Var
		}
	}
	return &ast.Var{Kind: ast.Global}
}

func globalTarget(x ast.Expr) bool { return deleteTarget(x).Kind == ast.Global }

type eliding struct {
	c             *checker
	u             *uses
	pure          map[*ast.Function]bool
	warn, changed bool
}

// assignments replaces stores to local variables that nobody reads by the
// value stored.
func (e *eliding) assignments(p *ast.Stmt) {
	var fix func(p *ast.Expr)
	fix = func(p *ast.Expr) {
		for _, q := range ast.Slots(*p) {
			fix(q)
		}
		a, ok := (*p).(*ast.Assign)
		if !ok || a.Op != "=" && a.Op != "<<<" {
			return
		}
		s, ok := a.L.(*ast.Symbol)
		if !ok || s.Var.Kind == ast.Global || s.Var.Kind == ast.Value || e.u.read[s.Var] {
			return
		}
		if e.warn {
			e.c.warn(a.Tok, "Eliding assignment to '%s'", s.Name)
		}
		e.changed = true
		*p = a.R
	}
	ast.Walk(*p, func(s ast.Stmt) {
		es, _ := ast.StmtSlots(s)
		for _, q := range es {
			fix(q)
		}
	}, nil)
}

// sideEffects reports whether evaluating x does more than giving a value.
func (e *eliding) sideEffects(x ast.Expr) bool {
	found := false
	ast.WalkExpr(x, func(x ast.Expr) {
		switch x := x.(type) {
		case *ast.Assign:
			found = true
		case *ast.IncDec:
			switch x.X.(type) {
			case *ast.Symbol, *ast.Index:
				found = true
			}
		case *ast.Call:
			if len(x.Funcs) == 0 {
				found = true
			}
			for _, f := range x.Funcs {
				found = found || !e.pure[f]
			}
		case *ast.AtOp:
			found = found || x.Macro // nobody knows
		case *ast.Print:
			found = found || !x.String
		case *ast.Embed:
			found = found || !x.C.Has("pure")
		}
	})
	return found
}

// statements drops statements without effect.
func (e *eliding) statements(s ast.Stmt) ast.Stmt {
	null := func() ast.Stmt {
		e.changed = true
		return &ast.Null{StmtBase: ast.StmtBase{Tok: s.Token()}}
	}
	switch s := s.(type) {
	case *ast.Block:
		kept := s.Stmts[:0:0]
		for _, q := range s.Stmts {
			q = e.statements(q)
			if empty(q) {
				if _, ok := q.(*ast.Null); !ok {
					e.changed = true
				}
				continue
			}
			kept = append(kept, q)
		}
		s.Stmts = kept
	case *ast.ExprStmt:
		if !e.sideEffects(s.X) {
			if e.warn {
				e.c.warn(s.Tok, "Eliding side-effect-free expression ")
			}
			return null()
		}
	case *ast.If:
		s.Then = e.statements(s.Then)
		if s.Else != nil {
			s.Else = e.statements(s.Else)
			if empty(s.Else) {
				s.Else = nil
				e.changed = true
			}
		}
		if empty(s.Then) && s.Else == nil {
			if !e.sideEffects(s.Cond) {
				return null()
			}
			e.changed = true
			return &ast.ExprStmt{StmtBase: ast.StmtBase{Tok: s.Cond.Token()}, X: s.Cond}
		}
		if empty(s.Then) {
			s.Cond = &ast.Unary{ExprBase: ast.ExprBase{Tok: s.Cond.Token()}, Op: "!", X: s.Cond}
			s.Then, s.Else = s.Else, nil
			e.changed = true
		}
	case *ast.For:
		s.Body = e.statements(s.Body)
		if empty(s.Body) && !e.sideEffects(s.Init) && !e.sideEffects(s.Cond) && !e.sideEffects(s.Post) {
			return null()
		}
	case *ast.Foreach:
		s.Body = e.statements(s.Body)
		slice := false
		for _, k := range s.Slice {
			slice = slice || e.sideEffects(k)
		}
		if empty(s.Body) && !e.sideEffects(s.Limit) && !slice {
			return null()
		}
	case *ast.TryCatch:
		s.Try = e.statements(s.Try)
		s.Catch = e.statements(s.Catch)
		if empty(s.Try) {
			return null()
		}
	}
	return s
}
