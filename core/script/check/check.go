package check

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"

	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/diag"
	"stapbox/core/script/token"
	"stapbox/core/script/upstream"
)

// Options is what a script is checked for.
type Options struct {
	// Privilege is the level of --privilege; zero means stapdev.
	Privilege privilege.Level
	// Guru is -g: embedded C and functions marked for it.
	Guru bool
	// NoGlobalDisplay leaves out the end probes for unread globals.
	NoGlobalDisplay bool
	// Unoptimized keeps code without effect (-u).
	Unoptimized bool
}

type checker struct {
	opts    Options
	user    []*ast.File
	library []*ast.File
	prog    *Program
	errs    []*diag.Diagnostic

	done    map[*ast.Function]bool
	queue   []*ast.Function
	order   []*ast.Function
	firstAt map[*ast.Var]*token.Token // where the arity was first inferred
	typeAt  map[any]*token.Token      // where a type was first inferred
	globals map[*ast.Var]bool         // in use

	files    map[*token.File]*ast.File
	selected map[*token.File]bool // library files that are part of the script
	fresh    []*ast.File          // of them, those whose probes are still to be derived

	globalsByName   map[string][]declared[*ast.Var]
	functionsByName map[string][]declared[*ast.Function]

	histograms map[*ast.Var]*ast.Hist // what is extracted of each global
	listing    bool                   // -l: what does not resolve is left out
	fixedRet   map[*ast.Function]bool // return type given in the source
	steps      int                    // probe points looked at
	copied     int                    // size of the handlers
	patterns   map[string]bool        // patterns of probe points that were looked up
	deleting   map[ast.Expr]bool      // operands of delete
}

// Check resolves and types the script: pass 2. user are the files of the
// script, library those of the tapset. The files are modified. The error is a
// *diag.List; the program carries the warnings in both cases.
func Check(user, library []*ast.File, opts Options) (*Program, error) {
	if opts.Privilege == privilege.None {
		opts.Privilege = privilege.All
	}
	c := &checker{opts: opts, user: user, library: library, prog: &Program{Privilege: opts.Privilege},
		done: map[*ast.Function]bool{}, firstAt: map[*ast.Var]*token.Token{}, typeAt: map[any]*token.Token{},
		globals: map[*ast.Var]bool{}}
	for _, step := range []func(){
		c.index, c.derive, c.duplicates, c.resolveAll, c.procfsFiles, c.privileges, c.neverAssigned, c.elide, c.constructs, c.types, c.display, c.finish,
	} {
		step()
		if len(c.errs) > 0 {
			c.sweep()
			return c.prog, &diag.List{Pass: 2, Errors: c.errs}
		}
	}
	return c.prog, nil
}

// maxMessages bounds what a hostile script can make the passes say.
const maxMessages = 200

func (c *checker) err(t *token.Token, format string, args ...any) *diag.Diagnostic {
	d := &diag.Diagnostic{Severity: diag.SemanticError, Message: fmt.Sprintf(format, args...), Tok: t}
	if len(c.errs) < maxMessages {
		c.errs = append(c.errs, d)
	}
	return d
}

func (c *checker) warn(t *token.Token, format string, args ...any) {
	if t != nil && t.Pos.File != nil && (t.Pos.File.Tapset || t.Pos.File.Library) || len(c.prog.Warnings) >= maxMessages {
		return
	}
	c.prog.Warnings = append(c.prog.Warnings, &diag.Diagnostic{Severity: diag.Warning, Message: fmt.Sprintf(format, args...), Tok: t})
}

func cause(t *token.Token, format string, args ...any) *diag.Diagnostic {
	return &diag.Diagnostic{Severity: diag.SemanticError, Message: fmt.Sprintf(format, args...), Tok: t}
}

// lack is the error about something that SystemTap has and this translator does
// not.
func lack(t *token.Token, what string) *diag.Diagnostic {
	d := cause(t, "%s is not supported by the built-in translator", what)
	d.Lacks = true
	return d
}

// lacks reports that, once for each place.
func (c *checker) lacks(t *token.Token, what string) {
	d := lack(t, what)
	for _, old := range c.errs {
		for ; old != nil; old = old.Cause {
			if old.Lacks && old.Message == d.Message && old.Tok == d.Tok {
				return
			}
		}
	}
	if len(c.errs) < maxMessages {
		c.errs = append(c.errs, d)
	}
}

// stapdev reports whether the script's level is stapdev.
func (c *checker) stapdev() bool { return c.opts.Privilege.Contains(privilege.StapDev) }

// duplicates looks for names declared twice in the files of the script.
func (c *checker) duplicates() {
	seen := map[string]*ast.Var{}
	for _, f := range c.user {
		for _, g := range f.Globals {
			if g.Private {
				continue
			}
			if old := seen[g.Name]; old != nil {
				c.err(g.Tok, "conflicting global variables").Tok2 = old.Tok
			}
			seen[g.Name] = g
		}
	}
}

// scope is where names are looked up.
type scope struct {
	file   *token.File
	params []*ast.Var
	locals []*ast.Var
	byName map[string]*ast.Var
}

func newScope(file *token.File, params []*ast.Var) *scope {
	s := &scope{file: file, params: params, byName: map[string]*ast.Var{}}
	for _, p := range params {
		s.byName[p.Name] = p
	}
	return s
}

// index prepares the look-up of names.
func (c *checker) index() {
	c.globalsByName = map[string][]declared[*ast.Var]{}
	c.functionsByName = map[string][]declared[*ast.Function]{}
	c.files, c.selected = map[*token.File]*ast.File{}, map[*token.File]bool{}
	for _, list := range [][]*ast.File{c.user, c.library} {
		for _, f := range list {
			c.files[f.Source] = f
			for _, g := range f.Globals {
				c.globalsByName[g.Name] = append(c.globalsByName[g.Name], declared[*ast.Var]{f.Source, g})
			}
			for _, fn := range f.Functions {
				c.functionsByName[fn.Name] = append(c.functionsByName[fn.Name], declared[*ast.Function]{f.Source, fn})
			}
		}
	}
}

// declared is something with the file that declares it.
type declared[T any] struct {
	file *token.File
	what T
}

// take makes a library file that declares something the script needs a part of
// it, with its probes and its C (stap(1), PROCESSING).
func (c *checker) take(file *token.File) {
	if file == nil || !file.Library || c.selected[file] {
		return
	}
	c.selected[file] = true
	c.fresh = append(c.fresh, c.files[file])
}

func (c *checker) global(file *token.File, name string) *ast.Var {
	var found declared[*ast.Var]
	for _, d := range c.globalsByName[name] {
		if d.file == file {
			return d.what
		}
		if !d.what.Private && found.what == nil {
			found = d
		}
	}
	c.take(found.file)
	if f := found.file; f != nil && f.Tapset && strings.HasPrefix(name, "arg") {
		c.prog.Arguments = true
	}
	return found.what
}

// functions are the candidates for a call, in the order they are tried.
func (c *checker) functions(file *token.File, name string) []*ast.Function {
	var out []*ast.Function
	for _, d := range c.functionsByName[name] {
		// The translator's own probes mean the translator's own functions.
		if (!d.what.Private || d.file == file) && (!file.Synthetic || d.file.Tapset) {
			out = append(out, d.what)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Priority < out[j].Priority })
	return out
}

func (c *checker) resolveAll() {
	for done := 0; ; {
		for ; done < len(c.prog.Probes); done++ {
			p := c.prog.Probes[done]
			s := newScope(p.Source.Tok.Pos.File, nil)
			if p.Cond != nil {
				c.condition(s, p)
			}
			foldDefined(p.Body)
			c.resolveStmt(s, p.Body)
			p.Locals = s.locals
		}
		c.resolveFunctions()
		if len(c.fresh) == 0 || len(c.errs) > 0 {
			break
		}
		for ; len(c.fresh) > 0; c.fresh = c.fresh[1:] {
			c.deriveFile(c.fresh[0])
		}
	}
	// Before all other probes of that priority.
	slices.SortStableFunc(c.prog.Probes, func(a, b *Probe) int { return cmp.Compare(argumentProbe(b), argumentProbe(a)) })
	for _, list := range [][]*ast.File{c.library, c.user} {
		for _, f := range list {
			if !f.Source.Library || c.selected[f.Source] {
				c.prog.TopC = append(c.prog.TopC, f.EmbedC...)
			}
		}
	}
}

// argumentProbe is 1 for the probe that sets argv, which all others may read.
func argumentProbe(p *Probe) int {
	if f := p.Source.Tok.Pos.File; f.Tapset && f.Library {
		return 1
	}
	return 0
}

func (c *checker) resolveFunctions() {
	for len(c.queue) > 0 {
		f := c.queue[0]
		c.queue = c.queue[1:]
		c.order = append(c.order, f)
		if f.C != nil {
			f.Next = strings.Contains(f.C.Code, "STAP_NEXT")
			c.pragmas(newScope(f.File, nil), f.C)
			continue
		}
		s := newScope(f.File, f.Params)
		foldDefined(f.Body)
		c.resolveStmt(s, f.Body)
		f.Locals = s.locals
	}
}

// pragmas resolves the globals that C text names.
func (c *checker) pragmas(s *scope, e *ast.EmbedC) {
	resolve := func(kind string) (list []*ast.Var) {
		for _, name := range e.Pragmas(kind) {
			v := c.global(s.file, name)
			if v == nil {
				c.err(e.Tok, "unresolved pragma:%s global %s", kind, name)
				continue
			}
			c.globals[v] = true
			list = append(list, v)
		}
		return list
	}
	e.Reads, e.Writes = resolve("read"), resolve("write")
}

// condition resolves the arming condition of a probe: globals only, without
// side effects.
func (c *checker) condition(s *scope, p *Probe) {
	ast.WalkExpr(p.Cond, func(x ast.Expr) {
		switch x := x.(type) {
		case *ast.Symbol:
			if c.global(s.file, x.Name) == nil {
				c.err(x.Tok, "probe condition must not reference undeclared global")
			}
		case *ast.Call:
			c.err(x.Tok, "probe condition must not reference function")
		case *ast.Assign, *ast.IncDec:
			c.err(x.Token(), "probe condition must not modify any variables")
		}
	})
	if len(c.errs) > 0 {
		return
	}
	c.resolveExpr(s, p.Cond)
	for _, q := range p.Source.Points {
		ast.WalkExpr(q.Cond, func(x ast.Expr) {
			if x, ok := x.(*ast.Symbol); ok && x.Var == nil {
				x.Var = c.global(s.file, x.Name) // listings show what it means
			}
		})
	}
}

func (c *checker) setArity(v *ast.Var, n int, at *token.Token) {
	if v.Arity < 0 {
		v.Arity = n
		c.firstAt[v] = at
		if n > 0 && v.Keys == nil {
			v.Keys = make([]ast.Type, n)
		}
		return
	}
	if v.Arity != n {
		first := c.firstAt[v]
		if first == nil && v.InitTok != nil {
			first = v.InitTok
		}
		if first == nil {
			first = v.Tok
		}
		c.err(at, "inconsistent arity (%d vs %d)", v.Arity, n).Cause = cause(first, "arity %d first inferred here", v.Arity)
	}
}

// symbol resolves a scalar use of a name.
func (c *checker) symbol(s *scope, x *ast.Symbol, scalar bool) {
	if x.Var != nil && x.Var.Kind == ast.Value {
		return
	}
	v := s.byName[x.Name]
	if v == nil {
		if v = c.global(s.file, x.Name); v != nil {
			c.globals[v] = true
		} else {
			v = &ast.Var{Name: x.Name, Tok: x.Tok, Kind: ast.Local, Arity: 0}
			s.byName[x.Name] = v
			s.locals = append(s.locals, v)
		}
	}
	x.Var = v
	if scalar {
		c.setArity(v, 0, x.Tok)
	}
}

// array resolves the name of an array with n indexes.
func (c *checker) array(s *scope, x ast.Expr, n int) {
	if h, ok := x.(*ast.Hist); ok {
		c.resolveExpr(s, h.X)
		return
	}
	sym, ok := x.(*ast.Symbol)
	if !ok {
		c.resolveExpr(s, x)
		return
	}
	v := c.global(s.file, sym.Name)
	if v == nil {
		c.err(sym.Tok, "unresolved arity-%d global array %s, missing global declaration?", n, sym.Name)
		return
	}
	c.globals[v] = true
	sym.Var = v
	c.setArity(v, n, sym.Tok)
}

func (c *checker) resolveStmt(s *scope, st ast.Stmt) {
	if st == nil || len(c.errs) > 100 {
		return
	}
	switch st := st.(type) {
	case *ast.Foreach:
		for _, k := range st.Keys {
			c.symbol(s, k, true)
		}
		if st.Value != nil {
			c.symbol(s, st.Value, true)
		}
		c.array(s, st.Array, len(st.Keys))
		if st.Slice != nil && len(st.Slice) != len(st.Keys) {
			c.err(st.Array.Token(), "unresolved arity-%d global array %s, missing global declaration?", len(st.Slice), ast.ExprString(st.Array))
		}
		for _, k := range st.Slice {
			c.resolveExpr(s, k)
		}
		c.resolveExpr(s, st.Limit)
		c.resolveStmt(s, st.Body)
		return
	case *ast.Delete:
		switch x := st.X.(type) {
		case *ast.Symbol:
			if s.byName[x.Name] == nil && c.global(s.file, x.Name) == nil {
				c.err(x.Tok, "unresolved array in delete statement")
				return
			}
			c.symbol(s, x, false)
		case *ast.Index:
			c.resolveExpr(s, x)
		default:
			c.err(x.Token(), "invalid operand of delete expression")
		}
		return
	case *ast.EmbedStmt:
		c.pragmas(s, st.C)
		return
	case *ast.TryCatch:
		c.resolveStmt(s, st.Try)
		if st.Var != nil {
			c.symbol(s, st.Var, true)
		}
		c.resolveStmt(s, st.Catch)
		return
	}
	es, ss := ast.StmtSlots(st)
	for i, e := range es {
		if f, ok := st.(*ast.For); ok && f.Post != nil && i == len(es)-1 {
			break
		}
		c.resolveExpr(s, *e)
	}
	if f, ok := st.(*ast.For); ok && f.Post != nil {
		c.resolveExpr(s, f.Post)
	}
	for _, q := range ss {
		c.resolveStmt(s, *q)
	}
}

func (c *checker) resolveExpr(s *scope, x ast.Expr) {
	switch x := x.(type) {
	case nil:
		return
	case *ast.Symbol:
		c.symbol(s, x, true)
		return
	case *ast.Embed:
		c.pragmas(s, x.C)
		return
	case *ast.AtOp:
		if x.Macro {
			return // what its arguments mean only the macro would tell
		}
	case *ast.Index:
		c.array(s, x.Array, len(x.Keys))
		for _, k := range x.Keys {
			c.resolveExpr(s, k)
		}
		return
	case *ast.In:
		for _, k := range x.Keys {
			c.resolveExpr(s, k)
		}
		c.array(s, x.Array, len(x.Keys))
		return
	case *ast.Call:
		for _, a := range x.Args {
			c.resolveExpr(s, a)
		}
		c.call(s, x)
		return
	}
	for _, q := range ast.Slots(x) {
		c.resolveExpr(s, *q)
	}
}

func (c *checker) lvalueOK(x ast.Expr) bool {
	switch x.(type) {
	case *ast.Symbol, *ast.Index, *ast.Target, *ast.AtCast, *ast.AutoCast:
		return true
	}
	return false
}

func (c *checker) lvalue(x ast.Expr, at *token.Token) {
	if !c.lvalueOK(x) {
		c.err(at, "Expecting lvalue for assignment").Tok2 = x.Token()
	}
}

func (c *checker) call(s *scope, x *ast.Call) {
	all := c.functions(s.file, x.Name)
	if len(all) == 0 && upstream.Function(x.Name) {
		c.lacks(x.Tok, "function "+x.Name)
		return
	}
	if len(all) == 0 {
		c.err(x.Tok, "unresolved function %s%s", x.Name, similar(x.Name, c.functionNames())).Unknown = true
		return
	}
	for _, f := range all {
		if len(f.Params) == len(x.Args) {
			x.Funcs = append(x.Funcs, f)
		}
	}
	if len(x.Funcs) == 0 {
		c.err(x.Tok, "arity mismatch found (function '%s' takes %d args)", x.Name, len(all[0].Params)).Tok2 = all[0].Tok
		return
	}
	// Only a function with a next statement passes on to a later one.
	for i, f := range x.Funcs {
		if !passesOn(f) {
			x.Funcs = x.Funcs[:i+1]
			break
		}
	}
	for _, f := range x.Funcs {
		// What a library calls, it is presumed to call safely.
		if f.C != nil && f.C.Has("guru") && !c.opts.Guru && !s.file.Tapset && !s.file.Library &&
			(c.opts.Privilege != privilege.StapUsr || unprivileged(f.C)) {
			c.err(x.Tok, "function may not be used unless -g is specified")
		}
		c.take(f.File)
		if !c.done[f] {
			c.done[f] = true
			c.queue = append(c.queue, f)
		}
	}
}

func passesOn(f *ast.Function) bool {
	if f.C != nil {
		return strings.Contains(f.C.Code, "STAP_NEXT")
	}
	found := false
	ast.Walk(f.Body, func(s ast.Stmt) {
		if _, ok := s.(*ast.Next); ok {
			found = true
		}
	}, nil)
	f.Next = found
	return found
}

func (c *checker) functionNames() []string {
	var names []string
	for _, list := range [][]*ast.File{c.user, c.library} {
		for _, f := range list {
			for _, fn := range f.Functions {
				if !strings.HasPrefix(fn.Name, "_") {
					names = append(names, fn.Name)
				}
			}
		}
	}
	return names
}

const maxSimilar = 400

// similar is " (similar: a, b)" with the up to five names nearest to name.
func similar(name string, names []string) string {
	type cand struct {
		name string
		d    int
	}
	if len(names) > maxSimilar {
		return "" // comparing is quadratic
	}
	seen := map[string]bool{}
	var list []cand
	for _, n := range names {
		if !seen[n] && n != "" {
			seen[n] = true
			list = append(list, cand{n, distance(name, n)})
		}
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].d != list[j].d {
			return list[i].d < list[j].d
		}
		return list[i].name < list[j].name
	})
	if len(list) > 5 {
		list = list[:5]
	}
	if len(list) == 0 {
		return ""
	}
	var out []string
	for _, l := range list {
		out = append(out, l.name)
	}
	return " (similar: " + strings.Join(out, ", ") + ")"
}

// distance is the Levenshtein distance of the first 64 bytes.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			prev, row[j] = row[j], min(row[j]+1, row[j-1]+1, prev+cost)
		}
	}
	return row[len(b)]
}

// bodies calls f for every probe body and function body in use.
func (c *checker) bodies(f func(body ast.Stmt, locals []*ast.Var)) {
	for _, p := range c.prog.Probes {
		f(p.Body, p.Locals)
	}
	for _, fn := range c.order {
		if fn.Body != nil {
			f(fn.Body, fn.Locals)
		}
	}
}

// uses collects which variables are read and which are written. A plain
// assignment and the clearing of a variable count as writes only.
type uses struct {
	read, written map[*ast.Var]bool
	script        bool // C text does not count
}

func newUses() *uses { return &uses{read: map[*ast.Var]bool{}, written: map[*ast.Var]bool{}} }

// c notes what C text says it uses.
func (u *uses) c(e *ast.EmbedC) {
	if u.script {
		return
	}
	for _, v := range e.Reads {
		u.read[v] = true
	}
	for _, v := range e.Writes {
		u.written[v] = true
	}
}

func (u *uses) stmt(s ast.Stmt) {
	ast.Walk(s, func(s ast.Stmt) {
		switch s := s.(type) {
		case *ast.EmbedStmt:
			u.c(s.C)
		case *ast.Foreach:
			for _, k := range s.Keys {
				u.written[k.Var] = true
				u.read[k.Var] = true // a loop needs its keys
			}
			if s.Value != nil {
				u.written[s.Value.Var] = true
				u.read[s.Value.Var] = true
			}
		case *ast.TryCatch:
			if s.Var != nil {
				u.written[s.Var.Var] = true
			}
		}
		es, _ := ast.StmtSlots(s)
		if d, ok := s.(*ast.Delete); ok {
			switch x := d.X.(type) {
			case *ast.Symbol:
				u.written[x.Var] = true
				u.read[x.Var] = true // as upstream counts it
			case *ast.Index:
				if sym, ok := x.Array.(*ast.Symbol); ok {
					u.written[sym.Var] = true
					u.read[sym.Var] = true
				}
				for _, k := range x.Keys {
					u.expr(k, true)
				}
			}
			return
		}
		es0 := es
		for _, e := range es0 {
			_, drop := s.(*ast.ExprStmt)
			u.expr(*e, !drop)
		}
	}, nil)
}

// target marks the variable an lvalue stores to.
func (u *uses) target(x ast.Expr, alsoRead bool) bool {
	switch x := x.(type) {
	case *ast.Symbol:
		u.written[x.Var] = true
		if alsoRead {
			u.read[x.Var] = true
		}
		return true
	case *ast.Index:
		if sym, ok := x.Array.(*ast.Symbol); ok {
			u.written[sym.Var] = true
			if alsoRead {
				u.read[sym.Var] = true
			}
		} else {
			u.expr(x.Array, true)
		}
		for _, k := range x.Keys {
			u.expr(k, true)
		}
		return true
	}
	return false
}

// expr notes the uses in x; used says whether the value matters.
func (u *uses) expr(x ast.Expr, used bool) {
	switch x := x.(type) {
	case nil:
		return
	case *ast.Symbol:
		u.read[x.Var] = true
		return
	case *ast.Embed:
		u.c(x.C)
		return
	case *ast.Assign:
		sym, ok := x.L.(*ast.Symbol)
		if u.target(x.L, x.Op != "=" && x.Op != "<<<" && (used || ok && sym.Var.Kind != ast.Global)) {
			u.expr(x.R, true)
			return
		}
	case *ast.IncDec:
		sym, ok := x.X.(*ast.Symbol)
		if u.target(x.X, used || ok && sym.Var.Kind != ast.Global) {
			return
		}
	}
	for _, s := range ast.Slots(x) {
		u.expr(*s, true)
	}
}

func (c *checker) uses() *uses { return c.collect(newUses()) }

func (c *checker) collect(u *uses) *uses {
	for _, p := range c.prog.Probes {
		u.expr(p.Cond, true)
	}
	c.bodies(func(b ast.Stmt, _ []*ast.Var) { u.stmt(b) })
	for _, f := range c.order {
		if f.C != nil {
			u.c(f.C)
		}
	}
	return u
}

// neverAssigned warns about variables that are read and never written.
func (c *checker) neverAssigned() {
	u := c.uses()
	var names []string
	var globals []*ast.Var
	for _, f := range c.user {
		for _, g := range f.Globals {
			names = append(names, g.Name)
			globals = append(globals, g)
		}
	}
	for _, g := range globals {
		if u.read[g] && !u.written[g] && g.Init == nil {
			c.warn(g.Tok, "never-assigned global variable '%s'%s", g.Name, similar(g.Name, names))
		}
	}
	c.bodies(func(_ ast.Stmt, locals []*ast.Var) {
		for _, v := range locals {
			if !u.read[v] || u.written[v] {
				continue
			}
			var others []string
			for _, o := range locals {
				if o != v && len(locals) <= maxSimilar {
					others = append(others, o.Name)
				}
			}
			switch n, numbered := strings.CutPrefix(v.Name, "argv_"); {
			case upstream.Global(v.Name):
				c.lacks(v.Tok, "variable "+v.Name)
				continue
			case numbered && n != "" && strings.Trim(n, "0123456789") == "":
				c.err(v.Tok, "no variable %s: there are argv_1 to argv_32", v.Name)
				continue
			}
			c.warn(v.Tok, "never-assigned local variable '%s'%s", v.Name, similar(v.Name, others))
		}
	})
}
