package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds of a scraper: there may be few at a time, each has one request, a small
// one, and little time for all of it.
const (
	maxScrapers = 8
	scrapeTime  = 5 * time.Second
	maxHeader   = 8 << 10
)

// path is where the metrics are.
const path = "/metrics"

// Network reads an address to listen at: HOST:PORT, or the absolute path of a
// Unix socket, with or without "unix:" before it. Who asked, for what, how
// often is not for everybody: HOST must be a loopback address, unless anywhere.
func Network(address string, anywhere bool) (network, name string, err error) {
	file, isUnix := strings.CutPrefix(address, "unix:")
	if isUnix || strings.HasPrefix(address, "/") {
		if !filepath.IsAbs(file) {
			return "", "", fmt.Errorf("address %q: the path of the socket is not absolute", address)
		}
		return "unix", file, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("address %q is neither HOST:PORT nor the path of a socket", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return "", "", fmt.Errorf("address %q: %q is not a port", address, port)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if anywhere && host == "" {
		return "tcp", net.JoinHostPort("", port), nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", "", fmt.Errorf("address %q: %q is not the number of a host", address, host)
	}
	if !anywhere && !ip.Unmap().IsLoopback() {
		return "", "", fmt.Errorf("address %q is not a loopback address", address)
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

// Serve answers scrapers at l until l is closed, then ends the connections that
// are left. HTTP/1.0 and 1.1 (RFC 9112), GET and HEAD, a connection for each
// request.
func (r *Registry) Serve(l net.Listener) {
	var (
		mu    sync.Mutex
		conns = map[net.Conn]bool{}
		all   sync.WaitGroup
	)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors: it passes
			continue
		}
		mu.Lock()
		full := len(conns) >= maxScrapers
		if !full {
			conns[c] = true
		}
		mu.Unlock()
		if full {
			c.Close()
			continue
		}
		all.Go(func() {
			defer func() {
				c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			}()
			r.scrape(c)
		})
	}
	mu.Lock()
	for c := range conns {
		c.SetDeadline(time.Now())
	}
	mu.Unlock()
	all.Wait()
}

func (r *Registry) scrape(c net.Conn) {
	c.SetDeadline(time.Now().Add(scrapeTime))
	head, err := readHeader(c)
	if err != nil {
		return
	}
	method, status := parseRequest(head)
	var body bytes.Buffer
	if status == "200 OK" {
		r.WriteTo(&body)
	} else {
		fmt.Fprintf(&body, "%s\n", status)
	}
	kind := "text/plain; version=0.0.4; charset=utf-8"
	if status != "200 OK" {
		kind = "text/plain; charset=utf-8"
	}
	allow := ""
	if strings.HasPrefix(status, "405") {
		allow = "Allow: GET, HEAD\r\n"
	}
	fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%sConnection: close\r\n\r\n", status, kind, body.Len(), allow)
	if method != "HEAD" {
		c.Write(body.Bytes())
	}
	// The other side closes: closing first, with its octets unread, would reset
	// the connection and take the answer with it.
	if h, ok := c.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		io.Copy(io.Discard, io.LimitReader(c, maxHeader))
	}
}

// readHeader reads to the empty line that ends a header.
func readHeader(r io.Reader) ([]byte, error) {
	head := make([]byte, 0, 1024)
	for len(head) < maxHeader {
		if len(head) == cap(head) {
			head = append(head, 0)[:len(head)]
		}
		n, err := r.Read(head[len(head):min(cap(head), maxHeader)])
		head = head[:len(head)+n]
		if i := bytes.Index(head, []byte("\r\n\r\n")); i >= 0 {
			return head[:i], nil
		}
		if err != nil {
			return nil, err
		}
	}
	return head, nil // without an end: a bad request
}

// parseRequest reads the first line of a header, METHOD TARGET HTTP/1.x, and
// says what the answer is.
func parseRequest(head []byte) (method, status string) {
	line, _, _ := strings.Cut(string(head), "\r\n")
	f := strings.Split(line, " ")
	if len(head) >= maxHeader || len(f) != 3 || f[0] == "" || f[2] != "HTTP/1.1" && f[2] != "HTTP/1.0" {
		return "", "400 Bad Request"
	}
	target, _, _ := strings.Cut(f[1], "?")
	switch {
	case target != path:
		return f[0], "404 Not Found"
	case f[0] != "GET" && f[0] != "HEAD":
		return f[0], "405 Method Not Allowed"
	}
	return f[0], "200 OK"
}
