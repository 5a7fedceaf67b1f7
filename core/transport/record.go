package transport

import (
	"bytes"
	"encoding/binary"
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

// Splitter cuts the byte stream of one trace file into records. After damage it
// finds its place again: by the magic for 5.x, by plausible headers for 4.x.
type Splitter struct {
	Generation Generation
	LostBytes  uint64 // bytes that belonged to no record; padding zeroes do not count

	buf  []byte
	last uint32 // sequence of the newest record, for plausibility
	any  bool
}

// Write takes the next bytes of the stream.
func (s *Splitter) Write(p []byte) { s.buf = append(s.buf, p...) }

// Next gives the next whole record, false when more bytes are needed. The
// payload stays valid after further calls.
func (s *Splitter) Next() (Record, bool) {
	for {
		head := 8
		if s.Generation == Gen5 {
			head = 12
			if !s.seekMagic() {
				return Record{}, false
			}
		}
		if len(s.buf) < head {
			return Record{}, false
		}
		seq := binary.NativeEndian.Uint32(s.buf[head-8:])
		n := binary.NativeEndian.Uint32(s.buf[head-4:])
		if n == 0 || n > MaxPayload || s.Generation == Gen4 && !s.plausible(seq) {
			s.skip()
			continue
		}
		if len(s.buf) < head+int(n) {
			return Record{}, false
		}
		r := Record{seq, bytes.Clone(s.buf[head : head+int(n)])}
		s.consume(head + int(n))
		s.last, s.any = seq, true
		return r, true
	}
}

// Rest ends the stream: a record whose end is missing is returned with what
// there is of it, the missing bytes are counted as lost.
func (s *Splitter) Rest() (Record, bool) {
	head := 8
	if s.Generation == Gen5 {
		head = 12
	}
	if len(s.buf) <= head || s.Generation == Gen5 && !bytes.HasPrefix(s.buf, recordMagic) {
		s.countLost(s.buf)
		s.buf = nil
		return Record{}, false
	}
	seq := binary.NativeEndian.Uint32(s.buf[head-8:])
	n := binary.NativeEndian.Uint32(s.buf[head-4:])
	r := Record{seq, s.buf[head:]}
	s.LostBytes += uint64(n) - uint64(len(r.Payload))
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

func (s *Splitter) plausible(seq uint32) bool {
	const window = 1 << 16
	return !s.any || seq-s.last-1 < window
}

func (s *Splitter) skip() {
	s.countLost(s.buf[:1])
	s.consume(1)
}

func (s *Splitter) countLost(b []byte) {
	s.LostBytes += uint64(len(b) - bytes.Count(b, []byte{0}))
}

func (s *Splitter) consume(n int) {
	s.buf = s.buf[n:]
	if len(s.buf) == 0 {
		s.buf = nil
	}
}
