package loader

import (
	"bufio"
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
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || !slices.Contains(kernelSymbols, fields[2]) {
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

// sendModuleSections sends /sys/module/*/sections/*. A module may go while it is
// read; what is gone needs no relocation, and a module that does not want one
// says so without harm.
func sendModuleSections(ch *transport.Channel) error {
	files, err := filepath.Glob("/sys/module/*/sections/*")
	if err != nil {
		return err
	}
	// Glob leaves out names that begin with a dot, which most sections do.
	dotted, err := filepath.Glob("/sys/module/*/sections/.*")
	if err != nil {
		return err
	}
	for _, path := range append(files, dotted...) {
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
