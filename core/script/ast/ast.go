// Package ast holds the syntax tree of a SystemTap script.
//
// The parser builds it; core/script/check fills in the fields whose comment
// says "set by check": resolved variables, functions and types. A translator
// walks checked trees only and never has to look a name up.
package ast

import (
	"strings"

	"stapbox/core/script/token"
)

// Type is the type of a value.
type Type int

// The types of the language. Unknown stays on functions without a value and
// before inference.
const (
	Unknown Type = iota
	Long
	String
	Stats
)

// String is the name that messages and the -p2 listing use.
func (t Type) String() string {
	switch t {
	case Long:
		return "long"
	case String:
		return "string"
	case Stats:
		return "stats"
	}
	return "unknown"
}

// File is one parsed source text.
type File struct {
	Source    *token.File
	Probes    []*Probe
	Aliases   []*Alias
	Globals   []*Var
	Functions []*Function
	EmbedC    []*EmbedC
}

// VarKind says where a variable lives.
type VarKind int

// The kinds of variables.
const (
	Local VarKind = iota
	Param
	Global
	Value // $value of a procfs probe
)

// Var is a declared (global, parameter) or implied (local) variable.
type Var struct {
	Name string // as written
	Tok  *token.Token
	Kind VarKind
	Type Type // value type; set by check where not declared
	// Keys is nil for scalars, else one type per array index; set by check.
	Keys []Type
	// Arity is -1 while nothing is known, 0 for scalars, else the number of
	// array indexes.
	Arity   int
	MaxSize int64 // global a[N]; 0 when not given
	Wrap    bool  // global a%
	Init    Expr  // *Number or *Str, globals only
	InitTok *token.Token
	Private bool
	// Unique is a name no other global of the program has: for private
	// globals it is made from file and name. It starts with a letter or '_'
	// and holds only letters, digits and '_'. Set by check.
	Unique string
	// Settable reports a scalar global of the main script that -G and module
	// parameters may set. Set by check.
	Settable bool
	// Synthetic marks variables made by the translator.
	Synthetic bool
}

// IsArray reports whether the variable is used with indexes.
func (v *Var) IsArray() bool { return v.Arity > 0 }

// EmbedC is C text between %{ and %}.
type EmbedC struct {
	Tok  *token.Token
	Code string
	// Reads and Writes are the globals that the text names with
	// /* pragma:read:NAME */ and /* pragma:write:NAME */. Set by check.
	Reads, Writes []*Var
}

// Has reports whether the text holds the comment "/* word */".
func (c *EmbedC) Has(word string) bool { return strings.Contains(c.Code, "/* "+word+" */") }

// Pragmas are the names in comments "/* pragma:KIND:NAME */", in order.
func (c *EmbedC) Pragmas(kind string) []string {
	var names []string
	for rest := c.Code; ; {
		_, after, ok := strings.Cut(rest, "/* pragma:"+kind+":")
		if !ok {
			return names
		}
		name, _, ok := strings.Cut(after, " */")
		if ok {
			names = append(names, name)
		}
		rest = after
	}
}

// Function is a function declaration.
type Function struct {
	Name    string
	Tok     *token.Token
	Params  []*Var
	Locals  []*Var // set by check; parameters not included
	Ret     Type   // Unknown: no value
	Body    Stmt   // nil when C is set
	C       *EmbedC
	Private bool
	// Priority orders overloads: smaller runs first.
	Priority    int64
	HasPriority bool
	// Unique is a C identifier no other function of the program has: name,
	// for the second and further overloads with a suffix. Set by check.
	Unique string
	// Recursive reports that a call of the function may lead to itself. Set
	// by check.
	Recursive bool
	// Next reports that the body holds a next statement (or the C text
	// STAP_NEXT): control may pass to the next overload. Set by check.
	Next bool
	// Reads and Writes are the globals touched by the function or by what it
	// calls, in program order. Set by check.
	Reads, Writes []*Var
	File          *token.File
}

// Component is one part of a probe point: name, name(arg) with wildcards.
type Component struct {
	Tok  *token.Token
	Name string
	Arg  Expr // *Number, *Str, *Symbol (identifier argument), or nil
	// Group holds the alternatives of {a,b}.
	Group []*Point
}

// Point is a probe point.
type Point struct {
	Tok        *token.Token
	Components []*Component
	Optional   bool // ?
	Sufficient bool // !
	// Cond is the expression of "if (...)" , or nil.
	Cond Expr
}

// Probe is a probe definition.
type Probe struct {
	Tok    *token.Token
	Points []*Point
	Body   *Block
}

// Alias is a probe alias definition: names = points { body }.
type Alias struct {
	Tok    *token.Token
	Names  []*Point
	Points []*Point
	// Prologue runs before the body of the probe that uses the alias,
	// Epilogue after it. "probe a = b {..}" sets Prologue, "+=" Epilogue,
	// "probe a = b {..},{..}" both.
	Prologue, Epilogue *Block
	Epi                bool // defined with +=
}

// Stmt is a statement.
type Stmt interface {
	Token() *token.Token
	stmt()
}

// StmtBase is embedded in every statement.
type StmtBase struct{ Tok *token.Token }

// Token is the token that messages about the statement point at.
func (s *StmtBase) Token() *token.Token { return s.Tok }
func (s *StmtBase) stmt()               {}

// The statements.
type (
	// Block is { ... }.
	Block struct {
		StmtBase
		Stmts []Stmt
	}
	// Null is ";".
	Null struct{ StmtBase }
	// ExprStmt evaluates X and drops the value.
	ExprStmt struct {
		StmtBase
		X Expr
	}
	// If is if (Cond) Then else Else; Else may be nil.
	If struct {
		StmtBase
		Cond       Expr
		Then, Else Stmt
	}
	// For is for (Init; Cond; Post) Body, and while (Cond) Body when While
	// is set. Init and Post may be nil; Cond never is.
	For struct {
		StmtBase
		Init, Cond, Post Expr
		Body             Stmt
		While            bool
	}
	// Foreach iterates over an array or the buckets of a histogram.
	Foreach struct {
		StmtBase
		Keys  []*Symbol // loop variables, one per index
		Array Expr      // *Symbol, or *Hist
		// Slice restricts the keys: nil, or one expression per index where
		// nil means "*".
		Slice []Expr
		Value *Symbol // v in foreach (v = [k] in a), or nil
		// SortDir is 0, +1 or -1. SortColumn is 0 to sort by value, else the
		// number of the key (from 1).
		SortDir    int
		SortColumn int
		// SortAggr is the aggregate operator (@sum ...) used for sorting.
		SortAggr string
		Limit    Expr // or nil
		Body     Stmt
	}
	// Break leaves the innermost loop.
	Break struct{ StmtBase }
	// Continue starts the next round of the innermost loop.
	Continue struct{ StmtBase }
	// Next leaves the probe handler, or passes to the next overload.
	Next struct{ StmtBase }
	// Return leaves a function; Value may be nil.
	Return struct {
		StmtBase
		Value Expr
	}
	// Delete clears a scalar (*Symbol), a whole array (*Symbol), or one or,
	// with "*", several elements (*Index).
	Delete struct {
		StmtBase
		X Expr
	}
	// TryCatch runs Catch when Try raises an error; Var gets its text.
	TryCatch struct {
		StmtBase
		Try, Catch Stmt
		Var        *Symbol // or nil
	}
	// EmbedStmt is a %{ %} statement.
	EmbedStmt struct {
		StmtBase
		C *EmbedC
	}
)

// Expr is an expression.
type Expr interface {
	Token() *token.Token
	Type() Type
	SetType(Type)
	expr()
}

// ExprBase is embedded in every expression.
type ExprBase struct {
	Tok *token.Token
	T   Type // set by check
}

// Token is the token that messages about the expression point at.
func (e *ExprBase) Token() *token.Token { return e.Tok }

// Type is the type of the value, Unknown when there is none.
func (e *ExprBase) Type() Type { return e.T }

// SetType records the type of the value.
func (e *ExprBase) SetType(t Type) { e.T = t }
func (e *ExprBase) expr()          {}

// The expressions.
type (
	// Number is an integer literal, or Defined, what @defined came to.
	Number struct {
		ExprBase
		Value   int64
		Defined bool
	}
	// Str is a string literal: Value with escapes read and without
	// terminating zero, Raw with escapes as written.
	Str struct {
		ExprBase
		Value, Raw string
	}
	// Embed is %{ %} as a value.
	Embed struct {
		ExprBase
		C *EmbedC
	}
	// Binary is L Op R for + - * / % & | ^ << >> && || < > <= >= == != and
	// "." (string concatenation) and =~ !~ (R a *Str).
	Binary struct {
		ExprBase
		Op   string
		L, R Expr
		// Chain marks a "." whose L is the previous "." of the same
		// unparenthesised chain.
		Chain bool
	}
	// Unary is Op X for + - ! ~ and & (address of a target variable).
	Unary struct {
		ExprBase
		Op string
		X  Expr
	}
	// IncDec is ++ or --; the value is the old one unless Prefix is set.
	IncDec struct {
		ExprBase
		Op     string
		Prefix bool
		X      Expr
	}
	// Assign is L Op R for = += -= *= /= %= <<= >>= &= ^= |= .= and <<<.
	Assign struct {
		ExprBase
		Op   string
		L, R Expr
	}
	// Ternary is Cond ? Then : Else.
	Ternary struct {
		ExprBase
		Cond, Then, Else Expr
	}
	// In is [Keys] in Array; a nil key is "*".
	In struct {
		ExprBase
		Keys  []Expr
		Array Expr // *Symbol or *Hist
	}
	// Symbol is the use of a variable.
	Symbol struct {
		ExprBase
		Name string
		Var  *Var // set by check
	}
	// Index is Array[Keys]; a nil key is "*" (delete and @op only).
	Index struct {
		ExprBase
		Array Expr // *Symbol or *Hist
		Keys  []Expr
	}
	// Call is a call of a function. Funcs are the candidates in the order in
	// which they are tried (more than one only when an earlier one has a
	// next statement). Set by check.
	Call struct {
		ExprBase
		Name  string
		Args  []Expr
		Funcs []*Function
	}
	// Print is a call of the print family.
	Print struct {
		ExprBase
		Name string // print, sprintf, printdln ...
		// String: sprint family, the value is the text. Format: printf and
		// sprintf. Delim: printd family. Newline: println family.
		String, Format, Delim, Newline bool
		// Raw is the format string or the delimiter, Value the same with
		// escapes read.
		Raw, Value string
		Args       []Expr // without format string and delimiter
		// Parts is the whole output, delimiters and newline included, for
		// every form; arguments are consumed in order by width, precision
		// and value of each conversion. Set by check (the parser sets it
		// for printf and sprintf).
		Parts []FormatPart
	}
	// Target is $name or @var("name"), with access path.
	Target struct {
		ExprBase
		Name string   // with its $
		Args []string // @var module argument
		Path []PathPart
	}
	// AtCast is @cast(X, "type"[, "module"])->path.
	AtCast struct {
		ExprBase
		X              Expr
		CType, Module  string
		HasType, HasMd bool
		Path           []PathPart
	}
	// AutoCast is X->path, where X is an ordinary expression.
	AutoCast struct {
		ExprBase
		X    Expr
		Path []PathPart
	}
	// AtOp is one of @defined(x), @entry(x), @perf("x"), @probewrite(x),
	// @const("x"), @enum("x"), @enumname(x, ...), @kregister(n), @uregister(n),
	// @kderef(n, x), @uderef(n, x), @errno; or a Macro of SystemTap's library that
	// this translator has not.
	AtOp struct {
		ExprBase
		Name  string // without @
		Args  []Expr
		Macro bool
	}
	// Stat is @count(x), @sum, @min, @max, @avg, @variance.
	Stat struct {
		ExprBase
		Op   string // without @
		X    Expr
		Args []Expr
	}
	// Hist is @hist_log(x) or @hist_linear(x, start, stop, interval).
	Hist struct {
		ExprBase
		Op   string
		X    Expr
		Args []Expr
	}
)

// PathPart is one step of ->member, [index], or the trailing $ and $$ of an
// access path.
type PathPart struct {
	Tok    *token.Token
	Member string // "" for an index
	Index  Expr
	Pretty int // number of trailing $ signs
}

// FormatPart is literal text or one conversion of a format.
type FormatPart struct {
	Literal string // when Conv is 0

	// Conv is one of b c d i m M o p s u x X; 0 for literal text.
	Conv byte
	// Flags.
	Minus, Zero, Plus, Space, Alt bool
	Width                         int  // -1: none
	WidthArg                      bool // *: width is the next argument
	Prec                          int  // -1: none
	PrecArg                       bool
	// Arg, WidthExpr and PrecExpr are indexes into Print.Args, -1 when the
	// part takes none. Set by check.
	Arg, WidthExpr, PrecExpr int
}
