package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/kmod"
	"stapbox/core/transport"
)

// A user may give the control file of his module away, to an id of his own in a
// user namespace (newuidmap(1)), and still be the one who loaded the module. So
// the loader writes down whose a module is: a file UID/NAME below a directory that
// only root can enter. The file is empty before the insertion and names the module
// afterwards. The files of one user are written and removed while his lock is held.
//
//	loaded INODE
//
// INODE is that of the module's directory in sysfs, a number that the kernel gives to
// one directory only (64-bit ids of kernfs, Linux 5.5). A claim can outlive its
// module: root may remove the module with rmmod(8), and staprun can be killed right
// after removing one. Such a claim says nothing about the next module of the name,
// and its number shows so as soon as the kernel has that. Erasing the claim when the
// next module is inserted would be too late: the user who inserts it can stop his
// staprun before that.

func claimDir(uid int) string { return filepath.Join(hostpaths.LoadClaims(), strconv.Itoa(uid)) }

// claim says that a user is about to load a module, and whether that is news: of an
// older claim nothing is left but that he may have loaded a module of this name.
// Root's modules are not counted.
func claim(uid int, module string) (news bool, err error) {
	if uid == 0 {
		return false, nil
	}
	fd := -1
	if err = transport.CheckName(module); err == nil {
		err = os.MkdirAll(claimDir(uid), 0o700)
	}
	if err == nil {
		fd, err = unix.Open(filepath.Join(claimDir(uid), module), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	}
	switch {
	case err == unix.EEXIST:
		return false, os.Truncate(filepath.Join(claimDir(uid), module), 0)
	case err != nil:
		return false, fmt.Errorf("writing down whose the module is: %w", err)
	}
	return true, unix.Close(fd)
}

// confirm says that a claimed module is in the kernel. Where it cannot be said, as
// without sysfs, removal has to wait for others who claim the name.
func confirm(uid int, module string) {
	if text := loadedAs(module); uid != 0 && text != "" {
		os.WriteFile(filepath.Join(claimDir(uid), module), []byte(text), 0o600)
	}
}

// confirmed reports whether a user is known to have loaded a module himself: the one
// that has the name now, not an older one.
func confirmed(uid int, module string) bool {
	text, err := os.ReadFile(filepath.Join(claimDir(uid), module))
	return err == nil && len(text) > 0 && string(text) == loadedAs(module)
}

// stale reports whether a claim is for an older module than the one that has the name
// now.
func stale(text []byte, module string) bool {
	now := loadedAs(module)
	return len(text) > 0 && now != "" && string(text) != now
}

// loadedAs is what a claim says of the module that has a name now, or nothing.
func loadedAs(module string) string {
	var st unix.Stat_t
	if unix.Lstat(filepath.Join(sysModule, module), &st) != nil {
		return ""
	}
	return fmt.Sprintf("loaded %d\n", st.Ino)
}

// claimants are the users other than one who may have loaded the module that has this
// name, or are about to.
func claimants(but int, module string) (uids []int, err error) {
	users, err := os.ReadDir(hostpaths.LoadClaims())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking whose the module is: %w", err)
	}
	for _, u := range users {
		uid, err := strconv.Atoi(u.Name())
		if err != nil || uid == but {
			continue
		}
		switch text, err := os.ReadFile(filepath.Join(claimDir(uid), module)); {
		case err == nil && !stale(text, module):
			uids = append(uids, uid)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("looking whose the module is: %w", err)
		}
	}
	return uids, nil
}

// disclaim says that a module of a user's is not there any more.
func disclaim(uid int, module string) { os.Remove(filepath.Join(claimDir(uid), module)) }

// disclaimAll is disclaim for whoever has loaded it. Those whose lock somebody has are
// left out: an insertion that is under way may have claimed the name for what it is
// about to load. What they keep is forgotten when their modules are counted.
func disclaimAll(module string) {
	users, err := claimants(-1, module)
	if err != nil {
		return // and nobody's is dropped
	}
	for _, uid := range users {
		if unlock, taken := tryUser(uid); taken {
			disclaim(uid, module)
			unlock()
		}
	}
}

// sysModule has a directory for each module in the kernel; tests have another.
var sysModule = "/sys/module"

// claimed is how many of the loaded modules are a user's: those that he has loaded,
// and those whose control file is his. What is not loaded any more is forgotten. Only
// the kernel's word that there is no such module (ENOENT) says so: a claim that is
// forgotten for another reason is one more module for the user. The look is root's,
// as a host may hide /sys from its users.
func claimed(uid int, loaded []kmod.Loaded) (int, error) {
	files, err := os.ReadDir(claimDir(uid))
	if err == nil && len(files) > 0 {
		_, err = os.Lstat(sysModule) // or all would be gone where /sys is not mounted
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return 0, fmt.Errorf("counting modules: %w", err)
	}
	his := map[string]bool{}
	for _, m := range loaded {
		if int(m.UID) == uid {
			his[m.Name] = true
		}
	}
	for _, f := range files {
		_, err := os.Lstat(filepath.Join(sysModule, f.Name()))
		if err == nil {
			var text []byte
			if text, err = os.ReadFile(filepath.Join(claimDir(uid), f.Name())); err == nil && stale(text, f.Name()) {
				err = fs.ErrNotExist // it is somebody else's now
			}
		}
		switch {
		case err == nil:
			his[f.Name()] = true
		case errors.Is(err, fs.ErrNotExist):
			disclaim(uid, f.Name())
		default:
			return 0, fmt.Errorf("counting modules: %w", err)
		}
	}
	return len(his), nil
}
