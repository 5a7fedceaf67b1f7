// Package parser reads SystemTap source text into a syntax tree: pass 1 of
// stap. It covers the whole grammar of stap(1) and the language reference;
// what a construct means, and whether this version gives it a meaning, is the
// checker's business.
//
// Operators from loose to tight: assignment (right), ?: (right), ||, &&, |,
// ^, &, in, comparison and =~ !~, << >>, "." (concatenation), + -, * / %,
// prefix + - ! ~, ++ --, -> . This is the order upstream 5.6 shows with -p1.
package parser

import (
	"strings"

	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/token"
)

// Options is what a file is parsed for.
type Options struct {
	Args       []string          // $1 ...
	Release    string            // kernel_v, kernel_vr
	Arch       string            // arch
	Config     map[string]string // CONFIG_...
	Compatible string            // systemtap_v
	Privilege  string            // systemtap_privilege
	Guru       bool              // guru_mode, embedded C
	Macros     *Macros           // of the library; nil for none
	Own        *Macros           // of the translator; those of Macros come first
	Used       []bool            // is set for each of Args that a file names; nil if nobody asks

	errors *[]*diag.Diagnostic
}

func (o *Options) report(d *diag.Diagnostic) {
	d.Severity = diag.ParseError
	*o.errors = append(*o.errors, d)
}

// MaxArray is the largest number of elements that an array may be declared with,
// and that -D MAXMAPENTRIES may name.
const MaxArray = 1 << 24

// maxErrors bounds the work spent on a file that is not a script.
const maxErrors = 200

type parser struct {
	pp          *preprocessor
	opts        *Options
	file        *token.File
	ahead       *token.Token
	last        *token.Token // what "saw:" shows
	seen        bool
	depth       int
	links       int // operators in the current top level item
	globalNames map[string]bool
	inFunc      bool
	histOK      bool // a histogram may stand here: print's argument
}

// Parse reads one file. The error is a *diag.List.
func Parse(f *token.File, opts Options) (*ast.File, error) {
	var errs []*diag.Diagnostic
	opts.errors = &errs
	if f.Tapset || f.Library {
		opts.Guru = true
	}
	if len(f.Text) > token.MaxSource {
		return nil, &diag.List{Pass: 1, Notes: []string{"Input file '" + f.Name + "' is larger than " + itoa(token.MaxSource) + " bytes."}}
	}
	p := &parser{file: f, opts: &opts, globalNames: map[string]bool{}}
	p.pp = &preprocessor{opts: &opts, scan: token.NewScanner(f, opts.Args, opts.Used), macros: map[string]*macro{}}
	out := &ast.File{Source: f}
	for len(errs) < maxErrors {
		done, d := p.toplevel(out)
		if d != nil {
			opts.report(d)
			p.recover()
			continue
		}
		if done {
			break
		}
	}
	if len(errs) > 0 {
		l := &diag.List{Pass: 1, Errors: errs}
		if !p.seen {
			l.Notes = []string{"Input file '" + f.Name + "' is empty after preprocessing."}
		}
		return nil, l
	}
	if !p.seen {
		text := "Input file '" + f.Name + "' is empty."
		if strings.Contains(f.Text, "%(") || strings.Contains(f.Text, "@define") {
			text = "Input file '" + f.Name + "' is empty after preprocessing."
		}
		return nil, &diag.List{Pass: 1, Notes: []string{text}}
	}
	return out, nil
}

// toplevel reads one top level item; done at the end of the file.
func (p *parser) toplevel(out *ast.File) (done bool, failure *diag.Diagnostic) {
	defer func() {
		if r := recover(); r != nil {
			d, ok := r.(*diag.Diagnostic)
			if !ok {
				panic(r)
			}
			failure = d
		}
	}()
	p.depth, p.links, p.inFunc, p.histOK = 0, 0, false, false
	t := p.peek()
	p.seen = p.seen || t.Kind != token.EOF
	switch {
	case t.Kind == token.EOF:
		return true, nil
	case t.IsKeyword("probe"):
		p.probe(out)
	case t.IsKeyword("private"):
		p.next()
		switch t := p.peek(); {
		case t.IsKeyword("function"):
			p.function(out, true)
		case t.IsKeyword("global"):
			p.next()
			p.globals(out, true)
		case t.Kind == token.Ident:
			p.globals(out, true)
		case t.Kind == token.EOF:
			p.fail("unexpected end-of-file")
		default:
			p.fail("expected 'function' or identifier")
		}
	case t.IsKeyword("global"):
		p.next()
		p.globals(out, false)
	case t.IsKeyword("function"):
		p.function(out, false)
	case t.Kind == token.EmbedC:
		out.EmbedC = append(out.EmbedC, p.embedC("embedded code"))
	default:
		p.fail("expected 'probe', 'global', 'private', 'function', or '%{'")
	}
	return false, nil
}

// recover skips to where the next top level item may start.
func (p *parser) recover() {
	for len(*p.opts.errors) < maxErrors {
		if func() (stop bool) {
			defer func() {
				if r := recover(); r != nil {
					d, ok := r.(*diag.Diagnostic)
					if !ok {
						panic(r)
					}
					if d.Tok == nil || d.Tok.Kind != token.Junk {
						p.opts.report(d)
					}
				}
			}()
			t := p.peek()
			if t.Kind == token.EOF || t.Kind == token.EmbedC && p.opts.Guru || t.Kind == token.Keyword &&
				(t.Text == "probe" || t.Text == "global" || t.Text == "private" || t.Text == "function") {
				return true
			}
			p.next()
			return false
		}() {
			return
		}
	}
}

func (p *parser) peek() *token.Token {
	if p.ahead == nil {
		p.ahead = p.pp.next()
	}
	p.last = p.ahead
	return p.ahead
}

func (p *parser) next() *token.Token {
	was := p.last
	t := p.peek()
	if t.Kind == token.EOF {
		if p.pp != nil && was != nil && was.Kind != token.EOF {
			p.last = was
		}
		p.fail("unexpected end-of-file")
	}
	p.ahead = nil
	return t
}

func (p *parser) fail(msg string) { failSaw(p.last, msg) }

func (p *parser) isOp(text string) bool { return p.peek().IsOp(text) }
func (p *parser) isKw(text string) bool { return p.peek().IsKeyword(text) }

func (p *parser) accept(op string) bool {
	if p.isOp(op) {
		p.next()
		return true
	}
	return false
}

func (p *parser) expect(op string) *token.Token {
	if !p.isOp(op) {
		p.fail("expected '" + op + "'")
	}
	return p.next()
}

func (p *parser) expectKw(kw string) *token.Token {
	if !p.isKw(kw) {
		p.fail("expected '" + kw + "'")
	}
	return p.next()
}

func (p *parser) ident() *token.Token {
	if p.peek().Kind != token.Ident {
		if p.ahead.Kind == token.EOF {
			p.fail("unexpected end-of-file")
		}
		p.next()
		p.fail("expected identifier")
	}
	return p.next()
}

func (p *parser) enter() {
	if p.depth++; p.depth > maxDepth {
		p.fail("statements or expressions are nested too deeply")
	}
}
func (p *parser) leave() { p.depth-- }

// embedC reads C text; what names it in the message of a script without -g.
func (p *parser) embedC(what string) *ast.EmbedC {
	t := p.peek()
	if !p.opts.Guru {
		p.fail(what + " in unprivileged script; need stap -g")
	}
	p.next()
	return &ast.EmbedC{Tok: t, Code: t.Text}
}

// number reads an integer literal with an optional sign.
func (p *parser) number() *ast.Number {
	t := p.peek()
	neg := p.accept("-")
	n := p.peek()
	if n.Kind != token.Number {
		p.fail("expected number")
	}
	v, ok := parseNumber(n.Text)
	if !ok {
		p.fail("number invalid or out of range")
	}
	p.next()
	if neg {
		v = -v
	}
	if !neg {
		t = n
	}
	return &ast.Number{ExprBase: ast.ExprBase{Tok: t, T: ast.Long}, Value: v}
}

// str reads string literals and glues adjacent ones.
func (p *parser) str(what string) *ast.Str {
	t := p.peek()
	if t.Kind != token.String {
		p.fail(what)
	}
	raw := p.next().Text
	parts := []string{raw}
	for p.peek().Kind == token.String {
		parts = append(parts, p.next().Text)
	}
	s := &ast.Str{ExprBase: ast.ExprBase{Tok: t, T: ast.String}, Raw: strings.Join(parts, "")}
	var v strings.Builder
	for _, q := range parts {
		v.WriteString(token.Unquote(q))
	}
	s.Value = v.String()
	if len(parts) > 1 {
		u := *t
		u.Text = s.Raw
		s.Tok = &u
	}
	return s
}

// literal reads a number or string.
func (p *parser) literal() ast.Expr {
	switch t := p.peek(); {
	case t.Kind == token.String:
		return p.str("expected string")
	case t.Kind == token.Number || t.IsOp("-"):
		if t.IsOp("-") {
			p.next()
			n := p.peek()
			if n.Kind != token.Number {
				p.fail("expected number")
			}
			x := p.number()
			x.Value, x.Tok = -x.Value, t
			return x
		}
		return p.number()
	}
	p.fail("expected literal string or number")
	return nil
}

func (p *parser) globals(out *ast.File, private bool) {
	for {
		t := p.ident()
		if p.globalNames[t.Text] {
			failSaw(t, "duplicate global name")
		}
		p.globalNames[t.Text] = true
		v := &ast.Var{Name: t.Text, Tok: t, Kind: ast.Global, Arity: -1, Private: private}
		out.Globals = append(out.Globals, v)
		if p.accept("%") {
			v.Wrap = true
		}
		if p.accept("[") {
			n := p.peek()
			if n.Kind == token.EOF {
				p.fail("unexpected end-of-file")
			}
			size := p.number()
			if p.peek().Kind == token.EOF {
				p.fail("unexpected end-of-file")
			}
			p.expect("]")
			if size.Value < 1 || size.Value > MaxArray {
				failAt(size.Tok, "array size out of range (1, "+itoa(MaxArray)+")")
			}
			v.MaxSize = size.Value
		}
		if p.isOp("=") {
			if v.MaxSize > 0 {
				p.fail("only scalar globals can be initialized")
			}
			v.InitTok = p.next()
			v.Init = p.literal()
			v.Arity = 0
			v.Type = v.Init.Type()
		}
		if p.accept(";") {
			return
		}
		if !p.accept(",") {
			return
		}
	}
}

func (p *parser) typeName(kinds string) ast.Type {
	switch t := p.peek(); {
	case t.IsKeyword("long"):
		p.next()
		return ast.Long
	case t.IsKeyword("string"):
		p.next()
		return ast.String
	}
	p.fail(kinds)
	return ast.Unknown
}

func (p *parser) function(out *ast.File, private bool) {
	p.next()
	if p.peek().Kind == token.EOF {
		p.fail("unexpected end-of-file")
	}
	name := p.ident()
	f := &ast.Function{Name: name.Text, Tok: name, Private: private, File: p.file, Priority: 0}
	if p.file.Tapset || p.file.Library {
		f.Priority = 1
	}
	t := p.next()
	if t.IsOp(":") {
		f.Ret = p.typeName("expected 'string' or 'long'")
		p.peek()
		t = p.ahead
		if t.IsOp("(") {
			p.next()
		}
	}
	if !t.IsOp("(") {
		p.last = t
		p.fail("expected '('")
	}
	for !p.isOp(")") {
		a := p.ident()
		for _, q := range f.Params {
			if q.Name == a.Text {
				failSaw(a, "duplicate parameter names")
			}
		}
		v := &ast.Var{Name: a.Text, Tok: a, Kind: ast.Param, Arity: 0}
		if p.accept(":") {
			v.Type = p.typeName("expected 'string' or 'long'")
		}
		f.Params = append(f.Params, v)
		if p.isOp(")") {
			break
		}
		if !p.isOp(",") {
			p.fail("expected ',' or ')'")
		}
		p.next()
	}
	p.next()
	if p.accept(":") {
		n, ok := p.literal().(*ast.Number)
		if !ok {
			p.fail("expected number")
		}
		f.Priority, f.HasPriority = n.Value, true
	}
	p.inFunc = true
	switch t := p.peek(); {
	case t.Kind == token.EmbedC:
		f.C = p.embedC("embedded code")
	default:
		f.Body = p.block()
	}
	p.inFunc = false
	out.Functions = append(out.Functions, f)
}

func (p *parser) probe(out *ast.File) {
	start := p.next()
	points := p.points()
	if len(points) == 0 {
		p.fail("expected probe point specifier")
	}
	var names []*ast.Point
	epi := false
	if p.isOp("=") || p.isOp("+=") {
		epi = p.next().Text == "+="
		names = points
		for _, n := range names {
			if n.Optional || n.Sufficient {
				failAt(n.Tok, "probe point alias name cannot be optional nor sufficient")
			}
			if n.Cond != nil {
				failAt(n.Tok, "probe point alias name cannot have a condition")
			}
		}
		points = p.points()
	}
	if p.isOp("}") {
		p.fail("expected probe point specifier")
	}
	if !p.isOp("{") {
		p.fail("expected one of ', { } = +='")
	}
	if names == nil {
		out.Probes = append(out.Probes, &ast.Probe{Tok: start, Points: points, Body: p.block()})
		return
	}
	a := &ast.Alias{Tok: start, Names: names, Points: points, Epi: epi}
	if epi {
		a.Epilogue = p.block()
	} else {
		a.Prologue = p.block()
	}
	if p.isOp(",") {
		if epi {
			p.fail("Combined prologue and epilogue cannot be defined with '+='")
		}
		p.next()
		a.Epilogue = p.block()
	}
	out.Aliases = append(out.Aliases, a)
}

const maxPoints = 10000

// points reads a list of probe points; groups are multiplied out.
func (p *parser) points() []*ast.Point {
	var all []*ast.Point
	for {
		all = append(all, p.point()...)
		if len(all) > maxPoints {
			p.fail("too many probe points")
		}
		switch t := p.peek(); {
		case t.IsOp("?"):
			p.next()
			for _, q := range all[len(all)-p.lastCount(all):] {
				q.Optional = true
			}
		case t.IsOp("!"):
			p.next()
			for _, q := range all[len(all)-p.lastCount(all):] {
				q.Optional, q.Sufficient = true, true
			}
		}
		if p.isKw("if") {
			p.condition(all[len(all)-p.lastCount(all):])
		}
		if p.accept(",") {
			if p.peek().Kind == token.EOF {
				p.fail("unexpected end-of-file")
			}
			continue
		}
		return all
	}
}

// condition reads the "if (EXPR)" behind a probe point, which is for that point
// and no other of the list.
func (p *parser) condition(points []*ast.Point) {
	p.next()
	p.expect("(")
	cond := p.expr()
	p.expect(")")
	for _, q := range points {
		if q.Cond != nil {
			p.fail("condition respecified")
		}
		q.Cond = cond
	}
}

// lastCount is how many of the points share the last one's token: those that
// one {} expression made.
func (p *parser) lastCount(all []*ast.Point) int {
	n := 0
	last := all[len(all)-1]
	for i := len(all) - 1; i >= 0 && all[i].Tok == last.Tok; i-- {
		n++
	}
	return n
}

// point reads one probe point and returns its alternatives.
func (p *parser) point() []*ast.Point {
	p.enter()
	defer p.leave()
	start := p.peek()
	lists := [][]*ast.Component{nil}
	conds := []ast.Expr{nil}
	for {
		t := p.peek()
		switch {
		case t.IsOp("{"):
			p.next()
			group := p.points()
			if !p.isOp("}") {
				p.fail("expected '}'")
			}
			p.next()
			var out [][]*ast.Component
			var outConds []ast.Expr
			for i, head := range lists {
				for _, g := range group {
					if len(out) >= maxPoints {
						p.fail("too many probe points")
					}
					out = append(out, append(append([]*ast.Component{}, head...), g.Components...))
					outConds = append(outConds, g.Cond)
					if conds[i] != nil && g.Cond != nil {
						p.fail("condition respecified")
					} else if g.Cond == nil {
						outConds[len(outConds)-1] = conds[i]
					}
				}
			}
			lists, conds = out, outConds
		case t.Kind == token.Ident || t.Kind == token.Keyword || t.IsOp("*"):
			c := p.component()
			for i := range lists {
				lists[i] = append(lists[i], c)
			}
		default:
			p.fail("expected identifier or '*' or '{'")
		}
		if p.accept(".") {
			continue
		}
		break
	}
	var out []*ast.Point
	for i, l := range lists {
		q := &ast.Point{Tok: start, Components: l, Cond: conds[i]}
		if len(l) > 0 {
			q.Tok = l[0].Tok
		}
		out = append(out, q)
	}
	if len(lists) > 1 {
		for _, q := range out {
			q.Tok = start
		}
	}
	return out
}

// component reads a name with wildcards (tokens that touch) and argument.
func (p *parser) component() *ast.Component {
	t := p.next()
	name := t.Text
	end := t.Pos.Col + len(t.Text)
	for {
		n := p.peek()
		touching := n.Pos.File == t.Pos.File && n.Pos.Line == t.Pos.Line && n.Pos.Col == end
		if !touching || n.Kind != token.Ident && n.Kind != token.Keyword && n.Kind != token.Number && !n.IsOp("*") {
			break
		}
		end += len(n.Text)
		name += n.Text
		p.next()
	}
	tok := *t
	if name != t.Text {
		tok.Text, tok.Kind = name, token.Ident
	}
	c := &ast.Component{Tok: &tok, Name: name}
	if p.accept("(") {
		if p.peek().Kind == token.EOF {
			p.fail("unexpected end-of-file")
		}
		c.Arg = p.literal()
		if p.peek().Kind == token.EOF {
			p.last = c.Arg.Token()
			p.fail("unexpected end-of-file")
		}
		if !p.isOp(")") {
			p.fail("expected ')'")
		}
		p.next()
	}
	return c
}
