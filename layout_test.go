package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pkg is what go list -json tells about a package.
type pkg struct {
	ImportPath, Name, Doc string
	Imports, Deps         []string
	Standard              bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-tags", "urfave_cli_no_docs", "-json"}, args...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// TestLayout holds the rules of the folders: applets import core and never each
// other; core knows neither applets nor the CLI library; every package says what
// it is.
func TestLayout(t *testing.T) {
	for _, p := range list(t, "./...") {
		if p.Doc == "" {
			t.Errorf("package %s has no doc comment", p.ImportPath)
		}
		for _, i := range p.Imports {
			switch {
			case strings.HasPrefix(p.ImportPath, "stapbox/applets/") && strings.HasPrefix(i, "stapbox/applets/"):
				t.Errorf("applet %s imports applet %s", p.ImportPath, i)
			case strings.HasPrefix(p.ImportPath, "stapbox/core/") && (strings.HasPrefix(i, "stapbox/applets") || strings.HasPrefix(i, "stapbox/e2e")):
				t.Errorf("core package %s imports %s", p.ImportPath, i)
			case strings.HasPrefix(p.ImportPath, "stapbox/core/") && strings.HasPrefix(i, "github.com/urfave/"):
				t.Errorf("core package %s imports the CLI library", p.ImportPath)
			}
		}
	}
}

// privileged is every package outside the standard library that the loader
// consists of. A new line here needs a reason in its commit.
var privileged = []string{
	"golang.org/x/sys/unix",
	"stapbox/applets/loader",
	"stapbox/core/getopt",
	"stapbox/core/hostpaths",
	"stapbox/core/invocation",
	"stapbox/core/kmod",
	"stapbox/core/privilege",
	"stapbox/core/report",
	"stapbox/core/runopts",
	"stapbox/core/signing",
	"stapbox/core/transport",
	"stapbox/core/trust",
	"stapbox/core/version",
}

// forbidden are packages of the standard library that the loader must not use:
// it runs no program by name, speaks no network protocol, reads no archive.
var forbidden = []string{"os/exec", "os/user", "net/http", "crypto/tls", "plugin", "archive/zip", "compress/flate", "database/sql", "log/syslog"}

func TestPrivilegedImports(t *testing.T) {
	loader := list(t, "./applets/loader")[0]
	var got []string
	for _, d := range append(loader.Deps, loader.ImportPath) {
		if slices.Contains(forbidden, d) {
			t.Errorf("the loader imports %s", d)
		}
		if first, _, _ := strings.Cut(d, "/"); strings.Contains(first, ".") || first == "stapbox" {
			got = append(got, d)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, privileged) {
		t.Errorf("the privileged path consists of\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(privileged, "\n"))
	}
}

// initialisers are the packages outside the standard library that work before
// main, with what they do there. They run with root's rights and the caller's
// environment, so each was read; none of ours may be among them.
var initialisers = map[string]string{
	"filippo.io/edwards25519":               "constants of the curve",
	"github.com/hashicorp/mdns":             "two multicast addresses",
	"github.com/urfave/cli/v2":              "tables of flag kinds and templates",
	"golang.org/x/crypto/cryptobyte":        "a table of tags",
	"github.com/miekg/dns":                  "tables of names",
	"go.step.sm/crypto/internal/utils/file": "an error value",
	"go.step.sm/crypto/randutil":            "a table of characters",
	"go.step.sm/crypto/x25519":              "error values",
	"golang.org/x/crypto/curve25519":        "the base point",
	"golang.org/x/crypto/ssh":               "tables of algorithms",
	"golang.org/x/net/internal/socket":      "a pool of buffers",
	"golang.org/x/net/ipv4":                 "tables of options",
	"golang.org/x/net/ipv6":                 "tables of options",
	"golang.org/x/sys/unix":                 "error values",
	"mvdan.cc/sh/v3/expand":                 "two regular expressions for globs",
	"mvdan.cc/sh/v3/fileutil":               "two regular expressions for names and first lines of scripts",
}

// TestInitialisers asks the runtime which packages of the real executable do
// work before main (GODEBUG=inittrace).
func TestInitialisers(t *testing.T) {
	box := filepath.Join(t.TempDir(), "stapbox")
	build := exec.Command("go", "build", "-tags", "urfave_cli_no_docs", "-o", box, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(box, "--version")
	cmd.Env = []string{"GODEBUG=inittrace=1"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "init" {
			continue
		}
		seen++
		name := f[1]
		first, _, _ := strings.Cut(name, "/")
		switch {
		case first == "stapbox" || name == "main":
			t.Errorf("our package %s works before main: %s", name, line)
		case strings.Contains(first, ".") && initialisers[name] == "":
			t.Errorf("package %s works before main and nobody has read what it does: %s", name, line)
		}
	}
	if seen < 10 {
		t.Errorf("the runtime reports only %d packages:\n%s", seen, out)
	}
}
