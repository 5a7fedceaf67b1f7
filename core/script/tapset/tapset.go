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

//go:embed *.stp
var files embed.FS

// Sources are the library files in a fixed order.
func Sources() []*token.File {
	var out []*token.File
	names, err := fs.Glob(files, "*.stp")
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
	var out []*ast.File
	for _, src := range Sources() {
		f, err := parser.Parse(src, opts)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}
