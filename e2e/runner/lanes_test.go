package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestTestsThatCall(t *testing.T) {
	dir := t.TempDir()
	const source = `package x

func TestDirect(t *testing.T)   { onKernels(t, func(t *testing.T, s *scene) {}) }
func TestByHelper(t *testing.T) { first(t) }
func TestBoots(t *testing.T)    { bootsGuest(t) }
func TestHost(t *testing.T)     { other(t) }
func first(t *testing.T)        { onKernel(t, "6.1", nil) }
func other(t *testing.T)        { other(t) }
`
	if err := os.WriteFile(filepath.Join(dir, "x_test.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		functions    []string
		want         []string
		has, hasNone string // of e2e
	}{
		{sharedGuests, []string{"TestByHelper", "TestDirect"}, "TestWalk", "TestCLI"},
		{ownGuests, []string{"TestBoots"}, "TestSecureBoot", "TestCLI"},
	} {
		got, err := testsThatCall(dir, tt.functions)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v, want %q", tt.functions, got, err, tt.want)
		}
		all, err := testsThatCall("..", tt.functions)
		if err != nil || !slices.Contains(all, tt.has) || slices.Contains(all, tt.hasNone) {
			t.Errorf("%q of e2e: %q, %v", tt.functions, all, err)
		}
	}
	boots, err := testsThatCall("..", []string{"Boot"})
	if err != nil || len(boots) == 0 {
		t.Fatalf("tests that boot guests: %q, %v", boots, err)
	}
	own, err := testsThatCall("..", ownGuests)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range boots {
		if !slices.Contains(own, name) {
			t.Errorf("%s boots a guest, and does not call %q", name, ownGuests)
		}
	}
}
