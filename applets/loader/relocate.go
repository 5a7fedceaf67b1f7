package loader

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"stapbox/core/kmod"
	"stapbox/core/transport"
)

// kernelSymbols are the ones that modules of upstream's translator ask for.
var kernelSymbols = []string{"_stext", "kallsyms_lookup_name", "kallsyms_on_each_symbol", "module_kallsyms_on_each_symbol"}

// relocate sends addresses of the kernel and its modules (loader-relay 5.4).
// Our own modules use exported symbols only and need none; upstream's cannot
// start without.
func (l *loader) relocate(ch *transport.Channel, m *module) error {
	if kmod.Own(m.image) {
		return nil
	}
	if err := sendKernelSymbols(ch); err != nil {
		return err
	}
	if _, err := os.Stat("/sys/kernel/notes"); err == nil {
		if err := sendRelocation(ch, "kernel", ".note.gnu.build-id", 2); err != nil { // 2: the notes exist
			return err
		}
	}
	return sendModuleSections(ch)
}

func sendRelocation(ch *transport.Channel, module, symbol string, address uint64) error {
	msg, err := transport.RelocationMessage(module, symbol, address)
	if err != nil {
		return err
	}
	if err := ch.Send(msg); err != nil {
		return fmt.Errorf("Unable to send relocation: %w", err)
	}
	return nil
}

// sendKernelSymbols reads /proc/kallsyms, lines of "address type name"; symbols
// of modules have a fourth field. Only _stext must arrive.
func sendKernelSymbols(ch *transport.Channel) error {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return err
	}
	defer f.Close()
	left := len(kernelSymbols)
	lines := bufio.NewScanner(bufio.NewReaderSize(f, 1<<16))
	for left > 0 && lines.Scan() {
		// Some 200,000 lines: nothing is allocated for those that do not matter.
		line := lines.Bytes()
		if bytes.HasSuffix(line, []byte("]")) {
			break // from here on come the symbols of modules
		}
		at := bytes.LastIndexByte(line, ' ')
		if at < 0 || !slices.Contains(kernelSymbols, string(line[at+1:])) {
			continue
		}
		fields := strings.Fields(string(line))
		if len(fields) != 3 {
			continue
		}
		address, err := strconv.ParseUint(fields[0], 16, 64)
		if err != nil {
			continue
		}
		left--
		if err := sendRelocation(ch, "kernel", fields[2], address); err != nil && fields[2] == "_stext" {
			return err
		}
	}
	return lines.Err()
}

// sendModuleSections sends /sys/module/*/sections/* of the modules that are
// loaded, which /proc/modules lists first on each line; those that are built in
// have no sections. A module may go while it is read; what is gone needs no
// relocation, and a module that does not want one says so without harm.
func sendModuleSections(ch *transport.Channel) error {
	list, err := os.ReadFile("/proc/modules")
	if err != nil {
		return err
	}
	var files []string
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(line, " ")
		dir := filepath.Join("/sys/module", name, "sections")
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	for _, path := range files {
		section := filepath.Base(path)
		module := filepath.Base(filepath.Dir(filepath.Dir(path)))
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		address, err := strconv.ParseUint(strings.TrimSpace(string(b)), 0, 64)
		if err != nil || len(section) > 127 || len(module) > 127 {
			continue
		}
		if strings.Contains(section, "init.") {
			address = 0
		}
		if err := sendRelocation(ch, module, section, address); err != nil {
			continue
		}
	}
	return nil
}
