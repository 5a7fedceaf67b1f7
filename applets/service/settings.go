package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/service"
	"stapbox/core/trust"
)

// places are where things are.
type places struct {
	settingsFiles []string
	confd         string
	dir           service.Dir // of running servers
	host          service.Dir // the host's, when dir is a user's own
	logFile       string
	modules       string
	devLog        string
	redHat        bool   // as init scripts of Red Hat look
	executable    string // this program

	// Where trust in the host's servers goes.
	peers, signers string
	storeRules     trust.Rules
}

func systemPlaces() places {
	_, err := os.Stat(filepath.Join(hostpaths.Sysconfdir, "rc.d/init.d/functions"))
	return places{
		settingsFiles: hostpaths.ServerSettings(), confd: hostpaths.ServerConfigs(),
		dir: service.Dir{Path: hostpaths.ServerStatus(), Proc: "/proc"}, logFile: hostpaths.ServerLog(),
		modules: hostpaths.Modules, devLog: "/dev/log", redHat: err == nil, executable: "/proc/self/exe",
		peers: hostpaths.HostPeerStore(), signers: hostpaths.SignerStore(), storeRules: trust.HostRules(),
	}
}

// settings reads the files of settings and finds out where things are: for an
// ordinary user, where the host's places are not his to write, below
// ~/.systemtap/stap-server, and what runs in XDG_RUNTIME_DIR.
func (m *manager) settings() error {
	files := m.settingsFiles
	own := m.euid != 0 && unix.Access(m.dir.Path, unix.W_OK) != nil
	if own {
		home, err := m.home("")
		if err != nil && m.inv.Getenv("SYSTEMTAP_DIR") == "" {
			return fmt.Errorf("There is no place for servers of your own: %w", err)
		}
		data := hostpaths.UserDir(m.inv.Getenv("SYSTEMTAP_DIR"), home)
		if !filepath.IsAbs(data) {
			data = filepath.Join(m.inv.Dir, data)
		}
		base := hostpaths.UserServers(data)
		files = append(slices.Clone(files), filepath.Join(base, "config"))
		m.host = m.dir
		m.confd, m.logFile = filepath.Join(base, "conf.d"), filepath.Join(base, "log")
		m.dir.Path = filepath.Join(base, "run")
		if d := m.inv.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
			m.dir.Path = filepath.Join(d, "stap-server")
		}
	}
	for _, f := range files {
		if err := m.global.Read(f, m.home, false); err != nil {
			return err
		}
	}
	if c := m.opts.config; c != "" {
		if !filepath.IsAbs(c) {
			c = filepath.Join(m.inv.Dir, c)
		}
		if err := m.global.Read(c, m.home, true); err != nil {
			return err
		}
	}
	for _, p := range []struct {
		name, value string
		field       *string
	}{{"CONFIG_PATH", m.global.ConfigPath, &m.confd}, {"STAT_PATH", m.global.StatPath, &m.dir.Path}, {"LOG_FILE", m.global.LogFile, &m.logFile}} {
		switch {
		case p.value == "":
		case !filepath.IsAbs(p.value):
			return fmt.Errorf("%s=%s is not an absolute path", p.name, p.value)
		default:
			*p.field = filepath.Clean(p.value)
		}
	}
	m.defaults.Log = m.logFile
	switch {
	case m.global.User != "":
		m.defaults.User = m.global.User
	case m.inv.Getenv("STAP_USER") != "":
		m.defaults.User = m.inv.Getenv("STAP_USER")
	default:
		m.defaults.User = m.self().name
	}
	return nil
}

// home is service.Home.
func (m *manager) home(name string) (string, error) {
	if name != "" {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.HomeDir, nil
	}
	if h := m.inv.Getenv("HOME"); h != "" {
		return h, nil
	}
	u, err := user.LookupId(strconv.Itoa(m.euid))
	if err != nil {
		return "", errors.New("HOME is not set, and there is no entry for this user")
	}
	return u.HomeDir, nil
}

// account is a user that runs servers.
type account struct {
	name     string
	uid, gid int
	groups   []uint32
	home     string
}

// self is the account of this process; a user without an entry has his number
// for a name.
func (m *manager) self() account {
	a := account{name: strconv.Itoa(m.euid), uid: m.euid, gid: os.Getegid()}
	if u, err := user.LookupId(a.name); err == nil {
		a.name = u.Username
	}
	a.home, _ = m.home("")
	return a
}

// find finds the account for servers of a user, and refuses whom this process
// cannot become or who must not run servers.
func (m *manager) find(name string) (account, error) {
	if self := m.self(); name == self.name || name == strconv.Itoa(self.uid) {
		return self, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		if _, numeric := service.ParsePID(name); numeric || name == "0" {
			u, err = user.LookupId(name)
		}
		if err != nil {
			return account{}, errors.New("there is no such user")
		}
	}
	a := account{name: u.Username, home: u.HomeDir}
	if a.uid, err = strconv.Atoi(u.Uid); err == nil {
		a.gid, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		return account{}, fmt.Errorf("its entry has the ids %s and %s", u.Uid, u.Gid)
	}
	if a.uid == 0 || a.uid == m.euid {
		return a, nil
	}
	if m.euid != 0 {
		return account{}, errors.New("only root can start servers of other users")
	}
	ids, err := u.GroupIds()
	if err != nil {
		return account{}, err
	}
	for _, id := range ids {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return account{}, err
		}
		a.groups = append(a.groups, uint32(n))
	}
	g, err := user.LookupGroup(hostpaths.ServerUser)
	switch {
	case err != nil:
		return account{}, fmt.Errorf("it must be a member of group %s, which does not exist", hostpaths.ServerUser)
	case !slices.Contains(ids, g.Gid) && u.Gid != g.Gid:
		return account{}, fmt.Errorf("it is not a member of group %s", hostpaths.ServerUser)
	}
	return a, nil
}

// makeStatus makes the directory of running servers. What root makes is the
// servers' user's.
func (m *manager) makeStatus() error { return m.makeDir(m.dir.Path, m.defaults.User) }

func (m *manager) makeDir(path, owner string) error {
	d, err := m.openDir(path, false)
	if err == nil {
		return d.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent, err := m.openDir(filepath.Dir(path), true)
	if err != nil {
		return err
	}
	defer parent.Close()
	name := filepath.Base(path)
	if err := unix.Mkdirat(int(parent.Fd()), name, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d = os.NewFile(uintptr(fd), path)
	defer d.Close()
	m.give(d, owner)
	return d.Chmod(0o755)
}

// openDir opens a directory, and makes what is missing of it. Who owns a
// directory puts there what he likes: of links on the way only those of root and
// of the caller are followed.
func (m *manager) openDir(path string, missing bool) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Open("/", flags, 0)
	if err != nil {
		return nil, err
	}
	isDir := true
	for parts, links := strings.Split(path, "/"), 0; len(parts) > 0; {
		name := parts[0]
		parts = parts[1:]
		if name == "" {
			continue
		}
		next, err := unix.Openat(fd, name, flags, 0)
		if err == unix.ENOENT && missing {
			if err = unix.Mkdirat(fd, name, 0o755); err == nil || err == unix.EEXIST {
				next, err = unix.Openat(fd, name, flags, 0)
			}
		}
		var st unix.Stat_t
		if err == nil {
			if err = unix.Fstat(next, &st); err != nil {
				unix.Close(next)
			}
		}
		if err != nil {
			unix.Close(fd)
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			unix.Close(fd)
			fd = next
			continue
		}
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(next, "", target)
		unix.Close(next)
		links++
		switch {
		case err == nil && st.Uid != 0 && int(st.Uid) != m.euid:
			err = fmt.Errorf("%q is a link of user id %d", name, st.Uid)
		case err == nil && links > 40:
			err = unix.ELOOP
		case err == nil && n > 0 && target[0] == '/':
			unix.Close(fd)
			fd, err = unix.Open("/", flags, 0)
		}
		if err != nil {
			unix.Close(fd)
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		parts = append(strings.Split(string(target[:n]), "/"), parts...)
		isDir = true
	}
	if !isDir {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// give gives what root made to the servers' user. Whether there is such a user
// is looked at when a server is started.
func (m *manager) give(f *os.File, owner string) {
	if m.euid != 0 {
		return
	}
	if a, err := m.find(owner); err == nil && a.uid != 0 {
		f.Chown(a.uid, a.gid)
	}
}

// openLog opens a log, made for its server's user if it is not there. It may be
// in a directory of that user, see openDir; a link of its name is not followed.
func (m *manager) openLog(path, owner string) (*os.File, error) {
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	d, err := m.openDir(filepath.Dir(path), false)
	if errors.Is(err, fs.ErrNotExist) {
		if err = m.makeDir(filepath.Dir(path), owner); err == nil {
			d, err = m.openDir(filepath.Dir(path), false)
		}
		if err != nil {
			return nil, &logDirError{filepath.Dir(path), err}
		}
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), filepath.Base(path), flags, 0)
	made := err == unix.ENOENT
	if made {
		fd, err = unix.Openat(int(d.Fd()), filepath.Base(path), flags|unix.O_CREAT|unix.O_EXCL, logMode)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if made {
		m.give(f, owner)
		err = f.Chmod(logMode)
	} else if err = plain(f); err == nil {
		err = closeLog(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// logMode is that of a log: it has the command lines of all clients.
const logMode = 0o640

// closeLog takes the log of before from everybody's eyes.
func closeLog(f *os.File) error {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o007 == 0 {
		return err
	}
	return f.Chmod(st.Mode().Perm() &^ 0o007)
}

// plain refuses what is no file, or has another name elsewhere.
func plain(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == 0 && (!st.Mode().IsRegular() || ok && sys.Nlink != 1) {
		return fmt.Errorf("log %q is not a regular file of one name", f.Name())
	}
	return nil
}

// logDirError is a directory of a log that cannot be made.
type logDirError struct {
	dir string
	err error
}

func (e *logDirError) Error() string {
	return fmt.Sprintf("Failed to make log directory (%s): %v", e.dir, e.err)
}

func (e *logDirError) Unwrap() error { return e.err }
