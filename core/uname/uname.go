// Package uname tells what uname(2) says about this host, with the names that
// SystemTap gives to architectures.
package uname

import (
	"strings"

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

// Host is the release, normalised architecture and node name of this host.
func Host() (release, arch, node string) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "", "", ""
	}
	return unix.ByteSliceToString(u.Release[:]), Arch(unix.ByteSliceToString(u.Machine[:])), unix.ByteSliceToString(u.Nodename[:])
}
