// Package hostpaths is the one place that knows where things are on a host.
//
// The locations below are fixed at build time and owned by root: the
// privileged loader uses them as they stand and never takes a path from the
// environment. A different layout is a different build:
//
//	go build -ldflags '-X stapbox/core/hostpaths.Sysconfdir=/usr/local/etc'
package hostpaths

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The base directories, in the terms of the GNU coding standards and of
// loader-relay (PKGLIBDIR holds what users do not call by name).
var (
	Bindir        = "/usr/bin"
	Pkglibdir     = "/usr/libexec/stapbox"
	Sysconfdir    = "/etc"
	Runstatedir   = "/run"
	Localstatedir = "/var"
)

// Staprun is the setuid copy of the box that loads modules.
func Staprun() string { return filepath.Join(Bindir, "staprun") }

// FindStaprun is where programs that run staprun find it: the installed one, or
// one beside this very file (a box that was not installed).
func FindStaprun() (string, error) {
	tried := []string{Staprun()}
	if self, err := os.Executable(); err == nil {
		tried = append(tried, filepath.Join(filepath.Dir(self), "staprun"))
	}
	for _, p := range tried {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("there is no staprun, neither %q nor %q", tried[0], tried[len(tried)-1])
}

// Box is the plain copy, which answers to every other name.
func Box() string { return filepath.Join(Pkglibdir, "stapbox") }

// Stapio is the relay that staprun hands over to.
func Stapio() string { return filepath.Join(Pkglibdir, "stapio") }

// SignerStore holds the certificates whose signatures staprun accepts.
func SignerStore() string { return filepath.Join(Sysconfdir, "systemtap", "staprun") }

// HostPeerStore holds the servers that every user of the host may compile with.
func HostPeerStore() string { return filepath.Join(Sysconfdir, "systemtap", "ssl", "client") }

// LoadPolicy is the loader's policy file (accepted hash, expired certificates).
func LoadPolicy() string { return filepath.Join(Sysconfdir, "stapbox", "load.conf") }

// GroupIDs records the ids of the three groups as the installer resolved them,
// for names that come from LDAP or SSSD.
func GroupIDs() string { return filepath.Join(Sysconfdir, "stapbox", "groups.conf") }

// LoadLock is held while a module is inserted.
func LoadLock() string { return filepath.Join(Runstatedir, "stapbox", "load.lock") }

// LoadClaims has a file UID/NAME for each module that a user has loaded.
func LoadClaims() string { return filepath.Join(Runstatedir, "stapbox", "loaded") }

// InitConfig is the init manager's configuration.
func InitConfig() string { return filepath.Join(Sysconfdir, "systemtap", "config") }

// KernelRelease is uname -r of this host, "" if the kernel does not say.
func KernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// BlessedDir holds the modules that stapusr members may run unsigned.
func BlessedDir(release string) string {
	return filepath.Join("/lib/modules", release, "systemtap")
}

// UserDir is the per-user data directory: $SYSTEMTAP_DIR, else ~/.systemtap.
// Either argument may be empty; with both empty there is none.
func UserDir(systemtapDir, home string) string {
	switch {
	case systemtapDir != "":
		return systemtapDir
	case home != "":
		return filepath.Join(home, ".systemtap")
	}
	return ""
}

// UserPeerStore holds the servers that one user trusts to compile.
func UserPeerStore(userDir string) string { return filepath.Join(userDir, "ssl", "client") }

// ServerIdentity holds a server's certificate and key.
func ServerIdentity(userDir string) string { return filepath.Join(userDir, "ssl", "server") }

// ClientIdentity holds what a client shows to servers that ask who it is.
func ClientIdentity(userDir string) string { return filepath.Join(userDir, "ssl", "own") }

// Kernels holds what was learned and prepared once per kernel: build recipes
// and runtime objects.
func Kernels(userDir string) string { return filepath.Join(userDir, "kernels") }

// Answers is the cache of a compile server.
func Answers(userDir string) string { return filepath.Join(userDir, "answers") }

// RememberedServers is the file of the servers that answered one user before.
func RememberedServers(userDir string) string { return filepath.Join(userDir, "servers") }

// ServerSettings are the files with the settings of stap-server, in order.
func ServerSettings() []string {
	return []string{filepath.Join(Sysconfdir, "default", "stap-server"), filepath.Join(Sysconfdir, "sysconfig", "stap-server")}
}

// ServerConfigs is the directory of the files of the host's servers.
func ServerConfigs() string { return filepath.Join(Sysconfdir, "stap-server", "conf.d") }

// ServerStatus is the directory of the host's running servers.
func ServerStatus() string { return filepath.Join(Runstatedir, "stap-server") }

// ServerLog is the log of the host's servers and of their manager.
func ServerLog() string { return filepath.Join(Localstatedir, "log", "stap-server", "log") }

// ServerUser is the user, and the group, of the host's servers.
const ServerUser = "stap-server"

// UserServers is where one user has what he sets about servers of his own.
func UserServers(userDir string) string { return filepath.Join(userDir, "stap-server") }

// Modules is the directory with a directory for each kernel release.
const Modules = "/lib/modules"
