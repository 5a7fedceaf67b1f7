package server

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// limits are the settings that SIGHUP reads again.
type limits struct {
	clientThreads  int           // slots for one client; 0 is all but one
	clientRequests int           // requests of one client under way
	clientRate     int           // requests of one client a minute; 0 is any number
	queue          int           // requests that wait for a slot; -1 for the default
	drain          time.Duration // for requests that are under way at the end
	renew          time.Duration // before the end of the certificate
}

func defaultLimits() limits {
	return limits{clientRequests: maxPerPeer, queue: -1, drain: 10 * time.Second, renew: 30 * 24 * time.Hour}
}

// client is who sent a request.
type client struct {
	name        string // what limits count by: "sha256:HEX" or a host
	address     string
	certificate string // fingerprint, "" for none
	subject     string // of the certificate
}

type clientKey struct{}

// with gives ctx the client of its request.
func (c client) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, clientKey{}, c)
}

func clientOf(ctx context.Context) client {
	c, _ := ctx.Value(clientKey{}).(client)
	return c
}

// peerOf is the host of an address: all of a /64 network is one, as a host may
// choose freely there.
func peerOf(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return a.String()
	}
	if ip := t.AddrPort().Addr().Unmap(); ip.Is6() && !ip.IsLinkLocalUnicast() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return t.AddrPort().Addr().Unmap().String()
}

// openConnections are the connections there are, by host: one host that opens
// them and says nothing must not keep the others out, nor must several together.
type openConnections struct {
	mu  sync.Mutex
	all int
	of  map[string][]*opened // in the order they came
}

type opened struct {
	net.Conn
	host string
	busy bool // has a request that is being worked on
	gone bool // was closed to make room
}

// add counts a connection. Where there are too many, the host that has most of
// them, and more than this one, loses its oldest that has no request under way.
func (o *openConnections) add(host string, c net.Conn) (n, instead *opened, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.of[host]); n >= maxPerPeer {
		return nil, nil, fmt.Errorf("%d connections from this host are open", n)
	}
	if o.all >= maxConnections {
		if instead = o.victim(len(o.of[host])); instead == nil {
			return nil, nil, fmt.Errorf("%d connections are open", o.all)
		}
		instead.gone = true
		o.drop(instead)
	}
	if o.of == nil {
		o.of = make(map[string][]*opened)
	}
	n = &opened{Conn: c, host: host}
	o.all++
	o.of[host] = append(o.of[host], n)
	return n, instead, nil
}

// victim is the connection that gives way to one of a host that has few.
func (o *openConnections) victim(few int) (v *opened) {
	for _, list := range o.of {
		if len(list) <= few {
			continue
		}
		if i := slices.IndexFunc(list, func(c *opened) bool { return !c.busy }); i >= 0 {
			v, few = list[i], len(list)
		}
	}
	return v
}

func (o *openConnections) drop(c *opened) {
	o.all--
	list := o.of[c.host]
	if i := slices.Index(list, c); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if o.of[c.host] = list; len(list) == 0 {
		delete(o.of, c.host)
	}
}

func (o *openConnections) remove(c *opened) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !c.gone {
		o.drop(c)
	}
}

// works marks a connection whose request is being worked on, or is not any more.
func (o *openConnections) works(c *opened, busy bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c.busy = busy
}

func (o *openConnections) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all
}

// maxAccounts is how many clients are remembered that have nothing under way.
const maxAccounts = 4096

// accounts holds clients to how many requests they may have, at a time and in
// time: a bucket of a tenth of the requests of a minute, which fills at the rate.
type accounts struct {
	mu sync.Mutex
	of map[string]*account
}

type account struct {
	requests int
	left     float64 // in the bucket at since
	since    time.Time
}

// limitError is a refusal by a limit of a client.
type limitError struct{ reason, text string }

func (e *limitError) Error() string { return e.text }

// begin counts a request until the function it returns is called.
func (a *accounts) begin(name string, l limits, now time.Time) (end func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = make(map[string]*account)
	}
	c := a.of[name]
	size, rate := max(float64(l.clientRate)/10, 1), float64(l.clientRate)/60
	if c == nil {
		a.sweep(size, rate, now)
		c = &account{left: size, since: now}
		a.of[name] = c
	}
	if c.requests >= l.clientRequests {
		return nil, &limitError{"concurrency", fmt.Sprintf("this client has %d requests under way, and may have %d (--client-requests). Try again later.", c.requests, l.clientRequests)}
	}
	if l.clientRate > 0 {
		c.fill(size, rate, now)
		if c.left < 1-1e-9 {
			wait := time.Duration((1 - c.left) / rate * float64(time.Second))
			return nil, &limitError{"rate", fmt.Sprintf("this client may make %d requests a minute (--client-rate). Try again in %v.", l.clientRate, (wait + time.Second - 1).Truncate(time.Second))}
		}
		c.left--
	}
	c.requests++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if c.requests--; c.requests == 0 && l.clientRate == 0 {
			delete(a.of, name)
		}
	}, nil
}

func (c *account) fill(size, rate float64, now time.Time) {
	c.left = min(size, c.left+rate*max(now.Sub(c.since).Seconds(), 0))
	c.since = now
}

// sweep makes room for one more client: those that have nothing under way and a
// full bucket are as if they had never come. If there are too many others, some
// of them are forgotten too.
func (a *accounts) sweep(size, rate float64, now time.Time) {
	if len(a.of) < maxAccounts {
		return
	}
	for name, c := range a.of {
		if c.requests > 0 {
			continue
		}
		if c.fill(size, rate, now); c.left >= size {
			delete(a.of, name)
		}
	}
	for name, c := range a.of {
		if len(a.of) < maxAccounts {
			return
		}
		if c.requests == 0 {
			delete(a.of, name)
		}
	}
}
