// Package box is the applet of the box itself: stapbox --list, --version,
// --help, stapbox install, stapbox uninstall, stapbox doctor, stapbox man,
// stapbox cache and stapbox trust.
package box

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
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
	if inv.Name != boxName {
		return unknown(inv, inv.Name, table)
	}
	b := &box{inv: inv, table: table}
	spec := getopt.Spec{Posix: true, Defs: []getopt.Def{
		{Long: "list"}, {Long: "version", Short: 'V'}, {Long: "help", Short: 'h'},
	}}
	opts, words, err := getopt.Parse(spec, inv.Args)
	if err != nil {
		inv.Errorf("ERROR: %v", err)
		return exitUsage
	}
	args := []string{boxName}
	for _, o := range opts {
		args = append(args, "--"+o.Name)
	}
	if len(words) > 0 {
		var rest []string
		if asked := helpArgs(words); asked != nil && b.app().Command(words[0]) != nil {
			return b.run(ctx, append(args, asked...))
		}
		switch words[0] {
		case "install", "uninstall":
			rest, err = plain(installSpec(), words[1:])
		case "doctor":
			rest, err = plain(doctorSpec(), words[1:])
		case "man":
			rest, err = manArgs(words[1:])
		case "cache":
			rest, err = cacheArgs(words[1:])
		case "trust":
			rest, err = trustArgs(words[1:])
		default:
			return unknown(inv, words[0], table)
		}
		if err != nil {
			inv.Errorf("ERROR: %v", err)
			return exitUsage
		}
		args = append(append(args, words[0]), rest...)
	} else if len(opts) == 0 {
		args = append(args, "--help")
		b.inv.Stdout, b.status = b.inv.Stderr, exitUsage // nobody asked for it
	}
	return b.run(ctx, args)
}

func (b *box) run(ctx context.Context, args []string) int {
	if err := b.app().RunContext(ctx, args); err != nil {
		b.inv.Errorf("ERROR: %v", err)
		return exitError
	}
	return b.status
}

// helpArgs are the words of a command whose last one asks for help: the names
// among them, and --help.
func helpArgs(words []string) []string {
	last := len(words) - 1
	if words[last] != "--help" && words[last] != "-h" || slices.Contains(words, "--") {
		return nil
	}
	names := slices.DeleteFunc(slices.Clone(words[:last]), func(w string) bool { return strings.HasPrefix(w, "-") })
	return append(names, "--help")
}

// plain makes the words after a command canonical that takes options only.
func plain(spec getopt.Spec, words []string) ([]string, error) {
	opts, operands, err := getopt.Parse(spec, words)
	if err == nil && len(operands) > 0 {
		err = fmt.Errorf("unexpected word %q", operands[0])
	}
	return getopt.Canonical(opts, nil), err
}

// box is one run.
type box struct {
	inv    *invocation.Invocation
	table  []Applet
	status int
}

// app describes the commands to the command line library. Its own reading of
// arguments is only ever given canonical ones.
func (b *box) app() *cli.App {
	root := &cli.StringFlag{Name: "root", Usage: "make `DIR` the root of an image instead of installing here"}
	bindir := &cli.StringFlag{Name: "bindir", Usage: "put the links to the applets into `DIR`", Value: hostpaths.Bindir}
	dryRun := &cli.BoolFlag{Name: "dry-run", Usage: "only say what would be done"}
	noSetuid := &cli.BoolFlag{Name: "no-setuid", Usage: "make staprun a plain link: only root can load modules"}
	return &cli.App{
		Name:  boxName,
		Usage: "every program of the SystemTap compile-server world in one file",
		UsageText: `stapbox APPLET [ARGUMENTS]     (or a link named APPLET to stapbox)
stapbox install | uninstall [OPTIONS]
stapbox entrypoint [STAP-SERVERD OPTIONS]     (the first process of a container)
stapbox doctor [--json] [--online]
stapbox man [APPLET]
stapbox cache ls | show | verify | prune [OPTIONS]
stapbox trust list | revoke [OPTIONS]
stapbox --list | --version | --help`,
		Writer: b.inv.Stdout, ErrWriter: b.inv.Stderr,
		HideVersion: true, HideHelpCommand: true,
		ExitErrHandler: func(*cli.Context, error) {},
		Description:    "applets:\n" + b.list("  %-27s %s\n"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "list", Usage: "list the applets, one name a line"},
			&cli.BoolFlag{Name: "version", Aliases: []string{"V"}, Usage: "print the version"},
		},
		Action: func(c *cli.Context) error {
			if c.Bool("list") {
				fmt.Fprint(c.App.Writer, b.list("%s\n"))
			}
			if c.Bool("version") {
				fmt.Fprintf(c.App.Writer, "stapbox %s (SystemTap protocol %s)\n", version.Version, version.Protocol)
			}
			return nil
		},
		Commands: []*cli.Command{
			{
				Name: "install", Usage: "put the one file, its links, groups and directories in place",
				Flags: []cli.Flag{root, bindir, noSetuid, dryRun,
					&cli.BoolFlag{Name: "systemd", Usage: "and what the host needs to run servers and scripts as services of systemd"},
					&cli.BoolFlag{Name: "sysvinit", Usage: "the same for init scripts"},
				},
				Action: func(c *cli.Context) error { return b.installer(c).run((*installer).install) },
			},
			{
				Name: "uninstall", Usage: "remove the programs; groups, trust stores and what was changed stay",
				Flags:  []cli.Flag{root, bindir, dryRun},
				Action: func(c *cli.Context) error { return b.installer(c).run((*installer).uninstall) },
			},
			{
				Name: "doctor", Usage: "say what on this host would refuse a run, and what cures it",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "json", Usage: "for programs"},
					&cli.BoolFlag{Name: "online", Usage: "look for compile servers on the network"},
				},
				Action: func(c *cli.Context) error { return b.examine(c.Context, c.Bool("json"), c.Bool("online")) },
			},
			{
				Name: "man", Usage: "show a manual page, or the list of them", ArgsUsage: "[APPLET]",
				Action: func(c *cli.Context) error { return b.man(c.Context, c.Args().First()) },
			},
			b.cacheCommand(),
			b.trustCommand(),
		},
	}
}

// list shows the table, a format a row.
func (b *box) list(format string) string {
	var s strings.Builder
	for _, a := range b.table {
		if strings.Count(format, "%") == 1 {
			fmt.Fprintf(&s, format, a.Name)
		} else {
			fmt.Fprintf(&s, format, a.Name, a.Summary)
		}
	}
	return s.String()
}

func unknown(inv *invocation.Invocation, name string, table []Applet) int {
	fmt.Fprintf(inv.Stderr, "stapbox: ERROR: %q is not an applet; the applets are:\n", name)
	for _, a := range table {
		fmt.Fprintf(inv.Stderr, "  %s\n", a.Name)
	}
	return exitUnknown
}
