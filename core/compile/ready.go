package compile

import (
	"context"
	"errors"
	"time"

	"stapbox/core/backend"
	"stapbox/core/kbuild"
	"stapbox/core/stapopts"
)

// readiness is what is known of the preparation of one kernel.
type readiness struct {
	good   string        // identity (kbuild.Identity) with which it was found to be fine
	failed string        // identity with which it could not be made, at that time
	at     time.Time     // of failed
	busy   chan struct{} // closed when the look, or the work, that is under way ends
}

// retryTime is how long a failure counts while nothing has changed.
const retryTime = time.Minute

// ready sees to it that the kernel of a request is prepared. It was when the
// server began, but headers and compilers are upgraded while servers run, and
// workers of requests cannot prepare anything.
func (s *Service) ready(ctx context.Context, r *request) error {
	if r.opts.LastPass < 4 || r.translator == stapopts.TranslatorSystemtap {
		return nil
	}
	k, err := s.kernel(r.release)
	if err != nil {
		return nil // the translator says it better
	}
	name, identity := r.release.Name, kbuild.Identity(s.StateDir, k, s.self().runtime, backend.Path)
	s.mu.Lock()
	if s.kernels == nil {
		s.kernels = make(map[string]*readiness)
	}
	p := s.kernels[name]
	if p == nil {
		p = &readiness{}
		s.kernels[name] = p
	}
	old := p.failed == identity && time.Since(p.at) < retryTime
	if p.good != identity && p.busy == nil && !old {
		p.busy = make(chan struct{})
		s.making.Add(1)
		// Others will wait for it too, so it does not end with this request.
		go s.prepareAgain(context.WithoutCancel(ctx), r.release, k, p)
	}
	busy := p.busy
	s.mu.Unlock()
	if busy != nil {
		select {
		case <-busy:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		s.mu.Lock()
		old = p.failed != ""
		s.mu.Unlock()
	}
	if old {
		return refuse("Server: kernel %s could not be prepared for building modules, the log of the server has the reason", name)
	}
	return nil
}

func (s *Service) prepareAgain(ctx context.Context, release Release, k kbuild.Kernel, p *readiness) {
	defer s.making.Done()
	rt := s.self().runtime
	_, err := kbuild.Open(s.StateDir, k, rt)
	if errors.Is(err, kbuild.ErrNotPrepared) {
		s.Log("Kernel %s is prepared anew: %v", release.Name, err)
		start := time.Now()
		if err = s.Prepare(ctx, release); err == nil {
			_, err = kbuild.Open(s.StateDir, k, rt)
		}
		if err == nil {
			s.Log("Kernel %s is ready after %v", release.Name, time.Since(start).Round(time.Millisecond))
		}
	}
	identity := kbuild.Identity(s.StateDir, k, rt, backend.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.Log("%v", err)
		p.good, p.failed, p.at = "", identity, time.Now()
	} else {
		p.good, p.failed = identity, ""
	}
	close(p.busy)
	p.busy = nil
}

// kernel finds the headers of a release.
func (s *Service) kernel(r Release) (kbuild.Kernel, error) {
	if r.BuildDir != "" {
		return kbuild.FindKernel(r.BuildDir)
	}
	return kbuild.FindKernel(r.Name)
}
