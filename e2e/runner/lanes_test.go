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
	got, err := testsThatCall(dir, guestFunctions...)
	if want := []string{"TestBoots", "TestByHelper", "TestDirect"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	guests, err := testsThatCall("..", guestFunctions...)
	if err != nil || !slices.Contains(guests, "TestWalk") || slices.Contains(guests, "TestCLI") {
		t.Errorf("of e2e: %q, %v", guests, err)
	}
	boots, err := testsThatCall("..", "Boot")
	if err != nil || !slices.Contains(boots, "TestSecureBoot") {
		t.Errorf("of e2e boot guests: %q, %v", boots, err)
	}
	for _, name := range boots {
		if !slices.Contains(guests, name) {
			t.Errorf("%s boots a guest, and calls none of %q", name, guestFunctions)
		}
	}
}
