package lab

import (
	"bytes"
	"fmt"
	"os"
	"sync"
)

// Segment is an Ethernet of several hosts, each in a network namespace of its
// own, joined by a bridge in one more.
type Segment struct {
	lab   *Lab
	hub   string
	hosts []*Host
}

// Host is one host of a segment. Programs on it see its name.
type Host struct {
	Network
	IPv4 string // "" if it has IPv6 only
	IPv6 string // a unique local address
}

// NewSegment makes the bridge.
func (l *Lab) NewSegment() (*Segment, error) {
	s := &Segment{lab: l, hub: fmt.Sprintf("stapbox-%d-%d", os.Getpid(), networks.Add(1))}
	if err := l.run("", "ip", "netns", "add", s.hub); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"link", "add", "bridge", "type", "bridge"}, {"link", "set", "bridge", "up"}} {
		if err := l.run("", "ip", append([]string{"-n", s.hub}, args...)...); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// Host joins a host to the segment. Its addresses are 10.78.0.N, unless it is to
// have IPv6 only, fd78::N, and a link-local one.
func (s *Segment) Host(name string, onlyIPv6 bool) (*Host, error) {
	n := len(s.hosts) + 1
	h := &Host{Network: Network{Namespace: fmt.Sprintf("%s-%d", s.hub, n), Tap: "eth0", Name: name}, IPv6: fmt.Sprintf("fd78::%d", n)}
	if err := s.lab.run("", "ip", "netns", "add", h.Namespace); err != nil {
		return nil, err
	}
	s.hosts = append(s.hosts, h)
	port := fmt.Sprintf("port%d", n)
	steps := [][]string{
		{"-n", s.hub, "link", "add", port, "type", "veth", "peer", "name", h.Tap, "netns", h.Namespace},
		{"-n", s.hub, "link", "set", port, "master", "bridge"},
		{"-n", s.hub, "link", "set", port, "up"},
		{"-n", h.Namespace, "link", "set", "lo", "up"},
		{"-n", h.Namespace, "addr", "add", h.IPv6 + "/64", "dev", h.Tap, "nodad"},
	}
	if !onlyIPv6 {
		h.IPv4 = fmt.Sprintf("10.78.0.%d", n)
		steps = append(steps, []string{"-n", h.Namespace, "addr", "add", h.IPv4 + "/24", "dev", h.Tap})
	}
	for _, args := range append(steps, []string{"-n", h.Namespace, "link", "set", h.Tap, "up"}) {
		if err := s.lab.run("", "ip", args...); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Close removes the namespaces, and with them the links.
func (s *Segment) Close() error {
	var first error
	for _, h := range s.hosts {
		if err := h.Network.Close(); err != nil && first == nil {
			first = err
		}
	}
	hub := Network{Namespace: s.hub}
	if err := hub.Close(); err != nil && first == nil {
		first = err
	}
	return first
}

// lockedBuffer collects output while others read it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
