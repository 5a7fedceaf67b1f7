package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Network is a network namespace with a tap device that a guest is joined to.
// The host's side has 10.77.0.1, the guest 10.77.0.2; both have link-local IPv6
// addresses.
type Network struct {
	Namespace string
	Tap       string
	Name      string // of the host, for the programs on it; "" for that of this machine
}

// HostAddress and GuestAddress are the IPv4 addresses of the two sides.
const (
	HostAddress  = "10.77.0.1"
	GuestAddress = "10.77.0.2"
)

var (
	networks atomic.Int32
	leftOnce sync.Once
)

// removeLeft removes the namespaces of runs that were killed.
func removeLeft() { removeOf(func(pid string) bool { return !exists("/proc/" + pid) }) }

// RemoveNetworks removes the namespaces that this process has made, and those of
// runs that were killed.
func RemoveNetworks() {
	self := strconv.Itoa(os.Getpid())
	removeOf(func(pid string) bool { return pid == self || !exists("/proc/"+pid) })
}

func removeOf(is func(pid string) bool) {
	names, err := filepath.Glob("/run/netns/stapbox-*-*")
	if err != nil {
		return
	}
	for _, path := range names {
		name := filepath.Base(path)
		if is(strings.Split(name, "-")[1]) {
			exec.Command("ip", "netns", "del", name).Run() // another run may be faster
		}
	}
}

// NewNetwork makes the namespace and the device.
func (l *Lab) NewNetwork() (*Network, error) {
	leftOnce.Do(removeLeft)
	n := &Network{Namespace: fmt.Sprintf("stapbox-%d-%d", os.Getpid(), networks.Add(1)), Tap: "tap0"}
	if err := l.run("", "ip", "netns", "add", n.Namespace); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"tuntap", "add", "dev", n.Tap, "mode", "tap"},
		{"addr", "add", HostAddress + "/24", "dev", n.Tap},
		{"link", "set", n.Tap, "up"},
	} {
		if err := l.run("", "ip", append([]string{"-n", n.Namespace}, args...)...); err != nil {
			n.Close()
			return nil, err
		}
	}
	return n, nil
}

// Command is a command inside the namespace, in the rights of an unprivileged
// user with the given home directory, or root's when uid is 0.
func (n *Network) Command(uid int, env []string, argv ...string) *exec.Cmd {
	args := []string{"netns", "exec", n.Namespace}
	if n.Name != "" {
		args = append(args, "unshare", "--uts", "sh", "-c", `hostname "$1" && shift && exec "$@"`, "sh", n.Name)
	}
	if uid != 0 {
		args = append(args, "setpriv", "--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), "--clear-groups", "--pdeathsig", "KILL")
	}
	args = append(args, argv...)
	cmd := exec.Command("ip", args...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Close removes the namespace, and with it the device.
func (n *Network) Close() error {
	out, err := exec.Command("ip", "netns", "del", n.Namespace).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip netns del: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// startLocked starts a command that is killed when this process ends: its Pdeathsig
// comes when the starting thread ends, so that thread must not. A terminal sends ^C
// to its group of processes; the command has one of its own, because what happens
// then is for this process to say.
func startLocked(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig, cmd.SysProcAttr.Setpgid = syscall.SIGKILL, true
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- cmd.Start()
		if cmd.Process != nil {
			select {} // keeps the thread
		}
	}()
	return <-started
}
