package loader

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"stapbox/core/privilege"
)

// another is the user that root goes on as.
type another struct {
	uid, gid int
	groups   []int
}

// theUser finds out what a user's processes have.
func theUser(uid, gid int) (*another, error) {
	groups, err := groupsOf(uid, gid)
	return &another{uid, gid, groups}, err
}

// continueAs makes root's process that of another user as far as the kernel's
// modules are concerned: real ids and supplementary groups are his, the effective
// uid stays root's.
func continueAs(who *another) error {
	if err := unix.Setgroups(who.groups); err != nil {
		return fmt.Errorf("taking the groups of uid %d: %w", who.uid, err)
	}
	if err := unix.Setresgid(who.gid, -1, -1); err != nil {
		return fmt.Errorf("taking gid %d: %w", who.gid, err)
	}
	if err := unix.Setresuid(who.uid, -1, -1); err != nil {
		return fmt.Errorf("taking uid %d: %w", who.uid, err)
	}
	return nil
}

// groupsOf are the groups a login of the user would have, by the files of the
// host; his gid alone for a user who is not in them.
func groupsOf(uid, gid int) ([]int, error) {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := os.ReadFile("/etc/group")
	if err != nil {
		return nil, err
	}
	groups := []int{gid}
	for _, g := range privilege.GroupsOf(uint32(uid), bytes.NewReader(passwd), bytes.NewReader(group)) {
		if int(g) != gid {
			groups = append(groups, int(g))
		}
	}
	return groups, nil
}

// requestedIdentity is what root's SYSTEMTAP_REAL_UID and SYSTEMTAP_REAL_GID ask
// for (loader-relay 3). Without the latter the gid is that of the user's entry in
// /etc/passwd. Unlike upstream, a value that cannot be used ends the run: going
// on as root is not what was asked for.
func (l *loader) requestedIdentity() (uid, gid int, wanted bool, err error) {
	uidText, haveUID := l.LookupEnv("SYSTEMTAP_REAL_UID")
	gidText, haveGID := l.LookupEnv("SYSTEMTAP_REAL_GID")
	if os.Getuid() != 0 || !haveUID && !haveGID {
		return 0, 0, false, nil
	}
	number := func(name, text string) int {
		n, perr := strconv.ParseUint(text, 10, 31)
		if perr != nil && err == nil {
			err = fmt.Errorf("%s=%q is not an id", name, text)
		}
		return int(n)
	}
	if haveUID {
		uid = number("SYSTEMTAP_REAL_UID", uidText)
	}
	if haveGID {
		gid = number("SYSTEMTAP_REAL_GID", gidText)
	} else if err == nil {
		passwd, rerr := os.ReadFile("/etc/passwd")
		if rerr != nil {
			return 0, 0, true, rerr
		}
		primary, ok := privilege.PrimaryGroup(uint32(uid), bytes.NewReader(passwd))
		if !ok {
			return 0, 0, true, errors.New("SYSTEMTAP_REAL_UID names a user who is not in /etc/passwd, and SYSTEMTAP_REAL_GID is not set")
		}
		gid = int(primary)
	}
	return uid, gid, true, err
}
