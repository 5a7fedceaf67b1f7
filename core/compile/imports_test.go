package compile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"stapbox/core/privilege"
	"stapbox/core/stapopts"
)

// object is an ELF file that imports the named symbols.
func object(tables int, names ...string) []byte {
	strtab, symtab := "\x00", make([]byte, 24)
	for _, n := range names {
		sym := make([]byte, 24)
		binary.LittleEndian.PutUint32(sym, uint32(len(strtab)))
		sym[4] = 0x10 // global
		symtab = append(symtab, sym...)
		strtab += n + "\x00"
	}
	header := []byte("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	put := func(vs ...any) {
		for _, v := range vs {
			header, _ = binary.Append(header, binary.LittleEndian, v)
		}
	}
	at := uint64(64)
	put(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), at+uint64(len(strtab)+len(symtab)), uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(2+tables), uint16(1))
	body := append([]byte(strtab), symtab...)
	header = append(header, body...)
	put(make([]byte, 64))
	put(uint32(0), uint32(3), uint64(0), uint64(0), at, uint64(len(strtab)), uint32(0), uint32(0), uint64(1), uint64(0))
	for range tables {
		put(uint32(0), uint32(2), uint64(0), uint64(0), at+uint64(len(strtab)), uint64(len(symtab)), uint32(1), uint32(1), uint64(8), uint64(24))
	}
	return header
}

// cutStrings has the table of strings end a byte early: package elf finds no name then,
// the kernel does.
func cutStrings(object []byte) []byte {
	sections := binary.LittleEndian.Uint64(object[40:])
	size := object[sections+64+32:] // sh_size of the first section
	binary.LittleEndian.PutUint64(size, binary.LittleEndian.Uint64(size)-1)
	return object
}

// livepatch gives the section number of live patches to the one name of an object.
func livepatch(object []byte) []byte {
	strtab := bytes.IndexByte(object[65:], 0) + 66 - 64
	binary.LittleEndian.PutUint16(object[64+strtab+24+6:], 0xff20)
	return object
}

// Whatever a worker has made of a script: below stapdev it imports what the runtime
// does, or is not signed.
func TestSecurityResidualImportsOfALevel(t *testing.T) {
	s := &Service{Imports: func(Release) (map[string]bool, error) { return map[string]bool{"_printk": true, "vfree": true}, nil }}
	r := &request{opts: &stapopts.Options{Privilege: privilege.StapUsr}, translator: stapopts.TranslatorBuiltin}
	for _, tt := range []struct {
		module []byte
		want   string
	}{
		{object(1, "_printk", "vfree", "__fentry__", "__x86_indirect_thunk_r11", "memcpy"), ""},
		{object(1), ""},
		{object(1, "_printk", "commit_creds", "prepare_kernel_cred"), "privilege level stapusr may not import commit_creds, prepare_kernel_cred from the kernel"},
		{object(1, "call_usermodehelper"), "may not import call_usermodehelper"},
		{object(1, "xmemcpy"), "may not import xmemcpy"},
		{object(2, "_printk"), "not exactly one table"},
		{object(0), "not exactly one table"},
		{livepatch(object(1, "_printk")), "symbol _printk is one of live patches"},
		{bytes.Replace(object(1, ".klp.sym.vmlinux.x,0"), []byte("\x00\x00\x00\x00\x02\x00\x00\x00"), []byte("\x01\x00\x00\x00\x02\x00\x00\x00"), 1), "section .klp.sym.vmlinux.x,0 belongs to live patches"},
		{cutStrings(object(1, "call_usermodehelper")), "a symbol without a name"},
		{[]byte("no ELF"), "reading the symbols"},
	} {
		err := s.checkImports(r, tt.module)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	s.Imports = func(Release) (map[string]bool, error) { return nil, errors.New("not prepared") }
	if err := s.checkImports(r, object(1, "_printk")); err == nil || !strings.Contains(err.Error(), "not prepared") {
		t.Errorf("a list that cannot be had: got %v", err)
	}
	// The service asks, below stapdev.
	for level, signed := range map[string]bool{"stapusr": false, "stapsys": false, "stapdev": true} {
		s := newService(t)
		asked := false
		s.Imports = func(Release) (map[string]bool, error) { asked = true; return nil, nil }
		got := s.ask(t, t.Context(), req61("-emodule "+level, "--privilege="+level))
		if modules, _ := got.Modules(); asked && signed || (got.RC == 0) != signed || (len(modules) == 1) != signed {
			t.Errorf("%s: asked %v, status %d, %d modules, %q", level, asked, got.RC, len(modules), got.Stderr)
		}
	}
}

func FuzzUndefinedSymbols(f *testing.F) {
	f.Add(object(1, "_printk"))
	f.Add(object(2, "x", "y"))
	f.Add(bytes.Repeat([]byte{0x7f}, 64))
	f.Fuzz(func(t *testing.T, b []byte) { undefinedSymbols(b) })
}
