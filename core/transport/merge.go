package transport

import "time"

// GapWait is how long a missing sequence number is waited for.
const GapWait = 2 * time.Second

// queued is the number of bytes a CPU may have waiting in a Merger before its
// reader is held back. The module then counts what it cannot store.
const queued = 1 << 20

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
}

type cpuQueue struct {
	records []Record
	bytes   int
	seen    bool // read once
	ended   bool
}

// NewMerger makes a Merger for that many CPUs. With first set the stream starts
// with sequence number 1; without (after attaching to a running module) the
// first record seen sets the start.
func NewMerger(cpus int, first bool) *Merger {
	return &Merger{cpus: make([]cpuQueue, cpus), any: first}
}

// Put adds a record of a CPU.
func (m *Merger) Put(cpu int, r Record) {
	q := &m.cpus[cpu]
	q.records = append(q.records, r)
	q.bytes += len(r.Payload) + overhead
}

// Full reports whether the CPU's queue has reached its bound.
func (m *Merger) Full(cpu int) bool { return m.cpus[cpu].bytes >= queued }

// Idle tells that a CPU had nothing more to read. Where the stream begins with
// whatever comes first, it begins when that is known of every CPU.
func (m *Merger) Idle(cpu int) { m.cpus[cpu].seen = true }

// End tells that a CPU will send nothing more.
func (m *Merger) End(cpu int) { m.cpus[cpu].ended = true }

// Next gives the next record in order. When the next sequence number is not
// there yet, wait says how long to wait for it before calling again; it is 0
// when nothing is queued at all. A gap is given up when its time is over, when
// every CPU has ended, or when every CPU that has not has a later record queued.
func (m *Merger) Next(now time.Time) (r Record, ok bool, wait time.Duration) {
	cpu, complete := m.lowest()
	if cpu < 0 {
		m.gap = time.Time{}
		return Record{}, false, 0
	}
	q := &m.cpus[cpu]
	ahead := q.records[0].Sequence - m.last // wraps with the sequence
	if !m.any && !complete && !m.allSeen() || m.any && ahead != 1 && int32(ahead) > 0 && !complete {
		if m.gap.IsZero() {
			m.gap = now
		}
		if left := GapWait - now.Sub(m.gap); left > 0 {
			return Record{}, false, left
		}
	}
	m.gap = time.Time{}
	r = q.records[0]
	q.records = q.records[1:]
	q.bytes -= len(r.Payload) + overhead
	if len(q.records) == 0 {
		q.records = nil
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

func (m *Merger) allSeen() bool {
	for i := range m.cpus {
		if q := &m.cpus[i]; !q.seen && !q.ended && len(q.records) == 0 {
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
		if len(q.records) == 0 {
			complete = complete && q.ended
			continue
		}
		if cpu < 0 || int32(q.records[0].Sequence-m.cpus[cpu].records[0].Sequence) < 0 {
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
