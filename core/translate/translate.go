// Package translate turns a checked script into the C text of its script unit:
// the one source that is compiled per script. It includes only the flat header
// of core/kruntime and is linked with the objects compiled from there.
//
// Shape of the unit: one static variable per global, one static function per
// script function and probe handler, a table of probes, arrays and locks, and
// struct stp_script with the limits. Locals live in a frame taken from memory
// of the CPU's context, not on the kernel stack. Every statement that can fail
// is followed by a jump to the innermost handler of errors: the end of the
// function, a catch, or the end of a foreach that has to be left properly.
//
// Nothing but embedded C, which only guru mode and tapsets have, reaches the C
// text as it was written: names get a
// prefix, texts are octal escapes for all but plain characters, comments are
// reduced to harmless characters.
//
// Counting of statements (MAXACTION) follows what upstream 5.6 is seen to do:
// simple statements are counted when control flow is next reached, and the
// error names the statement there. Other work - calls, conversions, operators -
// is charged apart from it (core/kruntime/c/stp.h, "limits"), so that it does not
// change that count: by the runtime where it depends on lengths, by charges in the
// unit for what an expression costs in any case (cost.go).
package translate

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"stapbox/core/kruntime"
	"stapbox/core/privilege"
	"stapbox/core/script/ast"
	"stapbox/core/script/check"
	"stapbox/core/script/parser"
	"stapbox/core/script/token"
)

// Error is a construct of the script that has no translation.
type Error struct {
	Tok  *token.Token
	Text string
	// Lacks tells that SystemTap has a translation.
	Lacks bool
}

func (e *Error) Error() string {
	if e.Tok == nil {
		return e.Text
	}
	return fmt.Sprintf("%s: %s", e.Text, where(e.Tok))
}

// Options are what a translation depends on beside the program.
type Options struct {
	// Defines are the arguments of -D, NAME or NAME=VALUE. Names that are no
	// limit of the runtime are macros for the C of the script.
	Defines []string
	// SuppressHandlerErrors is --suppress-handler-errors.
	SuppressHandlerErrors bool
	// SuppressTimeLimits is --suppress-time-limits, which guru mode alone may
	// have: no MAXACTION, MAXTIME, MAXTRYLOCK and STP_OVERLOAD.
	SuppressTimeLimits bool
}

// maxLocks is what stp_probe.nlocks holds.
const maxLocks = 1<<16 - 1

// maxKeys is the number of indexes an array may have (map.c).
const maxKeys = 13

// maxFrame is the most a C function of a unit may take of the kernel stack: the
// compiler refuses others. The runtime calls into a unit only while as much is
// left, and stackReserve is that and what the runtime takes below.
const (
	maxFrame     = 2048
	stackReserve = 4096
)

// Flags are for the compiler of a unit. Where a script makes the flow of control
// branch often, gcc moves the end of a block's variables to a later place, and
// then has hundreds of short lists of indexes on the stack at once.
var Flags = []string{"-fno-tree-sink"}

// gen writes one unit.
type gen struct {
	prog   *check.Program
	limits *limits

	out    strings.Builder
	names  map[*ast.Var]string // C expression of a global
	number map[*ast.Var]int    // globals: place in the lock table
	arrays []*ast.Var
	frames map[*ast.Function]int // bytes, after translation
	calls  map[*ast.Function][]*ast.Function
	funcs  map[*ast.Function]bool
	timers bool
	files  []*procfsFile
	kinds  map[*ast.Var]*ast.Hist // statistics: the histogram of a global, if it has one
}

// procfsFile is a file of procfs probes.
type procfsFile struct {
	path       string
	mode, size int64
}

// file finds or makes the file of a procfs probe, and answers its number.
func (g *gen) file(p *check.Probe) int {
	i := slices.IndexFunc(g.files, func(f *procfsFile) bool { return f.path == p.Path })
	if i < 0 {
		i = len(g.files)
		g.files = append(g.files, &procfsFile{path: p.Path, size: 1})
	}
	f := g.files[i]
	if p.Kind == check.ProcfsRead {
		f.mode |= 0o444 &^ p.Umask
		size := p.MaxSize
		if size == 0 {
			size = g.limits.procfsSize
		}
		f.size = max(f.size, size)
	} else {
		f.mode |= 0o222 &^ p.Umask
	}
	return i
}

// stdin is the file that stapio writes standard input to.
const stdin = "__stdin"

// procfs writes the table of files. What stap has to know, that the script reads
// standard input, is in the module's information.
func (g *gen) procfs() {
	g.printf("const struct stp_procfs stp_procfs[] = {\n")
	for _, f := range g.files {
		bytes := 0
		if f.path == stdin {
			bytes = 1
		}
		g.printf("\t{ %s, %d, %d, %d },\n", quote(f.path), f.size, f.mode, bytes)
	}
	g.printf("};\nconst unsigned int stp_nprocfs = %d;\n\n", len(g.files))
	if slices.ContainsFunc(g.files, func(f *procfsFile) bool { return f.path == stdin }) {
		g.printf("STP_MODINFO(\"stapbox_stdin=1\");\n")
	}
}

// Translate answers the C text of the script unit.
func Translate(p *check.Program, o Options) (text []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(*Error)
			if !ok {
				panic(r)
			}
			text, err = nil, e
		}
	}()
	l, err := parseLimits(o)
	if err != nil {
		return nil, err
	}
	g := &gen{prog: p, limits: l, names: map[*ast.Var]string{}, number: map[*ast.Var]int{},
		frames: map[*ast.Function]int{}, calls: map[*ast.Function][]*ast.Function{}, funcs: map[*ast.Function]bool{}}
	g.unit()
	return []byte(g.out.String()), nil
}

func fail(tok *token.Token, format string, args ...any) {
	panic(&Error{Tok: tok, Text: fmt.Sprintf(format, args...)})
}

// lacks is fail for what SystemTap has a translation of.
func lacks(tok *token.Token, format string, args ...any) {
	panic(&Error{Tok: tok, Text: fmt.Sprintf(format, args...), Lacks: true})
}

// where describes a token the way run-time errors do.
func where(t *token.Token) string {
	if t == nil {
		return "unknown"
	}
	switch t.Kind {
	case token.Ident, token.Operator, token.String, token.Number:
		return fmt.Sprintf("%s '%s' at %s", t.Kind, t.Text, t.Pos)
	}
	return fmt.Sprintf("%s at %s", t.Kind, t.Pos)
}

// quote makes a C string literal. Only characters without any meaning in C
// stay as they are; octal escapes always have three digits.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case ch == '\n':
			b.WriteString(`\n`)
		case ch < ' ' || ch > '~' || ch == '"' || ch == '\\' || ch == '?' || ch == '%':
			fmt.Fprintf(&b, `\%03o`, ch)
		default:
			b.WriteByte(ch)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// place is the position of a token for a comment.
func place(t *token.Token) string {
	if t == nil {
		return "made by the translator"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'A' && r <= 'Z', r >= 'a' && r <= 'z', strings.ContainsRune("_.-:<>", r):
			return r
		}
		return '_'
	}, t.Pos.String())
}

// cname makes a name safe as the rest of a C identifier.
func cname(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '_' {
			return r
		}
		return '_'
	}, s)
}

func number(v int64) string {
	switch {
	case v == -1<<63:
		return "(-9223372036854775807LL - 1)"
	case v < 0:
		return fmt.Sprintf("(%dLL)", v)
	}
	return fmt.Sprintf("%dLL", v)
}

func (g *gen) printf(format string, args ...any) { fmt.Fprintf(&g.out, format, args...) }

func (g *gen) unit() {
	g.printf("/* The script unit of one script, written by core/translate. */\n")
	g.printf("#pragma GCC diagnostic ignored \"-Wunused-but-set-variable\"\n")
	g.printf("#pragma GCC diagnostic error \"-Wframe-larger-than=%d\"\n", maxFrame)
	header := kruntime.HeaderName
	if KernelHeaders(g.prog) {
		header = kruntime.EmbedHeaderName
		g.defines()
		g.printf("#pragma GCC diagnostic ignored \"-Wunused-label\"\n")
	}
	g.printf("#define STP_MAXSTRINGLEN %d\n#include \"%s\"\n\n", g.limits.stringLen, header)
	g.topC(false)
	g.histograms()
	g.globals()
	var bodies strings.Builder
	for _, f := range g.prog.Functions {
		g.funcs[f] = true
	}
	for _, f := range g.prog.Functions {
		if f.C == nil || embedded(f) {
			g.printf("%s;\n", signature(f))
		}
	}
	for _, f := range g.prog.Functions {
		switch {
		case f.C == nil:
			bodies.WriteString(g.function(f))
		case embedded(f):
			bodies.WriteString(g.cFunction(f))
		}
	}
	g.printf("\n%s", bodies.String())
	g.probes()
}

func signature(f *ast.Function) string {
	args := []string{"struct stp_context *c", "const char *where"}
	result := "int64_t"
	if f.Ret == ast.String {
		result = "void"
		args = append(args, "char *ret")
	}
	for i, p := range f.Params {
		if p.Type == ast.String {
			args = append(args, fmt.Sprintf("const char *a%d", i))
		} else {
			args = append(args, fmt.Sprintf("int64_t a%d", i))
		}
	}
	return fmt.Sprintf("static %s fn_%s(%s)", result, cname(f.Unique), strings.Join(args, ", "))
}

func (g *gen) globals() {
	for i, v := range g.prog.Globals {
		g.number[v] = i
		name := v.Unique
		if name == "" {
			name = v.Name
		}
		c := "g_" + cname(name)
		g.names[v] = c
		switch {
		case v.Type == ast.Stats && !v.IsArray():
			g.kind(v, c)
		case v.IsArray():
			if v.Type == ast.Stats {
				g.kind(v, c)
			}
			if v.Arity > maxKeys {
				fail(v.Tok, "an array may have at most %d indexes, not %d", maxKeys, v.Arity)
			}
			g.arrays = append(g.arrays, v)
			g.printf("static struct stp_map *%s; /* %s */\n", c, place(v.Tok))
		case v.Type == ast.String:
			init := ""
			if s, ok := v.Init.(*ast.Str); ok {
				init = s.Value
			}
			if max := int(g.limits.stringLen) - 1; len(init) > max {
				init = init[:max]
			}
			g.printf("static char %s[STP_MAXSTRINGLEN] = %s; /* %s */\n", c, quote(init), place(v.Tok))
			if v.Settable {
				g.printf("STP_PARAM_STRING(%s, %s);\n", c, quote(v.Name))
			}
		default:
			var init int64
			if n, ok := v.Init.(*ast.Number); ok {
				init = n.Value
			}
			g.printf("static int64_t %s = %s; /* %s */\n", c, number(init), place(v.Tok))
			if v.Settable {
				g.printf("STP_PARAM_LONG(%s, %s);\n", c, quote(v.Name))
			}
		}
	}
	g.printf("\n")
}

// handled are the probes that get a handler, in the order of the table: begin,
// end and error probes by priority. Of equal priority those written alike, begin
// or begin(0), stand together, as with upstream.
func (g *gen) handled() []*check.Probe {
	var out []*check.Probe
	first := map[string]int{}
	for i, p := range g.prog.Probes {
		if p.Kind == check.Never {
			continue
		}
		out = append(out, p)
		if _, ok := first[p.Point]; !ok {
			first[p.Point] = i
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		if out[i].Kind != out[j].Kind {
			return out[i].Kind < out[j].Kind
		}
		if out[i].Kind >= check.Timer {
			return false
		}
		if out[i].Priority != out[j].Priority {
			return out[i].Priority < out[j].Priority
		}
		return first[out[i].Point] < first[out[j].Point]
	})
	return out
}

func (g *gen) probes() {
	probes := g.handled()
	written := map[*ast.Var]bool{}
	sorted := make([]map[*ast.Var]bool, len(probes))
	if g.limits.monitor { // which clears all globals
		for _, v := range g.prog.Globals {
			written[v] = true
		}
	}
	for i, p := range probes {
		sorted[i] = g.sortedArrays(p)
		for _, v := range p.Writes {
			written[v] = true
		}
		for v := range sorted[i] {
			written[v] = true
		}
	}
	bit := map[bool]int{true: 1}
	var table, run, locks strings.Builder
	nlocks, frame := 0, 0
	for i, p := range probes {
		text, size, callees := g.probe(i, p)
		g.out.WriteString(text)
		frame = max(frame, size+g.deepest(callees))
		first := nlocks
		for _, l := range g.locks(p, written, sorted[i]) {
			fmt.Fprintf(&locks, "\t%s,\n", l)
			nlocks++
		}
		if nlocks-first > maxLocks {
			fail(p.Source.Tok, "probe uses %d globals, more than %d", nlocks-first, maxLocks)
		}
		kind := map[check.Kind]string{check.Begin: "STP_BEGIN", check.End: "STP_END", check.Error: "STP_ERROR", check.Timer: "STP_TIMER",
			check.ProcfsRead: "STP_PROCFS_READ", check.ProcfsWrite: "STP_PROCFS_WRITE"}[p.Kind]
		interval, randomize := p.Priority, int64(0)
		if p.Kind == check.Timer {
			g.timers = true
			interval, randomize = p.Interval, p.Randomize
		}
		if p.Value != nil {
			interval = int64(g.file(p))
		}
		name := p.Point // as the script wrote it
		if n := len(p.Derivation); n > 0 {
			name = p.Derivation[n-1]
		}
		flags := "0"
		if p.Kind == check.Timer && p.Unit == check.Jiffies {
			flags = "STP_JIFFIES"
		}
		if p.EveryCPU {
			flags += " | STP_EVERY_CPU"
		}
		fmt.Fprintf(&table, "\t{ %s, %s, %d, %d, %s, %s, %s, %s },\n", kind, flags, nlocks-first, first,
			number(interval), number(randomize), quote(p.Point), quote(name))
		fmt.Fprintf(&run, "\tcase %d:\n\t\tprobe_%d(c);\n\t\tbreak;\n", i, i)
	}
	count := len(probes)
	if g.limits.monitor {
		for _, m := range []struct {
			kind, file, call string
			mode, size       int64
			lock             string
		}{
			{"STP_PROCFS_READ", "monitor_status", "stp_monitor_status", 0o400, monitorSize, ""},
			{"STP_PROCFS_WRITE", "monitor_control", "stp_monitor_control", 0o200, 1, " | STP_LOCK_WRITE"},
		} {
			if len(g.prog.Globals) > maxLocks {
				fail(nil, "the script has %d globals, more than %d", len(g.prog.Globals), maxLocks)
			}
			fmt.Fprintf(&table, "\t{ %s, 0, %d, %d, %d, 0, %s, %s },\n", m.kind, len(g.prog.Globals), nlocks, len(g.files), quote(m.file), quote(m.file))
			for n := range g.prog.Globals {
				fmt.Fprintf(&locks, "\t%d%s,\n", n, m.lock)
				nlocks++
			}
			g.files = append(g.files, &procfsFile{m.file, m.mode, m.size})
			fmt.Fprintf(&run, "\tcase %d:\n\t\t%s(c);\n\t\tbreak;\n", count, m.call)
			count++
		}
	}
	if g.limits.timing {
		// Behind all other end probes, or all error probes.
		for _, kind := range []string{"STP_END", "STP_ERROR"} {
			fmt.Fprintf(&table, "\t{ %s, 0, 0, %d, 9223372036854775807LL, 0, %s, %s },\n", kind, nlocks, quote("timing"), quote("timing"))
			fmt.Fprintf(&run, "\tcase %d:\n\t\ttiming(c);\n\t\tbreak;\n", count)
			count++
		}
		g.timing(probes)
	}
	if frame > 32<<20 {
		fail(nil, "the script needs %d bytes for its variables on every CPU, more than %d: lower MAXNESTING or MAXSTRINGLEN", frame, 32<<20)
	}
	enter, leave := "", ""
	if g.limits.monitor || g.limits.timing {
		enter = "\tuint64_t start = stp_monitor_enter(n);\n\n\tif (!start)\n\t\treturn;\n"
		leave = "\tstp_monitor_leave(n, start);\n"
	}
	g.printf("void stp_script_run(struct stp_context *c, unsigned int n)\n{\n%s\tswitch (n) {\n%s\t}\n%s}\n\n", enter, run.String(), leave)
	g.printf("static const struct stp_probe probes[] = {\n%s\t{ STP_NEVER }\n};\n\n", table.String())
	g.printf("static const unsigned int locks[] = {\n%s\t0\n};\n\n", locks.String())
	g.printf("static const struct stp_array arrays[] = {\n")
	for _, v := range g.arrays {
		size := v.MaxSize
		if size == 0 {
			size = g.limits.mapEntries
		}
		if size < 1 || size > parser.MaxArray {
			fail(v.Tok, "array size %d is not between 1 and %d", size, parser.MaxArray)
		}
		types := []string{ctype(v.Type)}
		for _, k := range v.Keys {
			types = append(types, ctype(k))
		}
		stat := ""
		if v.Type == ast.Stats {
			stat = ", &k" + g.names[v]
		}
		g.printf("\t{ %s, &%s, %d, %d, %d, %d, { %s }%s },\n", quote(v.Name), g.names[v], size, bit[v.MaxSize != 0], bit[v.Wrap], len(v.Keys), strings.Join(types, ", "), stat)
	}
	g.printf("\t{ \"\" }\n};\n\n")
	l := g.limits
	g.printf(`const struct stp_script stp_script = {
	.size = sizeof(struct stp_script),
	.nprobes = %d, .nlocks = %d, .nglobals = %d, .narrays = %d,
	.probes = probes, .locks = locks, .arrays = arrays,
	.string_size = STP_MAXSTRINGLEN,
	.frame_size = %d,
	.max_nesting = %d,
	.buffer_size = %d,
	.limits = {
%s	},
	.max_errors = %d,
	.max_skipped = %d,
	.max_trylock = %d,
	.trylock_delay = %d,
	.min_stack = %d,
	.overload_interval = %d,
	.overload_threshold = %d,
	.suppress_errors = %d,
	.bulk = %d,
};
`, count, nlocks, len(g.prog.Globals), len(g.arrays), frame, g.nesting(), l.bufferSize, l.classes(),
		l.errors, l.skipped, l.trylock, l.trylockDelay, l.minStack+stackReserve, l.overloadInterval, l.overloadThreshold, bit[l.suppress], bit[l.bulk])
	if len(g.files) > 0 || g.limits.timing { // the object that times probes knows files, too
		g.procfs()
	}
	name := func(s string) string {
		if s == "" {
			return "NULL"
		}
		return quote(s)
	}
	if l.monitor || l.timing {
		g.monitor(len(probes))
	}
	g.printf("STP_SCRIPT_PARTS(%d, %d, %d, %d, %s, %s)\nSTP_PRIVILEGE(%d);\n", bit[len(g.arrays) > 0], bit[g.timers], bit[len(g.files) > 0], bit[l.monitor || l.timing],
		name(l.relayHost), name(l.relayGuest), required(g.prog.Privilege))
	g.topC(true)
}

// timing writes the function that prints what -t has counted.
func (g *gen) timing(probes []*check.Probe) {
	g.printf("static void timing(struct stp_context *c)\n{\n\tstp_print_begin(c);\n")
	for i, p := range probes {
		place, from := ", ", ""
		if p.Source != nil && !p.Source.Tok.Pos.File.Synthetic {
			place = fmt.Sprintf(", (%s), ", p.Source.Tok.Pos)
		}
		for _, d := range p.Derivation {
			from += ", from: " + d
		}
		g.printf("\tstp_timing_report(c, %d, %s, %s);\n", i, quote(place), quote(from))
	}
	g.printf("\tstp_print_end(c);\n}\n\n")
}

// monitorSize is the most that a reader of monitor_status takes.
const monitorSize = 262144

// monitor writes the table of globals; the probes up to number n are listed.
func (g *gen) monitor(n int) {
	g.printf("const struct stp_global stp_globals[] = {\n")
	arrays := 0
	for _, v := range g.prog.Globals {
		name := g.names[v]
		switch {
		case !g.limits.monitor:
			g.printf("\t{ \"\" },\n") // -t does not show it
		case v.Type == ast.Stats:
			lacks(v.Tok, "--monitor does not show statistics")
		case v.IsArray():
			g.printf("\t{ %s, .array = &arrays[%d] },\n", quote(v.Name), arrays)
			arrays++
		case v.Type == ast.String:
			g.printf("\t{ %s, .str = %s },\n", quote(v.Name), name)
		default:
			g.printf("\t{ %s, .num = &%s },\n", quote(v.Name), name)
		}
	}
	g.printf("\t{ \"\" }\n};\nconst unsigned int stp_nmonitored = %d;\n\n", n)
}

// required is the value of .stap_privilege: one level, the highest of the set.
// No level at all means the highest there is.
func required(l privilege.Level) uint32 {
	switch {
	case l.Contains(privilege.StapDev) || l == privilege.None:
		return uint32(privilege.StapDev)
	case l.Contains(privilege.StapSys):
		return uint32(privilege.StapSys)
	}
	return uint32(privilege.StapUsr)
}

func ctype(t ast.Type) string {
	switch t {
	case ast.String:
		return "STP_STRING"
	case ast.Stats:
		return "STP_STATS"
	}
	return "STP_LONG"
}

// locks lists the lock table entries of a probe in ascending order. Globals
// that no probe writes need none.
func (g *gen) locks(p *check.Probe, written, sorted map[*ast.Var]bool) []string {
	mode := map[int]bool{} // number -> write
	for _, v := range append(append([]*ast.Var(nil), p.Reads...), p.CondReads...) {
		if written[v] {
			mode[g.number[v]] = mode[g.number[v]]
		}
	}
	for _, v := range p.Writes {
		mode[g.number[v]] = true
	}
	for v := range sorted {
		mode[g.number[v]] = true
	}
	var nums []int
	for n := range mode {
		nums = append(nums, n)
	}
	sort.Ints(nums)
	var out []string
	for _, n := range nums {
		if mode[n] {
			out = append(out, fmt.Sprintf("%d | STP_LOCK_WRITE", n))
		} else {
			out = append(out, fmt.Sprint(n))
		}
	}
	return out
}

// sortedArrays are the arrays that p may iterate over in sorted order: sorting
// reorders the array itself, so it counts as writing.
func (g *gen) sortedArrays(p *check.Probe) map[*ast.Var]bool {
	out := map[*ast.Var]bool{}
	seen := map[*ast.Function]bool{}
	var expr func(x ast.Expr)
	var stmt func(s ast.Stmt)
	expr = func(x ast.Expr) {
		if call, ok := x.(*ast.Call); ok {
			for _, f := range call.Funcs {
				if !seen[f] {
					seen[f] = true
					if f.Body != nil {
						stmt(f.Body)
					}
				}
			}
		}
		for _, s := range ast.Slots(x) {
			expr(*s)
		}
	}
	stmt = func(s ast.Stmt) {
		if f, ok := s.(*ast.Foreach); ok && f.SortDir != 0 {
			if a, ok := f.Array.(*ast.Symbol); ok && a.Var != nil {
				out[a.Var] = true
			}
		}
		exprs, stmts := ast.StmtSlots(s)
		for _, x := range exprs {
			expr(*x)
		}
		for _, q := range stmts {
			stmt(*q)
		}
	}
	if p.Body != nil {
		stmt(p.Body)
	}
	return out
}

// deepest is the number of bytes that calls of fs may need for their frames.
func (g *gen) deepest(fs []*ast.Function) int {
	memo := map[*ast.Function]int{}
	var visit func(f *ast.Function) int
	visit = func(f *ast.Function) int {
		if n, ok := memo[f]; ok {
			return n
		}
		memo[f] = 0
		n := 0
		for _, h := range g.calls[f] {
			n = max(n, visit(h))
		}
		memo[f] = g.frames[f] + n
		return memo[f]
	}
	n, largest := 0, 0
	recursive := false
	for _, f := range fs {
		n = max(n, visit(f))
	}
	for f := range memo {
		largest = max(largest, g.frames[f])
		recursive = recursive || f.Recursive
	}
	if recursive {
		n = g.nesting() * largest
	}
	return n
}

// nesting is the MAXNESTING of the script: the depth of its calls, where a
// recursive call counts once more, and ten for scripts with recursion.
func (g *gen) nesting() int {
	if g.limits.nesting > 0 {
		return int(g.limits.nesting)
	}
	budget := 100000
	recursive := false
	stack := map[*ast.Function]bool{}
	memo := map[*ast.Function]int{}
	var depth func(f *ast.Function) (int, bool)
	depth = func(f *ast.Function) (int, bool) {
		if n, ok := memo[f]; ok {
			return n, true
		}
		if stack[f] {
			recursive = true
			return 1, false
		}
		if budget--; budget < 0 {
			return len(g.prog.Functions), false
		}
		stack[f] = true
		defer delete(stack, f)
		n, complete := 0, true
		for _, h := range g.calls[f] {
			d, ok := depth(h)
			n = max(n, d)
			complete = complete && ok
		}
		if complete {
			memo[f] = n + 1
		}
		return n + 1, complete
	}
	n := 0
	for _, f := range g.prog.Functions {
		if f.C == nil {
			d, _ := depth(f)
			n = max(n, d)
		}
	}
	if recursive {
		n += 10
	}
	return max(n, 1)
}
