// Package fakemodule imitates the files of a loaded SystemTap module in user
// space: a directory, mounted through FUSE, with the control channel .cmd and
// the trace files of either generation. stapio is run against it as
// "stapio -F FD NAME", where FD is the directory (loader-relay sections 6, 7 and
// 11). It has its own table of the protocol, so that an error in core/transport
// does not agree with itself.
//
//	.cmd    mode 0600 of the owner. One opener at a time, else EBUSY. One write is one
//	        message, EINVAL when the module does not know it; START and EXIT block as
//	        long as their probes run. One read is one queued message, EAGAIN when there is
//	        none and the descriptor does not block. POLLIN when one is queued.
//	traceN  mode 0400. A read takes bytes of CPU N; what an empty one gives is
//	        configured.
//
// The process that serves a module must not open its files with package os: Go's
// poller asks a file for its events in a system call that holds up the process
// which would have to answer.
//
// The module goes through the states of a real one: START in any but the first
// and EXIT before START has been answered are taken and ignored.
package fakemodule

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Type is the kind of a message, in the numbering of 4.x.
type Type uint32

// The message types; 5.x numbers them from 0x50.
const (
	START                 Type = 0
	EXIT                  Type = 1
	OOB_DATA              Type = 2
	SYSTEM                Type = 3
	TRANSPORT             Type = 4
	BULK                  Type = 7
	READY                 Type = 8
	RELOCATION            Type = 9
	REQUEST_EXIT          Type = 13
	TZINFO                Type = 14
	PRIVILEGE_CREDENTIALS Type = 15
	REMOTE_ID             Type = 16
	NAMESPACES_PID        Type = 18
	MNT_NS_FDS            Type = 19
)

const base5 = 0x50

// String is the name in the protocol.
func (t Type) String() string {
	switch t {
	case START:
		return "START"
	case EXIT:
		return "EXIT"
	case OOB_DATA:
		return "OOB_DATA"
	case SYSTEM:
		return "SYSTEM"
	case TRANSPORT:
		return "TRANSPORT"
	case BULK:
		return "BULK"
	case READY:
		return "READY"
	case RELOCATION:
		return "RELOCATION"
	case REQUEST_EXIT:
		return "REQUEST_EXIT"
	case TZINFO:
		return "TZINFO"
	case PRIVILEGE_CREDENTIALS:
		return "PRIVILEGE_CREDENTIALS"
	case REMOTE_ID:
		return "REMOTE_ID"
	case NAMESPACES_PID:
		return "NAMESPACES_PID"
	case MNT_NS_FDS:
		return "MNT_NS_FDS"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// size is the payload a message to the module must have at least.
func (t Type) size() int {
	switch t {
	case START, MNT_NS_FDS:
		return 8
	case BULK:
		return 128
	case RELOCATION:
		return 264
	case TZINFO:
		return 72
	case PRIVILEGE_CREDENTIALS, NAMESPACES_PID:
		return 4
	case REMOTE_ID:
		return 132
	}
	return 0
}

// Message is one write to the control channel and how it was answered.
type Message struct {
	Type     Type
	Raw      uint32 // the number as written
	Payload  []byte
	PID, UID int // of the writer
	Errno    syscall.Errno
	At       time.Time
}

// String is the message as a line of a log: its name and what it was answered.
func (m Message) String() string {
	if m.Errno != 0 {
		return fmt.Sprintf("%v=%s", m.Type, unix.ErrnoName(m.Errno))
	}
	return m.Type.String()
}

// Config says how the module behaves. The zero value of a field is the usual
// behaviour.
type Config struct {
	Generation int // 4 or 5
	CPUs       int // trace files; 0 is 1
	Bulk       bool
	UID, GID   int // the owner

	Running     bool // attached to once before: no TRANSPORT waits, START has been answered
	StartResult int32
	StartDelay  time.Duration // how long START's write blocks
	ExitDelay   time.Duration // how long EXIT's write blocks
	// Begin and End run inside the writes of START and EXIT, as begin and end
	// probes do.
	Begin, End func(*Module)
	// OnMessage is called for each message that is written, before it is acted
	// upon; an error is the answer.
	OnMessage func(*Module, Message) syscall.Errno

	Namespaces      bool // NAMESPACES_PID is known
	MountNamespaces bool // MNT_NS_FDS is known (5.1)
	ShortCount      bool // writes are answered with four bytes less, as very old modules do
	// Empty is what reading an empty trace gives: ENODATA when zero, EAGAIN, or
	// EOF.
	Empty syscall.Errno
	// Files are more files: __stdin, monitor_status, monitor_control.
	Files map[string]File
}

// EOF as Config.Empty makes an empty read return 0 bytes.
const EOF = syscall.Errno(0xfff)

// File is a plain file of the directory. A nil function means that the file
// cannot be read or written.
type File struct {
	Read  func() []byte
	Write func([]byte)
}

// Module is a mounted fake module.
type Module struct {
	Dir    string
	config Config
	mount  *mount

	mu       sync.Mutex
	queue    [][]byte
	arrived  chan struct{} // closed and replaced when a message is queued
	attached bool
	started  bool // START was called
	finished bool // START was answered
	exited   bool
	log      []Message
	traces   []*trace
	cmd      *cmd
}

// Mount makes a module in the directory, which is created if need be.
func Mount(dir string, c Config) (*Module, error) {
	if c.Generation != 4 && c.Generation != 5 {
		return nil, fmt.Errorf("no generation %d", c.Generation)
	}
	c.CPUs = max(c.CPUs, 1)
	if c.Empty == 0 {
		c.Empty = syscall.ENODATA
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := &Module{Dir: dir, config: c, arrived: make(chan struct{})}
	m.cmd = &cmd{m}
	names, files := []string{".cmd"}, []file{m.cmd}
	for cpu := range c.CPUs {
		t := &trace{m: m}
		m.traces = append(m.traces, t)
		names, files = append(names, "trace"+strconv.Itoa(cpu)), append(files, t)
	}
	for name, f := range c.Files {
		names, files = append(names, name), append(files, &plain{f: f})
	}
	if c.Running {
		m.started, m.finished = true, true
	} else {
		m.queue = append(m.queue, m.encode(TRANSPORT, nil))
	}
	var err error
	m.mount, err = newMount(dir, c.UID, c.GID, names, files)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Close takes the module away.
func (m *Module) Close() error { return m.mount.close() }

// Open opens the directory as staprun does, for -F.
func (m *Module) Open() (*os.File, error) {
	fd, err := unix.Open(m.Dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: m.Dir, Err: err}
	}
	return os.NewFile(uintptr(fd), m.Dir), nil
}

func (m *Module) encode(t Type, payload []byte) []byte {
	n := uint32(t)
	if m.config.Generation == 5 {
		n += base5
	}
	return append(ne.AppendUint32(nil, n), payload...)
}

// Send queues a message to the reader of the control channel.
func (m *Module) Send(t Type, payload []byte) { m.SendRaw(m.encode(t, payload)) }

// SendRaw queues the bytes of one read.
func (m *Module) SendRaw(b []byte) {
	m.mu.Lock()
	m.queue = append(m.queue, b)
	close(m.arrived)
	m.arrived = make(chan struct{})
	m.mu.Unlock()
	if m.mount != nil {
		m.mount.changed(m.cmd)
	}
}

// Record adds a record to a CPU's trace.
func (m *Module) Record(cpu int, seq uint32, payload []byte) {
	m.Raw(cpu, append(m.Header(seq, uint32(len(payload))), payload...))
}

// Header is a record header of the module's generation.
func (m *Module) Header(seq, length uint32) []byte {
	var b []byte
	if m.config.Generation == 5 {
		b = []byte{0xf0, 0x9f, 0xa9, 0xba}
	}
	return ne.AppendUint32(ne.AppendUint32(b, seq), length)
}

// Raw adds bytes to a CPU's trace. Each call is the end of a read: what is
// given in two calls is read in at least two.
func (m *Module) Raw(cpu int, b []byte) {
	t := m.traces[cpu]
	t.mu.Lock()
	t.chunks = append(t.chunks, append([]byte(nil), b...))
	t.mu.Unlock()
	m.mount.changed(t)
}

// Unread is the number of bytes of all traces that nobody has read.
func (m *Module) Unread() (n int) {
	for _, t := range m.traces {
		t.mu.Lock()
		for _, c := range t.chunks {
			n += len(c)
		}
		t.mu.Unlock()
	}
	return n
}

// Log is every message written so far.
func (m *Module) Log() []Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Message(nil), m.log...)
}

// Attached reports whether the control channel is open.
func (m *Module) Attached() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attached
}

// Wait waits until the condition holds.
func (m *Module) Wait(limit time.Duration, condition func() bool) bool {
	for end := time.Now().Add(limit); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// Seen reports whether a message of that type was written and accepted.
func (m *Module) Seen(t Type) bool {
	for _, e := range m.Log() {
		if e.Type == t && e.Errno == 0 {
			return true
		}
	}
	return false
}

// act is the module's code behind write(2).
func (m *Module) act(msg Message) syscall.Errno {
	if m.config.OnMessage != nil {
		if errno := m.config.OnMessage(m, msg); errno != 0 {
			return errno
		}
	}
	switch msg.Type {
	case START:
		m.mu.Lock()
		first := !m.started
		m.started = true
		m.mu.Unlock()
		if !first {
			return 0
		}
		time.Sleep(m.config.StartDelay)
		if m.config.Begin != nil {
			m.config.Begin(m)
		}
		m.mu.Lock()
		m.finished = true
		m.mu.Unlock()
		m.Send(START, ne.AppendUint32(append([]byte(nil), msg.Payload[:4]...), uint32(m.config.StartResult)))
	case EXIT:
		m.mu.Lock()
		act := m.finished && !m.exited
		m.exited = m.exited || act
		m.mu.Unlock()
		if !act {
			return 0
		}
		time.Sleep(m.config.ExitDelay)
		if m.config.End != nil {
			m.config.End(m)
		}
		m.Send(EXIT, nil)
	case BULK:
		if !m.config.Bulk {
			return syscall.EINVAL
		}
	case NAMESPACES_PID:
		if !m.config.Namespaces {
			return syscall.EINVAL
		}
	case MNT_NS_FDS:
		if !m.config.MountNamespaces || m.config.Generation == 4 {
			return syscall.EINVAL
		}
	case RELOCATION, TZINFO, PRIVILEGE_CREDENTIALS, REMOTE_ID:
		if msg.UID != 0 {
			return syscall.EPERM
		}
	case READY:
	default:
		return syscall.EINVAL
	}
	return 0
}

// cmd is the control channel.
type cmd struct{ *Module }

func (*cmd) mode() uint32 { return 0o600 }
func (*cmd) stream() bool { return true }

func (c *cmd) open(caller, uint32) syscall.Errno {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attached {
		return syscall.EBUSY
	}
	c.attached = true
	return 0
}

func (c *cmd) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attached = false
}

func (c *cmd) read(_ uint64, size int, nonblock bool, stop <-chan struct{}) ([]byte, syscall.Errno) {
	for {
		c.mu.Lock()
		if len(c.queue) > 0 {
			b := c.queue[0]
			c.queue = c.queue[1:]
			c.mu.Unlock()
			if len(b) > size {
				return nil, syscall.EFAULT // and the message is lost
			}
			return b, 0
		}
		arrived := c.arrived
		c.mu.Unlock()
		if nonblock {
			return nil, syscall.EAGAIN
		}
		select {
		case <-arrived:
		case <-stop:
			return nil, syscall.EINTR
		}
	}
}

func (c *cmd) write(by caller, data []byte) (int, syscall.Errno) {
	if len(data) < 4 {
		return 0, 0
	}
	raw := ne.Uint32(data)
	m := Message{Raw: raw, Type: Type(raw), Payload: append([]byte(nil), data[4:]...), PID: by.PID, UID: by.UID, At: time.Now()}
	if c.config.Generation == 5 {
		m.Type = Type(raw - base5)
		if raw < base5 {
			m.Type = Type(raw)
			m.Errno = syscall.EINVAL
		}
	} else if raw >= base5 {
		m.Type = Type(raw - base5)
		m.Errno = syscall.EINVAL
	}
	c.mu.Lock()
	c.log = append(c.log, m)
	at := len(c.log) - 1
	c.mu.Unlock()
	if m.Errno == 0 && len(m.Payload) < m.Type.size() {
		return 0, 0
	}
	if m.Errno == 0 {
		m.Errno = c.act(m)
	}
	c.mu.Lock()
	c.log[at].Errno = m.Errno
	c.mu.Unlock()
	if c.config.ShortCount {
		return len(data) - 4, m.Errno
	}
	return len(data), m.Errno
}

func (c *cmd) events() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) > 0 {
		return unix.POLLPRI | unix.POLLOUT | unix.POLLIN
	}
	return unix.POLLPRI | unix.POLLOUT
}

// trace is the trace file of one CPU.
type trace struct {
	m      *Module
	mu     sync.Mutex
	chunks [][]byte
}

func (*trace) mode() uint32                              { return 0o400 }
func (*trace) open(caller, uint32) syscall.Errno         { return 0 }
func (*trace) release()                                  {}
func (*trace) stream() bool                              { return true }
func (*trace) write(caller, []byte) (int, syscall.Errno) { return 0, syscall.EPERM }

func (t *trace) read(_ uint64, size int, _ bool, _ <-chan struct{}) ([]byte, syscall.Errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.chunks) == 0 {
		if t.m.config.Empty == EOF {
			return nil, 0
		}
		return nil, t.m.config.Empty
	}
	b := t.chunks[0]
	if len(b) > size {
		t.chunks[0] = b[size:]
		return b[:size], 0
	}
	t.chunks = t.chunks[1:]
	return b, 0
}

func (t *trace) events() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.chunks) > 0 {
		return unix.POLLIN
	}
	return 0
}

// plain is one of Config.Files. Its content is made anew for each read from its
// start.
type plain struct {
	f       File
	mu      sync.Mutex
	content []byte
}

func (p *plain) mode() (mode uint32) {
	if p.f.Read != nil {
		mode |= 0o400
	}
	if p.f.Write != nil {
		mode |= 0o200
	}
	return mode
}

func (*plain) stream() bool                      { return false }
func (*plain) open(caller, uint32) syscall.Errno { return 0 }
func (*plain) release()                          {}
func (*plain) events() uint32                    { return unix.POLLIN | unix.POLLOUT }

func (p *plain) read(offset uint64, size int, _ bool, _ <-chan struct{}) ([]byte, syscall.Errno) {
	if p.f.Read == nil {
		return nil, syscall.EPERM
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset == 0 {
		p.content = p.f.Read()
	}
	b := p.content[min(offset, uint64(len(p.content))):]
	return b[:min(size, len(b))], 0
}

func (p *plain) write(_ caller, data []byte) (int, syscall.Errno) {
	if p.f.Write == nil {
		return 0, syscall.EPERM
	}
	p.f.Write(append([]byte(nil), data...))
	return len(data), 0
}
