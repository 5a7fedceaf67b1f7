package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Peer is a Debian sid tree with upstream's SystemTap and a kernel that it
// works with: what interoperability is measured against.
type Peer struct {
	Dir     string // what is kept between runs: the tree and what was made with it
	Root    string // the tree
	Kernel  *Kernel
	Version string // of upstream's stap

	suite    string // of Debian, and the name of the tree
	packages []string
}

// PeerVersion is the peer's kernel, by the name tests use.
const PeerVersion = "7.2"

// peerPackages are installed in the tree beside the base system.
var peerPackages = []string{
	"systemtap", "systemtap-server", "systemtap-client", "systemtap-runtime", "gcc", "make",
	"linux-headers-cloud-amd64", "linux-image-cloud-amd64", "kmod", "libnss3-tools",
}

// FetchPeer makes the tree, or finds it where an earlier run left it.
func (l *Lab) FetchPeer(ctx context.Context) (*Peer, error) {
	return l.fetchTree(ctx, &Peer{Dir: filepath.Join(l.Dir, "peer"), suite: "sid", packages: peerPackages})
}

// FetchOldPeer is the same for Debian 12 with its SystemTap 4.8 and kernel 6.1.
// What that makes of a script does not compile on that kernel: its client and
// server are there for what they say to others.
func (l *Lab) FetchOldPeer(ctx context.Context) (*Peer, error) {
	return l.fetchTree(ctx, &Peer{Dir: filepath.Join(l.Dir, "peer-4.8"), suite: "bookworm", packages: slices.Concat(peerPackages, []string{"zip", "unzip"})})
}

func (l *Lab) fetchTree(ctx context.Context, p *Peer) (*Peer, error) {
	p.Root = filepath.Join(p.Dir, p.suite)
	if os.Geteuid() != 0 {
		return nil, errors.New("the peer is a tree of its own that only root can set up and enter")
	}
	if err := p.find(ctx); err == nil {
		return p, nil
	}
	bootstrap, err := l.debootstrap(ctx, p.Dir, p.Root, p.suite, p.packages)
	if err != nil {
		return nil, err
	}
	if err := p.find(ctx); err != nil {
		return nil, errors.Join(bootstrap, err, fmt.Errorf("see %q", filepath.Join(p.Dir, bootstrapLog)))
	}
	l.say("the peer is ready: SystemTap %s, kernel %s", p.Version, p.Kernel.Release)
	return p, nil
}

// bootstrapLog is what debootstrap said, beside the tree.
const bootstrapLog = "debootstrap.log"

// debootstrap makes a tree of Debian packages. warning is what it had to
// complain about, if the tree is there all the same.
func (l *Lab) debootstrap(ctx context.Context, dir, root, suite string, packages []string) (warning, err error) {
	if _, err := exec.LookPath("debootstrap"); err != nil {
		if err := l.install("debootstrap", "debian-archive-keyring"); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	changed := changes(root)
	unlock, err := l.lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if changed() {
		return nil, nil // another run has made it while this one waited
	}
	fresh := filepath.Join(dir, ".unpacking")
	discard := func() error {
		// debootstrap may have mounted things there.
		if err := unmountBelow(fresh); err != nil {
			return err
		}
		return os.RemoveAll(fresh)
	}
	if err := discard(); err != nil { // what a run that was killed left
		return nil, err
	}
	mirror, err := debianMirror()
	if err != nil {
		return nil, err
	}
	l.say("fetching Debian %s with %s from %s (some minutes)", suite, strings.Join(packages, ", "), mirror)
	log, err := os.Create(filepath.Join(dir, bootstrapLog))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	step := func(name string, args ...string) error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "TMPDIR=/tmp") // the tree has no other
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		return cmd.Run()
	}
	warning = step("debootstrap", "--variant=minbase", "--include="+strings.Join(packages, ","), suite, fresh, mirror)
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, discard())
	}
	// Packages of services do not configure in a bare tree; the programs that
	// matter here work without that.
	for range 3 {
		l.say("configuring packages")
		if step("chroot", fresh, "dpkg", "--configure", "-a") == nil {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, discard()) // packages may not be configured
	}
	if err := unmountBelow(fresh); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(root); err != nil {
		return nil, err
	}
	if err := os.Rename(fresh, root); err != nil {
		return nil, errors.Join(warning, err)
	}
	return warning, nil
}

var stapVersion = regexp.MustCompile(`version ([0-9][^/ ]*)/`)

// find looks whether the tree has what is needed.
func (p *Peer) find(ctx context.Context) error {
	var err error
	if p.Kernel, err = FindKernel(p.suite, p.Root); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := p.Command(ctx, Inside{}, "stap", "-V").CombinedOutput()
	m := stapVersion.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("running stap -V in %q: %v: %s", p.Root, err, out)
	}
	p.Version = string(m[1])
	for _, program := range []string{"gcc", "make", "certutil"} {
		if _, err := p.Find(program); err != nil {
			return err
		}
	}
	return nil
}

// Find gives the path, inside the tree, of a program.
func (p *Peer) Find(name string) (string, error) {
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/libexec/systemtap", "/usr/lib/systemtap"} {
		if fi, err := os.Stat(filepath.Join(p.Root, dir, name)); err == nil && fi.Mode().IsRegular() {
			return filepath.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("the peer's tree %q has no program %q", p.Root, name)
}

// Inside says where in the tree a command runs, and as whom.
type Inside struct {
	Net  *Network // nil for the host's
	UID  int      // and GID
	Work string   // a directory of the host that becomes /mnt in the tree, and the working directory
	Env  []string
}

// enter mounts what programs expect, below the tree but visible to nobody
// else, and runs the command there. The shell stays, as process 1: a change of
// user would take from it the signal that ends it with its parent, and with it
// everything in its namespace.
const enter = `root=$1 work=$2 id=$3; shift 3
mount -t proc proc "$root/proc" && mount --bind /dev "$root/dev" || exit
[ -z "$work" ] || mount --bind "$work" "$root/mnt" || exit
chroot --userspec="$id:$id" --groups="$id" "$root" /bin/sh -c 'cd /mnt && exec "$@"' sh "$@"
exit $?`

// Command is a command inside the tree. It has process and mount namespaces of
// its own: when it ends, or is killed, nothing of it remains.
func (p *Peer) Command(ctx context.Context, in Inside, argv ...string) *exec.Cmd {
	args := append([]string{
		"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL",
		"sh", "-c", enter, "sh", p.Root, in.Work, fmt.Sprint(in.UID),
	}, argv...)
	if in.Net != nil {
		args = append([]string{"ip", "netns", "exec", in.Net.Namespace}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	home := "/root"
	if in.UID != 0 {
		home = "/mnt"
	}
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "HOME=" + home, "USER=root", "TZ=UTC"}, in.Env...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Runtime adds upstream's staprun and stapio to an image, with the libraries
// they need, and gives the environment in which root uses that pair: both names
// below dir.
func (p *Peer) Runtime(ctx context.Context, im *Image, dir string) (staprun string, env []string, err error) {
	for _, name := range []string{"staprun", "stapio"} {
		inside, err := p.Find(name)
		if err != nil {
			return "", nil, err
		}
		b, err := os.ReadFile(filepath.Join(p.Root, inside))
		if err != nil {
			return "", nil, err
		}
		im.File(filepath.Join(dir, name), 0o755, b)
		out, err := p.Command(ctx, Inside{}, "ldd", inside).Output()
		if err != nil {
			return "", nil, fmt.Errorf("asking for the libraries of %q: %w", inside, err)
		}
		for _, lib := range library.FindAllString(string(out), -1) {
			b, err := os.ReadFile(p.resolve(lib))
			if err != nil {
				return "", nil, err
			}
			im.File(lib, 0o755, b)
		}
	}
	staprun = "/" + filepath.Join(dir, "staprun")
	return staprun, []string{"SYSTEMTAP_STAPRUN=" + staprun, "SYSTEMTAP_STAPIO=/" + filepath.Join(dir, "stapio")}, nil
}

var library = regexp.MustCompile(`/[^ \n]+\.so[^ \n]*`)

// resolve follows the links of a path inside the tree, which are relative to it.
func (p *Peer) resolve(name string) string {
	for range 16 {
		full := filepath.Join(p.Root, name)
		dir, err := filepath.EvalSymlinks(filepath.Dir(full)) // /lib is a relative link
		if err == nil && strings.HasPrefix(dir, p.Root) {
			full = filepath.Join(dir, filepath.Base(full))
		}
		target, err := os.Readlink(full)
		if err != nil {
			return full
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(strings.TrimPrefix(filepath.Dir(full), p.Root), target)
		}
		name = target
	}
	return filepath.Join(p.Root, name)
}

// debianMirror is the mirror that this machine uses.
func debianMirror() (string, error) {
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	for _, f := range append(files, "/etc/apt/sources.list") {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if m := mirrorLine.FindSubmatch(b); m != nil {
			return string(m[1]), nil
		}
	}
	return "", errors.New("no mirror of Debian in /etc/apt/sources.list or sources.list.d")
}

// mirrorLine matches both formats of sources.list(5).
var mirrorLine = regexp.MustCompile(`(?m)^(?:URIs:|deb)\s+(?:\[[^\]]*\]\s+)?(https?://\S*/debian)/?(?:\s|$)`)

// unmountBelow unmounts everything below a directory.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			if err := syscall.Unmount(f[1], syscall.MNT_DETACH); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("unmounting %q: %w", f[1], err)
			}
		}
	}
	return nil
}
