// Package tapset holds the library of script functions that is part of the
// translator, as source text.
//
// C bodies see their arguments as STAP_ARG_name, the result as STAP_RETVALUE
// (int64_t, or a char buffer of MAXSTRINGLEN bytes), return early with
// STAP_RETURN, and call the runtime's stp_fn_ functions with the context c.
package tapset

import (
	"embed"
	"io/fs"

	"stapbox/core/script/ast"
	"stapbox/core/script/parser"
	"stapbox/core/script/token"
)

//go:embed *.stp *.stpm arguments/*.stp
var files embed.FS

// Sources are the library files in a fixed order.
func Sources() []*token.File { return sources("*.stp") }

func sources(pattern string) []*token.File {
	var out []*token.File
	names, err := fs.Glob(files, pattern)
	if err != nil {
		return nil
	}
	for _, n := range names {
		text, err := files.ReadFile(n)
		if err != nil {
			continue
		}
		out = append(out, &token.File{Name: "tapset/" + n, Text: string(text), Tapset: true})
	}
	return out
}

// Parse reads the library anew: the checker works in the trees it is given,
// so each script needs its own.
func Parse(opts parser.Options) ([]*ast.File, error) {
	opts.Args = nil
	return parse(Sources(), opts)
}

// Arguments are the variables argc, argv and argv_1 to argv_32, and NULL. Each
// file becomes part of a script that names one of its variables, and its initial
// values are the arguments of the script.
func Arguments(opts parser.Options) ([]*ast.File, error) {
	list := sources("arguments/*.stp")
	for _, f := range list {
		f.Library = true
	}
	files, err := parse(list, opts)
	for _, f := range files {
		for _, g := range f.Globals {
			if g.Name == "argv" { // without arguments nothing else would tell
				g.Type, g.Keys, g.Arity = ast.String, []ast.Type{ast.Long}, 1
			}
		}
	}
	return files, err
}

func parse(list []*token.File, opts parser.Options) ([]*ast.File, error) {
	var out []*ast.File
	for _, src := range list {
		f, err := parser.Parse(src, opts)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// Macros are those of the library.
func Macros(opts parser.Options) (*parser.Macros, error) {
	m := &parser.Macros{}
	for _, f := range sources("*.stpm") {
		if _, failure := m.Add(f, opts); failure != nil {
			return nil, failure
		}
	}
	return m, nil
}
