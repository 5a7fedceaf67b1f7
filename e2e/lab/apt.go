package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The lab keeps package lists of its own below its cache directory:
//
//	apt/lists/    what apt-get update fetched
//	apt/cache/    apt's index of them, and packages on their way to be installed
//	apt/updated   its time is that of the last update that worked
//	apt/lock      held (flock(2)) by the run that fetches
//
// The machine's lists may be older than what the archive still has, or missing,
// and only root may refresh them. The sources are the machine's.

// listsAge is how old lists may be before they are refreshed. An archive removes
// a superseded package after some days.
const listsAge = 24 * time.Hour

// fetches is how often the lab asks an archive for a package: the first time with
// the lists that are there, then with fresh ones.
const fetches = 3

// apt is a command of apt-get or apt-cache with the lab's own lists.
func (l *Lab) apt(dir, name string, args ...string) *exec.Cmd {
	state := filepath.Join(l.Dir, "apt")
	options := []string{
		"Dir::State::lists=" + filepath.Join(state, "lists"), "Dir::Cache=" + filepath.Join(state, "cache"),
		"Acquire::Languages=none", "APT::Sandbox::User=root", "APT::Update::Error-Mode=any",
	}
	if l.Sources != "" {
		options = append(options, "Dir::Etc::sourcelist="+l.Sources, "Dir::Etc::sourceparts=-")
	}
	var argv []string
	for _, o := range options {
		argv = append(argv, "-o", o)
	}
	cmd := exec.Command(name, append(argv, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	return cmd
}

// lock keeps other runs from fetching at the same time.
func (l *Lab) lock() (unlock func(), err error) {
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(l.Dir, "apt", d), 0o755); err != nil {
			return nil, err
		}
	}
	return l.lockFile(filepath.Join(l.Dir, "apt", "lock"))
}

// lockFile waits until no other run has the lock.
func (l *Lab) lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		l.say("waiting for another run that fetches packages")
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, os.NewSyscallError("flock", err)
		}
	}
	return func() { f.Close() }, nil
}

// refresh runs apt-get update if the lists are older than listsAge, or in any
// case.
func (l *Lab) refresh(always bool) error {
	stamp := filepath.Join(l.Dir, "apt", "updated")
	st, err := os.Stat(stamp)
	if !always && err == nil && time.Since(st.ModTime()).Abs() < listsAge {
		return nil
	}
	l.say("fetching package lists")
	// What an interrupted update left may be damaged.
	if err := os.RemoveAll(filepath.Join(l.Dir, "apt", "lists", "partial")); err != nil {
		return err
	}
	if err := shown(l.apt("", "apt-get", "update", "-q")); err != nil {
		return err
	}
	return os.WriteFile(stamp, nil, 0o644)
}

// withLists calls f until it works: with the lists as they are, if they are
// young enough, then with fresh ones.
func (l *Lab) withLists(f func() error) error {
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for i := range fetches {
		if i > 0 {
			l.say("%v", err)
			l.say("trying again with fresh package lists")
		}
		// Lists that cannot be refreshed may still do.
		old := l.refresh(i > 0)
		if err = f(); err == nil {
			return nil
		}
		err = errors.Join(err, old)
	}
	return err
}

// install installs packages on this machine.
func (l *Lab) install(packages ...string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("programs are missing that only root can install: sudo apt-get install %s", strings.Join(packages, " "))
	}
	return l.withLists(func() error {
		argv := append([]string{"install", "-y", "-q", "--no-install-recommends"}, packages...)
		files, err := l.files(l.apt("", "apt-get", append(argv, "--print-uris")...))
		if err != nil {
			return err
		}
		l.say("installing %s: %s", strings.Join(packages, " "), describe(files))
		archives := filepath.Join(l.Dir, "apt", "cache", "archives")
		err = l.watched(files, archives, l.apt("", "apt-get", argv...))
		return errors.Join(err, shown(l.apt("", "apt-get", "clean")))
	})
}

// unpack fetches packages and unpacks them below root, all or nothing, without
// running anything of them. choose names the packages from the lists as they are.
func (l *Lab) unpack(root, what string, choose func() ([]string, error)) error {
	changed := changes(root)
	return l.withLists(func() error {
		if changed() {
			return nil // another run has unpacked it while this one waited
		}
		packages, err := choose()
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
			return err
		}
		if err := removeInterrupted(filepath.Dir(root)); err != nil {
			return err
		}
		work, err := os.MkdirTemp(filepath.Dir(root), unpacking)
		if err != nil {
			return err
		}
		defer os.RemoveAll(work)
		if err := os.Chmod(work, 0o755); err != nil {
			return err
		}
		debs, tree := filepath.Join(work, "debs"), filepath.Join(work, "tree")
		for _, d := range []string{debs, tree} {
			if err := os.Mkdir(d, 0o755); err != nil {
				return err
			}
		}
		files, err := l.files(l.apt(debs, "apt-get", append([]string{"download", "-q", "--print-uris"}, packages...)...))
		if err != nil {
			return err
		}
		l.say("fetching %s: %s", what, describe(files))
		if err := l.watched(files, debs, l.apt(debs, "apt-get", append([]string{"download", "-q"}, packages...)...)); err != nil {
			return err
		}
		for _, f := range files {
			path := filepath.Join(debs, f.name)
			if st, err := os.Stat(path); err != nil || st.Size() != f.size {
				return fmt.Errorf("package %s did not come whole", f.name)
			}
			if err := shown(exec.Command("dpkg", "-x", path, tree)); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(root); err != nil {
			return err
		}
		return os.Rename(tree, root)
	})
}

// changes says later whether a directory has come, or has been replaced, since.
func changes(dir string) (changed func() bool) {
	before, _ := os.Stat(dir) // nil where there is none
	return func() bool {
		now, err := os.Stat(dir)
		return err == nil && (before == nil || !os.SameFile(before, now))
	}
}

// unpacking begins the names of directories in which packages are unpacked.
const unpacking = ".unpacking-"

// removeInterrupted removes what a run left that was killed. The lock says that
// nobody works there.
func removeInterrupted(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, unpacking+"*"))
	if err != nil {
		return err
	}
	for _, d := range left {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

// file is a package file of the archive.
type file struct {
	name string
	size int64 // bytes
}

// uri is a line of apt-get --print-uris: 'URI' NAME SIZE HASH
var uri = regexp.MustCompile(`(?m)^'[^']+' (\S+) (\d+) `)

// files asks apt-get which files a command would fetch.
func (l *Lab) files(cmd *exec.Cmd) ([]file, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var files []file
	for _, m := range uri.FindAllSubmatch(out, -1) {
		size, err := strconv.ParseInt(string(m[2]), 10, 64)
		if err != nil {
			return nil, err
		}
		files = append(files, file{string(m[1]), size})
	}
	return files, nil
}

func total(files []file) (sum int64) {
	for _, f := range files {
		sum += f.size
	}
	return sum
}

// megabytes is a size for people.
func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func describe(files []file) string {
	if len(files) == 1 {
		return "1 package, " + megabytes(total(files))
	}
	return fmt.Sprintf("%d packages, %s", len(files), megabytes(total(files)))
}

// watched runs a command that fetches files into a directory, and shows how far
// it is if people look at a terminal.
func (l *Lab) watched(files []file, dir string, cmd *exec.Cmd) error {
	terminal, ok := l.Log.(*os.File)
	if ok {
		_, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		ok = err == nil
	}
	if !ok {
		return shown(cmd)
	}
	done := make(chan error, 1)
	go func() { done <- shown(cmd) }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			fmt.Fprint(terminal, "\r\033[K")
			return err
		case <-tick.C:
			fmt.Fprintf(terminal, "\r\033[Klab: %s of %s", megabytes(bytesIn(dir)), megabytes(total(files)))
		}
	}
}

// bytesIn is the size of the files in a directory and below.
func bytesIn(dir string) (sum int64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if st, err := d.Info(); err == nil {
				sum += st.Size()
			}
		}
		return nil
	})
	return sum
}

// closure follows those dependencies of packages whose names match.
func (l *Lab) closure(names []string, follow *regexp.Regexp) ([]string, error) {
	var out []string
	queue := slices.Clone(names)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if slices.Contains(out, name) {
			continue
		}
		b, err := l.apt("", "apt-cache", "depends", "--important", "--no-suggests", name).Output()
		if err != nil {
			return nil, fmt.Errorf("package %q is not known to apt: %w", name, err)
		}
		out = append(out, name)
		alternative := false
		for _, line := range strings.Split(string(b), "\n") {
			line = strings.TrimSpace(line)
			dep, ok := strings.CutPrefix(strings.TrimPrefix(line, "|"), "Depends: ")
			skip := alternative
			alternative = strings.HasPrefix(line, "|")
			if ok && !skip && follow.MatchString(dep) {
				queue = append(queue, dep)
			}
		}
	}
	return out, nil
}

// shown runs a command; what it said is in the error if it fails.
func shown(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("running %s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
