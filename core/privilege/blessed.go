package privilege

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// BlessedError says why a module is not one that members of stapusr and stapsys
// may run unsigned.
type BlessedError struct {
	Dir     string
	Reasons []string
}

// Error is upstream's text (loader-relay 4.3).
func (e *BlessedError) Error() string {
	return fmt.Sprintf("Members of the \"stapusr\" and \"stapsys\" groups can only use unsigned modules within\n  the %q directory.\n  %s",
		e.Dir, strings.Join(e.Reasons, "\n  "))
}

// Blessed judges a module that lies directly in the blessed directory, by the
// status of both open descriptors (decision L3).
//
//	directory    owned by root, not world-writable; writable by its group only
//	             if that is stapdev or root's
//	module       owned by root, or, in a directory writable by stapdev, by a
//	             member of stapdev; not world-writable; writable by its group
//	             only if that is stapdev or root's
func Blessed(dirPath, modulePath string, dir, module *unix.Stat_t, groups Groups, memberOfDev func(uid uint32) bool) error {
	e := &BlessedError{Dir: dirPath}
	dev, haveDev := groups[GroupDev]
	devs := dir.Mode&0o020 != 0 && haveDev && dir.Gid == dev
	foreign := func(st *unix.Stat_t) bool {
		return st.Mode&0o020 != 0 && st.Gid != 0 && !(haveDev && st.Gid == dev)
	}
	if dir.Mode&unix.S_IFMT != unix.S_IFDIR {
		e.Reasons = append(e.Reasons, "That path must refer to a directory.")
	}
	if dir.Uid != 0 {
		e.Reasons = append(e.Reasons, "That directory should be owned by root.")
	}
	if dir.Mode&0o002 != 0 {
		e.Reasons = append(e.Reasons, "That directory should not be world writable.")
	}
	if foreign(dir) {
		e.Reasons = append(e.Reasons, "That directory should be writable by no group but \"stapdev\".")
	}
	if module.Uid != 0 && !(devs && memberOfDev(module.Uid)) {
		e.Reasons = append(e.Reasons, fmt.Sprintf("The module %q must be owned by root.", modulePath))
	}
	if module.Mode&0o002 != 0 {
		e.Reasons = append(e.Reasons, fmt.Sprintf("The module %q must not be world writable.", modulePath))
	}
	if foreign(module) {
		e.Reasons = append(e.Reasons, fmt.Sprintf("The module %q must be writable by no group but \"stapdev\".", modulePath))
	}
	if e.Reasons == nil {
		return nil
	}
	return e
}

// NotBlessed is the reason for a module that lies elsewhere.
func NotBlessed(dirPath, modulePath string) error {
	return &BlessedError{dirPath, []string{fmt.Sprintf("Module %q does not exist within that directory.", modulePath)}}
}
