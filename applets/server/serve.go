package server

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/service"
	"stapbox/core/systemd"
)

// serve accepts connections until a signal comes or ctx ends, then drains.
func (s *server) serve(ctx context.Context) int {
	// SIGPIPE is not among them: to ask for it would bring it for every client
	// that goes away.
	signals := s.signals
	if signals == nil {
		signals = make(chan os.Signal, 16)
	}
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGINT, syscall.SIGTERM,
		syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGXFSZ, syscall.SIGXCPU)
	defer signal.Stop(signals)

	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var warming, connections, accepting, scraping sync.WaitGroup
	s.compiler().RemoveLeft()
	warming.Go(s.compiler().Warm(work))
	for _, l := range s.listeners {
		accepting.Go(func() { s.accept(work, l, &connections) })
	}
	if s.scrapes != nil {
		scraping.Go(func() { s.figures.Serve(s.scrapes) })
		defer func() {
			s.scrapes.Close()
			scraping.Wait()
		}()
	}
	accepted := make(chan struct{})
	go func() {
		accepting.Wait()
		close(accepted)
	}()
	s.mu.Lock()
	fingerprint := identity.Fingerprint(s.id.Certificate)
	s.mu.Unlock()
	s.tell(systemd.Ready, systemd.Status("Serving %d kernels", len(s.compiler().Releases)),
		service.PortFact+strconv.Itoa(s.port), service.CertificateFact+fingerprint)

	s.wait(ctx, signals, accepted)

	// Nobody is to come here any more. Who comes all the same is told, unless
	// the service manager keeps him for our successor.
	s.tell(systemd.Stopping)
	s.work.drain()
	s.mu.Lock()
	s.withdraw()
	s.mu.Unlock()
	if s.activated {
		s.closeListeners()
	}
	s.drain(signals)
	s.closeListeners()
	<-accepted

	// Ends workers and, through their deadlines, connections that say nothing.
	cancel(errors.New("the server is shutting down"))
	warming.Wait()
	within(drainTime, func() {
		connections.Wait()
		// Answers that are on their way to the cache.
		for _, c := range s.allCompilers() {
			c.Wait()
		}
	})
	return 0
}

// wait handles signals until one of them, or something else, ends the service.
func (s *server) wait(ctx context.Context, signals <-chan os.Signal, accepted <-chan struct{}) {
	var watchdog <-chan time.Time
	if s.watchdog > 0 {
		t := time.NewTicker(s.watchdog / 2)
		defer t.Stop()
		watchdog = t.C
	}
	// Certificates are renewed also where nobody asks.
	renew := time.NewTicker(renewTime)
	defer renew.Stop()
	for {
		select {
		case sig := <-signals:
			switch sig {
			case syscall.SIGHUP:
				s.reload()
			case syscall.SIGUSR1:
				s.reopen()
			default:
				s.log.printf("Received signal %d, exiting", sig)
				return
			}
		case <-watchdog:
			s.tell(systemd.Watchdog)
		case <-renew.C:
			s.renew()
			s.announceAgain()
		case <-ctx.Done():
			s.log.printf("Exiting")
			return
		case <-accepted:
			s.log.errorf("Accepting connections ended")
			return
		}
	}
}

// drain waits until the requests that were accepted are answered, their time is
// over, or a second signal comes.
func (s *server) drain(signals <-chan os.Signal) {
	patience := s.limits().drain
	if n, _ := s.work.counts(); n > 0 {
		s.log.printf("Waiting for %d outstanding requests to complete...", n)
	}
	end := time.NewTimer(patience)
	defer end.Stop()
	var watchdog <-chan time.Time
	if s.watchdog > 0 {
		t := time.NewTicker(s.watchdog / 2)
		defer t.Stop()
		watchdog = t.C
	}
	for {
		requests, refusals := s.work.counts()
		if requests == 0 {
			if refusals == 0 {
				return
			}
			end.Reset(min(lingerTime, patience)) // they take no longer
		}
		select {
		case <-s.work.changed:
		case <-watchdog:
			s.tell(systemd.Watchdog)
		case <-end.C:
			if requests > 0 {
				s.log.printf("Timeout reached, exiting (forced)")
			}
			return
		case sig := <-signals:
			switch sig {
			case syscall.SIGHUP:
				s.log.printf("Not reloading: the server is shutting down")
			case syscall.SIGUSR1:
				s.reopen()
			default:
				s.log.printf("Received another signal %d, exiting (forced)", sig)
				return
			}
		}
	}
}

// within waits for f to end, up to a time.
func within(limit time.Duration, f func()) {
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// tell tells the service manager. One that closed its socket only wanted to
// know of the start.
func (s *server) tell(states ...string) {
	err := s.notifier.Send(states...)
	if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		s.log.errorf("%v", err)
	}
}

// explain tells the service manager why there will be no server.
func explain(inv *invocation.Invocation, reason error) {
	// Without one, or with a wrong address, there is nobody to tell.
	if n, err := systemd.NewNotifier(inv.Getenv("NOTIFY_SOCKET")); err == nil {
		n.Send(systemd.Status("%v", reason))
	}
}
