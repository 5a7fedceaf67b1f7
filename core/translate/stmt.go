package translate

import (
	"fmt"
	"sort"
	"strings"

	"stapbox/core/script/ast"
	"stapbox/core/script/check"
	"stapbox/core/script/token"
)

// manyLocals is the number of integer locals up to which they are C variables;
// a function with more keeps them in its frame, off the kernel stack.
const manyLocals = 16

// body writes one function or handler.
type body struct {
	*gen
	fn     *ast.Function // nil in a probe handler
	probe  int
	buf    *strings.Builder
	indent int
	names  map[*ast.Var]string
	frame  []string // declarations of the frame, integers first
	ints   []string // C variables
	size   int

	temps, maxTemps   int // integers in use, most ever
	strTemps, maxStrs int
	labels            int
	onError           string // label for errors
	used              map[string]bool
	loops             []loop
	pending           int // statements not counted yet
	cost              int // of what is not charged yet (cost.go)
	callees           []*ast.Function
	calleeSet         map[*ast.Function]bool
}

// loop is an enclosing loop; m is the array expression of a foreach.
type loop struct {
	id int
	m  string
}

func (g *gen) newBody() *body {
	return &body{gen: g, buf: &strings.Builder{}, names: map[*ast.Var]string{}, used: map[string]bool{}, calleeSet: map[*ast.Function]bool{}, indent: 1, onError: "out"}
}

func (b *body) line(format string, args ...any) {
	b.buf.WriteString(strings.Repeat("\t", b.indent))
	fmt.Fprintf(b.buf, format, args...)
	b.buf.WriteByte('\n')
}

func (b *body) label(name string) {
	fmt.Fprintf(b.buf, "%s:;\n", name)
}

func (b *body) goTo(label string) string {
	b.used[label] = true
	return "goto " + label + ";"
}

// check leaves for the handler of errors when one is pending.
func (b *body) check() {
	b.line("if (stp_unlikely(c->error))\n%s\t%s", strings.Repeat("\t", b.indent), b.goTo(b.onError))
}

// capture runs f and answers the text it wrote.
func (b *body) capture(f func()) string {
	outer := b.buf
	b.buf = &strings.Builder{}
	defer func() { b.buf = outer }()
	f()
	return b.buf.String()
}

// locals gives every variable its place.
func (b *body) locals(vars []*ast.Var) {
	ints := 0
	taken := map[string]bool{}
	for _, v := range vars {
		if v.Type != ast.String {
			ints++
		}
	}
	inFrame := ints > manyLocals
	var decl, strs []string
	for _, v := range vars {
		name := "v_" + cname(v.Name)
		for n := 2; taken[name]; n++ {
			name = fmt.Sprintf("v_%s_%d", cname(v.Name), n)
		}
		taken[name] = true
		switch {
		case v.Type == ast.String:
			strs = append(strs, fmt.Sprintf("char %s[STP_MAXSTRINGLEN];", name))
			b.names[v] = "l->" + name
		case inFrame:
			decl = append(decl, fmt.Sprintf("int64_t %s;", name))
			b.names[v] = "l->" + name
		default:
			b.ints = append(b.ints, name)
			b.names[v] = name
		}
	}
	b.frame = append(decl, strs...)
	b.size = 8 * len(decl)
}

// wrap puts declarations around the text of a body and closes the frame.
func (b *body) wrap(name, head, enter, leave string) (string, int) {
	var out strings.Builder
	strs := 0
	for _, d := range b.frame {
		if strings.HasPrefix(d, "char") {
			strs++
		}
	}
	inFrame := max(b.maxTemps-manyTemps, 0)
	size := b.size + 8*inFrame + (strs+b.maxStrs)*int(b.limits.stringLen)
	size = (size + 7) / 8 * 8
	if size == 0 {
		size = 8
	}
	fmt.Fprintf(&out, "struct frame_%s {\n", name)
	for i := range inFrame {
		fmt.Fprintf(&out, "\tint64_t i%d;\n", manyTemps+i)
	}
	for _, d := range b.frame {
		fmt.Fprintf(&out, "\t%s\n", d)
	}
	for i := 0; i < b.maxStrs; i++ {
		fmt.Fprintf(&out, "\tchar t%d[STP_MAXSTRINGLEN];\n", i)
	}
	if len(b.frame) == 0 && b.maxStrs == 0 && inFrame == 0 {
		fmt.Fprintf(&out, "\tchar none;\n")
	}
	fmt.Fprintf(&out, "} __attribute__((__aligned__(8)));\n_Static_assert(sizeof(struct frame_%s) == %d, \"frame size\");\n\n", name, size)
	fmt.Fprintf(&out, "%s\n{\n", head)
	fmt.Fprintf(&out, "\tstruct frame_%s *l;\n", name)
	ints := append([]string(nil), b.ints...)
	for i := range min(b.maxTemps, manyTemps) {
		ints = append(ints, fmt.Sprintf("t%d", i))
	}
	for len(ints) > 0 {
		n := min(len(ints), 10)
		fmt.Fprintf(&out, "\tint64_t %s = 0;\n", strings.Join(ints[:n], " = 0, "))
		ints = ints[n:]
	}
	out.WriteString(enter)
	out.WriteString(b.buf.String())
	if b.used["out"] {
		out.WriteString("out:;\n")
	}
	out.WriteString(leave)
	out.WriteString("}\n\n")
	return out.String(), size
}

// clear sets locals to their first value. C variables start as 0 anyway.
func (b *body) clear(vars []*ast.Var) {
	for _, v := range vars {
		if v.Type == ast.String {
			b.line("%s[0] = 0;", b.names[v])
		} else if strings.HasPrefix(b.names[v], "l->") {
			b.line("%s = 0;", b.names[v])
		}
	}
}

func (g *gen) function(f *ast.Function) string {
	b := g.newBody()
	b.fn = f
	b.locals(append(append([]*ast.Var(nil), f.Params...), f.Locals...))
	for i, p := range f.Params {
		if p.Type == ast.String {
			b.line("stp_assign(c, %s, a%d);", b.names[p], i)
			b.work(costCall, f.Tok)
		} else {
			b.line("%s = a%d;", b.names[p], i)
			b.work(costOperator, f.Tok)
		}
	}
	b.work(costOperator*len(f.Locals), f.Tok)
	if f.Ret == ast.String {
		b.line("ret[0] = 0;")
	}
	b.clear(f.Locals)
	b.flush(1, f.Tok)
	b.stmt(f.Body)
	b.flush(0, f.Tok)
	name := "fn_" + cname(f.Unique)
	result, failed := "\treturn ret;\n", "return 0;"
	ret := "\tint64_t ret = 0;\n"
	if f.Ret == ast.String {
		result, failed, ret = "", "return;", ""
	}
	text, size := b.wrap(name, "/* "+place(f.Tok)+" */\n"+signature(f),
		ret+"\n\tl = stp_enter(c, sizeof(*l), where);\n\tif (!l)\n\t\t"+failed+"\n",
		"\tstp_leave(c, sizeof(*l), where);\n"+result)
	g.frames[f] = size
	g.calls[f] = b.callees
	return text
}

func (g *gen) probe(n int, p *check.Probe) (string, int, []*ast.Function) {
	b := g.newBody()
	b.probe = n
	b.locals(p.Locals)
	b.clear(p.Locals)
	if p.Cond != nil {
		cond := b.value(p.Cond)
		b.settle(p.Cond.Token())
		b.line("if (!%s)\n\t\t%s", cond, b.goTo("out"))
	}
	b.stmt(p.Body)
	var tok *token.Token
	if p.Source != nil {
		tok = p.Source.Tok
	}
	b.flush(0, bodyToken(p.Body, tok))
	name := fmt.Sprintf("probe_%d", n)
	text, size := b.wrap(name, fmt.Sprintf("/* %s */\nstatic void %s(struct stp_context *c)", place(tok), name),
		"\n\tl = (void *)c->frame;\n\tc->frame += sizeof(*l);\n", "\t(void)l;\n")
	return text, size, b.callees
}

// flush counts the pending statements and n more, and leaves when they are too
// many.
func (b *body) flush(n int, tok *token.Token) {
	b.settle(tok)
	n += b.pending
	b.pending = 0
	if n > 0 {
		b.line("if (stp_count(c, %d, %s))\n%s\t%s", n, quote(where(tok)), strings.Repeat("\t", b.indent), b.goTo(b.onError))
	}
}

// bodyToken is the token an exceeded limit is reported at, at the end of s:
// the statement itself when a block has only one.
func bodyToken(s ast.Stmt, empty *token.Token) *token.Token {
	switch s := s.(type) {
	case nil:
		return empty
	case *ast.Block:
		switch len(s.Stmts) {
		case 0:
			return empty
		case 1:
			return bodyToken(s.Stmts[0], empty)
		}
	case *ast.Null:
		return empty
	}
	return s.Token()
}

// branch writes a nested statement with its counting, one level deeper.
func (b *body) branch(s ast.Stmt, empty *token.Token) {
	b.indent++
	b.stmt(s)
	b.flush(0, bodyToken(s, empty))
	b.indent--
}

func (b *body) newLabel() int {
	b.labels++
	return b.labels
}

func (b *body) stmt(s ast.Stmt) {
	temps, strs := b.temps, b.strTemps
	b.statement(s)
	b.temps, b.strTemps = temps, strs
}

func (b *body) statement(s ast.Stmt) {
	switch s := s.(type) {
	case nil, *ast.Null:
		return
	case *ast.Block:
		for _, q := range s.Stmts {
			b.stmt(q)
		}
		return
	}
	b.line("/* %s */", place(s.Token()))
	switch s := s.(type) {
	case *ast.ExprStmt:
		b.discard(s.X)
		b.pending++
	case *ast.If:
		b.ifElse(s)
	case *ast.For:
		b.forLoop(s)
	case *ast.Foreach:
		b.foreach(s)
	case *ast.Break:
		b.flush(1, s.Token())
		b.jump("break", s.Token())
	case *ast.Continue:
		b.flush(1, s.Token())
		b.jump("continue", s.Token())
	case *ast.Next:
		b.flush(1, s.Token())
		b.leaveLoops(0)
		if b.fn != nil {
			b.line("c->next = 1;")
		}
		b.line("%s", b.goTo("out"))
	case *ast.Return:
		b.ret(s)
	case *ast.Delete:
		b.del(s)
		b.pending++
	case *ast.TryCatch:
		b.tryCatch(s)
	case *ast.EmbedStmt:
		b.embedStmt(s)
		b.pending++
	default:
		fail(s.Token(), "this statement is not supported by the builtin translator")
	}
}

func (b *body) ifElse(s *ast.If) {
	b.flush(1, s.Token())
	cond := b.value(s.Cond)
	b.settle(s.Token())
	b.line("if (%s) {", cond)
	b.branch(s.Then, s.Token())
	if s.Else != nil {
		b.line("} else {")
		b.branch(s.Else, s.Token())
	}
	b.line("}")
}

func (b *body) forLoop(s *ast.For) {
	if s.Init != nil {
		b.discard(s.Init)
	}
	b.flush(1, s.Token())
	id := b.newLabel()
	b.line("for (;;) {")
	b.indent++
	b.pending = 1
	temps, strs := b.temps, b.strTemps
	b.loops = append(b.loops, loop{id: id})
	cond := b.value(s.Cond)
	b.settle(s.Token())
	if cond != "1LL" {
		b.line("if (!%s)\n%s\tbreak;", cond, strings.Repeat("\t", b.indent))
	}
	b.temps, b.strTemps = temps, strs
	b.round(s.Body, s.Token(), id, func() {
		if s.Post != nil {
			b.discard(s.Post)
		}
	})
	b.pending += 2 // what leaving such a loop is seen to cost upstream
}

// jump goes to the end of the innermost loop or of its round.
func (b *body) jump(what string, tok *token.Token) {
	if len(b.loops) == 0 {
		fail(tok, "'%s' is not inside a loop", what)
	}
	b.line("%s", b.goTo(fmt.Sprintf("%s_%d", what, b.loops[len(b.loops)-1].id)))
}

// leaveLoops ends the iterations of all foreach loops from number n on.
func (b *body) leaveLoops(n int) {
	for i := len(b.loops) - 1; i >= n; i-- {
		if b.loops[i].m != "" {
			b.line("stp_map_done(%s);", b.loops[i].m)
		}
	}
}

// round writes the body of the innermost loop, what is done after each turn, and
// the end of the loop.
func (b *body) round(body ast.Stmt, tok *token.Token, id int, after func()) {
	b.indent--
	b.branch(body, tok)
	b.indent++
	b.loops = b.loops[:len(b.loops)-1]
	if b.used[fmt.Sprintf("continue_%d", id)] {
		b.label(fmt.Sprintf("continue_%d", id))
	}
	if after != nil {
		after()
		b.settle(tok)
	}
	b.indent--
	b.line("}")
	if b.used[fmt.Sprintf("break_%d", id)] {
		b.label(fmt.Sprintf("break_%d", id))
	}
}

func (b *body) foreach(s *ast.Foreach) {
	if h, ok := s.Array.(*ast.Hist); ok {
		b.foreachHist(s, h)
		return
	}
	array := b.array(s.Array)
	m := b.gen.names[array]
	if len(s.Keys) != len(array.Keys) {
		fail(s.Token(), "foreach needs %d variables for array '%s'", len(array.Keys), array.Name)
	}
	slice, any := b.keys(array, s.Slice, true)
	limit := ""
	if s.Limit != nil {
		limit = b.intTemp()
		b.line("%s = %s;", limit, b.value(s.Limit))
	}
	b.flush(1, s.Token())
	id := b.newLabel()
	node := fmt.Sprintf("n%d", id)
	outer := b.onError
	b.line("{")
	b.indent++
	if len(s.Slice) > 0 {
		b.line("const union stp_key k%d[] = %s;", id, slice)
	}
	column := fmt.Sprint(s.SortColumn)
	if array.Type == ast.Stats && s.SortColumn == 0 {
		column = "-" + statOp(s.SortAggr)
	}
	b.line("struct stp_node *%s = stp_map_first(c, %s, %s, %d, %s);\n", node, m, column, s.SortDir, quote(where(s.Token())))
	b.line("for (; %s; %s = stp_map_next(%s, %s)) {", node, node, m, node)
	b.indent++
	b.onError = fmt.Sprintf("unwind_%d", id)
	b.used[b.onError] = true // stp_map_first may fail
	b.loops = append(b.loops, loop{id, m})
	if len(s.Slice) > 0 {
		b.line("if (stp_charge_at(c, 1, %s))\n%s\t%s", quote(where(s.Token())), strings.Repeat("\t", b.indent), b.goTo(b.onError))
		b.line("if (!stp_node_match(c, %s, %s, k%d, %s))\n%s\tcontinue;", m, node, id, any, strings.Repeat("\t", b.indent))
	}
	if limit != "" {
		b.line("if (%s-- <= 0)\n%s\tbreak;", limit, strings.Repeat("\t", b.indent))
	}
	b.pending = 1
	for i, k := range s.Keys {
		if k != nil {
			b.store(k, b.column(m, node, i+1, array.Keys[i]))
		}
	}
	if s.Value != nil {
		b.store(s.Value, b.column(m, node, 0, array.Type))
	}
	b.round(s.Body, s.Token(), id, nil)
	b.label(b.onError)
	b.line("stp_map_done(%s);", m)
	b.onError = outer
	b.check()
	b.indent--
	b.line("}")
}

func (b *body) column(m, node string, column int, t ast.Type) string {
	if t == ast.String {
		return fmt.Sprintf("stp_node_str(%s, %s, %d)", m, node, column)
	}
	return fmt.Sprintf("stp_node_int(%s, %s, %d)", m, node, column)
}

// store assigns a value to a scalar variable.
func (b *body) store(to *ast.Symbol, value string) {
	if to.Var == nil {
		fail(to.Tok, "unresolved variable '%s'", to.Name)
	}
	if to.Var.Type == ast.String {
		b.line("stp_assign(c, %s, %s);", b.name(to.Var), value)
		b.work(costCall, to.Tok)
	} else {
		b.line("%s = %s;", b.name(to.Var), value)
		b.work(costOperator, to.Tok)
	}
}

func (b *body) ret(s *ast.Return) {
	if b.fn == nil {
		fail(s.Token(), "'return' outside of a function")
	}
	if s.Value != nil {
		v := b.value(s.Value)
		switch {
		case b.fn.Ret == ast.String:
			b.line("stp_assign(c, ret, %s);", v)
			b.work(costCall, s.Token())
		case s.Value.Type() != ast.String:
			b.line("ret = %s;", v)
		}
	}
	b.flush(0, s.Token())
	b.leaveLoops(0)
	b.line("%s", b.goTo("out"))
}

func (b *body) del(s *ast.Delete) {
	switch x := s.X.(type) {
	case *ast.Symbol:
		switch {
		case x.Var.IsArray():
			b.line("if (!stp_map_clear(c, %s, %s))\n%s\t%s", b.name(x.Var), quote(where(x.Tok)), strings.Repeat("\t", b.indent), b.goTo(b.onError))
		case x.Var.Type == ast.Stats:
			name := b.name(x.Var)
			b.line("stp_stat_clear(c, (struct stp_aggr *)%s, &k%s);", name, name)
		case x.Var.Type == ast.String:
			b.line("%s[0] = 0;", b.name(x.Var))
		default:
			b.line("%s = 0;", b.name(x.Var))
		}
	case *ast.Index:
		v := b.array(x.Array)
		keys, any := b.keys(v, x.Keys, false)
		b.withKeys(keys, "if (!stp_map_del(c, %s, k, %s, %s))\n%s\t%s", b.name(v), any, quote(where(x.Tok)), strings.Repeat("\t", b.indent+1), b.goTo(b.onError))
	default:
		fail(s.Token(), "this cannot be deleted")
	}
}

func (b *body) tryCatch(s *ast.TryCatch) {
	b.flush(1, s.Token())
	id := b.newLabel()
	catch, end := fmt.Sprintf("catch_%d", id), fmt.Sprintf("caught_%d", id)
	outer := b.onError
	b.onError = catch
	b.line("{")
	b.branch(s.Try, s.Token())
	b.line("}")
	b.onError = outer
	if !b.used[catch] {
		return
	}
	b.line("goto %s;", end)
	b.label(catch)
	b.line("{")
	b.indent++
	to := "NULL"
	if s.Var != nil {
		to = b.name(s.Var.Var)
	}
	b.line("stp_caught(c, %s);", to)
	b.indent--
	b.branch(s.Catch, s.Token())
	b.line("}")
	b.label(end)
}

// name is the C expression of a variable.
func (b *body) name(v *ast.Var) string {
	if v.Kind == ast.Global {
		if n, ok := b.gen.names[v]; ok {
			return n
		}
	} else if n, ok := b.names[v]; ok {
		return n
	}
	fail(v.Tok, "variable '%s' was not declared by the checker", v.Name)
	return ""
}

func (b *body) called(f *ast.Function) {
	if !b.calleeSet[f] {
		b.calleeSet[f] = true
		b.callees = append(b.callees, f)
		sort.SliceStable(b.callees, func(i, j int) bool { return b.callees[i].Unique < b.callees[j].Unique })
	}
}
