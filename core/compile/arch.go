package compile

import (
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Arch normalises what uname -m says to what requests and advertisements
// carry (server-client 5).
func Arch(machine string) string {
	switch machine {
	case "i486", "i586", "i686":
		return "i386"
	case "sun4u":
		return "sparc64"
	case "s390x":
		return "s390"
	case "aarch64":
		return "arm64"
	case "riscv64":
		return "riscv"
	case "sa110":
		return "arm"
	}
	for prefix, arch := range map[string]string{"arm": "arm", "ppc": "powerpc", "mips": "mips", "sh2": "sh", "sh3": "sh", "sh4": "sh"} {
		if strings.HasPrefix(machine, prefix) && machine != "arm64" {
			return arch
		}
	}
	return machine
}

// Uname is the release, normalised architecture and node name of this host.
func Uname() (release, arch, node string) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "", "", ""
	}
	return unix.ByteSliceToString(u.Release[:]), Arch(unix.ByteSliceToString(u.Machine[:])), unix.ByteSliceToString(u.Nodename[:])
}

func openNoFollow(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
}
