package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"stapbox/core/version"
	"stapbox/core/wire"
)

// work counts what is being done, so that the end can wait for it.
type work struct {
	mu       sync.Mutex
	requests int           // accepted and not answered yet
	refusals int           // being told why
	draining bool          // no request is accepted any more
	changed  chan struct{} // has a value after a count went down
}

// begin accepts a request, and tells how many there are then.
func (w *work) begin() (n int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining {
		return w.requests, false
	}
	w.requests++
	return w.requests, true
}

func (w *work) add(count *int, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*count += n
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// drain lets no request begin any more.
func (w *work) drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.draining = true
}

func (w *work) counts() (requests, refusals int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests, w.refusals
}

// connection serves one client.
func (s *server) connection(ctx context.Context, raw *opened, config *tls.Config) {
	peer := raw.RemoteAddr().String()
	s.log.aboutf("Accepted connection from %s", peer)
	defer s.log.aboutf("Request from %s complete", peer)
	low := &wire.DeadlineConn{Conn: raw, Idle: idleTime}
	conn := tls.Server(low, config)
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A shutdown ends the connection whatever it waits for.
	defer context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now()) })()

	low.Phase(handshakeTime)
	if err := conn.HandshakeContext(ctx); err != nil {
		s.log.aboutf("Handshake with %s: %v", peer, err)
		s.figures.refused("handshake")
		return
	}
	low.Phase(requestTime)
	archive, err := wire.ReadFrame(conn, s.opts.maxArchive)
	var frame *wire.FrameError
	switch {
	case errors.Is(err, wire.ErrTrustContact):
		return
	case errors.As(err, &frame):
		if s.log.some() {
			s.log.errorf("%v", err)
		}
		s.refuse(ctx, conn, low, client{address: peer}, &limitError{"frame", err.Error()})
		return
	case err != nil:
		if s.log.some() {
			s.log.errorf("%v", err)
		}
		return
	}
	c, err := s.who(peer, raw.host, conn.ConnectionState().PeerCertificates)
	if err != nil {
		s.refuse(ctx, conn, low, c, err)
		return
	}
	n, ok := s.work.begin()
	if !ok {
		s.refuse(ctx, conn, low, c, &limitError{"draining", "this server is shutting down. Try another one, or again later."})
		return
	}
	defer s.work.add(&s.work.requests, -1)
	end, err := s.accounts.begin(c.name, s.limits(), s.now())
	if err != nil {
		s.refuse(ctx, conn, low, c, err)
		return
	}
	defer end()
	if n == 1 {
		s.log.printf("Processing 1 request...")
	} else {
		s.log.printf("Processing %d concurrent requests...", n)
	}

	// From here on the client only waits. The end of its TCP stream means that
	// it is gone, and nobody wants the answer any more; close_notify alone ends
	// the other direction only (RFC 8446, 6.1).
	low.Phase(0)
	low.Idle = 0
	go func() {
		n, err := io.Copy(io.Discard, io.LimitReader(conn, lingerBytes))
		if err == nil && n < lingerBytes {
			n, err = io.Copy(io.Discard, io.LimitReader(raw, lingerBytes))
		}
		if n == lingerBytes {
			err = errors.New("the client sends more than its request")
		} else if err == nil {
			err = io.EOF
		}
		cancel(fmt.Errorf("the client is gone: %w", err))
	}()
	s.open.works(raw, true)
	answer, err := s.current().Do(c.with(ctx), archive, peer)
	s.open.works(raw, false)
	if err != nil {
		s.log.printf("Request from %s ended: %v", peer, err)
		return
	}
	s.answer(conn, low, answer)
}

// refuse answers what never became a request.
func (s *server) refuse(ctx context.Context, conn *tls.Conn, low *wire.DeadlineConn, c client, reason error) {
	s.work.add(&s.work.refusals, 1)
	defer s.work.add(&s.work.refusals, -1)
	var limit *limitError
	if errors.As(reason, &limit) {
		s.figures.refused(limit.reason)
		if s.log.some() {
			s.audit.WarnContext(c.with(ctx), "refused", "peer", c.address, "reason", limit.reason, "error", reason.Error())
		}
	}
	answer, err := (&wire.Response{Version: version.Protocol, RC: 1, Stderr: []byte("Server: " + reason.Error() + "\n")}).Encode()
	if err != nil {
		s.log.errorf("%v", err)
		return
	}
	s.answer(conn, low, answer)
	// The client may still be sending: closing now would reset the connection
	// and take the answer with it.
	low.Phase(lingerTime)
	io.Copy(io.Discard, io.LimitReader(conn, lingerBytes))
}

func (s *server) answer(conn *tls.Conn, low *wire.DeadlineConn, answer []byte) {
	low.Phase(answerTime)
	_, err := conn.Write(answer)
	if err == nil {
		err = conn.CloseWrite()
	}
	if err != nil && !strings.Contains(err.Error(), "broken pipe") {
		s.log.aboutf("Answering %s: %v", conn.RemoteAddr(), err)
	}
}
