package ast

// Slots are the places of x's direct subexpressions, in source order. A nil
// place (a "*" key) is left out.
func Slots(x Expr) []*Expr {
	var out []*Expr
	add := func(list ...*Expr) {
		for _, p := range list {
			if *p != nil {
				out = append(out, p)
			}
		}
	}
	list := func(xs []Expr) {
		for i := range xs {
			add(&xs[i])
		}
	}
	parts := func(ps []PathPart) {
		for i := range ps {
			add(&ps[i].Index)
		}
	}
	switch x := x.(type) {
	case *Binary:
		add(&x.L, &x.R)
	case *Unary:
		add(&x.X)
	case *IncDec:
		add(&x.X)
	case *Assign:
		add(&x.L, &x.R)
	case *Ternary:
		add(&x.Cond, &x.Then, &x.Else)
	case *In:
		list(x.Keys)
		add(&x.Array)
	case *Index:
		add(&x.Array)
		list(x.Keys)
	case *Call:
		list(x.Args)
	case *Print:
		list(x.Args)
	case *Target:
		parts(x.Path)
	case *AtCast:
		add(&x.X)
		parts(x.Path)
	case *AutoCast:
		add(&x.X)
		parts(x.Path)
	case *AtOp:
		list(x.Args)
	case *Stat:
		add(&x.X)
		list(x.Args)
	case *Hist:
		add(&x.X)
		list(x.Args)
	}
	return out
}

// CloneExpr copies an expression; tokens and resolved names are shared.
func CloneExpr(x Expr) Expr {
	if x == nil {
		return nil
	}
	list := func(p *[]Expr) { *p = append([]Expr(nil), *p...) }
	parts := func(p *[]PathPart) { *p = append([]PathPart(nil), *p...) }
	var out Expr
	switch x := x.(type) {
	case *Number:
		c := *x
		return &c
	case *Str:
		c := *x
		return &c
	case *Embed:
		c := *x
		text := *x.C
		c.C = &text
		return &c
	case *Symbol:
		c := *x
		return &c
	case *Binary:
		c := *x
		out = &c
	case *Unary:
		c := *x
		out = &c
	case *IncDec:
		c := *x
		out = &c
	case *Assign:
		c := *x
		out = &c
	case *Ternary:
		c := *x
		out = &c
	case *In:
		c := *x
		list(&c.Keys)
		out = &c
	case *Index:
		c := *x
		list(&c.Keys)
		out = &c
	case *Call:
		c := *x
		list(&c.Args)
		out = &c
	case *Print:
		c := *x
		list(&c.Args)
		c.Parts = append([]FormatPart(nil), c.Parts...)
		out = &c
	case *Target:
		c := *x
		parts(&c.Path)
		out = &c
	case *AtCast:
		c := *x
		parts(&c.Path)
		out = &c
	case *AutoCast:
		c := *x
		parts(&c.Path)
		out = &c
	case *AtOp:
		c := *x
		list(&c.Args)
		out = &c
	case *Stat:
		c := *x
		list(&c.Args)
		out = &c
	case *Hist:
		c := *x
		list(&c.Args)
		out = &c
	}
	for _, s := range Slots(out) {
		*s = CloneExpr(*s)
	}
	return out
}

func cloneSymbol(s *Symbol) *Symbol {
	if s == nil {
		return nil
	}
	c := *s
	return &c
}

// CloneStmt copies a statement.
func CloneStmt(s Stmt) Stmt {
	switch s := s.(type) {
	case *Block:
		if s == nil {
			return nil
		}
		c := &Block{StmtBase: s.StmtBase}
		for _, q := range s.Stmts {
			c.Stmts = append(c.Stmts, CloneStmt(q))
		}
		return c
	case *ExprStmt:
		return &ExprStmt{s.StmtBase, CloneExpr(s.X)}
	case *If:
		return &If{s.StmtBase, CloneExpr(s.Cond), CloneStmt(s.Then), CloneStmt(s.Else)}
	case *For:
		return &For{s.StmtBase, CloneExpr(s.Init), CloneExpr(s.Cond), CloneExpr(s.Post), CloneStmt(s.Body), s.While}
	case *Foreach:
		c := *s
		c.Keys = nil
		for _, k := range s.Keys {
			c.Keys = append(c.Keys, cloneSymbol(k))
		}
		c.Slice = nil
		for _, k := range s.Slice {
			c.Slice = append(c.Slice, CloneExpr(k))
		}
		c.Array, c.Limit, c.Value, c.Body = CloneExpr(s.Array), CloneExpr(s.Limit), cloneSymbol(s.Value), CloneStmt(s.Body)
		return &c
	case *Return:
		return &Return{s.StmtBase, CloneExpr(s.Value)}
	case *Delete:
		return &Delete{s.StmtBase, CloneExpr(s.X)}
	case *EmbedStmt:
		text := *s.C
		return &EmbedStmt{s.StmtBase, &text}
	case *TryCatch:
		return &TryCatch{s.StmtBase, CloneStmt(s.Try), CloneStmt(s.Catch), cloneSymbol(s.Var)}
	}
	return s
}

// StmtSlots are the places of a statement's own expressions (not of the
// statements inside it) and of the statements inside it.
func StmtSlots(s Stmt) (exprs []*Expr, stmts []*Stmt) {
	add := func(list ...*Expr) {
		for _, p := range list {
			if *p != nil {
				exprs = append(exprs, p)
			}
		}
	}
	switch s := s.(type) {
	case *Block:
		for i := range s.Stmts {
			stmts = append(stmts, &s.Stmts[i])
		}
	case *ExprStmt:
		add(&s.X)
	case *If:
		add(&s.Cond)
		stmts = append(stmts, &s.Then)
		if s.Else != nil {
			stmts = append(stmts, &s.Else)
		}
	case *For:
		add(&s.Init, &s.Cond, &s.Post)
		stmts = append(stmts, &s.Body)
	case *Foreach:
		add(&s.Array)
		for i := range s.Slice {
			add(&s.Slice[i])
		}
		add(&s.Limit)
		stmts = append(stmts, &s.Body)
	case *Return:
		add(&s.Value)
	case *Delete:
		add(&s.X)
	case *TryCatch:
		stmts = append(stmts, &s.Try, &s.Catch)
	}
	return exprs, stmts
}

// Walk calls stmt for s and every statement in it and expr for every
// expression, outer ones first. Loop variables and catch variables are not
// visited. Either function may be nil.
func Walk(s Stmt, stmt func(Stmt), expr func(Expr)) {
	if s == nil {
		return
	}
	if stmt != nil {
		stmt(s)
	}
	es, ss := StmtSlots(s)
	if expr != nil {
		for _, e := range es {
			WalkExpr(*e, expr)
		}
	}
	for _, q := range ss {
		Walk(*q, stmt, expr)
	}
}

// WalkExpr calls f for x and every expression in it.
func WalkExpr(x Expr, f func(Expr)) {
	if x == nil {
		return
	}
	f(x)
	for _, s := range Slots(x) {
		WalkExpr(*s, f)
	}
}
