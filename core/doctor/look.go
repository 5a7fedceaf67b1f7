package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/discovery"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/kbuild"
	"stapbox/core/kmod"
	"stapbox/core/mok"
	"stapbox/core/nssdb"
	"stapbox/core/transport"
	"stapbox/core/trust"
	"stapbox/core/wire"
)

// Asker is who asks.
type Asker struct {
	Self   string   // the executable
	Data   string   // the user's data directory, "" if there is none
	Path   string   // $PATH
	Names  []string // of the applets
	Online bool     // the network may be asked
}

// Limits on what is read and waited for.
const (
	maxText     = 4 << 20
	maxProgram  = 64 << 20 // more than the box ever has
	browseTime  = 2 * time.Second
	maxAsked    = 64
	installed   = "stapbox"
	account     = "stap-server" // servers that are services run as
	rememberedV = "stapbox servers 1"
)

// Look collects the facts.
func Look(ctx context.Context, a Asker) *Host {
	h := &Host{Now: time.Now(), Release: hostpaths.KernelRelease(), Self: a.Self, UID: os.Getuid(), Online: a.Online}
	if a.Self == hostpaths.Box() {
		h.Self = installed
	}
	for _, tool := range []string{"apt-get", "dnf"} {
		if h.Tool == "" && exists("/usr/bin/"+tool) {
			h.Tool = tool
		}
	}
	h.user()
	mounts := text("/proc/self/mountinfo")
	h.programs(a, mounts)
	h.kernelFacts(mounts)
	h.stores(a.Data)
	h.serverFacts(a)
	h.Modules, h.ModulesErr = kmod.List(transport.Dirs)
	if a.Online {
		h.ask(ctx)
	}
	return h
}

func (h *Host) user() {
	h.GIDs, _ = os.Getgroups()
	h.GIDs = append(h.GIDs, os.Getegid())
	h.Passwd, h.Group = text("/etc/passwd"), text("/etc/group")
	b, err := trust.ReadFile(hostpaths.GroupIDs(), 64<<10, trust.HostRules())
	if h.Recorded = string(b); !errors.Is(err, fs.ErrNotExist) {
		h.RecordedErr = err
	}
}

// programs looks at what is installed, and at what is found under our names.
func (h *Host) programs(a Asker, mounts string) {
	self, _ := os.ReadFile(a.Self)
	h.Staprun = program(hostpaths.Staprun(), self, mounts)
	h.Stapio = program(hostpaths.Stapio(), nil, mounts)
	seen := map[string]bool{hostpaths.Staprun(): true}
	for _, name := range a.Names {
		// The first in PATH is what a user gets; the place of installation must be
		// free for ours.
		for _, dir := range append(filepath.SplitList(a.Path), hostpaths.Bindir) {
			path := filepath.Join(dir, name)
			st, err := os.Stat(path)
			if dir == "" || err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
				continue
			}
			if !seen[path] && !IsBox(path) {
				h.Strange = append(h.Strange, Program{Path: path})
			}
			seen[path] = true
			if dir != hostpaths.Bindir {
				break
			}
		}
	}
	left, _ := filepath.Glob(filepath.Join(hostpaths.Bindir, ".stapbox-*"))
	for _, path := range left {
		if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSetuid != 0 {
			h.Stale = append(h.Stale, path)
		}
	}
}

// IsBox reports whether a regular file is this program in any version: every
// build has the name of its privilege gate in it. A link is followed no further
// than the box.
func IsBox(path string) bool {
	if target, err := os.Readlink(path); err == nil {
		return filepath.Base(target) == installed
	}
	b, err := readUpTo(path, maxProgram)
	return err == nil && isBox(b)
}

func isBox(program []byte) bool { return bytes.Contains(program, []byte("stapbox/core/setuid.Enter")) }

func program(path string, self []byte, mounts string) Program {
	p := Program{Path: path}
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		p.Missing = true
		return p
	}
	p.UID, p.GID, p.Mode, p.Names = int(st.Uid), int(st.Gid), st.Mode&0o7777, int(st.Nlink)
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		p.Ours, p.Link = IsBox(path), true
		return p
	}
	b, err := readUpTo(path, maxProgram)
	if err != nil {
		p.Unread, p.Other = true, int(st.Size) != len(self)
	} else {
		p.Ours, p.Other = isBox(b), !bytes.Equal(b, self)
	}
	var f unix.Statfs_t
	if unix.Statfs(path, &f) == nil && f.Flags&unix.ST_NOSUID != 0 {
		p.NoSuid = mountOf(mounts, path)
	}
	return p
}

// mountOf finds the mount point of a path in proc_pid_mountinfo(5), whose fifth
// field it is.
func mountOf(mounts, path string) string {
	best := "/"
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(path, strings.TrimSuffix(f[4], "/")+"/") && len(f[4]) > len(best) {
			best = f[4]
		}
	}
	return best
}

// optionsOf are the options of a mount and of its file system.
func optionsOf(mounts, point string) (options string, mounted bool) {
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == point {
			options, mounted = f[5]+","+f[len(f)-1], true
		}
	}
	return options, mounted
}

func (h *Host) kernelFacts(mounts string) {
	for line := range strings.Lines(text("/proc/self/status")) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t"); name {
		case "NoNewPrivs":
			h.NoNewPrivs = value == "1"
		case "Seccomp":
			h.Seccomp = value != "0"
		case "CapBnd":
			n, err := strconv.ParseUint(value, 16, 64)
			h.NoModules = err == nil && n&(1<<unix.CAP_SYS_MODULE) == 0
		}
	}
	h.Namespace = h.Namespace || !wholeNamespace(text("/proc/self/uid_map"))
	h.ModulesFile = exists("/proc/modules")
	h.Disabled = strings.TrimSpace(text("/proc/sys/kernel/modules_disabled")) == "1"
	for _, path := range []string{"/boot/config-" + h.Release, "/lib/modules/" + h.Release + "/config", "/proc/config.gz"} {
		b, err := readUpTo(path, maxText)
		if err == nil && strings.HasSuffix(path, ".gz") {
			b, err = gunzip(b)
		}
		if err == nil {
			h.Config, h.ConfigFrom = parseConfig(string(b)), path
			break
		}
	}
	h.Lockdown = bracketed(text("/sys/kernel/security/lockdown"))
	h.Enforced = strings.TrimSpace(text("/sys/module/module/parameters/sig_enforce")) == "Y"
	firmware := mok.Host{Sys: "/sys"}
	h.SecureBoot = firmware.SecureBoot()
	h.Enrolled, _ = firmware.Enrolled()
	h.FIPS = strings.TrimSpace(text("/proc/sys/crypto/fips_enabled")) == "1"
	h.ProcOptions, _ = optionsOf(mounts, "/proc")
	_, h.Debugfs = optionsOf(mounts, "/sys/kernel/debug")

	d := &h.Blessed
	d.Path = hostpaths.BlessedDir(h.Release)
	var st unix.Stat_t
	d.Missing = unix.Lstat(d.Path, &st) != nil
	d.IsDir, d.Mode = st.Mode&unix.S_IFMT == unix.S_IFDIR, st.Mode&0o7777
	d.UID, d.GID = int(st.Uid), int(st.Gid)
}

// wholeNamespace reads proc_pid_uid_map(5): the first namespace maps all ids to
// themselves. A kernel without user namespaces has no such file.
func wholeNamespace(uidMap string) bool {
	f := strings.Fields(uidMap)
	return len(f) == 0 || len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}

// bracketed is the choice in "none [integrity] confidentiality".
func bracketed(s string) string {
	_, rest, _ := strings.Cut(s, "[")
	choice, _, found := strings.Cut(rest, "]")
	if !found {
		return ""
	}
	return choice
}

// parseConfig reads the lines CONFIG_NAME=y of a kernel's configuration.
func parseConfig(config string) map[string]bool {
	on := map[string]bool{}
	for line := range strings.Lines(config) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if name, isOption := strings.CutPrefix(name, "CONFIG_"); isOption && (value == "y" || value == "m") {
			on[name] = true
		}
	}
	return on
}

// stores reads the trust stores as this user.
func (h *Host) stores(data string) {
	read := func(dir string, rules trust.Rules, mine bool) Store {
		s := Store{Dir: dir, Mine: mine, NSS: nssdb.Has(dir)}
		if s.Store, s.Err = trust.Read(dir, rules); errors.Is(s.Err, fs.ErrNotExist) {
			s.None = true
		}
		return s
	}
	h.Signers = read(hostpaths.SignerStore(), trust.HostRules(), false)
	if data != "" {
		h.Peers = append(h.Peers, read(hostpaths.UserPeerStore(data), trust.UserRules(h.UID, data), true))
	}
	h.Peers = append(h.Peers, read(hostpaths.HostPeerStore(), trust.HostRules(), false))
}

// serverFacts are about compile servers: one here, and those that were asked
// before.
func (h *Host) serverFacts(a Asker) {
	_, h.Headers = kbuild.FindKernel(h.Release)
	for _, pattern := range []string{"/lib/modules/*/build", "/usr/src/linux-headers-*"} {
		list, _ := filepath.Glob(pattern)
		h.OtherHeaders = h.OtherHeaders || len(list) > 0
	}
	for _, tool := range []string{"gcc", "make", "ld"} {
		if _, err := exec.LookPath(tool); err != nil {
			h.Lacking = append(h.Lacking, tool)
		}
	}
	owned := []Identity{}
	if a.Data != "" {
		owned = append(owned, Identity{Dir: hostpaths.ServerIdentity(a.Data)})
	}
	users := []string{strconv.Itoa(h.UID)}
	for line := range strings.Lines(h.Passwd) {
		f := strings.Split(line, ":")
		if len(f) < 6 || f[0] != account {
			continue
		}
		id := Identity{Dir: hostpaths.ServerIdentity(filepath.Join(f[5], ".systemtap"))}
		if f[2] != users[0] {
			id.User = account
		}
		users = append(users, f[2])
		if len(owned) == 0 || owned[0].Dir != id.Dir {
			owned = append(owned, id)
		}
	}
	for _, id := range owned {
		dir := id.Dir
		b, err := readUpTo(filepath.Join(dir, identity.CertFile), 64<<10)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if id.Err = err; err == nil {
			if id.Cert, err = x509.ParseCertificate(b); err != nil {
				id.Err = fmt.Errorf("reading %q: %w", filepath.Join(dir, identity.CertFile), err)
			}
		}
		h.Owned, h.Server = append(h.Owned, id), "a server's key is here"
	}
	if list, err := os.ReadDir(filepath.Join(hostpaths.Sysconfdir, "stap-server", "conf.d")); err == nil && len(list) > 0 {
		h.Server = "servers are configured"
	}
	if runs("stap-serverd", users) {
		h.Server = "a server is running"
	}
	h.Port = tryPort()
	h.Links = links()
	if a.Data != "" {
		if b, err := readUpTo(hostpaths.RememberedServers(a.Data), 32<<10); err == nil {
			h.Servers = parseRemembered(b)
		}
	}
}

// runs looks for a process by its name and its user (proc_pid_status(5)). A name
// can be taken by anybody; what another user runs says nothing about this host.
func runs(name string, users []string) bool {
	d, err := os.Open("/proc")
	if err != nil {
		return false
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if n[0] < '0' || n[0] > '9' {
			continue
		}
		status := text("/proc/" + n + "/status")
		_, uid, _ := strings.Cut(status, "\nUid:\t")
		uid, _, _ = strings.Cut(uid, "\t")
		if strings.HasPrefix(status, "Name:\t"+name+"\n") && slices.Contains(users, uid) {
			return true
		}
	}
	return false
}

// tryPort binds the port of multicast DNS as a responder does, beside others.
// Nothing is sent.
func tryPort() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 5353}); err != nil && err != unix.EINVAL {
		return err
	}
	return nil
}

// links counts the interfaces that multicast DNS may use.
func links() (n int) {
	list, _ := net.Interfaces()
	for _, i := range list {
		if want := net.FlagUp | net.FlagMulticast; i.Flags&want != want || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		if addrs, err := i.Addrs(); err == nil && len(addrs) > 0 {
			n++
		}
	}
	return n
}

// parseRemembered reads the servers that answered this user before, in the
// order of the file, as stap writes it: a first line with the version, then
// TIME TAB ADDRESS:PORT TAB HOST TAB and four more words. Other lines are
// passed over.
func parseRemembered(data []byte) []Server {
	head, rest, _ := strings.Cut(string(data), "\n")
	if head != rememberedV {
		return nil
	}
	var list []Server
	for line := range strings.Lines(rest) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 7 {
			continue
		}
		when, err := strconv.ParseInt(f[0], 10, 64)
		addr, aerr := netip.ParseAddrPort(f[1])
		if err != nil || aerr != nil || when < 0 || when > 1<<40 {
			continue
		}
		list = append(list, Server{addr.String(), f[2], time.Unix(when, 0)})
	}
	return list
}

// ask browses for servers and looks at the certificates that they show.
func (h *Host) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, browseTime)
	defer cancel()
	list, err := discovery.Browse(ctx, nil)
	if err != nil {
		h.AskedErr = err
		return
	}
	h.meet(ctx, list)
}

// meet connects to servers, to all at once: anybody may announce some, and one
// that is slow to answer is not to hide those behind it. The first that is trusted
// will do.
func (h *Host) meet(ctx context.Context, list []discovery.Server) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.Found = len(list)
	list = list[:min(len(list), maxAsked)]
	trusted := make(chan string, len(list))
	for _, s := range list {
		go func() {
			address := net.JoinHostPort(s.Addr.String(), strconv.Itoa(s.Port))
			config := wire.ClientTLS(s.Host, func(c *x509.Certificate) error { return h.trustsPeer(c.Raw) })
			c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
			if err != nil {
				trusted <- ""
				return
			}
			c.Close()
			trusted <- hostName(s.Host) + " at " + address
		}()
	}
	for range list {
		if h.Trusted = <-trusted; h.Trusted != "" {
			return
		}
	}
}

func (h *Host) trustsPeer(der []byte) error {
	err := errors.New("no trust store can be read")
	for _, s := range h.Peers {
		if s.Store == nil {
			continue
		}
		if err = s.Trusts(der, h.Now); err == nil {
			return nil
		}
	}
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// readUpTo reads a regular file, or one of /proc, of at most so many bytes.
func readUpTo(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%q is no regular file", path)
	}
	var b []byte
	if st.Size() <= limit {
		b, err = io.ReadAll(io.LimitReader(f, limit+1))
	}
	if err == nil && max(st.Size(), int64(len(b))) > limit {
		err = fmt.Errorf("reading %q: more than %d bytes", path, limit)
	}
	return b, err
}

// text is a file that may be missing.
func text(path string) string {
	b, err := readUpTo(path, maxText)
	if err != nil {
		return ""
	}
	return string(b)
}
