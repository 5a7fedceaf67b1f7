// Package client is the applet stap (and stap-client, stap-find-servers): it reads a script, has it translated here
// or by a compile server, and hands the module to staprun. It also manages
// which servers are trusted.
//
// The walk (server-client 7): a user without stapdev gets --privilege and
// --use-server by himself; the server's answer, module and signature, is
// written into a private directory, and staprun is run on it.
package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/backend"
	"stapbox/core/config"
	"stapbox/core/discovery"
	"stapbox/core/hostpaths"
	"stapbox/core/invocation"
	"stapbox/core/kbuild"
	"stapbox/core/ownfile"
	"stapbox/core/privilege"
	"stapbox/core/report"
	"stapbox/core/sandbox"
	"stapbox/core/script/diag"
	"stapbox/core/stapopts"
	"stapbox/core/trust"
	"stapbox/core/uname"
	"stapbox/core/version"
)

// client is one run of stap.
type client struct {
	inv  *invocation.Invocation
	opts *stapopts.Options
	uid  int
	user privilege.User
	data string // the user's data directory

	hostPeers, signers string
	hostRules          trust.Rules
	extra              []store // peer stores that are searched before the user's
	staprun            string  // "" to look for it
	browse             browseFunc
	translator         backend.Translator
	now                func() time.Time
	retryDelay         time.Duration
	interrupts         chan os.Signal // one for each signal, the one that ends the context too

	temp       string
	passwdHome string // "": as /etc/passwd has it
	kernel     kernelKeys
	sys        string   // "" for /sys
	reasons    []string // why options were chosen for the user
}

// Main runs stap.
func Main(ctx context.Context, inv *invocation.Invocation) int {
	sandbox.Enter()
	c := &client{
		inv: inv, uid: os.Getuid(), now: time.Now,
		hostPeers: hostpaths.HostPeerStore(), signers: hostpaths.SignerStore(), hostRules: trust.HostRules(),
		browse: discovery.Browse, translator: backend.Builtin{},
	}
	groups, err := privilege.HostGroups("/etc/group", hostpaths.GroupIDs())
	if err == nil {
		c.user, err = privilege.CurrentUser(groups)
	}
	if err != nil {
		c.user = privilege.User{UID: c.uid}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	inv.Handles(syscall.SIGQUIT)
	c.interrupts = make(chan os.Signal, cap(signals))
	go func() {
		for sig := range signals {
			cancel(fmt.Errorf("interrupted by %v", sig))
			select {
			case c.interrupts <- sig:
			default:
			}
		}
	}()
	switch inv.Name {
	case "stap-find-servers":
		return c.findServers(ctx)
	case "stap-client":
		return c.stapClient(ctx)
	}
	return c.run(ctx)
}

// say writes a line to standard error.
func (c *client) say(format string, args ...any) {
	fmt.Fprintf(c.inv.Stderr, format+"\n", args...)
}

func (c *client) run(ctx context.Context) int {
	home := c.inv.Getenv("HOME")
	if home == "" {
		if u, err := user.LookupId(strconv.Itoa(c.uid)); err == nil {
			home = u.HomeDir
		}
	}
	c.data = hostpaths.UserDir(c.inv.Getenv("SYSTEMTAP_DIR"), home)
	if _, err := os.Lstat(c.data); c.data == "" || errors.Is(err, unix.ENOTDIR) { // as with HOME=/dev/null
		c.data = "/proc/nonexistent/.systemtap" // no store can be there
	}
	if !filepath.IsAbs(c.data) {
		c.data = filepath.Join(c.inv.Dir, c.data)
	}
	worker := c.inv.Getenv(sandbox.Variable) != ""
	args := c.inv.Args
	if !worker {
		// These are for everybody, whatever is wrong with DATA.
		if opts, err := stapopts.Parse(args); err == nil && (opts.Help || opts.Version) {
			c.tell(opts)
			return 0
		}
		if err := c.ownData(); err != nil {
			c.say("stap: ERROR: %v", err)
			return 1
		}
	}
	if worker {
		var err error
		if args, err = sandbox.Args(); err != nil {
			c.say("stap: ERROR: %v", err)
			return 1
		}
	} else {
		words, err := c.rc()
		if err != nil {
			c.say("stap: ERROR: %v", err)
			return 1
		}
		args = append(words, args...)
	}
	var err error
	c.opts, err = stapopts.Parse(args)
	if err == nil && (c.opts.Help || c.opts.Version) { // rc has it
		c.tell(c.opts)
		return 0
	}
	for _, n := range c.opts.Notes {
		c.say("%s", n)
	}
	if err != nil {
		c.say("%v", err)
		var usage *stapopts.UsageError
		if errors.As(err, &usage) {
			fmt.Fprint(c.inv.Stderr, stapopts.Hint)
		}
		return 1
	}
	if !worker && len(c.opts.Rlimits) > 0 {
		if err := sandbox.Confine(c.opts.Rlimits); err != nil {
			c.say("stap: ERROR: %v", err)
			return 1
		}
	}
	if len(c.opts.TrustServers) > 0 || len(c.opts.ListServers) > 0 {
		return c.manage(ctx)
	}
	if code, ok := c.unprivileged(); !ok {
		return code
	}
	if !worker {
		if err := c.requireKernelKeys(); err != nil {
			c.say("%v", err)
			return 1
		}
	}
	if err := c.standardTapset(); err != nil {
		c.say("%v", err)
		return 1
	}
	return c.translateAndRun(ctx)
}

// tell serves --help and --version.
func (c *client) tell(opts *stapopts.Options) {
	for _, n := range opts.Notes {
		c.say("%s", n)
	}
	if opts.Help {
		fmt.Fprint(c.inv.Stdout, versionText()+"\n"+usageText)
		return
	}
	fmt.Fprint(c.inv.Stderr, versionText())
}

// ownData makes sure that nobody else can have put anything into DATA, which holds
// command lines that are run: HOME is another user's after su -m, after sudo -E, and
// in services of root with the wrong one. Root uses his own home directory then. A
// user whose own it is that others may write to is told.
func (c *client) ownData() error {
	err := ownfile.OnlyOurs(c.data, c.uid)
	var foreign *ownfile.ForeignError
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil // what cannot be looked at cannot be read either
	}
	if !errors.As(err, &foreign) {
		return fmt.Errorf("%q is not used: %w", c.data, err)
	}
	if c.passwdHome == "" {
		if u, err := user.LookupId(strconv.Itoa(c.uid)); err == nil {
			c.passwdHome = u.HomeDir
		}
	}
	own := hostpaths.UserDir("", c.passwdHome)
	if own != "" && own != c.data && ownfile.OnlyOurs(own, c.uid) == nil {
		c.say("WARNING: %q is not used, but %q: %v", c.data, own, err)
		c.data = own
		return nil
	}
	if c.uid == 0 {
		return fmt.Errorf("%q is not used: %w", c.data, err)
	}
	c.say("WARNING: others can change what stap does for you: %v", err)
	return nil
}

// rc reads the user's DATA/rc: words that stand before those of the command
// line. One that somebody else may have written is ignored.
func (c *client) rc() ([]string, error) {
	path := filepath.Join(c.data, "rc")
	data, err := ownfile.ReadOurs(path, c.uid, config.MaxSize)
	var foreign *ownfile.ForeignError
	if errors.As(err, &foreign) {
		c.say("WARNING: %q is ignored: %v", path, err)
		return nil, nil
	}
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			return nil, nil
		}
		return nil, err
	}
	words, err := config.Words(data)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	return words, nil
}

// manage serves --trust-servers and --list-servers, in this order.
func (c *client) manage(ctx context.Context) int {
	status := 0
	for _, arg := range c.opts.TrustServers {
		if !c.trustServers(ctx, newServers(c), arg) {
			status = 1
		}
	}
	if len(c.opts.ListServers) > 0 {
		running, _, _ := uname.Host()
		if k := c.opts.Kernel; k != "" && k != running {
			c.say("WARNING: kernel release/architecture mismatch with host forces last-pass 4.")
		}
		s := newServers(c)
		for _, props := range c.opts.ListServers {
			s.list(ctx, props)
		}
	}
	return status
}

// unprivileged chooses --privilege and --use-server for users who need them
// (server-client 7). ok is false when the run ends here.
func (c *client) unprivileged() (code int, ok bool) {
	if c.opts.ClientOptions || c.opts.LastPass != 5 && !c.savesForUser() {
		return 0, true
	}
	levels := c.user.Levels()
	if levels.Contains(privilege.StapDev) {
		return 0, true
	}
	if !c.opts.PrivilegeSet {
		groups := "group stapusr"
		switch {
		case levels.Contains(privilege.StapSys):
			c.opts.Privilege, groups = privilege.StapSys, "groups stapusr and stapsys"
		case levels.Contains(privilege.StapUsr):
			c.opts.Privilege = privilege.StapUsr
		default:
			c.normalUser()
			return 1, false
		}
		c.opts.PrivilegeSet = true
		option := "--privilege=" + c.opts.Privilege.String()
		c.opts.Forward = append(c.opts.Forward, option)
		c.reasons = append(c.reasons, fmt.Sprintf("%s was automatically selected because you are a member of the %s.  [man stap]", option, groups))
		if c.opts.Guru {
			c.say("You can't specify -g and %s together.", option)
			fmt.Fprint(c.inv.Stderr, stapopts.Hint)
			return 1, false
		}
	} else if levels == privilege.None {
		c.normalUser()
		return 1, false
	}
	if len(c.opts.UseServer) == 0 {
		c.opts.UseServer = []string{""}
		c.reasons = append(c.reasons,
			fmt.Sprintf("For users with the privilege level %s, the module created by compiling your script must be signed by a trusted systemtap compile-server.  [man stap-server]", c.opts.Privilege),
			"--use-server was automatically selected in order to request compilation by a compile-server.")
	}
	return 0, true
}

// savesForUser: a member of stapusr saves a module (-p4) on a host that has
// nothing to build it with. Only a server can, and only what it signs for his
// level can he load later. With headers here the compilation is local, and
// nobody signs.
func (c *client) savesForUser() bool {
	levels := c.user.Levels()
	if c.opts.LastPass != 4 || c.opts.PrivilegeSet || len(c.opts.UseServer) > 0 || levels == privilege.None || levels.Contains(privilege.StapDev) {
		return false
	}
	_, err := kbuild.FindKernel(c.opts.Kernel)
	return errors.Is(err, kbuild.ErrNoHeaders)
}

func (c *client) normalUser() {
	c.say("You are trying to run systemtap as a normal user.")
	c.say(`You should either be root, or be part of the group "stapusr" and possibly one of the groups "stapsys" or "stapdev".  [man stap]`)
	fmt.Fprint(c.inv.Stderr, stapopts.Hint)
	name := c.inv.Getenv("USER")
	if u, err := user.LookupId(strconv.Itoa(c.uid)); err == nil {
		name = u.Username
	}
	if name == "" {
		name = "USER"
	}
	c.say("hint: sudo usermod -a -G stapusr %s (and log in again)", clean(name))
}

// outcome is what passes 1 to 4 left.
type outcome struct {
	rc     int
	module string // path, "" if there is none
	name   string // without ".ko"
	server bool
}

func (c *client) translateAndRun(ctx context.Context) int {
	if err := c.makeTemp(); err != nil {
		c.say("stap: ERROR: making a temporary directory: %v", err)
		return 1
	}
	defer c.removeTemp()
	useServer := len(c.opts.UseServer) > 0 && !c.opts.ClientOptions
	var out outcome
	if useServer {
		out = c.remote(ctx)
	} else {
		out = c.local(ctx)
	}
	if out.rc != 0 || c.opts.Verbose > 0 {
		for _, r := range c.reasons {
			c.say("%s", r)
		}
	}
	if ctx.Err() != nil {
		return 1
	}
	if out.rc != 0 {
		return out.rc
	}
	if c.opts.LastPass < 4 || c.opts.ClientOptions {
		return 0
	}
	if out.module == "" {
		return 1
	}
	if out.server { // which is not told of -G
		if err := c.checkGlobals(out.module); err != nil {
			c.say("ERROR: %v", err)
			return 1
		}
	}
	if c.opts.SignModule && !out.server {
		if err := c.signModule(out); err != nil {
			c.say("%v", err)
			return 1
		}
	}
	if c.opts.LastPass == 4 || c.opts.Module != "" {
		if err := c.save(out); err != nil {
			c.say("%v", err)
			return 1
		}
	}
	if c.opts.LastPass == 4 {
		fmt.Fprintf(c.inv.Stdout, "%s.ko\n", out.name)
		return 0
	}
	return c.pass5(ctx, out)
}

func (c *client) makeTemp() error {
	if c.opts.TempDir != "" {
		c.temp = c.opts.TempDir
		if !filepath.IsAbs(c.temp) {
			c.temp = filepath.Join(c.inv.Dir, c.temp)
		}
		if err := os.MkdirAll(c.temp, 0o700); err != nil || c.opts.ClientOptions {
			return err
		}
		return c.checkTemp()
	}
	dir := c.inv.Getenv("TMPDIR")
	if dir == "" {
		dir = "/tmp"
	}
	var err error
	c.temp, err = os.MkdirTemp(dir, "stap*") // 0700
	return err
}

// checkTemp refuses a directory of --tmpdir in which somebody else could put
// links, or another module, under names that are known before; or which somebody
// could put another in the place of.
func (c *client) checkTemp() error {
	var st unix.Stat_t
	if err := unix.Stat(c.temp, &st); err != nil {
		return fmt.Errorf("examining %q: %w", c.temp, err)
	}
	switch {
	case int(st.Uid) != c.uid && st.Uid != 0:
		return fmt.Errorf("--tmpdir: %q belongs to uid %d", c.temp, st.Uid)
	case st.Mode&0o002 != 0:
		return fmt.Errorf("--tmpdir: %q can be written by everybody (mode %04o)", c.temp, st.Mode&0o7777)
	}
	if err := ownfile.OnlyOurs(c.temp, c.uid); err != nil {
		return fmt.Errorf("--tmpdir: %w", err)
	}
	return nil
}

func (c *client) removeTemp() {
	if c.opts.Keep {
		c.say("Keeping temporary directory \"%s\"", c.temp)
		return
	}
	if c.opts.TempDir != "" {
		return // somebody else's
	}
	if err := os.RemoveAll(c.temp); err != nil {
		c.say("WARNING: removing temporary directory: %v", err)
	}
}

// local translates here. With --use-server-on-error a failed build, as opposed
// to an error in the script, is tried on a server.
func (c *client) local(ctx context.Context) outcome {
	src, err := c.source()
	if err != nil {
		c.say("%v\nPass 1: parse failed.  [man error::pass1]", err)
		return outcome{rc: 1}
	}
	stderr := c.inv.Stderr
	var held bytes.Buffer
	if c.opts.OnServerError {
		stderr = &held
	}
	var scripts []backend.Source
	for i, text := range c.opts.Scripts {
		scripts = append(scripts, backend.Source{Name: fmt.Sprintf("<input%d>", i+1), Text: []byte(text)})
	}
	var tapsets []backend.Tapset
	for _, dir := range c.opts.Tapsets {
		tapsets = append(tapsets, backend.Tapset{Name: dir, Path: c.path(dir)})
	}
	arch := ""
	if c.opts.Arch != "" {
		arch = uname.Arch(c.opts.Arch)
	}
	job := &backend.Job{
		Source: src, Scripts: scripts, Tapsets: tapsets, List: c.opts.List, Pattern: c.opts.Pattern, Compatible: c.opts.Compatible, Args: c.opts.Args, LastPass: min(c.opts.LastPass, 4), Verbose: c.opts.Verbose, Keep: c.opts.Keep,
		Name: c.opts.Module, Kernel: c.opts.Kernel, Arch: arch, Defines: c.opts.Defines, Globals: c.opts.Globals,
		Privilege: c.opts.Privilege, Guru: c.opts.Guru, Target: c.opts.Target, Command: c.opts.Command, Suppress: c.opts.Suppress,
		ServerDefines: c.opts.ServerDefines, Strict: c.opts.Strict, Unoptimized: c.opts.Unoptimized, Timing: c.opts.Timing, Coverage: c.opts.Coverage, Timeout: c.opts.Timeout,
		QuietErrors: c.opts.QuietErrors, NoTimeLimits: c.opts.NoTimeLimits,
		TempDir: c.temp, StateDir: hostpaths.Kernels(c.data), Stdout: c.inv.Stdout, Stderr: stderr,
	}
	printer := report.New(c.inv.Stderr, report.When(c.opts.Color), c.inv.LookupEnv)
	job.Colors = diag.Colors{
		Error: printer.Colors["error"], Warning: printer.Colors["warning"], Source: printer.Colors["source"],
		Caret: printer.Colors["caret"], Token: printer.Colors["token"],
	}
	translator := c.translator
	if c.opts.Translator != "" {
		if translator, err = backend.New(c.opts.Translator, c.inv.LookupEnv, c.inv.Environ); err != nil {
			c.say("%v", err)
			return outcome{rc: 1}
		}
	}
	line := c.progress("this host")
	job.Stdout, job.Stderr, job.Passed = line.before(job.Stdout), line.before(job.Stderr), line.passed
	artifact, rc := translator.Translate(ctx, job)
	line.end()
	if c.opts.ClientOptions {
		if err := backend.LeaveTranslator(c.temp, artifact); err != nil {
			c.say("stap: ERROR: %v", err)
			return outcome{rc: 1}
		}
	}
	if c.opts.OnServerError {
		if rc != 0 && ctx.Err() == nil && artifact.Elsewhere {
			c.inv.Stderr.Write(withoutPasses(held.Bytes()))
			c.say("Attempting compilation using a compile server")
			c.opts.UseServer = []string{""}
			return c.remote(ctx)
		}
		c.inv.Stderr.Write(held.Bytes())
	}
	return outcome{rc: rc, module: artifact.Path, name: artifact.Name}
}

// withoutPasses drops the lines that say which pass failed.
func withoutPasses(text []byte) []byte {
	var out []byte
	for _, line := range bytes.SplitAfter(text, []byte("\n")) {
		if !bytes.HasPrefix(line, []byte("Pass ")) || !bytes.Contains(line, []byte(" failed.")) {
			out = append(out, line...)
		}
	}
	return out
}

// maxScript is the size of the longest script that is read.
const maxScript = 16 << 20

// source reads the script.
func (c *client) source() (backend.Source, error) {
	if c.opts.List != 0 {
		return backend.Source{Name: "<input>", Text: []byte("probe " + c.opts.Pattern + " {}")}, nil
	}
	if c.opts.HasScript {
		return backend.Source{Name: "<input>", Text: []byte(c.opts.Script)}, nil
	}
	name := c.opts.File
	var text []byte
	var err error
	if name == "-" {
		name = "<input>"
		text, err = io.ReadAll(io.LimitReader(c.inv.Stdin, maxScript+1))
	} else {
		text, err = readScript(c.path(name))
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return backend.Source{}, fmt.Errorf("Input file '%s' is missing.", name)
	case err != nil:
		return backend.Source{}, fmt.Errorf("Input file '%s' is empty or missing: %v", name, err)
	case len(text) == 0:
		return backend.Source{}, fmt.Errorf("Input file '%s' is empty.", name)
	case len(text) > maxScript:
		return backend.Source{}, fmt.Errorf("Input file '%s' has more than %d bytes.", name, maxScript)
	}
	return backend.Source{Name: name, Text: text}, nil
}

func readScript(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxScript+1))
}

func (c *client) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.inv.Dir, name)
}

// save copies the module and its signature into the working directory.
func (c *client) save(out outcome) error {
	for _, ext := range []string{".ko", ".ko.sgn"} {
		from := strings.TrimSuffix(out.module, ".ko") + ext
		data, err := os.ReadFile(from)
		if errors.Is(err, os.ErrNotExist) && ext == ".ko.sgn" {
			// One from an earlier run would belong to other bytes.
			if err := os.Remove(filepath.Join(c.inv.Dir, out.name+ext)); err == nil || errors.Is(err, os.ErrNotExist) {
				continue
			}
		}
		if err == nil {
			err = writeFile(filepath.Join(c.inv.Dir, out.name+ext), data)
		}
		if err != nil {
			return fmt.Errorf("Copy failed (\"%s\" to \"%s\"): %w", from, out.name+ext, err)
		}
	}
	return nil
}

// writeFile replaces a file by rename, with the mode the umask gives.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".stap-*")
	if err != nil {
		return err
	}
	mask := syscall.Umask(0)
	syscall.Umask(mask)
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(os.FileMode(0o666 &^ mask))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func versionText() string {
	return fmt.Sprintf(`Systemtap translator/driver (stapbox %s, version %s)
This is free software under the MIT licence; there is no warranty.
Certificates and server discovery are built in; the libraries NSS and AVAHI are not needed.
enabled features: built-in translator, compile-server client, module signatures
`, version.Version, version.Protocol)
}
