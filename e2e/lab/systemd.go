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

// diskSize is that of the disk, most of which is not written.
const diskSize = "3G"

// makeDisk makes a disk of the tree, with the programs under test in /root.
const makeDisk = `cd /
cp /mnt/agent /agent && cp /mnt/stapbox /root/stapbox || exit
[ ! -d /mnt/scripts ] || cp -a /mnt/scripts /root/ || exit
rm -rf /usr/share/doc /usr/share/man /usr/share/locale /var/lib/apt /var/cache/apt /boot/*
cat >/etc/systemd/system/agent.service <<'END'
[Unit]
Description=Executes commands for tests
[Service]
ExecStart=/agent ` + agentPort + `
KillMode=process
END
mkdir -p /etc/systemd/system/multi-user.target.wants && ln -s ../agent.service /etc/systemd/system/multi-user.target.wants/
: >/etc/machine-id
echo debian >/etc/hostname; echo '127.0.0.1 localhost debian' >/etc/hosts
echo '/dev/vda / ext4 defaults 0 0' >/etc/fstab
mount --bind / /media && mke2fs -q -t ext4 -d /media /mnt/disk ` + diskSize

const switchInit = `#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
for m in $(busybox cat /lib/modules/network); do busybox insmod /lib/modules/$m; done
busybox mkdir -p /disk
busybox mount -t ext4 /dev/vda /disk || exec busybox sh
exec busybox switch_root /disk /lib/systemd/systemd
`

// BootDebian starts a guest that is a copy of the tree, with systemd as its process
// 1. The executable of stapbox is /root/stapbox, not installed; what is in the
// directory's scripts is in /root/scripts. The disk is made in the directory, where
// it may stay for another guest with the same programs.
func (l *Lab) BootDebian(ctx context.Context, d *Debian, programs *Programs, dir string) (*Guest, error) {
	disk := filepath.Join(dir, "disk")
	if !exists(disk) {
		for _, f := range []string{programs.Agent, programs.Box} {
			if err := os.Link(f, filepath.Join(dir, filepath.Base(f))); err != nil && !errors.Is(err, os.ErrExist) {
				return nil, err
			}
		}
		if out, err := d.Scratch(ctx, dir, makeDisk); err != nil {
			return nil, fmt.Errorf("making a disk: %w\n%s", err, out)
		}
	}
	im := NewImage()
	im.File("init", 0o755, []byte(switchInit))
	return l.Boot(GuestConfig{
		Kernel: d.Kernel, Image: im, Agent: programs.Agent, CPUs: 2, Memory: 2048, Disk: disk,
		Append: "systemd.mask=serial-getty@ttyS0.service systemd.mask=getty@tty1.service systemd.log_color=no systemd.mask=e2scrub_reap.service systemd.mask=systemd-networkd-wait-online.service",
	})
}
