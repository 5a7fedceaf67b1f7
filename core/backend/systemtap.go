package backend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"stapbox/core/ownfile"
	"stapbox/core/stapopts"
)

// Path is where translators find programs.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// SystemtapVariable names an installed upstream stap. It is upstream's own
// variable for the stap that its server starts.
const SystemtapVariable = "SYSTEMTAP_STAP"

// TapsetVariable names the directory of the standard tapset. Upstream's stap reads
// it itself; for the built-in translator it is one more directory of -I.
const TapsetVariable = "SYSTEMTAP_TAPSET"

// LackError is what Auto decides by: the built-in translator does not know
// something that stap(1) documents. No module was made, and nothing but messages
// was written.
type LackError struct{ Err error }

func (e *LackError) Error() string { return e.Err.Error() }

func (e *LackError) Unwrap() error { return e.Err }

// Systemtap is an installed upstream stap. It gets the options that a client may
// give, and no others: those of a Job.
type Systemtap struct {
	Path    string // of stap
	Environ []string
}

// FindSystemtap finds an installed upstream stap: what SYSTEMTAP_STAP names, or
// the first stap that is not this program where programs are.
func FindSystemtap(ctx context.Context, lookup func(string) (string, bool)) (string, error) {
	if path, _ := lookup(SystemtapVariable); path != "" {
		return path, checkSystemtap(ctx, path)
	}
	for _, dir := range filepath.SplitList(Path) {
		path := filepath.Join(dir, "stap")
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if checkSystemtap(ctx, path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no stap of SystemTap in %s, and %s names none", Path, SystemtapVariable)
}

// checkSystemtap asks a stap whose it is. Ours may have the same name.
func checkSystemtap(ctx context.Context, path string) error {
	own, err := os.Stat("/proc/self/exe")
	if err == nil {
		if st, err := os.Stat(path); err == nil && os.SameFile(own, st) {
			return fmt.Errorf("%q is this program", path)
		}
	}
	// It would make its directory in that of the user, writable by everybody (5.1
	// to 5.6).
	dir, err := os.MkdirTemp("", "stap-version.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(ctx, path, "-V")
	cmd.Env = []string{"PATH=" + Path, "HOME=" + dir, "SYSTEMTAP_DIR=" + dir, "TMPDIR=" + dir}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("asking %q for its version: %w", path, err)
	}
	if bytes.Contains(out, []byte("stapbox")) || !bytes.Contains(out, []byte("Systemtap translator/driver")) {
		return fmt.Errorf("%q is not the stap of SystemTap", path)
	}
	return nil
}

// arguments is the command line of upstream's stap for a job: what it may do is
// decided here, word by word (server-client 4.5, 4.6). The script comes on
// standard input, where other users do not see it.
func (s Systemtap) arguments(job *Job) []string {
	args := []string{"--tmpdir=" + job.TempDir, "--disable-cache"}
	if job.Kernel != "" {
		args = append(args, "-r", job.Kernel)
	}
	if job.Name == "" {
		// Its own choice would be its process' number, which is small and the
		// same again in a sandbox.
		args = append(args, "-m", jobName(job))
	}
	args = append(args, "--client-options")
	if job.List == 0 {
		args = append(args, "-p"+strconv.Itoa(job.LastPass))
	}
	for range job.Verbose {
		args = append(args, "-v")
	}
	if job.Guru {
		args = append(args, "-g")
	}
	for range job.Suppress {
		args = append(args, "-w")
	}
	for _, o := range []struct {
		word string
		set  bool
	}{
		{"-W", job.Strict}, {"-u", job.Unoptimized}, {"-t", job.Timing}, {"--suppress-handler-errors", job.QuietErrors},
		{"--suppress-time-limits", job.NoTimeLimits}, {"-T" + strconv.FormatFloat(job.Timeout.Seconds(), 'f', -1, 64), job.Timeout != 0},
	} {
		if o.set {
			args = append(args, o.word)
		}
	}
	if job.Name != "" {
		args = append(args, "-m", job.Name)
	}
	if job.Unprivileged() {
		args = append(args, "--privilege="+job.Privilege.String())
	}
	for _, d := range job.Defines {
		if d != "STP_TIMING" { // -t says so
			args = append(args, "-D", d)
		}
	}
	for _, g := range job.Globals {
		args = append(args, "-G", g)
	}
	if job.Target != 0 {
		args = append(args, "-x", strconv.Itoa(job.Target))
	}
	if job.Command != "" {
		args = append(args, "-c", job.Command)
	}
	if job.Compatible != "" {
		args = append(args, "--compatible="+job.Compatible)
	}
	for _, t := range job.Tapsets {
		if !slices.Contains(s.Environ, TapsetVariable+"="+t.Name) {
			args = append(args, "-I", t.Path)
		}
	}
	for _, e := range job.Scripts {
		args = append(args, "-E", string(e.Text))
	}
	if job.List != 0 {
		args = append(args, "-"+string(job.List), job.Pattern)
	} else {
		args = append(args, "-")
	}
	// What follows is for the script, even if it looks like an option.
	return append(append(args, "--"), job.Args...)
}

// jobName names a module for what it is made from.
func jobName(job *Job) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q %q %v %q", job.Source.Text, job.Args, job.Kernel, job.Defines, job.Globals, job.Guru, job.Privilege)
	fmt.Fprintf(h, " %q %q", job.Scripts, job.Compatible)
	return fmt.Sprintf("stap_%s_%d", hex.EncodeToString(h.Sum(nil))[:32], len(job.Source.Text))
}

// Translate implements Translator.
func (s Systemtap) Translate(ctx context.Context, job *Job) (Artifact, int) {
	a, rc, err := s.translate(ctx, job)
	if err != nil {
		fmt.Fprintf(job.Stderr, "ERROR: %v\nPass 4: compilation failed.  [man error::pass4]\n", err)
		return Artifact{}, 1
	}
	if rc == 0 && job.Verbose > 0 {
		fmt.Fprintf(job.Stderr, "Translated by SystemTap (%s).\n", s.Path)
	}
	return a, rc
}

func (s Systemtap) translate(ctx context.Context, job *Job) (Artifact, int, error) {
	cmd := exec.CommandContext(ctx, s.Path, s.arguments(job)...)
	cmd.Stdin = bytes.NewReader(job.Source.Text)
	cmd.Dir = job.TempDir // where -m puts the module
	// Its cache and its keys would be in the user's directory.
	cmd.Env = append(slices.Clone(s.Environ), "SYSTEMTAP_DIR="+filepath.Join(job.TempDir, "systemtap"), "TMPDIR="+job.TempDir)
	var listing io.Writer = job.Stdout
	var names bytes.Buffer
	if job.LastPass == 4 {
		listing = &names // the name of the module, which we print ourselves
	}
	said := &pass4Watch{Writer: job.Stderr}
	cmd.Stdout, cmd.Stderr = listing, said
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		explainRefusals(job)
		return Artifact{Elsewhere: said.failed}, max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return Artifact{}, 1, fmt.Errorf("running %q: %w", s.Path, err)
	}
	if job.LastPass < 4 {
		return Artifact{Translator: stapopts.TranslatorSystemtap}, 0, nil
	}
	path, err := oneModule(job.TempDir, strings.TrimSpace(names.String()))
	if err != nil {
		return Artifact{}, 1, err
	}
	return Artifact{Name: strings.TrimSuffix(filepath.Base(path), ".ko"), Path: path, Translator: stapopts.TranslatorSystemtap}, 0, nil
}

// pass4Watch passes the messages of upstream's stap on and looks for the line that
// says which pass failed: there is no other word of it.
type pass4Watch struct {
	io.Writer
	failed bool
	rest   []byte // the end of what was written, as a line may come in pieces
}

func (w *pass4Watch) Write(text []byte) (int, error) {
	const line = "Pass 4: compilation failed."
	w.rest = append(w.rest, text...)
	w.failed = w.failed || bytes.Contains(w.rest, []byte(line))
	w.rest = bytes.Clone(w.rest[max(0, len(w.rest)-len(line)):])
	return w.Writer.Write(text)
}

// oneModule finds what upstream's stap made: in its temporary directory, or where
// its last line says. The module is in the job's directory afterwards.
func oneModule(dir, said string) (string, error) {
	list, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return "", err
	}
	if len(list) == 1 {
		return list[0], nil
	}
	if len(list) == 0 && strings.HasSuffix(said, ".ko") && !strings.Contains(said, "\n") {
		module, err := ReadLeft(said, MaxModule)
		if err != nil {
			return "", fmt.Errorf("reading the module of SystemTap: %w", err)
		}
		to := filepath.Join(dir, filepath.Base(said))
		return to, ownfile.WriteNew(to, module, 0o600)
	}
	return "", fmt.Errorf("SystemTap left %d modules in %q", len(list), dir)
}

// explainRefusals says which files the script names that a server does not let
// it read: upstream's stap reports that they do not exist.
func explainRefusals(job *Job) {
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`\b(?:process|library)\s*\(\s*"(/[^"]*)"`).FindAllSubmatch(job.Source.Text, -1) {
		path := string(m[1])
		var refused *RefusedPath
		if !seen[path] && errors.As(ExplainPath(os.LookupEnv, path, os.ErrNotExist), &refused) {
			fmt.Fprintf(job.Stderr, "ERROR: %v\n", refused)
		}
		seen[path] = true
	}
}

// Auto is the built-in translator and, for scripts that need what it lacks,
// SystemTap, if that is installed.
type Auto struct {
	// Find finds upstream's stap when it is needed.
	Find func(context.Context) (Systemtap, error)
}

// Translate implements Translator.
func (a Auto) Translate(ctx context.Context, job *Job) (Artifact, int) {
	first := *job
	var stdout, stderr bytes.Buffer
	first.Stdout, first.Stderr = &stdout, &stderr
	artifact, rc, lack := Builtin{}.try(ctx, &first)
	if lack == nil {
		job.Stdout.Write(stdout.Bytes())
		job.Stderr.Write(stderr.Bytes())
		if rc == 0 && job.Verbose > 0 {
			fmt.Fprintln(job.Stderr, "Translated by the built-in translator.")
		}
		return artifact, rc
	}
	s, err := a.Find(ctx)
	if err != nil {
		job.Stderr.Write(stderr.Bytes())
		fmt.Fprintf(job.Stderr, "hint: SystemTap might know it, but %v\n", err)
		return artifact, rc
	}
	if job.Verbose > 0 {
		fmt.Fprintf(job.Stderr, "%v: trying SystemTap (%s).\n", lack, s.Path)
	}
	return s.Translate(ctx, job)
}

// New is the translator of a name; "" is the built-in one.
func New(name string, lookup func(string) (string, bool), environ []string) (Translator, error) {
	find := func(ctx context.Context) (Systemtap, error) {
		path, err := FindSystemtap(ctx, lookup)
		return Systemtap{Path: path, Environ: environ}, err
	}
	switch name {
	case "", stapopts.TranslatorBuiltin:
		return Builtin{}, nil
	case stapopts.TranslatorSystemtap:
		return lazy(find), nil
	case stapopts.TranslatorAuto:
		return Auto{find}, nil
	}
	return nil, fmt.Errorf("translator %q is not builtin, systemtap or auto", name)
}

// lazy looks for SystemTap when there is a job for it.
type lazy func(context.Context) (Systemtap, error)

func (l lazy) Translate(ctx context.Context, job *Job) (Artifact, int) {
	s, err := l(ctx)
	if err != nil {
		fmt.Fprintf(job.Stderr, "ERROR: --translator=systemtap: %v\n", err)
		return Artifact{Elsewhere: true}, 1
	}
	return s.Translate(ctx, job)
}
