package check

import (
	"fmt"
	"strings"

	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/token"
)

// MaxProcfsSize bounds .maxsize(N), memory that is taken for every file.
const MaxProcfsSize = 16 << 20

// defaultUmask makes files of procfs probes their owner's.
const defaultUmask = 0o077

// procfs resolves procfs[("PATH")][.umask(N)].read[.maxsize(N)] and .write
// (stapprobes(3stap), PROCFS).
func (c *checker) procfs(q *ast.Point) (*Probe, string, *diag.Diagnostic) {
	first := q.Components[0]
	fail := func(at *token.Token, format string, args ...any) (*Probe, string, *diag.Diagnostic) {
		return nil, "", cause(at, format, args...)
	}
	p := &Probe{Path: "command", Umask: defaultUmask}
	point := "procfs"
	if first.Arg != nil {
		s, ok := first.Arg.(*ast.Str)
		if !ok {
			return fail(first.Tok, "probe point mismatch%s", similar(first.Name, c.pointNames()))
		}
		p.Path = s.Value
		point = fmt.Sprintf("procfs(%s)", ast.ExprString(s))
	}
	// number takes the argument of a component that must have one.
	number := func(k *ast.Component) (int64, bool) {
		n, ok := k.Arg.(*ast.Number)
		if !ok {
			return 0, false
		}
		point += fmt.Sprintf(".%s(%d)", k.Name, n.Value)
		return n.Value, true
	}
	rest := q.Components[1:]
	follow := []string{"read", "umask", "write"}
	if len(rest) > 0 && rest[0].Name == "umask" {
		n, ok := number(rest[0])
		if !ok {
			return fail(rest[0].Tok, "probe point mismatch%s", similar("umask", follow))
		}
		p.Umask, rest, follow = n, rest[1:], []string{"read", "write"}
	}
	if len(rest) == 0 {
		if len(follow) == 3 {
			follow[1] = "umask(number)"
		}
		return fail(q.Components[len(q.Components)-1].Tok, "probe point truncated (follow:  %s)", strings.Join(follow, " "))
	}
	last := rest[0]
	switch {
	case last.Name == "read" && last.Arg == nil:
		p.Kind = ProcfsRead
	case last.Name == "write" && last.Arg == nil:
		p.Kind = ProcfsWrite
	default:
		return fail(last.Tok, "probe point mismatch%s", similar(last.Name, follow))
	}
	point += "." + last.Name
	rest = rest[1:]
	if len(rest) > 0 && p.Kind == ProcfsRead && rest[0].Name == "maxsize" {
		n, ok := number(rest[0])
		switch {
		case !ok:
			return fail(rest[0].Tok, "probe point mismatch%s", similar("maxsize", []string{"maxsize"}))
		case n <= 0:
			return fail(nil, "maxsize must be greater than 0")
		case n > MaxProcfsSize:
			return fail(nil, "maxsize must not be greater than %d", MaxProcfsSize)
		}
		p.MaxSize, last, rest = n, rest[0], rest[1:]
	}
	if len(rest) > 0 {
		return fail(rest[0].Tok, "invalid suffix for probe")
	}
	if c.opts.Privilege == privilege.StapUsr {
		return nil, "", c.forbidden(q)
	}
	if d := procfsPath(p.Path, first.Tok); d != nil {
		return nil, "", d
	}
	if p.Umask < 0 || p.Umask > 0o777 {
		return fail(nil, "umask %#o is not between 0 and 0777", p.Umask)
	}
	return p, point, nil
}

// procfsPath holds a path against what the kernel takes and against the
// module's own files.
func procfsPath(path string, at *token.Token) *diag.Diagnostic {
	switch {
	case strings.HasPrefix(path, "/"):
		return cause(at, "procfs path cannot start with a '/'")
	case path == "" || strings.HasSuffix(path, "/"):
		return cause(at, "procfs path cannot end with a '/'")
	case len(path) > 255:
		return cause(at, "procfs path is longer than 255 bytes")
	}
	for i, part := range strings.Split(path, "/") {
		switch {
		case part == "." || part == "..":
			return cause(at, "procfs path cannot be relative (and contain '.' or '..')")
		case part == "":
			return cause(at, "procfs path cannot contain '//'")
		case strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return cause(at, "procfs path cannot contain control characters")
		case i == 0 && ownFile(part):
			return cause(at, "procfs path %q is a file of the runtime", path)
		}
	}
	return nil
}

// ownFile reports whether name is one that every module may have.
func ownFile(name string) bool {
	if n, ok := strings.CutPrefix(name, "trace"); ok {
		return n != "" && strings.Trim(n, "0123456789") == ""
	}
	return name == ".cmd" || name == "monitor_status" || name == "monitor_control"
}

// procfsFiles refuses a file that is also a directory.
func (c *checker) procfsFiles() {
	paths := map[string]bool{}
	for _, p := range c.prog.Probes {
		if p.Value != nil {
			paths[p.Path] = true
		}
	}
	for _, p := range c.prog.Probes {
		for dir := p.Path; p.Value != nil && strings.Contains(dir, "/"); {
			dir = dir[:strings.LastIndex(dir, "/")]
			if paths[dir] {
				c.err(p.tok, "procfs path %q is a file and a directory", dir)
				break
			}
		}
	}
}

// value replaces $value in the body of a procfs probe by a variable.
func (c *checker) value(p *Probe) {
	p.Value = &ast.Var{Name: "$value", Tok: p.tok, Kind: ast.Value, Type: ast.String}
	fold(p.Body, true)
	var fix func(q *ast.Expr, stored bool)
	fix = func(q *ast.Expr, stored bool) {
		x, ok := (*q).(*ast.Target)
		if !ok {
			switch x := (*q).(type) {
			case *ast.Assign:
				_, target := x.L.(*ast.Target)
				if target && x.Op != "=" && x.Op != ".=" {
					c.err(x.L.Token(), "Only the following assign operators are implemented on procfs read target variables: '=', '.='")
					return
				}
				fix(&x.L, true)
				fix(&x.R, false)
				return
			case *ast.IncDec:
				if _, target := x.X.(*ast.Target); target {
					c.err(x.X.Token(), "Only the following assign operators are implemented on procfs read target variables: '=', '.='")
					return
				}
			}
			for _, s := range ast.Slots(*q) {
				fix(s, false)
			}
			return
		}
		switch {
		case x.Name != "$value" || len(x.Path) > 0:
			c.err(x.Tok, "invalid target symbol for procfs probe, $value expected")
		case stored && p.Kind == ProcfsWrite:
			c.err(x.Tok, "procfs $value variable is read-only in a procfs write probe")
		case !stored && p.Kind == ProcfsRead:
			c.err(x.Tok, "procfs $value variable cannot be read in a procfs read probe")
		default:
			*q = &ast.Symbol{ExprBase: ast.ExprBase{Tok: x.Tok}, Name: x.Name, Var: p.Value}
		}
	}
	ast.Walk(p.Body, func(s ast.Stmt) {
		es, _ := ast.StmtSlots(s)
		for _, e := range es {
			fix(e, false)
		}
	}, nil)
}
