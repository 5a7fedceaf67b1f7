package compile

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"

	"stapbox/core/kbuild"
	"stapbox/core/stapopts"
)

// A worker translates what clients send, so a client may find a way past its checks
// of the script. Here, outside of the worker, the names are checked that the module
// takes from the kernel: below stapdev those of this program's runtime, and no
// others. That finds C that came into a module of such a level. It is no barrier to a
// worker that obeys a client in full: machine code finds a function by its distance
// from another one, without a name. That barrier is the sandbox's, and the
// translator's own tests.

// imported is what a compiler adds by itself, for a kernel's mitigations and
// instrumentation; by prefix.
var imported = []string{"__x86_indirect_", "__x86_return_", "__fentry__", "__stack_chk_", "memcpy", "memset", "memmove", "memcmp", "__ubsan_", "__sanitizer_cov_"}

// checkImports refuses a module of a level below stapdev that imports more than it
// may.
func (s *Service) checkImports(r *request, module []byte) error {
	if s.Imports == nil || r.translator == stapopts.TranslatorSystemtap {
		return nil
	}
	names, err := undefinedSymbols(module)
	if err != nil {
		return fmt.Errorf("reading the symbols of the module: %w", err)
	}
	allowed, err := s.Imports(r.release)
	if err != nil {
		return fmt.Errorf("finding out what modules may import: %w", err)
	}
	var foreign []string
	for _, n := range names {
		if !allowed[n] && !slices.ContainsFunc(imported, func(p string) bool { return strings.HasPrefix(n, p) }) {
			foreign = append(foreign, oneLine(n))
		}
	}
	if len(foreign) > 0 {
		return refuse("Server: privilege level %s may not import %s from the kernel, the module is not signed", r.opts.Privilege, strings.Join(foreign[:min(len(foreign), 5)], ", "))
	}
	return nil
}

// RuntimeImports is Service.Imports: what the prepared runtime of a kernel imports.
func (s *Service) RuntimeImports(release Release) (map[string]bool, error) {
	k, err := s.kernel(release)
	if err != nil {
		return nil, err
	}
	p, err := kbuild.Open(s.StateDir, k, s.self().runtime)
	if err != nil {
		return nil, err
	}
	return p.Imports(), nil
}

// Modules that are live patches have names resolved also that are not exported
// (Documentation/livepatch/module-elf-format.rst).
const (
	livepatchSection                  = ".klp."
	shnLivepatch     elf.SectionIndex = 0xff20
)

// undefinedSymbols are the names that an object takes from elsewhere. The object is a
// worker's: what package elf makes of it is not trusted to end well.
func undefinedSymbols(object []byte) (names []string, err error) {
	defer func() {
		if p := recover(); p != nil {
			names, err = nil, fmt.Errorf("not an ELF file: %v", p)
		}
	}()
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return nil, err
	}
	tables := 0
	for _, s := range f.Sections {
		if strings.HasPrefix(s.Name, livepatchSection) {
			return nil, fmt.Errorf("section %s belongs to live patches", oneLine(s.Name))
		}
		if s.Type == elf.SHT_SYMTAB {
			tables++
		}
	}
	if tables != 1 { // the kernel takes the last, package elf the first
		return nil, errors.New("not exactly one table of symbols")
	}
	symbols, err := f.Symbols()
	if err != nil {
		return nil, err
	}
	for _, s := range symbols {
		if s.Section == shnLivepatch {
			return nil, fmt.Errorf("symbol %s is one of live patches", oneLine(s.Name))
		}
		if s.Section == elf.SHN_UNDEF {
			if s.Name == "" { // the kernel may see more of the table of strings
				return nil, errors.New("a symbol without a name")
			}
			names = append(names, s.Name)
		}
	}
	return names, nil
}
