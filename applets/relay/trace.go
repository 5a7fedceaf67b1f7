package relay

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/transport"
)

// traceReaders reads the trace files: one thread per CPU, bound to it, because
// upstream's modules protect a buffer against its producers only by disabling
// interrupts on the CPU that reads (loader-relay 7.2). In stream mode one more
// goroutine merges what they read and writes it; in bulk mode each writes its
// own file.
type traceReaders struct {
	gen  transport.Generation
	wait time.Duration
	out  *output
	bulk bool

	mu      sync.Mutex
	merger  *transport.Merger
	room    *sync.Cond // a queue has got shorter, or the ending has changed
	news    chan struct{}
	wake    int // eventfd that ends every poll at once
	ending  ending
	stopped bool // the readers have ended
	left    bool // a writer that is stuck was left behind

	newest    *transport.Newest
	lostBytes uint64
	warnings  []error
	readers   sync.WaitGroup
	starting  sync.WaitGroup // readers that have not waited for data yet
	done      chan struct{}  // all is written
}

// ending is how the readers come to their end.
type ending int

const (
	running ending = iota
	drain          // after reading and writing all that is there
	leave          // after writing all that was read: the module goes on
	discard        // at once
)

// accounting is what did not arrive.
type accounting struct{ records, bytes, unexpected uint64 }

// startReaders begins to read. With first set the stream starts with the first
// record the module ever made.
func startReaders(files []*transport.TraceFile, gen transport.Generation, wait time.Duration, out *output, bulk, first bool) (*traceReaders, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	t := &traceReaders{
		gen: gen, wait: wait, out: out, bulk: bulk, wake: wake, newest: new(transport.Newest),
		merger: transport.NewMerger(len(files), first),
		news:   make(chan struct{}, 1), done: make(chan struct{}),
	}
	t.room = sync.NewCond(&t.mu)
	for cpu, f := range files {
		if f == nil {
			t.merger.End(cpu)
			continue
		}
		t.readers.Add(1)
		t.starting.Add(1)
		go t.read(cpu, f)
	}
	if bulk {
		go func() { t.readers.Wait(); close(t.done) }()
	} else {
		go t.merge()
	}
	return t, nil
}

// read is the reader of one CPU.
func (t *traceReaders) read(cpu int, f *transport.TraceFile) {
	defer t.readers.Done()
	defer f.Close()
	waits := sync.OnceFunc(t.starting.Done)
	defer waits()
	// The thread is not given back: it dies with its affinity.
	runtime.LockOSThread()
	if err := withoutSignals(); err != nil {
		t.warn(err)
	}
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.warn(affinityError(cpu, err))
	}
	s := &transport.Splitter{Generation: t.gen, Newest: t.newest}
	take, idle := t.queueRecords(cpu, s), func() { t.idle(cpu) }
	if t.bulk {
		take, idle = t.writeRecords(cpu, s), t.out.of(cpu).flush
	}
	read := func(to []byte) (int, error) { return unix.Read(f.FD, to) }
	for {
		some := false
		// Once drain is set everything is readable: the first empty read after
		// it is the end.
		end := t.endingNow()
		for end != leave {
			n, err := s.Fill(read)
			if n > 0 {
				some = true
				if !take() {
					return
				}
				if t.endingNow() == leave {
					end = leave
				}
				continue
			}
			if err == unix.EINTR {
				continue
			}
			if err != nil && err != unix.ENODATA && err != unix.EAGAIN {
				t.warn(&os.PathError{Op: "read", Path: f.Name, Err: err})
				end = drain
			}
			break
		}
		idle()
		if end == leave {
			t.complete(f, s, take)
		}
		if end != running {
			t.end(cpu, s)
			idle()
			return
		}
		waits()
		t.poll(f.FD, some)
	}
}

// await waits until all readers have come to wait for data, or for a second: a CPU may
// be taken.
//
// START holds the CPU of the thread that writes it as long as begin probes run. The
// reader of this CPU, displaced by it in the middle of Go code, would keep the Go
// scheduler's only processor: nothing of stapio would run, and no signal count, until
// START is answered. A reader that waits in the kernel has given the processor back.
// That was one start in seven; what is left are the microseconds in which a reader looks
// at its file again, every -T milliseconds, before the first probe runs.
func (t *traceReaders) await() {
	waiting := make(chan struct{})
	go func() { t.starting.Wait(); close(waiting) }()
	select {
	case <-waiting:
	case <-time.After(time.Second):
	}
}

// gather is how long a reader that has just read waits before it looks again:
// modules wake their readers up for every few records.
const gather = 5 * time.Millisecond

// complete reads the rest of a record that was cut by the end of a read, so that
// who attaches next begins with a whole one.
func (t *traceReaders) complete(f *transport.TraceFile, s *transport.Splitter, take func() bool) {
	for missing := s.Missing(); missing > 0; missing = s.Missing() {
		n, err := s.Fill(func(to []byte) (int, error) { return unix.Read(f.FD, to[:min(missing, len(to))]) })
		if n <= 0 || err != nil {
			return
		}
		if !take() {
			return
		}
	}
}

// poll waits for data, for the end, or for the reader timeout.
func (t *traceReaders) poll(fd int, some bool) {
	if some {
		wake := []unix.PollFd{{Fd: int32(t.wake), Events: unix.POLLIN}}
		if n, _ := unix.Poll(wake, int(gather.Milliseconds())); n > 0 {
			return
		}
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(t.wake), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, int(t.wait.Milliseconds())); err != nil && err != unix.EINTR {
		time.Sleep(t.wait)
	}
	if fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0 && fds[0].Revents&unix.POLLIN == 0 && fds[1].Revents == 0 {
		// The channel was finalised while nothing is there: wait for the
		// conversation to end instead of spinning.
		unix.Poll(fds[1:], int(t.wait.Milliseconds()))
	}
}

func (t *traceReaders) endingNow() ending {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ending
}

func (t *traceReaders) warn(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.warnings = append(t.warnings, err)
}

// queueRecords hands what was read to the merger, holding the reader back while
// its queue is full. False means that output is not wanted any more.
func (t *traceReaders) queueRecords(cpu int, s *transport.Splitter) func() bool {
	return func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		for {
			r, ok := s.Next()
			if !ok {
				t.notify()
				return true
			}
			for t.merger.Full(cpu) && t.ending != discard {
				t.notify()
				t.room.Wait()
			}
			if t.ending == discard {
				return false
			}
			t.merger.Put(cpu, r)
		}
	}
}

// writeRecords writes what was read, headers included, to the CPU's own file.
func (t *traceReaders) writeRecords(cpu int, s *transport.Splitter) func() bool {
	var head []byte
	out := t.out.of(cpu)
	return func() bool {
		for {
			r, ok := s.Next()
			if !ok {
				return t.endingNow() != discard
			}
			head = r.AppendHeader(head[:0], t.gen)
			out.add(head, r.Payload)
		}
	}
}

func (t *traceReaders) idle(cpu int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.merger.Idle(cpu)
}

// end accounts for what is left in a splitter. In bulk mode a cut record is
// lost whole: its header would promise more than there is.
func (t *traceReaders) end(cpu int, s *transport.Splitter) {
	r, ok := s.Rest()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lostBytes += s.LostBytes
	switch {
	case ok && t.bulk:
		t.lostBytes += uint64(len(r.Payload))
	case ok:
		t.merger.Put(cpu, r)
	}
	t.merger.End(cpu)
	t.notify()
}

func (t *traceReaders) notify() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// batch is how many records are taken from the merger at a time.
const batch = 512

// merge writes the records in order until the readers have ended and nothing is
// left.
func (t *traceReaders) merge() {
	defer close(t.done)
	out := t.out.of(allCPUs)
	records := make([]transport.Record, 0, batch)
	for {
		now := time.Now()
		var wait time.Duration
		records = records[:0]
		t.mu.Lock()
		t.merger.Release()
		for len(records) < batch {
			r, ok, w := t.merger.Next(now)
			if !ok {
				wait = w
				break
			}
			records = append(records, r)
		}
		stopped := t.stopped
		if len(records) > 0 {
			t.room.Broadcast() // only then: a reader woken for nothing wakes us, and the two starve the others
		}
		t.mu.Unlock()
		for _, r := range records {
			out.add(nil, r.Payload)
		}
		if len(records) > 0 {
			continue
		}
		out.flush()
		if stopped && wait == 0 {
			return
		}
		var timeout <-chan time.Time
		if wait > 0 {
			timeout = time.After(wait)
		}
		select {
		case <-t.news:
		case <-timeout:
		}
	}
}

// turn makes the output go on in new files.
func (t *traceReaders) turn() {
	t.out.turn()
	t.notify()
}

// finish ends the readers and the writing. A channel that closes before makes
// it give up what is not written yet.
func (t *traceReaders) finish(how ending, giveUp <-chan struct{}) (accounting, []error) {
	t.conclude(how)
	finished := make(chan struct{})
	go func() {
		t.readers.Wait()
		t.mu.Lock()
		t.stopped = true
		t.notify()
		t.mu.Unlock()
		<-t.done
		close(finished)
	}()
	select {
	case <-finished:
	case <-giveUp:
		how = discard
		t.conclude(how)
	}
	if how == discard {
		// A writer that is stuck in write(2) is left behind: the process ends.
		select {
		case <-finished:
		case <-time.After(100 * time.Millisecond):
			t.left = true
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return accounting{t.merger.LostRecords, t.lostBytes, t.merger.Unexpected}, t.warnings
}

// stuck reports whether finish had to leave a writer behind, so that the output
// is not to be touched any more. There may have been no readers at all.
func (t *traceReaders) stuck() bool { return t != nil && t.left }

func (t *traceReaders) conclude(how ending) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ending = how
	if how == discard {
		t.merger.Discard()
	}
	t.room.Broadcast()
	t.notify()
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	if _, err := unix.Write(t.wake, one); err != nil && !errors.Is(err, unix.EAGAIN) {
		t.warnings = append(t.warnings, os.NewSyscallError("eventfd write", err))
	}
}
