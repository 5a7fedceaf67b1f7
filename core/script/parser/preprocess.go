package parser

import (
	"cmp"
	"strings"

	"stapbox/core/script/diag"
	"stapbox/core/script/token"
)

// Limits against hostile input; no real script comes near them.
const (
	maxMacroDepth = 64      // macros in macros
	maxExpansion  = 1 << 18 // tokens that macros may add to one file
	maxCondDepth  = 256     // %( in %(
	maxDepth      = 600     // statements and expressions in each other
	maxLinks      = 20000   // operators in one probe or function
)

// macro is what @define made.
type macro struct {
	tok    *token.Token
	params []string
	body   []*token.Token
}

// cond is an open conditional.
type cond struct {
	tok   *token.Token
	other bool // its %: has been seen
}

// frame is the rest of a macro body or argument being read.
type frame struct {
	toks  []*token.Token
	via   *token.Token // the invocation
	args  map[string][]*token.Token
	macro string
}

// preprocessor turns the scanner's tokens into the parser's: macros first,
// then conditionals (stap(1), PREPROCESSING).
type preprocessor struct {
	opts     *Options
	scan     *token.Scanner
	macros   map[string]*macro
	frames   []*frame
	back     []*token.Token // pushed back, before macro expansion is done again
	back2    []*token.Token
	conds    []cond // open %( of which a part is being passed on
	emitted  int
	skipping bool // in the part of a conditional that does not count
	library  bool // a file of macros: those in a part that does not count are none
	defined  []string
}

// fail raises a parse error about t.
func failAt(t *token.Token, msg string) {
	panic(&diag.Diagnostic{Severity: diag.ParseError, Message: msg, Tok: t})
}

// failSaw raises a parse error while standing at t.
func failSaw(t *token.Token, msg string) {
	panic(&diag.Diagnostic{Severity: diag.ParseError, Message: msg, Tok: t, Saw: true})
}

// orphan refuses a %?, %: or %) without its %(.
func orphan(t *token.Token) {
	panic(&diag.Diagnostic{Severity: diag.ParseError, Message: "incomplete conditional - missing '%('", Tok: t, Site: t.Text})
}

// raw is the next token before macros.
func (p *preprocessor) raw() *token.Token {
	if n := len(p.back); n > 0 {
		t := p.back[n-1]
		p.back = p.back[:n-1]
		return t
	}
	for len(p.frames) > 0 {
		f := p.frames[len(p.frames)-1]
		if len(f.toks) == 0 {
			p.frames = p.frames[:len(p.frames)-1]
			continue
		}
		t := *f.toks[0]
		f.toks = f.toks[1:]
		t.Chain = f.via
		if p.emitted++; p.emitted > maxExpansion {
			p.frames = nil
			failAt(f.via, "macro expansion is too large")
		}
		return &t
	}
	return p.scan.Next()
}

// args are the parameters visible where the next token comes from.
func (p *preprocessor) args() map[string][]*token.Token {
	for i := len(p.frames) - 1; i >= 0; i-- {
		if len(p.frames[i].toks) > 0 || i == len(p.frames)-1 {
			return p.frames[i].args
		}
	}
	return nil
}

// expanded is the next token after macros.
func (p *preprocessor) expanded() *token.Token {
	for {
		if n := len(p.back2); n > 0 {
			t := p.back2[n-1]
			p.back2 = p.back2[:n-1]
			return t
		}
		var scope map[string][]*token.Token
		// The frame that gives the token is the innermost with tokens left.
		for len(p.frames) > 0 && len(p.frames[len(p.frames)-1].toks) == 0 && len(p.back) == 0 {
			p.frames = p.frames[:len(p.frames)-1]
		}
		if len(p.frames) > 0 {
			scope = p.args()
		}
		t := p.raw()
		if t.Kind == token.Junk && t.Err != "" {
			if p.skipping {
				return t // such as an argument that the condition found absent
			}
			p.conds = nil
			failAt(t, t.Err)
		}
		if t.Kind != token.Operator || len(t.Text) < 2 || t.Text[0] != '@' {
			return t
		}
		name := t.Text[1:]
		if name == "define" {
			p.define()
			continue
		}
		if toks, ok := scope[name]; ok {
			p.push(&frame{toks: toks, via: t})
			continue
		}
		m := p.macros[name]
		for _, library := range []*Macros{p.opts.Macros, p.opts.Own} {
			if m == nil && library != nil {
				m = library.byName[name]
			}
		}
		if m == nil {
			return t
		}
		f := &frame{toks: m.body, via: t, macro: name}
		for _, open := range p.frames {
			if open.macro == name {
				failAt(t, "recursive invocation of macro '@"+name+"'")
			}
		}
		if m.params != nil {
			f.args = p.arguments(t, m)
		}
		p.push(f)
	}
}

func (p *preprocessor) push(f *frame) {
	if len(p.frames) >= maxMacroDepth {
		p.frames = nil
		failAt(f.via, "macros are nested too deeply")
	}
	p.frames = append(p.frames, f)
}

// define reads the rest of @define.
func (p *preprocessor) define() {
	name := p.raw()
	if name.Kind != token.Ident {
		failSaw(name, "expected identifier")
	}
	m := &macro{tok: name}
	t := p.raw()
	if t.IsOp("(") {
		m.params = []string{}
		for {
			t = p.raw()
			if t.Kind != token.Ident {
				failSaw(t, "expected identifier")
			}
			m.params = append(m.params, t.Text)
			t = p.raw()
			if t.IsOp(")") {
				break
			}
			if !t.IsOp(",") {
				failAt(t, "expected ',' or ')'")
			}
		}
		t = p.raw()
	}
	if !t.IsOp("%(") {
		msg := "expected '%(' or '('"
		if m.params != nil {
			msg = "expected '%('"
		}
		failSaw(t, msg)
	}
	for depth := 1; ; {
		t = p.raw()
		switch {
		case t.Kind == token.EOF:
			failAt(name, "incomplete macro definition - missing '%)'")
		case t.Kind == token.Junk && t.Err != "" && !t.Arg:
			failAt(t, t.Err) // an argument that is absent matters where the macro is used
		case t.IsOp("%("):
			depth++
		case t.IsOp("%)"):
			depth--
		}
		if depth == 0 {
			break
		}
		m.body = append(m.body, t)
	}
	if p.library && p.skipping {
		return
	}
	if old := p.macros[name.Text]; old != nil {
		p.opts.report(&diag.Diagnostic{Message: "attempt to redefine macro '@" + name.Text + "' in the same file", Tok: name})
		failAt(old.tok, "macro '@"+name.Text+"' first defined here")
	}
	p.macros[name.Text] = m
	p.defined = append(p.defined, name.Text)
}

// arguments reads the parenthesised arguments of an invocation.
func (p *preprocessor) arguments(at *token.Token, m *macro) map[string][]*token.Token {
	plural := "s"
	if len(m.params) == 1 {
		plural = ""
	}
	if t := p.expanded(); !t.IsOp("(") {
		failAt(t, "expected '(' in invocation of macro '"+at.Text+"' taking "+itoa(len(m.params))+" parameter"+plural)
	}
	args := map[string][]*token.Token{}
	var cur []*token.Token
	for n, depth := 0, 0; ; {
		t := p.expanded()
		switch {
		case t.Kind == token.EOF:
			failAt(at, "could not find matching ')' in invocation of macro '"+at.Text+"'")
		case depth == 0 && (t.IsOp(",") || t.IsOp(")")):
			if n < len(m.params) {
				args[m.params[n]] = cur
			}
			n++
			cur = nil
			if t.IsOp(",") {
				if n == len(m.params) {
					failAt(t, "too many parameters for macro '"+at.Text+"' (expected "+itoa(len(m.params))+")")
				}
				continue
			}
			if n < len(m.params) {
				failAt(t, "too few parameters for macro '"+at.Text+"' (expected "+itoa(len(m.params))+")")
			}
			return args
		case t.IsOp("(") || t.IsOp("[") || t.IsOp("{"):
			depth++
		case depth > 0 && (t.IsOp(")") || t.IsOp("]") || t.IsOp("}")):
			depth--
		}
		if p.emitted++; p.emitted > maxExpansion {
			failAt(at, "macro expansion is too large")
		}
		cur = append(cur, t)
	}
}

// next is the next token after conditionals.
func (p *preprocessor) next() *token.Token {
	for {
		t := p.expanded()
		switch {
		case t.Kind == token.EOF && len(p.conds) > 0:
			open := p.conds[len(p.conds)-1].tok
			p.conds = nil
			failAt(open, "incomplete conditional at end of file")
		case t.IsOp("%("):
			if len(p.conds) >= maxCondDepth {
				p.conds = nil
				failAt(t, "conditionals are nested too deeply")
			}
			yes := p.condition(t)
			if yes {
				p.conds = append(p.conds, cond{t, false})
				continue
			}
			if p.skipPart(t, true) {
				p.conds = append(p.conds, cond{t, true})
			}
		case t.IsOp("%:"):
			if len(p.conds) == 0 {
				orphan(t)
			}
			open := p.conds[len(p.conds)-1]
			p.conds = p.conds[:len(p.conds)-1]
			if open.other {
				failAt(t, duplicateElse)
			}
			p.skipPart(open.tok, false)
		case t.IsOp("%)"):
			if len(p.conds) == 0 {
				orphan(t)
			}
			p.conds = p.conds[:len(p.conds)-1]
		case t.IsOp("%?"):
			orphan(t)
		default:
			return t
		}
	}
}

// skipPart drops tokens up to the matching %) or, if elseToo, %:, and reports
// whether it stopped at %:.
func (p *preprocessor) skipPart(open *token.Token, elseToo bool) bool {
	p.skipping = true
	defer func() { p.skipping = false }()
	for depth := 0; ; {
		t := p.expanded()
		switch {
		case t.Kind == token.EOF:
			p.conds = nil
			failAt(open, "incomplete conditional at end of file")
		case t.IsOp("%("):
			depth++
		case t.IsOp("%)"):
			if depth == 0 {
				return false
			}
			depth--
		case t.IsOp("%:") && depth == 0:
			if !elseToo {
				failAt(t, duplicateElse)
			}
			return true
		case t.IsOp("%?") && depth == 0:
			orphan(t)
		}
	}
}

const duplicateElse = "invalid conditional - duplicate '%:'"

// condition evaluates everything up to %?.
func (p *preprocessor) condition(open *token.Token) bool {
	result := p.conjunction(open)
	for {
		t := p.expanded()
		switch {
		case t.IsOp("||"):
			// Both sides are read: errors show whatever the values are.
			right := p.conjunction(open)
			result = result || right
		case t.IsOp("%?"):
			return result
		default:
			failAt(t, "expected '%?' marker for conditional")
		}
	}
}

func (p *preprocessor) conjunction(open *token.Token) bool {
	result := p.comparison(open)
	for {
		t := p.expanded()
		if !t.IsOp("&&") {
			p.back2 = append(p.back2, t)
			return result
		}
		right := p.comparison(open)
		result = result && right
	}
}

const condHelp = `expected 'arch', 'kernel_v', 'kernel_vr', 'systemtap_v',
             'runtime', 'systemtap_privilege', 'CONFIG_...', or
             comparison between strings or integers`

func (p *preprocessor) comparison(open *token.Token) bool {
	l := p.expanded()
	op := p.expanded()
	r := p.expanded()
	for _, t := range []*token.Token{l, op, r} {
		if t.Kind == token.EOF {
			failAt(open, "incomplete condition after '%('")
		}
	}
	isOrder := func() {
		switch op.Text {
		case "<", "<=", "==", "!=", ">", ">=":
			if op.Kind == token.Operator {
				return
			}
		}
		failAt(op, "expected comparison operator")
	}
	isEqual := func() bool {
		if !op.IsOp("==") && !op.IsOp("!=") {
			failAt(op, "expected '==' or '!='")
		}
		return op.Text == "=="
	}
	str := func() {
		if r.Kind != token.String {
			failAt(r, "expected string literal")
		}
	}
	order := func(c int) bool {
		switch op.Text {
		case "<":
			return c < 0
		case "<=":
			return c <= 0
		case "==":
			return c == 0
		case "!=":
			return c != 0
		case ">":
			return c > 0
		}
		return c >= 0
	}
	o := p.opts
	switch {
	case l.Kind == token.Ident && (l.Text == "kernel_v" || l.Text == "kernel_vr"):
		str()
		isOrder()
		have := o.Release
		if l.Text == "kernel_v" {
			have, _, _ = strings.Cut(o.Release, "-")
		}
		if (op.Text == "==" || op.Text == "!=") && strings.ContainsAny(r.Text, "*?[") {
			return Match(r.Text, have) == (op.Text == "==")
		}
		return order(CompareVersions(have, r.Text))
	case l.Kind == token.Ident && l.Text == "systemtap_v":
		str()
		isOrder()
		return order(CompareVersions(o.Compatible, r.Text))
	case l.Kind == token.Ident && l.Text == "arch":
		str()
		return isEqual() == Match(r.Text, o.Arch)
	case l.Kind == token.Ident && l.Text == "runtime":
		str()
		return isEqual() == Match(r.Text, "kernel")
	case l.Kind == token.Ident && l.Text == "systemtap_privilege":
		str()
		return isEqual() == (r.Text == o.Privilege)
	case l.Kind == token.Ident && l.Text == "guru_mode":
		if r.Kind != token.Number {
			failAt(r, "expected number")
		}
		n, _ := parseNumber(r.Text)
		return isEqual() == ((n != 0) == o.Guru)
	case l.Kind == token.Ident && strings.HasPrefix(l.Text, "CONFIG_"):
		return p.config(l, op, r, isEqual, isOrder, order)
	case l.Kind == token.String:
		if r.Kind != token.String {
			failAt(r, "expected string literal as right value")
		}
		isOrder()
		return order(strings.Compare(l.Text, r.Text))
	case l.Kind == token.Number:
		if op.Kind == token.Operator && (op.Text == "%?" || op.Text == "&&" || op.Text == "||") {
			p.back2 = append(p.back2, r)
			failAt(l, condHelp)
		}
		if r.Kind != token.Number {
			failAt(r, "expected number literal as right value")
		}
		isOrder()
		a, ok := parseNumber(l.Text)
		if !ok {
			failAt(l, "number invalid or out of range")
		}
		b, ok := parseNumber(r.Text)
		if !ok {
			failAt(r, "number invalid or out of range")
		}
		switch {
		case a < b:
			return order(-1)
		case a > b:
			return order(1)
		}
		return order(0)
	}
	failAt(l, condHelp)
	return false
}

// config compares a setting of the kernel's configuration: with a string, which
// may be a pattern, with a number, where a setting that is not there is 0, or
// with another setting, as numbers if both are.
func (p *preprocessor) config(l, op, r *token.Token, isEqual func() bool, isOrder func(), order func(int) bool) bool {
	have := p.opts.Config[l.Text]
	switch {
	case r.Kind == token.String:
		return isEqual() == Match(r.Text, have)
	case r.Kind == token.Number:
		isOrder()
		want, ok := parseNumber(r.Text)
		if !ok {
			failAt(r, "number invalid or out of range")
		}
		n, ok := setting(have)
		if !ok {
			failAt(l, "Config option value not a number")
		}
		return order(cmp.Compare(n, want))
	case r.Kind == token.Ident && strings.HasPrefix(r.Text, "CONFIG_"):
		isOrder()
		other := p.opts.Config[r.Text]
		a, isNumber := setting(have)
		if b, ok := setting(other); ok && isNumber {
			return order(cmp.Compare(a, b))
		}
		return order(strings.Compare(have, other))
	}
	failAt(r, "expected string, number literal or other CONFIG_... as right side operand")
	return false
}

// setting is the number that a setting is.
func setting(text string) (int64, bool) {
	if text == "" {
		return 0, true
	}
	negative := strings.HasPrefix(text, "-")
	n, ok := parseNumber(strings.TrimPrefix(text, "-"))
	if negative {
		n = -n
	}
	return n, ok
}
