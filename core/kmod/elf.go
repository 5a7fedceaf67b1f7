package kmod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"stapbox/core/privilege"
)

// This is the least ELF reader that does the job. It is ours because it reads
// bytes of unknown origin with root privilege: every offset is checked against
// the image before use, nothing is allocated by a size from the file.
//
//	ELF64 header        section header (64 bytes)     used
//	0x00 7f 'E' 'L' 'F'   0x00 u32 name in shstrtab
//	0x04 class 2          0x04 u32 type               8 = NOBITS, refused
//	0x05 data 1|2         0x18 u64 offset
//	0x12 u16 machine      0x20 u64 size
//	0x28 u64 shoff
//	0x3a u16 shentsize    (64)
//	0x3c u16 shnum
//	0x3e u16 shstrndx

// ErrFormat is wrapped by every error about the structure of a module file.
var ErrFormat = errors.New("not a kernel module of this machine")

const (
	elfHeaderSize     = 64
	sectionHeaderSize = 64
	noBits            = 8
	maxSections       = 4096

	privilegeSection = ".stap_privilege"
	moduleSection    = ".gnu.linkonce.this_module"
)

func formatError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

type section struct{ offset, size uint64 }

// find returns the first section of a name, in index order; ok is false when
// there is none.
func find(image []byte, name string) (s section, ok bool, err error) {
	if len(image) < elfHeaderSize || string(image[:4]) != "\x7fELF" || image[4] != 2 {
		return s, false, formatError("no ELF64 header")
	}
	order := binary.ByteOrder(binary.LittleEndian)
	native := byte(1)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		order, native = binary.BigEndian, 2
	}
	if image[5] != native {
		return s, false, formatError("foreign byte order")
	}
	shoff := order.Uint64(image[0x28:])
	count, strndx := uint64(order.Uint16(image[0x3c:])), uint64(order.Uint16(image[0x3e:]))
	size := uint64(len(image))
	if order.Uint16(image[0x3a:]) != sectionHeaderSize || count == 0 || count > maxSections || strndx >= count ||
		shoff > size || count*sectionHeaderSize > size-shoff {
		return s, false, formatError("section headers outside the file")
	}
	header := func(i uint64) []byte { return image[shoff+i*sectionHeaderSize:][:sectionHeaderSize] }
	body := func(h []byte) (section, error) {
		s := section{order.Uint64(h[0x18:]), order.Uint64(h[0x20:])}
		if order.Uint32(h[4:]) == noBits || s.offset > size || s.size > size-s.offset {
			return s, formatError("section outside the file")
		}
		return s, nil
	}
	strings, err := body(header(strndx))
	if err != nil {
		return s, false, err
	}
	names := image[strings.offset : strings.offset+strings.size]
	for i := uint64(0); i < count; i++ {
		h := header(i)
		at := uint64(order.Uint32(h))
		if at >= uint64(len(names)) {
			continue
		}
		if n, _, ended := bytes.Cut(names[at:], []byte{0}); !ended || string(n) != name {
			continue
		}
		s, err := body(h)
		if err != nil {
			return s, false, fmt.Errorf("%w (section %q)", err, name)
		}
		return s, true, nil
	}
	return s, false, nil
}

// RequiredLevel is the privilege level a module was compiled for: the four
// bytes of its section .stap_privilege. Without the section, or with one that
// does not hold exactly one known level, the highest level is required
// (decision L1).
func RequiredLevel(image []byte) (level privilege.Level, present bool, err error) {
	s, ok, err := find(image, privilegeSection)
	if err != nil {
		return privilege.StapDev, false, err
	}
	if !ok || s.size != 4 {
		return privilege.StapDev, ok, nil
	}
	switch l := privilege.Level(binary.NativeEndian.Uint32(image[s.offset:])); l {
	case privilege.StapUsr, privilege.StapSys, privilege.StapDev:
		return l, true, nil
	}
	return privilege.StapDev, true, nil
}

// Info is the value of a field of .modinfo: "name", "vermagic". ok is false when
// there is no such field, or an empty one.
func Info(image []byte, field string) (value string, ok bool, err error) {
	s, ok, err := find(image, ".modinfo")
	if err != nil {
		return "", false, err
	}
	if !ok {
		return "", false, formatError("no section %q", ".modinfo")
	}
	for f := range bytes.SplitSeq(image[s.offset:s.offset+s.size], []byte{0}) {
		if v, ok := bytes.CutPrefix(f, []byte(field+"=")); ok && len(v) > 0 {
			return string(v), true, nil
		}
	}
	return "", false, nil
}

// Parameters are the names of a module's parameters: the kernel has an entry
// "parmtype=NAME:TYPE" in .modinfo for each.
func Parameters(image []byte) ([]string, error) {
	s, ok, err := find(image, ".modinfo")
	if err != nil || !ok {
		return nil, err
	}
	var names []string
	for f := range bytes.SplitSeq(image[s.offset:s.offset+s.size], []byte{0}) {
		if v, ok := bytes.CutPrefix(f, []byte("parmtype=")); ok {
			name, _, _ := bytes.Cut(v, []byte(":"))
			names = append(names, string(name))
		}
	}
	return names, nil
}

// Name is the name that the kernel will know the module by: the string
// "name=..." of its .modinfo, checked to stand in its struct module too.
func Name(image []byte) (string, error) {
	name, ok, err := Info(image, "name")
	if err != nil {
		return "", err
	}
	if !ok {
		return "", formatError("no module name in .modinfo")
	}
	if _, err := nameAt(image, name); err != nil {
		return "", err
	}
	return name, nil
}

// nameAt finds a name in the otherwise zero-filled struct module. Its offset
// there differs between kernels, so it is found by content.
func nameAt(image []byte, name string) (uint64, error) {
	s, ok, err := find(image, moduleSection)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, formatError("section name %q not found in module", moduleSection)
	}
	i := bytes.Index(image[s.offset:s.offset+s.size], append([]byte(name), 0))
	if i < 0 || i > 0 && image[s.offset+uint64(i)-1] != 0 {
		return 0, formatError("module name %q not found in %q", name, moduleSection)
	}
	return s.offset + uint64(i), nil
}

// ErrNameTooShort is returned by Rename; the image is unchanged then.
var ErrNameTooShort = errors.New("module name is too short for renaming")

// Rename gives the module a name that is free on this host, in place: the end
// of the old name becomes "_" and a number, the length stays. Only the struct
// module changes, as in upstream's -R.
func Rename(image []byte, id int) (string, error) {
	old, err := Name(image)
	if err != nil {
		return "", err
	}
	suffix := fmt.Sprintf("_%d", id)
	if len(old) <= len(suffix) {
		return old, ErrNameTooShort
	}
	name := old[:len(old)-len(suffix)] + suffix
	at, err := nameAt(image, old)
	if err != nil {
		return "", err
	}
	copy(image[at:], name)
	return name, nil
}

// OwnMark is the .modinfo field by which our own modules are known. It decides
// nothing but which messages the module needs.
const OwnMark = "stapbox="

// Own reports whether a module was made by our own translator.
func Own(image []byte) bool {
	s, ok, err := find(image, ".modinfo")
	if !ok || err != nil {
		return false
	}
	for f := range bytes.SplitSeq(image[s.offset:s.offset+s.size], []byte{0}) {
		if bytes.HasPrefix(f, []byte(OwnMark)) {
			return true
		}
	}
	return false
}
