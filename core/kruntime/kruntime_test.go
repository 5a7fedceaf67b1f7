package kruntime

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"os"
)

func TestSources(t *testing.T) {
	sources := Sources()
	for _, name := range append(Always(), Optional()...) {
		text := string(sources[name])
		if !strings.HasPrefix(text, "// SPDX-License-Identifier: MIT OR GPL-2.0\n") {
			t.Errorf("%s: no licence line", name)
		}
		if !strings.Contains(text, `#include "runtime.h"`) {
			t.Errorf("%s: does not include runtime.h", name)
		}
	}
	if got, want := len(Always())+len(Optional())+3, len(sources); got != want {
		t.Errorf("%d files are accounted for, want %d", got, want)
	}
	if !bytes.Contains(sources["main.c"], []byte(`MODULE_LICENSE("Dual MIT/GPL")`)) {
		t.Error("main.c does not state the module licence")
	}
	if len(Version()) != 32 || Version() != Version() {
		t.Errorf("version %q is not a stable digest", Version())
	}
}

// Names that the flat header brings in must not clash with a kernel header's.
func TestHeaderNames(t *testing.T) {
	for _, m := range regexp.MustCompile(`(?m)^#define (\w+)`).FindAllStringSubmatch(string(Header()), -1) {
		if n := m[1]; n != "NULL" && !strings.HasPrefix(n, "STP_") && !strings.HasPrefix(n, "stp_") && !strings.HasPrefix(n, "__STP_") {
			t.Errorf("macro %s lacks the prefix", n)
		}
	}
}

func TestHeaderCompiles(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is missing")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, HeaderName), Header(), 0o600); err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(dir, "unit.c")
	if err := os.WriteFile(unit, []byte("#include \"stp.h\"\nSTP_PRIVILEGE(8);\nSTP_SCRIPT_PARTS(1, 1, 1, 1, NULL, \"n\")\nstatic int64_t g;\nSTP_PARAM_LONG(g, \"g\");\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(gcc, "-Wall", "-Werror", "-nostdinc", "-ffreestanding", "-O2", "-fsyntax-only", unit).CombinedOutput()
	if err != nil {
		t.Errorf("compiling the header alone: %v\n%s", err, out)
	}
}
