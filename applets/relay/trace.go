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
// interrupts on the CPU that reads (loader-relay 7.2). One more goroutine merges
// what they read and writes it.
type traceReaders struct {
	mu      sync.Mutex
	merger  *transport.Merger
	room    *sync.Cond // a queue has got shorter, or discard was set
	news    chan struct{}
	wake    int // eventfd that ends every poll at once
	drain   bool
	discard bool
	stopped bool

	lostBytes uint64
	warnings  []error
	readers   sync.WaitGroup
	merged    chan struct{}
}

// accounting is what did not arrive.
type accounting struct{ records, bytes, unexpected uint64 }

func startReaders(files []*transport.TraceFile, gen transport.Generation, wait time.Duration, out *output) (*traceReaders, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	t := &traceReaders{
		merger: transport.NewMerger(len(files), true), wake: wake,
		news: make(chan struct{}, 1), merged: make(chan struct{}),
	}
	t.room = sync.NewCond(&t.mu)
	for cpu, f := range files {
		if f == nil {
			t.merger.End(cpu)
			continue
		}
		t.readers.Add(1)
		go t.read(cpu, f, gen, wait)
	}
	go t.merge(out)
	return t, nil
}

// read is the reader of one CPU.
func (t *traceReaders) read(cpu int, f *transport.TraceFile, gen transport.Generation, wait time.Duration) {
	defer t.readers.Done()
	defer f.Close()
	// The thread is not given back: it dies with its affinity.
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.mu.Lock()
		t.warnings = append(t.warnings, affinityError(cpu, err))
		t.mu.Unlock()
	}
	s := &transport.Splitter{Generation: gen}
	buf := make([]byte, 1<<16)
	fd := f.FD
	for {
		// Once drain is set everything is readable: the first empty read after
		// it is the end.
		t.mu.Lock()
		last := t.drain || t.discard
		t.mu.Unlock()
		for {
			n, err := unix.Read(fd, buf)
			if n > 0 {
				if !t.put(cpu, s, buf[:n]) {
					return
				}
				continue
			}
			if err == unix.EINTR {
				continue
			}
			if err != nil && err != unix.ENODATA && err != unix.EAGAIN {
				t.mu.Lock()
				t.warnings = append(t.warnings, &os.PathError{Op: "read", Path: f.Name, Err: err})
				t.mu.Unlock()
				last = true
			}
			break
		}
		if last {
			t.end(cpu, s)
			return
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(t.wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(wait.Milliseconds())); err != nil && err != unix.EINTR {
			time.Sleep(wait)
		}
		if fds[0].Revents&unix.POLLERR != 0 && fds[0].Revents&unix.POLLIN == 0 && fds[1].Revents == 0 {
			// The channel was finalised while nothing is there: wait for the
			// conversation to end instead of spinning.
			unix.Poll(fds[1:], int(wait.Milliseconds()))
		}
	}
}

// put hands what was read to the merger, holding the reader back while its
// queue is full. False means that output is not wanted any more.
func (t *traceReaders) put(cpu int, s *transport.Splitter, data []byte) bool {
	s.Write(data)
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		r, ok := s.Next()
		if !ok {
			break
		}
		for t.merger.Full(cpu) && !t.discard {
			t.room.Wait()
		}
		if t.discard {
			return false
		}
		t.merger.Put(cpu, r)
		t.notify()
	}
	return true
}

func (t *traceReaders) end(cpu int, s *transport.Splitter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := s.Rest(); ok {
		t.merger.Put(cpu, r)
	}
	t.lostBytes += s.LostBytes
	t.merger.End(cpu)
	t.notify()
}

func (t *traceReaders) notify() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// writeSize is how much is gathered for one write(2).
const writeSize = 1 << 16

// merge writes the records in order until the readers have ended and nothing is
// left.
func (t *traceReaders) merge(out *output) {
	defer close(t.merged)
	buf := make([]byte, 0, writeSize)
	for {
		t.mu.Lock()
		var wait time.Duration
		buf = buf[:0]
		for len(buf) < writeSize {
			r, ok, w := t.merger.Next(time.Now())
			if !ok {
				wait = w
				break
			}
			buf = append(buf, r.Payload...)
		}
		stopped := t.stopped
		t.room.Broadcast()
		t.mu.Unlock()
		if len(buf) > 0 {
			out.Write(buf)
			continue
		}
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

// finish stops the readers, after all there is to read or at once, and waits
// until everything that was read is written.
func (t *traceReaders) finish(drain bool) (accounting, []error) {
	t.mu.Lock()
	t.drain, t.discard = drain, !drain
	t.room.Broadcast()
	t.mu.Unlock()
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	if _, err := unix.Write(t.wake, one); err != nil && !errors.Is(err, unix.EAGAIN) {
		t.warnings = append(t.warnings, os.NewSyscallError("eventfd write", err))
	}
	t.readers.Wait()
	t.mu.Lock()
	t.stopped = true
	if t.discard {
		t.merger = transport.NewMerger(0, true)
	}
	t.notify()
	t.mu.Unlock()
	<-t.merged
	unix.Close(t.wake)
	return accounting{t.merger.LostRecords, t.lostBytes, t.merger.Unexpected}, t.warnings
}
