package compile

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// passesFile, in the directory of a worker, tells how long its passes took: a
// line "PASS MICROSECONDS" for each that ended well. They are for figures only.
const (
	passesFile = ".passes"
	maxPasses  = 512
)

// notePass adds a line, if that is possible.
func notePass(dir string, pass int, took time.Duration) {
	f, err := os.OpenFile(filepath.Join(dir, passesFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%d %d\n", pass, took.Microseconds())
}

// passes tells Phase what a worker noted. A script can make its compiler write
// anything there.
func (s *Service) passes(dir string) {
	if s.Phase == nil {
		return
	}
	text, err := readRegular(filepath.Join(dir, passesFile), maxPasses)
	if err != nil {
		return
	}
	for pass, took := range parsePasses(string(text)) {
		s.phase("pass"+strconv.Itoa(pass+1), took)
	}
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
