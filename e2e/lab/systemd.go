package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Debian is a tree of Debian 12 as it is installed on a machine: systemd as
// process 1, log rotation, completion for bash, a kernel, its headers and the
// compiler for it.
type Debian struct {
	Dir    string // what is kept between runs
	Root   string // the tree
	Kernel *Kernel
}

var debianPackages = []string{
	"systemd", "systemd-sysv", "udev", "dbus", "logrotate", "bash-completion", "kmod", "iproute2", "procps", "libcap2-bin",
	"linux-image-cloud-amd64", "linux-headers-cloud-amd64", "gcc-12", "make", "e2fsprogs",
}

// FetchDebian makes the tree, or finds it where an earlier run left it.
func (l *Lab) FetchDebian(ctx context.Context) (*Debian, error) {
	d := &Debian{Dir: filepath.Join(l.Dir, "systemd")}
	d.Root = filepath.Join(d.Dir, "bookworm")
	if os.Geteuid() != 0 {
		return nil, errors.New("the tree with systemd is one that only root can set up and enter")
	}
	if d.find() == nil {
		return d, nil
	}
	warning, err := l.debootstrap(ctx, d.Dir, d.Root, "bookworm", debianPackages)
	if err != nil {
		return nil, err
	}
	if err := d.find(); err != nil {
		return nil, errors.Join(warning, err, fmt.Errorf("see %q", filepath.Join(d.Dir, bootstrapLog)))
	}
	return d, nil
}

func (d *Debian) find() (err error) {
	for _, name := range []string{
		"usr/bin/systemd-analyze", "usr/bin/systemctl", "usr/bin/systemd-sysusers", "usr/bin/dbus-daemon", "usr/sbin/logrotate",
		"usr/bin/gcc-12", "usr/bin/make", "usr/share/bash-completion/bash_completion", "usr/sbin/mke2fs",
	} {
		if !exists(filepath.Join(d.Root, name)) {
			return fmt.Errorf("%q holds no %s", d.Root, name)
		}
	}
	d.Kernel, err = FindKernel("bookworm", d.Root)
	return err
}

// scratch mounts a copy of the tree, which is gone with the namespace, and runs
// a shell there; a directory of the host is its /mnt.
const scratch = `root=$1 work=$2 script=$3
mount -t tmpfs -o mode=755 tmpfs /mnt && cd /mnt && mkdir upper work tree || exit 99
mount -t overlay -o lowerdir="$root",upperdir=upper,workdir=work overlay tree || exit 99
mount -t proc proc tree/proc && mount --bind /dev tree/dev && mount --bind "$work" tree/mnt || exit 99
exec chroot tree /bin/sh -c "$script"`

// Scratch runs a shell script in a copy of the tree that is gone afterwards,
// without systemd running, and gives what it prints. A directory of the host,
// work, is its /mnt; "" for an empty one.
func (d *Debian) Scratch(ctx context.Context, work, script string) ([]byte, error) {
	if work == "" {
		empty, err := os.MkdirTemp("", "stapbox-empty-")
		if err != nil {
			return nil, err
		}
		defer os.Remove(empty)
		work = empty
	}
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL",
		"sh", "-c", scratch, "sh", d.Root, work, script)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "HOME=/root", "USER=root", "TZ=UTC"}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("running a script in a copy of %q: %w", d.Root, err)
	}
	return out, nil
}
