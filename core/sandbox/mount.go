package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A mount that was opened and waits for its place in the new root.
type tree struct {
	path string
	fd   int
	dir  bool
}

// enterRoot makes the root of the new process and enters it. It uses the calls
// of Linux 5.2 and mount_setattr(2) of 5.12. The descriptors are those of the
// work directory and of /proc.
func (o *order) enterRoot() ([]int, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("keeping mounts private: %w", err)
	}
	var trees []tree
	var links [][2]string
	readOnly := uint64(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID)
	for _, p := range append(slices.Clip(toolchain), o.Read...) {
		if covered(trees, p) {
			continue
		}
		if st, err := os.Lstat(p); err == nil && st.Mode()&fs.ModeSymlink != 0 && filepath.Dir(p) == "/" {
			// As on hosts where /lib is a part of /usr.
			to, err := os.Readlink(p)
			if err != nil {
				return nil, err
			}
			links = append(links, [2]string{p, to})
			continue
		}
		t, err := openTree(p, readOnly|unix.MOUNT_ATTR_NODEV)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	for _, p := range o.Write {
		t, err := openTree(p, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	for _, p := range devices {
		t, err := openTree(p, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	proc, err := newMount("proc", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	trees = append(trees, tree{"/proc", proc, true})
	work, err := newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC,
		"size="+strconv.FormatUint(max(o.Size, 4096), 10), "nr_inodes="+strconv.Itoa(maxFiles), "mode=0755")
	if err != nil {
		return nil, err
	}
	root, err := newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "size=1m", "nr_inodes=4096", "mode=0755")
	if err != nil {
		return nil, err
	}
	// From here on "" is the new root and "/" still the old one.
	const place = "/dev"
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("mounting a root: %w", err)
	}
	if err := unix.Fchdir(root); err != nil {
		return nil, err
	}
	own := 0
	if o.uid != 0 {
		own = int(o.uid)
	}
	private := -1
	if o.Private != "" {
		if private, err = o.enterPrivate(work, own); err != nil {
			return nil, err
		}
	}
	for _, l := range links {
		if err := os.Symlink(l[1], "."+l[0]); err != nil {
			return nil, err
		}
	}
	for _, t := range trees {
		if err := t.attach(); err != nil {
			return nil, err
		}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, fmt.Errorf("closing the root: %w", err)
	}
	if err := changeRoot(); err != nil {
		return nil, err
	}
	if private < 0 {
		return nil, nil
	}
	procDir, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return []int{private, procDir}, nil
}

// changeRoot makes the working directory, which is a mount, the root.
func changeRoot() error {
	err := unix.PivotRoot(".", ".")
	if err == nil {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("leaving the old root: %w", err)
		}
		return nil
	}
	if err != unix.EINVAL {
		return fmt.Errorf("changing root: %w", err)
	}
	// A host that runs from its first memory file system (initramfs) cannot leave
	// it. The new root goes on top; who has no rights to chroot(2) never sees
	// what is below.
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	return os.Chdir("/")
}

// enterPrivate mounts the work directory, with a copy of the parent's in it, and
// /tmp beside it.
func (o *order) enterPrivate(work, owner int) (int, error) {
	for _, d := range []string{"work", "tmp", strings.TrimPrefix(o.Private, "/")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return -1, err
		}
	}
	if err := unix.MoveMount(work, "", unix.AT_FDCWD, "work", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, fmt.Errorf("mounting the work directory: %w", err)
	}
	if err := copyTree(o.Private, "work/private", owner); err != nil {
		return -1, fmt.Errorf("copying the request: %w", err)
	}
	if err := os.Mkdir("work/tmp", 0o700); err != nil {
		return -1, err
	}
	if owner != 0 {
		if err := os.Lchown("work/tmp", owner, owner); err != nil {
			return -1, err
		}
	}
	// /tmp first: the other may be below it.
	for _, m := range [][2]string{{"work/tmp", "/tmp"}, {"work/private", o.Private}} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, m[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return -1, fmt.Errorf("opening the work directory: %w", err)
		}
		if err := (tree{m[1], fd, true}).attach(); err != nil {
			return -1, err
		}
	}
	if err := unix.Unmount("work", unix.MNT_DETACH); err != nil {
		return -1, fmt.Errorf("unmounting: %w", err)
	}
	if err := os.Remove("work"); err != nil {
		return -1, err
	}
	return unix.Open("."+o.Private, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// covered tells whether a path leads to a place that is there already.
func covered(trees []tree, path string) bool {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	for _, p := range []string{path, real} {
		if !slices.ContainsFunc(trees, func(t tree) bool { return below(p, t.path) }) {
			return false
		}
	}
	return true
}

func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func openTree(path string, attributes uint64) (tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return tree{}, fmt.Errorf("opening %q for the new root: %w", path, err)
	}
	attr := unix.MountAttr{Attr_set: attributes}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return tree{}, fmt.Errorf("restricting %q in the new root: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return tree{}, err
	}
	return tree{path, fd, st.Mode&unix.S_IFMT == unix.S_IFDIR}, nil
}

func newMount(kind string, attributes int, options ...string) (int, error) {
	what := func(err error) (int, error) { return -1, fmt.Errorf("mounting a %s: %w", kind, err) }
	f, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return what(err)
	}
	defer unix.Close(f)
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if err := unix.FsconfigSetString(f, key, value); err != nil {
			return what(err)
		}
	}
	if err := unix.FsconfigCreate(f); err != nil {
		return what(err)
	}
	fd, err := unix.Fsmount(f, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return what(err)
	}
	return fd, nil
}

// attach puts a mount below the working directory.
func (t tree) attach() error {
	place := "." + t.path
	if _, err := os.Lstat(place); err != nil {
		if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
			return err
		}
		if t.dir {
			err = os.Mkdir(place, 0o755)
		} else {
			err = os.WriteFile(place, nil, 0o600)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting %q: %w", t.path, err)
	}
	unix.Close(t.fd)
	return nil
}

// copyTree copies directories and regular files and gives them to owner, unless
// that is 0.
func copyTree(from, to string, owner int) error {
	root, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dest := filepath.Join(to, path)
		switch {
		case d.IsDir():
			err = os.Mkdir(dest, 0o700)
		case d.Type().IsRegular():
			err = copyFile(root, path, dest)
		default:
			return fmt.Errorf("%q is neither a file nor a directory", path)
		}
		if err == nil && owner != 0 {
			err = os.Lchown(dest, owner, owner)
		}
		return err
	})
}

func copyFile(root *os.Root, path, dest string) error {
	r, err := root.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(dest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	return err
}
