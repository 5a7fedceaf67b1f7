package check

import (
	"slices"

	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/token"
	"stapbox/core/script/upstream"
)

// maxComparisons bounds the search for aliases of a script that has errors.
const maxComparisons = 1 << 20

// sweep completes the errors of a script that uses something this translator
// lacks: with all else of that kind in its handlers and in the functions these
// call, so that one run names everything. The step that failed has seen one part
// of the script only.
func (c *checker) sweep() {
	if !(&diag.List{Errors: c.errs}).Lacks() {
		return
	}
	seen := map[*ast.Function]bool{}
	var visit func(file *token.File, body ast.Stmt)
	visit = func(file *token.File, body ast.Stmt) {
		ast.Walk(body, c.lackingStmt, func(x ast.Expr) {
			c.lacking(x)
			call, ok := x.(*ast.Call)
			if !ok {
				return
			}
			all := c.functions(file, call.Name)
			if len(all) == 0 && upstream.Function(call.Name) {
				c.lacks(call.Tok, "function "+call.Name)
			}
			for _, f := range all {
				if f.Body != nil && !seen[f] {
					seen[f] = true
					foldDefined(f.Body)
					visit(f.File, f.Body)
				}
			}
		})
	}
	resolved := map[*ast.Probe]bool{}
	for _, p := range c.prog.Probes {
		resolved[p.Source] = true
		foldDefined(p.Body)
		visit(p.Source.Tok.Pos.File, p.Body)
	}
	aliases, comparisons := map[*ast.Alias]bool{}, 0
	var visitAliases func(q *ast.Point)
	visitAliases = func(q *ast.Point) {
		for _, f := range append(c.user[:len(c.user):len(c.user)], c.library...) {
			for _, a := range f.Aliases {
				if comparisons++; comparisons > maxComparisons {
					return // the script is no human's
				}
				if aliases[a] || !slices.ContainsFunc(a.Names, func(n *ast.Point) bool { return aliasMatches(n, q) }) {
					continue
				}
				aliases[a] = true
				for _, b := range []*ast.Block{a.Prologue, a.Epilogue} {
					if b != nil {
						visit(f.Source, b)
					}
				}
				for _, p := range a.Points {
					visitAliases(p)
				}
			}
		}
	}
	for _, f := range c.user {
		for _, p := range f.Probes {
			if resolved[p] {
				continue
			}
			visit(f.Source, p.Body)
			for _, q := range p.Points {
				visitAliases(q)
			}
		}
	}
}

// foldDefined replaces @defined of what the probes of this translator never
// have, context variables, by 0, and of anything that needs no debug information
// by 1, and drops the branches that are not taken then: they may hold what is not
// there (stap(1), @defined; the macro @choose_defined).
func foldDefined(body ast.Stmt) { fold(body, false) }

// fold does that; value tells that there is a $value.
func fold(body ast.Stmt, value bool) {
	var expr func(p *ast.Expr)
	expr = func(p *ast.Expr) {
		switch x := (*p).(type) {
		case *ast.Ternary:
			expr(&x.Cond)
			if v, ok := constantDefined(x.Cond); ok {
				if *p = x.Else; v {
					*p = x.Then
				}
				expr(p)
				return
			}
		case *ast.Binary:
			if x.Op != "&&" && x.Op != "||" {
				break
			}
			expr(&x.L)
			if v, ok := constantDefined(x.L); ok && v == (x.Op == "||") {
				*p = x.L
				return
			}
		case *ast.AtOp:
			if v, ok := defined(x, value); ok {
				*p = v
				return
			}
		}
		for _, q := range ast.Slots(*p) {
			expr(q)
		}
	}
	var stmt func(p *ast.Stmt)
	stmt = func(p *ast.Stmt) {
		if s, ok := (*p).(*ast.If); ok {
			expr(&s.Cond)
			if v, ok := constantDefined(s.Cond); ok {
				switch {
				case v:
					*p = s.Then
				case s.Else != nil:
					*p = s.Else
				default:
					*p = &ast.Null{StmtBase: s.StmtBase}
				}
				stmt(p)
				return
			}
		}
		es, ss := ast.StmtSlots(*p)
		for _, e := range es {
			expr(e)
		}
		for _, q := range ss {
			stmt(q)
		}
	}
	if body != nil {
		stmt(&body)
	}
}

// defined answers @defined, unless debug information would have to.
func defined(x *ast.AtOp, value bool) (*ast.Number, bool) {
	if x.Name != "defined" || len(x.Args) != 1 {
		return nil, false
	}
	n := &ast.Number{ExprBase: ast.ExprBase{Tok: x.Tok, T: ast.Long}, Value: 1, Defined: true}
	switch a := x.Args[0].(type) {
	case *ast.Target:
		if a.Name == "@var" {
			return nil, false
		}
		if !value || a.Name != "$value" {
			n.Value = 0
		}
	case *ast.AtCast, *ast.AutoCast, *ast.AtOp, *ast.Unary:
		return nil, false
	}
	return n, true
}

// constantDefined is the value of a condition that @defined alone decides. Other
// constants are none: what they switch off is held against the language all the
// same.
func constantDefined(x ast.Expr) (value, ok bool) {
	switch x := x.(type) {
	case *ast.Number:
		return x.Value != 0, x.Defined
	case *ast.Unary:
		if x.Op == "!" {
			value, ok = constantDefined(x.X)
			return !value, ok
		}
	case *ast.Binary:
		l, known := constantDefined(x.L)
		r, ok := constantDefined(x.R)
		switch x.Op {
		case "&&":
			return l && r, known && ok
		case "||":
			return l || r, known && ok
		}
	}
	return false, false
}
