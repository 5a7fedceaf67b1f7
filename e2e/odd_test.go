package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"stapbox/e2e/lab"
)

// A home directory whose name holds what make, sh and the linker mind, of the
// one who compiles here, and of a server.
func TestOddHome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace and the server's user")
	}
	kernel, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	odd, err := os.MkdirTemp(stage.dir, "a b#c:d$e%f'g\"h,i=j(k)&;l*m-")
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(odd, "client")
	for _, d := range []string{odd, home, filepath.Join(home, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	net, err := stage.lab.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	stap := func(args ...string) {
		t.Helper()
		cmd := net.Command(0, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + filepath.Join(home, "tmp")}, append([]string{stage.programs.Applet("stap")}, args...)...)
		cmd.Dir = home
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("stap %q: %v\n%s", args, err, out)
		}
	}
	built := func(name string) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(home, name+".ko")); err != nil {
			t.Error(err)
		}
	}
	stap("-p4", "-r", kernel.Headers, "-m", "here", "-e", "probe begin { exit() }")
	built("here")
	server, err := stage.programs.StartServer(net, filepath.Join(odd, "server"), []*lab.Kernel{kernel})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	if err := server.WaitLog("is ready after", time.Minute); err != nil {
		t.Fatal(err)
	}
	address := lab.HostAddress + ":" + strconv.Itoa(server.Port)
	stap("--trust-servers=no-prompt", "--use-server="+address)
	stap("-p4", "-r", kernel.Release, "-m", "there", "--use-server="+address, "-e", "probe begin { println(1) exit() }")
	built("there")
	if left, err := exec.Command("find", odd, "-name", ".preparing-*").Output(); err != nil || len(left) > 0 {
		t.Errorf("left behind: %s, %v", left, err)
	}
}
