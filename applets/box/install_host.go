package box

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"stapbox/core/hostpaths"
)

// With --systemd or --sysvinit an installation also has what the host's other
// programs need to know: service manager, log rotation, installation of kernels,
// shell. These files are in the executable, below host/ as in the host, with
// @NAME@ for places.
//
// What was written is recorded in PKGLIBDIR/host-files, lines
//
//	SHA256  PATH       a file, as it was written
//	directory  PATH    one that was not there before
//
// A file that has that digest is ours: it is replaced by another version and
// removed at the end. One that somebody has changed, or put there, is left as it
// is, and that is said. All is done or nothing.

//go:embed host
var hostFS embed.FS

// hostFile is a file of the host; from is its name below host/, if that is
// another one.
type hostFile struct {
	path, from string
	mode       fs.FileMode
	systemd    bool // with --systemd
	sysvinit   bool // with --sysvinit
}

// hostFiles are all of them, for the places of this installation.
func (in *installer) hostFiles() []hostFile {
	const units = "/usr/lib/systemd/system/"
	const hook = "/usr/lib/kernel/install.d/60-stapbox.install"
	const completions = "/usr/share/bash-completion/completions/"
	etc := func(name string) string { return filepath.Join(hostpaths.Sysconfdir, name) }
	// As the distribution has it.
	settings := "default/stap-server"
	if exists(in.at(etc("sysconfig"))) && !exists(in.at(etc("default"))) {
		settings = "sysconfig/stap-server"
	}
	list := []hostFile{
		{path: units + "stap-server@.service", mode: 0o644, systemd: true},
		{path: units + "stap-server@.socket", mode: 0o644, systemd: true},
		{path: units + "stap-server.service", mode: 0o644, systemd: true},
		{path: units + "systemtap.service", mode: 0o644, systemd: true},
		{path: "/usr/lib/sysusers.d/stapbox.conf", mode: 0o644, systemd: true},
		{path: "/usr/lib/tmpfiles.d/stapbox.conf", mode: 0o644, systemd: true},
		{path: etc("init.d/stap-server"), from: "etc/init.d/stap-server", mode: 0o755, sysvinit: true},
		{path: etc("init.d/systemtap"), from: "etc/init.d/systemtap", mode: 0o755, sysvinit: true},
	}
	both := []hostFile{
		{path: etc(settings), from: "etc/default/stap-server", mode: 0o644},
		{path: filepath.Join(hostpaths.ServerConfigs(), "default.conf"), from: "etc/stap-server/conf.d/default.conf", mode: 0o644},
		{path: hostpaths.InitConfig(), from: "etc/systemtap/config", mode: 0o644},
		{path: etc("logrotate.d/stapbox"), from: "etc/logrotate.d/stapbox", mode: 0o644},
		{path: "/usr/lib/firewalld/services/stap-server.xml", mode: 0o644},
		{path: hook, mode: 0o755},
		{path: etc("kernel/postinst.d/zz-stapbox"), from: hook[1:], mode: 0o755},
		{path: etc("kernel/header_postinst.d/zz-stapbox"), from: hook[1:], mode: 0o755},
		{path: etc("kernel/postrm.d/zz-stapbox"), from: hook[1:], mode: 0o755},
	}
	for _, name := range []string{boxName, "stap", "staprun", "stap-server", "systemtap"} {
		both = append(both, hostFile{path: completions + name, from: completions[1:] + boxName, mode: 0o644})
	}
	for _, f := range both {
		f.systemd, f.sysvinit = true, true
		list = append(list, f)
	}
	return list
}

// hostText is a file with the places of this installation.
func (in *installer) hostText(f hostFile) ([]byte, error) {
	from := f.from
	if from == "" {
		from = f.path[1:]
	}
	text, err := hostFS.ReadFile("host/" + from)
	if err != nil {
		return nil, err
	}
	return []byte(strings.NewReplacer("@BINDIR@", in.bindir, "@SYSCONFDIR@", hostpaths.Sysconfdir,
		"@CONFD@", hostpaths.ServerConfigs(), "@STATE@", serverHome()).Replace(string(text))), nil
}

// serverHome is the home of the servers' user.
func serverHome() string { return filepath.Join(hostpaths.Localstatedir, "lib", hostpaths.ServerUser) }

// hostRecord is what the record has.
type hostRecord struct {
	sums map[string]string // by path
	dirs []string
}

func (in *installer) recordPath() string {
	return in.at(filepath.Join(hostpaths.Pkglibdir, "host-files"))
}

func (in *installer) readRecord() (r hostRecord, err error) {
	data, err := os.ReadFile(in.recordPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if r, err = parseRecord(data); err != nil {
		return r, fmt.Errorf("reading %q: %w", in.recordPath(), err)
	}
	return r, nil
}

// parseRecord reads a record. It names what may be removed, so all of it has to
// be as it was written.
func parseRecord(data []byte) (hostRecord, error) {
	r := hostRecord{sums: map[string]string{}}
	for line := range strings.Lines(string(data)) {
		what, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			return hostRecord{}, fmt.Errorf("line %q has no path", line)
		}
		switch {
		case what == "directory":
			r.dirs = append(r.dirs, path)
		case len(what) == 2*sha256.Size && strings.Trim(what, "0123456789abcdef") == "":
			r.sums[path] = what
		default:
			return hostRecord{}, fmt.Errorf("line %q has no digest", line)
		}
	}
	return r, nil
}

func (r hostRecord) text() []byte {
	var b bytes.Buffer
	var paths []string
	for p := range r.sums {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		fmt.Fprintf(&b, "%s  %s\n", r.sums[p], p)
	}
	for _, d := range r.dirs {
		fmt.Fprintf(&b, "directory  %s\n", d)
	}
	return b.Bytes()
}

func sum(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// state tells what is in the place of a file.
type state int

const (
	absent  state = iota
	ours          // as the record has it
	foreign       // changed, or not ours
)

// look compares a file with the record and with what it shall be.
func (in *installer) look(path string, r hostRecord, text []byte) (state, []byte, error) {
	at := in.at(path)
	st, err := os.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent, nil, nil
	case err != nil:
		return foreign, nil, err
	case !st.Mode().IsRegular():
		return foreign, nil, nil
	}
	old, err := os.ReadFile(at)
	if err != nil {
		return foreign, nil, err
	}
	if s := sum(old); s == r.sums[path] || text != nil && bytes.Equal(old, text) {
		return ours, old, nil
	}
	return foreign, nil, nil
}

// hostDirs are directories of the host that belong to root and need not be
// there because of a file in them.
func hostDirs() []string {
	return []string{
		filepath.Join(hostpaths.Sysconfdir, "systemtap", "conf.d"),
		filepath.Join(hostpaths.Sysconfdir, "systemtap", "script.d"),
	}
}

// installHost writes the files of the host. If anything fails, what was done is
// undone.
func (in *installer) installHost() (err error) {
	if !in.systemd && !in.sysvinit {
		return nil
	}
	before := in.changed
	defer func() {
		if err != nil {
			for _, u := range slices.Backward(in.undo) {
				u()
			}
		}
	}()
	r, err := in.readRecord()
	if err != nil {
		return err
	}
	recorded := r.text()
	wanted := hostDirs()
	type writing struct {
		hostFile
		text, old []byte
	}
	var writes []writing
	for _, f := range in.hostFiles() {
		if !(f.systemd && in.systemd || f.sysvinit && in.sysvinit) {
			continue
		}
		text, err := in.hostText(f)
		if err != nil {
			return err
		}
		wanted = append(wanted, filepath.Dir(f.path))
		st, old, err := in.look(f.path, r, text)
		switch {
		case err != nil:
			return err
		case st == foreign:
			fmt.Fprintf(in.out, "note: %s was changed or is not ours, and stays as it is\n", in.at(f.path))
			continue
		}
		r.sums[f.path] = sum(text)
		if st == absent || !bytes.Equal(old, text) {
			writes = append(writes, writing{f, text, old})
		}
	}
	for _, d := range wanted {
		made, err := in.makePath(d)
		if err != nil {
			return err
		}
		r.dirs = append(r.dirs, made...)
	}
	for _, w := range writes {
		at := in.at(w.path)
		err := in.step("write "+at, func() error { return placeFile(at, w.text, uint32(w.mode), 0) })
		if err != nil {
			return err
		}
		in.undo = append(in.undo, func() {
			if w.old == nil {
				os.Remove(at)
			} else if err := placeFile(at, w.old, uint32(w.mode), 0); err != nil {
				fmt.Fprintf(in.out, "note: %s is not what it was: %v\n", at, err)
			}
		})
	}
	if text := r.text(); !bytes.Equal(text, recorded) {
		at := in.recordPath()
		if err := in.step("record that in "+at, func() error { return placeFile(at, text, 0o644, 0) }); err != nil {
			return err
		}
		in.undo = append(in.undo, func() {
			if len(recorded) == 0 {
				os.Remove(at)
			} else {
				placeFile(at, recorded, 0o644, 0)
			}
		})
	}
	if err := in.makeServerUser(); err != nil {
		return err
	}
	if in.changed > before {
		return in.reloadManager()
	}
	return nil
}

// makePath makes a directory of root's and those above it, and gives those it
// has made.
func (in *installer) makePath(dir string) (made []string, err error) {
	at := in.at(dir)
	st, err := os.Stat(at)
	switch {
	case slices.Contains(in.planned, at), dir == "/" && in.dryRun:
		return nil, nil
	case errors.Is(err, fs.ErrNotExist) && dir != "/":
		if made, err = in.makePath(filepath.Dir(dir)); err != nil {
			return nil, err
		}
		in.planned = append(in.planned, at)
		err = in.step("create directory "+at, func() error {
			err := os.Mkdir(at, 0o755)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%q is a link to nothing", at)
			}
			if err != nil {
				return err
			}
			in.undo = append(in.undo, func() { os.Remove(at) })
			made = append(made, dir)
			return os.Chmod(at, 0o755)
		})
		return made, err
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, fmt.Errorf("%q is not a directory", at)
	}
	return nil, in.checkPlace(at, st)
}

// reloadManager has a running systemd read the units again.
func (in *installer) reloadManager() error {
	if in.root != "" || !exists("/run/systemd/system") {
		return nil
	}
	return in.step("have systemd read its units", func() error { return runProgram("systemctl", "daemon-reload") })
}

// uninstallHost removes what the record has and nobody has changed. The
// servers' user and what belongs to it stay.
func (in *installer) uninstallHost() error {
	if !exists(in.recordPath()) {
		return nil
	}
	r, err := in.readRecord()
	if err != nil {
		return err
	}
	var paths []string
	for p := range r.sums {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range slices.Concat(paths, r.dirs) {
		if err := in.inside(filepath.Dir(p)); err != nil {
			return err
		}
	}
	for _, p := range paths {
		st, _, err := in.look(p, r, nil)
		switch {
		case err != nil:
			return err
		case st == foreign:
			fmt.Fprintf(in.out, "note: %s was changed, and stays\n", in.at(p))
		case st == ours:
			if err := in.step("remove "+in.at(p), func() error { return os.Remove(in.at(p)) }); err != nil {
				return err
			}
		}
	}
	// Those below others first.
	slices.Sort(r.dirs)
	for _, d := range slices.Backward(r.dirs) {
		if left, err := os.ReadDir(in.at(d)); err != nil || len(left) > 0 && !in.dryRun {
			continue
		}
		if err := in.step("remove "+in.at(d)+" if nothing is left in it", func() error { return os.Remove(in.at(d)) }); err != nil {
			return err
		}
	}
	if err := in.step("remove "+in.recordPath(), func() error { return os.Remove(in.recordPath()) }); err != nil {
		return err
	}
	return in.reloadManager()
}

// serverID is the id, of user and group, that upstream's packages use.
const serverID = 155

// makeServerUser adds the missing user and group of servers, and the directories
// that belong to them. On a running host useradd(8) does it, as groupadd(8) does
// for groups; in an image the files are written.
func (in *installer) makeServerUser() error {
	uid, gid, ok, err := in.findUser(hostpaths.ServerUser)
	if err != nil {
		return err
	}
	type owned struct {
		path   string
		mode   fs.FileMode
		server bool
	}
	var dirs []owned
	for _, d := range []owned{
		{serverHome(), 0o750, true},
		{filepath.Dir(hostpaths.ServerLog()), 0o755, true},
		{filepath.Join(hostpaths.Localstatedir, "cache/systemtap"), 0o755, false},
	} {
		if exists(in.at(d.path)) {
			continue
		}
		// A user is added when nothing is in the way any more.
		if _, err := in.makePath(filepath.Dir(d.path)); err != nil {
			return err
		}
		dirs = append(dirs, d)
	}
	if !ok {
		if uid, gid, err = in.addUser(); err != nil {
			return err
		}
	}
	for _, d := range dirs {
		at := in.at(d.path)
		err := in.step(fmt.Sprintf("create directory %s, mode %04o", at, d.mode), func() error {
			if err := os.Mkdir(at, d.mode); err != nil {
				return err
			}
			in.undo = append(in.undo, func() { os.Remove(at) })
			if err := os.Chmod(at, d.mode); err != nil || !d.server {
				return err
			}
			// Nobody else can be in its place: the directory above is root's.
			return os.Lchown(at, uid, gid)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lines gives the lines of /etc/passwd or /etc/group, in fields.
func (in *installer) lines(path string) (text []byte, fields [][]string, err error) {
	text, err = os.ReadFile(in.at(path))
	if errors.Is(err, fs.ErrNotExist) && in.root != "" {
		return nil, nil, nil
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(f) > 3 {
			fields = append(fields, f)
		}
	}
	return text, fields, err
}

// findUser looks for a user, in /etc/passwd and for a running host at its name
// services.
func (in *installer) findUser(name string) (uid, gid int, ok bool, err error) {
	_, users, err := in.lines("/etc/passwd")
	if err != nil {
		return 0, 0, false, err
	}
	if in.root == "" {
		if out, err := exec.Command("getent", "passwd", name).Output(); err == nil {
			users = append(users, strings.Split(strings.TrimSpace(string(out)), ":"))
		}
	}
	for _, f := range users {
		if f[0] != name || len(f) < 4 {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err := errors.Join(err1, err2); err != nil {
			return 0, 0, false, fmt.Errorf("user %q: %w", name, err)
		}
		if uid == 0 {
			return 0, 0, false, fmt.Errorf("user %q is root, as which no server runs", name)
		}
		return uid, gid, true, nil
	}
	return 0, 0, false, nil
}

// addUser adds user and group of servers.
func (in *installer) addUser() (uid, gid int, err error) {
	const name, comment, shell = hostpaths.ServerUser, "SystemTap compile server", "/usr/sbin/nologin"
	passwd, users, err := in.lines("/etc/passwd")
	if err != nil {
		return 0, 0, err
	}
	group, groups, err := in.lines("/etc/group")
	if err != nil {
		return 0, 0, err
	}
	taken := map[string]bool{}
	id, known := serverID, false
	for _, f := range slices.Concat(users, groups) {
		taken[f[2]] = true
	}
	gid = -1
	for _, f := range groups {
		if f[0] == name {
			if gid, err = strconv.Atoi(f[2]); err != nil {
				return 0, 0, fmt.Errorf("group %q: %w", name, err)
			}
			known = true
		}
	}
	if in.root == "" && !known {
		gid, known = getent(name)
	}
	for taken[strconv.Itoa(id)] {
		id++
	}
	if !known {
		gid = id
		err = in.step("create group "+name, func() error {
			if tool, err := exec.LookPath("groupadd"); err == nil && in.root == "" {
				return runProgram(tool, "-r", "-g", strconv.Itoa(gid), name)
			}
			return replaceFile(in.at("/etc/group"), fmt.Appendf(closed(group), "%s:x:%d:\n", name, gid), 0o644)
		})
		if err != nil {
			return 0, 0, err
		}
	}
	err = in.step("create user "+name, func() error {
		if tool, err := exec.LookPath("useradd"); err == nil && in.root == "" {
			return runProgram(tool, "-r", "-u", strconv.Itoa(id), "-g", strconv.Itoa(gid), "-d", serverHome(), "-M", "-s", shell, "-c", comment, name)
		}
		return replaceFile(in.at("/etc/passwd"), fmt.Appendf(closed(passwd), "%s:x:%d:%d:%s:%s:%s\n", name, id, gid, comment, serverHome(), shell), 0o644)
	})
	return id, gid, err
}

// closed is a text whose last line ends.
func closed(text []byte) []byte {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return append(text, '\n')
	}
	return text
}
