// Package merge is stap-merge: it brings the files that bulk mode writes, one
// for each CPU, into one stream ordered by sequence number (loader-relay 9.4).
//
// The files hold records with their headers (7.3), of either generation:
//
//	5.x    f0 9f a9 ba | u32 sequence | u32 length | payload
//	4.x                  u32 sequence | u32 length | payload
//
// Of each file one record is in memory at a time. What cannot be read is
// reported with the file's name, and the rest is merged.
package merge

import (
	"bufio"
	"bytes"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"stapbox/core/getopt"
	"stapbox/core/invocation"
	"stapbox/core/report"
	"stapbox/core/transport"
	"stapbox/core/version"
)

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1
)

const usage = "stap-merge [-v] [-o output_filename] input_files ...\n"

// Main runs stap-merge.
func Main(_ context.Context, inv *invocation.Invocation) int {
	r := report.New(inv.Stderr, report.Auto, inv.LookupEnv)
	spec := getopt.Short("vo:hV")
	spec.Defs = append(spec.Defs, getopt.Def{Long: "help"}, getopt.Def{Long: "version"})
	opts, names, err := getopt.Parse(spec, inv.Args)
	m := merger{stdout: inv.Stdout, stderr: inv.Stderr, dir: inv.Dir}
	if err == nil {
		for _, o := range opts {
			switch o.Name {
			case "v":
				m.verbose = true
			case "o":
				m.output = o.Value
				if o.Value == "" {
					err = errors.New("option '-o' has an empty name")
				}
			case "h", "help":
				io.WriteString(inv.Stdout, usage)
				return exitOK
			case "V", "version":
				fmt.Fprintln(inv.Stdout, "stap-merge "+version.Version)
				return exitOK
			}
		}
		if len(names) == 0 && err == nil {
			err = errors.New("no input files")
		}
	}
	if err != nil {
		inv.Errorf("%v", err)
		io.WriteString(inv.Stderr, usage)
		return exitError
	}
	if err := m.run(names); err != nil {
		r.Errorf("%v", err)
		return exitError
	}
	if m.bad > 0 {
		r.Errorf("%d of %d files could not be read completely.", m.bad, len(names))
		return exitError
	}
	return exitOK
}

// merger is one run.
type merger struct {
	stdout, stderr io.Writer
	dir            string
	verbose        bool
	output         string

	drops uint64
	bad   int // files with damage
}

func (m *merger) path(name string) string {
	if filepath.IsAbs(name) || m.dir == "" {
		return name
	}
	return filepath.Join(m.dir, name)
}

func (m *merger) run(names []string) (err error) {
	sources := make([]*source, 0, len(names))
	defer func() {
		for _, s := range sources {
			s.file.Close()
		}
	}()
	var infos []os.FileInfo
	for i, name := range names {
		f, err := os.Open(m.path(name))
		if err != nil {
			return fmt.Errorf("error opening file %s: %w", name, errors.Unwrap(err))
		}
		s := newSource(f, name, i)
		s.file = f
		sources = append(sources, s)
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("error opening file %s: %w", name, err)
		}
		if info.IsDir() {
			return fmt.Errorf("%s is a directory", name)
		}
		for j, other := range infos {
			if os.SameFile(info, other) {
				return fmt.Errorf("%s and %s are the same file", names[j], name)
			}
		}
		infos = append(infos, info)
	}
	if err := sameGeneration(sources); err != nil {
		return err
	}
	out := m.stdout
	if m.output != "" {
		f, err := create(m.path(m.output), m.output, names, infos)
		if err != nil {
			return err
		}
		defer func() {
			if cerr := f.Close(); err == nil && cerr != nil {
				err = fmt.Errorf("writing %s: %w", m.output, cerr)
			}
		}()
		out = f
	}
	w := bufio.NewWriterSize(out, 1<<16)
	if err := m.merge(sources, w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	switch {
	case m.output != "":
		fmt.Fprintf(m.stdout, "sequence had %d drops\n", m.drops)
	case m.drops > 0: // standard output has the data
		fmt.Fprintf(m.stderr, "sequence had %d drops\n", m.drops)
	}
	return nil
}

// create opens the output file, which must not be one of the inputs: it is
// emptied only after that is known.
func create(path, name string, names []string, inputs []os.FileInfo) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return nil, fmt.Errorf("error opening output file %s: %w", name, errors.Unwrap(err))
	}
	info, err := f.Stat()
	if err == nil {
		for i, in := range inputs {
			if os.SameFile(info, in) {
				f.Close()
				return nil, fmt.Errorf("the output %s is the input %s", name, names[i])
			}
		}
		if info.Mode().IsRegular() {
			err = f.Truncate(0)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("error opening output file %s: %w", name, err)
	}
	return f, nil
}

// sameGeneration looks at the starts of the files and refuses a mixture: the
// numbers of two runs have nothing to do with each other.
func sameGeneration(sources []*source) error {
	var first *source
	for _, s := range sources {
		if err := s.detect(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		switch {
		case s.generation == 0: // empty
		case first == nil:
			first = s
		case first.generation != s.generation:
			return fmt.Errorf("%s has records of SystemTap %d.x, %s of %d.x", first.name, first.generation, s.name, s.generation)
		}
	}
	return nil
}

// merge writes the payloads in the order of their numbers.
func (m *merger) merge(sources []*source, w *bufio.Writer) error {
	var heads queue
	advance := func(s *source) bool {
		err := s.next()
		for _, p := range s.problems {
			fmt.Fprintf(m.stderr, "%s: %s\n", s.name, p)
		}
		s.problems = nil
		if err != nil && err != io.EOF {
			fmt.Fprintf(m.stderr, "%s: %v\n", s.name, err)
			s.damaged = true
		}
		if err != nil && s.damaged {
			m.bad++
		}
		return err == nil
	}
	for _, s := range sources {
		if advance(s) {
			heads = append(heads, s)
		}
	}
	heap.Init(&heads)
	last, any := uint32(0), false
	for len(heads) > 0 {
		s := heads[0]
		if ahead := s.sequence - last; any && ahead != 1 {
			fmt.Fprintf(m.stderr, "got %d. expected %d\n", s.sequence, last+1)
			if int32(ahead) > 0 {
				m.drops += uint64(ahead - 1)
			}
		}
		last, any = s.sequence, true
		if m.verbose {
			// In order with the data when both go to standard output.
			to := io.Writer(w)
			if m.output != "" {
				to = m.stdout
			}
			fmt.Fprintf(to, "[CPU:%d, seq=%d, length=%d]\n", s.cpu, s.sequence, len(s.payload))
		}
		if _, err := w.Write(s.payload); err != nil {
			return fmt.Errorf("writing output: %w", err)
		}
		if advance(s) {
			heap.Fix(&heads, 0)
		} else {
			heap.Pop(&heads)
		}
	}
	return nil
}

// queue orders the sources by the number of their next record. Numbers wrap.
type queue []*source

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if d := int32(q[i].sequence - q[j].sequence); d != 0 {
		return d < 0
	}
	return q[i].cpu < q[j].cpu
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*source)) }
func (q *queue) Pop() any {
	s := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return s
}

// source is one input file and its next record.
type source struct {
	name string
	cpu  int // its place among the inputs
	file *os.File
	r    *bufio.Reader

	generation transport.Generation // 0: the file is empty
	offset     int64
	sequence   uint32
	payload    []byte

	problems []string
	damaged  bool
}

func newSource(r io.Reader, name string, cpu int) *source {
	return &source{name: name, cpu: cpu, r: bufio.NewReaderSize(r, 1<<14)}
}

// magic is that of 5.x.
func magic() []byte { return []byte{0xf0, 0x9f, 0xa9, 0xba} }

// detect finds the generation of the file by its first bytes.
func (s *source) detect() error {
	b, err := s.r.Peek(8)
	switch {
	case err != nil && err != io.EOF:
		return fmt.Errorf("reading: %w", err)
	case len(b) == 0:
	case bytes.HasPrefix(b, magic()):
		s.generation = transport.Gen5
	case len(b) == 8 && plausible(binary.NativeEndian.Uint32(b[4:])):
		s.generation = transport.Gen4
	default:
		return errors.New("the file does not start with a record")
	}
	return nil
}

func plausible(length uint32) bool { return length > 0 && length <= transport.MaxPayload }

func (s *source) problem(format string, args ...any) {
	s.damaged = true
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// next reads the next record; io.EOF is the end. Damage in a file of 5.x is
// skipped up to the next magic, in one of 4.x it ends the file.
func (s *source) next() error {
	if s.generation == 0 {
		return io.EOF
	}
	head := 8
	if s.generation == transport.Gen5 {
		head = 12
		if err := s.seek(); err != nil {
			return err
		}
	}
	at := s.offset
	b, err := s.r.Peek(head)
	if len(b) < head {
		if err == io.EOF && len(b) > 0 {
			s.problem("the file ends in the header of the record at %d", at)
		}
		return endOf(err)
	}
	s.sequence = binary.NativeEndian.Uint32(b[head-8:])
	length := binary.NativeEndian.Uint32(b[head-4:])
	if !plausible(length) {
		if s.generation == transport.Gen4 {
			return fmt.Errorf("the record at %d has a length of %d: the rest of the file is left out", at, length)
		}
		s.problem("the record at %d has a length of %d and is left out", at, length)
		s.skip(1)
		return s.resume()
	}
	s.skip(head)
	if cap(s.payload) < int(length) {
		s.payload = make([]byte, length)
	}
	s.payload = s.payload[:length]
	n, err := io.ReadFull(s.r, s.payload)
	s.offset += int64(n)
	switch {
	case err == nil:
		return nil
	case (err == io.EOF || err == io.ErrUnexpectedEOF) && n > 0:
		s.problem("the file ends in the record at %d: %d bytes are missing", at, int(length)-n)
		s.payload = s.payload[:n]
		return nil
	case err == io.EOF:
		s.problem("the file ends in the record at %d: %d bytes are missing", at, length)
		return io.EOF
	}
	return fmt.Errorf("reading: %w", err)
}

// resume goes on after a header that was none. It is a loop, not a recursion: a
// file may consist of nothing else.
func (s *source) resume() error {
	for {
		if err := s.seek(); err != nil {
			return err
		}
		b, _ := s.r.Peek(12)
		if len(b) < 12 || plausible(binary.NativeEndian.Uint32(b[8:])) {
			return s.next()
		}
		s.skip(1)
	}
}

// seek moves to the next magic. Zeroes are padding; other bytes are reported.
func (s *source) seek() error {
	at, lost := s.offset, int64(0)
	defer func() {
		if lost > 0 {
			s.problem("%d bytes at %d belong to no record", lost, at)
		}
	}()
	for {
		b, err := s.r.Peek(4)
		if bytes.Equal(b, magic()) {
			return nil
		}
		if len(b) < 4 && len(b) > 0 && bytes.HasPrefix(magic(), b) && err == io.EOF {
			return nil // next reports the header that is cut
		}
		if len(b) == 0 {
			return endOf(err)
		}
		if b[0] != 0 {
			if lost == 0 {
				at = s.offset
			}
			lost++
		}
		s.skip(1)
	}
}

func (s *source) skip(n int) {
	d, _ := s.r.Discard(n)
	s.offset += int64(d)
}

func endOf(err error) error {
	if err == nil || err == io.EOF {
		return io.EOF
	}
	return fmt.Errorf("reading: %w", err)
}
