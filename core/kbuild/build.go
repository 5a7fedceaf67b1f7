package kbuild

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// nameSlot stands for the module's name in prepared objects. It is as long
// as a name can be on 64-bit machines.
const nameSlot = "stapbox_placeholder_for_the_name_of_the_module_________"

// MaxName is the longest module name, in bytes.
const MaxName = len(nameSlot)

// Unit is a script as C, to be made a module.
type Unit struct {
	Name   string // of the module
	Source []byte
	// KernelHeaders: the source includes them. It takes ten times as long.
	KernelHeaders bool
	// Flags are for the compiler, behind the kernel's own.
	Flags []string
}

// Build makes NAME.ko in dir, which must be empty and private. Errors of the
// tools are ToolErrors.
func (p *Prepared) Build(ctx context.Context, u Unit, dir string) (string, error) {
	if len(u.Name) == 0 || len(u.Name) > MaxName {
		return "", fmt.Errorf("module name %q is not between 1 and %d bytes long", u.Name, MaxName)
	}
	path := func(suffix string) string { return filepath.Join(dir, u.Name+suffix) }
	build := filepath.Join(p.Dir, "build")
	if err := os.WriteFile(path(".c"), u.Source, 0o600); err != nil {
		return "", err
	}
	include := filepath.Join(p.Dir, "include")
	compile, at := withoutHeaders(p.recipe.Compile, include), dir
	if u.KernelHeaders {
		// The kernel's headers are named relative to its build directory.
		compile, at = append(slices.Clone(p.recipe.Compile), "-Wno-unused", "-Wno-declaration-after-statement", "-I"+include), build
	}
	compile = append(slices.Clip(compile), u.Flags...)
	if err := command(ctx, at, expand(compile, map[string]string{varSource: path(".c"), varObject: path(".unit.o"), varName: u.Name})...); err != nil {
		return "", err
	}
	link := expand(p.recipe.Link, map[string]string{varObject: path(".o")}, path(".unit.o"), filepath.Join(p.Dir, runtimeName), filepath.Join(p.Dir, archiveName))
	if err := command(ctx, build, link...); err != nil {
		return "", err
	}
	module, err := p.moduleObject(ctx, path(".o"))
	if err != nil {
		return "", err
	}
	if p.recipe.Objtool != nil {
		if err := command(ctx, build, expand(p.recipe.Objtool, map[string]string{varObject: path(".o")})...); err != nil {
			return "", err
		}
	}
	objects := []string{path(".o"), module}
	if p.recipe.ModCommon {
		objects = append(objects, filepath.Join(p.Dir, commonName))
	}
	final := expand(p.recipe.LinkFinal, map[string]string{varObject: path(".ko")}, objects...)
	final = slices.Insert(final, 1, "--strip-debug", "--discard-all")
	if err := command(ctx, build, final...); err != nil {
		return "", err
	}
	if err := nameModule(path(".ko"), u.Name); err != nil {
		return "", err
	}
	for _, suffix := range []string{".unit.o", ".o"} {
		if err := os.Remove(path(suffix)); err != nil {
			return "", err
		}
	}
	return path(".ko"), nil
}

// moduleObject is the prepared module.o, or one of the module's own when it
// needs a symbol that is not in the prepared one's CRC table.
func (p *Prepared) moduleObject(ctx context.Context, object string) (string, error) {
	b, err := os.ReadFile(object)
	if err != nil {
		return "", err
	}
	needed, err := undefined(b)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(needed, func(s string) bool { return !p.symbols[s] }) {
		return filepath.Join(p.Dir, moduleName), nil
	}
	build := filepath.Join(p.Dir, "build")
	source, err := modpost(ctx, p.recipe, build, object, false)
	if err != nil {
		return "", err
	}
	own := strings.TrimSuffix(source, ".c") + ".o"
	words := expand(p.recipe.Compile, map[string]string{varSource: source, varObject: own, varName: nameSlot})
	return own, command(ctx, build, words...)
}

// nameModule overwrites the nameSlot where module.o has it: in struct module and
// in the entry "name=" of .modinfo, whose padding zeroes are skipped. Elsewhere
// it is a string of the script.
func nameModule(path, name string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("naming module %q: %w", name, err)
	}
	padded := make([]byte, len(nameSlot))
	copy(padded, name)
	for section, before := range map[string]string{".modinfo": "name=", ".gnu.linkonce.this_module": ""} {
		s := f.Section(section)
		if s == nil || s.Type == elf.SHT_NOBITS || s.Offset+s.Size > uint64(len(b)) {
			return fmt.Errorf("naming module %q: no section %q", name, section)
		}
		data := b[s.Offset : s.Offset+s.Size]
		// Zeroes separate entries, and fill the struct.
		at := bytes.Index(append([]byte{0}, data...), []byte("\x00"+before+nameSlot+"\x00"))
		if at < 0 {
			return fmt.Errorf("naming module %q: its name has no place in %q", name, section)
		}
		copy(data[at+len(before):], padded)
	}
	return os.WriteFile(path, b, 0o644)
}

// undefined lists the symbols that an object takes from elsewhere.
func undefined(object []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return nil, err
	}
	symbols, err := f.Symbols()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range symbols {
		if s.Section == elf.SHN_UNDEF && s.Name != "" {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
