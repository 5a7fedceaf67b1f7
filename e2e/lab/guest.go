package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"stapbox/e2e/agent/request"
)

// User is an account of the guest.
type User struct {
	Name     string
	UID, GID int
	Groups   []int // supplementary
}

// Accounts of the guest. Groups 156 to 158 are stapusr, stapsys and stapdev.
var (
	Root   = User{"root", 0, 0, nil}
	Dev    = User{"dev", 1001, 1001, []int{156, 158}}
	Usr    = User{"usr", 1002, 1002, []int{156}}
	Usr2   = User{"usr2", 1005, 1005, []int{156}}
	Sys    = User{"sys", 1003, 1003, []int{156, 157}}
	Nobody = User{"nobody", 65534, 65534, nil}
)

var accounts = []User{Root, Dev, Usr, Usr2, Sys, Nobody}

// Home is a user's home directory in the guest.
func Home(u User) string {
	if u.UID == 0 {
		return "/root"
	}
	return "/home/" + u.Name
}

// GuestConfig says what a guest is made of.
type GuestConfig struct {
	Kernel *Kernel
	Image  *Image // files to add to the basic ones, or nil
	Agent  string // path of the agent's executable
	Box    string // path of stapbox, installed with stapbox install
	CPUs   int
	Memory int      // megabytes
	Net    *Network // nil for no network

	Firmware  *Firmware // nil for the BIOS
	Variables []Variable
	Append    string // to the kernel's command line
	Disk      string // a file that is its first disk, and stays as it is

	// Counted: one CPU whose clock counts instructions, one a nanosecond, and
	// jumps ahead when it idles. Times are then the same on every machine.
	Counted bool
}

// Guest is a running virtual machine.
type Guest struct {
	Kernel  *Kernel
	Console *Console

	cmd    *exec.Cmd
	dir    string
	exited chan struct{}

	mu      sync.Mutex
	agent   net.Conn
	next    int
	waiting map[int]chan request.Answer
	parts   map[int]func(request.Answer) // what to do with answers of streamed commands
}

// networkModules are what a Debian cloud kernel needs for a network card and the
// agent's port; what they depend on comes with them.
var networkModules = []string{"virtio_pci", "virtio_net", "af_packet", "virtio_console"}

// agentPort is the agent's line to the host, a virtio port.
const agentPort = "/dev/vport0p1"

const initScript = `#!/bin/busybox sh
export PATH=/usr/bin:/bin:/usr/sbin:/sbin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mkdir -p /dev/pts /dev/shm /run
busybox mount -t devpts devpts /dev/pts
busybox mount -t tmpfs -o mode=755 run /run
busybox hostname production
echo 1 >/proc/sys/kernel/printk
for m in $(cat /lib/modules/network); do busybox insmod /lib/modules/$m; done
[ -d /sys/firmware/efi ] && busybox mount -t efivarfs efivarfs /sys/firmware/efi/efivars
busybox ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
	echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
	busybox ip addr add 10.77.0.2/24 dev eth0
	busybox ip link set eth0 up
fi
[ -x /etc/rc.local ] && /etc/rc.local
[ -x /agent ] && /agent ` + agentPort + ` &
exec busybox setsid busybox cttyhack busybox sh -c 'while :; do busybox login -f root </dev/ttyS0 >/dev/ttyS0 2>&1; done'
`

// baseImage has busybox, accounts and the kernel modules for a network card.
func (l *Lab) baseImage(k *Kernel, modules []string) (*Image, error) {
	im := NewImage()
	busybox, err := l.FetchBusybox()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	im.File("bin/busybox", 0o755, b)
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, err
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet != "busybox" {
			im.Link("bin/"+applet, "busybox")
		}
	}
	im.File("init", 0o755, []byte(initScript))
	var passwd, shadow strings.Builder
	for _, u := range accounts {
		home := Home(u)
		im.DirOf(home, 0o755, uint32(u.UID), uint32(u.GID))
		fmt.Fprintf(&passwd, "%s:x:%d:%d::%s:/bin/sh\n", u.Name, u.UID, u.GID, home)
		fmt.Fprintf(&shadow, "%s::19000:0:99999:7:::\n", u.Name)
	}
	im.File("etc/passwd", 0o644, []byte(passwd.String()))
	im.File("etc/shadow", 0o600, []byte(shadow.String()))
	im.File("etc/group", 0o644, []byte("root:x:0:\ndev:x:1001:\nusr:x:1002:\nsys:x:1003:\nusr2:x:1005:\nnogroup:x:65534:\nstapusr:x:156:dev,usr,usr2,sys\nstapsys:x:157:sys\nstapdev:x:158:dev\n"))
	im.File("etc/hosts", 0o644, []byte("127.0.0.1 localhost production\n"))
	im.File("etc/profile", 0o644, []byte("export PATH=/usr/bin:/bin:/usr/sbin:/sbin\nexport PS1='\\u@production$ '\n"))
	order, err := addModules(im, k, modules)
	if err != nil {
		return nil, err
	}
	im.File("lib/modules/network", 0o644, []byte(strings.Join(order, "\n")+"\n"))
	im.Dir("lib/modules/"+k.Release, 0o755)
	return im, nil
}

// addModules puts kernel modules into the image, and gives their file names in
// the order in which they load. A name that is no module is built in.
func addModules(im *Image, k *Kernel, names []string) (order []string, err error) {
	files := map[string]string{}
	err = filepath.WalkDir(filepath.Join(k.Modules, "kernel"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[strings.ReplaceAll(strings.SplitN(d.Name(), ".", 2)[0], "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var add func(name string) error
	add = func(name string) error {
		path, ok := files[name]
		if !ok || slices.Contains(order, name+".ko") {
			return nil
		}
		data, err := moduleBytes(path)
		if err != nil {
			return err
		}
		if m := dependsField.FindSubmatch(data); m != nil && len(m[1]) > 0 {
			for _, d := range strings.Split(string(m[1]), ",") {
				if err := add(d); err != nil {
					return err
				}
			}
		}
		im.File("lib/modules/"+name+".ko", 0o644, data)
		order = append(order, name+".ko")
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// dependsField is the field of .modinfo with the modules a module needs.
var dependsField = regexp.MustCompile(`\x00depends=([a-z0-9_,]*)\x00`)

// moduleBytes reads a module file, uncompressed if need be.
func moduleBytes(path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".xz":
		return exec.Command("xz", "-dc", path).Output()
	case ".zst":
		return exec.Command("zstd", "-dc", path).Output()
	}
	return os.ReadFile(path)
}

// boots is how often a guest is booted that dies, or stands still, before our
// code runs: with no probe armed yet that is the emulator's or the kernel's doing.
const boots = 3

// Rebooted begins the line that tells of a guest that is booted again.
const Rebooted = "a guest died before our code ran, and is booted again: "

// processor is the model of guests. Where a processor has erms and fsrm, kernels clear
// and copy memory by rep stosb and rep movsb, which the emulator executes one byte at a
// time: that was a quarter of the time of loading a module.
const processor = "max,erms=off,fsrm=off"

// countedProcessor is that of guests that count instructions.
const countedProcessor = "max"

// errEarly is a guest that died before our code ran.
var errEarly = errors.New("the guest died before our code ran")

// Boot builds the image and starts the guest. It returns when the agent is ready.
func (l *Lab) Boot(c GuestConfig) (*Guest, error) {
	modules := networkModules
	if c.Firmware != nil {
		modules = append(slices.Clone(modules), "efivarfs")
	}
	if c.Disk != "" {
		modules = append(slices.Clone(modules), "virtio_blk", "crc32c_generic", "ext4")
	}
	im, err := l.baseImage(c.Kernel, modules)
	if err != nil {
		return nil, err
	}
	for i := 1; ; i++ {
		dir, err := os.MkdirTemp("", "stapbox-guest-")
		if err != nil {
			return nil, err
		}
		g := &Guest{Kernel: c.Kernel, dir: dir, exited: make(chan struct{}), waiting: map[int]chan request.Answer{}, parts: map[int]func(request.Answer){}}
		err = l.boot(g, im, c)
		if err == nil {
			return g, nil
		}
		g.Kill()
		err = fmt.Errorf("booting kernel %s: %w", c.Kernel.Release, err)
		if !errors.Is(err, errEarly) || i == boots {
			return nil, err
		}
		l.say("%s%v", Rebooted, err)
	}
}

func (l *Lab) boot(g *Guest, im *Image, c GuestConfig) error {
	if c.Box != "" {
		if err := installBox(im, g.dir, c.Box, c.Kernel.Release); err != nil {
			return err
		}
	}
	agentProgram, err := os.ReadFile(c.Agent)
	if err != nil {
		return err
	}
	im.File("agent", 0o755, agentProgram)
	if c.Image != nil {
		for n, e := range c.Image.entries {
			if _, ok := im.entries[n]; !ok || e.mode&syscall.S_IFMT != syscall.S_IFDIR {
				im.entries[n] = e
			}
		}
	}
	initrd := filepath.Join(g.dir, "initrd")
	if err := os.WriteFile(initrd, im.CPIO(), 0o600); err != nil {
		return err
	}
	console, err := net.Listen("unix", filepath.Join(g.dir, "console"))
	if err != nil {
		return err
	}
	defer console.Close()
	agent, err := net.Listen("unix", filepath.Join(g.dir, "agent"))
	if err != nil {
		return err
	}
	defer agent.Close()
	model := processor
	if c.Counted {
		model = countedProcessor
	}
	args := []string{
		"qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", model,
		"-smp", fmt.Sprint(max(c.CPUs, 2)), "-m", fmt.Sprint(max(c.Memory, 1024)),
		"-kernel", c.Kernel.Image, "-initrd", initrd,
		"-append", strings.TrimSpace("console=ttyS0 quiet panic=-1 net.ifnames=0 " + c.Append),
		"-display", "none", "-no-reboot", "-nodefaults",
		"-chardev", "socket,id=con,path=" + filepath.Join(g.dir, "console"), "-serial", "chardev:con",
		"-chardev", "socket,id=agt,path=" + filepath.Join(g.dir, "agent"),
		"-device", "virtio-serial-pci,romfile=", "-device", "virtserialport,chardev=agt,name=agent",
	}
	if c.Counted {
		args = append(args, "-icount", "shift=0,sleep=off", "-smp", "1")
	}
	if c.Firmware != nil {
		more, err := c.Firmware.arguments(g.dir, c.Variables)
		if err != nil {
			return err
		}
		args = append(args, more...)
	}
	wait := 90 * time.Second
	if c.Disk != "" {
		args = append(args, "-drive", "file="+c.Disk+",if=none,id=d0,format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=d0")
		wait = 5 * time.Minute // a whole system
	}
	if c.Net != nil {
		args = append([]string{"ip", "netns", "exec", c.Net.Namespace}, append(args,
			"-netdev", "tap,id=n0,ifname="+c.Net.Tap+",script=no,downscript=no",
			"-device", "virtio-net-pci,netdev=n0,romfile=")...)
	}
	g.cmd = exec.Command(args[0], args[1:]...)
	var errs bytes.Buffer
	g.cmd.Stderr = &errs
	if err := startLocked(g.cmd); err != nil {
		return err
	}
	go func() {
		g.cmd.Wait()
		close(g.exited)
	}()
	accept := func(l net.Listener) (net.Conn, error) {
		l.(*net.UnixListener).SetDeadline(time.Now().Add(30 * time.Second))
		c, err := l.Accept()
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, errs.String())
		}
		return c, nil
	}
	con, err := accept(console)
	if err != nil {
		return err
	}
	g.Console = newConsole(con)
	if g.agent, err = accept(agent); err != nil {
		return err
	}
	ready := make(chan request.Answer, 1)
	g.waiting[0] = ready
	go g.receive()
	select {
	case <-ready:
		return nil
	case <-g.exited:
		return fmt.Errorf("%w: QEMU ended: %s\n%s", errEarly, errs.String(), g.Console.Text())
	case <-time.After(wait):
		return fmt.Errorf("%w: nothing for %v; console:\n%s", errEarly, wait, g.Console.Text())
	}
}

// installBox runs stapbox install --root for a tree that becomes part of the
// image, as an administrator would.
func installBox(im *Image, dir, box, release string) error {
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "etc"), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(tree, "lib/modules", release), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tree, "etc/group"), im.entries["etc/group"].data, 0o644); err != nil {
		return err
	}
	out, err := exec.Command(box, "install", "--root", tree).CombinedOutput()
	if err != nil {
		return fmt.Errorf("stapbox install: %w\n%s", err, out)
	}
	return im.Tree(tree, "/")
}

// receive hands the agent's answers to those who wait for them.
func (g *Guest) receive() {
	lines := bufio.NewReaderSize(g.agent, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var a request.Answer
		if json.Unmarshal(line, &a) != nil {
			continue
		}
		g.mu.Lock()
		part, c := g.parts[a.ID], g.waiting[a.ID]
		if !a.Part {
			delete(g.waiting, a.ID)
			delete(g.parts, a.ID)
		}
		g.mu.Unlock()
		if part != nil {
			part(a)
		}
		if c != nil && !a.Part {
			c <- a
		}
	}
}

// Do sends a request and waits for its answer.
func (g *Guest) Do(r request.Request) (request.Answer, error) {
	if r.Timeout == 0 {
		r.Timeout = 60 // the machine may be busy
	}
	c := make(chan request.Answer, 1)
	g.mu.Lock()
	g.next++
	r.ID = g.next
	g.waiting[r.ID] = c
	err := g.send(r)
	g.mu.Unlock()
	if err != nil {
		return request.Answer{}, err
	}
	select {
	case a := <-c:
		if a.Error != "" {
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-g.exited:
		return request.Answer{}, fmt.Errorf("the guest has ended; console:\n%s", g.Console.Text())
	case <-time.After(time.Duration(r.Timeout+30) * time.Second):
		return request.Answer{}, fmt.Errorf("the agent does not answer; console:\n%s", g.Console.Text())
	}
}

// Command is a request to run argv as a user in his home directory. argv[0] is a
// path or a name in the guest's /usr/bin or /bin.
func Command(u User, argv ...string) request.Request {
	home := Home(u)
	path := argv[0]
	if !strings.Contains(path, "/") {
		path = "/usr/bin/" + path
	}
	return request.Request{
		Path: path, Argv: argv, UID: u.UID, GID: u.GID, Groups: append([]int{}, u.Groups...), Dir: home,
		Env: []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + home, "USER=" + u.Name, "TERM=dumb"},
	}
}

// Shell is a request to run a shell command as a user.
func Shell(u User, script string) request.Request {
	return Command(u, "/bin/sh", "-c", script)
}

// Write puts a file into the guest.
func (g *Guest) Write(path string, u User, mode uint32, data []byte) error {
	_, err := g.Do(request.Request{WritePath: path, UID: u.UID, GID: u.GID, Mode: mode, Data: data})
	return err
}

// Ended says whether the guest has ended, by itself or by its emulator's death.
func (g *Guest) Ended() bool {
	select {
	case <-g.exited:
		return true
	default:
		return false
	}
}

// Kill ends the guest at once.
func (g *Guest) Kill() {
	if g.cmd != nil && g.cmd.Process != nil {
		g.cmd.Process.Kill()
		<-g.exited
	}
	os.RemoveAll(g.dir)
}

// Console is the guest's serial console.
type Console struct {
	mu   sync.Mutex
	conn net.Conn
	text bytes.Buffer
	news chan struct{}
	seen int
}

func newConsole(conn net.Conn) *Console {
	c := &Console{conn: conn, news: make(chan struct{}, 1)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				c.mu.Lock()
				c.text.Write(buf[:n])
				c.mu.Unlock()
				select {
				case c.news <- struct{}{}:
				default:
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return c
}

// Type sends text as if typed.
func (c *Console) Type(text string) error {
	_, err := c.conn.Write([]byte(text))
	return err
}

// Text is everything printed so far.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// Expect waits until a text has been printed after the last expected one, and
// returns what was printed up to and with it.
func (c *Console) Expect(want string, wait time.Duration) (string, error) {
	deadline := time.After(wait)
	for {
		c.mu.Lock()
		all := c.text.String()
		seen := c.seen
		if i := strings.Index(all[seen:], want); i >= 0 {
			c.seen = seen + i + len(want)
			c.mu.Unlock()
			return all[seen : seen+i+len(want)], nil
		}
		c.mu.Unlock()
		select {
		case <-c.news:
		case <-deadline:
			return all[seen:], fmt.Errorf("the console does not show %q after %v but:\n%s", want, wait, all[seen:])
		}
	}
}
