package sandbox

import "golang.org/x/sys/unix"

const (
	auditArch  = unix.AUDIT_ARCH_X86_64
	secondABI  = 0x40000000 // __X32_SYSCALL_BIT
	openNumber = unix.SYS_OPEN
)

// allowedHere are the older forms of calls, which newer architectures lack.
var allowedHere = [...]uint32{
	unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_NEWFSTATAT, unix.SYS_POLL, unix.SYS_ACCESS, unix.SYS_PIPE, unix.SYS_SELECT, unix.SYS_DUP2,
	unix.SYS_PAUSE, unix.SYS_ALARM, unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_GETDENTS, unix.SYS_RENAME, unix.SYS_MKDIR, unix.SYS_RMDIR,
	unix.SYS_LINK, unix.SYS_UNLINK, unix.SYS_SYMLINK, unix.SYS_READLINK, unix.SYS_GETPGRP, unix.SYS_UTIME, unix.SYS_MKNOD, unix.SYS_ARCH_PRCTL,
	unix.SYS_TIME, unix.SYS_EPOLL_CREATE, unix.SYS_EPOLL_WAIT, unix.SYS_UTIMES, unix.SYS_RENAMEAT, unix.SYS_FUTIMESAT, unix.SYS_EVENTFD,
}

var byNameHere = [...]uint32{unix.SYS_CREAT, unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN}
