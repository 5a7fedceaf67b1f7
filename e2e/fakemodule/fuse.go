package fakemodule

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The part of the FUSE protocol (linux/fuse.h, version 7.31) that one flat
// directory needs. A request is one read(2) of /dev/fuse, an answer one write:
//
//	request  u32 length, u32 opcode, u64 unique, u64 node, u32 uid, u32 gid, u32 pid, u32 -, body
//	answer   u32 length, i32 -errno, u64 unique, body
//	notice   as an answer, with unique 0 and the kind of notice in place of the error
const (
	requestHeader = 40
	answerHeader  = 16
	maxWrite      = 1 << 17

	opLookup     = 1
	opForget     = 2
	opGetattr    = 3
	opSetattr    = 4
	opOpen       = 14
	opRead       = 15
	opWrite      = 16
	opStatfs     = 17
	opRelease    = 18
	opFlush      = 25
	opInit       = 26
	opOpendir    = 27
	opReaddir    = 28
	opReleasedir = 29
	opInterrupt  = 36
	opPoll       = 40
	opBatch      = 42

	initAtomicTruncate = 1 << 3 // O_TRUNC is left to open

	openDirectIO = 1 << 0
	openStream   = 1 << 4 // no file position: a read need not wait for a blocked write

	pollNotify = 1 // flag of a request, and kind of the notice that answers it later
)

// caller is who made a request.
type caller struct{ PID, UID, GID int }

// file is what a name in the directory does. Methods may block; each call has a
// goroutine of its own.
type file interface {
	// mode is the permission bits.
	mode() uint32
	// open answers open(2); at most one release follows each success.
	open(by caller, flags uint32) syscall.Errno
	release()
	// stream reports whether there is no file position.
	stream() bool
	// read answers one read(2) until stop is closed.
	read(offset uint64, size int, nonblock bool, stop <-chan struct{}) ([]byte, syscall.Errno)
	write(by caller, data []byte) (int, syscall.Errno)
	// events are the poll(2) events now.
	events() uint32
}

// mount is a mounted directory.
type mount struct {
	dir      string
	fd, wake int
	uid, gid uint32
	names    []string // node number of names[i] is i+2; the directory is node 1
	files    []file

	mu      sync.Mutex
	pending map[uint64]chan struct{} // requests that can be interrupted
	waiting map[uint64]uint64        // poll handle of the kernel -> node
	done    sync.WaitGroup
	served  chan struct{}
}

func newMount(dir string, uid, gid int, names []string, files []file) (*mount, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/fuse: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	m := &mount{
		dir: dir, fd: fd, wake: wake, uid: uint32(uid), gid: uint32(gid), names: names, files: files,
		pending: map[uint64]chan struct{}{}, waiting: map[uint64]uint64{}, served: make(chan struct{}),
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, maxWrite)
	if err := unix.Mount("fakemodule", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		unix.Close(fd)
		unix.Close(wake)
		return nil, fmt.Errorf("mounting on %q: %w", dir, err)
	}
	go m.serve()
	return m, nil
}

// close unmounts. Whoever still has a file open gets ENOTCONN or ECONNABORTED.
func (m *mount) close() error {
	err := unix.Unmount(m.dir, unix.MNT_DETACH)
	unix.Write(m.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-m.served
	m.mu.Lock()
	for _, stop := range m.pending {
		close(stop)
	}
	clear(m.pending)
	m.mu.Unlock()
	m.done.Wait()
	unix.Close(m.fd)
	unix.Close(m.wake)
	return os.NewSyscallError("umount", err)
}

func (m *mount) serve() {
	defer close(m.served)
	for {
		buf := make([]byte, maxWrite+4096)
		n, err := unix.Read(m.fd, buf)
		switch {
		case err == unix.EAGAIN:
			fds := []unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}, {Fd: int32(m.wake), Events: unix.POLLIN}}
			unix.Poll(fds, -1)
			if fds[1].Revents != 0 {
				return
			}
			continue
		case err == unix.EINTR || err == unix.ENOENT: // ENOENT: the request was withdrawn
			continue
		case err != nil || n < requestHeader:
			return
		}
		r := request{
			op: ne.Uint32(buf[4:]), unique: ne.Uint64(buf[8:]), node: ne.Uint64(buf[16:]),
			by:   caller{UID: int(ne.Uint32(buf[24:])), GID: int(ne.Uint32(buf[28:])), PID: int(ne.Uint32(buf[32:]))},
			body: buf[requestHeader:n],
		}
		switch r.op {
		case opForget, opBatch:
		case opInterrupt:
			m.interrupt(ne.Uint64(r.body))
		case opRead, opWrite, opOpen, opRelease:
			// These reach the files' code. A read must be known before an
			// interrupt for it can arrive.
			stop := make(chan struct{})
			m.mu.Lock()
			m.pending[r.unique] = stop
			m.mu.Unlock()
			m.done.Add(1)
			go func() {
				defer m.done.Done()
				body, errno := m.handle(r, stop)
				m.mu.Lock()
				delete(m.pending, r.unique)
				m.mu.Unlock()
				m.answer(r.unique, errno, body)
			}()
		default:
			body, errno := m.handle(r, nil)
			m.answer(r.unique, errno, body)
		}
	}
}

var ne = binary.NativeEndian

type request struct {
	op           uint32
	unique, node uint64
	by           caller
	body         []byte
}

func (m *mount) interrupt(unique uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if stop := m.pending[unique]; stop != nil {
		close(stop)
		delete(m.pending, unique)
	}
}

func (m *mount) answer(unique uint64, errno syscall.Errno, body []byte) {
	if errno != 0 {
		body = nil
	}
	b := ne.AppendUint32(nil, uint32(answerHeader+len(body)))
	b = ne.AppendUint32(b, uint32(-int32(errno)))
	b = ne.AppendUint64(b, unique)
	// ENOENT: the caller is gone. Nobody is left to tell of other errors.
	unix.Write(m.fd, append(b, body...))
}

// changed tells those who poll a file that its events may have changed.
func (m *mount) changed(f file) {
	m.mu.Lock()
	var handles []uint64
	for kh, node := range m.waiting {
		if m.file(node) == f {
			handles = append(handles, kh)
			delete(m.waiting, kh)
		}
	}
	m.mu.Unlock()
	for _, kh := range handles {
		b := ne.AppendUint32(nil, answerHeader+8)
		b = ne.AppendUint32(b, pollNotify)
		b = ne.AppendUint64(b, 0)
		unix.Write(m.fd, ne.AppendUint64(b, kh))
	}
}

func (m *mount) file(node uint64) file {
	if node < 2 || node-2 >= uint64(len(m.files)) {
		return nil
	}
	return m.files[node-2]
}

func (m *mount) attr(node uint64) []byte {
	var b [88]byte
	ne.PutUint64(b[0:], node)
	mode := uint32(unix.S_IFDIR | 0o755)
	if f := m.file(node); f != nil {
		mode = unix.S_IFREG | f.mode()
	}
	ne.PutUint32(b[60:], mode)
	ne.PutUint32(b[64:], 1) // links
	ne.PutUint32(b[68:], m.uid)
	ne.PutUint32(b[72:], m.gid)
	ne.PutUint32(b[80:], 4096)
	return b[:]
}

func (m *mount) handle(r request, stop <-chan struct{}) ([]byte, syscall.Errno) {
	f := m.file(r.node)
	switch r.op {
	case opInit:
		out := make([]byte, 64)
		ne.PutUint32(out[0:], 7)
		ne.PutUint32(out[4:], 31)
		ne.PutUint16(out[16:], 64) // requests in the background
		ne.PutUint16(out[18:], 48)
		ne.PutUint32(out[12:], initAtomicTruncate)
		ne.PutUint32(out[20:], maxWrite)
		ne.PutUint32(out[24:], 1) // time granularity, ns
		return out, 0
	case opLookup:
		name := string(r.body[:max(len(r.body)-1, 0)])
		for i, n := range m.names {
			if n == name {
				out := make([]byte, 40, 128)
				ne.PutUint64(out, uint64(i+2))
				return append(out, m.attr(uint64(i+2))...), 0
			}
		}
		return nil, syscall.ENOENT
	case opGetattr, opSetattr:
		return append(make([]byte, 16), m.attr(r.node)...), 0
	case opOpendir, opReleasedir:
		return make([]byte, 16), 0
	case opReaddir:
		return m.list(ne.Uint64(r.body[8:]), int(ne.Uint32(r.body[16:]))), 0
	case opStatfs:
		return make([]byte, 80), 0
	}
	if f == nil {
		return nil, syscall.ENOSYS
	}
	switch r.op {
	case opOpen:
		if errno := f.open(r.by, ne.Uint32(r.body)); errno != 0 {
			return nil, errno
		}
		out := make([]byte, 16)
		ne.PutUint32(out[8:], openDirectIO)
		if f.stream() {
			ne.PutUint32(out[8:], openDirectIO|openStream)
		}
		return out, 0
	case opRelease:
		f.release()
		return nil, 0
	case opFlush:
		return nil, 0
	case opRead:
		size, flags := int(ne.Uint32(r.body[16:])), ne.Uint32(r.body[32:])
		return f.read(ne.Uint64(r.body[8:]), size, flags&unix.O_NONBLOCK != 0, stop)
	case opWrite:
		n, errno := f.write(r.by, r.body[40:])
		return ne.AppendUint64(nil, uint64(n)), errno
	case opPoll:
		if ne.Uint32(r.body[16:])&pollNotify != 0 {
			m.mu.Lock()
			m.waiting[ne.Uint64(r.body[8:])] = r.node
			m.mu.Unlock()
		}
		// After the handle is known, so that a change in between is not missed.
		return ne.AppendUint64(nil, uint64(f.events())), 0
	}
	return nil, syscall.ENOSYS
}

// list is the directory from an offset on.
func (m *mount) list(offset uint64, size int) (out []byte) {
	for i := int(offset); i < len(m.names); i++ {
		name := m.names[i]
		e := ne.AppendUint64(nil, uint64(i+2))
		e = ne.AppendUint64(e, uint64(i+1))
		e = ne.AppendUint32(e, uint32(len(name)))
		e = append(ne.AppendUint32(e, unix.DT_REG), name...)
		e = append(e, make([]byte, -len(e)&7)...)
		if len(out)+len(e) > size {
			break
		}
		out = append(out, e...)
	}
	return out
}

// Missing says what this host lacks for Mount, "" when nothing.
func Missing() string {
	if os.Geteuid() != 0 {
		return "a fake module needs root, to mount it"
	}
	if _, err := os.Stat("/dev/fuse"); errors.Is(err, os.ErrNotExist) {
		return "a fake module needs /dev/fuse (modprobe fuse)"
	}
	return ""
}
