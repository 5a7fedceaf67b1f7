package translate

import (
	"fmt"
	"strings"

	"stapbox/core/script/ast"
	"stapbox/core/script/check"
)

// KernelHeaders reports whether the unit of a program holds C of the script and
// includes the kernel's headers for it.
func KernelHeaders(p *check.Program) bool {
	if len(p.TopC) > 0 {
		return true
	}
	found := false
	look := func(s ast.Stmt) {
		ast.Walk(s, func(s ast.Stmt) {
			if _, ok := s.(*ast.EmbedStmt); ok {
				found = true
			}
		}, func(x ast.Expr) {
			if _, ok := x.(*ast.Embed); ok {
				found = true
			}
		})
	}
	for _, f := range p.Functions {
		if f.C != nil {
			found = found || embedded(f)
		} else {
			look(f.Body)
		}
	}
	for _, q := range p.Probes {
		look(q.Body)
	}
	return found
}

// embedded reports whether a function is C that becomes part of the unit: not
// one of the translator's own tapset, which the runtime has.
func embedded(f *ast.Function) bool {
	return f.C != nil && !(f.File != nil && f.File.Tapset && kernelFunctions(f.Name))
}

// WithoutEffect are the names of -D that are no limits, where the script has no C
// that could ask for them.
func WithoutEffect(p *check.Program, o Options) []string {
	l, err := parseLimits(o)
	if err != nil || KernelHeaders(p) {
		return nil
	}
	var names []string
	for _, d := range l.macros {
		name, _, _ := strings.Cut(d, "=")
		names = append(names, name)
	}
	return names
}

// defines writes what -D gives to the C of the script: before all headers, where
// an option of the compiler would have it. The last one of a name counts.
func (g *gen) defines() {
	values := map[string]string{}
	var names []string
	for _, d := range g.limits.macros {
		name, value, has := strings.Cut(d, "=")
		// Each becomes a line of C, which nothing else may become part of.
		word := strings.TrimPrefix(value, "-")
		if name == "" || name != cname(name) || name[0] <= '9' || has && (word == "" || word != cname(word)) {
			fail(nil, "-D %s is no NAME or NAME=VALUE", d)
		}
		if !has {
			value = "1"
		}
		if _, again := values[name]; !again {
			names = append(names, name)
		}
		values[name] = value
	}
	for _, n := range names {
		g.printf("#define %s %s\n", n, values[n])
	}
}

// topC writes C of the outermost level; that with pragma:suffix stands last.
func (g *gen) topC(suffix bool) {
	for _, e := range g.prog.TopC {
		if e.Has("pragma:suffix") == suffix {
			g.printf("/* %s */\n%s\n\n", place(e.Tok), e.Code)
		}
	}
}

// access defines the macros for the globals that C text names, calls write, and
// takes the macros away.
func (b *body) access(e *ast.EmbedC, write func()) {
	var names []string
	define := func(name, params, value string) {
		b.line("#define %s(%s) %s", name, params, value)
		names = append(names, name)
	}
	// parts are parameters and initializers of a tuple of keys.
	parts := func(v *ast.Var) (params []string, keys string) {
		var list []string
		for i, t := range v.Keys {
			p := fmt.Sprintf("k%d", i)
			field := "i"
			if t == ast.String {
				field = "s"
			}
			params = append(params, p)
			list = append(list, fmt.Sprintf("{ .%s = (%s) }", field, p))
		}
		return params, "const union stp_key stp_k[] = { " + strings.Join(list, ", ") + " };"
	}
	at := quote(where(e.Tok))
	for _, v := range e.Reads {
		macro, name := "STAP_GLOBAL_GET_"+cname(v.Name), b.gen.names[v]
		switch {
		case v.Type == ast.Stats:
			fail(e.Tok, "C text cannot read the statistics '%s'", v.Name)
		case v.IsArray():
			get := "stp_map_get"
			if v.Type == ast.String {
				get = "stp_map_get_str"
			}
			params, keys := parts(v)
			define(macro, strings.Join(params, ", "), fmt.Sprintf("({ %s %s(c, %s, stp_k); })", keys, get, name))
		default:
			define(macro, "", "("+name+")")
		}
	}
	for _, v := range e.Writes {
		macro, name := "STAP_GLOBAL_SET_"+cname(v.Name), b.gen.names[v]
		switch {
		case v.Type == ast.Stats:
			fail(e.Tok, "C text cannot write the statistics '%s'", v.Name)
		case v.IsArray():
			set := "stp_map_set"
			if v.Type == ast.String {
				set = "stp_map_set_str"
			}
			params, keys := parts(v)
			define(macro, strings.Join(append(params, "v"), ", "), fmt.Sprintf("({ %s %s(c, %s, stp_k, (v), %s); })", keys, set, name, at))
		case v.Type == ast.String:
			define(macro, "v", fmt.Sprintf("stp_strcpy(%s, (v))", name))
		default:
			define(macro, "v", fmt.Sprintf("(%s = (v))", name))
		}
	}
	write()
	for _, n := range names {
		b.line("#undef %s", n)
	}
}

// leaving defines STAP_ERROR, STAP_RETURN and STAP_NEXT as jumps to a label,
// calls write, and takes the macros away.
func (b *body) leaving(label, result, at string, write func()) {
	b.used[label] = true
	b.line("#define STAP_ERROR(...) do { stp_c_error(c, %s, __VA_ARGS__); goto %s; } while (0)", at, label)
	b.line("#define STAP_RETURN(...) do { %s goto %s; } while (0)", result, label)
	b.line("#define STAP_NEXT do { c->next = 1; goto %s; } while (0)", label)
	write()
	b.line("#undef STAP_ERROR")
	b.line("#undef STAP_RETURN")
	b.line("#undef STAP_NEXT")
}

// cFunction writes a function whose body is C. Arguments are copies that it may
// change.
func (g *gen) cFunction(f *ast.Function) string {
	if f.C.Has("unmangled") {
		lacks(f.C.Tok, "/* unmangled */ is not supported by the built-in translator: use STAP_ARG_ and STAP_RETVALUE")
	}
	b := g.newBody()
	b.fn = f
	b.locals(f.Params)
	for i, p := range f.Params {
		if p.Type == ast.String {
			b.line("stp_strcpy(%s, a%d);", b.names[p], i)
		} else {
			b.line("%s = a%d;", b.names[p], i)
		}
	}
	result := "__VA_OPT__(ret = (__VA_ARGS__);)"
	if f.Ret == ast.String {
		b.line("ret[0] = 0;")
		result = "__VA_OPT__(stp_strcpy(ret, (__VA_ARGS__));)"
	}
	b.line("#define STAP_RETVALUE ret")
	for _, p := range f.Params {
		b.line("#define STAP_ARG_%s (%s)", cname(p.Name), b.names[p])
	}
	b.leaving("out", result, quote(where(f.Tok)), func() {
		b.access(f.C, func() {
			fmt.Fprintf(b.buf, "{\n%s\n}\n", f.C.Code)
		})
	})
	b.line("#undef STAP_RETVALUE")
	for _, p := range f.Params {
		b.line("#undef STAP_ARG_%s", cname(p.Name))
	}
	name := "fn_" + cname(f.Unique)
	last, failed, ret := "\treturn ret;\n", "return 0;", "\tint64_t ret = 0;\n"
	if f.Ret == ast.String {
		last, failed, ret = "", "return;", ""
	}
	text, size := b.wrap(name, "/* "+place(f.Tok)+" */\n"+signature(f),
		ret+"\n\tl = stp_enter(c, sizeof(*l), where);\n\tif (!l)\n\t\t"+failed+"\n",
		"\tstp_leave(c, sizeof(*l), where);\n"+last)
	g.frames[f] = size
	return text
}

// embedStmt writes C between statements.
func (b *body) embedStmt(s *ast.EmbedStmt) {
	label := fmt.Sprintf("embed_%d", b.newLabel())
	b.leaving(label, "", quote(where(s.Tok)), func() {
		b.access(s.C, func() {
			fmt.Fprintf(b.buf, "{\n%s\n;}\n", s.C.Code) // an expression may stand there alone
		})
	})
	b.label(label)
	b.check()
}

// embed writes C that is a value.
func (b *body) embed(x *ast.Embed) string {
	str := x.C.Has("string")
	var t string
	if str {
		t = b.strTemp()
	} else {
		t = b.intTemp()
	}
	b.access(x.C, func() {
		if str {
			fmt.Fprintf(b.buf, "stp_strcpy(%s, (%s\n));\n", t, x.C.Code)
		} else {
			fmt.Fprintf(b.buf, "%s = (%s\n);\n", t, x.C.Code)
		}
	})
	if len(x.C.Writes) > 0 {
		b.check()
	}
	return t
}
