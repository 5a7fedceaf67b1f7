package relay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// destination says where records go (loader-relay 7.6).
type destination struct {
	template string // of -o, for strftime(3); "" is standard output, or stpd_cpuN in bulk mode
	dir      string // the working directory, for names that are not absolute
	rotate   bool   // -S
	limit    int64  // bytes of a file, 0: none
	keep     int    // files kept, 0: all
	stdout   io.Writer
	now      func() time.Time
}

// output is one stream of records, or in bulk mode one for each CPU. After the
// first failed write nothing more is written anywhere, and broken is closed.
type output struct {
	broken  chan struct{}
	streams []*stream

	mu  sync.Mutex
	err error
}

// openOutput opens the files: one for -1 CPUs (stream mode), else one for each
// CPU that has one.
func openOutput(d destination, cpus []int) (*output, error) {
	o := &output{broken: make(chan struct{})}
	for _, cpu := range cpus {
		s := &stream{destination: d, cpu: cpu, out: o}
		o.streams = append(o.streams, s)
		if err := s.open(); err != nil {
			return o, err
		}
	}
	return o, nil
}

// stream is the CPU of an output that is not split by CPUs.
const allCPUs = -1

// of finds the stream of a CPU.
func (o *output) of(cpu int) *stream {
	for _, s := range o.streams {
		if s.cpu == cpu {
			return s
		}
	}
	return nil
}

// turn asks every stream to go on in a new file (SIGUSR2). Standard output has
// no next file.
func (o *output) turn() {
	for _, s := range o.streams {
		s.turning.Store(true)
	}
}

// fail remembers the first failure and tells of it.
func (o *output) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
		close(o.broken)
	}
}

func (o *output) failed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err != nil
}

// Close writes what is left, closes the files and reports the first failure.
func (o *output) Close() error {
	for _, s := range o.streams {
		s.close()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// stream is a series of files written one after the other. It is used by one
// goroutine; only turning is set by others.
type stream struct {
	destination
	cpu     int
	out     *output
	turning atomic.Bool

	w      io.Writer
	file   *os.File
	number int         // of the file being written
	opened []time.Time // when the files that are kept were opened, by number from the oldest
	size   int64       // bytes of this file, with those in buf
	buf    []byte
}

// writeSize is how much is gathered for one write(2).
const writeSize = 1 << 16

// add takes one record: a header, which may be empty, and a payload. A record
// is never split over two files.
func (s *stream) add(head, payload []byte) {
	n := int64(len(head) + len(payload))
	if s.limit > 0 && s.size > 0 && s.size+n > s.limit {
		s.next()
	}
	s.size += n
	s.buf = append(append(s.buf, head...), payload...)
	if len(s.buf) >= writeSize {
		s.flush()
	}
}

// flush writes what was gathered, and then begins a new file if one was asked
// for.
func (s *stream) flush() {
	if len(s.buf) > 0 && !s.out.failed() {
		if _, err := s.w.Write(s.buf); err != nil {
			s.out.fail(s.explain(err))
		}
	}
	s.buf = s.buf[:0]
	if s.turning.Swap(false) && s.template != "" {
		s.next()
	}
}

// explain names the file that could not be written, and not standard output.
func (s *stream) explain(err error) error {
	if s.file == nil {
		return fmt.Errorf("error writing output: %s", describe(err))
	}
	return fmt.Errorf("error writing output %s: %s", s.file.Name(), describe(err))
}

// next closes the file, opens the one after it, and removes the one that is not
// to be kept any more.
func (s *stream) next() {
	s.turning.Store(false)
	s.flush()
	s.closeFile()
	s.number++
	if err := s.open(); err != nil {
		s.out.fail(err)
	}
}

func (s *stream) close() {
	s.flush()
	s.closeFile()
}

func (s *stream) closeFile() {
	if s.file == nil {
		return
	}
	if err := s.file.Close(); err != nil {
		s.out.fail(s.explain(err))
	}
	s.file = nil
}

// open opens the file of the current number.
func (s *stream) open() error {
	s.w, s.size = s.stdout, 0
	if s.template == "" && s.cpu == allCPUs {
		return nil
	}
	at := s.now()
	name, err := s.name(s.number, at)
	if err != nil {
		return err
	}
	if s.file, err = os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o666); err != nil {
		return fmt.Errorf("Couldn't open output file %s: %s", name, describe(err))
	}
	s.w = s.file
	s.opened = append(s.opened, at)
	if s.keep > 0 && len(s.opened) > s.keep {
		s.forget()
	}
	return nil
}

// forget removes the oldest file. Only regular files are removed: upstream
// deletes /dev/null here (loader-relay 10.2).
func (s *stream) forget() {
	oldest := s.number - len(s.opened) + 1
	name, err := s.name(oldest, s.opened[0])
	s.opened = s.opened[1:]
	if err != nil {
		return
	}
	if st, err := os.Lstat(name); err == nil && st.Mode().IsRegular() {
		os.Remove(name)
	}
}

// devNull is the one name that gets no numbers.
const devNull = "/dev/null"

// maxPath is PATH_MAX less room for what is appended to names.
const maxPath = 4096 - 21

// name is the name of a file of the series.
//
//	          first      with -S        after a turn
//	stream    FILE       FILE.0         FILE.1, ...
//	bulk      FILE_3     FILE_cpu3.0    FILE_cpu3.1, ...
//	bulk      stpd_cpu3  -              stays as it is (no -o)
func (s *stream) name(number int, at time.Time) (string, error) {
	if s.template == devNull {
		return devNull, nil
	}
	base := s.template
	if base == "" {
		base = "stpd"
	} else {
		var err error
		if base, err = strftime(base, at); err != nil {
			return "", err
		}
	}
	if !filepath.IsAbs(base) {
		if s.dir == "" {
			return "", errors.New("Unable to make output file name absolute: the working directory is gone")
		}
		base = filepath.Join(s.dir, base)
	}
	if len(base) > maxPath {
		return "", errors.New("Filename format is invalid or too long.")
	}
	numbered := s.rotate || number > 0
	switch {
	case s.cpu == allCPUs:
	case numbered || s.template == "":
		base += "_cpu" + strconv.Itoa(s.cpu)
	default:
		base += "_" + strconv.Itoa(s.cpu)
	}
	if numbered {
		base += "." + strconv.Itoa(number)
	}
	return base, nil
}
