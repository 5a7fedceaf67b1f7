package backend

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"stapbox/core/sandbox"
)

// ReadableVariable tells a worker which files and directories its server lets
// scripts name, separated by colons, besides those below /usr.
const ReadableVariable = "STAPBOX_WORKER_READABLE"

// RefusedPath is about a path that a script names and a worker cannot reach.
type RefusedPath struct{ Path string }

func (e *RefusedPath) Error() string {
	return fmt.Sprintf("%q is refused by the rule that scripts read only what the administrator of the server allows: it is not below /usr; the option --allow-path=%s of stap-serverd would allow it",
		e.Path, filepath.Dir(e.Path))
}

// ExplainPath is err about a path that a script names or, if this is the worker
// of a server that does not let scripts read it, a RefusedPath (decision T7). A
// worker sees neither the path nor whether there is something.
func ExplainPath(lookup func(string) (string, bool), path string, err error) error {
	if _, worker := lookup(sandbox.Variable); !worker || err == nil || !filepath.IsAbs(path) {
		return err
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	list, _ := lookup(ReadableVariable)
	if readable(path, strings.Split(list, ":")) {
		return err
	}
	return &RefusedPath{path}
}

// readable tells whether scripts may name a path.
func readable(path string, allowed []string) bool {
	path = filepath.Clean(path)
	return slices.ContainsFunc(append([]string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}, allowed...), func(dir string) bool {
		return filepath.IsAbs(dir) && (path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/"))
	})
}
