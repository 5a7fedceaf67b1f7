package ast

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Dump writes the parsed form of files as stap -p1 does.
func Dump(w io.Writer, files ...*File) error {
	var b strings.Builder
	b.WriteString("# parse tree dump\n")
	for _, f := range files {
		fmt.Fprintf(&b, "# file %s\n", f.Source.Name)
		for _, c := range f.EmbedC {
			b.WriteString("%{" + c.Code + "%}\n")
		}
		for _, g := range f.Globals {
			b.WriteString("global " + GlobalString(g) + "\n")
		}
		for _, a := range f.Aliases {
			op := " = "
			if a.Epi {
				op = " += "
			}
			b.WriteString("probe " + Points(a.Names, ", ") + op + Points(a.Points, ", "))
			body := a.Prologue
			if a.Epi {
				body = a.Epilogue
			}
			b.WriteString(StmtString(body) + "\n")
		}
		for _, p := range f.Probes {
			b.WriteString("probe " + Points(p.Points, ","))
			b.WriteString(StmtString(p.Body) + "\n")
		}
		for _, fn := range f.Functions {
			var ps []string
			for _, p := range fn.Params {
				ps = append(ps, p.Name)
			}
			fmt.Fprintf(&b, "function %s (%s)\n", fn.Name, strings.Join(ps, ", "))
			if fn.C != nil {
				b.WriteString("%{" + fn.C.Code + "%}\n")
			} else {
				b.WriteString(StmtString(fn.Body) + "\n")
			}
		}
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// GlobalString is a global as its declaration shows it.
func GlobalString(g *Var) string {
	s := g.Name
	if g.Wrap {
		s += "%"
	}
	if g.MaxSize > 0 {
		s += "[" + strconv.FormatInt(g.MaxSize, 10) + "]"
	}
	if g.Init != nil {
		s += " = " + ExprString(g.Init)
	}
	return s
}

// Points is a list of probe points as written, with their conditions.
func Points(list []*Point, sep string) string {
	var out []string
	for _, p := range list {
		s := p.String()
		if p.Cond != nil {
			s += " if (" + ExprString(p.Cond) + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, sep)
}

// String is the probe point as written, with its ? or ! but without
// condition.
func (p *Point) String() string {
	s := p.Name()
	switch {
	case p.Sufficient:
		s += "!"
	case p.Optional:
		s += "?"
	}
	return s
}

// Name is the probe point alone.
func (p *Point) Name() string {
	var out []string
	for _, c := range p.Components {
		s := c.Name
		if c.Arg != nil {
			s += "(" + ExprString(c.Arg) + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, ".")
}

func keyList(keys []Expr) string {
	var out []string
	for _, k := range keys {
		if k == nil {
			out = append(out, "*")
		} else {
			out = append(out, ExprString(k))
		}
	}
	return strings.Join(out, ", ")
}

func path(list []PathPart) string {
	var b strings.Builder
	for _, p := range list {
		switch {
		case p.Index != nil:
			b.WriteString("[" + ExprString(p.Index) + "]")
		case p.Pretty > 0:
			b.WriteString("->" + strings.Repeat("$", p.Pretty))
		default:
			b.WriteString("->" + p.Member)
		}
	}
	return b.String()
}

// escape puts backslashes before quotes and backslashes; raw newlines of
// formats become \n.
func escape(s string) string {
	return strings.NewReplacer(`\"`, `\"`, `\`, `\\`, "\n", `\n`, "\t", `\t`).Replace(s)
}

// ExprString is an expression as -p1 shows it.
func ExprString(x Expr) string {
	switch x := x.(type) {
	case *Number:
		return strconv.FormatInt(x.Value, 10)
	case *Str:
		return `"` + x.Raw + `"`
	case *Embed:
		return "%{ " + x.C.Code + " %}"
	case *Binary:
		if x.Op == "." {
			l := ExprString(x.L)
			if x.Chain {
				l = strings.TrimSuffix(strings.TrimPrefix(l, "("), ")")
			}
			return "(" + l + " . " + ExprString(x.R) + ")"
		}
		if x.Op == "=~" || x.Op == "!~" {
			return "(" + ExprString(x.L) + ") " + x.Op + " " + ExprString(x.R)
		}
		return "(" + ExprString(x.L) + ") " + x.Op + " (" + ExprString(x.R) + ")"
	case *Unary:
		if t, ok := x.X.(*Target); ok && x.Op == "&" {
			return "&" + ExprString(t)
		}
		if t, ok := x.X.(*AtCast); ok && x.Op == "&" {
			return "&" + ExprString(t)
		}
		return x.Op + "(" + ExprString(x.X) + ")"
	case *IncDec:
		if x.Prefix {
			return x.Op + "(" + ExprString(x.X) + ")"
		}
		return "(" + ExprString(x.X) + ")" + x.Op
	case *Assign:
		return "(" + ExprString(x.L) + ") " + x.Op + " (" + ExprString(x.R) + ")"
	case *Ternary:
		return "(" + ExprString(x.Cond) + ")?(" + ExprString(x.Then) + "):(" + ExprString(x.Else) + ")"
	case *In:
		return "[" + keyList(x.Keys) + "] in " + ExprString(x.Array)
	case *Symbol:
		if x.Var != nil && x.Var.Kind == Global && !x.Var.Private {
			return "__global_" + x.Name
		}
		return x.Name
	case *Index:
		return ExprString(x.Array) + "[" + keyList(x.Keys) + "]"
	case *Call:
		return x.Name + "(" + keyList(x.Args) + ")"
	case *Print:
		s := x.Name + "("
		if x.Format || x.Delim {
			s += `"` + escape(x.Raw) + `"`
			if len(x.Args) > 0 {
				s += ", "
			}
		}
		return s + keyList(x.Args) + ")"
	case *Target:
		s := x.Name
		if len(x.Args) > 0 {
			s = `@var("` + strings.Join(x.Args, `", "`) + `")`
		}
		return s + path(x.Path)
	case *AtCast:
		s := "@cast(" + ExprString(x.X) + `, "` + x.CType + `"`
		if x.HasMd {
			s += `, "` + x.Module + `"`
		}
		return s + ")" + path(x.Path)
	case *AutoCast:
		return "(" + ExprString(x.X) + ")" + path(x.Path)
	case *AtOp:
		if x.Name == "const" {
			return "%{ /* pure */ /* unprivileged */ /* stable */ " + x.Args[0].(*Str).Raw + " %}"
		}
		return "@" + x.Name + "(" + keyList(x.Args) + ")"
	case *Stat:
		return "@" + x.Op + "(" + keyList(append([]Expr{x.X}, x.Args...)) + ")"
	case *Hist:
		return "@" + x.Op + "(" + keyList(append([]Expr{x.X}, x.Args...)) + ")"
	}
	return ""
}

// StmtString is a statement as -p1 shows it.
func StmtString(s Stmt) string {
	switch s := s.(type) {
	case *Block:
		var b strings.Builder
		b.WriteString("{\n")
		for _, q := range s.Stmts {
			b.WriteString(StmtString(q))
			b.WriteString(";\n")
		}
		b.WriteString("}")
		return b.String()
	case *Null:
		return ";"
	case *ExprStmt:
		return ExprString(s.X)
	case *If:
		out := "if (" + ExprString(s.Cond) + ") " + StmtString(s.Then) + "\n"
		if s.Else != nil {
			out += "else " + StmtString(s.Else) + "\n"
		}
		return out
	case *For:
		init, post := "", ""
		if s.Init != nil {
			init = ExprString(s.Init)
		}
		if s.Post != nil {
			post = ExprString(s.Post)
		}
		return "for (" + init + "; " + ExprString(s.Cond) + "; " + post + ") " + StmtString(s.Body)
	case *Foreach:
		mark := func(col int) string {
			if s.SortDir == 0 || s.SortColumn != col {
				return ""
			}
			if s.SortDir > 0 {
				return "+"
			}
			return "-"
		}
		var keys []string
		for i, k := range s.Keys {
			keys = append(keys, k.Name+mark(i+1))
		}
		out := "foreach ("
		if s.Value != nil {
			out += s.Value.Name + " = "
		}
		out += "[" + strings.Join(keys, ", ") + "] in " + ExprString(s.Array)
		if s.Slice != nil {
			out += "[" + keyList(s.Slice) + "]"
		}
		if s.SortAggr != "" {
			out += " @" + s.SortAggr
		}
		out += mark(0)
		if s.Limit != nil {
			out += " limit " + ExprString(s.Limit)
		}
		return out + ") " + StmtString(s.Body)
	case *Break:
		return "break"
	case *Continue:
		return "continue"
	case *Next:
		return "next"
	case *Return:
		if s.Value == nil {
			return "return"
		}
		return "return " + ExprString(s.Value)
	case *Delete:
		return "delete " + ExprString(s.X)
	case *TryCatch:
		out := "try {\n" + StmtString(s.Try) + "\n} catch "
		if s.Var != nil {
			out += "(" + s.Var.Name + ") "
		}
		return out + "{\n" + StmtString(s.Catch) + "\n}\n"
	case *EmbedStmt:
		return "%{ " + s.C.Code + " %}"
	}
	return ""
}
