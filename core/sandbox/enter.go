package sandbox

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// channel is the descriptor on which a new process gets its order, and later on
// which the program finds its words.
const channel = 3

// Enter makes the sandbox and starts the program in it, if that is what this
// process was started for. Otherwise it returns at once. A program that starts
// others with this package calls it before it does anything else.
func Enter() {
	switch os.Getenv(Variable) {
	case "init":
	case "trial":
		os.Exit(0)
	default:
		return
	}
	// Rights, filters and identity belong to a thread until it executes a
	// program; so all is done on this one.
	runtime.LockOSThread()
	// Nobody's Control-C is meant for it, and until the program runs a signal
	// would leave the parent without an answer.
	unix.CloseOnExec(channel)
	err := enter()
	if err != nil {
		unix.Sendmsg(channel, []byte(err.Error()), nil, nil, 0)
	}
	os.Exit(126)
}

// memoryVariable has the limit on memory for this program.
const memoryVariable = "STAPBOX_WORKER_AS"

// delayMemory leaves the limit on memory to Args: a Go program reserves a lot of
// addresses before it runs, which it will not use.
func (o *order) delayMemory() {
	var now []Limit
	for _, l := range o.Limits {
		if l.Name == "as" {
			o.Env = append(o.Env, memoryVariable+"="+strconv.FormatUint(l.Value, 10))
			continue
		}
		now = append(now, l)
	}
	o.Limits = now
}

// Args are the words for this program, when it was started in a sandbox.
func Args() ([]string, error) {
	if v := os.Getenv(memoryVariable); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err == nil {
			err = setLimit(Limit{"as", n})
		}
		if err != nil {
			return nil, fmt.Errorf("limiting memory: %w", err)
		}
	}
	unix.CloseOnExec(channel)
	f := os.NewFile(channel, "words")
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMessage))
	if err != nil {
		return nil, fmt.Errorf("reading the words for a worker: %w", err)
	}
	if len(b) == 0 {
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

// descriptor is an io.Reader of a descriptor that somebody else closes.
type descriptor int

func (d descriptor) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), p)
		if err == unix.EINTR {
			continue
		}
		if n == 0 && err == nil {
			err = io.EOF
		}
		return max(n, 0), err
	}
}

func enter() error {
	o, err := readOrder(descriptor(channel))
	if err != nil {
		return fmt.Errorf("reading the order: %w", err)
	}
	// When memory runs out the kernel ends this process, and not the server.
	os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	program, err := o.program()
	if err != nil {
		return err
	}
	words, err := o.words()
	if err != nil {
		return err
	}
	var send []int
	if o.layers&Namespaces != 0 {
		if send, err = o.enterRoot(); err != nil {
			return err
		}
	}
	if err := os.Chdir(o.Dir); err != nil {
		return fmt.Errorf("entering the directory: %w", err)
	}
	if o.Path != "" {
		if program, err = unix.Open(o.Path, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("opening %q: %w", o.Path, err)
		}
	}
	if o.Path == "" {
		o.delayMemory()
	}
	if o.layers&Namespaces != 0 || os.Geteuid() == 0 && o.layers != 0 {
		if err := o.drop(); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	// A change of identity has cleared it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("asking for an end with the parent: %w", err)
	}
	if o.layers&Landlock != 0 {
		if err := o.landlock(program); err != nil {
			return err
		}
	}
	argv := append([]string{o.argv0()}, o.Args...)
	if o.Path == "" {
		argv = argv[:1]
	}
	start, err := newStart(program, o.Path, argv, o.Env)
	if err != nil {
		return err
	}
	filter, err := o.filter()
	if err != nil {
		return err
	}
	// The Go runtime ends a process that can get no more memory, or no thread more:
	// there is next to nothing left for it to do with these limits.
	if err := setLimits(o.Limits); err != nil {
		return err
	}
	if err := unix.Sendmsg(channel, []byte("ok"), unix.UnixRights(send...), nil, 0); err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	if o.Path == "" {
		// Without O_CLOEXEC, and instead of the channel.
		if err := unix.Dup3(words, channel, 0); err != nil {
			return fmt.Errorf("handing over words: %w", err)
		}
	}
	if err := closeInherited(); err != nil {
		return err
	}
	if len(filter) > 0 {
		if err := install(filter); err != nil {
			return err
		}
	}
	return start.exec()
}

// closeInherited keeps from the program what somebody left open when he started
// the parent: standard descriptors and the words are all it gets.
func closeInherited() error {
	const first = channel + 1
	err := unix.CloseRange(first, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	// Linux before 5.11.
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("looking for inherited descriptors: %w", err)
	}
	for _, e := range list {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

func (o *order) argv0() string {
	if o.Path != "" {
		return o.Path
	}
	return os.Args[0]
}

// program is a descriptor of this program, on a mount that cannot be written.
func (o *order) program() (int, error) {
	if o.layers&Namespaces != 0 {
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err == nil {
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
			if err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err == nil {
				return fd, nil
			}
			unix.Close(fd)
		}
	}
	fd, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening this program: %w", err)
	}
	return fd, nil
}

// words puts the arguments for this program into a file without a name: other
// users see command lines.
func (o *order) words() (int, error) {
	if o.Path != "" {
		return -1, nil
	}
	fd, err := unix.MemfdCreate("words", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("making a file for words: %w", err)
	}
	b := []byte(strings.Join(o.Args, "\x00"))
	if len(o.Args) > 0 {
		b = append(b, 0)
	}
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			return -1, fmt.Errorf("writing words: %w", err)
		}
		b = b[n:]
	}
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return -1, err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	if err != nil {
		return -1, fmt.Errorf("sealing words: %w", err)
	}
	return fd, nil
}

// drop gives up the rights that made the namespaces, and takes the identity that
// owns nothing.
func (o *order) drop() error {
	if o.uid != 0 {
		// The thread's own calls: those of package syscall change every thread.
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			return fmt.Errorf("leaving groups: %w", errno)
		}
		id := uintptr(o.uid)
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
			return fmt.Errorf("changing gid: %w", errno)
		}
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return err
		}
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
			return fmt.Errorf("changing uid: %w", errno)
		}
		// Effective ones are lost with uid 0.
		if err := setCapabilities(1<<unix.CAP_SETPCAP, 1<<unix.CAP_SETPCAP); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing ambient capabilities: %w", err)
	}
	for c := uintptr(0); c <= 63; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL {
			break // the kernel knows no more
		}
		if err != nil {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	// SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP, SECBIT_NO_CAP_AMBIENT_RAISE, and
	// the locks of these and of KEEP_CAPS (linux/securebits.h).
	const bits = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<7
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, bits, 0, 0, 0); err != nil {
		return fmt.Errorf("locking capabilities: %w", err)
	}
	return setCapabilities(0, 0)
}

func setCapabilities(effective, permitted uint32) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: effective, Permitted: permitted}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("setting capabilities: %w", err)
	}
	return nil
}

// start is a prepared execve(2): after the filter is in place nothing but the
// call itself is left to do.
type start struct {
	fd         int
	path       *byte
	argv, envp []*byte
}

func newStart(fd int, path string, argv, env []string) (*start, error) {
	s := &start{fd: fd}
	var err error
	if path != "" {
		if s.path, err = syscall.BytePtrFromString(path); err != nil {
			return nil, err
		}
	}
	if s.argv, err = syscall.SlicePtrFromStrings(argv); err != nil {
		return nil, err
	}
	s.envp, err = syscall.SlicePtrFromStrings(env)
	return s, err
}

func (s *start) exec() error {
	var errno syscall.Errno
	if s.path != nil {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(s.path)), uintptr(unsafe.Pointer(&s.argv[0])), uintptr(unsafe.Pointer(&s.envp[0])))
	} else {
		var empty byte
		_, _, errno = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(s.fd), uintptr(unsafe.Pointer(&empty)),
			uintptr(unsafe.Pointer(&s.argv[0])), uintptr(unsafe.Pointer(&s.envp[0])), unix.AT_EMPTY_PATH, 0)
	}
	return fmt.Errorf("starting the program: %w", errno)
}

// noNewPrivileges sets no_new_privs for every thread: a compiler is forked from
// whichever runs then.
func noNewPrivileges() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errors.Is(errno, unix.ENOTSUP) {
		// A binary with C code in it has threads the runtime does not know.
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("setting no_new_privs: %w", err)
		}
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("setting no_new_privs: %w", errno)
	}
	return nil
}
