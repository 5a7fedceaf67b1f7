package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"
)

// ErrTrustContact is the request of a client that only wanted to see the
// server's certificate. It is not an error.
var ErrTrustContact = errors.New("contact for trust")

// FrameError is a request that is refused before its archive is looked at.
// Error is the log line.
type FrameError struct{ Text string }

func (e *FrameError) Error() string { return e.Text }

// ReadFrame reads length and archive of a request. At most one octet is read
// of what follows them: clients of upstream send nothing more.
func ReadFrame(r io.Reader, maxCompressed int64) ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, &FrameError{"Error reading size of request file"}
		}
		return nil, fmt.Errorf("Error reading size of request file: %w", err)
	}
	size := int64(int32(binary.BigEndian.Uint32(header[:])))
	switch {
	case size == 0:
		return nil, ErrTrustContact
	case size < 0:
		return nil, &FrameError{"Invalid request size: negative value"}
	case size > maxCompressed:
		return nil, &FrameError{fmt.Sprintf("Error size of (compressed) request file is too large: %d bytes, at most %d are accepted (--max-compressed-request)", size, maxCompressed)}
	}
	// A length alone is no reason to have room for all of it.
	var data bytes.Buffer
	n, err := io.CopyN(&data, r, size)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, &FrameError{fmt.Sprintf("Expected %d bytes, got %d while reading client request from socket", size, n)}
	case err != nil:
		return nil, fmt.Errorf("Expected %d bytes, got %d while reading client request from socket: %w", size, n, err)
	}
	return data.Bytes(), nil
}

// Frame puts the length before an archive.
func Frame(archive []byte) ([]byte, error) {
	if len(archive) > math.MaxInt32 {
		return nil, fmt.Errorf("request of %d bytes has no length of 32 bits", len(archive))
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(archive))), archive...), nil
}

// DeadlineConn limits how long a peer may be silent, and how long a phase of
// the exchange may take in all.
type DeadlineConn struct {
	net.Conn
	Idle time.Duration // between two octets; 0 is unlimited

	mu  sync.Mutex
	end time.Time
}

// Phase starts a phase that must end within d; 0 is unlimited. A read or write
// that is under way keeps its deadline.
func (c *DeadlineConn) Phase(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = time.Time{}
	if d > 0 {
		c.end = time.Now().Add(d)
	}
}

func (c *DeadlineConn) deadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.end
	if c.Idle > 0 {
		if idle := time.Now().Add(c.Idle); t.IsZero() || idle.Before(t) {
			t = idle
		}
	}
	return t
}

// Read reads under the deadlines.
func (c *DeadlineConn) Read(p []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(c.deadline()); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write writes under the deadlines, in pieces: a peer that takes octets slowly
// but steadily is not idle.
func (c *DeadlineConn) Write(p []byte) (int, error) {
	const piece = 64 << 10
	written := 0
	for {
		if err := c.Conn.SetWriteDeadline(c.deadline()); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:min(written+piece, len(p))])
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
	}
}
