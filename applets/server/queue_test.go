package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// waiter is a request in a queue.
type waiter struct {
	release func()
	err     error
	done    chan struct{}
}

func (q *queue) ask(ctx context.Context, client string, order func(string)) *waiter {
	w := &waiter{done: make(chan struct{})}
	busy := make(chan struct{})
	go func() {
		w.release, w.err = q.acquire(ctx, client, func() { close(busy) })
		if w.err == nil {
			order(client)
		}
		close(w.done)
	}()
	select {
	case <-busy:
	case <-w.done:
	}
	return w
}

// One client with many requests, and others with few: they take turns.
func TestQueueTurns(t *testing.T) {
	q := &queue{}
	q.set(1, 1, 100)
	var mu sync.Mutex
	var got []string
	order := func(c string) { mu.Lock(); defer mu.Unlock(); got = append(got, c) }
	ctx := t.Context()
	first := q.ask(ctx, "a", order)
	<-first.done
	var all []*waiter
	for range 4 {
		all = append(all, q.ask(ctx, "a", order))
	}
	for _, c := range []string{"b", "b", "c"} {
		all = append(all, q.ask(ctx, c, order))
	}
	if running, waiting := q.counts(); running != 1 || waiting != 7 {
		t.Errorf("running %d, waiting %d", running, waiting)
	}
	first.release()
	for range all {
		i := 0
		for ; ; i = (i + 1) % len(all) {
			select {
			case <-all[i].done:
			default:
				continue
			}
			if all[i].release != nil {
				break
			}
		}
		release := all[i].release
		all[i].release = nil
		release()
	}
	// a's second and the first ones of b and c have the same tag; all are done
	// before anybody's next one.
	if len(got) != 8 || !slices.Equal(sorted(got[1:4]), []string{"a", "b", "c"}) || !slices.Equal(sorted(got[4:6]), []string{"a", "b"}) || got[7] != "a" {
		t.Errorf("order %q", got)
	}
	if len(q.of) != 0 {
		t.Errorf("clients left: %v", q.of)
	}
}

func sorted(l []string) []string { return slices.Sorted(slices.Values(l)) }

// A client that comes again and again does not keep another's second request
// waiting for ever.
func TestQueueNobodyStarves(t *testing.T) {
	q := &queue{}
	q.set(1, 1, 100)
	var mu sync.Mutex
	var got []string
	order := func(c string) { mu.Lock(); defer mu.Unlock(); got = append(got, c) }
	current := q.ask(t.Context(), "x", order)
	<-current.done
	all := []*waiter{q.ask(t.Context(), "a", order), q.ask(t.Context(), "a", order)}
	for i := range 6 {
		all = append(all, q.ask(t.Context(), fmt.Sprintf("fresh%d", i), order))
		current.release()
		for current = nil; current == nil; time.Sleep(time.Millisecond) {
			for n, w := range all {
				select {
				case <-w.done:
					current, all = w, slices.Delete(all, n, n+1)
				default:
					continue
				}
				break
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if n := len(slices.DeleteFunc(slices.Clone(got), func(c string) bool { return c != "a" })); n != 2 {
		t.Errorf("a waits on: %q", got)
	}
}

func TestQueueShares(t *testing.T) {
	q := &queue{}
	q.set(3, 2, 100)
	var mu sync.Mutex
	order := func(string) { mu.Lock(); defer mu.Unlock() }
	for range 2 {
		if w := q.ask(t.Context(), "a", order); w.err != nil {
			t.Fatal(w.err)
		}
	}
	third := q.ask(t.Context(), "a", order)
	select {
	case <-third.done:
		t.Error("one client has all slots")
	default:
	}
	other := q.ask(t.Context(), "b", order)
	select {
	case <-other.done:
	case <-time.After(30 * time.Second):
		t.Error("another client does not get the last slot")
	}
	q.set(3, 3, 100)
	other.release()
	select {
	case <-third.done:
	case <-time.After(30 * time.Second):
		t.Error("the new share does not count")
	}
}

func TestQueueBound(t *testing.T) {
	q := &queue{}
	q.set(1, 1, 3)
	order := func(string) {}
	<-q.ask(t.Context(), "a", order).done
	var greedy []*waiter
	for range 3 {
		greedy = append(greedy, q.ask(t.Context(), "a", order))
	}
	// The queue is full: its own next one is refused, of another client's the
	// first pushes a's newest out.
	if w := q.ask(t.Context(), "a", order); !errors.Is(w.err, errOverloaded) {
		t.Errorf("got %v", w.err)
	}
	b := q.ask(t.Context(), "b", order)
	<-greedy[2].done
	if !errors.Is(greedy[2].err, errOverloaded) {
		t.Errorf("got %v", greedy[2].err)
	}
	select {
	case <-b.done:
		t.Errorf("b: %v", b.err)
	default:
	}
	// Who goes away leaves the queue.
	ctx, cancel := context.WithCancel(t.Context())
	q.set(1, 1, 4)
	gone := q.ask(ctx, "c", order)
	cancel()
	<-gone.done
	if _, waiting := q.counts(); !errors.Is(gone.err, context.Canceled) || waiting != 3 {
		t.Errorf("got %v, %d wait", gone.err, waiting)
	}
}

func TestShares(t *testing.T) {
	for _, tt := range []struct{ slots, set, want int }{{1, 0, 1}, {2, 0, 1}, {8, 0, 7}, {8, 3, 3}, {2, 8, 2}} {
		if got := (&limits{clientThreads: tt.set}).share(tt.slots); got != tt.want {
			t.Errorf("%+v: got %d", tt, got)
		}
	}
	if got := (&limits{queue: -1}).queueBound(2); got != 128 {
		t.Errorf("got %d", got)
	}
}

func TestAccounts(t *testing.T) {
	var a accounts
	now := time.Unix(1000, 0)
	l := limits{clientRequests: 2, clientRate: 20}
	end1, err1 := a.begin("x", l, now)
	end2, err2 := a.begin("x", l, now)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	_, err := a.begin("x", l, now)
	if want := "this client has 2 requests under way, and may have 2 (--client-requests). Try again later."; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
	end1()
	end2()
	_, err = a.begin("x", l, now.Add(100*time.Millisecond))
	if want := "this client may make 20 requests a minute (--client-rate). Try again in 3s."; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
	if end, err := a.begin("y", l, now); err != nil {
		t.Errorf("another client: %v", err)
	} else {
		end()
	}
	if end, err := a.begin("x", l, now.Add(3*time.Second)); err != nil {
		t.Errorf("after three seconds: %v", err)
	} else {
		end()
	}
	// A clock that goes back gives nothing and takes nothing.
	if _, err := a.begin("x", l, now); err == nil {
		t.Error("the clock went back, and a request was free")
	}
	// Many hosts that came once are forgotten.
	for i := range 3 * maxAccounts {
		end, err := a.begin(fmt.Sprint(i), l, now.Add(time.Duration(i)*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		end()
	}
	if len(a.of) > maxAccounts {
		t.Errorf("%d accounts", len(a.of))
	}
	var free accounts
	end, err := free.begin("x", limits{clientRequests: 1}, now)
	if err != nil {
		t.Fatal(err)
	}
	if end(); len(free.of) != 0 {
		t.Error("an account without reason")
	}
}

// Several hosts that fill the server with connections do not keep another out,
// and lose none whose request is being worked on.
func TestConnectionsMakeRoom(t *testing.T) {
	var o openConnections
	add := func(host string) (*opened, *opened, error) {
		c, other := net.Pipe()
		t.Cleanup(func() { c.Close(); other.Close() })
		return o.add(host, c)
	}
	var first *opened
	for i := range maxConnections {
		c, instead, err := add(fmt.Sprint("host ", i%4))
		if err != nil || instead != nil {
			t.Fatalf("connection %d: %v, %v", i, instead, err)
		}
		if i%4 == 0 && first == nil {
			first = c
		}
	}
	o.works(first, true)
	if _, _, err := add("host 1"); err == nil {
		t.Error("a host has more than its share")
	}
	gone := map[*opened]bool{}
	var honest []*opened
	for range 8 {
		c, instead, err := add("honest")
		if err != nil || instead == nil || instead == first || instead.host == "honest" || gone[instead] {
			t.Fatalf("got %v, %v", instead, err)
		}
		gone[instead] = true
		honest = append(honest, c)
		if o.count() != maxConnections {
			t.Errorf("%d connections are counted", o.count())
		}
	}
	for c := range gone { // when their work ends
		o.remove(c)
	}
	for _, c := range honest {
		o.remove(c)
	}
	if o.count() != maxConnections-8 || len(o.of["honest"]) != 0 {
		t.Errorf("%d connections are counted", o.count())
	}
	for _, list := range o.of {
		for _, c := range list {
			o.works(c, true)
		}
	}
	for range 8 {
		if _, _, err := add("newcomer"); err != nil {
			t.Error(err)
		}
	}
	if _, instead, err := add("one more"); err != nil || instead.host != "newcomer" {
		t.Errorf("got %v, %v", instead, err)
	}
	if _, instead, err := add("one more"); err != nil || instead.host != "newcomer" {
		t.Errorf("got %v, %v", instead, err)
	}
}
