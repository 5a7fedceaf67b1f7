package tapset

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stapbox/core/script/token"
)

// Limits on what -I directories hold.
const (
	maxFiles = 4096
	maxBytes = 64 << 20
)

// Text is a file of a library directory.
type Text struct{ Name, Text string }

// Directory reads the library files of an -I directory (stap(1), PROCESSING):
// *.stp and *.stpm of those of its subdirectories that are named for the
// kernel, and of itself. For kernel 2.6.12-23.FC3 on x86_64 they are
//
//	2.6.12-23.FC3/x86_64  2.6.12-23.FC3  2.6.12/x86_64  2.6.12  2.6/x86_64  2.6  x86_64  .
//
// in this order, each below linux/ before that. Names begin with dir as it was
// given; path is where it is. A directory that is not there is empty.
func Directory(dir, path, release, arch string) (scripts, macros []Text, err error) {
	count, size := 0, 0
	for _, sub := range subdirectories(release, arch) {
		entries, err := os.ReadDir(filepath.Join(path, sub))
		if err != nil {
			continue // not there, or not for us
		}
		for _, e := range entries {
			ext := filepath.Ext(e.Name())
			if ext != ".stp" && ext != ".stpm" || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			name := filepath.Join(path, sub, e.Name())
			// A named pipe or device would be waited for.
			if st, err := os.Stat(name); err != nil || !st.Mode().IsRegular() {
				continue
			} else if st.Size() > token.MaxSource {
				return nil, nil, fmt.Errorf("library file %q has %d bytes, more than %d", name, st.Size(), token.MaxSource)
			}
			text, err := os.ReadFile(name)
			if err != nil {
				return nil, nil, fmt.Errorf("reading a library: %w", err)
			}
			if count, size = count+1, size+len(text); count > maxFiles || size > maxBytes {
				return nil, nil, fmt.Errorf("library %q has more than %d files or %d bytes", dir, maxFiles, maxBytes)
			}
			t := Text{shown(dir, filepath.Join(sub, e.Name())), string(text)}
			if ext == ".stp" {
				scripts = append(scripts, t)
			} else {
				macros = append(macros, t)
			}
		}
	}
	return scripts, macros, nil
}

// shown is a file's name as messages have it: what the user wrote, not cleaned.
func shown(dir, rest string) string {
	return strings.TrimRight(dir, "/") + "/" + rest
}

func subdirectories(release, arch string) []string {
	versions := []string{release}
	if base, _, ok := strings.Cut(release, "-"); ok {
		versions = append(versions, base)
	}
	if parts := strings.SplitN(release, ".", 3); len(parts) == 3 {
		versions = append(versions, parts[0]+"."+parts[1])
	}
	versions = append(versions, "")
	var out []string
	for _, v := range versions {
		for _, runtime := range []string{"linux", ""} {
			for _, a := range []string{arch, ""} {
				// Neither may lead elsewhere, whatever the release is called.
				if sub := filepath.Join(runtime, v, a); (sub == "" || filepath.IsLocal(sub)) && !slices.Contains(out, sub) {
					out = append(out, sub)
				}
			}
		}
	}
	return out
}
