package box

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"stapbox/core/doctor"
	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
	"stapbox/core/privilege"
)

// installSpec are the options of install and uninstall.
func installSpec() getopt.Spec {
	return getopt.Spec{Defs: []getopt.Def{
		{Long: "root", Arg: getopt.RequiredArg},
		{Long: "bindir", Arg: getopt.RequiredArg},
		{Long: "no-setuid"},
		{Long: "systemd"},
		{Long: "sysvinit"},
		{Long: "dry-run"},
		{Short: 'h', Long: "help"},
	}}
}

// installer puts the box in its place, or takes it away. Every step looks first
// whether it is already done, so that installing twice changes nothing.
type installer struct {
	out      io.Writer
	root     string // "" or the directory that becomes the root of an image
	bindir   string
	noSetuid bool
	dryRun   bool
	table    []Applet
	self     string // the file to install
	changed  int

	systemd, sysvinit bool
	planned           []string // directories that are made, or would be
	undo              []func()
}

func (b *box) installer(c *cli.Context) *installer {
	return &installer{
		out: b.inv.Stdout, table: b.table,
		root: c.String("root"), bindir: c.String("bindir"), noSetuid: c.Bool("no-setuid"), dryRun: c.Bool("dry-run"),
		systemd: c.Bool("systemd"), sysvinit: c.Bool("sysvinit"),
	}
}

func (in *installer) run(do func(*installer) error) error {
	if err := in.prepare(); err != nil {
		return err
	}
	if err := do(in); err != nil {
		return err
	}
	if in.changed == 0 {
		fmt.Fprintln(in.out, "nothing to do")
	}
	return nil
}

func (in *installer) prepare() (err error) {
	if !filepath.IsAbs(in.bindir) {
		return fmt.Errorf("--bindir %q is not an absolute path", in.bindir)
	}
	if filepath.Clean(in.bindir) != filepath.Clean(hostpaths.Bindir) && !in.noSetuid {
		// stapio runs staprun -d from the place fixed at build time.
		fmt.Fprintf(in.out, "note: staprun itself stays in %s, where stapio looks for it\n", hostpaths.Bindir)
	}
	if in.root != "" {
		if in.root, err = filepath.Abs(in.root); err != nil {
			return err
		}
		if in.root == "/" {
			in.root = ""
		}
	}
	if !in.dryRun && os.Geteuid() != 0 {
		return errors.New("installing needs root: it sets owners and the setuid bit (see it all with --dry-run)")
	}
	in.self, err = os.Executable()
	return err
}

// at is the place of a path below the root.
func (in *installer) at(path string) string { return filepath.Join(in.root, path) }

// groups in the order they are created, with the ids upstream's packages use.
var groups = []struct {
	name string
	gid  int
}{{privilege.GroupUsr, 156}, {privilege.GroupSys, 157}, {privilege.GroupDev, 158}}

// directories of an installed host, with their modes. All belong to root.
func (in *installer) directories() []string {
	return slices.Compact([]string{
		in.bindir, hostpaths.Bindir, hostpaths.Pkglibdir,
		filepath.Dir(hostpaths.LoadPolicy()),
		filepath.Join(hostpaths.Sysconfdir, "systemtap"),
		filepath.Join(hostpaths.Sysconfdir, "systemtap", "ssl"),
		hostpaths.HostPeerStore(), hostpaths.SignerStore(),
	})
}

// links are the places of all links to the box but staprun's.
func (in *installer) links() []string {
	list := []string{filepath.Join(in.bindir, boxName)}
	for _, a := range in.table {
		switch a.Name {
		case "staprun":
		case "stapio":
			list = append(list, hostpaths.Stapio())
		default:
			list = append(list, filepath.Join(in.bindir, a.Name))
		}
	}
	return list
}

// inside refuses places of an image that its links put elsewhere: into the host
// that the image is made on.
func (in *installer) inside(paths ...string) error {
	if in.root == "" {
		return nil
	}
	root, err := filepath.EvalSymlinks(in.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for i := 0; i < len(paths) && err == nil; i++ {
		at := in.at(paths[i])
		real, rerr := filepath.EvalSymlinks(at)
		for errors.Is(rerr, fs.ErrNotExist) && at != in.root {
			at = filepath.Dir(at)
			real, rerr = filepath.EvalSymlinks(at)
		}
		if err = rerr; err == nil && real != root && !strings.HasPrefix(real, root+"/") {
			err = fmt.Errorf("%q is %q, outside of --root: make its link a relative one", at, real)
		}
	}
	return err
}

// places are the directories in which files are put or removed.
func (in *installer) places() []string {
	list := append(in.directories(), "/etc", "/lib/modules", serverHome(), filepath.Dir(hostpaths.ServerLog()),
		filepath.Join(hostpaths.Localstatedir, "cache/systemtap"))
	list = append(list, hostDirs()...)
	for _, f := range in.hostFiles() {
		list = append(list, filepath.Dir(f.path))
	}
	return list
}

func (in *installer) install() error {
	if err := in.inside(in.places()...); err != nil {
		return err
	}
	// Nothing is begun that a foreign file would stop half way.
	for _, path := range append(in.links(), hostpaths.Box(), hostpaths.Staprun()) {
		if path := in.at(path); exists(path) && !doctor.IsBox(path) {
			return fmt.Errorf("%q is there already and is not ours (another SystemTap?); remove it first, or choose another --bindir", path)
		}
	}
	gid, err := in.makeGroups()
	if err != nil {
		return err
	}
	for _, d := range in.directories() {
		if err := in.makeDir(d); err != nil {
			return err
		}
	}
	if err := in.blessedDirs(); err != nil {
		return err
	}
	if err := in.copySelf(hostpaths.Box(), 0o755, 0); err != nil {
		return err
	}
	for _, path := range in.links() {
		if err := in.link(path); err != nil {
			return err
		}
	}
	if in.noSetuid {
		if err := in.disarm(hostpaths.Staprun()); err != nil {
			return err
		}
		err = in.link(hostpaths.Staprun())
	} else {
		err = in.copySelf(hostpaths.Staprun(), 0o4750, gid)
	}
	if err != nil {
		return err
	}
	return in.installHost()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

const boxName = "stapbox"

// makeGroups adds the missing groups and gives the id of stapusr. On a running
// host groupadd(8) does it, which knows where groups come from; in an image the
// group file is written.
func (in *installer) makeGroups() (gid int, err error) {
	path := in.at("/etc/group")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && in.root != "" {
		text, err = nil, nil
	}
	if err != nil {
		return 0, err
	}
	ids := privilege.ReadGroups(strings.NewReader(string(text)), nil)
	taken := map[string]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Split(line, ":"); len(f) > 2 {
			taken[f[2]] = true
		}
	}
	for _, g := range groups {
		if _, ok := ids[g.name]; ok {
			continue
		}
		if in.root == "" {
			if id, ok := getent(g.name); ok { // from LDAP or SSSD
				ids[g.name] = uint32(id)
				if err := in.recordGroup(g.name, id); err != nil {
					return 0, err
				}
				continue
			}
		}
		id := g.gid
		for taken[strconv.Itoa(id)] {
			id++
		}
		taken[strconv.Itoa(id)] = true
		ids[g.name] = uint32(id)
		err := in.step("create group "+g.name, func() error {
			if in.root == "" {
				if tool, err := exec.LookPath("groupadd"); err == nil {
					return runProgram(tool, "-r", "-g", strconv.Itoa(id), g.name)
				}
			}
			text = append(text, fmt.Sprintf("%s:x:%d:\n", g.name, id)...)
			return replaceFile(path, text, 0o644)
		})
		if err != nil {
			return 0, err
		}
	}
	return int(ids[privilege.GroupUsr]), nil
}

// getent asks the host's name services for a group's id.
func getent(name string) (int, bool) {
	out, err := exec.Command("getent", "group", name).Output()
	if err != nil {
		return 0, false
	}
	f := strings.Split(string(out), ":")
	if len(f) < 3 {
		return 0, false
	}
	id, err := strconv.Atoi(f[2])
	return id, err == nil
}

// recordGroup writes down an id that /etc/group does not have (decision L10).
func (in *installer) recordGroup(name string, id int) error {
	path := in.at(hostpaths.GroupIDs())
	line := fmt.Sprintf("%s=%d", name, id)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var kept []string
	for _, l := range strings.Split(strings.TrimSpace(string(old)), "\n") {
		if l == line {
			return nil
		}
		if l != "" && !strings.HasPrefix(l, name+"=") {
			kept = append(kept, l)
		}
	}
	return in.step("record "+line+" in "+path, func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return replaceFile(path, []byte(strings.Join(append(kept, line), "\n")+"\n"), 0o644)
	})
}

func (in *installer) makeDir(path string) error {
	path = in.at(path)
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return in.step("create directory "+path, func() error {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			return os.Chmod(path, 0o755)
		})
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%q is not a directory", path)
	}
	return in.checkPlace(path, st)
}

// checkPlace refuses to install into a directory that somebody else may change.
func (in *installer) checkPlace(path string, st fs.FileInfo) error {
	sys, _ := st.Sys().(*syscall.Stat_t)
	if st.Mode().Perm()&0o022 != 0 && st.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("directory %q is writable by others than its owner (mode %v)", path, st.Mode().Perm())
	}
	if sys != nil && sys.Uid != 0 && in.root == "" {
		return fmt.Errorf("directory %q does not belong to root", path)
	}
	return nil
}

// blessedDirs makes the directory of approved modules for each installed kernel.
func (in *installer) blessedDirs() error {
	releases, err := os.ReadDir(in.at("/lib/modules"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, r := range releases {
		dir := in.at(hostpaths.BlessedDir(r.Name()))
		if _, err := os.Stat(dir); err == nil || !r.IsDir() {
			continue
		}
		err := in.step("create directory "+dir, func() error { return os.Mkdir(dir, 0o755) })
		if err != nil {
			return err
		}
	}
	return nil
}

// copySelf puts a copy of this executable in place by rename. An older setuid
// copy loses its mode bits first: a hard link to it must not stay powerful.
func (in *installer) copySelf(path string, mode uint32, gid int) error {
	target := in.at(path)
	source, err := os.ReadFile(in.self)
	if err != nil {
		return err
	}
	if in.same(target, source, mode, gid) {
		return nil
	}
	return in.step(fmt.Sprintf("install %s, mode %04o", target, mode), func() error {
		if err := disarmFile(target); err != nil {
			return err
		}
		return placeFile(target, source, mode, gid)
	})
}

// placeFile puts a file of root's in place, by rename. The mode may have the
// setuid bit.
func placeFile(path string, text []byte, mode uint32, gid int) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".stapbox-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err
	}
	// The owner first: changing it clears the setuid bit.
	if err := f.Chown(0, gid); err != nil {
		return err
	}
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (in *installer) same(target string, source []byte, mode uint32, gid int) bool {
	var st unix.Stat_t
	if unix.Lstat(target, &st) != nil || st.Mode != unix.S_IFREG|mode || st.Uid != 0 || int(st.Gid) != gid {
		return false
	}
	old, err := os.ReadFile(target)
	return err == nil && string(old) == string(source)
}

func (in *installer) disarm(path string) error {
	target := in.at(path)
	st, err := os.Lstat(target)
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	return in.step("remove "+target, func() error {
		if err := disarmFile(target); err != nil {
			return err
		}
		return os.Remove(target)
	})
}

// disarmFile takes the setuid and execute bits off a file that is to be
// replaced (decision L9).
func disarmFile(path string) error {
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() || st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) == 0 {
		return nil
	}
	return os.Chmod(path, 0o600)
}

// link makes a symbolic link to the box, relative so that an image may be moved.
func (in *installer) link(path string) error {
	target, err := filepath.Rel(filepath.Dir(path), hostpaths.Box())
	if err != nil {
		return err
	}
	path = in.at(path)
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	return in.step("link "+path+" -> "+target, func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.Symlink(target, path)
	})
}

// uninstall removes the programs, and the files of the host that nobody has
// changed. Groups and trust stores stay: they hold decisions of people.
func (in *installer) uninstall() error {
	if err := in.inside(in.places()...); err != nil {
		return err
	}
	if err := in.uninstallHost(); err != nil {
		return err
	}
	for _, n := range append(in.links(), hostpaths.Staprun(), hostpaths.Box()) {
		path := in.at(n)
		if !exists(path) || !doctor.IsBox(path) {
			continue
		}
		err := in.step("remove "+path, func() error {
			if err := disarmFile(path); err != nil {
				return err
			}
			return os.Remove(path)
		})
		if err != nil {
			return err
		}
	}
	dir := in.at(hostpaths.Pkglibdir)
	if left, err := os.ReadDir(dir); err == nil && len(left) == 0 {
		return in.step("remove "+dir, func() error { return os.Remove(dir) })
	}
	return nil
}

// step does one thing and says so; with --dry-run it only says so.
func (in *installer) step(what string, do func() error) error {
	in.changed++
	if in.dryRun {
		fmt.Fprintln(in.out, "would", what)
		return nil
	}
	fmt.Fprintln(in.out, what)
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func replaceFile(path string, text []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return placeFile(path, text, uint32(mode), 0)
}

func runProgram(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
