package parser

import (
	"strings"

	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/token"
	"stapbox/core/script/upstream"
)

func base(t *token.Token) ast.ExprBase { return ast.ExprBase{Tok: t} }

func assignOps(s string) bool {
	switch s {
	case "=", "<<<", "+=", "-=", "*=", "/=", "%=", "<<=", ">>=", "&=", "^=", "|=", ".=":
		return true
	}
	return false
}

// expr reads an expression.
func (p *parser) expr() ast.Expr {
	p.enter()
	defer p.leave()
	l := p.ternary()
	t := p.peek()
	if t.Kind != token.Operator || !assignOps(t.Text) {
		return l
	}
	p.next()
	return &ast.Assign{ExprBase: base(t), Op: t.Text, L: l, R: p.expr()}
}

func (p *parser) ternary() ast.Expr {
	p.enter()
	defer p.leave()
	c := p.binary(0)
	t := p.peek()
	if !t.IsOp("?") {
		return c
	}
	p.next()
	x := &ast.Ternary{ExprBase: base(t), Cond: c}
	x.Then = p.expr()
	p.expect(":")
	x.Else = p.ternary()
	return x
}

// levels are the left-associative operators from loose to tight. The level
// of "in" and of comparisons have their own rules.
var levels = [][]string{
	{"||"}, {"&&"}, {"|"}, {"^"}, {"&"},
	nil, // in
	{"<", ">", "<=", ">=", "==", "!="},
	{"<<", ">>"},
	{"."},
	{"+", "-"},
	{"*", "/", "%"},
}

const inLevel, compareLevel, concatLevel = 5, 6, 8

func (p *parser) binary(level int) ast.Expr {
	if level == len(levels) {
		return p.unary()
	}
	if level == inLevel {
		return p.membership()
	}
	l := p.binary(level + 1)
	if t := p.peek(); level == compareLevel && (t.IsOp("=~") || t.IsOp("!~")) {
		p.next()
		return &ast.Binary{ExprBase: base(t), Op: t.Text, L: l, R: p.str("expected literal string")}
	}
	for first := true; ; first = false {
		t := p.peek()
		found := false
		if t.Kind == token.Operator {
			for _, op := range levels[level] {
				found = found || t.Text == op
			}
		}
		if !found {
			return l
		}
		p.next()
		l = &ast.Binary{ExprBase: base(t), Op: t.Text, L: l, R: p.binary(level + 1), Chain: level == concatLevel && !first}
		p.chain()
	}
}

// chain bounds the depth of trees that left recursion builds without
// recursion of the parser.
func (p *parser) chain() {
	if p.links++; p.links > maxLinks {
		p.fail("expression is too long")
	}
}

// membership reads "x in array" and "[x, y] in array".
func (p *parser) membership() ast.Expr {
	var keys []ast.Expr
	list := p.isOp("[")
	if list {
		p.next()
		keys = p.keys()
	} else {
		keys = []ast.Expr{p.binary(inLevel + 1)}
	}
	t := p.peek()
	if t.IsKeyword("in") {
		p.next()
		return &ast.In{ExprBase: base(t), Keys: keys, Array: p.indexable()}
	}
	if len(keys) != 1 {
		p.fail("unexpected comma-separated expression list")
	}
	if keys[0] == nil {
		p.fail("unexpected wildcard")
	}
	return keys[0]
}

// indexable reads the name of an array or a histogram.
func (p *parser) indexable() ast.Expr {
	t := p.peek()
	if t.IsOp("@hist_log") || t.IsOp("@hist_linear") {
		return p.hist()
	}
	if t.Kind != token.Ident || strings.HasPrefix(t.Text, "$") {
		p.fail("expected identifier or statistical operation")
	}
	p.next()
	return &ast.Symbol{ExprBase: base(t), Name: t.Text}
}

func (p *parser) unary() ast.Expr {
	p.enter()
	defer p.leave()
	t := p.peek()
	switch {
	case t.IsOp("+") || t.IsOp("-") || t.IsOp("!") || t.IsOp("~"):
		p.next()
		return &ast.Unary{ExprBase: base(t), Op: t.Text, X: p.unary()}
	case t.IsOp("&"):
		p.next()
		return &ast.Unary{ExprBase: base(t), Op: "&", X: p.dwarf()}
	case t.IsOp("++") || t.IsOp("--"):
		p.next()
		return &ast.IncDec{ExprBase: base(t), Op: t.Text, Prefix: true, X: p.dwarf()}
	}
	x := p.dwarf()
	if t := p.peek(); t.IsOp("++") || t.IsOp("--") {
		p.next()
		return &ast.IncDec{ExprBase: base(t), Op: t.Text, X: x}
	}
	return x
}

// dwarf reads a value with ->member, [index], $ and $$ behind it.
func (p *parser) dwarf() ast.Expr {
	x := p.value()
	t := p.peek()
	path := p.path(false)
	if len(path) == 0 {
		return x
	}
	return &ast.AutoCast{ExprBase: base(t), X: x, Path: path}
}

// path reads ->member and [index] steps, and the $ or $$ that ends them. pretty
// tells that they have ended.
func (p *parser) path(pretty bool) []ast.PathPart {
	var out []ast.PathPart
	for {
		t := p.peek()
		if pretty && (t.IsOp("->") || t.IsOp("[")) {
			p.fail("-> and [ are not accepted for a pretty-printing variable")
		}
		switch {
		case !pretty && t.Kind == token.Ident && strings.Trim(t.Text, "$") == "":
			p.next()
			out = append(out, ast.PathPart{Tok: t, Pretty: len(t.Text)})
			pretty = true
		case t.IsOp("->"):
			p.next()
			m := p.peek()
			if m.Kind != token.Ident && m.Kind != token.Keyword {
				p.fail("expected identifier or keyword")
			}
			p.next()
			name := strings.TrimRight(m.Text, "$")
			if name != "" {
				out = append(out, ast.PathPart{Tok: m, Member: name})
			}
			if n := len(m.Text) - len(name); n > 0 {
				out = append(out, ast.PathPart{Tok: m, Pretty: n})
				pretty = true
			}
		case t.IsOp("["):
			p.next()
			idx := p.expr()
			p.expect("]")
			out = append(out, ast.PathPart{Tok: t, Index: idx})
		default:
			return out
		}
		p.chain()
	}
}

func (p *parser) value() ast.Expr {
	t := p.peek()
	switch t.Kind {
	case token.Number:
		return p.number()
	case token.String:
		return p.str("expected literal string or number")
	case token.EmbedC:
		return &ast.Embed{ExprBase: base(t), C: p.embedC("embedded expression code")}
	case token.Ident:
		if t.Text[0] == '$' {
			return p.target()
		}
		return p.symbol()
	case token.Operator:
		if t.Text == "(" {
			p.next()
			x := p.expr()
			p.expect(")")
			return x
		}
		if t.Text[0] == '@' {
			return p.atOp()
		}
	}
	p.fail("expected literal string or number")
	return nil
}

// target reads $name with its path.
func (p *parser) target() ast.Expr {
	t := p.next()
	x := &ast.Target{ExprBase: base(t)}
	name := strings.TrimRight(t.Text, "$")
	pretty := len(t.Text) - len(name)
	if name == "" {
		name, pretty = t.Text, 0
	}
	x.Name = name
	if pretty > 0 {
		x.Path = append(x.Path, ast.PathPart{Tok: t, Pretty: pretty})
	}
	x.Path = append(x.Path, p.path(pretty > 0)...)
	return x
}

func (p *parser) hist() *ast.Hist {
	t := p.next()
	h := &ast.Hist{ExprBase: base(t), Op: t.Text[1:]}
	p.expect("(")
	h.X = p.expr()
	if h.Op == "hist_linear" {
		for range 3 {
			p.expect(",")
			h.Args = append(h.Args, p.number())
		}
	}
	p.expect(")")
	return h
}

// atOp reads the expressions that start with @.
func (p *parser) atOp() ast.Expr {
	t := p.peek()
	name := t.Text[1:]
	switch {
	case statOps(name):
		p.next()
		x := &ast.Stat{ExprBase: base(t), Op: name}
		p.expect("(")
		x.X = p.expr()
		for p.isOp(",") {
			if name != "variance" || len(x.Args) > 0 {
				failAt(p.peek(), "not more than "+itoa(1+len(x.Args))+" parameter"+map[bool]string{true: "s"}[len(x.Args) > 0]+" allowed")
			}
			p.next()
			x.Args = append(x.Args, p.number())
		}
		p.expect(")")
		return x
	case name == "hist_log" || name == "hist_linear":
		h := p.hist()
		if p.accept("[") {
			return &ast.Index{ExprBase: base(t), Array: h, Keys: p.keys()}
		}
		if p.histOK {
			return h
		}
		failAt(t, "base histogram operator where expression expected")
	case name == "cast":
		p.next()
		x := &ast.AtCast{ExprBase: base(t), HasType: true}
		p.expect("(")
		x.X = p.expr()
		p.expect(",")
		x.CType = p.str("expected string").Raw
		if p.accept(",") {
			x.Module, x.HasMd = p.str("expected string").Raw, true
		}
		p.expect(")")
		x.Path = p.path(false)
		return x
	case name == "var":
		p.next()
		x := &ast.Target{ExprBase: base(t), Name: "@var"}
		p.expect("(")
		x.Args = append(x.Args, p.str("expected string").Raw)
		if p.accept(",") {
			x.Args = append(x.Args, p.str("expected string").Raw)
		}
		p.expect(")")
		x.Path = p.path(false)
		return x
	case name == "defined" || name == "entry" || name == "probewrite" || name == "kregister" || name == "uregister":
		p.next()
		x := &ast.AtOp{ExprBase: base(t), Name: name}
		p.guru(name)
		p.expect("(")
		x.Args = append(x.Args, p.expr())
		if name == "uregister" || name == "kregister" {
			for p.accept(",") {
				x.Args = append(x.Args, p.expr())
			}
		}
		p.expect(")")
		return x
	case name == "kderef" || name == "uderef":
		p.next()
		x := &ast.AtOp{ExprBase: base(t), Name: name}
		p.guru(name)
		p.expect("(")
		x.Args = append(x.Args, p.number())
		p.expect(",")
		x.Args = append(x.Args, p.expr())
		p.expect(")")
		return x
	case name == "errno":
		p.next()
		return &ast.AtOp{ExprBase: base(t), Name: name}
	case name == "const" || name == "enum" || name == "perf":
		p.next()
		if name == "const" && !p.opts.Guru {
			failSaw(t, "using @const operator not allowed in unprivileged script; need stap -g")
		}
		x := &ast.AtOp{ExprBase: base(t), Name: name}
		p.expect("(")
		x.Args = append(x.Args, p.str("expected string"))
		for name == "enum" && p.accept(",") {
			x.Args = append(x.Args, p.str("expected string"))
		}
		p.expect(")")
		return x
	case name == "enumname":
		p.next()
		x := &ast.AtOp{ExprBase: base(t), Name: name}
		p.expect("(")
		x.Args = append(x.Args, p.expr())
		for p.accept(",") {
			x.Args = append(x.Args, p.str("expected string"))
		}
		p.expect(")")
		return x
	}
	if upstream.Macro(name) {
		return p.missingMacro()
	}
	panic(&diag.Diagnostic{Severity: diag.ParseError, Message: "unknown operator " + t.Text, Tok: p.last, Saw: true, Unknown: true})
}

// guru refuses what reads any address or register of the kernel.
func (p *parser) guru(name string) {
	if (name == "kderef" || name == "kregister") && !p.opts.Guru {
		p.fail("using @" + name + " operator not permitted; need stap -g")
	}
}

// missingMacro reads the use of a macro of SystemTap's library that is not there
// as if it were an operator: the checker names it, with all else that is missing.
func (p *parser) missingMacro() ast.Expr {
	t := p.next()
	x := &ast.AtOp{ExprBase: base(t), Name: t.Text[1:], Macro: true}
	if !p.accept("(") || p.accept(")") {
		return x
	}
	for {
		x.Args = append(x.Args, p.expr())
		if p.accept(")") {
			return x
		}
		p.expect(",")
	}
}

var printNames = []struct {
	name string
	form ast.Print
}{
	{"print", ast.Print{}},
	{"println", ast.Print{Newline: true}},
	{"printd", ast.Print{Delim: true}},
	{"printdln", ast.Print{Delim: true, Newline: true}},
	{"printf", ast.Print{Format: true}},
	{"sprint", ast.Print{String: true}},
	{"sprintln", ast.Print{String: true, Newline: true}},
	{"sprintd", ast.Print{String: true, Delim: true}},
	{"sprintdln", ast.Print{String: true, Delim: true, Newline: true}},
	{"sprintf", ast.Print{String: true, Format: true}},
}

// symbol reads a variable, array element, function call or print.
func (p *parser) symbol() ast.Expr {
	t := p.next()
	if pr, ok := printForm(t.Text); ok {
		x := pr
		x.Tok, x.Name = t, t.Text
		return p.print(&x)
	}
	switch {
	case p.isOp("("):
		p.next()
		c := &ast.Call{ExprBase: base(t), Name: t.Text}
		if p.accept(")") {
			return c
		}
		for {
			c.Args = append(c.Args, p.expr())
			if p.accept(")") {
				return c
			}
			if !p.isOp(",") {
				p.fail("expected one of ', )'")
			}
			p.next()
		}
	case p.isOp("["):
		p.next()
		s := &ast.Symbol{ExprBase: base(t), Name: t.Text}
		return &ast.Index{ExprBase: base(t), Array: s, Keys: p.keys()}
	}
	return &ast.Symbol{ExprBase: base(t), Name: t.Text}
}

func (p *parser) print(x *ast.Print) ast.Expr {
	p.expect("(")
	need := 0
	switch {
	case !x.Format && !x.Delim && (p.isOp("@hist_log") || p.isOp("@hist_linear")):
		p.histOK = true
		a := p.expr()
		p.histOK = false
		x.Args = append(x.Args, a)
		if _, ok := a.(*ast.Hist); ok {
			p.expect(")")
			return x
		}
	case x.Format:
		s := p.str("expected literal string")
		x.Raw, x.Value = s.Raw, s.Value
		p.peek()
		parts, msg := ParseFormat(s.Value)
		if msg != "" {
			p.fail(msg)
		}
		x.Parts = parts
	case x.Delim:
		s := p.str("expected literal string")
		x.Raw, x.Value = s.Raw, s.Value
		need = 2
	default:
		if x.Newline && p.isOp(")") {
			p.next()
			return x
		}
		x.Args = append(x.Args, p.expr())
	}
	for {
		if len(x.Args) >= need {
			if p.accept(")") {
				return x
			}
		}
		if len(x.Args) < need {
			// Too few values: what stands in place of the comma is taken for
			// one, as upstream does.
			p.next()
		} else {
			if !p.isOp(",") {
				p.fail("expected one of ', )'")
			}
			p.next()
		}
		x.Args = append(x.Args, p.expr())
	}
}

func printForm(name string) (ast.Print, bool) {
	for _, p := range printNames {
		if p.name == name {
			return p.form, true
		}
	}
	return ast.Print{}, false
}
