package sandbox

import (
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// toolchain is what a compiler needs to run.
var toolchain = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/alternatives"}

// devices may be read and written, and nothing else done to them.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random"}

// processes: objtool of kernel 7.x reads /proc/self/maps, and a rule cannot name
// what each process has for its own. Memory, environment and descriptors of
// processes outside the ruleset stay closed: they need the right to ptrace(2),
// which Landlock denies there.
var processes = []string{"/proc"}

// Rights of Landlock by the version that brought them: 1 in Linux 5.13, 2
// (refer) 5.19, 3 (truncate) 6.2, 4 (network) 6.7, 5 (device ioctl) 6.10, 6
// (signals, abstract sockets) 6.12.
const (
	rightsRead = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	rightsV1   = 1<<13 - 1
)

func rights(abi int) (all uint64) {
	all = rightsV1
	if abi >= 2 {
		all |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		all |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		all |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return all
}

// LandlockABI is the version of Landlock this kernel has, 0 for none.
func LandlockABI() int {
	abi, _, errno := syscall.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// landlock holds this thread, and what it will execute, to the files of an
// order, and keeps it from the network. program is a descriptor of what it will
// execute. It comes after no_new_privs.
func (o *order) landlock(program int) error {
	abi := LandlockABI()
	attr := unix.LandlockRulesetAttr{Handled_access_fs: rights(abi)}
	if abi >= 4 {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	fd, _, errno := syscall.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("making a Landlock ruleset: %w", errno)
	}
	defer unix.Close(int(fd))
	write := o.Write
	if o.Private != "" {
		write = append(slices.Clip(write), o.Private)
		if o.layers&Namespaces != 0 {
			write = append(write, "/tmp")
		}
	}
	for _, g := range []struct {
		paths  []string
		access uint64
	}{
		{toolchain, rightsRead},
		{o.Read, rightsRead},
		{write, rights(abi)},
		{processes, unix.LANDLOCK_ACCESS_FS_READ_FILE},
		{devices, unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE&rights(abi)},
	} {
		for _, p := range g.paths {
			if err := allow(int(fd), p, g.access); err != nil {
				return err
			}
		}
	}
	if err := allowFile(int(fd), program, unix.LANDLOCK_ACCESS_FS_EXECUTE|unix.LANDLOCK_ACCESS_FS_READ_FILE); err != nil {
		return fmt.Errorf("allowing the program: %w", err)
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("restricting the process: %w", errno)
	}
	return nil
}

func allow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening %q: %w", path, err)
	}
	defer unix.Close(fd)
	if err := allowFile(ruleset, fd, access); err != nil {
		return fmt.Errorf("allowing %q: %w", path, err)
	}
	return nil
}

func allowFile(ruleset, fd int, access uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
			unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	// struct landlock_path_beneath_attr is packed: 8 octets of rights, 4 of
	// descriptor. A Go struct of both is the same in its first 12.
	rule := struct {
		access uint64
		fd     int32
	}{access, int32(fd)}
	if _, _, errno := syscall.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
