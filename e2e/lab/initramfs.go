package lab

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// Image is the contents of an initramfs: files with owners and modes as they
// shall be, whoever builds it.
type Image struct {
	entries map[string]entry
}

type entry struct {
	mode     uint32 // type and permission, as in stat(2)
	uid, gid uint32
	data     []byte // a file's contents or a link's target
	major    uint32
	minor    uint32
}

// NewImage makes an image that has the directories everybody expects.
func NewImage() *Image {
	im := &Image{map[string]entry{}}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "root", "etc", "bin", "sbin", "usr/bin", "usr/sbin", "home"} {
		im.Dir(d, 0o755)
	}
	im.Dir("tmp", 0o1777)
	im.entries["dev/console"] = entry{mode: syscall.S_IFCHR | 0o600, major: 5, minor: 1}
	im.entries["dev/null"] = entry{mode: syscall.S_IFCHR | 0o666, major: 1, minor: 3}
	return im
}

// Dir adds a directory of root's and those above it.
func (im *Image) Dir(name string, mode uint32) { im.DirOf(name, mode, 0, 0) }

// DirOf adds a directory with an owner.
func (im *Image) DirOf(name string, mode, uid, gid uint32) {
	name = clean(name)
	if up := path.Dir(name); up != "." {
		if _, ok := im.entries[up]; !ok {
			im.Dir(up, 0o755)
		}
	}
	im.entries[name] = entry{mode: syscall.S_IFDIR | mode, uid: uid, gid: gid}
}

// File adds a file of root's.
func (im *Image) File(name string, mode uint32, data []byte) { im.FileOf(name, mode, 0, 0, data) }

// FileOf adds a file with an owner.
func (im *Image) FileOf(name string, mode, uid, gid uint32, data []byte) {
	name = clean(name)
	if _, ok := im.entries[path.Dir(name)]; !ok && path.Dir(name) != "." {
		im.Dir(path.Dir(name), 0o755)
	}
	im.entries[name] = entry{mode: syscall.S_IFREG | mode, uid: uid, gid: gid, data: data}
}

// Link adds a symbolic link.
func (im *Image) Link(name, target string) {
	name = clean(name)
	if _, ok := im.entries[path.Dir(name)]; !ok && path.Dir(name) != "." {
		im.Dir(path.Dir(name), 0o755)
	}
	im.entries[name] = entry{mode: syscall.S_IFLNK | 0o777, data: []byte(target)}
}

// Tree adds everything below a directory of the host, with its owners and modes.
func (im *Image) Tree(host, name string) error {
	return filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		at := clean(path.Join(name, filepath.ToSlash(rel)))
		switch {
		case at == ".":
		case d.IsDir():
			im.DirOf(at, st.Mode&0o7777, st.Uid, st.Gid)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			im.Link(at, target)
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			im.FileOf(at, st.Mode&0o7777, st.Uid, st.Gid, b)
		}
		return nil
	})
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// CPIO writes the image in the "new ASCII" format (kernel
// Documentation/driver-api/early-userspace/buffer-format.rst): a header of 13
// hexadecimal numbers after the magic 070701, the name, the data, each padded to
// four bytes, and an entry TRAILER!!! at the end.
func (im *Image) CPIO() []byte {
	names := make([]string, 0, len(im.entries))
	for n := range im.entries {
		names = append(names, n)
	}
	sort.Strings(names) // a directory comes before what is in it
	var b bytes.Buffer
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	write := func(ino int, name string, e entry) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			ino, e.mode, e.uid, e.gid, 1, 0, len(e.data), 0, 0, e.major, e.minor, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		pad()
		b.Write(e.data)
		pad()
	}
	for i, n := range names {
		write(i+1, n, im.entries[n])
	}
	write(0, "TRAILER!!!", entry{})
	return b.Bytes()
}
