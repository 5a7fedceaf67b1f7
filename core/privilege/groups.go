package privilege

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The names of the groups that stand for the levels.
const (
	GroupUsr = "stapusr"
	GroupSys = "stapsys"
	GroupDev = "stapdev"
)

// Groups maps the group names above to their ids on this host. A name that is
// missing does not exist here.
type Groups map[string]uint32

// ReadGroups looks the three groups up in group(5) text. Ids recorded by the
// installer, for names that come from LDAP or SSSD, count only for a name that
// the text does not have, and only while the text gives that id no other name
// (decision L10). Recorded lines have the form NAME=ID.
func ReadGroups(group io.Reader, recorded io.Reader) Groups {
	g := Groups{}
	taken := map[uint32]bool{}
	for fields := range colonLines(group) {
		if len(fields) < 3 {
			continue
		}
		id, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			continue
		}
		taken[uint32(id)] = true
		if _, twice := g[fields[0]]; known(fields[0]) && !twice {
			g[fields[0]] = uint32(id)
		}
	}
	if recorded == nil {
		return g
	}
	lines := bufio.NewScanner(recorded)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		id, err := strconv.ParseUint(value, 10, 32)
		if _, have := g[name]; !ok || err != nil || id == 0 || have || !known(name) || taken[uint32(id)] {
			continue
		}
		g[name] = uint32(id)
	}
	return g
}

func known(name string) bool { return name == GroupUsr || name == GroupSys || name == GroupDev }

// colonLines yields the fields of passwd(5) and group(5) lines.
func colonLines(r io.Reader) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20) // member lists may be long
		for lines.Scan() {
			if !yield(strings.Split(lines.Text(), ":")) {
				return
			}
		}
	}
}

// HostGroups is ReadGroups on this host's files. Recorded ids decide about
// privileges, so a file of them that others than root may have written counts as
// missing.
func HostGroups(groupFile, recordedFile string) (Groups, error) {
	group, err := os.ReadFile(groupFile)
	if err != nil {
		return nil, err
	}
	var recorded io.Reader
	if b, err := readRoots(recordedFile); err == nil {
		recorded = bytes.NewReader(b)
	}
	return ReadGroups(bytes.NewReader(group), recorded), nil
}

const maxRecorded = 64 << 10

// readRoots reads a file that belongs to root and that only root can write to.
func readRoots(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != 0 || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("%q must be a regular file, owned by root and writable by root only", path)
	}
	return io.ReadAll(io.LimitReader(f, maxRecorded))
}

// User is the invoking user as the kernel knows him: real uid, effective gid
// and supplementary groups. newgrp(1) counts at once.
type User struct {
	UID    int
	GIDs   []int
	Groups Groups
}

// CurrentUser is the user who runs this process.
func CurrentUser(groups Groups) (User, error) {
	gids, err := os.Getgroups()
	if err != nil {
		return User{}, err
	}
	return User{UID: os.Getuid(), GIDs: append([]int{os.Getegid()}, gids...), Groups: groups}, nil
}

// In reports whether the user's process has the group.
func (u User) In(name string) bool {
	id, ok := u.Groups[name]
	return ok && slices.Contains(u.GIDs, int(id))
}

// Levels is the set of levels the user holds: all for root and members of
// stapdev, stapsys and stapusr for members of stapsys, stapusr for members of
// stapusr.
func (u User) Levels() Level {
	switch {
	case u.UID == 0 || u.In(GroupDev):
		return All
	case u.In(GroupSys):
		return StapSys | StapUsr
	case u.In(GroupUsr):
		return StapUsr
	}
	return None
}

// Member reports whether the owner of a file, by uid, is a member of a group:
// by primary group in passwd(5) text or by name in group(5) text.
func Member(uid uint32, name string, passwd, group io.Reader) bool {
	var user string
	var primary uint64
	for f := range colonLines(passwd) {
		if len(f) >= 4 && f[2] == strconv.FormatUint(uint64(uid), 10) {
			user = f[0]
			primary, _ = strconv.ParseUint(f[3], 10, 32)
			break
		}
	}
	if user == "" {
		return false
	}
	for f := range colonLines(group) {
		if len(f) < 4 || f[0] != name {
			continue
		}
		id, err := strconv.ParseUint(f[2], 10, 32)
		return err == nil && id == primary || slices.Contains(strings.Split(f[3], ","), user)
	}
	return false
}

// PrimaryGroup is the gid in a user's line of passwd(5) text.
func PrimaryGroup(uid uint32, passwd io.Reader) (gid uint32, ok bool) {
	_, gid, ok = account(uid, passwd)
	return gid, ok
}

// GroupsOf are the ids of the groups that list a user, by uid, and of his primary
// group: what initgroups(3) sets.
func GroupsOf(uid uint32, passwd, group io.Reader) []uint32 {
	user, primary, ok := account(uid, passwd)
	if !ok {
		return nil
	}
	ids := []uint32{primary}
	for f := range colonLines(group) {
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), user) {
			continue
		}
		id, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && !slices.Contains(ids, uint32(id)) {
			ids = append(ids, uint32(id))
		}
	}
	return ids
}

// account finds the first line of a uid in passwd(5) text.
func account(uid uint32, passwd io.Reader) (name string, gid uint32, ok bool) {
	for f := range colonLines(passwd) {
		if len(f) >= 4 && f[0] != "" && f[2] == strconv.FormatUint(uint64(uid), 10) {
			id, err := strconv.ParseUint(f[3], 10, 32)
			return f[0], uint32(id), err == nil
		}
	}
	return "", 0, false
}
