package image

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// entry is one file, directory or link of a layer.
type entry struct {
	name string // without the first slash
	mode fs.FileMode
	uid  int    // and group
	link string // of a symbolic link
	text string // of a file, if file is ""
	file string // where its content is
}

func (e entry) header() *tar.Header {
	h := &tar.Header{
		Name: e.name, Mode: int64(e.mode.Perm()), Uid: e.uid, Gid: e.uid, Size: int64(len(e.text)),
		ModTime: time.Unix(0, 0), Format: tar.FormatPAX, Typeflag: tar.TypeReg,
	}
	switch {
	case e.mode.IsDir():
		h.Name += "/"
		h.Typeflag = tar.TypeDir
	case e.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
	}
	if e.mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	return h
}

// layer is a list of entries, each path once.
type layer []entry

func (l *layer) dir(name string, mode fs.FileMode, uid int) {
	*l = append(*l, entry{name: name, mode: mode | fs.ModeDir, uid: uid})
}

func (l *layer) symlink(name, target string) { *l = append(*l, entry{name: name, link: target}) }

func (l *layer) text(name, text string) {
	*l = append(*l, entry{name: name, mode: 0o644, text: text})
}

// parents adds the directories that entries are in and nobody has added.
func (l layer) parents() layer {
	have := map[string]bool{".": true}
	for _, e := range l {
		have[e.name] = true
	}
	for _, e := range l {
		for d := path.Dir(e.name); !have[d]; d = path.Dir(d) {
			have[d] = true
			l.dir(d, 0o755, 0)
		}
	}
	return l
}

// write writes the entries, sorted, as a tar file in gzip. The bytes depend on
// nothing else. It gives the digest of the tar file (the diff id).
func (l layer) write(w io.Writer) (string, error) {
	all := l.parents()
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	t := tar.NewWriter(io.MultiWriter(z, sum))
	for i, e := range all {
		if i > 0 && all[i-1].name == e.name {
			return "", fmt.Errorf("%q is in a layer twice", e.name)
		}
		if err := e.write(t); err != nil {
			return "", fmt.Errorf("writing %q: %w", e.name, err)
		}
	}
	if err := t.Close(); err != nil {
		return "", err
	}
	return digest(sum), z.Close()
}

func (e entry) write(t *tar.Writer) error {
	h := e.header()
	if e.file == "" {
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.WriteString(t, e.text)
		return err
	}
	f, err := os.Open(e.file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h.Size = st.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

func digest(h hash.Hash) string { return fmt.Sprintf("sha256:%x", h.Sum(nil)) }

// tree adds what is below root and keep wants, in a merged /usr.
func (l *layer) tree(root string, keep func(name string) bool) error {
	return filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if name = intoUsr(name); !keep(name) {
			return nil
		}
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			if path.IsAbs(target) { // of the package's root
				if target, err = filepath.Rel(path.Dir("/"+name), "/"+intoUsr(target[1:])); err != nil {
					return err
				}
			}
			l.symlink(name, target)
		case info.Mode().IsRegular():
			*l = append(*l, entry{name: name, mode: info.Mode().Perm(), file: file})
		default:
			return fmt.Errorf("%q is neither file nor link", file)
		}
		return nil
	})
}

// intoUsr is where a file of a package is in a merged /usr.
func intoUsr(name string) string {
	for _, top := range merged {
		if strings.HasPrefix(name, top+"/") {
			return "usr/" + name
		}
	}
	return name
}

// merged are the directories that are links into /usr.
var merged = [...]string{"bin", "lib", "lib64", "sbin"}
