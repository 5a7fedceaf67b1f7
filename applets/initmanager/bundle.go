package initmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"stapbox/core/config"
	"stapbox/core/initconf"
	"stapbox/core/kmod"
	"stapbox/core/scriptcache"
)

// archiveFile is the FILE of export and import.
func (m *manager) archiveFile() (string, error) {
	if len(m.opts.words) != 1 {
		return "", fmt.Errorf("%s takes one FILE, not %d", m.opts.action, len(m.opts.words))
	}
	path := m.opts.words[0]
	if path != "-" && !filepath.IsAbs(path) {
		path = filepath.Join(m.inv.Dir, path)
	}
	return path, nil
}

// fail says and logs what is wrong with an archive.
func (m *manager) fail(err error) int {
	m.log("Error: " + err.Error())
	m.inv.Errorf("%v", err)
	return exitFailure
}

// export packs the compiled scripts of one kernel and the configuration files of
// scripts for another host (contradiction C-20).
func (m *manager) export(context.Context) int {
	path, err := m.archiveFile()
	if err != nil {
		return m.usage(err)
	}
	files, err := m.collect()
	if err != nil {
		return m.fail(err)
	}
	if len(files) == 0 {
		return m.fail(fmt.Errorf("there are no compiled scripts in %s; hint: systemtap compile -r %s", m.cache(), m.target))
	}
	var b bytes.Buffer
	if err := scriptcache.WriteArchive(&b, files); err != nil {
		return m.fail(err)
	}
	switch {
	case m.opts.dry:
	case path == "-":
		if _, err := m.inv.Stdout.Write(b.Bytes()); err != nil {
			return m.fail(err)
		}
		return 0
	default:
		// A device or a socket is not to be replaced by a file.
		if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
			return m.fail(fmt.Errorf("writing the archive: %q is there, and is no regular file", path))
		}
		if err := replace(path, b.Bytes(), m.now()); err != nil {
			return m.fail(fmt.Errorf("writing the archive: %w", err))
		}
	}
	for _, f := range files {
		m.say("%s\n", f.Path())
	}
	return 0
}

// collect reads what is exported: valid pairs, and the files of CONFIG_PATH that
// hold nothing but options of scripts.
func (m *manager) collect() ([]scriptcache.File, error) {
	var out []scriptcache.File
	add := func(path, release, name string) error {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := readOurs(path, "exported", kmod.MaxImage)
		if err == nil {
			out = append(out, scriptcache.File{Release: release, Name: name, Data: data, Time: info.ModTime()})
		}
		return err
	}
	for _, n := range m.valid(baseNames(m.cache(), ".ko")) {
		opts, err := m.optionsOf(n)
		if err == nil {
			err = m.check(n, opts)
		}
		if err != nil {
			return nil, fmt.Errorf("the cache of %s cannot be exported: %w; hint: systemtap compile -r %s %s", n, err, m.target, n)
		}
		for _, s := range scriptcache.Suffixes() {
			if err := add(m.cacheFile(n, s), m.target, n+s); err != nil {
				return nil, err
			}
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	entries, err := os.ReadDir(m.ConfigPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(m.ConfigPath, e.Name())
		if initconf.KindOf(e.Name()) == initconf.Ignored || !e.Type().IsRegular() {
			continue
		}
		data, err := readOurs(path, "exported", config.MaxSize)
		if err != nil {
			return nil, err
		}
		if initconf.OnlyOptions(data) != nil {
			m.log(path + " is not exported: it has more than options of scripts")
			continue
		}
		if err := add(path, "", e.Name()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// imports unpacks an archive of export, or one that was packed by hand.
func (m *manager) imports(context.Context) int {
	path, err := m.archiveFile()
	if err != nil {
		return m.usage(err)
	}
	in := m.inv.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return m.fail(err)
		}
		defer f.Close()
		in = f
	} else if !m.opts.yes {
		// The answers to questions would be read from the archive.
		return m.fail(errors.New("import - needs -y"))
	}
	files, err := scriptcache.ReadArchive(in)
	if err != nil {
		return m.fail(fmt.Errorf("reading the archive: %w", err))
	}
	var present []string
	place := func(f scriptcache.File) string {
		if f.Release == "" {
			return filepath.Join(m.ConfigPath, f.Name)
		}
		return filepath.Join(m.CachePath, f.Release, f.Name)
	}
	for _, f := range files {
		if err := m.importable(f); err != nil {
			return m.fail(fmt.Errorf("%s: %w", f.Path(), err))
		}
		if old, err := os.ReadFile(place(f)); err == nil && !bytes.Equal(old, f.Data) {
			present = append(present, f.Path())
		}
	}
	if len(present) > 0 && !m.opts.dry {
		m.say("Updating: %s\n", strings.Join(present, " "))
		if !m.confirm("Do you really want to update above files") {
			return 0
		}
	}
	for _, f := range files {
		if !m.opts.dry {
			err := os.MkdirAll(filepath.Dir(place(f)), 0o755)
			if err == nil {
				err = replace(place(f), f.Data, f.Time)
			}
			if err != nil {
				return m.fail(err)
			}
		}
		m.say("%s\n", place(f))
	}
	return 0
}

// importable says why a file must not be taken from an archive.
func (m *manager) importable(f scriptcache.File) error {
	if f.Release == "" {
		none := func(string) (string, bool) { return "", false }
		return config.Evaluate(f.Data, map[string]string{}, none)
	}
	if m.opts.release != "" && f.Release != m.target {
		return fmt.Errorf("it is for kernel %q, not %q", f.Release, m.target)
	}
	switch {
	case strings.HasSuffix(f.Name, ".ko"):
		vermagic, _, err := kmod.Info(f.Data, "vermagic")
		if err != nil {
			return err
		}
		if release, _, _ := strings.Cut(vermagic, " "); release != f.Release {
			return fmt.Errorf("the module is for kernel %q, not %q", release, f.Release)
		}
	case strings.HasSuffix(f.Name, ".opts"):
		_, err := scriptcache.ParseRecord(f.Data)
		return err
	}
	return nil
}
