package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is what sandboxes start.
func TestMain(m *testing.M) {
	Enter()
	if os.Getenv(Variable) != "" {
		args, err := Args()
		if err != nil {
			fmt.Println(err)
		}
		if slices.Equal(args, []string{"system calls"}) {
			forbiddenCalls()
			os.Exit(0)
		}
		fmt.Printf("%q %q\n", args, os.Args[1:])
		os.Exit(7)
	}
	os.Exit(m.Run())
}

var self = []string{"/proc/self/exe", "stap"}

// variants are the sandboxes of hosts that have it all, no namespaces, and no
// Landlock. What this host lacks is left out.
func variants(t *testing.T) []*Sandbox {
	t.Helper()
	have := Detect(context.Background(), self)
	for _, m := range have.Missing {
		t.Logf("missing: %s", m)
	}
	var list []*Sandbox
	for _, l := range []Layers{AllLayers, Landlock | Seccomp, Namespaces | Seccomp} {
		if l&^have.Layers == 0 {
			list = append(list, &Sandbox{Program: self, Layers: l})
		}
	}
	if len(list) == 0 {
		t.Skip("missing: a kernel that confines processes")
	}
	return list
}

// sh runs a command in a sandbox.
func sh(t *testing.T, s *Sandbox, spec Spec, command string) (string, error) {
	t.Helper()
	spec.Path, spec.Args = "/bin/sh", []string{"-c", command}
	spec.Env = append(slices.Clip(spec.Env), "PATH=/usr/local/bin:/usr/bin:/bin:/sbin", "TMPDIR="+spec.Dir)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := s.Command(ctx, spec)
	defer c.Close()
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %s: %v", s.Layers, command, err)
	}
	return strings.TrimSpace(out.String()), err
}

const secret = "SECRET_9f3a"

// host is what a server has around the work of a request.
type host struct {
	key, other, state string
	spec              Spec
	bystander         *exec.Cmd
}

func newHost(t *testing.T) *host {
	t.Helper()
	base := t.TempDir()
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &host{key: filepath.Join(base, "ssl/stap.key"), other: filepath.Join(base, "stap-server.2/request/script/x.stp"), state: filepath.Join(base, "kernels/recipe")}
	work := filepath.Join(base, "stap-server.1")
	for _, f := range []string{h.key, h.other, h.state, filepath.Join(work, "request/script.stp")} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o755), os.WriteFile(f, []byte(secret+" x;\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// Workers of root are somebody else.
	if err := os.Chmod(h.state, 0o644); err != nil {
		t.Fatal(err)
	}
	h.spec = Spec{Dir: filepath.Join(work, "request"), Private: work, Read: []string{filepath.Dir(h.state)}, Size: 32 << 20}
	h.bystander = exec.Command("/bin/sleep", "300")
	if err := h.bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.bystander.Process.Kill()
		h.bystander.Wait()
	})
	return h
}

// unharmed checks that nothing outside was changed.
func (h *host) unharmed(t *testing.T, what string) {
	t.Helper()
	for path, mode := range map[string]os.FileMode{h.key: 0o600, h.other: 0o600, h.state: 0o644} {
		st, err := os.Stat(path)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		b, _ := os.ReadFile(path)
		if st.Mode().Perm() != mode || string(b) != secret+" x;\n" {
			t.Errorf("%s: %s has mode %v and %q", what, path, st.Mode(), b)
		}
	}
	if err := h.bystander.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("%s: the bystander: %v", what, err)
	}
	if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.bystander.Process.Pid)); err != nil || !bytes.Contains(st, []byte(") S ")) {
		t.Errorf("%s: the bystander is not asleep: %s", what, st)
	}
}

func TestHonestWork(t *testing.T) {
	for _, s := range variants(t) {
		h := newHost(t)
		out, err := sh(t, s, h.spec, "cat script.stp && echo new > x && mkdir d && mv x d && cat d/x && rm -r d && cat "+h.state+" && uname -r >/dev/null && echo 1 >/dev/null && sh -c 'exit 3'")
		want := secret + " x;\nnew\n" + secret + " x;"
		var exit *exec.ExitError
		if out != want || !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("%v: got %q, %v", s.Layers, out, err)
		}
		h.unharmed(t, "work")
		// Words for this program itself, whatever is in them.
		c := s.Command(context.Background(), Spec{Args: []string{"a", "", "\xff b\n"}, Dir: h.spec.Dir, Private: h.spec.Private, Env: []string{Variable + "=1"}})
		var b bytes.Buffer
		c.Stdout = &b
		if err := c.Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 || b.String() != "[\"a\" \"\" \"\\xff b\\n\"] []\n" {
			t.Errorf("%v: got %q, %v", s.Layers, &b, err)
		}
		c.Close()
	}
}

func TestFetch(t *testing.T) {
	for _, s := range variants(t) {
		h := newHost(t)
		c := s.Command(context.Background(), Spec{
			Path: "/bin/sh", Args: []string{"-c", "mkdir out && echo m > out/a.ko && echo n > out/b.o && ln -s " + h.key + " out/c.link && head -c 5000 /dev/zero > out/d.big"},
			Dir: h.spec.Private, Private: h.spec.Private, Env: []string{"PATH=/usr/bin:/bin"},
		})
		if err := c.Run(); err != nil {
			t.Fatalf("%v: %v", s.Layers, err)
		}
		if s.Layers&Namespaces == 0 {
			c.Close()
			continue // it is where it should be
		}
		if err := os.Mkdir(filepath.Join(h.spec.Private, "out"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := c.Fetch("out", "*.ko", 4096); err != nil {
			t.Errorf("%v: %v", s.Layers, err)
		}
		for _, pattern := range []string{"*.link", "*.big"} {
			if err := c.Fetch("out", pattern, 4096); err == nil {
				t.Errorf("%v: %s was fetched", s.Layers, pattern)
			}
		}
		c.Close()
		if list, _ := filepath.Glob(filepath.Join(h.spec.Private, "out/*")); len(list) != 1 {
			t.Errorf("%v: fetched %q", s.Layers, list)
		}
	}
}

// Files that take no room in the sandbox do not fill the disk.
func TestFetchSparse(t *testing.T) {
	for _, s := range variants(t) {
		if s.Layers&Namespaces == 0 {
			continue // they are on the disk already, and are not copied
		}
		for name, command := range map[string]string{
			"holes": "for i in 1 2 3 4 5 6; do truncate -s 1M out/$i.ko; done",
			"names": "truncate -s 1M out/1.ko; for i in 2 3 4 5 6; do ln out/1.ko out/$i.ko; done",
			"many":  "i=0; while [ $i -lt 1100 ]; do : > out/$i.ko; i=$((i+1)); done",
		} {
			h := newHost(t)
			c := s.Command(context.Background(), Spec{
				Path: "/bin/sh", Args: []string{"-c", "mkdir out; " + command}, Size: 4 << 20,
				Dir: h.spec.Private, Private: h.spec.Private, Env: []string{"PATH=/usr/bin:/bin"},
			})
			if err := errors.Join(c.Run(), os.Mkdir(filepath.Join(h.spec.Private, "out"), 0o755)); err != nil {
				t.Fatalf("%v: %v", s.Layers, err)
			}
			if err := c.Fetch("out", "*.ko", 2<<20); err == nil {
				t.Errorf("%v: %s were fetched", s.Layers, name)
			}
			c.Close()
			if used := occupied(filepath.Join(h.spec.Private, "out")); used > 4<<20+1<<19 {
				t.Errorf("%v: %s take %d bytes", s.Layers, name, used)
			}
		}
	}
}

// What a process could do to files and processes of its user.
func TestOutside(t *testing.T) {
	for _, s := range variants(t) {
		h := newHost(t)
		pid := h.bystander.Process.Pid
		for _, format := range []string{
			"cat %s", "cp %s x && cat x", "ln -s %[1]s l && cat l", "ln %[1]s h && cat h", "echo x > %s", "echo x >> %s",
			"truncate -s 0 %s", "chmod 666 %s", "chmod 000 %s", "rm -f %[1]s; test -e %[1]s && false", "mv %s y", "touch -d 2001-01-01 %s && cat %[1]s",
			"dd if=%s", "cat /proc/1/root%s", "cat /proc/$PPID/root%s", "cat /proc/self/cwd/../../ssl/stap.key %s", "sh -c '. %s'",
		} {
			for _, path := range []string{h.key, h.other, "/etc/shadow"} {
				command := fmt.Sprintf(format, path)
				// What would do harm to this machine, and what Landlock alone does not keep root from.
				if path == "/etc/shadow" && (strings.Contains(format, "rm ") || strings.Contains(format, "touch ")) {
					continue
				}
				out, err := sh(t, s, h.spec, command+"; e=$?; rm -f x y l h; exit $e")
				if err == nil && !strings.HasPrefix(format, "rm") || strings.Contains(out, secret) || strings.Contains(out, "root:") {
					t.Errorf("%v: %s: got %q, %v", s.Layers, command, out, err)
				}
			}
			h.unharmed(t, s.Layers.String()+": "+format)
		}
		for _, command := range []string{
			fmt.Sprint("kill -0 ", pid), fmt.Sprint("kill -9 ", pid), fmt.Sprint("kill -STOP ", pid), fmt.Sprint("kill -9 -", pid),
			fmt.Sprint("kill -9 ", os.Getpid()), fmt.Sprintf("cat /proc/%d/environ", os.Getpid()), fmt.Sprintf("ls /proc/%d/fd", pid),
			fmt.Sprintf("echo 5 > /proc/%d/oom_score_adj", pid),
			"echo x > " + h.state, "truncate -s 0 " + h.state, "chmod 600 " + h.state, "rm " + h.state, "echo x > " + filepath.Dir(h.state) + "/new",
			"mount -t tmpfs none /tmp", "unshare -U true && true", "mknod n b 8 0 && cat n", "chroot . /bin/true", "echo 1 > /proc/sys/kernel/sysrq",
			"cat /etc/passwd", "ls /root", "ls /home", "cat /proc/1/mem",
		} {
			if out, err := sh(t, s, h.spec, command); err == nil {
				t.Errorf("%v: %s: got %q", s.Layers, command, out)
			}
		}
		sh(t, s, h.spec, fmt.Sprintf("setsid sh -c 'kill -9 %d'; sleep 0.1", pid))
		h.unharmed(t, s.Layers.String())
	}
}

// forbiddenCalls tries what no compiler needs.
func forbiddenCalls() {
	for _, c := range []struct {
		name   string
		number uintptr
		a, b   uintptr
	}{
		{"ptrace", unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0}, {"process_vm_readv", unix.SYS_PROCESS_VM_READV, 1, 0},
		{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, 1, 0}, {"kcmp", unix.SYS_KCMP, 1, 1}, {"pidfd_open", unix.SYS_PIDFD_OPEN, 1, 0},
		{"pidfd_send_signal", unix.SYS_PIDFD_SEND_SIGNAL, 0, 0}, {"pidfd_getfd", unix.SYS_PIDFD_GETFD, 0, 0}, {"process_madvise", unix.SYS_PROCESS_MADVISE, 0, 0},
		{"mount", unix.SYS_MOUNT, 0, 0}, {"umount2", unix.SYS_UMOUNT2, 0, 0}, {"pivot_root", unix.SYS_PIVOT_ROOT, 0, 0}, {"chroot", unix.SYS_CHROOT, 0, 0},
		{"open_tree", unix.SYS_OPEN_TREE, 0, 0}, {"move_mount", unix.SYS_MOVE_MOUNT, 0, 0}, {"fsopen", unix.SYS_FSOPEN, 0, 0},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, 0, 0}, {"setns", unix.SYS_SETNS, 0, 0}, {"unshare", unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0},
		{"clone", unix.SYS_CLONE, unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD), 0}, {"clone3", unix.SYS_CLONE3, 0, 0}, {"bpf", unix.SYS_BPF, 0, 0},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, 0, 0}, {"init_module", unix.SYS_INIT_MODULE, 0, 0}, {"finit_module", unix.SYS_FINIT_MODULE, 0, 0},
		{"delete_module", unix.SYS_DELETE_MODULE, 0, 0}, {"add_key", unix.SYS_ADD_KEY, 0, 0}, {"keyctl", unix.SYS_KEYCTL, 0, 0},
		{"request_key", unix.SYS_REQUEST_KEY, 0, 0}, {"userfaultfd", unix.SYS_USERFAULTFD, 0, 0}, {"io_uring_setup", unix.SYS_IO_URING_SETUP, 1, 0},
		{"io_uring_enter", unix.SYS_IO_URING_ENTER, 0, 0}, {"io_uring_register", unix.SYS_IO_URING_REGISTER, 0, 0},
		{"socket", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM}, {"socket of the internet", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM},
		{"socket of the kernel", unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW}, {"socketpair", unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, 0, 0}, {"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, 0, 0},
		{"kexec_load", unix.SYS_KEXEC_LOAD, 0, 0}, {"reboot", unix.SYS_REBOOT, 0, 0}, {"swapon", unix.SYS_SWAPON, 0, 0}, {"swapoff", unix.SYS_SWAPOFF, 0, 0},
		{"quotactl", unix.SYS_QUOTACTL, 0, 0}, {"acct", unix.SYS_ACCT, 0, 0}, {"settimeofday", unix.SYS_SETTIMEOFDAY, 0, 0},
		{"clock_settime", unix.SYS_CLOCK_SETTIME, 0, 0}, {"adjtimex", unix.SYS_ADJTIMEX, 0, 0}, {"personality", unix.SYS_PERSONALITY, 0xffffffff, 0},
		{"syslog", unix.SYS_SYSLOG, 10, 0}, {"memfd_create", unix.SYS_MEMFD_CREATE, 0, 0}, {"shmget", unix.SYS_SHMGET, 0, 4096}, {"msgget", unix.SYS_MSGGET, 0, 0},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, 0, 0}, {"inotify_init1", unix.SYS_INOTIFY_INIT1, 0, 0}, {"sethostname", unix.SYS_SETHOSTNAME, 0, 0},
		{"seccomp", unix.SYS_SECCOMP, 0, 0}, {"landlock_create_ruleset", unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0}, {"nobody knows", 1023, 0, 0},
		{"x32", 0x40000000 + 39, 0, 0},
	} {
		_, _, errno := syscall.RawSyscall6(c.number, c.a, c.b, 0, 0, 0, 0)
		if errno != unix.ENOSYS && errno != unix.EPERM {
			fmt.Printf("%s answers %v\n", c.name, errno)
		}
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSTI, 0); errno != unix.EPERM {
		fmt.Printf("TIOCSTI answers %v\n", errno)
	}
	fmt.Println("tried")
}

func TestSystemCalls(t *testing.T) {
	for _, s := range variants(t) {
		h := newHost(t)
		c := s.Command(context.Background(), Spec{Args: []string{"system calls"}, Dir: h.spec.Dir, Private: h.spec.Private, Env: []string{Variable + "=1"}})
		var b bytes.Buffer
		c.Stdout, c.Stderr = &b, &b
		if err := c.Run(); err != nil || b.String() != "tried\n" {
			t.Errorf("%v: %v\n%s", s.Layers, err, &b)
		}
		c.Close()
	}
}

// The 32-bit calls of the same processor have other numbers.
func TestOtherABI(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil || runtime.GOARCH != "amd64" {
		t.Skip("missing: gcc on amd64")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "x.s")
	// getpid of i386, then exit of x86-64.
	text := ".globl _start\n_start: mov $20, %eax\nint $0x80\nmov $60, %eax\nxor %edi, %edi\nsyscall\n"
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "x")
	if out, err := exec.Command("gcc", "-nostdlib", "-static", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := exec.Command(program).Run(); err != nil {
		t.Skipf("missing: a kernel with 32-bit calls: %v", err)
	}
	for _, s := range variants(t) {
		h := newHost(t)
		h.spec.Read = append(h.spec.Read, dir)
		out, err := sh(t, s, h.spec, program+"; echo $?")
		if !strings.HasSuffix(out, "159") { // 128 + SIGSYS
			t.Errorf("%v: got %q, %v", s.Layers, out, err)
		}
	}
}

// What a request can have the compiler do: none of it shows what is outside.
func TestCompilerChannels(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("missing: gcc")
	}
	for _, s := range variants(t) {
		h := newHost(t)
		for _, tt := range []struct{ name, command string }{
			{"include", `echo '#include "FILE"' > x.c; gcc -E x.c; gcc -c x.c`},
			{"include by macro", `printf '#define F "FILE"\n#include F\n' > x.c; gcc -E x.c; gcc -c x.c`},
			{"include through a link", `ln -s FILE l; echo '#include "l"' > x.c; gcc -E x.c`},
			{"-include", `gcc -E -include FILE -x c /dev/null`},
			{"-imacros", `gcc -E -dM -imacros FILE -x c /dev/null`},
			{"-I with links", `mkdir i; ln -s FILE i/k.h; ln -s / i/root; printf '#include <k.h>\n' > x.c; gcc -Ii -E x.c; gcc -Ii/root -include .FILE -E -x c /dev/null`},
			{"-iquote", `mkdir i; ln -s FILE i/k.h; printf '#include "k.h"\n' > x.c; gcc -iquote i -E x.c`},
			{"embed", `printf 'char x[] = {\n#embed "FILE"\n};' > x.c; gcc -E x.c`},
			{"has_include", `printf '#if __has_include("FILE")\nSECRET_9f3a\n#endif\n' > x.c; gcc -E -P x.c`},
			{"asm include", `echo '.include "FILE"' > x.s; as x.s -al -o x.o; strings -a x.o; cat x.o`},
			{"asm incbin", `echo '.incbin "FILE"' > x.s; gcc -c x.s && cat x.o`},
			{"incbin in C", `echo '__asm__(".incbin \"FILE\"");' > x.c; gcc -c x.c && cat x.o`},
			{"response file", `gcc @FILE; as @FILE; ld @FILE; ar @FILE`},
			{"specs", `gcc -specs=FILE -v -E -x c /dev/null`},
			{"a program in specs", `printf '*cc1:\n+ -include FILE\n' > s; gcc -specs=s -E -x c /dev/null`},
			{"wrapper", `gcc -wrapper cat,FILE -E -x c /dev/null`},
			{"-B", `mkdir b; printf '#!/bin/sh\ncat FILE\n' > b/as; chmod 755 b/as; cp b/as b/cc1; gcc -Bb/ -c -x c /dev/null`},
			{"plugin", `printf 'int plugin_is_GPL_compatible; __attribute__((constructor)) static void f(void) { __builtin_puts("SECRET_9f3a"); }' > p.c; gcc -shared -fPIC -o p.so p.c; gcc -fplugin=./p.so -E -x c /dev/null | grep -v puts`},
			{"linker plugin", `printf '__attribute__((constructor)) static void f(void) { __builtin_puts("SECRET_9f3a"); }' > p.c; gcc -shared -fPIC -o p.so p.c; ld -plugin ./p.so x.o`},
			{"LD_PRELOAD", `printf '__attribute__((constructor)) static void f(void) { __builtin_puts("SECRET_9f3a"); }' > p.c; gcc -shared -fPIC -o p.so p.c; LD_PRELOAD=./p.so gcc --version`},
			{"own program", `printf 'int main(void) { __builtin_puts("SECRET_9f3a"); }' > p.c; gcc -o p p.c; ./p; cp p /tmp/p; /tmp/p`},
			{"GCC_EXEC_PREFIX", `GCC_EXEC_PREFIX=FILE/ gcc -v -E -x c /dev/null`},
			{"COMPILER_PATH", `mkdir b; printf '#!/bin/sh\ncat FILE\n' > b/as; chmod 755 b/as; COMPILER_PATH=b gcc -c -x c /dev/null`},
			{"CPATH", `mkdir i; ln -s FILE i/k.h; printf '#include <k.h>\n' > x.c; CPATH=i gcc -E x.c`},
			{"C_INCLUDE_PATH", `printf '#include <stap.key>\n' > x.c; C_INCLUDE_PATH=$(dirname FILE) gcc -E x.c`},
			{"DEPENDENCIES_OUTPUT", `printf 'int x;' > x.c; DEPENDENCIES_OUTPUT=FILE gcc -c x.c; gcc -c x.c -MD -MF FILE`},
			{"-o", `printf 'int x;' > x.c; gcc -c x.c -o FILE`},
			{"-save-temps", `printf 'int x;' > x.c; gcc -c x.c -save-temps -dumpdir FILE`},
			{"linker script", `ld -T FILE; echo 'INPUT(FILE)' > s; ld -T s; ld -r -b binary FILE -o x.o && cat x.o`},
			{"objcopy", `objcopy -I binary -O elf64-x86-64 FILE x.o && cat x.o`},
			{"make", `make -f FILE; printf 'include FILE\nall: ; cat FILE\n' > m; make -f m; printf 'all: ; $(info $(file < FILE))\n' > m; make -f m`},
			{"make variable", `printf 'all: ; $(CC) x.c\n' > m; make -f m 'CC=cat FILE'`},
			{"perl", `perl -ne print FILE`},
		} {
			for _, file := range []string{h.key, h.other} {
				out, _ := sh(t, s, h.spec, strings.ReplaceAll(tt.command, "FILE", file)+"; rm -rf i b l s m p x.* p.*")
				if strings.Contains(out, secret) && !own(s, tt.name) {
					t.Errorf("%v: %s: got\n%s", s.Layers, tt.name, out)
				}
			}
			h.unharmed(t, s.Layers.String()+": "+tt.name)
			out, _ := sh(t, s, h.spec, strings.ReplaceAll(tt.command, "FILE", "/etc/shadow")+"; rm -rf i b l s m p x.* p.*")
			if strings.Contains(out, "root:") {
				t.Errorf("%v: %s: got\n%s", s.Layers, tt.name, out)
			}
		}
	}
}

// own are programs of the request itself. Without a mount of its own its files
// can be executed, under all the other rules.
func own(s *Sandbox, name string) bool {
	return s.Layers&Namespaces == 0 && slices.Contains([]string{"plugin", "linker plugin", "LD_PRELOAD", "own program"}, name)
}

// Bombs end, and what they leave ends with them.
func TestBombs(t *testing.T) {
	for _, s := range variants(t) {
		h := newHost(t)
		limits := []Limit{{"cpu", 1}, {"as", 512 << 20}, {"fsize", 16 << 20}}
		for _, tt := range []struct{ name, command, needs string }{
			{"CPU", "while :; do :; done", ""},
			{"disk", "i=0; while dd if=/dev/zero of=f$i bs=1M count=8 2>/dev/null; do i=$((i+1)); done; exit 1", ""},
			{"files", "i=0; while echo > n$i; do i=$((i+1)); done 2>/dev/null; exit 1", "namespaces"},
			{"processes", "f() { f | f & }; f; sleep 3; exit 1", "namespaces"},
			{"memory", "tail /dev/zero", ""},
			{"memory of many", "for i in 1 2 3 4 5 6; do head -c 200000000 /dev/zero | tail & done; wait; exit 1", "namespaces"},
			{"those left behind", "setsid sleep 1234 & setsid sleep 1234 & sleep 1234 & sleep 0.2; exit 1", ""},
		} {
			if tt.needs != "" && s.Layers&Namespaces == 0 {
				continue
			}
			spec := h.spec
			spec.Limits, spec.Size, spec.Memory = limits, 32<<20, 600<<20
			start := time.Now()
			_, err := sh(t, s, spec, "exec >/dev/null; "+tt.command)
			if took := time.Since(start); err == nil || took > time.Minute {
				t.Errorf("%v: %s: %v after %v", s.Layers, tt.name, err, took)
			}
			if s.Layers&Namespaces == 0 {
				// On disk, where the request would be removed now.
				files, _ := filepath.Glob(filepath.Join(h.spec.Dir, "f*"))
				for _, f := range files {
					os.Remove(f)
				}
			}
			if out, _ := exec.Command("pgrep", "-fx", "sleep 1234").Output(); len(out) > 0 {
				t.Errorf("%v: %s: still there: %q", s.Layers, tt.name, out)
				for _, pid := range strings.Fields(string(out)) {
					exec.Command("kill", "-9", pid).Run()
				}
			}
			h.unharmed(t, s.Layers.String()+": "+tt.name)
			if out, err := sh(t, s, h.spec, "echo honest"); out != "honest" || err != nil {
				t.Errorf("%v: after %s: %q, %v", s.Layers, tt.name, out, err)
			}
		}
	}
}

// What was open when the parent was started is not the program's.
func TestInheritedDescriptors(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(secret); err != nil {
		t.Fatal(err)
	}
	fd := 9 // the shell of Debian knows one digit
	for ; fd > channel; fd-- {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == unix.EBADF {
			break
		}
	}
	if fd == channel {
		t.Skip("missing: a descriptor below 10 that is free")
	}
	if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, s := range append(variants(t), Off(self)) {
		if _, err := f.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		if out, err := sh(t, s, newHost(t).spec, fmt.Sprintf("cat <&%d", fd)); err == nil || strings.Contains(out, secret) {
			t.Errorf("%v: got %q, %v", s.Layers, out, err)
		}
	}
}

func TestEndsWithContext(t *testing.T) {
	for _, s := range variants(t) {
		h := newHost(t)
		spec := h.spec
		spec.Path, spec.Args, spec.Env = "/bin/sh", []string{"-c", "sleep 1000 & sleep 1000"}, []string{"PATH=/usr/bin:/bin"}
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		start := time.Now()
		err := s.Command(ctx, spec).Run()
		cancel()
		if err == nil || time.Since(start) > 5*time.Second {
			t.Errorf("%v: %v after %v", s.Layers, err, time.Since(start))
		}
	}
}

func TestRefusesToStart(t *testing.T) {
	for _, s := range variants(t) {
		h := newHost(t)
		for _, tt := range []struct {
			name   string
			change func(*Spec)
			want   string
		}{
			{"no program", func(s *Spec) { s.Path = "/bin/nosuch" }, `opening "/bin/nosuch"`},
			{"no directory", func(s *Spec) { s.Dir = "/nosuch" }, "entering the directory"},
			{"unknown limit", func(s *Spec) { s.Limits = []Limit{{"x", 1}} }, `resource limit "x" is unknown`},
			{"NUL in a word", func(s *Spec) { s.Args = []string{"a\x00b"} }, "contains a NUL octet"},
		} {
			spec := h.spec
			spec.Path = "/bin/true"
			tt.change(&spec)
			if err := s.Command(context.Background(), spec).Run(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v: %s: got %v", s.Layers, tt.name, err)
			}
		}
	}
}

func FuzzOrder(f *testing.F) {
	o := order{Spec: Spec{Path: "/bin/sh", Args: []string{"-c", "x=y"}, Env: []string{"A=b"}, Dir: "/", Read: []string{"/a"}, Write: []string{"/b"}, Private: "/c", Size: 5, Limits: []Limit{{"cpu", 3}}}, layers: AllLayers, uid: 7}
	b, err := o.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b[4:]))
	f.Add("size=-1\x00")
	f.Add("limit=cpu\x00")
	f.Fuzz(func(t *testing.T, text string) {
		o, err := parseOrder(text)
		if err != nil {
			return
		}
		b, err := o.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := readOrder(bytes.NewReader(b))
		if err != nil || !reflect.DeepEqual(again, o) {
			t.Errorf("got %v, %v; want %v", again, err, o)
		}
	})
}

func BenchmarkStart(b *testing.B) {
	have := Detect(context.Background(), self)
	for _, l := range []Layers{0, Landlock | Seccomp, Namespaces, AllLayers} {
		if l&^have.Layers != 0 {
			continue
		}
		b.Run(l.String(), func(b *testing.B) {
			s := &Sandbox{Program: self, Layers: l}
			dir := b.TempDir()
			for b.Loop() {
				c := s.Command(context.Background(), Spec{Path: "/bin/true", Dir: dir, Private: dir})
				if err := c.Run(); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
