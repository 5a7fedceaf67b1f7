package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestGuestTests(t *testing.T) {
	dir := t.TempDir()
	const source = `package x

func TestDirect(t *testing.T)   { onKernels(t, func(t *testing.T, s *scene) {}) }
func TestByHelper(t *testing.T) { first(t) }
func TestHost(t *testing.T)     { other(t) }
func first(t *testing.T)        { onKernel(t, "6.1", nil) }
func other(t *testing.T)        { other(t) }
`
	if err := os.WriteFile(filepath.Join(dir, "x_test.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := guestTests(dir)
	if want := []string{"TestByHelper", "TestDirect"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	all, err := guestTests("..")
	if err != nil || !slices.Contains(all, "TestWalk") || slices.Contains(all, "TestCLI") {
		t.Errorf("of e2e: %q, %v", all, err)
	}
}
