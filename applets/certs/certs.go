// Package certs is the tools for certificates and signatures: stap-gen-cert makes
// what a compile server identifies itself with, stap-authorize-cert and its
// sisters make this host believe such a certificate, and stap-sign-module signs
// by hand (services 4.5, server-client 9).
package certs

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"stapbox/core/hostpaths"
	"stapbox/core/invocation"
)

// absolute is the absolute form of a path as the user wrote it.
func absolute(inv *invocation.Invocation, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(inv.Dir, name)
}

// dataDir is the user's data directory, "" if he has none.
func dataDir(inv *invocation.Invocation) string {
	home := inv.Getenv("HOME")
	if home == "" {
		if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil {
			home = u.HomeDir
		}
	}
	dir := hostpaths.UserDir(inv.Getenv("SYSTEMTAP_DIR"), home)
	if dir == "" {
		return ""
	}
	return absolute(inv, dir)
}
