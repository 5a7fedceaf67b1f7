package kbuild

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// compilerProper is where gcc keeps what does its work; the recipe names only
// the driver.
const compilerProper = "/usr/lib*/gcc/*/*/cc1"

// Identity is a text that changes whenever a module of the same source could
// turn out different: with the headers of the kernel, the prepared state, and
// the programs of the recipe, which are looked for in path. Of programs and
// headers size and time of modification count. It runs nothing.
func Identity(stateDir string, k Kernel, rt Runtime, path string) string {
	if k.BuildDir == "" {
		return k.Release + "\nno headers\n"
	}
	var b strings.Builder
	b.WriteString(k.identity())
	dir := directory(stateDir, k, rt)
	fmt.Fprintf(&b, "%s\n", dir)
	text, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		b.WriteString("not prepared\n")
		return b.String()
	}
	fmt.Fprintf(&b, "%x\n", sha256.Sum256(text))
	var m struct{ Recipe recipe }
	if json.Unmarshal(text, &m) != nil {
		return b.String()
	}
	programs := []string{"as"} // gcc runs it
	for _, command := range [][]string{m.Recipe.Compile, m.Recipe.Link, m.Recipe.Objtool, m.Recipe.Modpost, m.Recipe.LinkFinal} {
		if len(command) > 0 {
			programs = append(programs, command[0])
		}
	}
	slices.Sort(programs)
	for _, p := range slices.Compact(programs) {
		b.WriteString(fileIdentity(lookPath(p, filepath.Join(dir, "build"), path)))
	}
	proper, err := filepath.Glob(compilerProper)
	if err == nil {
		for _, p := range proper {
			b.WriteString(fileIdentity(p))
		}
	}
	return b.String()
}

// lookPath finds a program as command does: names without a slash in path,
// others from the build directory.
func lookPath(program, build, path string) string {
	if strings.Contains(program, "/") {
		if filepath.IsAbs(program) {
			return program
		}
		return filepath.Join(build, program)
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, program)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p
		}
	}
	return program
}
