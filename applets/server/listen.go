package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/metrics"
	"stapbox/core/systemd"
	"stapbox/core/wire"
)

// metricsSocket is the name of the socket that a service manager opened for
// metrics (FileDescriptorName=); all others are for requests.
const metricsSocket = "metrics"

// listen opens the sockets for requests and metrics, or takes them over from the
// service manager.
func (s *server) listen() error {
	given, err := systemd.Listeners(s.inv.Getenv("LISTEN_PID"), s.inv.Getenv("LISTEN_FDS"), s.inv.Getenv("LISTEN_FDNAMES"), os.Getpid())
	if err != nil {
		return err
	}
	for _, l := range given {
		_, tcp := l.Addr().(*net.TCPAddr)
		switch {
		case l.Name == metricsSocket && s.scrapes == nil:
			s.scrapes = l.Listener
		case l.Name == metricsSocket:
			return errors.New("the service manager gave two sockets for metrics")
		case !tcp:
			return fmt.Errorf("the service manager gave the socket %s, which is not for TCP", l.Addr())
		default:
			s.listeners, s.activated = append(s.listeners, l.Listener), true
		}
	}
	if s.activated && s.opts.port != 0 {
		return errors.New("--port is given, and the service manager gave sockets: one of them is too much")
	}
	if !s.activated {
		l, err := listenAll(s.opts.port)
		if err != nil {
			return fmt.Errorf("Error setting socket address: %w", err)
		}
		s.listeners = []net.Listener{l}
	}
	for i, l := range s.listeners {
		at := l.Addr().(*net.TCPAddr)
		if i == 0 {
			s.port = at.Port
		}
		s.log.printf("Using network address %s", at)
	}
	return s.listenMetrics()
}

// listenAll listens on all addresses, with IPv4 as part of IPv6 (ipv6(7)). Left to
// itself package net takes IPv4 alone where it cannot bind ::ffff:127.0.0.1, which lo
// may not have. IPv4 alone is for hosts without IPv6.
func listenAll(port int) (net.Listener, error) {
	both := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0) }); cerr != nil {
			return cerr
		}
		return os.NewSyscallError("setsockopt", err)
	}}
	l, err := both.Listen(context.Background(), "tcp6", net.JoinHostPort("::", strconv.Itoa(port)))
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return net.Listen("tcp4", net.JoinHostPort("0.0.0.0", strconv.Itoa(port)))
	}
	return l, err
}

// listenMetrics opens the socket of --metrics. One for the file system is for
// the server's user and group.
func (s *server) listenMetrics() error {
	switch {
	case s.opts.metrics == "":
		return nil
	case s.scrapes != nil:
		return errors.New("--metrics is given, and the service manager gave a socket for metrics: one of them is too much")
	}
	network, name, err := metrics.Network(s.opts.metrics, s.opts.metricsAnywhere)
	if err != nil {
		return err // parse has seen it
	}
	if network == "unix" {
		// What a server that was killed left behind.
		if st, err := os.Lstat(name); err == nil && st.Mode().Type() == fs.ModeSocket {
			if c, err := net.DialTimeout("unix", name, time.Second); err == nil {
				c.Close()
				return fmt.Errorf("option '--metrics=%s': another process listens there", s.opts.metrics)
			}
			os.Remove(name)
		}
	}
	if s.scrapes, err = net.Listen(network, name); err != nil {
		return fmt.Errorf("option '--metrics=%s': %w", s.opts.metrics, err)
	}
	if network == "unix" {
		if err := os.Chmod(name, 0o660); err != nil {
			return fmt.Errorf("option '--metrics=%s': %w", s.opts.metrics, err)
		}
	}
	s.log.printf("Metrics are at %s", s.scrapes.Addr())
	return nil
}

// closeListeners ends accepting.
func (s *server) closeListeners() {
	for _, l := range s.listeners {
		l.Close()
	}
}

// tls is the TLS side of a listener. A certificate of the client is asked for
// where there is a rule for it; whether it is accepted is decided later, where
// there can be an answer in words.
func (s *server) tls() *tls.Config {
	config := wire.ServerTLS(func() (*tls.Certificate, error) {
		id, err := s.identity()
		if err != nil {
			s.log.errorf("%v", err)
			return nil, err
		}
		cert := id.TLS()
		return &cert, nil
	})
	config.GetConfigForClient = s.admit
	if s.opts.clientCA != "" {
		config.ClientAuth = tls.RequestClientCert
	}
	return config
}

func (s *server) accept(ctx context.Context, l net.Listener, connections *sync.WaitGroup) {
	config := s.tls()
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, or the peer is gone already: both pass.
			if s.log.some() {
				s.log.errorf("Accepting a connection: %v", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		s.figures.accepted.Add(1)
		host := peerOf(c.RemoteAddr())
		o, instead, err := s.open.add(host, c)
		if err != nil {
			s.log.aboutf("Refused connection from %s: %v", c.RemoteAddr(), err)
			s.figures.refused("connections")
			c.Close()
			continue
		}
		if instead != nil {
			s.log.aboutf("Closed connection from %s: %d were open, and this host has most of them", instead.RemoteAddr(), maxConnections)
			s.figures.refused("connections")
			instead.Close()
		}
		connections.Go(func() {
			defer s.open.remove(o)
			s.connection(ctx, o, config)
		})
	}
}
