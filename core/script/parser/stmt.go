package parser

import (
	"stapbox/core/script/ast"
	"stapbox/core/script/token"
)

func (p *parser) block() *ast.Block {
	p.enter()
	defer p.leave()
	t := p.expect("{")
	b := &ast.Block{StmtBase: ast.StmtBase{Tok: t}}
	for !p.isOp("}") {
		if p.peek().Kind == token.EOF {
			p.fail("expected statement")
		}
		b.Stmts = append(b.Stmts, p.stmt())
	}
	p.next()
	return b
}

func (p *parser) stmt() ast.Stmt {
	s := p.stmtOnly()
	// One terminator after a simple statement belongs to it.
	switch s.(type) {
	case *ast.Null, *ast.Block, *ast.If, *ast.For, *ast.Foreach, *ast.TryCatch:
	default:
		if p.isOp(";") {
			p.next()
		}
	}
	return s
}

func (p *parser) paren() ast.Expr {
	p.expect("(")
	x := p.expr()
	p.expect(")")
	return x
}

func (p *parser) stmtOnly() ast.Stmt {
	p.enter()
	defer p.leave()
	t := p.peek()
	base := ast.StmtBase{Tok: t}
	switch {
	case t.IsOp(";"):
		p.next()
		return &ast.Null{StmtBase: base}
	case t.IsOp("{"):
		return p.block()
	case t.Kind == token.EmbedC:
		return &ast.EmbedStmt{StmtBase: base, C: p.embedC("embedded code")}
	case t.Kind == token.EOF:
		p.fail("expected statement")
	case t.Kind != token.Keyword:
		x := p.expr()
		return &ast.ExprStmt{StmtBase: base, X: x}
	}
	switch t.Text {
	case "if":
		p.next()
		s := &ast.If{StmtBase: base, Cond: p.paren()}
		s.Then = p.stmt()
		if p.isKw("else") {
			p.next()
			s.Else = p.stmt()
		}
		return s
	case "while":
		p.next()
		s := &ast.For{StmtBase: base, While: true, Cond: p.paren()}
		s.Body = p.stmt()
		return s
	case "for":
		return p.forLoop(base)
	case "foreach":
		return p.foreach(base)
	case "delete":
		p.next()

		x := p.expr()

		return &ast.Delete{StmtBase: base, X: x}
	case "break":
		p.next()
		return &ast.Break{StmtBase: base}
	case "continue":
		p.next()
		return &ast.Continue{StmtBase: base}
	case "next":
		p.next()
		return &ast.Next{StmtBase: base}
	case "return":
		if !p.inFunc {
			p.fail("found 'return' not in function context")
		}
		p.next()
		s := &ast.Return{StmtBase: base}
		if !p.isOp(";") && !p.isOp("}") {
			s.Value = p.expr()
		}
		return s
	case "try":
		p.next()
		s := &ast.TryCatch{StmtBase: base}
		s.Try = p.block()
		p.expectKw("catch")
		if p.accept("(") {
			v := p.ident()
			s.Var = &ast.Symbol{ExprBase: ast.ExprBase{Tok: v}, Name: v.Text}
			p.expect(")")
		}
		s.Catch = p.block()
		return s
	}
	p.fail("expected statement")
	return nil
}

func (p *parser) forLoop(base ast.StmtBase) ast.Stmt {
	p.next()
	p.expect("(")
	s := &ast.For{StmtBase: base}
	if !p.isOp(";") {
		s.Init = p.expr()
	}
	semi := p.expect(";")
	if p.isOp(";") {
		s.Cond = &ast.Number{ExprBase: ast.ExprBase{Tok: semi, T: ast.Long}, Value: 1}
	} else {
		s.Cond = p.expr()
	}
	p.expect(";")
	if !p.isOp(")") {
		s.Post = p.expr()
	}
	p.expect(")")
	s.Body = p.stmt()
	return s
}

// sortMark reads + or -.
func (p *parser) sortMark(s *ast.Foreach, column int) {
	if !p.isOp("+") && !p.isOp("-") {
		return
	}
	if s.SortDir != 0 {
		p.fail("multiple sort directives")
	}
	s.SortDir, s.SortColumn = 1, column
	if p.next().Text == "-" {
		s.SortDir = -1
	}
}

func statOps(s string) bool {
	switch s {
	case "count", "sum", "min", "max", "avg", "variance":
		return true
	}
	return false
}

func (p *parser) foreach(base ast.StmtBase) ast.Stmt {
	p.next()
	p.expect("(")
	s := &ast.Foreach{StmtBase: base}
	loopVar := func() *ast.Symbol {
		t := p.ident()
		return &ast.Symbol{ExprBase: ast.ExprBase{Tok: t}, Name: t.Text}
	}
	keys := func() {
		for {
			k := loopVar()
			s.Keys = append(s.Keys, k)
			p.sortMark(s, len(s.Keys))
			if p.accept("]") {
				return
			}
			if !p.isOp(",") {
				p.fail("expected one of ', ]'")
			}
			p.next()
		}
	}
	if p.accept("[") {
		keys()
	} else {
		k := loopVar()
		p.sortMark(s, 1)
		if p.accept("=") {
			s.Value = k
			if s.SortDir != 0 {
				s.SortColumn = 0
			}
			if p.accept("[") {
				keys()
			} else {
				s.Keys = []*ast.Symbol{loopVar()}
				p.sortMark(s, 1)
			}
		} else {
			s.Keys = []*ast.Symbol{k}
		}
	}
	p.expectKw("in")
	s.Array = p.indexable()
	if p.accept("[") {
		s.Slice = p.keys()
	}
	if t := p.peek(); t.Kind == token.Operator && len(t.Text) > 1 && t.Text[0] == '@' {
		if !statOps(t.Text[1:]) {
			p.fail("expected statistical operation")
		}
		p.next()
		if s.SortDir != 0 {
			p.fail("multiple sort directives")
		}
		if !p.isOp("+") && !p.isOp("-") {
			p.fail("expected sort directive")
		}
		s.SortAggr = t.Text[1:]
	}
	p.sortMark(s, 0)
	if p.isKw("limit") {
		p.next()
		s.Limit = p.expr()
	}
	p.expect(")")
	s.Body = p.stmt()
	return s
}

// keys reads index expressions up to "]"; "*" becomes nil.
func (p *parser) keys() []ast.Expr {
	var list []ast.Expr
	for {
		if p.isOp("*") {
			p.next()
			list = append(list, nil)
		} else {
			list = append(list, p.expr())
		}
		if p.accept("]") {
			return list
		}
		if !p.isOp(",") {
			p.fail("expected one of '] ,'")
		}
		p.next()
	}
}
