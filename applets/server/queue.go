package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// errOverloaded is what a client is told whose request cannot even wait.
var errOverloaded = errors.New("Server is overloaded, try again later.")

// queue hands out the right to translate. Clients take turns, whatever the
// number of requests each of them has waiting: a request gets a tag, one more
// than that of its client's request before it, but more than that of the request
// that began last; the smallest tag is next (start-time fair queueing). And a
// client has at most perClient slots, so that long translations of one do not
// keep all others waiting.
type queue struct {
	mu        sync.Mutex
	slots     int
	perClient int
	bound     int // of requests that wait
	of        map[string]*share
	used      int
	length    int
	now       uint64 // tag of the request that began last
}

// share is what one client has of the queue.
type share struct {
	running int
	last    uint64 // tag of its newest request
	waiting []*ticket
}

type ticket struct {
	tag   uint64
	ready chan error // one value
}

// set changes the limits; what runs and waits stays.
func (q *queue) set(slots, perClient, bound int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.slots, q.perClient, q.bound = slots, perClient, bound
	q.next()
}

// counts tells how many requests are being translated, and how many wait.
func (q *queue) counts() (running, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.used, q.length
}

// acquire waits for a slot. busy is called if that takes its time.
func (q *queue) acquire(ctx context.Context, client string, busy func()) (release func(), err error) {
	q.mu.Lock()
	if q.of == nil {
		q.of = make(map[string]*share)
	}
	s := q.of[client]
	if s == nil {
		s = &share{}
		q.of[client] = s
	}
	t := &ticket{tag: max(q.now, s.last) + 1, ready: make(chan error, 1)}
	s.last = t.tag
	s.waiting = append(s.waiting, t)
	q.length++
	q.next()
	if q.length > q.bound {
		// The newest of whoever has most waiting gives way.
		q.drop(client)
	}
	q.mu.Unlock()
	select {
	case err = <-t.ready:
	default:
		busy()
		select {
		case err = <-t.ready:
		case <-ctx.Done():
			if q.withdraw(client, t) {
				return nil, context.Cause(ctx)
			}
			err = <-t.ready // its turn came just now
		}
	}
	if err != nil {
		return nil, err
	}
	return func() { q.release(client) }, nil
}

// next gives free slots to those whose turn it is. The caller holds q.mu, as for
// the functions below.
func (q *queue) next() {
	for q.used < q.slots {
		var best *share
		for _, s := range q.of {
			if len(s.waiting) > 0 && s.running < q.perClient && (best == nil || s.waiting[0].tag < best.waiting[0].tag) {
				best = s
			}
		}
		if best == nil {
			return
		}
		t := best.waiting[0]
		best.waiting = best.waiting[1:]
		q.length--
		q.used++
		best.running++
		q.now = max(q.now, t.tag)
		t.ready <- nil
	}
}

func (q *queue) drop(newcomer string) {
	most, who := len(q.of[newcomer].waiting), newcomer
	for name, s := range q.of {
		if len(s.waiting) > most {
			most, who = len(s.waiting), name
		}
	}
	s := q.of[who]
	t := s.waiting[len(s.waiting)-1]
	s.waiting = s.waiting[:len(s.waiting)-1]
	s.last--
	q.length--
	q.forget(who)
	t.ready <- errOverloaded
}

func (q *queue) release(client string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used--
	q.of[client].running--
	q.forget(client)
	q.next()
}

// withdraw takes a ticket back, if it still waits.
func (q *queue) withdraw(client string, t *ticket) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.of[client]
	if s == nil {
		return false
	}
	for i, w := range s.waiting {
		if w == t {
			s.waiting = append(s.waiting[:i:i], s.waiting[i+1:]...)
			q.length--
			q.forget(client)
			return true
		}
	}
	return false
}

func (q *queue) forget(client string) {
	if s := q.of[client]; s.running == 0 && len(s.waiting) == 0 {
		delete(q.of, client)
	}
}

// slot waits for the right to translate a request of the client that ctx is of.
func (s *server) slot(ctx context.Context) (release func(), err error) {
	release, err = s.queue.acquire(ctx, clientOf(ctx).name, func() {
		s.log.printf("Server is overloaded. Processing times may be longer than normal.")
	})
	if errors.Is(err, errOverloaded) {
		s.figures.refused("queue")
	}
	return release, err
}

// queueBound is the number of requests that may wait.
func (l *limits) queueBound(slots int) int {
	if l.queue >= 0 {
		return l.queue
	}
	return queuePerSlot * slots
}

// share is the number of slots one client may have: by default all but one.
func (l *limits) share(slots int) int {
	if l.clientThreads > 0 {
		return min(l.clientThreads, slots)
	}
	return max(slots-1, 1)
}

func (l *limits) String() string {
	return fmt.Sprintf("--client-threads=%d --client-requests=%d --client-rate=%d --queue=%d", l.clientThreads, l.clientRequests, l.clientRate, l.queue)
}
