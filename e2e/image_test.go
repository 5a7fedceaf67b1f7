package e2e

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"stapbox/e2e/image"
	"stapbox/e2e/lab"
)

// serverImage is the root directory of the server's image, which was packed and
// unpacked. It is built twice, to the same bytes.
func serverImage(t *testing.T) (string, image.Process) {
	t.Helper()
	tools, err := stage.lab.FetchPackages("toolchain", image.Packages())
	if err != nil {
		t.Fatal(err)
	}
	im := image.Image{Name: "server", Box: stage.programs.Box, Applets: []string{"stap", "stap-serverd", "stapio", "staprun"}, Toolchain: tools}
	var first []byte
	file := filepath.Join(t.TempDir(), "server.oci.tar")
	for range 2 {
		if err := im.Write(file); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(first, b) {
			t.Error("the same input gives other bytes")
		}
		first = b
	}
	if len(first) > 60e6 {
		t.Errorf("the image has %d bytes", len(first))
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := image.Extract(file, root)
	if err != nil {
		t.Fatal(err)
	}
	return root, p
}

// Every program of the image has its libraries in it, no link leads nowhere, and
// nothing is setuid.
func TestImageIsComplete(t *testing.T) {
	few(t)
	root, _ := serverImage(t)
	within, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer within.Close()
	programs := 0
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(root, file)
		st, err := within.Stat(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		if st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
		f, err := within.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		e, err := elf.NewFile(f)
		if err != nil {
			return nil // no program
		}
		programs++
		libraries, err := e.ImportedLibraries()
		if err != nil && !strings.HasPrefix(name, "usr/libexec") {
			t.Errorf("%s: %v", name, err)
		}
		for _, l := range libraries {
			_, here := within.Stat("usr/lib/x86_64-linux-gnu/" + l)
			_, loader := within.Stat("usr/lib64/" + l)
			if here != nil && loader != nil {
				t.Errorf("%s needs %s", name, l)
			}
		}
		return nil
	})
	if err != nil || programs < 20 {
		t.Errorf("%d programs, %v", programs, err)
	}
}

// The image of a server, started as a container engine starts it with
// --cap-drop=ALL, --security-opt=no-new-privileges, --read-only, a volume, a tmpfs
// on /tmp and the kernel's headers, compiles for our client, drains, and leaves no
// zombie.
func TestImageServes(t *testing.T) {
	few(t)
	o := operation(t, "image")
	root, p := serverImage(t)
	usr := filepath.Dir(filepath.Dir(o.kernel.Headers))
	kbuild, err := filepath.Glob(filepath.Join(usr, "lib/linux-kbuild-*"))
	if err != nil || len(kbuild) != 1 {
		t.Fatalf("the kernel's programs: %q, %v", kbuild, err)
	}
	inside := filepath.Join(root, "usr/lib", filepath.Base(kbuild[0]))
	if err := os.Mkdir(inside, 0o755); err != nil { // an engine makes them
		t.Fatal(err)
	}
	for _, d := range []string{"null", "zero", "full", "random", "urandom"} {
		if err := os.WriteFile(filepath.Join(root, "dev", d), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := `set -e; root=$1 usr=$2 kbuild=$3 user=$4; shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind -o ro "$usr/src" "$root/usr/src"
mount --bind -o ro "$kbuild" "$root/usr/lib/${kbuild##*/}"
mount -t tmpfs -o noexec,nosuid,nodev,mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o nosuid,nodev,mode=0700,uid=${user%:*},gid=${user#*:} tmpfs "$root` + image.Home + `"
mount -t proc proc "$root/proc"
for d in null zero full random urandom; do mount --bind /dev/$d "$root/dev/$d"; done
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$user" "$root" "$@"`
	argv := append([]string{"sh", "-c", script, "sh", root, usr, kbuild[0], p.User}, p.Entrypoint...)
	argv = append(append(argv, p.Cmd...), "--key-type=ecdsa", "-r", "/usr/src/"+filepath.Base(o.kernel.Headers))
	o.unshare(t, append(p.Env, "PATH="+os.Getenv("PATH")+":/usr/bin"), argv...)
	if fmt.Sprint(o.Port) != image.Port {
		t.Errorf("port %d, want %s", o.Port, image.Port)
	}
	// Our client, with a home of its own, trusts it and compiles.
	home := t.TempDir()
	for d := home; len(d) > 5; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	if err := os.Chown(home, lab.ServerUID, lab.ServerUID); err != nil {
		t.Fatal(err)
	}
	stap := func(args ...string) (string, error) {
		cmd := o.net.Command(lab.ServerUID, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home},
			append([]string{stage.programs.Applet("stap"), "--use-server=127.0.0.1:" + image.Port}, args...)...)
		cmd.Dir = home
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := stap("--trust-servers=ssl,no-prompt"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, o.text())
	}
	out, err := stap("-p4", "-m", "hello", "-r", o.kernel.Release, "-e"+hello)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, o.text())
	}
	if f, err := elf.Open(filepath.Join(home, "hello.ko")); err != nil {
		t.Errorf("%v\n%s", err, out)
	} else {
		if f.Type != elf.ET_REL || f.Section(".gnu.linkonce.this_module") == nil {
			t.Errorf("hello.ko is %v", f.Type)
		}
		f.Close()
	}
	// Nothing has a right, and nothing is writable but the volume and /tmp.
	for _, pid := range []int{o.PID, child(o.PID)} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Uid:\t65532\t65532\t65532\t65532\n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("process %d has not %q:\n%s", pid, want, status)
			}
		}
	}
	if out, err := exec.Command("nsenter", "-t", fmt.Sprint(o.PID), "-m", "-p", "sh", "-c", `touch "$1/usr/x" "$1/etc/x" "$1/x"`, "sh", root).CombinedOutput(); err == nil || strings.Count(string(out), "Read-only file system") != 3 {
		t.Errorf("%v\n%s", err, out)
	}
	for pid, state := range o.processes(t) {
		if state == "Z" {
			t.Errorf("process %s is a zombie", pid)
		}
	}
	o.kill(t, o.PID, syscall.SIGTERM)
	if got := o.ends(t, 10*time.Second); got != 0 {
		t.Errorf("status %d\n%s", got, o.text())
	}
}
