package ownfile

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

// ForeignError says that somebody else may have written a file, or may put another
// in its place. Nothing of it was read.
type ForeignError struct {
	At     string // the file, or a directory on the way to it
	Reason string
	Hint   string // what makes it right
}

func (e *ForeignError) Error() string { return fmt.Sprintf("%q %s; hint: %s", e.At, e.Reason, e.Hint) }

// files that tell whose a group is, and which user ids there are; tests have others.
var passwdFile, groupFile, uidMapFile = "/etc/passwd", "/etc/group", "/proc/self/uid_map"

// maxLinks is how many links the kernel follows on one way (path_resolution(7)).
const maxLinks = 40

// OnlyOurs returns a ForeignError unless nobody but a user and root can have put
// there, or can replace, what is at a path. The rule is for everything that the kernel
// meets on its way there, step by step: every directory, every link, the directories
// on the way to what each link leads to, and the end of the way. All of these belong
// to the user or to root, and others may not write to them. A directory with the
// sticky bit, such as /tmp, is as good. Where something is missing the way ends.
//
// Of several foreign steps the last is told. Any other error says that the way could
// not be walked to its end.
func OnlyOurs(path string, uid int) error {
	if !filepath.IsAbs(path) {
		dir, err := os.Getwd()
		if err != nil {
			return err
		}
		path = dir + "/" + path // not cleaned: .. behind a link is not what it looks like
	}
	var foreign error
	at, rest := "/", path
	for links := 0; ; {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); errors.Is(err, fs.ErrNotExist) {
			return foreign
		} else if err != nil {
			return &os.PathError{Op: "lstat", Path: at, Err: err}
		}
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFDIR && kind != unix.S_IFLNK && strings.Trim(rest, "/") != "" {
			return foreign // below a file, such as /dev/null, nothing can be
		}
		if err := ours(at, &st, uid); err != nil {
			foreign = err
		}
		if kind == unix.S_IFLNK {
			target, err := os.Readlink(at)
			if err != nil {
				return err
			}
			if links++; links > maxLinks {
				return &os.PathError{Op: "lstat", Path: path, Err: unix.ELOOP}
			}
			at, rest = filepath.Dir(at), target+"/"+rest
			if filepath.IsAbs(target) {
				at = "/"
			}
		}
		rest = strings.TrimLeft(rest, "/")
		if rest == "" {
			return foreign
		}
		var step string
		step, rest, _ = strings.Cut(rest, "/")
		at = filepath.Join(at, step) // which has no link in it by now
	}
}

// ours judges one file, link or directory.
func ours(at string, st *unix.Stat_t, uid int) error {
	kind := st.Mode & unix.S_IFMT
	switch {
	case st.Uid != 0 && unmapped(st.Uid):
		return &ForeignError{
			at, fmt.Sprintf("belongs to a user id that this user namespace does not have (it shows %d): root's and other users' look alike here", st.Uid),
			"leave the namespace, or make one in which root's id is mapped",
		}
	case st.Uid != 0 && int(st.Uid) != uid:
		return &ForeignError{at, fmt.Sprintf("belongs to user id %d", st.Uid), "chown " + userName(uid)}
	case kind == unix.S_IFLNK || kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0:
	case st.Mode&0o002 != 0:
		return &ForeignError{at, "can be written by everybody", "chmod go-w"}
	case st.Mode&0o020 != 0 && !privateGroup(st.Gid, uid):
		return &ForeignError{at, fmt.Sprintf("can be written by group id %d", st.Gid), "chmod go-w"}
	}
	return nil
}

// unmapped reports whether a user id stands for all those that this user namespace
// does not have (user_namespaces(7)), the host's root included, as after unshare -r.
// Whose a file is cannot be told then, even by somebody who has no id himself. What
// cannot be told is not trusted, also where only the owner may write: the owner may.
func unmapped(uid uint32) bool {
	overflow, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil || strings.TrimSpace(string(overflow)) != strconv.FormatUint(uint64(uid), 10) {
		return false
	}
	uidMap, err := os.ReadFile(uidMapFile)
	if err != nil {
		return false // a kernel without user namespaces
	}
	for line := range strings.Lines(string(uidMap)) {
		var first, outside, count uint64
		if n, _ := fmt.Sscan(line, &first, &outside, &count); n == 3 && uint64(uid) >= first && uint64(uid)-first < count {
			return false
		}
	}
	return true
}

// userName is root, or the number of another.
func userName(uid int) string {
	if uid == 0 {
		return "root"
	}
	return strconv.Itoa(uid)
}

// privateGroup reports whether a group is a user's alone, as where each user has a
// group of his own. Groups that /etc/group does not have may be anybody's; root's is
// root's.
func privateGroup(gid uint32, uid int) bool {
	if gid == 0 {
		return true
	}
	passwd, err := os.ReadFile(passwdFile)
	if err != nil {
		return false
	}
	group, err := os.ReadFile(groupFile)
	return err == nil && private(string(passwd), string(group), gid, uid)
}

// private reads passwd(5) and group(5).
func private(passwd, group string, gid uint32, uid int) bool {
	id, user := strconv.FormatUint(uint64(gid), 10), ""
	his := false
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) < 4 {
			continue
		}
		if f[2] == strconv.Itoa(uid) {
			user, his = f[0], his || f[3] == id
		} else if f[3] == id {
			return false
		}
	}
	known := false
	for line := range strings.Lines(group) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) < 4 || f[2] != id {
			continue
		}
		known = true
		if slices.ContainsFunc(strings.Split(f[3], ","), func(m string) bool { return m != "" && m != user }) {
			return false
		}
	}
	return known && his
}

// Check is OnlyOurs for an open regular file.
func Check(f *os.File, uid int) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("reading %q: not a regular file", f.Name())
	}
	if err := ours(f.Name(), &st, uid); err != nil {
		return err
	}
	return OnlyOurs(f.Name(), uid)
}

// ReadOurs reads a file of at most limit bytes that OnlyOurs accepts. It is opened
// once; owner and mode are those of the open file.
func ReadOurs(path string, uid int, limit int64) ([]byte, error) {
	// O_NONBLOCK so that a FIFO under this name stops nobody.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := Check(f, uid); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %q: more than %d bytes", path, limit)
	}
	return data, nil
}
