package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"unicode/utf16"
)

// Firmware is UEFI for a guest.
type Firmware struct {
	Code string // the program
	Vars string // its variables as they are at first
}

// Variable is a variable of the firmware.
type Variable struct {
	Name string
	GUID [16]byte // as it lies in memory: the first three parts little endian
	Data []byte
}

// FetchFirmware gives OVMF.
func (l *Lab) FetchFirmware() (*Firmware, error) {
	root := filepath.Join(l.Dir, "ovmf")
	f := &Firmware{filepath.Join(root, "usr/share/OVMF/OVMF_CODE_4M.fd"), filepath.Join(root, "usr/share/OVMF/OVMF_VARS_4M.fd")}
	if exists(f.Code) && exists(f.Vars) {
		return f, nil
	}
	return f, l.unpackThese(root, "ovmf")
}

// Modinfo runs modinfo of package kmod on a module file.
func (l *Lab) Modinfo(path string) ([]byte, error) {
	root := filepath.Join(l.Dir, "kmod")
	var program string
	for _, dir := range []string{"usr/bin", "bin"} {
		if p := filepath.Join(root, dir, "kmod"); exists(p) {
			program = p
		}
	}
	if program == "" {
		if err := l.unpackThese(root, "kmod", "libkmod2"); err != nil {
			return nil, err
		}
		return l.Modinfo(path)
	}
	cmd := exec.Command(program, path)
	cmd.Args[0] = "modinfo" // the program answers to it
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(root, "usr/lib/x86_64-linux-gnu")+":"+filepath.Join(root, "lib/x86_64-linux-gnu"))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("modinfo: %w: %s", err, errs.Bytes())
	}
	return out, nil
}

// The store of variables (edk2, MdeModulePkg/Include/Guid/VariableFormat.h): after the
// header of the volume, whose length is in its octets 48 and 49, come
//
//	16 octets  GUID aaf32c78-947b-439a-a180-2e144ec37792: variables that have room
//	           for what authentication needs
//	 4 octets  size of the store
//	 2 octets  5a fe: formatted, healthy
//	 6 octets  reserved
//
// and, each at a multiple of four, the variables:
//
//	aa 55      it begins
//	3f 00      it is valid
//	 4 octets  attributes: 1 kept, 2 for boot services, 4 for the running system
//	28 octets  counter, time and key of authentication
//	 4 octets  size of the name
//	 4 octets  size of the contents
//	16 octets  GUID of who gave the name
//	           name, UTF-16 with a zero at the end; contents
const (
	authenticatedStore = "\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92"
	storeHeader        = 28
)

// addVariables puts variables into a store without any.
func addVariables(volume []byte, vars []Variable) ([]byte, error) {
	if len(volume) < 64 || string(volume[40:44]) != "_FVH" {
		return nil, errors.New("there is no firmware volume")
	}
	at := int(binary.LittleEndian.Uint16(volume[48:]))
	if at+storeHeader > len(volume) || string(volume[at:at+16]) != authenticatedStore || volume[at+20] != 0x5a || volume[at+21] != 0xfe {
		return nil, errors.New("the store of variables has an unknown format")
	}
	room := int(binary.LittleEndian.Uint32(volume[at+16:])) - storeHeader
	out := bytes.Clone(volume)
	if at += storeHeader; room < 2 || at+room > len(out) || out[at] != 0xff || out[at+1] != 0xff {
		return nil, errors.New("the store has variables already")
	}
	var b []byte
	for _, v := range vars {
		name := append(utf16.Encode([]rune(v.Name)), 0)
		b = append(b, 0xaa, 0x55, 0x3f, 0)
		b = binary.LittleEndian.AppendUint32(b, 7)
		b = append(b, make([]byte, 28)...)
		b = binary.LittleEndian.AppendUint32(b, uint32(2*len(name)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(v.Data)))
		b = append(b, v.GUID[:]...)
		for _, c := range name {
			b = binary.LittleEndian.AppendUint16(b, c)
		}
		b = append(b, v.Data...)
		for len(b)%4 != 0 {
			b = append(b, 0xff)
		}
	}
	if len(b) > room {
		return nil, fmt.Errorf("%d bytes of variables are more than the %d of the store", len(b), room)
	}
	copy(out[at:], b)
	return out, nil
}

// arguments writes the variables of one guest and gives the words for QEMU.
func (f *Firmware) arguments(dir string, vars []Variable) ([]string, error) {
	empty, err := os.ReadFile(f.Vars)
	if err != nil {
		return nil, err
	}
	volume, err := addVariables(empty, vars)
	if err != nil {
		return nil, fmt.Errorf("writing variables into %q: %w", f.Vars, err)
	}
	path := filepath.Join(dir, "vars")
	if err := os.WriteFile(path, volume, 0o600); err != nil {
		return nil, err
	}
	return []string{
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + f.Code,
		"-drive", "if=pflash,format=raw,unit=1,file=" + path,
	}, nil
}
