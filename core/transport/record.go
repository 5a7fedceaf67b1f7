package transport

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync/atomic"
)

// MaxPayload is the longest record accepted. Modules print through an 8192 byte
// buffer; a script's -DSTP_BUFFER_SIZE may raise that.
const MaxPayload = 131072

var recordMagic = []byte{0xf0, 0x9f, 0xa9, 0xba}

// Record is one chunk of output with its place in the order of all CPUs.
//
//	5.x    f0 9f a9 ba | u32 sequence | u32 length | payload      (12-byte header)
//	4.x                  u32 sequence | u32 length | payload      ( 8-byte header)
//
// in native byte order. Sequence numbers are global over all CPUs, start at 1
// and wrap at 2^32.
type Record struct {
	Sequence uint32
	Payload  []byte
}

// AppendHeader appends the header a module writes before the record.
func (r Record) AppendHeader(b []byte, g Generation) []byte {
	if g == Gen5 {
		b = append(b, recordMagic...)
	}
	b = binary.NativeEndian.AppendUint32(b, r.Sequence)
	return binary.NativeEndian.AppendUint32(b, uint32(len(r.Payload)))
}

// Splitter cuts the byte stream of one trace file into records. After damage it
// finds its place again: by the magic for 5.x, by plausible headers for 4.x.
type Splitter struct {
	Generation Generation
	LostBytes  uint64  // bytes that belonged to no record; padding zeroes do not count
	Newest     *Newest // shared by the splitters of all CPUs; nil is one of its own

	store []byte // what buf is part of
	buf   []byte // not given out yet
	last  uint32 // sequence of the newest record of this CPU
	any   bool   // last is valid
	lost  bool   // looking for a header of 4.x
}

// Newest is the newest sequence number seen on any CPU, by which the headers of
// 4.x are judged: they carry no magic.
type Newest struct{ valid, sequence atomic.Uint32 }

func (n *Newest) put(seq uint32) {
	if n.valid.Swap(1) == 0 || int32(seq-n.sequence.Load()) > 0 {
		n.sequence.Store(seq)
	}
}

// near reports whether a record with this number can be one of the next or, as
// CPUs are read at different times, of the last.
func (n *Newest) near(seq uint32) bool {
	const window = 1 << 20
	d := int32(seq - n.sequence.Load())
	return n.valid.Load() == 0 || -window < d && d < window
}

// room is what a read is offered at least.
const room = 1 << 16

// Fill has read put the next bytes of the stream into the splitter. It ends the
// life of the payloads given out before.
func (s *Splitter) Fill(read func([]byte) (int, error)) (n int, err error) {
	s.store = append(s.store[:0], s.buf...) // to the front; they may overlap
	have := len(s.store)
	s.store = slices.Grow(s.store, room)
	n, err = read(s.store[have:cap(s.store)])
	s.buf = s.store[:have+max(n, 0)]
	return n, err
}

// Write takes the next bytes of the stream from p, as Fill.
func (s *Splitter) Write(p []byte) {
	for len(p) > 0 {
		s.Fill(func(to []byte) (int, error) {
			n := copy(to, p)
			p = p[n:]
			return n, nil
		})
	}
}

// Next gives the next whole record, false when more bytes are needed. The
// payload is valid until the next Fill.
func (s *Splitter) Next() (Record, bool) {
	for {
		head := 8
		if s.Generation == Gen5 {
			head = 12
			if !s.seekMagic() {
				return Record{}, false
			}
		}
		if len(s.buf) < head || s.lost && !s.seekHeader(false) {
			return Record{}, false
		}
		seq, n, ok := s.header(s.buf)
		if !ok {
			s.skip()
			continue
		}
		if len(s.buf) < head+n {
			return Record{}, false
		}
		s.lost = false
		r := Record{seq, s.buf[head : head+n : head+n]}
		s.consume(head + n)
		s.last, s.any = seq, true
		s.newest().put(seq)
		return r, true
	}
}

// seekHeader moves to the next header of 4.x. Any eight bytes may look like one:
// what counts is one that another follows, or at the end of the stream one whose
// record ends there. False when there is none yet.
func (s *Splitter) seekHeader(end bool) bool {
	const head = 8
	for i := 0; i+head <= len(s.buf); i++ {
		seq, n, ok := s.header(s.buf[i:])
		if !ok {
			continue
		}
		next := i + head + n
		found := end && next == len(s.buf)
		if next+head <= len(s.buf) {
			following, _, ok := s.header(s.buf[next:])
			found = ok && int32(following-seq) > 0
		}
		if found {
			s.countLost(s.buf[:i])
			s.consume(i)
			return true
		}
	}
	if more := len(s.buf) - MaxPayload - 2*head; more > 0 { // too far back for any record
		s.countLost(s.buf[:more])
		s.consume(more)
	}
	return false
}

// header reads the header at the start of b, which is long enough for one; ok
// is false when it cannot be one.
func (s *Splitter) header(b []byte) (seq uint32, n int, ok bool) {
	if s.Generation == Gen5 {
		b = b[len(recordMagic):]
	}
	seq = binary.NativeEndian.Uint32(b)
	length := binary.NativeEndian.Uint32(b[4:])
	if length == 0 || length > MaxPayload {
		return 0, 0, false
	}
	if s.Generation == Gen4 && (s.any && int32(seq-s.last) <= 0 || !s.newest().near(seq)) {
		return 0, 0, false
	}
	return seq, int(length), true
}

func (s *Splitter) newest() *Newest {
	if s.Newest == nil {
		s.Newest = new(Newest)
	}
	return s.Newest
}

// Missing is the number of bytes up to the end of the record, or of the header,
// that has begun; 0 between records.
func (s *Splitter) Missing() int {
	head := 8
	if s.Generation == Gen5 {
		head = 12
	}
	if len(s.buf) == 0 || s.lost || s.Generation == Gen5 && !bytes.HasPrefix(s.buf, recordMagic[:min(len(s.buf), len(recordMagic))]) {
		return 0
	}
	if len(s.buf) < head {
		return head - len(s.buf)
	}
	_, n, ok := s.header(s.buf)
	if !ok {
		return 0
	}
	return head + n - len(s.buf)
}

// Rest ends the stream: a record whose end is missing is returned with what
// there is of it, the missing bytes are counted as lost.
func (s *Splitter) Rest() (Record, bool) {
	head := 8
	if s.Generation == Gen5 {
		head = 12
	}
	if s.lost && !s.seekHeader(true) || len(s.buf) <= head || s.Generation == Gen5 && !bytes.HasPrefix(s.buf, recordMagic) {
		s.countLost(s.buf)
		s.buf = nil
		return Record{}, false
	}
	seq, n, ok := s.header(s.buf)
	if !ok {
		s.countLost(s.buf)
		s.buf = nil
		return Record{}, false
	}
	r := Record{seq, s.buf[head:min(len(s.buf), head+n)]}
	s.LostBytes += uint64(n - len(r.Payload))
	s.countLost(s.buf[head+len(r.Payload):])
	s.buf = nil
	return r, true
}

// seekMagic moves to the next magic; false when there is none yet.
func (s *Splitter) seekMagic() bool {
	if bytes.HasPrefix(s.buf, recordMagic) {
		return true
	}
	i := bytes.Index(s.buf, recordMagic)
	found := i >= 0
	if !found {
		i = len(s.buf) - len(recordMagic) + 1 // the magic may be cut by the end
	}
	if i > 0 {
		s.countLost(s.buf[:i])
		s.consume(i)
	}
	return found
}

func (s *Splitter) skip() {
	s.countLost(s.buf[:1])
	s.consume(1)
	s.lost = s.Generation == Gen4
}

func (s *Splitter) countLost(b []byte) {
	s.LostBytes += uint64(len(b) - bytes.Count(b, []byte{0}))
}

func (s *Splitter) consume(n int) { s.buf = s.buf[n:] }
