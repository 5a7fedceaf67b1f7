package kbuild

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The command lines of a prepared kernel are run: nobody else may have written them.
func TestSecurity05ForeignRecipe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	k := Kernel{Release: "6.0", BuildDir: "/nonexistent"}
	for name, tt := range map[string]struct {
		make func(state, dir, file string) error
		want string
	}{
		"another's file":             {func(state, dir, file string) error { return os.Chown(file, 4242, 0) }, "belongs to user id 4242"},
		"another's directory":        {func(state, dir, file string) error { return os.Chown(dir, 4242, 0) }, "belongs to user id 4242"},
		"a file for others to write": {func(state, dir, file string) error { return os.Chmod(file, 0o664) }, "has mode 0664"},
		"a directory for others":     {func(state, dir, file string) error { return os.Chmod(dir, 0o777) }, "has mode 0777"},
		"a link": {func(state, dir, file string) error {
			return errors.Join(os.Rename(file, dir+"/x"), os.Symlink("x", file))
		}, "too many levels"},
		"a link to another directory": {func(state, dir, file string) error {
			return errors.Join(os.Rename(dir, dir+"x"), os.Symlink(dir+"x", dir))
		}, "not a directory"},
		"one's own": {func(state, dir, file string) error { return nil }, ErrNotPrepared.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			dir := directory(state, k, tiny)
			file := filepath.Join(dir, manifestName)
			if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(file, []byte("{}"), 0o644), tt.make(state, dir, file)); err != nil {
				t.Fatal(err)
			}
			_, err := Open(state, k, tiny)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if errors.Is(err, ErrNotPrepared) != (name == "one's own") {
				t.Errorf("got %v", err)
			}
		})
	}
	state := t.TempDir()
	if err := os.Chown(state, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(context.Background(), state, k, tiny, func(string) {}); err == nil || !strings.Contains(err.Error(), "belongs to user id 4242") {
		t.Errorf("preparing in another's directory: got %v", err)
	}
}
