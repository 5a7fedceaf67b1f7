package translate

import (
	"strings"

	"stapbox/core/script/ast"
)

// histograms finds the histogram of each global, which decides what is collected.
func (g *gen) histograms() {
	g.kinds = map[*ast.Var]*ast.Hist{}
	note := func(x ast.Expr) {
		if h, ok := x.(*ast.Hist); ok {
			if v, _ := operand(h.X); v != nil {
				g.kinds[v] = h
			}
		}
	}
	for _, f := range g.prog.Functions {
		if f.Body != nil {
			ast.Walk(f.Body, nil, note)
		}
	}
	for _, p := range g.prog.Probes {
		ast.Walk(p.Body, nil, note)
	}
}

// operand is the global that is aggregated or extracted from, and its indexes.
func operand(x ast.Expr) (*ast.Var, *ast.Index) {
	switch x := x.(type) {
	case *ast.Symbol:
		return x.Var, nil
	case *ast.Index:
		if s, ok := x.Array.(*ast.Symbol); ok {
			return s.Var, x
		}
	}
	return nil, nil
}

// kind writes what is collected of a statistics global.
func (g *gen) kind(v *ast.Var, name string) {
	log, buckets := 0, int64(0)
	args := []string{"0", "0", "1"}
	if h := g.kinds[v]; h != nil && h.Op == "hist_log" {
		log = 1
	} else if h != nil {
		var n [3]int64
		for i, a := range h.Args {
			x, ok := a.(*ast.Number)
			if !ok {
				fail(h.Tok, "the parameters of a histogram must be numbers")
			}
			n[i], args[i] = x.Value, number(x.Value)
		}
		buckets = int64(uint64(n[1]-n[0])/uint64(n[2])) + 3
	}
	g.printf("static const struct stp_stat_kind k%s = { %d, %d, %s };\n", name, log, buckets, strings.Join(args, ", "))
	if !v.IsArray() {
		size := buckets
		if log == 1 {
			size = 128
		}
		// The buckets follow the numbers.
		g.printf("static int64_t %s[%d]; /* %s */\n", name, 4+size, place(v.Tok))
	}
}

// stat writes a C expression for the aggregate behind x, and the kind of it.
func (b *body) stat(x ast.Expr, add bool, where string, use func(stat, kind string)) {
	v, index := operand(x)
	if v == nil || v.Type != ast.Stats {
		fail(x.Token(), "this is no statistics global")
	}
	name := b.gen.names[v]
	if index == nil {
		use("(struct stp_aggr *)"+name, "&k"+name)
		return
	}
	keys, _ := b.keys(v, index.Keys, false)
	making := 0
	if add {
		making = 1
	}
	b.line("{")
	b.indent++
	b.line("const union stp_key k[] = %s;", keys)
	b.line("struct stp_aggr *s = stp_map_stat(c, %s, k, %d, %s);\n", name, making, where)
	use("s", "&k"+name)
	b.indent--
	b.line("}")
}

// accumulate is X <<< R.
func (b *body) accumulate(x *ast.Assign) string {
	v := b.keep(ast.Long, b.value(x.R))
	b.stat(x.L, true, quote(where(x.L.Token())), func(stat, kind string) {
		if stat == "s" {
			b.line("if (!s)\n%s\t%s", strings.Repeat("\t", b.indent), b.goTo(b.onError))
		}
		b.line("stp_stat_add(%s, %s, %s);", stat, kind, v)
	})
	b.work(costCall, x.Tok)
	return v
}

func statOp(op string) string {
	switch op {
	case "sum":
		return "STP_SUM"
	case "min":
		return "STP_MIN"
	case "max":
		return "STP_MAX"
	case "avg":
		return "STP_AVG"
	}
	return "STP_COUNT"
}

// extract is @count(X) and its kin.
func (b *body) extract(x *ast.Stat) string {
	t := b.intTemp()
	at := quote(where(x.X.Token()))
	b.stat(x.X, false, at, func(stat, kind string) {
		b.line("%s = stp_stat_get(c, %s, %s, %s, %s);", t, stat, kind, statOp(x.Op), at)
	})
	if x.Op != "count" && x.Op != "sum" {
		b.check()
	}
	b.work(costCall, x.Tok)
	return t
}

func isLog(h *ast.Hist) int {
	if h.Op == "hist_log" {
		return 1
	}
	return 0
}

// bucket is @hist_log(X)[N].
func (b *body) bucket(x *ast.Index, h *ast.Hist) string {
	if len(x.Keys) != 1 || x.Keys[0] == nil {
		fail(x.Tok, "a histogram has one index")
	}
	n := b.keep(ast.Long, b.value(x.Keys[0]))
	t := b.intTemp()
	at := quote(where(x.Tok))
	b.stat(h.X, false, at, func(stat, kind string) {
		b.line("%s = stp_hist_get(c, %s, %s, %d, %s, %s);", t, stat, kind, isLog(h), n, at)
	})
	b.check()
	b.work(costCall, x.Tok)
	return t
}

// printHist is print(@hist_log(X)) and sprint(@hist_log(X)).
func (b *body) printHist(x *ast.Print, h *ast.Hist) string {
	at := quote(where(x.Tok))
	value, begin := "0LL", "stp_print_begin(c);"
	if x.String {
		value = b.strTemp()
		begin = "stp_sprint_begin(c, " + value + ");"
	}
	b.stat(h.X, false, at, func(stat, kind string) {
		b.line("%s", begin)
		b.line("stp_hist_print(c, %s, %s, %d, %s);", stat, kind, isLog(h), at)
		b.line("stp_print_end(c);")
	})
	b.check()
	return value
}

// foreachHist is a loop over the buckets of a histogram.
func (b *body) foreachHist(s *ast.Foreach, h *ast.Hist) {
	limit := ""
	if s.Limit != nil {
		limit = b.keep(ast.Long, b.value(s.Limit))
	}
	b.flush(1, s.Token())
	id := b.newLabel()
	v, _ := operand(h.X)
	if v == nil {
		fail(h.Tok, "this is no statistics global")
	}
	i := b.intTemp()
	b.line("for (%s = 0; %s < stp_hist_size(&k%s, %d); %s++) {", i, i, b.gen.names[v], isLog(h), i)
	b.indent++
	if limit != "" {
		b.line("if (%s >= %s)\n%s\tbreak;", i, limit, strings.Repeat("\t", b.indent))
	}
	b.pending = 1
	b.store(s.Keys[0], i)
	if s.Value != nil {
		t := b.intTemp()
		at := quote(where(h.Tok))
		b.stat(h.X, false, at, func(stat, kind string) {
			b.line("%s = stp_hist_get(c, %s, %s, %d, %s, %s);", t, stat, kind, isLog(h), i, at)
		})
		b.check()
		b.store(s.Value, t)
	}
	b.loops = append(b.loops, loop{id: id})
	b.round(s.Body, s.Token(), id, nil)
}
