package check

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"stapbox/core/script/ast"
)

// Dump writes the elaborated form as stap -p2 does; verbose adds the bodies,
// as -p2 -v.
func (p *Program) Dump(w io.Writer, verbose bool) error {
	var b strings.Builder
	if len(p.TopC) > 0 {
		b.WriteString("# global embedded code\n")
		for _, e := range p.TopC {
			b.WriteString("%{" + e.Code + "%}\n")
		}
	}
	if len(p.Globals) > 0 {
		b.WriteString("# globals\n")
		for _, g := range p.Globals {
			b.WriteString(varString(g) + "\n")
		}
	}
	if len(p.Functions) > 0 {
		b.WriteString("# functions\n")
		for _, f := range p.Functions {
			var ps []string
			for _, v := range f.Params {
				ps = append(ps, varString(v))
			}
			fmt.Fprintf(&b, "%s:%s (%s)\n", f.Name, f.Ret, strings.Join(ps, ", "))
			locals(&b, f.Locals)
			if verbose {
				if f.C != nil {
					b.WriteString("%{" + f.C.Code + "%}\n")
				} else {
					b.WriteString(ast.StmtString(f.Body) + "\n")
				}
			}
		}
	}
	if len(p.Probes) > 0 {
		b.WriteString("# probes\n")
		for _, q := range p.Probes {
			cond := ""
			if q.Cond != nil {
				cond = " if (" + ast.ExprString(q.Cond) + ")"
			}
			from := arrows(q.Derivation)
			if n := len(q.Derivation); n > 0 && !q.Synthetic {
				from = arrows(append(slices.Clone(q.Derivation[:n-1]), ast.Points(q.Source.Points, ",")))
			}
			fmt.Fprintf(&b, "%s%s /* %s */ \n", q.Point, cond, from)
			locals(&b, q.Locals)
			if verbose {
				b.WriteString(ast.StmtString(q.Body) + "\n")
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func locals(b *strings.Builder, list []*ast.Var) {
	if len(list) == 0 {
		return
	}
	b.WriteString("  # locals\n")
	for _, v := range list {
		b.WriteString("  " + varString(v) + "\n")
	}
}

// varString is name[size]:type [key types].
func varString(v *ast.Var) string {
	s := v.Name
	if v.Wrap {
		s += "%"
	}
	if v.MaxSize > 0 {
		s += fmt.Sprintf("[%d]", v.MaxSize)
	}
	s += ":" + v.Type.String()
	if len(v.Keys) > 0 {
		var ks []string
		for _, k := range v.Keys {
			ks = append(ks, k.String())
		}
		s += " [" + strings.Join(ks, ", ") + "]"
	}
	return s
}
