package backend

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/stapopts"
)

// What a worker leaves for its server in the directory of the job, beside the
// module. A script can make its compiler write anything there.
const (
	// PassesFile tells how long the passes took: a line "PASS MICROSECONDS" for
	// each that ended well. They are for figures only.
	PassesFile = ".passes"
	// TranslatorFile is the name of the translator that made the module.
	TranslatorFile = "translator"
)

const (
	maxPasses = 512 // size of PassesFile
	// MaxModule is the size of the largest module, in bytes.
	MaxModule = 48 << 20
)

// notePass adds a line to PassesFile, if that is possible.
func notePass(dir string, pass int, took time.Duration) {
	f, err := os.OpenFile(filepath.Join(dir, PassesFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%d %d\n", pass, took.Microseconds())
}

// Passes are the times of the passes that ended well, the first one first.
func Passes(dir string) []time.Duration {
	text, err := ReadLeft(filepath.Join(dir, PassesFile), maxPasses)
	if err != nil {
		return nil
	}
	return parsePasses(string(text))
}

// parsePasses gives the times of the first passes, up to the first line that is
// not the next pass's.
func parsePasses(text string) []time.Duration {
	var list []time.Duration
	for line := range strings.Lines(text) {
		pass, took, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		us, err := strconv.ParseUint(took, 10, 36)
		if !ok || err != nil || pass != strconv.Itoa(len(list)+1) || len(list) == 4 {
			break
		}
		list = append(list, time.Duration(us)*time.Microsecond)
	}
	return list
}

// LeaveTranslator leaves word for a server who made the module.
func LeaveTranslator(dir string, a Artifact) error {
	if a.Translator == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, TranslatorFile), []byte(a.Translator), 0o600)
}

// MadeBy is the translator whose name a worker left, "" for none.
func MadeBy(dir string) string {
	b, err := ReadLeft(filepath.Join(dir, TranslatorFile), 64)
	if err != nil {
		return ""
	}
	if t := string(b); t == stapopts.TranslatorBuiltin || t == stapopts.TranslatorSystemtap {
		return t
	}
	return ""
}

// ReadLeft reads a file that a worker left: a regular one, reached by no link at
// its end, of at most limit bytes.
func ReadLeft(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("%q is not a regular file of at most %d bytes", path, limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}
