// Package box is the applet of the box itself: stapbox --list, --version,
// --help, stapbox install and stapbox uninstall.
package box

import (
	"context"
	"fmt"
	"io"

	"stapbox/core/invocation"
	"stapbox/core/version"
)

// Applet is one row of the dispatch table.
type Applet struct {
	Name    string
	Summary string
	Main    func(context.Context, *invocation.Invocation) int
}

// Exit statuses of the box itself.
const (
	exitOK      = 0
	exitError   = 1
	exitUsage   = 2
	exitUnknown = 127
)

// IsApplet reports whether the table has a name.
func IsApplet(table []Applet, name string) bool {
	for _, a := range table {
		if a.Name == name {
			return true
		}
	}
	return false
}

// Main runs the box under its own name, or under one that no applet has.
func Main(ctx context.Context, inv *invocation.Invocation, table []Applet) int {
	if inv.Name != "stapbox" {
		return unknown(inv, inv.Name, table)
	}
	if len(inv.Args) == 0 {
		usage(inv.Stderr, table)
		return exitUsage
	}
	switch word := inv.Args[0]; word {
	case "--list":
		for _, a := range table {
			fmt.Fprintln(inv.Stdout, a.Name)
		}
	case "--version", "-V":
		fmt.Fprintf(inv.Stdout, "stapbox %s (SystemTap protocol %s)\n", version.Version, version.Protocol)
	case "--help", "-h":
		usage(inv.Stdout, table)
	case "install", "uninstall":
		return runInstall(inv, table, word == "uninstall", inv.Args[1:])
	default:
		return unknown(inv, word, table)
	}
	return exitOK
}

func unknown(inv *invocation.Invocation, name string, table []Applet) int {
	fmt.Fprintf(inv.Stderr, "stapbox: ERROR: %q is not an applet; the applets are:\n", name)
	for _, a := range table {
		fmt.Fprintf(inv.Stderr, "  %s\n", a.Name)
	}
	return exitUnknown
}

func usage(w io.Writer, table []Applet) {
	fmt.Fprint(w, `usage: stapbox APPLET [ARGUMENTS]     or a link named APPLET to stapbox
       stapbox --list | --version | --help
       stapbox install [--root DIR] [--bindir DIR] [--no-setuid] [--dry-run]
       stapbox uninstall [--root DIR] [--bindir DIR] [--dry-run]

applets:
`)
	for _, a := range table {
		fmt.Fprintf(w, "  %-14s %s\n", a.Name, a.Summary)
	}
}
