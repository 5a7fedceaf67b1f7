package check

import (
	"fmt"

	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/token"
)

// inference assigns types to everything: rounds without messages until
// nothing changes, then one round that reports what does not fit.
type inference struct {
	c          *checker
	changed    bool
	report     bool
	fn         *ast.Function
	unresolved map[*ast.Var]bool
	declared   map[*ast.Function]bool
}

// maxRounds bounds inference: a script whose types flow backwards through
// more variables than this keeps unresolved ones.
const maxRounds = 500

func (c *checker) types() {
	t := &inference{c: c, unresolved: map[*ast.Var]bool{}, declared: c.fixedRet}
	if t.declared == nil {
		t.declared = map[*ast.Function]bool{}
		for _, f := range c.order {
			t.declared[f] = f.Ret != ast.Unknown
		}
		c.fixedRet = t.declared
	}
	for range maxRounds {
		t.changed = false
		t.all()
		if !t.changed {
			break
		}
	}
	for _, f := range c.user {
		for _, g := range f.Globals {
			if !c.globals[g] {
				continue
			}
			if g.Arity == 0 && g.MaxSize > 0 {
				c.err(g.Tok, "inconsistent arity")
			} else if g.Arity == 0 && g.Wrap {
				c.err(g.Tok, "wrapping not supported for scalars")
			}
		}
	}
	t.report = true
	t.all()
}

func (t *inference) all() {
	for _, p := range t.c.prog.Probes {
		t.fn = nil
		if p.Cond != nil {
			t.expr(p.Cond, ast.Long)
		}
		t.stmt(p.Body)
	}
	for _, f := range t.c.order {
		t.fn = f
		if f.C != nil {
			t.embed(f.C)
		} else {
			t.stmt(f.Body)
		}
	}
	t.fn = nil
}

func (t *inference) err(tok *token.Token, format string, args ...any) *diag.Diagnostic {
	if !t.report {
		return &diag.Diagnostic{}
	}
	return t.c.err(tok, format, args...)
}

// mismatch reports a value whose type is fixed.
func (t *inference) mismatch(x ast.Expr, want, have ast.Type) {
	t.err(x.Token(), "type mismatch: expected %s but found %s", want, have).Site = fmt.Sprintf("%T", x)
}

// fixed checks the type of a value that has no choice.
func (t *inference) fixed(x ast.Expr, have, want ast.Type) ast.Type {
	x.SetType(have)
	if want != ast.Unknown && want != have {
		t.mismatch(x, want, have)
	}
	return have
}

// learn notes a type for a slot that may be unknown yet and reports when it
// has another one already.
func (t *inference) learn(key any, slot *ast.Type, want ast.Type, at *token.Token) ast.Type {
	if want == ast.Unknown {
		return *slot
	}
	if *slot == ast.Unknown {
		*slot = want
		t.changed = true
		t.c.typeAt[key] = at
	} else if *slot != want {
		d := t.err(at, "type mismatch (%s)", want)
		if first := t.c.typeAt[key]; first != nil {
			d.Cause = cause(first, "type was first inferred here (%s)", *slot)
		}
	}
	return *slot
}

func (t *inference) variable(x ast.Expr, v *ast.Var, want ast.Type) ast.Type {
	if v == nil {
		return ast.Unknown
	}
	if v.Type != ast.Unknown && t.c.typeAt[v] == nil {
		t.c.typeAt[v] = v.Tok
	}
	ty := t.learn(v, &v.Type, want, x.Token())
	x.SetType(ty)
	if ty == ast.Unknown && t.report && !t.unresolved[v] {
		t.unresolved[v] = true
		t.err(x.Token(), "unresolved type ")
	}
	return ty
}

// keyPlace names the index of an array for typeAt.
type keyPlace struct {
	v *ast.Var
	i int
}

func (t *inference) keys(v *ast.Var, keys []ast.Expr) {
	for i, k := range keys {
		if k == nil || v == nil || i >= len(v.Keys) {
			continue
		}
		errs := len(t.c.errs)
		have := t.expr(k, v.Keys[i])
		place := keyPlace{v, i}
		if v.Keys[i] == ast.Unknown && have != ast.Unknown {
			v.Keys[i] = have
			t.c.typeAt[place] = k.Token()
			t.changed = true
		}
		if t.report && have != v.Keys[i] && len(t.c.errs) > errs {
			d := t.err(k.Token(), "index %d type mismatch (%s)", i, have)
			if first := t.c.typeAt[place]; first != nil {
				d.Cause = cause(first, "type of index %d was first inferred here (%s)", i, v.Keys[i])
			}
		}
	}
}

func arrayVar(x ast.Expr) *ast.Var {
	if s, ok := x.(*ast.Symbol); ok {
		return s.Var
	}
	return nil
}

func (t *inference) stmt(s ast.Stmt) {
	switch s := s.(type) {
	case nil:
	case *ast.Block:
		for _, q := range s.Stmts {
			t.stmt(q)
		}
	case *ast.ExprStmt:
		t.value(s.X, ast.Unknown, false)
	case *ast.If:
		t.expr(s.Cond, ast.Long)
		t.stmt(s.Then)
		t.stmt(s.Else)
	case *ast.For:
		if s.Init != nil {
			t.value(s.Init, ast.Unknown, false)
		}
		t.expr(s.Cond, ast.Long)
		if s.Post != nil {
			t.value(s.Post, ast.Unknown, false)
		}
		t.stmt(s.Body)
	case *ast.Foreach:
		v := arrayVar(s.Array)
		if h, ok := s.Array.(*ast.Hist); ok {
			t.hist(h)
			for _, k := range append(s.Keys[:len(s.Keys):len(s.Keys)], s.Value) {
				if k != nil {
					t.variable(k, k.Var, ast.Long)
				}
			}
		}
		if v != nil {
			if s.SortAggr != "" {
				t.learn(v, &v.Type, ast.Stats, s.Array.Token())
			}
			s.Array.SetType(v.Type)
			for i, k := range s.Keys {
				if i >= len(v.Keys) {
					break
				}
				have := t.variable(k, k.Var, v.Keys[i])
				if v.Keys[i] == ast.Unknown && have != ast.Unknown {
					v.Keys[i] = have
					t.c.typeAt[keyPlace{v, i}] = k.Tok
					t.changed = true
				}
			}
			if s.Value != nil && v.Type == ast.Stats {
				t.err(s.Value.Tok, "invalid type stats")
			} else if s.Value != nil {
				have := t.variable(s.Value, s.Value.Var, v.Type)
				if v.Type == ast.Unknown {
					t.learn(v, &v.Type, have, s.Value.Tok)
				}
			}
			t.keys(v, s.Slice)
		}
		if s.Limit != nil {
			t.expr(s.Limit, ast.Long)
		}
		t.stmt(s.Body)
	case *ast.Return:
		if s.Value != nil && t.fn != nil {
			errs := len(t.c.errs)
			have := t.expr(s.Value, t.fn.Ret)
			if t.fn.Ret == ast.Unknown && have != ast.Unknown {
				t.fn.Ret = have
				t.c.typeAt[t.fn] = s.Value.Token()
				t.changed = true
			}
			if t.report && have != t.fn.Ret && len(t.c.errs) > errs && t.c.typeAt[t.fn] != nil {
				t.err(s.Value.Token(), "type mismatch (%s)", have).Cause = cause(t.c.typeAt[t.fn], "type was first inferred here (%s)", t.fn.Ret)
			}
		}
	case *ast.Delete:
		switch x := s.X.(type) {
		case *ast.Symbol:
			if x.Var != nil && x.Var.Arity <= 0 {
				x.Var.Arity = 0
			}
			t.variable(x, x.Var, ast.Unknown)
		case *ast.Index:
			t.index(x, ast.Unknown)
		}
	case *ast.EmbedStmt:
		t.embed(s.C)
	case *ast.TryCatch:
		t.stmt(s.Try)
		if s.Var != nil {
			t.variable(s.Var, s.Var.Var, ast.String)
		}
		t.stmt(s.Catch)
	}
}

func (t *inference) index(x *ast.Index, want ast.Type) ast.Type {
	if h, ok := x.Array.(*ast.Hist); ok {
		t.hist(h)
		for _, k := range x.Keys {
			if k != nil {
				t.expr(k, ast.Long)
			}
		}
		return t.fixed(x, ast.Long, want)
	}
	v := arrayVar(x.Array)
	if v == nil {
		return ast.Unknown
	}
	t.keys(v, x.Keys)
	ty := t.variable(x, v, want)
	x.Array.SetType(ty)
	return ty
}

// hist types the operand of a histogram.
func (t *inference) hist(h *ast.Hist) {
	t.stats(h.X)
	for _, a := range h.Args {
		t.expr(a, ast.Long)
	}
	h.SetType(ast.Stats)
}

// stats types the operand of an extraction or aggregation: a global.
func (t *inference) stats(x ast.Expr) {
	if s, ok := x.(*ast.Symbol); ok && s.Var != nil && s.Var.Kind != ast.Global {
		t.err(s.Tok, "stat locals not supported, missing global declaration? ")
		return
	}
	t.expr(x, ast.Stats)
}

// expr types a value that is used.
func (t *inference) expr(x ast.Expr, want ast.Type) ast.Type { return t.value(x, want, true) }

// both gives two expressions one type.
func (t *inference) both(l, r ast.Expr, want ast.Type) ast.Type {
	a := t.expr(l, want)
	if want == ast.Unknown {
		want = a
	}
	b := t.expr(r, want)
	if a == ast.Unknown && b != ast.Unknown {
		a = t.expr(l, b)
	}
	if a == ast.Unknown {
		return b
	}
	return a
}

func (t *inference) value(x ast.Expr, want ast.Type, used bool) ast.Type {
	switch x := x.(type) {
	case *ast.Number:
		return t.fixed(x, ast.Long, want)
	case *ast.Str:
		return t.fixed(x, ast.String, want)
	case *ast.Symbol:
		return t.variable(x, x.Var, want)
	case *ast.Index:
		return t.index(x, want)
	case *ast.Binary:
		switch x.Op {
		case ".":
			t.expr(x.L, ast.String)
			t.expr(x.R, ast.String)
			return t.fixed(x, ast.String, want)
		case "<", ">", "<=", ">=", "==", "!=":
			t.both(x.L, x.R, ast.Unknown)
		case "&&", "||":
			t.expr(x.L, ast.Long)
			if call, ok := x.R.(*ast.Call); ok && !used && len(call.Funcs) > 0 && call.Funcs[0].Ret == ast.Unknown {
				t.value(x.R, ast.Unknown, false) // it may have no value: nobody asks
			} else {
				t.expr(x.R, ast.Long)
			}
		default:
			t.expr(x.L, ast.Long)
			t.expr(x.R, ast.Long)
		}
		return t.fixed(x, ast.Long, want)
	case *ast.Unary:
		t.expr(x.X, ast.Long)
		return t.fixed(x, ast.Long, want)
	case *ast.IncDec:
		t.expr(x.X, ast.Long)
		return t.fixed(x, ast.Long, want)
	case *ast.Assign:
		switch x.Op {
		case "=":
			if s, ok := x.L.(*ast.Symbol); ok && s.Var != nil && s.Var.Kind == ast.Value {
				t.expr(x.R, ast.String)
				return t.fixed(x, ast.String, want)
			}
			a := t.expr(x.R, want)
			b := t.expr(x.L, firstKnown(a, want))
			if a == ast.Unknown && b != ast.Unknown {
				a = t.expr(x.R, b)
			}
			x.SetType(firstKnown(b, a))
			return x.Type()
		case ".=":
			t.expr(x.R, ast.String)
			t.expr(x.L, ast.String)
			return t.fixed(x, ast.String, want)
		}
		t.expr(x.R, ast.Long)
		if x.Op == "<<<" {
			t.stats(x.L)
		} else {
			t.expr(x.L, ast.Long)
		}
		return t.fixed(x, ast.Long, want)
	case *ast.Stat:
		t.stats(x.X)
		return t.fixed(x, ast.Long, want)
	case *ast.Ternary:
		t.expr(x.Cond, ast.Long)
		if !used {
			// Functions without a value may stand there, and one without beside one with.
			t.value(x.Then, ast.Unknown, false)
			t.value(x.Else, ast.Unknown, false)
			x.SetType(ast.Unknown)
			return ast.Unknown
		}
		ty := t.both(x.Then, x.Else, want)
		x.SetType(ty)
		return ty
	case *ast.In:
		v := arrayVar(x.Array)
		t.keys(v, x.Keys)
		if v != nil {
			t.variable(x.Array, v, ast.Unknown)
		}
		return t.fixed(x, ast.Long, want)
	case *ast.Call:
		return t.call(x, want, used)
	case *ast.Print:
		return t.print(x, want)
	case *ast.Embed:
		t.embed(x.C)
		if x.C.Has("string") {
			return t.fixed(x, ast.String, want)
		}
		return t.fixed(x, ast.Long, want)
	}
	return ast.Unknown
}

// embed refuses globals whose type only C text would tell.
func (t *inference) embed(e *ast.EmbedC) {
	for _, v := range append(e.Reads[:len(e.Reads):len(e.Reads)], e.Writes...) {
		if v.Type == ast.Unknown && t.report && !t.unresolved[v] {
			t.unresolved[v] = true
			t.err(v.Tok, "unresolved type ")
		}
	}
}

func firstKnown(a, b ast.Type) ast.Type {
	if a != ast.Unknown {
		return a
	}
	return b
}

func (t *inference) call(x *ast.Call, want ast.Type, used bool) ast.Type {
	for i, a := range x.Args {
		for _, f := range x.Funcs {
			p := f.Params[i]
			have := t.expr(a, p.Type)
			if p.Type == ast.Unknown && have != ast.Unknown {
				p.Type = have
				t.c.typeAt[p] = a.Token()
				t.changed = true
			}
			if p.Type == ast.Unknown && t.report && !t.unresolved[p] {
				t.unresolved[p] = true
				t.err(p.Tok, "unresolved type ")
			}
		}
	}
	ty := ast.Unknown
	for _, f := range x.Funcs {
		if ty == ast.Unknown {
			ty = f.Ret
		}
	}
	if ty == ast.Unknown && used {
		ty = want
	}
	for _, f := range x.Funcs {
		if ty == ast.Unknown {
			break
		}
		if f.Ret == ast.Unknown && (used || len(x.Funcs) > 1) {
			f.Ret = ty
			t.c.typeAt[f] = x.Tok
			t.changed = true
		} else if f.Ret != ast.Unknown && f.Ret != ty {
			t.err(x.Tok, "type mismatch (%s)", ty).Cause = cause(t.c.typeAt[f], "type was first inferred here (%s)", f.Ret)
		}
	}
	if used && len(x.Funcs) > 0 && x.Funcs[0].Ret == ast.Unknown {
		ty = ast.Unknown
		if t.report {
			t.err(x.Tok, "unresolved type ")
		}
	}
	x.SetType(ty)
	if want != ast.Unknown && ty != ast.Unknown && ty != want {
		if f := x.Funcs[0]; t.declared[f] {
			t.mismatch(x, want, ty)
		} else {
			t.err(x.Tok, "type mismatch (%s)", want).Cause = cause(t.c.typeAt[f], "type was first inferred here (%s)", ty)
		}
	}
	return ty
}

// histogram is the argument of print and println that is one.
func histogram(x *ast.Print) (*ast.Hist, bool) {
	if len(x.Args) != 1 {
		return nil, false
	}
	h, ok := x.Args[0].(*ast.Hist)
	return h, ok
}

// print types the arguments of the print family and completes its parts.
func (t *inference) print(x *ast.Print, want ast.Type) ast.Type {
	if x.Format {
		n := 0
		for i := range x.Parts {
			p := &x.Parts[i]
			if p.Conv == 0 {
				continue
			}
			take := func(ty ast.Type) int {
				if n < len(x.Args) {
					t.expr(x.Args[n], ty)
				}
				n++
				return n - 1
			}
			if p.WidthArg {
				p.WidthExpr = take(ast.Long)
			}
			if p.PrecArg {
				p.PrecExpr = take(ast.Long)
			}
			if p.Conv == 's' {
				p.Arg = take(ast.String)
			} else {
				p.Arg = take(ast.Long)
			}
		}
	} else if h, ok := histogram(x); ok {
		t.hist(h)
	} else {
		var parts []ast.FormatPart
		lit := func(s string) {
			if s != "" {
				parts = append(parts, ast.FormatPart{Literal: s, Width: -1, Prec: -1, Arg: -1, WidthExpr: -1, PrecExpr: -1})
			}
		}
		for i, a := range x.Args {
			ty := t.expr(a, ast.Unknown)
			if i > 0 && x.Delim {
				lit(x.Value)
			}
			p := ast.FormatPart{Conv: 'd', Width: -1, Prec: -1, Arg: i, WidthExpr: -1, PrecExpr: -1}
			if ty == ast.String {
				p.Conv = 's'
			}
			parts = append(parts, p)
		}
		if x.Newline {
			lit("\n")
		}
		x.Parts = parts
	}
	if x.String {
		return t.fixed(x, ast.String, want)
	}
	if want != ast.Unknown {
		// The value of a print that writes is always zero.
		return t.fixed(x, ast.Long, want)
	}
	x.SetType(ast.Long)
	return ast.Long
}

// lacking reports x if it is something that this translator reads and gives no
// meaning. -p1 shows it, and another translator may know it.
func (c *checker) lacking(x ast.Expr) {
	switch x := x.(type) {
	case *ast.Stat:
		if x.Op == "variance" {
			c.lacks(x.Tok, "statistics extraction @"+x.Op)
		}
	case *ast.In:
		if _, ok := x.Array.(*ast.Hist); ok {
			c.lacks(x.Tok, "in of a histogram")
		}
	case *ast.Target:
		c.lacks(x.Tok, "context variable "+x.Name)
	case *ast.AtCast:
		c.lacks(x.Tok, "@cast")
	case *ast.AutoCast:
		c.lacks(x.Tok, "dereference of a pointer")
	case *ast.AtOp:
		what := "@" + x.Name
		if x.Macro {
			what = "macro " + what
		}
		c.lacks(x.Tok, what)
	case *ast.Unary:
		if x.Op == "&" {
			c.lacks(x.Tok, "address operator &")
		}
	case *ast.Binary:
		if x.Op == "=~" || x.Op == "!~" {
			c.lacks(x.Tok, "regular expression operator "+x.Op)
		}
	}
}

// lackingStmt does the same for statements.
func (c *checker) lackingStmt(s ast.Stmt) {
	f, ok := s.(*ast.Foreach)
	if !ok {
		return
	}
	h, hist := f.Array.(*ast.Hist)
	switch {
	case f.SortAggr == "variance":
		c.lacks(f.Tok, "sorting by @"+f.SortAggr)
	case hist && (f.SortDir != 0 || f.Slice != nil || len(f.Keys) != 1):
		c.lacks(h.Tok, "foreach over a histogram with a slice, an order or several keys")
	}
}

// constructs refuses what this translator reads but gives no meaning, and
// checks formats against their arguments.
func (c *checker) constructs() {
	expr := func(x ast.Expr) {
		c.lacking(x)
		switch x := x.(type) {
		case *ast.Assign:
			c.lvalue(x.L, x.Tok)
		case *ast.Stat:
			c.extraction(x.X)
		case *ast.Hist:
			c.extraction(x.X)
			c.histogram(x)
		case *ast.IncDec:
			if !c.lvalueOK(x.X) {
				c.err(x.Tok, "Expecting lvalue expression").Tok2 = x.X.Token()
			}
		case *ast.Index:
			for _, k := range x.Keys {
				if k == nil && !c.deleting[x] {
					c.err(x.Tok, "invalid use of wildcard array index as value")
					break
				}
			}
		case *ast.Print:
			c.format(x)
		}
	}
	c.deleting = map[ast.Expr]bool{}
	stmt := func(s ast.Stmt) {
		c.lackingStmt(s)
		if d, ok := s.(*ast.Delete); ok {
			c.deleting[d.X] = true
		}
	}
	for _, p := range c.prog.Probes {
		ast.WalkExpr(p.Cond, expr)
	}
	c.bodies(func(b ast.Stmt, _ []*ast.Var) {
		ast.Walk(b, stmt, expr)
		c.loops(b, 0)
	})
}

// maxBuckets bounds @hist_linear: memory that is taken for every element.
const maxBuckets = 4096

// extraction refuses operands that are no global.
func (c *checker) extraction(x ast.Expr) {
	switch x := x.(type) {
	case *ast.Symbol:
		return
	case *ast.Index:
		if _, ok := x.Array.(*ast.Symbol); ok {
			for _, k := range x.Keys {
				if k == nil {
					c.err(x.Tok, "wildcard not allowed in array index")
				}
			}
			return
		}
	}
	c.err(x.Token(), "expected a statistics global")
}

// histogram holds the parameters of a histogram against each other and against
// those of other histograms of the global: it can have one.
func (c *checker) histogram(h *ast.Hist) {
	v := deleteTarget(h.X)
	if v.Tok == nil {
		return
	}
	if old := c.histograms[v]; old != nil && ast.ExprString(&ast.Hist{Op: old.Op, X: &ast.Number{}, Args: old.Args}) != ast.ExprString(&ast.Hist{Op: h.Op, X: &ast.Number{}, Args: h.Args}) {
		c.err(h.Tok, "multiple histogram types declared on '%s'", v.Name)
		return
	}
	if c.histograms == nil {
		c.histograms = map[*ast.Var]*ast.Hist{}
	}
	c.histograms[v] = h
	if h.Op != "hist_linear" {
		return
	}
	var n [3]int64
	for i, a := range h.Args {
		n[i] = a.(*ast.Number).Value
	}
	start, stop, interval := n[0], n[1], n[2]
	switch {
	case interval <= 0:
		c.err(h.Tok, "the interval of a histogram must be greater than 0")
	case stop < start:
		c.err(h.Tok, "the stop of a histogram must not be less than its start")
	case uint64(stop-start)/uint64(interval) >= maxBuckets:
		c.err(h.Tok, "a histogram may have %d buckets at most", maxBuckets)
	}
}

// loops refuses break and continue outside of loops.
func (c *checker) loops(s ast.Stmt, depth int) {
	switch s := s.(type) {
	case *ast.Break:
		if depth == 0 {
			c.err(s.Tok, "cannot 'break' outside loop")
		}
	case *ast.Continue:
		if depth == 0 {
			c.err(s.Tok, "cannot 'continue' outside loop")
		}
	case *ast.For, *ast.Foreach:
		depth++
	}
	_, ss := ast.StmtSlots(s)
	for _, q := range ss {
		c.loops(*q, depth)
	}
}

// format counts the arguments of a formatted print and applies the privilege
// rule for conversions that read memory.
func (c *checker) format(x *ast.Print) {
	if !x.Format {
		return
	}
	need := 0
	for _, p := range x.Parts {
		if p.Conv == 0 {
			continue
		}
		need++
		if p.WidthArg {
			need++
		}
		if p.PrecArg {
			need++
		}
		if p.Conv == 'm' || p.Conv == 'M' {
			if !c.stapdev() {
				c.err(x.Tok, "print conversion %%%c may not be used when --privilege=%s is specified", p.Conv, c.opts.Privilege)
			}
		}
		if p.Conv == 'b' && p.Width >= 0 && p.Width != 1 && p.Width != 2 && p.Width != 4 && p.Width != 8 {
			c.err(x.Tok, "width %d of print conversion %%b is not 1, 2, 4 or 8", p.Width)
		}
		if p.Width > 1<<16 || p.Prec > 1<<16 {
			c.err(x.Tok, "width or precision of print conversion %%%c is too large", p.Conv)
		}
	}
	if need != len(x.Args) {
		c.err(x.Tok, "Wrong number of args to formatted print operator")
	}
}
