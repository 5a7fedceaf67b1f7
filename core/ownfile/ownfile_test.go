package ownfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name      string
		make      func(path string) error
		forbidden fs.FileMode
		wantErr   string
	}{
		{"certificate", func(p string) error { return os.Chmod(p, 0o644) }, Certificate, ""},
		{"key", func(p string) error { return nil }, Key, ""},
		{"missing", os.Remove, Key, "no such file"},
		{"key that others read", func(p string) error { return os.Chmod(p, 0o640) }, Key, "mode 0640 is too open, at most 0600"},
		{"certificate that others write", func(p string) error { return os.Chmod(p, 0o664) }, Certificate, "mode 0664 is too open, at most 0644"},
		{"too large", func(p string) error { return os.Truncate(p, Limit+1) }, Key, "more than 65536 bytes"},
		{"link", func(p string) error {
			if err := os.Rename(p, p+".real"); err != nil {
				return err
			}
			return os.Symlink(p+".real", p)
		}, Key, "too many levels of symbolic links"},
		{"FIFO", func(p string) error {
			if err := os.Remove(p); err != nil {
				return err
			}
			return syscall.Mkfifo(p, 0o600)
		}, Key, "not a regular file"},
		{"directory", func(p string) error {
			if err := os.Remove(p); err != nil {
				return err
			}
			return os.Mkdir(p, 0o700)
		}, Key, "not a regular file"},
		{"of another user", func(p string) error { return os.Chown(p, 4711, 4711) }, Key, "it belongs to user id 4711"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "of another user" && os.Geteuid() != 0 {
				t.Skip("only root gives files away")
			}
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := tt.make(path); err != nil {
				t.Fatal(err)
			}
			data, err := Read(path, tt.forbidden)
			if tt.wantErr == "" && (err != nil || string(data) != "text") {
				t.Errorf("got %q, %v", data, err)
			}
			if tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) {
				t.Errorf("got %q, %v, want %q", data, err, tt.wantErr)
			}
		})
	}
}

// What has the name of a new file is neither followed nor written to.
func TestSecurity12WriteNew(t *testing.T) {
	dir := t.TempDir()
	other, path := filepath.Join(dir, "other"), filepath.Join(dir, "new")
	for name, prepare := range map[string]func() error{
		"link":      func() error { return os.Symlink(other, path) },
		"hard link": func() error { return os.Link(other, path) },
		"file":      func() error { return os.WriteFile(path, []byte("old and longer"), 0o644) },
		"nothing":   func() error { return nil },
	} {
		if err := os.WriteFile(other, []byte("precious"), 0o644); err != nil {
			t.Fatal(err)
		}
		os.Remove(path)
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		err := WriteNew(path, []byte("text"), 0o600)
		st, serr := os.Lstat(path)
		if serr != nil {
			t.Fatal(serr)
		}
		text, _ := os.ReadFile(path)
		kept, _ := os.ReadFile(other)
		if err != nil || string(text) != "text" || st.Mode() != 0o600 || string(kept) != "precious" {
			t.Errorf("%s: %v; got %q with mode %v, the other has %q", name, err, text, st.Mode(), kept)
		}
	}
}
