package backend

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// place is an address of a relocatable file.
type place struct {
	section elf.SectionIndex
	offset  uint64
}

// Kernels with indirect branch tracking overwrite the ENDBR instruction of every
// function in .ibt_endbr_seal: an indirect call of one is an exception. Emulated
// processors do not track branches, so what a guest runs proves nothing; here no
// pointer in data and no address loaded by an instruction may lead to one.
func TestNoSealedFunctionIsPointedTo(t *testing.T) {
	dirs := filepath.SplitList(os.Getenv("STAPBOX_KERNEL_HEADERS"))
	if len(dirs) == 0 {
		t.Skip("no kernel headers: set STAPBOX_KERNEL_HEADERS to a build directory, or use e2e/run test")
	}
	scripts := []string{
		hello,
		`global a, n
probe timer.ms(10) { a[pid(), execname()] = sprintf("%s %d", ctime(gettimeofday_s()), n++) }
probe timer.jiffies(5).randomize(2) { foreach ([p, s] in a- limit 3) println(p, tokenize(s, " ")); delete a }
probe end { try { println(1 / n) } catch (e) { warn(e) } }
probe error { log("error") }`,
		`global n
probe procfs("x").read { $value = tz_ctime(1) } probe input.line { system(line) n++ } probe end { println(n) }`,
	}
	state := t.TempDir()
	for _, dir := range dirs {
		config, err := kernelConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range scripts {
			j, _, stderr := job(t, s)
			j.Kernel, j.StateDir = dir, state
			if s != hello {
				j.Defines = []string{"STP_MONITOR", "RELAY_HOST=ibt"}
			}
			a, rc := Builtin{}.Translate(context.Background(), j)
			if rc != 0 {
				t.Fatalf("%s: status %d\n%s", dir, rc, stderr)
			}
			sealed, pointers := branchTargets(t, a.Path)
			if config["CONFIG_X86_KERNEL_IBT"] == "y" && (len(sealed) == 0 || len(pointers) < 10) {
				t.Errorf("%s: %d sealed functions and %d pointers: the test does not understand the module", dir, len(sealed), len(pointers))
			}
			for p, from := range pointers {
				if sealed[p] {
					t.Errorf("%s: the function at %#x of section %d is sealed, but %s points to it", dir, p.offset, p.section, from)
				}
			}
			t.Logf("%s: %d sealed functions, %d places pointed to", dir, len(sealed), len(pointers))
		}
	}
}

// branchTargets reads a module: the functions that are sealed, and where
// pointers lead to, with the section each is in.
func branchTargets(t *testing.T, path string) (sealed map[place]bool, pointers map[place]string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	sealed, pointers = map[place]bool{}, map[place]string{}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_RELA {
			continue
		}
		relocations, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		of := f.Sections[s.Info]
		text, err := of.Data()
		if of.Type != elf.SHT_NOBITS && err != nil {
			t.Fatal(err)
		}
		for ; len(relocations) >= 24; relocations = relocations[24:] {
			at := binary.LittleEndian.Uint64(relocations)
			info := binary.LittleEndian.Uint64(relocations[8:])
			addend := binary.LittleEndian.Uint64(relocations[16:])
			if elf.R_SYM64(info) == 0 {
				continue
			}
			symbol := symbols[elf.R_SYM64(info)-1] // Symbols leaves out the first
			target := place{symbol.Section, symbol.Value + addend}
			if of.Name == ".ibt_endbr_seal" {
				sealed[target] = true
				continue
			}
			switch elf.R_X86_64(elf.R_TYPE64(info)) {
			case elf.R_X86_64_64, elf.R_X86_64_32, elf.R_X86_64_32S:
				pointers[target] = of.Name
			case elf.R_X86_64_PC32, elf.R_X86_64_PLT32:
				// LEA of an address relative to the next instruction.
				if of.Flags&elf.SHF_EXECINSTR != 0 && at >= 2 && text[at-2] == 0x8d && text[at-1]&0xc7 == 0x05 {
					target.offset += 4
					pointers[target] = of.Name
				}
			}
		}
	}
	if len(sealed) == 0 {
		for _, s := range f.Sections {
			if strings.HasPrefix(s.Name, ".ibt") {
				t.Errorf("%s: section %s is not understood", path, s.Name)
			}
		}
	}
	return sealed, pointers
}
