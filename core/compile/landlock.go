package compile

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The variables by which a server tells its worker what to leave itself: lists
// of absolute paths, separated by colons. Everything else of the file system is
// out of reach for the worker and for the compiler it starts.
const (
	ReadVariable  = "STAPBOX_WORKER_READ"
	WriteVariable = "STAPBOX_WORKER_WRITE"
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

// Restrict holds this process and its children to the given files, and keeps
// them from the network. Where the kernel has no Landlock it does nothing. It
// comes after Confine, which sets no_new_privs.
func Restrict(read, write []string) error {
	abi := LandlockABI()
	if abi == 0 {
		return nil
	}
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
	for _, g := range []struct {
		paths  []string
		access uint64
	}{
		{toolchain, rightsRead},
		{read, rightsRead},
		{self(), rightsRead},
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
	// For every thread, as no_new_privs: a compiler is forked from any of them.
	_, _, errno = syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
	if errno == unix.ENOTSUP {
		return restrictByExec(fd)
	}
	if errno != 0 {
		return fmt.Errorf("restricting the worker: %w", errno)
	}
	return nil
}

// restrictByExec is for a program with C code in it, whose threads the runtime
// does not all know: one thread is restricted and starts the program anew.
func restrictByExec(ruleset uintptr) error {
	runtime.LockOSThread()
	if _, _, errno := syscall.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0); errno != 0 {
		return fmt.Errorf("restricting the worker: %w", errno)
	}
	environ := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, WriteVariable+"=") })
	return fmt.Errorf("restricting the worker: %w", syscall.Exec(self()[0], os.Args, environ))
}

// self is the file of this program.
func self() []string {
	path, err := os.Executable()
	if err != nil {
		path = "/proc/self/exe"
	}
	return []string{path}
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
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("looking at %q: %w", path, err)
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
		return fmt.Errorf("allowing %q: %w", path, errno)
	}
	return nil
}

// RestrictWorker does what the server's environment says.
func RestrictWorker(lookup func(string) (string, bool)) error {
	write, ok := lookup(WriteVariable)
	if !ok {
		return nil
	}
	read, _ := lookup(ReadVariable)
	return Restrict(split(read), split(write))
}

func split(list string) []string {
	return slices.DeleteFunc(strings.Split(list, ":"), func(p string) bool { return !filepath.IsAbs(p) })
}

// headers are the directories a build tree outside of /usr reaches into: its
// links go to neighbours below the directory that holds "src", as in a package
// of headers that was unpacked elsewhere.
func headers(buildDir string) []string {
	if buildDir == "" {
		return nil
	}
	dirs := []string{buildDir}
	if real, err := filepath.EvalSymlinks(buildDir); err == nil && real != buildDir {
		dirs = append(dirs, real)
	}
	for _, d := range slices.Clone(dirs) {
		if parent := filepath.Dir(d); filepath.Base(parent) == "src" && filepath.Dir(parent) != "/" {
			dirs = append(dirs, filepath.Dir(parent))
		}
	}
	return slices.DeleteFunc(dirs, func(d string) bool {
		_, err := os.Stat(d)
		return err != nil || strings.Contains(d, ":")
	})
}
