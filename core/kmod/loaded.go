package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Loaded is a SystemTap module in the kernel.
type Loaded struct {
	Name     string
	UID, GID uint32 // of whoever loaded it: the owner of its control file
	// Uses is the module's use count. An open control file pins the module, so
	// nobody is attached to one with 0.
	Uses int
}

// List finds the loaded modules that have a control file in one of the
// directories, by name. It opens nothing, so no module notices.
func List(dirs []string) ([]Loaded, error) {
	uses, err := useCounts("/proc/modules")
	if err != nil {
		return nil, fmt.Errorf("listing modules: %w", err)
	}
	return list(dirs, uses)
}

func list(dirs []string, uses map[string]int) ([]Loaded, error) {
	found := map[string]Loaded{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue // debugfs is root's
		}
		if err != nil {
			return nil, fmt.Errorf("listing modules: %w", err)
		}
		for _, e := range entries {
			var st unix.Stat_t
			if unix.Lstat(filepath.Join(dir, e.Name(), ".cmd"), &st) != nil {
				continue // gone meanwhile, or no module's
			}
			if _, twice := found[e.Name()]; !twice {
				found[e.Name()] = Loaded{Name: e.Name(), UID: st.Uid, GID: st.Gid, Uses: uses[e.Name()]}
			}
		}
	}
	all := make([]Loaded, 0, len(found))
	for _, m := range found {
		all = append(all, m)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}

// useCounts reads /proc/modules, lines of "name size uses ..." (proc(5)).
func useCounts(path string) (map[string]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	uses := map[string]int{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 3 {
			n, err := strconv.Atoi(f[2])
			if err != nil {
				n = 1 // a kernel that cannot unload shows "-"
			}
			uses[f[0]] = n
		}
	}
	return uses, nil
}
