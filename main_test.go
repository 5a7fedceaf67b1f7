package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"testing"
)

// What main does before EndQuietly is time in which a signal shows the stacks. That
// time is too short for a test to hit, so the source is looked at.
func TestMainBeginsWithSignals(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "main.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != "main" {
			continue
		}
		if first, ok := f.Body.List[0].(*ast.AssignStmt); !ok || types.ExprString(first.Rhs[0]) != "invocation.EndQuietly()" {
			t.Error("main does not begin with EndQuietly")
		}
		return
	}
	t.Error("main.go has no main")
}
