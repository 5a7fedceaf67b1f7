package bench

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/wire"
)

// How a server is loaded.
const (
	knownTime   = 10 * time.Second
	knownPeers  = 8   // clients at a time
	knownRuns   = 101 // round trips of one client, one after the other
	theirRuns   = 11  // of upstream's, which take a third of a second
	mixed       = 10000
	mixedKnown  = 20 // scripts
	mixedNew    = 2  // of a hundred requests
	mixedBroken = 8  // of a hundred requests
)

// load measures a server that is asked for what it knows, pinned to one
// processor, and what it remembers of many requests.
func (b *bench) load(ctx context.Context) error {
	theirs, ours, err := b.sides()
	if err != nil {
		return err
	}
	trip := &row{what: "identical request, round trip over TLS", unit: milliseconds, most: 0.010}
	rate := &row{what: "known requests a second, the server on one core", unit: perSecond}
	idle := &row{what: "server memory, idle, before mixed requests", unit: mebibytes, most: 20 << 20}
	growth := &row{what: fmt.Sprintf("server memory, growth over %d mixed requests", mixed), unit: mebibytes, most: 10 << 20}
	for _, x := range []struct {
		side
		trip, rate, idle *[]float64
		runs             int
	}{{theirs, &trip.theirs, &rate.theirs, &idle.theirs, theirRuns}, {ours, &trip.ours, &rate.ours, &idle.ours, knownRuns}} {
		s, err := b.startServer(ctx, x.side)
		if err != nil {
			return err
		}
		err = func() error {
			defer s.stop()
			if generating.MatchString(s.text()) {
				time.Sleep(3 * time.Second) // upstream's listens first and then makes its key
			}
			if x.side == ours {
				if _, err := s.waitLog(ctx, prepared); err != nil {
					return err
				}
			}
			time.Sleep(2 * time.Second)
			before, err := s.resident()
			if err != nil {
				return err
			}
			*x.idle = []float64{before}
			known, err := b.asks(b.hello()...)
			if err != nil {
				return err
			}
			for i := range x.runs + 2 {
				took, err := b.ask(ctx, s, known)
				if err != nil {
					return fmt.Errorf("%s: %w\n%.2000s", x.name, err, s.text())
				}
				if i >= 2 { // the first ones have it made, and kept
					*x.trip = append(*x.trip, took.Seconds())
				}
			}
			pid, err := s.pid()
			if err != nil {
				return err
			}
			if err := pin(pid, 0); err != nil {
				return err
			}
			n, err := b.sustained(ctx, s, known)
			if err != nil {
				return fmt.Errorf("%s: %w\n%.2000s", x.name, err, s.text())
			}
			*x.rate = []float64{n}
			return nil
		}()
		if err != nil {
			return err
		}
	}
	// Memory is that of a server that has all it needs, and no history.
	s, err := b.startServer(ctx, ours)
	if err != nil {
		return err
	}
	defer s.stop()
	if _, err := s.waitLog(ctx, prepared); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	before, err := s.resident()
	if err != nil {
		return err
	}
	if err := b.mix(ctx, s); err != nil {
		return fmt.Errorf("%w\n%.2000s", err, s.text())
	}
	time.Sleep(2 * time.Second)
	after, err := s.resident()
	if err != nil {
		return err
	}
	growth.ours = []float64{max(after-before, 0)}
	for _, r := range []*row{trip, rate, idle, growth} {
		b.add(r)
	}
	return nil
}

// asks is the archive of a request for pass 4.
func (b *bench) asks(args ...string) ([]byte, error) {
	return (&wire.Request{Version: wire.Version, Release: b.peer.Kernel.Release, Arch: "x86_64", HasLocale: true, Args: append([]string{"-p4"}, args...)}).Encode()
}

// inNetwork runs f on a thread of the servers' network.
func (b *bench) inNetwork(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with this function
		fd, err := unix.Open(filepath.Join("/run/netns", b.net.Namespace), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func exchange(ctx context.Context, s *server, archive []byte) (*wire.Response, error) {
	c := &wire.Client{Address: s.address, Verify: func(*x509.Certificate) error { return nil }}
	answer, err := c.Exchange(ctx, archive)
	if err != nil {
		return nil, err
	}
	return wire.DecodeResponse(answer)
}

// ask is one request that must succeed, and how long it took.
func (b *bench) ask(ctx context.Context, s *server, archive []byte) (took time.Duration, err error) {
	err = b.inNetwork(func() error {
		begin := time.Now()
		r, err := exchange(ctx, s, archive)
		took = time.Since(begin)
		if err == nil && r.RC != 0 {
			err = fmt.Errorf("status %d: %s", r.RC, r.Stderr)
		}
		return err
	})
	return took, err
}

// pin keeps all threads of a process, and those to come, on one processor.
func pin(pid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, &set)
		}
		if err != nil && err != unix.ESRCH {
			return fmt.Errorf("pinning thread %s of process %d: %w", t.Name(), pid, err)
		}
	}
	return nil
}

// sustained is how many known requests a second are answered.
func (b *bench) sustained(ctx context.Context, s *server, archive []byte) (float64, error) {
	var count atomic.Int64
	var all sync.WaitGroup
	errs := make(chan error, knownPeers)
	begin := time.Now()
	for range knownPeers {
		all.Go(func() {
			errs <- b.inNetwork(func() error {
				for time.Since(begin) < knownTime {
					r, err := exchange(ctx, s, archive)
					if err == nil && r.RC != 0 {
						err = fmt.Errorf("status %d: %s", r.RC, r.Stderr)
					}
					if err != nil {
						return err
					}
					count.Add(1)
				}
				return nil
			})
		})
	}
	all.Wait()
	took := time.Since(begin)
	for range knownPeers {
		if err := <-errs; err != nil {
			return 0, err
		}
	}
	return float64(count.Load()) / took.Seconds(), nil
}

// mix asks for what is known, for what is new, and sends what is no request.
func (b *bench) mix(ctx context.Context, s *server) error {
	var known [][]byte
	for range mixedKnown {
		a, err := b.asks(b.hello()...)
		if err != nil {
			return err
		}
		known = append(known, a)
	}
	refused, err := b.asks("--privilege=stapusr", "-e", `probe begin { println(ctime(0)) exit() }`)
	if err != nil {
		return err
	}
	noise := make([]byte, 3000)
	rand.Read(noise)
	return b.inNetwork(func() error {
		for i := range mixed {
			archive, want := known[i%mixedKnown], 0
			switch kind := i % 100; {
			case kind < mixedNew:
				if archive, err = b.asks(b.hello()...); err != nil {
					return err
				}
			case kind < mixedNew+mixedBroken/2:
				archive, want = noise, 1
			case kind < mixedNew+mixedBroken:
				archive, want = refused, 1
			}
			r, err := exchange(ctx, s, archive)
			if err == nil && r.RC != want {
				err = fmt.Errorf("status %d, not %d: %s", r.RC, want, r.Stderr)
			}
			if err != nil {
				return fmt.Errorf("request %d: %w", i, err)
			}
		}
		return nil
	})
}
