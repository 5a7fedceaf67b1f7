package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Places in struct seccomp_data (linux/seccomp.h): number, ABI, address of the
// instruction, six arguments of 64 bits. The halves are those of little endian.
const (
	dataNumber = 0
	dataABI    = 4
)

func dataArg(n uint32) uint32 { return 16 + 8*n }

// allowed are the system calls that shells, make, compilers and this program
// need on every architecture. What is missing here does not exist for them
// (ENOSYS): ptrace, process_vm_*, pidfd_*, mounts, namespaces, bpf, perf, keys,
// modules, io_uring, userfaultfd, sockets, clocks, quotas, handles, and whatever
// later kernels bring.
var allowed = [...]uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_LSEEK, unix.SYS_MMAP, unix.SYS_MPROTECT, unix.SYS_MUNMAP,
	unix.SYS_BRK, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPENDING, unix.SYS_RT_SIGTIMEDWAIT,
	unix.SYS_RT_SIGSUSPEND, unix.SYS_SIGALTSTACK, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREADV,
	unix.SYS_PWRITEV, unix.SYS_PREADV2, unix.SYS_PWRITEV2, unix.SYS_SCHED_YIELD, unix.SYS_MREMAP, unix.SYS_MSYNC, unix.SYS_MINCORE,
	unix.SYS_MADVISE, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_NANOSLEEP, unix.SYS_GETITIMER, unix.SYS_SETITIMER, unix.SYS_GETPID,
	unix.SYS_SENDFILE, unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_WAIT4, unix.SYS_WAITID,
	unix.SYS_UNAME, unix.SYS_FCNTL, unix.SYS_FLOCK, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_GETCWD, unix.SYS_CHDIR,
	unix.SYS_FCHDIR, unix.SYS_UMASK, unix.SYS_GETTIMEOFDAY, unix.SYS_GETRLIMIT, unix.SYS_SETRLIMIT, unix.SYS_PRLIMIT64, unix.SYS_GETRUSAGE,
	unix.SYS_SYSINFO, unix.SYS_TIMES, unix.SYS_GETUID, unix.SYS_GETGID, unix.SYS_GETEUID, unix.SYS_GETEGID, unix.SYS_GETPPID,
	unix.SYS_GETGROUPS, unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID,
	unix.SYS_SETRESGID, unix.SYS_GETRESUID, unix.SYS_GETRESGID, unix.SYS_GETPGID, unix.SYS_GETSID, unix.SYS_CAPGET, unix.SYS_CAPSET, unix.SYS_STATFS,
	unix.SYS_FSTATFS, unix.SYS_GETPRIORITY, unix.SYS_SETPRIORITY, unix.SYS_SCHED_GETPARAM, unix.SYS_SCHED_GETSCHEDULER,
	unix.SYS_SCHED_GET_PRIORITY_MAX, unix.SYS_SCHED_GET_PRIORITY_MIN, unix.SYS_MLOCK, unix.SYS_MUNLOCK, unix.SYS_PRCTL,
	unix.SYS_GETTID, unix.SYS_READAHEAD, unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_FGETXATTR, unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR,
	unix.SYS_FLISTXATTR, unix.SYS_FUTEX, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETDENTS64,
	unix.SYS_SET_TID_ADDRESS, unix.SYS_RESTART_SYSCALL, unix.SYS_FADVISE64, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES,
	unix.SYS_CLOCK_NANOSLEEP, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_GETTIME, unix.SYS_TIMER_GETOVERRUN,
	unix.SYS_TIMER_DELETE, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_MKDIRAT, unix.SYS_MKNODAT,
	unix.SYS_UNLINKAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_READLINKAT, unix.SYS_FACCESSAT,
	unix.SYS_FACCESSAT2, unix.SYS_PSELECT6, unix.SYS_PPOLL, unix.SYS_SET_ROBUST_LIST, unix.SYS_GET_ROBUST_LIST, unix.SYS_SPLICE, unix.SYS_TEE,
	unix.SYS_UTIMENSAT, unix.SYS_FALLOCATE, unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_GETCPU, unix.SYS_GETRANDOM, unix.SYS_MEMBARRIER,
	unix.SYS_COPY_FILE_RANGE, unix.SYS_STATX, unix.SYS_RSEQ, unix.SYS_CLOSE_RANGE, unix.SYS_FCHMOD, unix.SYS_SCHED_GETATTR,
}

// byName change files that the process owns wherever they are: Landlock does not
// refuse them in all versions. They are for processes that see no files of
// others.
var byName = [...]uint32{
	unix.SYS_TRUNCATE, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_SETXATTR, unix.SYS_LSETXATTR,
	unix.SYS_FSETXATTR, unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_OPENAT2,
}

// groups make a process group of its own. Where there is no pid namespace the
// group is what ends all that a program started.
var groups = [...]uint32{unix.SYS_SETPGID, unix.SYS_SETSID}

// newNamespaces are the flags of clone(2) that make namespaces.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// assembler makes a classic BPF program.
type assembler struct{ code []unix.SockFilter }

func (a *assembler) load(offset uint32) {
	a.code = append(a.code, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
}

// jump compares what was loaded; yes and no are numbers of instructions to skip.
func (a *assembler) jump(how uint16, k uint32, yes, no uint8) {
	a.code = append(a.code, unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, Jt: yes, Jf: no, K: k})
}

func (a *assembler) answer(k uint32) {
	a.code = append(a.code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k})
}

func fail(e syscall.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// allow lets calls pass.
func (a *assembler) allow(numbers ...uint32) {
	for _, n := range numbers {
		a.jump(unix.BPF_JEQ, n, 0, 1)
		a.answer(unix.SECCOMP_RET_ALLOW)
	}
}

// special treats one call by itself: the instructions of body end in answers.
func (a *assembler) special(number uint32, body func(*assembler)) {
	var b assembler
	body(&b)
	// An unconditional jump has room for any distance.
	a.jump(unix.BPF_JEQ, number, 1, 0)
	a.code = append(a.code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(b.code))})
	a.code = append(a.code, b.code...)
}

// filter is the program for an order, nil for none. The process sees the kernel
// without all the calls that are not on the lists.
func (o *order) filter() ([]unix.SockFilter, error) {
	if o.layers&Seccomp == 0 {
		return nil, nil
	}
	if auditArch == 0 {
		return nil, fmt.Errorf("there is no list of system calls for %s", runtime.GOARCH)
	}
	a := &assembler{}
	a.load(dataABI)
	a.jump(unix.BPF_JEQ, auditArch, 1, 0)
	a.answer(unix.SECCOMP_RET_KILL_PROCESS)
	a.load(dataNumber)
	if secondABI != 0 {
		a.jump(unix.BPF_JGE, secondABI, 0, 1)
		a.answer(fail(unix.ENOSYS))
	}
	// The kernel remembers which of these pass whatever their arguments are.
	a.allow(allowed[:]...)
	a.allow(allowedHere[:]...)
	a.special(unix.SYS_CLONE, func(b *assembler) {
		b.load(dataArg(0))
		b.jump(unix.BPF_JSET, newNamespaces, 0, 1)
		b.answer(fail(unix.EPERM))
		b.answer(unix.SECCOMP_RET_ALLOW)
	})
	a.special(unix.SYS_IOCTL, func(b *assembler) {
		b.load(dataArg(1))
		for _, request := range [...]uint32{unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSETD} {
			b.jump(unix.BPF_JEQ, request, 0, 1)
			b.answer(fail(unix.EPERM))
		}
		b.answer(unix.SECCOMP_RET_ALLOW)
	})
	switch {
	case o.layers&Namespaces != 0 || o.Private == "":
		a.allow(byName[:]...)
		a.allow(byNameHere[:]...)
		a.allow(groups[:]...)
		if openNumber != 0 {
			a.allow(openNumber)
		}
		a.allow(unix.SYS_OPENAT, unix.SYS_KILL, unix.SYS_TKILL, unix.SYS_TGKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO)
	default:
		a.narrow()
	}
	a.answer(fail(unix.ENOSYS))
	return a.code, nil
}

// narrow is for a process among those of its user.
func (a *assembler) narrow() {
	for _, list := range [][]uint32{byName[:], byNameHere[:], groups[:]} {
		for _, n := range list {
			a.jump(unix.BPF_JEQ, n, 0, 1)
			a.answer(fail(unix.EPERM))
		}
	}
	// O_TRUNC without the right to write is what Landlock overlooks before ABI 3.
	open := func(flags uint32) func(*assembler) {
		return func(b *assembler) {
			b.load(dataArg(flags))
			b.jump(unix.BPF_JSET, unix.O_TRUNC, 0, 2)
			b.jump(unix.BPF_JSET, unix.O_WRONLY|unix.O_RDWR, 1, 0)
			b.answer(fail(unix.EPERM))
			b.answer(unix.SECCOMP_RET_ALLOW)
		}
	}
	a.special(unix.SYS_OPENAT, open(2))
	if openNumber != 0 {
		a.special(openNumber, open(1))
	}
	// Its children it can signal only together with itself.
	pid := uint32(os.Getpid())
	for _, n := range [...]uint32{unix.SYS_KILL, unix.SYS_TGKILL} {
		a.special(n, func(b *assembler) {
			b.load(dataArg(0))
			for _, who := range [...]uint32{0, pid, -pid} {
				b.jump(unix.BPF_JEQ, who, 0, 1)
				b.answer(unix.SECCOMP_RET_ALLOW)
			}
			b.answer(fail(unix.EPERM))
		})
	}
}

// install sets the filter for this thread and what it will execute.
func install(code []unix.SockFilter) error {
	if len(code) > unix.BPF_MAXINSNS {
		return errors.New("the filter of system calls is too long")
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("filtering system calls: %w", errno)
	}
	return nil
}
