package server

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inNamespace = "STAPBOX_TEST_LISTEN"

// In a network namespace whose lo has no 127.0.0.1 the server listens on IPv6 and
// IPv4 all the same. Package net looks once in a process, so a new one asks. The log of
// a server says where it listens.
func TestSecurity14ListensOnBothFamilies(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		l, err := listenAll(0)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		raw, err := l.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		only := -1
		raw.Control(func(fd uintptr) { only, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) })
		if err != nil || only != 0 || !strings.HasPrefix(l.Addr().String(), "[::]:") {
			t.Errorf("listens at %v, IPV6_V6ONLY is %d, %v", l.Addr(), only, err)
		}
		return
	}
	start(t).wait(t, "Using network address [::]:")
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("there is no ip(8)")
	}
	cmd := exec.Command("sh", "-c", "ip link set lo up && ip address delete 127.0.0.1/8 dev lo && exec "+os.Args[0]+" -test.run='^TestSecurity14ListensOnBothFamilies$' -test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}
