package scriptcache

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// File is one file of an archive that carries compiled scripts to another host:
// a tar archive, compressed by gzip, of
//
//	RELEASE/NAME.ko  RELEASE/NAME.ko.sgn  RELEASE/NAME.opts    for CACHE_PATH
//	FILE.conf or FILE                                          for CONFIG_PATH
//
// Unpacked in CACHE_PATH by tar(1) it does what the manual of the init script
// says; directories before RELEASE, as in an archive of absolute paths, and
// conf.d before FILE are read too.
type File struct {
	Release string // "" for a configuration file
	Name    string // base name
	Data    []byte
	Time    time.Time
}

// Path is the name in an archive.
func (f File) Path() string { return path.Join(f.Release, f.Name) }

// Limits of an archive.
const (
	maxFile  = 64 << 20
	maxTotal = 512 << 20
	maxFiles = 10000
)

// WriteArchive packs files.
func WriteArchive(w io.Writer, files []File) error {
	z := gzip.NewWriter(w)
	for _, f := range files {
		if err := appendTar(z, f); err != nil {
			return err
		}
	}
	if _, err := z.Write(make([]byte, 2*block)); err != nil {
		return err
	}
	return z.Close()
}

// ReadArchive reads an archive. A file that has no place is an error: nothing of
// such an archive is used.
func ReadArchive(r io.Reader) ([]File, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	var out []File
	total, entries := int64(0), 0
	for t := (tarReader{r: z}); ; entries++ {
		h, err := t.next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		total += h.size
		if h.size > maxFile || total > maxTotal || len(out) == maxFiles || entries == 2*maxFiles {
			return nil, fmt.Errorf("%q: the archive is larger than %d files, %d bytes each, %d together", h.name, maxFiles, maxFile, maxTotal)
		}
		if h.kind == '5' {
			continue
		}
		if h.kind != '0' {
			return nil, fmt.Errorf("%q is no regular file", h.name)
		}
		f, ok := place(h.name)
		if !ok {
			return nil, fmt.Errorf("%q is neither a compiled script nor a configuration file", h.name)
		}
		if f.Name == "" {
			continue // the uprobes module of old releases: kernels have it built in
		}
		if f.Data, err = t.data(h); err != nil {
			return nil, fmt.Errorf("unpacking %q: %w", h.name, err)
		}
		f.Time = h.time
		out = append(out, f)
	}
}

// place finds out what a file of an archive is.
func place(name string) (File, bool) {
	name = path.Clean("/" + name)
	dir, base := path.Split(name)
	up := path.Base(dir)
	if up == "uprobes" && base == "uprobes.ko" {
		return File{}, true
	}
	for _, s := range Suffixes() {
		n, ok := strings.CutSuffix(base, s)
		if ok && ValidName(n) == nil && ValidRelease(up) {
			return File{Release: up, Name: base}, true
		}
	}
	plain := strings.TrimSuffix(base, ".conf")
	word := plain != "" && strings.Trim(plain, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
	if word && (plain != base || up == "conf.d" || up == "/") {
		return File{Name: base}, true
	}
	return File{}, false
}

// ValidRelease reports whether a text may be the name of a kernel release, and of
// a directory.
func ValidRelease(s string) bool {
	return s != "" && s[0] != '.' && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-~") == ""
}
