package server

import (
	"crypto/tls"
	"fmt"
	"sync"
	"time"
)

// handshakes bounds what one host can have this server sign: a signature costs
// milliseconds, a ClientHello next to nothing. Above its rate a host waits, and only
// that host; what would have to wait for longer than a handshake may take is refused.
type handshakes struct {
	mu    sync.Mutex
	until map[string]time.Time // when a host has used up what it has been given
}

// Handshakes of one host. A server with an RSA key makes some 300 in a second.
const (
	handshakeEvery = 10 * time.Millisecond // in the long run
	handshakeBurst = 400                   // at once
	maxHosts       = 4096
)

// reserve tells how long a handshake of a host has to wait, and whether it may.
func (h *handshakes) reserve(host string, now time.Time) (wait time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.until == nil || len(h.until) >= maxHosts {
		kept := map[string]time.Time{}
		for name, t := range h.until {
			if t.After(now) {
				kept[name] = t
			}
		}
		h.until = kept
	}
	until := h.until[host]
	if until.Before(now) {
		until = now
	}
	wait = until.Sub(now) - (handshakeBurst-1)*handshakeEvery
	if wait > handshakeTime/2 {
		return 0, false
	}
	h.until[host] = until.Add(handshakeEvery)
	return max(wait, 0), true
}

// admit lets a handshake go on when it is its host's turn. The hello has come, so that
// connections on which nothing is said are nobody's turn.
func (s *server) admit(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	host := peerOf(hello.Conn.RemoteAddr())
	wait, ok := s.shakes.reserve(host, time.Now())
	if !ok {
		return nil, fmt.Errorf("%s begins more handshakes than %d in a second", host, time.Second/handshakeEvery)
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-hello.Context().Done():
			return nil, hello.Context().Err()
		}
	}
	return nil, nil
}
