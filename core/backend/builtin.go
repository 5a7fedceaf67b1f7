package backend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/kbuild"
	"stapbox/core/kruntime"
	"stapbox/core/ownfile"
	"stapbox/core/script"
	"stapbox/core/script/check"
	"stapbox/core/script/diag"
	"stapbox/core/script/tapset"
	"stapbox/core/stapopts"
	"stapbox/core/translate"
	"stapbox/core/uname"
)

// Builtin is our own translator, in this process.
type Builtin struct{}

// Runtime is the kernel side of every module, as kbuild takes it.
func Runtime() kbuild.Runtime {
	rt := kbuild.Runtime{
		Version: kruntime.Version(), Files: kruntime.Sources(), Headers: []string{kruntime.HeaderName, kruntime.EmbedHeaderName}, Common: "runtime.h",
		Always: kruntime.Always(), Defines: []string{"STP_PROBED"},
	}
	for _, p := range kruntime.Probes {
		rt.Probes = append(rt.Probes, kbuild.Probe{Name: p.Name, Source: p.Snippet})
	}
	return rt
}

// builtinRun is one job on its way through the passes.
type builtinRun struct {
	*Job
	messages *diag.Renderer
	kernel   kbuild.Kernel
	start    time.Time
	usage    unix.Rusage
	children unix.Rusage
	lack     *LackError // what ended the run, if it was that

	documented bool // of lack: SystemTap is known to have it
	failed     int  // the pass that failed, 4 if that is for this host, 0 else
}

// errShown ends a run whose reason the user has seen.
var errShown = errors.New("shown")

// Translate implements Translator.
func (b Builtin) Translate(ctx context.Context, job *Job) (Artifact, int) {
	a, rc, _ := b.try(ctx, job)
	return a, rc
}

// try also tells whether the script needs what this translator lacks.
func (Builtin) try(ctx context.Context, job *Job) (Artifact, int, *LackError) {
	r := &builtinRun{Job: job, messages: &diag.Renderer{W: job.Stderr, Colors: job.Colors, Verbose: job.Verbose > 0}}
	a, err := r.passes(ctx)
	switch {
	case err == nil:
		a.Translator = stapopts.TranslatorBuiltin
		return a, 0, r.lack
	case !errors.Is(err, errShown):
		fmt.Fprintf(job.Stderr, "ERROR: %v\n", err)
	}
	return Artifact{Elsewhere: r.documented || r.failed == 4}, 1, r.lack
}

func (r *builtinRun) passes(ctx context.Context) (Artifact, error) {
	r.begin()
	var err error
	r.kernel, err = kbuild.FindKernel(r.Kernel)
	// Without headers a script can still be checked, unless it asks for
	// something they would tell.
	missing := err
	if err != nil && !errors.Is(err, kbuild.ErrNoHeaders) {
		return Artifact{}, err
	}
	prog, err := r.analyse()
	if err != nil || r.LastPass < 3 {
		return Artifact{}, err
	}

	r.begin()
	options := translate.Options{Defines: r.Defines, SuppressHandlerErrors: r.QuietErrors, SuppressTimeLimits: r.NoTimeLimits}
	if err := r.defines(prog, options); err != nil {
		return Artifact{}, err
	}
	unit, err := translate.Translate(prog, options)
	if err != nil {
		var e *translate.Error
		if errors.As(err, &e) && e.Lacks {
			r.lack, r.documented = &LackError{err}, true
		}
		fmt.Fprintf(r.Stderr, "semantic error: %v\nPass 3: translation failed.  [man error::pass3]\n", err)
		return Artifact{}, errShown
	}
	name := r.Name
	if name == "" {
		name = contentName(unit, r.kernel)
	}
	source := filepath.Join(r.TempDir, name+"_src.c")
	if err := ownfile.WriteNew(source, unit, 0o600); err != nil {
		return Artifact{}, err
	}
	if r.LastPass == 3 {
		if _, err := r.Stdout.Write(unit); err != nil {
			return Artifact{}, err
		}
	}
	r.end(3, fmt.Sprintf("translated to C into %q", source))
	if r.LastPass == 3 {
		return Artifact{}, nil
	}

	r.begin()
	r.failed = 4
	// The scripts of another architecture can be checked here, no more.
	if _, host, _ := uname.Host(); r.Arch != "" && r.Arch != host {
		fmt.Fprintf(r.Stderr, "ERROR: architecture %q is not supported: this stap builds modules for %q\nPass 4: compilation failed.  [man error::pass4]\n", r.Arch, host)
		return Artifact{}, errShown
	}
	if missing != nil {
		fmt.Fprintf(r.Stderr, "ERROR: %v\nhint: install the package with the headers of that kernel (Debian: linux-headers-%s), or name its build directory with -r /DIR\nPass 4: compilation failed.  [man error::pass4]\n", missing, r.kernel.Release)
		return Artifact{}, errShown
	}
	path, err := r.build(ctx, kbuild.Unit{Name: name, Source: unit, KernelHeaders: translate.KernelHeaders(prog), Flags: translate.Flags})
	if err != nil {
		if ctx.Err() == nil && translate.KernelHeaders(prog) {
			r.lack = &LackError{err} // C that is written for SystemTap's runtime
		}
		fmt.Fprintf(r.Stderr, "ERROR: %v\nPass 4: compilation failed.  [man error::pass4]\n", err)
		return Artifact{}, errShown
	}
	r.end(4, fmt.Sprintf("compiled C into %q", name+".ko"))
	return Artifact{Name: name, Path: path}, nil
}

// analyse is passes 1 and 2.
func (r *builtinRun) analyse() (*check.Program, error) {
	opts := script.Options{Args: r.Args, Release: r.kernel.Release, Arch: r.Arch, Privilege: r.Privilege, Guru: r.Guru,
		Compatible: r.Compatible, Unoptimized: r.Unoptimized || r.List != 0, Timeout: r.Timeout}
	if opts.Arch == "" {
		_, opts.Arch, _ = uname.Host()
	}
	config, err := r.libraries(&opts)
	if err != nil {
		return nil, err
	}
	if config && r.kernel.BuildDir != "" {
		var err error
		if opts.Config, err = kernelConfig(r.kernel.BuildDir); err != nil {
			return nil, err
		}
	}
	parsed, err := script.Parse(script.Source{Name: r.Source.Name, Text: string(r.Source.Text)}, opts)
	for _, p := range parsed.Problems {
		r.messages.Problem(p.List, p.Macros)
	}
	if err != nil {
		return nil, r.failure(err)
	}
	if r.Strict && r.Suppress == 0 && len(parsed.Problems) > 0 {
		fmt.Fprint(r.Stderr, "ERROR: with -W warnings are errors\nPass 1: parse failed.  [man error::pass1]\n")
		return nil, errShown
	}
	if r.LastPass == 1 {
		if err := parsed.Dump(r.Stdout); err != nil {
			return nil, err
		}
	}
	r.end(1, fmt.Sprintf("parsed user script and %d library scripts", len(parsed.Library)))
	if r.LastPass == 1 {
		return nil, nil
	}

	r.begin()
	if r.List != 0 {
		points, lacks := parsed.List()
		return nil, r.list(points, lacks)
	}
	prog, err := parsed.Check()
	if prog != nil && r.Suppress == 0 {
		r.messages.Warnings(prog.Warnings)
		defer r.messages.Close()
	}
	if err == nil && r.Strict && r.Suppress == 0 && len(prog.Warnings) > 0 {
		err = &diag.List{Pass: 2, Notes: []string{"ERROR: with -W warnings are errors"}}
	}
	if err == nil {
		err = checkGlobals(prog, r.Globals)
	}
	if err != nil {
		return nil, r.failure(err)
	}
	if r.Coverage {
		r.coverage(prog)
	}
	if r.LastPass == 2 {
		if err := prog.Dump(r.Stdout, r.Verbose > 0); err != nil {
			return nil, err
		}
	}
	r.end(2, fmt.Sprintf("analyzed script: %s, %s, %s, %s", count(len(prog.Probes), "probe"), count(len(prog.Functions), "function"),
		count(len(prog.TopC), "embed"), count(len(prog.Globals), "global")))
	return prog, nil
}

// defines warns of -D options that change nothing: a limit may be misspelt.
func (r *builtinRun) defines(prog *check.Program, options translate.Options) error {
	options.Defines = options.Defines[r.ServerDefines:]
	names := translate.WithoutEffect(prog, options)
	if len(names) == 0 || r.Suppress > 0 {
		return nil
	}
	for _, name := range names {
		fmt.Fprintf(r.Stderr, "WARNING: -D %s has no effect: it is no limit, and the script has no C\n", name)
	}
	if r.Strict {
		fmt.Fprint(r.Stderr, "ERROR: with -W warnings are errors\nPass 3: translation failed.  [man error::pass3]\n")
		return errShown
	}
	return nil
}

// coverage says which functions of which library files the script uses: -q.
func (r *builtinRun) coverage(prog *check.Program) {
	used := map[string][]string{}
	for _, f := range prog.Functions {
		if f.File.Tapset || f.File.Library {
			used[f.File.Name] = append(used[f.File.Name], f.Name)
		}
	}
	for _, p := range prog.Probes {
		if f := p.Source.Tok.Pos.File; f.Library {
			used[f.Name] = append(used[f.Name], p.Point)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(used)) {
		fmt.Fprintf(r.Stderr, "tapset coverage: %s: %s\n", name, strings.Join(slices.Compact(used[name]), " "))
	}
}

// libraries adds the -E scripts and the files of -I directories. config tells
// that a text may ask for the kernel's configuration.
func (r *builtinRun) libraries(opts *script.Options) (config bool, err error) {
	config = bytes.Contains(r.Source.Text, []byte("CONFIG_"))
	for _, s := range r.Scripts {
		config = config || bytes.Contains(s.Text, []byte("CONFIG_"))
		opts.Scripts = append(opts.Scripts, script.Source{Name: s.Name, Text: string(s.Text)})
	}
	for _, t := range r.Tapsets {
		scripts, macros, err := tapset.Directory(t.Name, t.Path, opts.Release, opts.Arch)
		if err != nil {
			return false, err
		}
		for _, s := range scripts {
			config = config || strings.Contains(s.Text, "CONFIG_")
			opts.Library = append(opts.Library, script.Source(s))
		}
		for _, s := range macros {
			config = config || strings.Contains(s.Text, "CONFIG_")
			opts.Macros = append(opts.Macros, script.Source(s))
		}
	}
	return config, nil
}

// list writes what -l and -L show, each line once, and what the pattern stands for
// with SystemTap and not here. With -v -L the lines name resolved probe points.
func (r *builtinRun) list(points []check.Listed, lacks *diag.List) error {
	last := ""
	for _, p := range points {
		line := p.Name
		if r.List == 'L' {
			if r.Verbose > 0 {
				line = p.Point
			}
			line += p.Vars
		}
		if line != last {
			fmt.Fprintln(r.Stdout, line)
		}
		last = line
	}
	r.end(2, fmt.Sprintf("analyzed script: %s, 0 functions, 0 embeds, 0 globals", count(len(points), "probe")))
	if lacks != nil {
		if lacks.Lacks() {
			r.lack, r.documented = &LackError{lacks}, true
		}
		if len(points) > 0 {
			for _, d := range lacks.Errors {
				d.Severity = diag.Warning
			}
		}
		r.messages.Problem(lacks, "")
	}
	if len(points) == 0 {
		return errShown
	}
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// failure shows why a pass failed.
func (r *builtinRun) failure(err error) error {
	var list *diag.List
	if !errors.As(err, &list) {
		return err
	}
	if list.Lacks() || list.Unknown() {
		r.lack = &LackError{list}
		r.documented = list.Lacks()
	}
	if r.List != 0 {
		r.messages.Problem(list, "") // no pass is said to have failed
		return errShown
	}
	r.messages.Failure(list)
	return errShown
}

// checkGlobals holds -G against the script: staprun will set the values, but
// the kernel ignores names that it does not know.
func checkGlobals(prog *check.Program, settings []string) error {
next:
	for _, s := range settings {
		name, _, _ := strings.Cut(s, "=")
		for _, g := range prog.Globals {
			if g.Name == name && g.Settable {
				continue next
			}
		}
		return fmt.Errorf("-G %s: the script has no global scalar %q", s, name)
	}
	return nil
}

// contentName names a module for what it is made of, so that equal scripts have
// equal names.
func contentName(unit []byte, k kbuild.Kernel) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00", k.Release, k.BuildDir, kruntime.Version())
	h.Write(unit)
	return fmt.Sprintf("stap_%s_%d", hex.EncodeToString(h.Sum(nil))[:32], len(unit))
}

func (r *builtinRun) build(ctx context.Context, unit kbuild.Unit) (string, error) {
	rt := Runtime()
	p, err := kbuild.Open(r.StateDir, r.kernel, rt)
	if errors.Is(err, kbuild.ErrNotPrepared) {
		p, err = kbuild.Prepare(ctx, r.StateDir, r.kernel, rt, func(step string) {
			if r.Verbose > 0 {
				fmt.Fprintf(r.Stderr, "%s (once)\n", step)
			}
		})
	}
	if err != nil {
		return "", err
	}
	return p.Build(ctx, unit, r.TempDir)
}

// kernelConfig reads the CONFIG_ settings of a kernel.
func kernelConfig(buildDir string) (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(buildDir, ".config"))
	if err != nil {
		return nil, err
	}
	config := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(name, "CONFIG_") {
			config[name] = strings.Trim(value, `"`)
		}
	}
	return config, nil
}

// begin starts the clock of a pass.
func (r *builtinRun) begin() {
	r.start = time.Now()
	unix.Getrusage(unix.RUSAGE_SELF, &r.usage)
	unix.Getrusage(unix.RUSAGE_CHILDREN, &r.children)
}

// end notes the time of a pass, and writes its line with -v.
func (r *builtinRun) end(pass int, what string) {
	notePass(r.TempDir, pass, time.Since(r.start))
	if r.Passed != nil {
		r.Passed(pass)
	}
	if r.Verbose == 0 {
		return
	}
	var self, children unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &self)
	unix.Getrusage(unix.RUSAGE_CHILDREN, &children)
	ms := func(now, then, now2, then2 unix.Timeval) int64 {
		return (now.Nano() - then.Nano() + now2.Nano() - then2.Nano()) / 1e6
	}
	fmt.Fprintf(r.Stderr, "Pass %d: %s using %s, in %dusr/%dsys/%dreal ms.\n", pass, what, memory(),
		ms(self.Utime, r.usage.Utime, children.Utime, r.children.Utime),
		ms(self.Stime, r.usage.Stime, children.Stime, r.children.Stime),
		time.Since(r.start).Milliseconds())
}

// memory is "VIRTvirt/RESres/SHRshr/DATAdata kb" of this process (proc(5),
// statm).
func memory() string {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return "?kb"
	}
	var size, resident, shared, text, lib, data int64
	fmt.Sscan(string(b), &size, &resident, &shared, &text, &lib, &data)
	kb := int64(os.Getpagesize() / 1024)
	return fmt.Sprintf("%dvirt/%dres/%dshr/%ddata kb", size*kb, resident*kb, shared*kb, data*kb)
}
