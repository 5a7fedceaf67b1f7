package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
)

// guestFunctions are those by which a test gets a shared guest of a kernel, or says
// that it boots guests of its own.
var guestFunctions = []string{"onKernel", "onKernels", "bootsGuest"}

// testsThatCall lists the tests in a directory that call one of the functions,
// directly or by functions beside them.
func testsThatCall(dir string, functions ...string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	calls := map[string][]string{} // names that a function mentions
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("looking for guest tests: %w", err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || fn.Body == nil {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					calls[fn.Name.Name] = append(calls[fn.Name.Name], id.Name)
				}
				return true
			})
		}
	}
	var reaches func(name string, seen map[string]bool) bool
	reaches = func(name string, seen map[string]bool) bool {
		if slices.Contains(functions, name) {
			return true
		}
		if seen[name] {
			return false
		}
		seen[name] = true
		return slices.ContainsFunc(calls[name], func(c string) bool { return reaches(c, seen) })
	}
	var names []string
	for name := range calls {
		if strings.HasPrefix(name, "Test") && name != "TestMain" && reaches(name, map[string]bool{}) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
