package loader

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/kmod"
	"stapbox/core/privilege"
	"stapbox/core/runopts"
	"stapbox/core/signing"
	"stapbox/core/transport"
	"stapbox/core/trust"
)

// module is a module file in private memory and what was found out about it.
type module struct {
	path    string // canonical
	image   []byte
	name    string // the kernel's name for it
	renamed bool   // -R has given it that name
	digest  [sha256.Size]byte
	signed  signing.Result
	facts   privilege.Module
	verdict privilege.Verdict
}

// load is everything from the MODULE word to stapio.
func (l *loader) load() int {
	stop := catch(l.ended)
	l.Handles(caught()...)
	program, err := l.relayProgram()
	if err != nil {
		l.report.Errorf("The relay program cannot be used: %v", err)
		return exitError
	}
	if l.release == "" {
		l.report.Errorf("Unable to determine kernel version, uname failed")
		return exitRefused
	}
	uid, gid, changed, err := l.requestedIdentity()
	if err != nil {
		l.report.Errorf("%v", err)
		return exitError
	}
	m, err := l.read()
	if err != nil {
		var path *kmod.CanonicalError
		if errors.As(err, &path) {
			l.report.Errorf("Unable to canonicalize path %q: %s", path.Path, kmod.Strerror(path.Err))
			err = path.Err
		}
		l.report.Errorf("Couldn't insert module '%s': %s", l.opts.Module, kmod.Strerror(err))
		return exitError
	}
	if !m.verdict.Allow {
		for _, line := range strings.Split(m.verdict.Reason, "\nUnable to verify the signature for ") {
			if line != m.verdict.Reason && strings.HasPrefix(line, "the module ") {
				line = "Unable to verify the signature for " + line
			}
			l.report.Errorf("%s", line)
		}
		if m.verdict.Hint != "" {
			l.report.Hintf("%s", m.verdict.Hint)
		}
		return exitRefused
	}
	if err := checkParams(m.image, l.opts.Params); err != nil {
		l.report.Errorf("Couldn't insert module '%s': %v", l.opts.Module, err)
		return exitError
	}
	if l.fipsRefuses() {
		l.report.Errorf("Couldn't insert module in FIPS mode '%s': Operation not permitted", l.opts.Module)
		return exitError
	}
	var who *another
	if changed {
		if who, err = theUser(uid, gid); err == nil {
			err = continueAs(who)
		}
		if err != nil {
			l.report.Errorf("Couldn't go on as uid %d: %v", uid, err)
			return exitError
		}
	}
	if l.opts.Rename {
		if err := l.rename(m); err != nil {
			l.report.Errorf("Couldn't rename module '%s': %v", l.opts.Module, err)
			return exitError
		}
	}
	if _, set := l.LookupEnv("SYSTEMTAP_SYNC"); set {
		unix.Sync()
	}
	stop.inserting()
	unlock, _, err := lockUser(os.Getuid())
	if err != nil {
		l.report.Errorf("Couldn't insert module '%s': %s", l.opts.Module, kmod.Strerror(err))
		return exitError
	}
	defer unlock() // or exec(2) does
	if status, ok := l.insert(m); !ok {
		return status
	}
	dir, err := l.introduce(m)
	if err == nil {
		err = stop.pending()
	}
	if err == nil {
		// From here on a signal is stapio's.
		if who != nil && who.uid != 0 {
			unlock()
			var status int
			if status, err = l.delegate(program, m.name, dir, who, stop); err == nil {
				return status
			}
		} else if err = l.dropPrivileges(); err == nil {
			err = l.handOver(program, m.name, dir, stop)
		}
		l.report.Errorf("%v", err)
		l.report.Hintf("the module is still loaded; staprun -d %s removes it", m.name)
		return exitError
	}
	l.report.Errorf("%v", err)
	if err := takeBack(m.name); err != nil {
		l.report.Errorf("Couldn't remove module '%s': %s.", m.name, kmod.Strerror(err))
	}
	return exitError
}

// takeBack removes the module that has just been inserted. The user's lock has
// kept its name its own, unless root has removed it; so what has a control file
// of another owner stays. One without any, which was built for debugfs where
// that is not mounted, is still removed.
func takeBack(name string) error {
	if dir, err := transport.OpenDir(name); err == nil {
		defer dir.Close()
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), ".cmd", &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && int(st.Uid) != os.Getuid() {
			return fmt.Errorf("it belongs to user %d", st.Uid)
		}
	}
	err := kmod.Remove(name)
	if err == nil {
		disclaim(os.Getuid(), name)
	}
	return err
}

// read opens, reads, verifies and judges the module. Every verdict leaves one
// audit line, and so does a file that cannot be judged.
func (l *loader) read() (_ *module, err error) {
	m := &module{}
	d := decision{Action: "load", Rule: "unreadable", UID: os.Getuid(), Path: l.opts.Module}
	defer func() {
		if err != nil {
			d.Why = err.Error()
		}
		audit(d)
	}()
	groups, err := privilege.HostGroups("/etc/group", hostpaths.GroupIDs())
	if err != nil {
		return nil, fmt.Errorf("looking up groups: %w", err)
	}
	user, err := privilege.CurrentUser(groups)
	if err != nil {
		return nil, fmt.Errorf("looking up groups: %w", err)
	}
	blessed := hostpaths.BlessedDir(l.release)
	f, dir, err := l.open(runopts.ModulePath(l.opts.Module, blessed), blessed)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m.path, d.Path = f.Path, f.Path
	if dir != nil {
		defer dir.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
		}
		m.facts.Blessed = privilege.Blessed(blessed, m.path, &st, &f.Stat, groups, memberOfDev)
	} else {
		m.facts.Blessed = notBlessed(blessed, m.path)
	}
	if m.image, err = f.Read(kmod.MaxImage); err != nil {
		return nil, err
	}
	m.digest = sha256.Sum256(m.image)
	l.verify(m)
	m.facts.Path = m.path
	if m.name, err = kmod.Name(m.image); err != nil {
		return nil, err
	}
	if m.facts.Required, _, err = kmod.RequiredLevel(m.image); err != nil {
		return nil, err
	}
	m.verdict = privilege.Decide(user, m.facts)
	d = describe(user, m)
	return m, nil
}

// notBlessed is the reason for a module outside of the approved directory, which
// may not be there at all.
func notBlessed(dir, module string) error {
	if _, err := kmod.Canonical(dir); err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return &privilege.BlessedError{Dir: dir, Reasons: []string{"Unable to canonicalize that directory: " + kmod.Strerror(err)}}
	}
	return privilege.NotBlessed(dir, module)
}

// open opens the module with the invoking user's rights to files, so that
// nobody learns anything about a file he cannot read. Approved modules may be
// readable by root only.
func (l *loader) open(path, blessed string) (f *kmod.File, dir *os.File, err error) {
	err = asUser(func() (err error) {
		f, dir, err = kmod.Open(path, blessed)
		return err
	})
	if errors.Is(err, fs.ErrPermission) && path == runopts.ModulePath(l.opts.Module, blessed) && !strings.Contains(l.opts.Module, "/") {
		f, dir, err = kmod.Open(path, blessed)
		if err == nil && dir == nil { // a link out of the approved directory
			f.Close()
			return nil, nil, &os.PathError{Op: "open", Path: path, Err: unix.EACCES}
		}
	}
	return f, dir, err
}

// asUser runs f with the real user's rights to files: the file system uid is his,
// and no capability is in effect. setfsuid(2) alone takes away those for files
// only, and with CAP_SYS_PTRACE everybody's links in /proc can be followed. It
// holds for this thread, to which Main has locked itself.
func asUser(f func() error) (err error) {
	uid := os.Getuid()
	if uid == 0 {
		return f()
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	none := all
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Setfsuid(uid); err != nil {
		return fmt.Errorf("taking the user's file rights: %w", err)
	}
	if err := unix.Capset(&header, &none[0]); err != nil {
		unix.Setfsuid(0)
		return fmt.Errorf("taking the user's file rights: %w", err)
	}
	defer func() {
		back := unix.Setfsuid(0)
		if back == nil {
			back = unix.Capset(&header, &all[0])
		}
		if back != nil && err == nil {
			err = fmt.Errorf("taking root's file rights back: %w", back)
		}
	}()
	return f()
}

// verify checks the signature beside the module against the signer store, and
// fills m.signed and m.facts.Signature.
func (l *loader) verify(m *module) {
	var sig []byte
	err := asUser(func() (err error) {
		sig, err = kmod.ReadSignature(m.path)
		return err
	})
	unsigned := errors.Is(err, fs.ErrNotExist) || errors.Is(err, kmod.ErrNotRegular)
	if err != nil && !unsigned {
		l.report.Errorf("Could not open the signature file %s.sgn: %v", m.path, err)
		m.facts.Signature = privilege.CheckError
	} else if unsigned && l.opts.Verbose >= 2 {
		fmt.Fprintf(l.Stderr, "Signature file %s.sgn not found\n", m.path)
	} else if len(sig) == 0 && !unsigned {
		l.report.Errorf("EOF reading signature file %s.sgn.", m.path)
	}
	unusable := func(err error) {
		m.signed = signing.Result{Verdict: signing.CheckError, Reason: err.Error(), Digest: m.digest}
		m.facts.Signature = privilege.CheckError
	}
	store, err := trust.Read(hostpaths.SignerStore(), trust.HostRules())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		store = &trust.Store{}
	case err != nil:
		var unsafe *trust.UnsafeError
		if errors.As(err, &unsafe) {
			l.report.Errorf("Certificate database %s %s %s.", unsafe.Kind, unsafe.Path, unsafe.Reason)
		} else {
			l.report.Errorf("%v", err)
		}
		l.report.Errorf("Unable to use certificate database %s due to errors.", hostpaths.SignerStore())
		unusable(err)
		return
	}
	l.policy, err = loadPolicy(hostpaths.LoadPolicy(), trust.HostRules())
	if err != nil {
		l.report.Errorf("Unable to use the load policy: %v", err)
		unusable(err)
		return
	}
	policy := l.policy.Policy
	policy.Now, policy.Denied = time.Now(), store.Denied
	m.signed = signing.Verify(m.image, sig, store.Signers(), policy)
	switch v := m.signed.Verdict; {
	case v == signing.Denied, v == signing.Altered:
		m.facts.Signature = privilege.Altered
		m.facts.Why = m.signed.Reason
	case unsigned:
		m.signed.Verdict, m.signed.Reason = signing.Untrusted, "the module is not signed"
		m.facts.Signature = privilege.Untrusted
	case v == signing.OK:
		m.facts.Signature = privilege.Verified
		if m.signed.Warning != "" {
			l.report.Warningf("%s", m.signed.Warning)
		}
	case v == signing.Untrusted:
		m.facts.Signature = privilege.Untrusted
		m.facts.Why = m.signed.Reason
		for _, w := range store.Warnings {
			l.report.Warningf("A certificate is not trusted: %s", w)
		}
	default:
		m.facts.Signature = privilege.CheckError
		m.facts.Why = m.signed.Reason
	}
}

func memberOfDev(uid uint32) bool {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return false
	}
	group, err := os.ReadFile("/etc/group")
	if err != nil {
		return false
	}
	return privilege.Member(uid, privilege.GroupDev, bytes.NewReader(passwd), bytes.NewReader(group))
}

func (l *loader) fipsRefuses() bool {
	b, err := os.ReadFile("/proc/sys/crypto/fips_enabled")
	if err != nil || len(b) == 0 || b[0] == '0' {
		return false
	}
	_, override := l.LookupEnv("STAP_FIPS_OVERRIDE")
	return !(override && os.Getuid() == 0)
}

// insert puts the module into the kernel. With -R, a name that is taken, as by
// another process with the same id in another namespace, is changed once more.
func (l *loader) insert(m *module) (status int, ok bool) {
	failed := func(err error) (int, bool) {
		l.report.Errorf("Couldn't insert module '%s': %s", l.opts.Module, kmod.Explain(err))
		return exitError, false
	}
	if err := l.checkCount(); err != nil {
		audit(decision{Action: "load", Rule: "max-modules", UID: os.Getuid(), Module: m.name, Path: m.path, Why: err.Error()})
		l.report.Errorf("%v", err)
		l.report.Hintf("staprun -d '*' removes those that nobody is attached to")
		return exitRefused, false
	}
	err := l.insertOnce(m)
	for try := 0; try < renameTries && errors.Is(err, unix.EEXIST) && m.renamed; try++ {
		if l.renameAgain(m) != nil {
			break // too short a name for it
		}
		err = l.insertOnce(m)
	}
	if err != nil {
		failed(err)
		_, enforced := kmod.SignatureRule("/sys")
		switch exists := errors.Is(err, unix.EEXIST); {
		case exists && enforced && kmod.Signed(m.image):
			l.report.Hintf("a module that is signed for the kernel keeps its name; stap -m NAME makes one of another name")
		case exists && !l.opts.Rename:
			l.report.Errorf("Rerun with staprun option '-R' to rename this module.")
		}
		l.explainSignature(m, err)
		return exitError, false
	}
	return exitOK, true
}

// insertOnce is one try. A lock keeps insertions apart because modules share
// /proc/systemtap, which the first one creates (decision L6).
func (l *loader) insertOnce(m *module) error {
	sealed, err := kmod.Seal(m.image)
	if err != nil {
		return err
	}
	defer sealed.Close()
	uid := os.Getuid()
	if uid != 0 && loadedAs(m.name) != "" {
		return unix.EEXIST // nobody claims a name that another has
	}
	news, err := claim(uid, m.name)
	if err != nil {
		return err
	}
	unlock := lockInsertions()
	defer unlock()
	err = kmod.Insert(sealed, l.params)
	switch {
	case err == nil:
		confirm(uid, m.name)
	case news:
		disclaim(uid, m.name)
	}
	return err
}

// checkCount refuses a user one more module when he has as many in the kernel as
// the policy lets him: each takes memory of the kernel and goes on running.
func (l *loader) checkCount() error {
	uid := os.Getuid()
	if uid == 0 {
		return nil
	}
	modules, err := kmod.List(transport.Dirs)
	if err != nil {
		return err
	}
	n, err := claimed(uid, modules)
	if err != nil {
		return err
	}
	if n >= l.policy.MaxModules {
		return fmt.Errorf("You have %d modules loaded, which is all that max-modules=%d allows a user (%s).", n, l.policy.MaxModules, hostpaths.LoadPolicy())
	}
	return nil
}

// introduce tells the new module what only root may tell it, and leaves it
// detached for stapio.
func (l *loader) introduce(m *module) (*os.File, error) {
	dir, err := transport.OpenDir(m.name)
	if err != nil {
		if !debugfsMounted() {
			l.report.Hintf("a module built with STAP_TRANS_DEBUGFS needs debugfs: mount -t debugfs debugfs /sys/kernel/debug")
		}
		return nil, fmt.Errorf("Cannot attach to module %s control channel; not running? (%w)", m.name, err)
	}
	ch, err := transport.OpenChannel(dir)
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("Cannot attach to module %s control channel; not running? (%w)", m.name, err)
	}
	defer ch.Close()
	if err := ch.Send(transport.CredentialsMessage(uint32(m.verdict.Credentials))); err != nil {
		dir.Close()
		return nil, err
	}
	if err := l.relocate(ch, m); err != nil {
		dir.Close()
		return nil, err
	}
	tz, set := l.LookupEnv("TZ")
	name, west := localZone(tz, set, time.Now())
	messages := []transport.Message{transport.TZInfoMessage(west, name)}
	if l.opts.Remote {
		messages = append(messages, transport.RemoteIDMessage(l.opts.RemoteID, l.opts.RemoteURI))
	}
	for _, msg := range messages {
		if err := ch.Send(msg); err != nil {
			dir.Close()
			return nil, err
		}
	}
	return dir, nil
}

func debugfsMounted() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/kernel/debug", &st) == nil && st.Type == unix.DEBUGFS_MAGIC
}
