package translate

import (
	"fmt"
	"strings"

	"stapbox/core/script/ast"
)

// manyTemps is the number of integer temporaries up to which they are C
// variables; an expression with more keeps the others in the frame, off the
// kernel stack, which its author must not be able to exceed.
const manyTemps = 16

func (b *body) intTemp() string {
	b.temps++
	b.maxTemps = max(b.maxTemps, b.temps)
	if b.temps > manyTemps {
		return fmt.Sprintf("l->i%d", b.temps-1)
	}
	return fmt.Sprintf("t%d", b.temps-1)
}

func (b *body) strTemp() string {
	b.strTemps++
	b.maxStrs = max(b.maxStrs, b.strTemps)
	return fmt.Sprintf("l->t%d", b.strTemps-1)
}

// value writes what has to happen before x has its value, and answers a C
// expression without side effects: an int64_t, or a const char *.
func (b *body) value(x ast.Expr) string { return b.expr(x, true) }

// discard evaluates x for its effects.
func (b *body) discard(x ast.Expr) { b.expr(x, false) }

// values evaluates several expressions from left to right. A value that could
// change while a later one is computed is kept in a temporary.
func (b *body) values(xs ...ast.Expr) []string {
	out := make([]string, len(xs))
	for i, x := range xs {
		if x == nil {
			continue
		}
		text := b.capture(func() { out[i] = b.value(x) })
		if text != "" {
			for j := 0; j < i; j++ {
				if xs[j] != nil && !constant(xs[j]) {
					out[j] = b.keep(xs[j].Type(), out[j])
				}
			}
		}
		b.buf.WriteString(text)
	}
	return out
}

func constant(x ast.Expr) bool {
	switch x.(type) {
	case *ast.Number, *ast.Str:
		return true
	}
	return false
}

// keep copies a value to a temporary, unless it is one.
func (b *body) keep(t ast.Type, value string) string {
	if t == ast.String {
		if strings.HasPrefix(value, "l->t") {
			return value
		}
		to := b.strTemp()
		b.line("stp_assign(c, %s, %s);", to, value)
		b.cost += costCall
		return to
	}
	if strings.HasPrefix(value, "t") || strings.HasPrefix(value, "l->i") {
		return value
	}
	to := b.intTemp()
	b.line("%s = %s;", to, value)
	return to
}

func (b *body) expr(x ast.Expr, wanted bool) string {
	switch x := x.(type) {
	case *ast.Number:
		return number(x.Value)
	case *ast.Str:
		return quote(x.Value)
	case *ast.Symbol:
		if x.Var == nil || x.Var.IsArray() {
			fail(x.Tok, "array '%s' is used as a scalar", x.Name)
		}
		if x.Var.Type == ast.Stats {
			fail(x.Tok, "statistics have no value of their own: extract one with @count, @sum and so on")
		}
		if x.Var.Kind == ast.Value {
			return "stp_value(c)"
		}
		return b.name(x.Var)
	case *ast.Binary:
		return b.binary(x)
	case *ast.Unary:
		return b.unary(x)
	case *ast.IncDec:
		return b.incDec(x, wanted)
	case *ast.Assign:
		return b.assign(x, wanted)
	case *ast.Ternary:
		return b.ternary(x, wanted)
	case *ast.In:
		v := b.array(x.Array)
		keys, any := b.keys(v, x.Keys, false)
		t := b.intTemp()
		b.withKeys(keys, "%s = stp_map_in(c, %s, k, %s, %s);", t, b.name(v), any, quote(where(x.Tok)))
		if any != "0" {
			b.check()
		}
		b.work(costCall, x.Tok)
		return t
	case *ast.Index:
		if h, ok := x.Array.(*ast.Hist); ok {
			return b.bucket(x, h)
		}
		v := b.array(x.Array)
		if v.Type == ast.Stats {
			fail(x.Tok, "statistics have no value of their own: extract one with @count, @sum and so on")
		}
		keys, any := b.keys(v, x.Keys, false)
		if any != "0" {
			fail(x.Tok, "'*' is not an index that has a value")
		}
		b.work(costCall, x.Tok)
		return b.get(v, keys)
	case *ast.Call:
		return b.call(x, wanted)
	case *ast.Print:
		return b.print(x)
	case *ast.Stat:
		return b.extract(x)
	case *ast.Hist:
		fail(x.Tok, "a histogram is no value")
	case *ast.Target, *ast.AtCast, *ast.AutoCast, *ast.AtOp:
		fail(x.Token(), "target variables are not supported by the builtin translator")
	}
	if e, ok := x.(*ast.Embed); ok {
		return b.embed(e)
	}
	fail(x.Token(), "this expression is not supported by the builtin translator")
	return ""
}

// array is the global behind an array expression.
func (b *body) array(x ast.Expr) *ast.Var {
	s, ok := x.(*ast.Symbol)
	if !ok || s.Var == nil {
		fail(x.Token(), "histograms are not supported by the builtin translator")
	}
	if !s.Var.IsArray() {
		fail(s.Tok, "'%s' is not an array", s.Name)
	}
	return s.Var
}

// withKeys writes a line that uses the indexes as k. They live in a block of
// their own: temporaries of C would add up on the stack to the end of the function.
func (b *body) withKeys(keys, format string, args ...any) {
	b.line("{")
	b.indent++
	b.line("const union stp_key k[] = %s;\n", keys)
	b.line(format, args...)
	b.indent--
	b.line("}")
}

// keys answers a C initializer for a tuple of indexes, and an expression for the
// mask of those that are "*". With stay the strings survive later statements.
func (b *body) keys(v *ast.Var, xs []ast.Expr, stay bool) (keys, any string) {
	if len(xs) == 0 && stay {
		return "{ { 0 } }", "0"
	}
	if len(xs) != len(v.Keys) {
		fail(v.Tok, "array '%s' has %d indexes, not %d", v.Name, len(v.Keys), len(xs))
	}
	mask := 0
	vals := b.values(xs...)
	parts := make([]string, len(xs))
	for i, x := range xs {
		switch {
		case x == nil:
			mask |= 1 << i
			parts[i] = "{ 0 }"
		case v.Keys[i] == ast.String:
			if stay && !constant(x) {
				vals[i] = b.keep(ast.String, vals[i])
			}
			parts[i] = fmt.Sprintf("{ .s = %s }", vals[i])
		default:
			if stay && !constant(x) {
				vals[i] = b.keep(ast.Long, vals[i])
			}
			parts[i] = fmt.Sprintf("{ .i = %s }", vals[i])
		}
	}
	return "{ " + strings.Join(parts, ", ") + " }", fmt.Sprint(mask)
}

// get reads an element. Strings are copied: the element may change or go away
// before the value is used.
func (b *body) get(v *ast.Var, keys string) string {
	if v.Type == ast.String {
		to := b.strTemp()
		b.withKeys(keys, "stp_assign(c, %s, stp_map_get_str(c, %s, k));", to, b.name(v))
		return to
	}
	to := b.intTemp()
	b.withKeys(keys, "%s = stp_map_get(c, %s, k);", to, b.name(v))
	return to
}

func (b *body) put(x *ast.Index, v *ast.Var, keys, value string) {
	f := "stp_map_set"
	if v.Type == ast.String {
		f = "stp_map_set_str"
	}
	b.work(costCall, x.Tok)
	b.withKeys(keys, "if (!%s(c, %s, k, %s, %s))\n%s\t%s", f, b.name(v), value, quote(where(x.Tok)), strings.Repeat("\t", b.indent+1), b.goTo(b.onError))
}

// arith computes l op r for an integer operator.
func (b *body) arith(op, l, r string, x ast.Expr) string {
	b.work(costOperator, x.Token())
	switch op {
	case "+":
		return fmt.Sprintf("stp_add(%s, %s)", l, r)
	case "-":
		return fmt.Sprintf("stp_sub(%s, %s)", l, r)
	case "*":
		return fmt.Sprintf("stp_mul(%s, %s)", l, r)
	case "<<":
		return fmt.Sprintf("stp_shl(%s, %s)", l, r)
	case ">>":
		return fmt.Sprintf("stp_shr(%s, %s)", l, r)
	case "&", "|", "^":
		return fmt.Sprintf("(%s %s %s)", l, op, r)
	case "/", "%":
		f := map[string]string{"/": "stp_div", "%": "stp_mod"}[op]
		t := b.intTemp()
		b.line("%s = %s(c, %s, %s, %s);", t, f, l, r, quote(where(x.Token())))
		b.check()
		return t
	}
	fail(x.Token(), "unsupported operator %s", op)
	return ""
}

func (b *body) binary(x *ast.Binary) string {
	switch x.Op {
	case "&&", "||":
		return b.logical(x)
	case "=~", "!~":
		fail(x.Tok, "regular expressions are not supported by the builtin translator")
	}
	v := b.values(x.L, x.R)
	l, r := v[0], v[1]
	if x.L.Type() == ast.String {
		b.work(costCall, x.Tok)
	}
	switch x.Op {
	case ".":
		t := b.strTemp()
		b.line("stp_concat(c, %s, %s, %s);", t, l, r)
		return t
	case "<", ">", "<=", ">=", "==", "!=":
		if x.L.Type() == ast.String {
			return fmt.Sprintf("(stp_strcmp(c, %s, %s) %s 0)", l, r, x.Op)
		}
		return fmt.Sprintf("(%s %s %s)", l, x.Op, r)
	}
	return b.arith(x.Op, l, r, x)
}

func (b *body) logical(x *ast.Binary) string {
	l := b.value(x.L)
	var r string
	b.indent++
	text := b.perhaps(func() { r = b.value(x.R) })
	b.indent--
	if text == "" {
		return fmt.Sprintf("(%s %s %s)", l, x.Op, r)
	}
	t := b.intTemp()
	not := ""
	if x.Op == "||" {
		not = "!"
	}
	b.line("%s = !!%s;", t, l)
	b.line("if (%s%s) {", not, t)
	b.buf.WriteString(text)
	b.indent++
	b.line("%s = !!%s;", t, r)
	b.indent--
	b.line("}")
	return t
}

func (b *body) unary(x *ast.Unary) string {
	v := b.value(x.X)
	b.work(costOperator, x.Tok)
	switch x.Op {
	case "-":
		return fmt.Sprintf("stp_neg(%s)", v)
	case "+":
		return v
	case "!", "~":
		return fmt.Sprintf("(%s%s)", x.Op, v)
	}
	fail(x.Tok, "unsupported operator %s", x.Op)
	return ""
}

func (b *body) ternary(x *ast.Ternary, wanted bool) string {
	cond := b.value(x.Cond)
	var then, other string
	b.indent++
	thenText := b.perhaps(func() { then = b.expr(x.Then, wanted) })
	otherText := b.perhaps(func() { other = b.expr(x.Else, wanted) })
	b.indent--
	if !wanted {
		// The branches may have values of two types, or none.
		b.line("if (%s) {", cond)
		b.buf.WriteString(thenText)
		b.line("} else {")
		b.buf.WriteString(otherText)
		b.line("}")
		return "0LL"
	}
	if thenText == "" && otherText == "" {
		return fmt.Sprintf("(%s ? %s : %s)", cond, then, other)
	}
	str := x.Type() == ast.String
	var t string
	if str {
		t = b.strTemp()
	} else {
		t = b.intTemp()
	}
	set := func(text, v string) {
		b.buf.WriteString(text)
		b.indent++
		if str {
			b.line("stp_assign(c, %s, %s);", t, v)
		} else {
			b.line("%s = %s;", t, v)
		}
		b.indent--
	}
	b.line("if (%s) {", cond)
	set(thenText, then)
	b.line("} else {")
	set(otherText, other)
	b.line("}")
	b.work(costCall, x.Tok)
	return t
}

func (b *body) incDec(x *ast.IncDec, wanted bool) string {
	op := x.Op[:1]
	if i, ok := x.X.(*ast.Index); ok {
		v := b.array(i.Array)
		keys, _ := b.keys(v, i.Keys, false)
		old := b.get(v, keys)
		if x.Prefix || !wanted {
			b.line("%s = %s;", old, b.arith(op, old, "1", x))
			b.put(i, v, keys, old)
		} else {
			b.put(i, v, keys, b.arith(op, old, "1", x))
		}
		return old
	}
	s, ok := x.X.(*ast.Symbol)
	if !ok {
		fail(x.Tok, "%s needs a variable", x.Op)
	}
	name := b.name(s.Var)
	if x.Prefix || !wanted {
		b.line("%s = %s;", name, b.arith(op, name, "1", x))
		return name
	}
	old := b.intTemp()
	b.line("%s = %s;", old, name)
	b.line("%s = %s;", name, b.arith(op, name, "1", x))
	return old
}

func (b *body) assign(x *ast.Assign, wanted bool) string {
	op := strings.TrimSuffix(x.Op, "=")
	if x.Op == "<<<" {
		return b.accumulate(x)
	}
	if i, ok := x.L.(*ast.Index); ok {
		return b.assignIndex(x, i, op)
	}
	s, ok := x.L.(*ast.Symbol)
	if !ok || s.Var == nil {
		fail(x.Tok, "this cannot be assigned to")
	}
	v := b.value(x.R)
	if s.Var.Kind == ast.Value {
		add := 0
		if op == "." {
			add = 1
		}
		b.line("if (!stp_value_set(c, %s, %d, %s))\n%s\t%s", v, add, quote(where(s.Tok)), strings.Repeat("\t", b.indent), b.goTo(b.onError))
		b.work(costCall, s.Tok)
		return v
	}
	name := b.name(s.Var)
	switch {
	case op == "":
		b.store(s, v)
	case op == ".":
		b.line("stp_strcat(c, %s, %s);", name, v)
		b.work(costCall, x.Tok)
	default:
		b.line("%s = %s;", name, b.arith(op, name, v, x.R)) // upstream blames the divisor
	}
	return name
}

func (b *body) assignIndex(x *ast.Assign, i *ast.Index, op string) string {
	v := b.array(i.Array)
	all := b.values(append(append([]ast.Expr(nil), i.Keys...), x.R)...)
	parts := make([]string, len(i.Keys))
	if len(i.Keys) != len(v.Keys) {
		fail(i.Tok, "array '%s' has %d indexes, not %d", v.Name, len(v.Keys), len(i.Keys))
	}
	for n, k := range i.Keys {
		if k == nil {
			fail(i.Tok, "'*' is not an index that can be assigned to")
		}
		field := "i"
		if v.Keys[n] == ast.String {
			field = "s"
		}
		parts[n] = fmt.Sprintf("{ .%s = %s }", field, all[n])
	}
	keys := "{ " + strings.Join(parts, ", ") + " }"
	value := all[len(all)-1]
	switch {
	case op == ".":
		t := b.strTemp()
		b.withKeys(keys, "stp_concat(c, %s, stp_map_get_str(c, %s, k), %s);", t, b.name(v), value)
		value = t
	case op != "":
		value = b.arith(op, b.get(v, keys), value, x.R)
	}
	if !constant(x.R) || op != "" {
		value = b.keep(v.Type, value)
	}
	b.put(i, v, keys, value)
	return value
}

// kernelFunctions are the tapset functions that the runtime implements in C.
func kernelFunctions(s string) bool {
	switch s {
	case "pid", "tid", "ppid", "uid", "euid", "gid", "egid", "execname", "pp", "pn", "cpu", "target",
		"module_name", "gettimeofday_s", "gettimeofday_ms", "gettimeofday_us", "gettimeofday_ns",
		"get_cycles", "randint", "ctime", "strlen", "strtol", "substr", "stringat", "isinstr",
		"str_replace", "text_str", "text_strn", "tokenize", "exit", "error", "warn", "log",
		"system", "_stdin_line", "tz_gmtoff", "tz_name",
		"ns_pid", "ns_tid", "ns_ppid", "ns_pgrp", "ns_sid", "ns_uid", "ns_euid", "ns_gid", "ns_egid",
		"remote_id", "remote_uri":
		return true
	}
	return false
}

func (b *body) call(x *ast.Call, wanted bool) string {
	if len(x.Funcs) == 0 {
		fail(x.Tok, "unresolved function '%s'", x.Name)
	}
	args := b.values(x.Args...)
	for i, a := range x.Args {
		if len(x.Funcs) > 1 && !constant(a) {
			args[i] = b.keep(a.Type(), args[i])
		}
	}
	f := x.Funcs[0]
	result := ""
	switch {
	case f.Ret == ast.String:
		result = b.strTemp()
	case f.Ret != ast.Unknown:
		result = b.intTemp()
	}
	for i, f := range x.Funcs {
		if i > 0 {
			b.line("if (c->next) {")
			b.indent++
			b.line("c->next = 0;")
		}
		b.callOne(x, f, result, args)
	}
	for range x.Funcs[1:] {
		b.indent--
		b.line("}")
	}
	if last := x.Funcs[len(x.Funcs)-1]; last.Next {
		b.line("if (c->next) {")
		b.indent++
		b.line("c->next = 0;")
		b.line("stp_fail(c, \"all functions exhausted\", %s);", quote(where(x.Tok)))
		b.line("%s", b.goTo(b.onError))
		b.indent--
		b.line("}")
	}
	if f.Ret == ast.Unknown {
		return "0LL"
	}
	return result
}

func (b *body) callOne(x *ast.Call, f *ast.Function, result string, args []string) {
	list := []string{"c"}
	name := "stp_fn_" + cname(f.Name)
	if f.C == nil || embedded(f) {
		if !b.funcs[f] {
			fail(x.Tok, "function '%s' is not part of the checked program", f.Name)
		}
		name = "fn_" + cname(f.Unique)
		list = append(list, quote(where(x.Tok)))
		b.called(f)
	}
	// A function of the runtime that returns nothing may stand where a value is
	// wanted: it is 0, or "".
	nothing := f.C != nil && !embedded(f) && !strings.Contains(f.C.Code, "STAP_RETVALUE")
	if f.Ret == ast.String && !nothing {
		list = append(list, result)
	}
	list = append(list, args...)
	call := fmt.Sprintf("%s(%s);", name, strings.Join(list, ", "))
	switch {
	case f.Ret == ast.Long && nothing:
		b.line("%s = 0;", result)
	case f.Ret == ast.String && nothing:
		b.line("%s[0] = 0;", result)
	case f.Ret == ast.Long:
		call = result + " = " + call
	}
	b.line("%s", call)
	switch {
	case f.C == nil || embedded(f):
		b.check()
	case failing(f.Name):
		b.failedAt(x.Tok)
	}
	b.work(costCall, x.Tok)
}

// failing are the kernelFunctions that raise an error, or stop when a limit is
// used up.
func failing(s string) bool {
	switch s {
	case "error", "stringat", "ctime", "randint", "isinstr", "str_replace", "text_str", "text_strn":
		return true
	}
	return false
}

func (b *body) print(x *ast.Print) string {
	if len(x.Args) == 1 {
		if h, ok := x.Args[0].(*ast.Hist); ok {
			return b.printHist(x, h)
		}
	}
	args := b.values(x.Args...)
	out := ""
	if x.String {
		out = b.strTemp()
		b.line("stp_sprint_begin(c, %s);", out)
	} else {
		b.line("stp_print_begin(c);")
	}
	for _, p := range x.Parts {
		b.part(x, p, args)
	}
	b.line("stp_print_end(c);")
	if out == "" {
		return "0LL"
	}
	return out
}

func (b *body) part(x *ast.Print, p ast.FormatPart, args []string) {
	if p.Conv == 0 {
		if p.Literal != "" {
			b.line("stp_put(c, %s, %d);", quote(p.Literal), len(p.Literal))
			b.work(costOperator*(4+len(p.Literal)/4), x.Tok)
		}
		return
	}
	arg := func(i int) string {
		if i < 0 || i >= len(args) {
			fail(x.Tok, "not enough arguments for the format")
		}
		return args[i]
	}
	width, prec := fmt.Sprint(p.Width), fmt.Sprint(p.Prec)
	if p.WidthArg {
		width = arg(p.WidthExpr)
	}
	if p.PrecArg {
		prec = arg(p.PrecExpr)
		prec = fmt.Sprintf("(%s < 0 ? 0 : %s)", prec, prec) // -1 would be none
	}
	var flags []string
	for _, f := range []struct {
		set  bool
		name string
	}{{p.Minus, "STP_MINUS"}, {p.Zero, "STP_ZERO"}, {p.Plus, "STP_PLUS"}, {p.Space, "STP_SPACE"}, {p.Alt, "STP_ALT"}} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	b.work(costCall, x.Tok)
	plain := len(flags) == 0 && width == "-1" && prec == "-1"
	if len(flags) == 0 {
		flags = []string{"0"}
	}
	flag := strings.Join(flags, " | ")
	switch p.Conv {
	case 's':
		if plain {
			b.line("stp_put_str(c, %s);", arg(p.Arg))
		} else {
			b.line("stp_fmt_str(c, %s, %s, %s, %s);", flag, width, prec, arg(p.Arg))
		}
	case 'd', 'i', 'u', 'x', 'X', 'o', 'p', 'c', 'b':
		if plain && (p.Conv == 'd' || p.Conv == 'i') {
			b.line("stp_put_int(c, %s);", arg(p.Arg))
		} else {
			b.line("stp_fmt_int(c, '%c', %s, %s, %s, %s);", p.Conv, flag, width, prec, arg(p.Arg))
		}
	case 'm', 'M':
		b.line("if (!stp_fmt_mem(c, '%c', %s, %s, %s, %s, %s)) {", p.Conv, flag, width, prec, arg(p.Arg), quote(where(x.Tok)))
		b.indent++
		b.line("stp_print_end(c);")
		b.line("%s", b.goTo(b.onError))
		b.indent--
		b.line("}")
	default:
		fail(x.Tok, "unsupported conversion %%%c", p.Conv)
	}
}
