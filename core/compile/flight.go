package compile

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"stapbox/core/cache"
)

// How an answer came about, for the log.
const (
	madeHit    = "hit"    // it was in the cache
	madeMiss   = "miss"   // this request had it made, and it is kept if it may be
	madeJoined = "joined" // another request that is the same had it made
	madeOff    = "off"    // as miss, but it could not have been in the cache
)

// result is what becomes of a request.
type result struct {
	answer []byte // the response archive; nil when nobody waits for it
	rc     int
	signer string // "signed" or "unsigned"
	module string
	sum    string // SHA-256 of the module
	by     string // name of the certificate whose key signed it
	made   string
	madeBy string // stapopts.TranslatorBuiltin, stapopts.TranslatorSystemtap, or "" where it was not made now
	err    error  // for the log
	keep   bool   // the answer will be the same next time
	noSlot bool   // Slot refused: that is about whoever asked first
}

// flight is an answer in the making. Requests that are the same wait for it
// together; it ends early only when none of them is left.
type flight struct {
	done    chan struct{} // closed when result is there
	result  result
	cancel  context.CancelCauseFunc
	waiting int // guarded by Service.mu
}

// answer finds, awaits or makes the answer to a checked request. Hits run no
// process and wait for nobody.
func (s *Service) answer(ctx context.Context, r *request) result {
	// Who joined a request that was turned away for how much its client asks has
	// a claim of his own.
	for range maxJoins {
		if res := s.join(ctx, r); !res.noSlot || res.made != madeJoined {
			return res
		}
	}
	return s.join(ctx, r)
}

// maxJoins is how often a request may wait for others in vain.
const maxJoins = 3

func (s *Service) join(ctx context.Context, r *request) result {
	if s.cacheable(r) {
		if res, ok := s.lookup(r.id); ok {
			return res
		}
	}
	s.mu.Lock()
	f, joined := s.flights[r.id]
	if !joined {
		f = &flight{done: make(chan struct{})}
		// What the request brought along belongs to the flight from here on.
		var own context.Context
		own, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
		if s.flights == nil {
			s.flights = make(map[cache.Key]*flight)
		}
		s.flights[r.id] = f
		s.making.Add(1)
		go s.fly(own, f, r.clone())
	}
	f.waiting++
	s.mu.Unlock()

	select {
	case <-f.done:
		s.mu.Lock()
		f.waiting--
		s.mu.Unlock()
		res := f.result
		if joined {
			res.made = madeJoined
		}
		return res
	case <-ctx.Done():
	}
	s.mu.Lock()
	f.waiting--
	last := f.waiting == 0
	if last {
		// Whoever asks from now on has it made anew.
		s.forget(r.id, f)
		f.cancel(context.Cause(ctx))
	}
	s.mu.Unlock()
	if last {
		<-f.done // its worker and its directory are gone
	}
	return result{rc: 1, signer: "unsigned", made: madeMiss, err: context.Cause(ctx)}
}

// forget takes a flight off the list. The caller holds s.mu.
func (s *Service) forget(id cache.Key, f *flight) {
	if s.flights[id] == f {
		delete(s.flights, id)
	}
}

// fly makes an answer and keeps it. Requests that come while it is written join
// the flight: its answer is there.
func (s *Service) fly(ctx context.Context, f *flight, r *request) {
	defer s.making.Done()
	defer f.cancel(nil)
	cacheable := s.cacheable(r)
	res, found := result{}, false
	if cacheable {
		// A flight may have ended between the look-up and this one's start.
		res, found = s.lookup(r.id)
	}
	if !found {
		res = s.build(ctx, r)
		res.made = madeOff
		if cacheable {
			res.made = madeMiss
		}
	}
	f.result = res
	keep := cacheable && !found && res.keep
	if !keep {
		s.mu.Lock()
		s.forget(r.id, f)
		s.mu.Unlock()
	}
	close(f.done)
	if keep {
		s.store(r, res)
		s.mu.Lock()
		s.forget(r.id, f)
		s.mu.Unlock()
	}
}

// lookup asks the cache.
func (s *Service) lookup(id cache.Key) (result, bool) {
	note, answer, err := s.Cache.Get(id)
	switch {
	case err == nil:
		return result{
			answer: answer, signer: note.Signature, module: note.Module, sum: note.SHA256, by: note.Signer, made: madeHit,
		}, true
	case !errors.Is(err, fs.ErrNotExist):
		s.Log("Reading cached answer %s: %v", id.Short(), err)
	}
	return result{}, false
}

// store puts an answer into the cache, if what it depends on is still what it
// was when the work began: headers may have been replaced meanwhile.
func (s *Service) store(r *request, res result) {
	if s.influences(r).key() != r.id {
		s.Log("Answer %s is not cached: the kernel's headers or the compiler changed while it was made", r.id.Short())
		return
	}
	began := time.Now()
	defer func() { s.phase("store", time.Since(began)) }()
	err := s.Cache.Put(r.id, cache.Note{
		Made: time.Now().UTC().Truncate(time.Second), Release: r.release.Name, Level: r.opts.Privilege.String(),
		Module: res.module, Signature: res.signer, SHA256: res.sum, Signer: res.by,
	}, res.answer)
	switch {
	case err == nil:
		s.unstored.Store(false)
	case errors.Is(err, cache.ErrTooLarge):
		s.Log("Not cached: %v", err)
	case !s.unstored.Swap(true):
		// Once: a full disk concerns every answer.
		s.Log("Not cached, as all that follow until one is: %v", err)
	}
}

// Wait returns when no answer is being made or stored.
func (s *Service) Wait() { s.making.Wait() }

// build has an answer made, within the limit on how many are at once.
func (s *Service) build(ctx context.Context, r *request) result {
	if s.Slot != nil {
		asked := time.Now()
		release, err := s.Slot(ctx)
		s.phase("wait", time.Since(asked))
		if err != nil {
			if ctx.Err() == nil {
				err = refuse("Server: %v", err)
			}
			res := s.finish(ctx, r, err)
			res.noSlot = true
			return res
		}
		defer release()
	}
	return s.finish(ctx, r, s.guard(func() error { return s.make(ctx, r) }))
}

// clone is a request of its own for a flight, which may outlive the request that
// started it.
func (r *request) clone() *request {
	c := &request{
		archive: r.archive, wire: r.wire, opts: r.opts, argv: r.argv, release: r.release, env: r.env, translator: r.translator,
		digest: r.digest, contents: r.contents, complaints: r.complaints, script: r.script, id: r.id, key: r.key, rc: r.rc, signer: r.signer,
	}
	c.mok = r.mok
	c.stderr.WriteString(r.complaints)
	return c
}
