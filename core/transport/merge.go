package transport

import "time"

// GapWait is how long a missing sequence number is waited for.
const GapWait = 2 * time.Second

// longestWait is how long, when a CPU was not read in that time.
const longestWait = 5 * GapWait

// bound is the number of bytes a CPU may have waiting in a Merger before its
// reader is held back. The module then counts what it cannot store.
const bound = 1 << 20

// overhead is what a queued record takes beside its payload, about.
const overhead = 48

// Merger brings the records of all CPUs into one order. Each CPU has its own
// bounded queue, so that a flood on one cannot starve the others and memory
// stays bounded while the output is slow.
//
// A Merger is not safe for concurrent use.
type Merger struct {
	LostRecords uint64 // sequence numbers that never came
	Unexpected  uint64 // records that came after a later one had been given out

	cpus []cpuQueue
	last uint32
	any  bool // last is valid
	gap  time.Time

	given []*block // of the payloads given out since Release
	free  []*block
}

// block holds payloads one after the other. Memory is used again and again: a
// stream of any length makes no garbage.
type block struct {
	data    []byte
	left    int  // payloads that are still needed
	filling bool // more will come
}

const blockSize = 1 << 16

type cpuQueue struct {
	records []queued
	head    int    // of the records not given out
	filling *block // where the next payload goes
	bytes   int
	seen    bool // read once
	idle    bool // had nothing more to read since the gap was noticed
	ended   bool
}

type queued struct {
	Record
	block *block
}

func (q *cpuQueue) empty() bool      { return q.head == len(q.records) }
func (q *cpuQueue) sequence() uint32 { return q.records[q.head].Sequence }

// NewMerger makes a Merger for that many CPUs. With first set the stream starts
// with sequence number 1; without (after attaching to a running module) the
// first record seen sets the start.
func NewMerger(cpus int, first bool) *Merger {
	return &Merger{cpus: make([]cpuQueue, cpus), any: first}
}

// Put adds a copy of a record of a CPU.
func (m *Merger) Put(cpu int, r Record) {
	q := &m.cpus[cpu]
	b := q.filling
	if b == nil || len(b.data)+len(r.Payload) > cap(b.data) {
		if b != nil {
			if b.filling = false; b.left == 0 {
				m.recycle(b)
			}
		}
		b = m.block(len(r.Payload))
		b.filling = true
		q.filling = b
	}
	at := len(b.data)
	b.data = append(b.data, r.Payload...)
	b.left++
	r.Payload = b.data[at:len(b.data):len(b.data)]
	if q.head > 0 && len(q.records) == cap(q.records) {
		n := copy(q.records, q.records[q.head:])
		clear(q.records[n:])
		q.records, q.head = q.records[:n], 0
	}
	q.records = append(q.records, queued{r, b})
	q.bytes += len(r.Payload) + overhead
}

func (m *Merger) block(size int) *block {
	if n := len(m.free); n > 0 && size <= blockSize {
		b := m.free[n-1]
		m.free = m.free[:n-1]
		return b
	}
	return &block{data: make([]byte, 0, max(size, blockSize))}
}

func (m *Merger) recycle(b *block) {
	if cap(b.data) == blockSize {
		b.data = b.data[:0]
		m.free = append(m.free, b)
	}
}

// Release tells that the payloads given out so far are not needed any more.
func (m *Merger) Release() {
	for i, b := range m.given {
		if b.left--; b.left == 0 {
			if b.filling {
				b.data = b.data[:0]
			} else {
				m.recycle(b)
			}
		}
		m.given[i] = nil
	}
	m.given = m.given[:0]
}

// Full reports whether the CPU's queue has reached its bound.
func (m *Merger) Full(cpu int) bool { return m.cpus[cpu].bytes >= bound }

// Idle tells that a CPU had nothing more to read. Where the stream begins with
// whatever comes first, it begins when that is known of every CPU.
func (m *Merger) Idle(cpu int) { m.cpus[cpu].seen, m.cpus[cpu].idle = true, true }

// End tells that a CPU will send nothing more.
func (m *Merger) End(cpu int) { m.cpus[cpu].ended = true }

// Next gives the next record in order; its payload is valid until Release. When
// the next sequence number is not there yet, wait says how long to wait for it
// before calling again; it is 0 when nothing is queued at all. A gap is given up
// when its time is over and every CPU was read meanwhile (on a busy machine its
// reader may have to wait), when every CPU has ended, or when every CPU that has
// not has a later record queued.
func (m *Merger) Next(now time.Time) (r Record, ok bool, wait time.Duration) {
	cpu, complete := m.lowest()
	if cpu < 0 {
		m.gap = time.Time{}
		return Record{}, false, 0
	}
	q := &m.cpus[cpu]
	ahead := q.sequence() - m.last // wraps with the sequence
	if !m.any && !complete && !m.allSeen() || m.any && ahead != 1 && int32(ahead) > 0 && !complete {
		if m.gap.IsZero() {
			m.gap = now
			for i := range m.cpus {
				m.cpus[i].idle = false
			}
		}
		waited := now.Sub(m.gap)
		if left := GapWait - waited; left > 0 {
			return Record{}, false, left
		}
		if waited < longestWait && !m.allIdle() {
			return Record{}, false, GapWait / 20
		}
	}
	m.gap = time.Time{}
	next := &q.records[q.head]
	r = next.Record
	m.given = append(m.given, next.block)
	*next = queued{}
	q.head++
	q.bytes -= len(r.Payload) + overhead
	if q.empty() {
		q.records, q.head = q.records[:0], 0
	}
	switch {
	case !m.any:
		m.last, m.any = r.Sequence, true
	case int32(ahead) <= 0:
		m.Unexpected++
	default:
		m.LostRecords += uint64(ahead - 1)
		m.last = r.Sequence
	}
	return r, true, 0
}

// allIdle reports whether no CPU can have the missing record ready to be read.
func (m *Merger) allIdle() bool {
	for i := range m.cpus {
		if q := &m.cpus[i]; !q.idle && !q.ended && q.empty() {
			return false
		}
	}
	return true
}

func (m *Merger) allSeen() bool {
	for i := range m.cpus {
		if q := &m.cpus[i]; !q.seen && !q.ended && q.empty() {
			return false
		}
	}
	return true
}

// lowest finds the queue whose head comes first, and whether no CPU can still
// bring an earlier one: each has ended or has a record queued.
func (m *Merger) lowest() (cpu int, complete bool) {
	cpu, complete = -1, true
	for i := range m.cpus {
		q := &m.cpus[i]
		if q.empty() {
			complete = complete && q.ended
			continue
		}
		if cpu < 0 || int32(q.sequence()-m.cpus[cpu].sequence()) < 0 {
			cpu = i
		}
	}
	return cpu, complete
}

// Discard drops all that is queued.
func (m *Merger) Discard() {
	for i := range m.cpus {
		m.cpus[i] = cpuQueue{ended: true}
	}
}
