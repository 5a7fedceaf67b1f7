package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"stapbox/e2e/agent/request"
)

// traced are the system calls that change what is outside of a process, or show
// it something; the number of the argument that tells which, -1 for none.
var traced = map[uint64]struct {
	name string
	text int
}{
	unix.SYS_OPENAT: {"openat", 1}, unix.SYS_OPENAT2: {"openat2", 1}, unix.SYS_FACCESSAT: {"faccessat", 1},
	unix.SYS_READLINKAT: {"readlinkat", 1}, unix.SYS_NEWFSTATAT: {"fstatat", 1}, unix.SYS_MKDIRAT: {"mkdirat", 1},
	unix.SYS_EXECVE: {"execve", 0}, unix.SYS_DELETE_MODULE: {"delete_module", 0}, unix.SYS_MEMFD_CREATE: {"memfd_create", 0},
	unix.SYS_FINIT_MODULE: {"finit_module", 1}, unix.SYS_FLOCK: {"flock", -1}, unix.SYS_SETFSUID: {"setfsuid", -1},
	unix.SYS_SETRESUID: {"setresuid", -1}, unix.SYS_SETRESGID: {"setresgid", -1}, unix.SYS_CAPSET: {"capset", -1},
	unix.SYS_WRITE: {"write", -1}, unix.SYS_EXIT_GROUP: {"exit_group", -1},
}

const getSyscallInfo = 0x420e // PTRACE_GET_SYSCALL_INFO, <linux/ptrace.h>, Linux 5.3

// trace runs the described command as become does, under ptrace(2), and acts at
// the system call its Break names. The tracer is root, so setuid programs are
// what they are without it. It returns only on failure.
func trace(description string) error {
	runtime.LockOSThread()
	var r request.Request
	if err := json.Unmarshal([]byte(description), &r); err != nil {
		return err
	}
	at := *r.Break
	r.Break = nil
	plain, err := json.Marshal(r)
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "become-traced", string(plain))
	cmd.Env = []string{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	main := cmd.Process.Pid
	var ws unix.WaitStatus
	if _, err := unix.Wait4(main, &ws, unix.WALL, nil); err != nil {
		return err
	}
	const options = unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK |
		unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(main, options); err != nil {
		return err
	}
	if err := unix.PtraceCont(main, 0); err != nil {
		return err
	}
	known := map[int]bool{main: true}
	status, seen := 0, 0
	held, release := 0, time.Time{}
	for {
		flags := unix.WALL
		if held != 0 {
			if time.Now().After(release) {
				if err := unix.PtraceCont(held, 0); err != nil && err != unix.ESRCH {
					return err
				}
				held = 0
				continue
			}
			flags |= unix.WNOHANG
		}
		tid, err := unix.Wait4(-1, &ws, flags, nil)
		switch {
		case err == nil && tid == 0:
			time.Sleep(time.Millisecond)
			continue
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			os.Exit(status)
		case err != nil:
			return err
		case ws.Exited() || ws.Signaled():
			if tid == main {
				status = ws.ExitStatus()
				if ws.Signaled() {
					status = 128 + int(ws.Signal())
				}
			}
			delete(known, tid)
			continue
		}
		deliver := 0
		switch sig := ws.StopSignal(); {
		case sig == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
			if what := entered(tid); what != "" {
				if at.List {
					fmt.Fprintf(os.Stderr, "at: %s\n", what)
				}
				if strings.Contains(what, at.Text) {
					seen++
				}
				if seen == at.Nth && strings.Contains(what, at.Text) {
					fmt.Fprintf(os.Stderr, "act: %s\n", what)
					if err := act(tid, at.Shell); err != nil {
						return err
					}
					if at.Hold > 0 {
						held, release = tid, time.Now().Add(time.Duration(at.Hold)*time.Millisecond)
						known[tid] = true
						continue
					}
				}
			}
		case sig == unix.SIGTRAP && ws.TrapCause() > 0: // a clone, fork or exec
		case sig == unix.SIGSTOP && !known[tid]: // a new thread begins
		default:
			deliver = int(sig)
		}
		known[tid] = true
		if err := unix.PtraceCont(tid, deliver); err != nil && err != unix.ESRCH {
			return err
		}
	}
}

// stopAtTraced has this thread, and what it executes, stop for its tracer before
// the system calls of the list and no others: a stop before and after every call
// takes most of the time of a run. A filter outlives setuid programs only if root
// installs it.
func stopAtTraced() error {
	calls := slices.Sorted(maps.Keys(traced))
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // seccomp_data.nr
	for i, n := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(n), Jt: uint8(len(calls) - i)})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_TRACE})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}

// entered describes the system call a thread stops before, "" for one of a
// program that does not matter.
func entered(tid int) string {
	var info [88]byte
	if _, _, e := unix.RawSyscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), uintptr(len(info)), uintptr(unsafe.Pointer(&info[0])), 0, 0); e != 0 || info[0] != 3 { // PTRACE_SYSCALL_INFO_SECCOMP, with the numbers where an entry has them
		return ""
	}
	call, ok := traced[binary.NativeEndian.Uint64(info[24:])]
	if !ok {
		return ""
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", tid))
	if err != nil {
		return ""
	}
	words := strings.Split(string(cmdline), "\x00")
	program := filepath.Base(words[0])
	if program != "staprun" && program != "stapio" {
		return ""
	}
	if len(words) > 1 && words[1] == "-d" {
		program += " -d"
	}
	arg := func(n int) uint64 { return binary.NativeEndian.Uint64(info[32+8*n:]) }
	if call.name == "write" && arg(0) <= 2 {
		return "" // a message to the user
	}
	text := ""
	if call.text >= 0 {
		text = readString(tid, arg(call.text))
	}
	return strings.TrimSpace(program + " " + call.name + " " + text)
}

// readString reads a text that ends in 0 from another process's memory.
func readString(tid int, address uint64) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 256)
	n, _ := f.ReadAt(b, int64(address)) // what can be read is enough
	text, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(text)
}

// act runs a shell command while the thread stands still, or kills its process.
func act(tid int, shell string) error {
	if shell != "" {
		cmd := exec.Command("/bin/sh", "-c", shell)
		cmd.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
		out, err := cmd.CombinedOutput()
		os.Stderr.Write(out)
		return err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return err
	}
	_, rest, ok := strings.Cut(string(b), "\nTgid:")
	if !ok {
		return errors.New("no Tgid in /proc/PID/status")
	}
	var tgid int
	if _, err := fmt.Sscan(rest, &tgid); err != nil {
		return err
	}
	return unix.Kill(tgid, unix.SIGKILL)
}
