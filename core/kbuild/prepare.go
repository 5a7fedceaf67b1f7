// Package kbuild builds kernel modules fast.
//
// The kernel's own build system needs one to three seconds for an empty module.
// It is used once for each kernel, to learn from: a small module is built with
// make, and the exact command lines of compiler, linker, objtool and modpost
// are kept. With them everything that does not depend on a script is prepared:
//
//	recipe.json    the command lines, and what the rest was made from
//	include/       the flat header of script units
//	build/         links to the kernel's build directory
//	runtime.o      the runtime, compiled against the kernel's headers
//	runtime.a      those parts of it that not every script needs
//	module.o       what modpost makes: struct module, CRCs of symbols, version magic
//
// A script then costs one compilation without kernel headers, two links and one
// run of objtool on the linked result. Per object objtool would be wrong: on
// kernels with indirect branch tracking it seals functions whose address is
// taken only by other objects.
//
// module.o carries a nameSlot for the module's name, which is overwritten in
// the finished file. Its CRC table is a superset: all that the runtime needs
// and what compilers call by themselves (extras). A module that needs a symbol
// outside of it gets a module.o of its own from modpost.
//
// Preparation never sees anything of a client. It happens in a directory of its
// own, which is renamed when complete.
package kbuild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"stapbox/core/version"
)

// Runtime is the C that is compiled once per kernel.
type Runtime struct {
	Version string            // changes whenever any of the rest does
	Files   map[string][]byte // by name; those ending in .c are compiled
	Headers []string          // the files of Files that script units include
	Common  string            // the file of Files that all sources include first; "" if there is none
	Always  []string          // .c files every module is linked with; of the others, what it needs
	Defines []string          // NAME or NAME=VALUE, for all of Files
	Probes  []Probe
}

// Probe is a question about a kernel that its version number does not answer:
// if Source compiles with the kernel's headers, the runtime is compiled with
// -DName.
type Probe struct {
	Name   string
	Source string
}

// Prepared is a kernel ready to build modules for.
type Prepared struct {
	Kernel  Kernel
	Dir     string
	Version string // what a module is made with: digest over kernel, compiler and runtime

	recipe  recipe
	symbols map[string]bool // the CRC table of module.o
}

// manifest is recipe.json.
type manifest struct {
	Format   int
	Kernel   Kernel
	Identity string // of the kernel's build directory
	Compiler string // identity of the compiler's file
	Runtime  string // Runtime.Version
	Recipe   recipe
	Features []string          // probes that compiled
	Symbols  []string          // names in module.o's CRC table
	Digests  map[string]string // SHA-256 of what Build uses, by file name
}

const (
	format       = 4
	manifestName = "recipe.json"
	runtimeName  = "runtime.o"
	archiveName  = "runtime.a"
	moduleName   = "module.o"
	commonName   = "common.o"
)

// ErrNotPrepared is returned by Open when there is nothing usable for a kernel.
var ErrNotPrepared = errors.New("kernel is not prepared")

// directory names a kernel's prepared state: a different build directory or
// runtime has a different one.
func directory(stateDir string, k Kernel, rt Runtime) string {
	sum := sha256.Sum256([]byte(k.identity() + rt.Version + version.Version + fmt.Sprint(format)))
	return filepath.Join(stateDir, k.Release+"-"+hex.EncodeToString(sum[:6]))
}

// Open finds what Prepare left for a kernel. Whatever does not fit any more, a
// replaced compiler or a changed file, makes it ErrNotPrepared.
func Open(stateDir string, k Kernel, rt Runtime) (*Prepared, error) {
	dir := directory(stateDir, k, rt)
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrNotPrepared
		}
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%w: %q: %v", ErrNotPrepared, filepath.Join(dir, manifestName), err)
	}
	if m.Format != format || m.Identity != k.identity() || m.Runtime != rt.Version || m.Compiler != compilerIdentity(m.Recipe) {
		return nil, fmt.Errorf("%w: headers, compiler or runtime have changed", ErrNotPrepared)
	}
	for name, want := range m.Digests {
		if got, err := fileDigest(filepath.Join(dir, name)); err != nil || got != want {
			return nil, fmt.Errorf("%w: %q is not the file that was prepared", ErrNotPrepared, filepath.Join(dir, name))
		}
	}
	sum := sha256.Sum256(b)
	p := &Prepared{Kernel: k, Dir: dir, Version: hex.EncodeToString(sum[:]), recipe: m.Recipe, symbols: map[string]bool{}}
	for _, s := range m.Symbols {
		p.symbols[s] = true
	}
	return p, nil
}

// Prepare makes what Open finds. One process does it at a time for all kernels
// of a state directory; those that waited use what the first one made. say is
// told each step.
func Prepare(ctx context.Context, stateDir string, k Kernel, rt Runtime, say func(string)) (*Prepared, error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(stateDir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, &os.PathError{Op: "lock", Path: lock.Name(), Err: err}
	}
	if p, err := Open(stateDir, k, rt); err == nil {
		return p, nil
	}
	dir := directory(stateDir, k, rt)
	work, err := PlainTemp(stateDir)
	if err != nil {
		return nil, fmt.Errorf("preparing kernel %s: %w", k.Release, err)
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return nil, err
	}
	pr := &preparation{ctx: ctx, dir: work, kernel: k, rt: rt, say: say}
	if err := pr.run(); err != nil {
		return nil, fmt.Errorf("preparing kernel %s: %w", k.Release, err)
	}
	if filepath.Dir(work) != stateDir {
		moved, err := os.MkdirTemp(stateDir, ".preparing-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(moved)
		if err := errors.Join(os.Chmod(moved, 0o755), copyTree(work, moved)); err != nil {
			return nil, err
		}
		work = moved
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(work, dir); err != nil {
		return nil, err
	}
	return Open(stateDir, k, rt)
}

// preparation is one run of Prepare.
type preparation struct {
	ctx    context.Context
	dir    string
	kernel Kernel
	rt     Runtime
	say    func(string)

	recipe   recipe
	features []string
	common   []string // the compiler command with Common precompiled
	optional []string // objects in the archive
}

func (p *preparation) path(name string) string { return filepath.Join(p.dir, name) }

func (p *preparation) run() error {
	for _, d := range []string{"build", "learn", "src", "include"} {
		if err := os.Mkdir(p.path(d), 0o755); err != nil {
			return err
		}
	}
	if err := p.kernel.shadow(p.path("build")); err != nil {
		return err
	}
	p.say("learning how kernel " + p.kernel.Release + " builds modules")
	if err := p.learn(); err != nil {
		return err
	}
	for name, text := range p.rt.Files {
		if err := os.WriteFile(filepath.Join(p.dir, "src", name), text, 0o644); err != nil {
			return err
		}
	}
	for _, name := range p.rt.Headers {
		if err := os.WriteFile(filepath.Join(p.dir, "include", name), p.rt.Files[name], 0o644); err != nil {
			return err
		}
	}
	p.say("compiling the runtime for kernel " + p.kernel.Release)
	independent := []func() error{p.precompile, p.probe}
	if err := parallel(len(independent), func(i int) error { return independent[i]() }); err != nil {
		return err
	}
	if err := p.compileRuntime(); err != nil {
		return err
	}
	symbols, err := p.compileModuleObject()
	if err != nil {
		return err
	}
	return p.writeManifest(symbols)
}

// learn builds a module of two objects with make and reads the commands it left.
func (p *preparation) learn() error {
	dir := p.path("learn")
	for name, text := range map[string]string{
		"a.c":      "#include <linux/module.h>\nint b(void);\nstatic int __init start(void) { return b(); }\nmodule_init(start);\nMODULE_LICENSE(\"Dual MIT/GPL\");\n",
		"b.c":      "int b(void);\nint b(void) { return 0; }\n",
		"Makefile": "obj-m := learn.o\nlearn-y := a.o b.o\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// Debian's Makefile sets KBUILD_OUTPUT to its own directory. Since 6.13 the
	// module is then built where make runs, and modpost writes Module.symvers
	// through the link there: as root, into the installed headers.
	output := "KBUILD_OUTPUT=" + p.path("build")
	if err := command(p.ctx, p.path("build"), "make", "-s", "-j"+fmt.Sprint(runtime.NumCPU()), "M="+dir, output, "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"); err != nil {
		return err
	}
	var err error
	p.recipe, err = readRecipe(dir)
	p.recipe.relocate(p.path("build"))
	if err == nil && p.recipe.ModCommon {
		err = os.Rename(filepath.Join(dir, ".module-common.o"), p.path(commonName))
	}
	return err
}

// parallel runs jobs, as many at a time as there are processors, and gives the
// first error.
func parallel(n int, job func(i int) error) error {
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, runtime.NumCPU())
		errs  = make([]error, n)
	)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			errs[i] = job(i)
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// probe compiles the feature probes. That one does not compile is an answer.
func (p *preparation) probe() error {
	have := make([]bool, len(p.rt.Probes))
	err := parallel(len(have), func(i int) error {
		source := filepath.Join(p.dir, "learn", fmt.Sprintf("probe%d.c", i))
		if err := os.WriteFile(source, []byte(p.rt.Probes[i].Source), 0o644); err != nil {
			return err
		}
		err := p.compile(p.recipe.Compile, source, strings.TrimSuffix(source, ".c")+".o", "-fsyntax-only")
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return err
		}
		have[i] = err == nil
		return nil
	})
	for i, ok := range have {
		if ok {
			p.features = append(p.features, p.rt.Probes[i].Name)
		}
	}
	return err
}

// precompile makes the compiler read the kernel's headers once instead of once
// for each source. Common, and what the recipe includes before everything else,
// become one precompiled header, which GCC wants to be the first include. Where
// it does not fit, because of another -D that matters, GCC reads its source.
func (p *preparation) precompile() error {
	p.common = p.recipe.Compile
	if p.rt.Common == "" {
		return nil
	}
	var text strings.Builder
	var rest []string
	for i := 0; i < len(p.recipe.Compile); i++ {
		if p.recipe.Compile[i] != "-include" {
			rest = append(rest, p.recipe.Compile[i])
			continue
		}
		i++
		name := p.recipe.Compile[i]
		if !filepath.IsAbs(name) {
			name = filepath.Join(p.path("build"), name)
		}
		fmt.Fprintf(&text, "#include %q\n", name)
	}
	fmt.Fprintf(&text, "#include %q\n", p.rt.Common)
	header := p.path("src/precompiled.h")
	if err := os.WriteFile(header, []byte(text.String()), 0o644); err != nil {
		return err
	}
	p.common = append(slices.Clone(rest), "-include", header)
	return p.compile(rest, header, header+".gch", defines(p.rt.Defines)...)
}

func defines(names []string) []string {
	var words []string
	for _, n := range names {
		words = append(words, "-D"+n)
	}
	return words
}

// compile runs a compiler command of the recipe.
func (p *preparation) compile(compiler []string, source, object string, more ...string) error {
	words := expand(compiler, map[string]string{varSource: source, varObject: object, varName: nameSlot})
	return command(p.ctx, p.path("build"), append(append(words, "-I"+p.path("include"), "-I"+p.path("src")), more...)...)
}

// extras calls what a compiler may call by itself in a script unit, so that the
// CRC table has it.
const extras = `#include <linux/string.h>
void stp_extras(char *a, const char *b, unsigned long n, void (*f)(void));
void stp_extras(char *a, const char *b, unsigned long n, void (*f)(void))
{
	volatile char big[64];
	big[n & 63] = 1;
	(memcpy)(a, b, n);
	(memset)(a, big[0], n);
	(memmove)(a, b, n);
	a[0] = (memcmp)(a, b, n) + (strlen)(b) + (strcmp)(a, b);
	f();
}
`

func (p *preparation) compileRuntime() error {
	if err := os.WriteFile(p.path("src/extras.c"), []byte(extras), 0o644); err != nil {
		return err
	}
	var sources []string
	for name := range p.rt.Files {
		if strings.HasSuffix(name, ".c") {
			sources = append(sources, name)
		}
	}
	slices.Sort(sources)
	definitions := defines(append(slices.Clone(p.rt.Defines), p.features...))
	objects := make([]string, len(sources))
	err := parallel(len(sources)+1, func(i int) error {
		if i == len(sources) {
			return p.compile(p.common, p.path("src/extras.c"), p.path("src/extras.o"), definitions...)
		}
		source := filepath.Join(p.dir, "src", sources[i])
		objects[i] = strings.TrimSuffix(source, ".c") + ".o"
		return p.compile(p.common, source, objects[i], definitions...)
	})
	if err != nil {
		return err
	}
	var always []string
	for i, name := range sources {
		if slices.Contains(p.rt.Always, name) {
			always = append(always, objects[i])
		} else {
			p.optional = append(p.optional, objects[i])
		}
	}
	if err := command(p.ctx, p.path("build"), expand(p.recipe.Link, map[string]string{varObject: p.path(runtimeName)}, always...)...); err != nil {
		return err
	}
	return command(p.ctx, p.dir, append([]string{p.recipe.archiver(), "rcs", p.path(archiveName)}, p.optional...)...)
}

// compileModuleObject has modpost make the source of module.o for the runtime
// together with the extras, and compiles it.
func (p *preparation) compileModuleObject() (symbols []string, err error) {
	whole := filepath.Join(p.dir, "learn", "whole.o")
	link := expand(p.recipe.Link, map[string]string{varObject: whole}, append([]string{p.path(runtimeName), p.path("src/extras.o")}, p.optional...)...)
	if err := command(p.ctx, p.path("build"), link...); err != nil {
		return nil, err
	}
	source, err := modpost(p.ctx, p.recipe, p.path("build"), whole, true)
	if err != nil {
		return nil, err
	}
	if err := p.compile(p.common, source, p.path(moduleName), defines(append(slices.Clone(p.rt.Defines), p.features...))...); err != nil {
		return nil, err
	}
	object, err := os.ReadFile(whole)
	if err != nil {
		return nil, err
	}
	return undefined(object)
}

// modpost runs modpost on a linked object OBJ.o and gives the path of the source
// it made, OBJ.mod.c. Symbols that the script unit will define are not its
// concern when only the runtime is looked at.
func modpost(ctx context.Context, r recipe, build, object string, partial bool) (string, error) {
	base := strings.TrimSuffix(object, ".o")
	order := base + ".order"
	if err := os.WriteFile(order, []byte(object+"\n"), 0o644); err != nil {
		return "", err
	}
	// The list of objects to make a source version of stays empty.
	if err := os.WriteFile(base+".mod", nil, 0o644); err != nil {
		return "", err
	}
	words := expand(r.Modpost, map[string]string{varOrder: order, varSymvers: base + ".symvers"})
	if partial {
		words = slices.Insert(words, 1, "-w") // unresolved symbols are warnings
	}
	if err := command(ctx, build, words...); err != nil {
		return "", err
	}
	source := base + ".mod.c"
	f, err := os.OpenFile(source, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// The loader knows our own modules by this.
	_, err = fmt.Fprintf(f, "MODULE_INFO(stapbox, %q);\n", version.Version)
	return source, err
}

func (p *preparation) writeManifest(symbols []string) error {
	m := manifest{
		Format: format, Kernel: p.kernel, Identity: p.kernel.identity(), Compiler: compilerIdentity(p.recipe),
		Runtime: p.rt.Version, Recipe: p.recipe, Features: p.features, Symbols: symbols, Digests: map[string]string{},
	}
	used := []string{runtimeName, archiveName, moduleName}
	if p.recipe.ModCommon {
		used = append(used, commonName)
	}
	for _, h := range p.rt.Headers {
		used = append(used, filepath.Join("include", h))
	}
	for _, name := range used {
		d, err := fileDigest(p.path(name))
		if err != nil {
			return err
		}
		m.Digests[name] = d
	}
	for _, d := range []string{"learn", "src"} {
		if err := os.RemoveAll(p.path(d)); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(p.path(manifestName), append(b, '\n'), 0o644)
}

func fileDigest(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// compilerIdentity tells one version of the recipe's compiler from another.
func compilerIdentity(r recipe) string {
	if len(r.Compile) == 0 {
		return ""
	}
	path, err := exec.LookPath(r.Compile[0])
	if err != nil {
		return err.Error()
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return fileIdentity(path)
}

// ToolError is a failed command of a build: what it was and what it said.
type ToolError struct {
	Tool   string
	Output string
	err    error
}

// Error is the tool's own output, when there is any.
func (e *ToolError) Error() string {
	if out := strings.TrimSpace(e.Output); out != "" {
		return fmt.Sprintf("running %q: %v\n%s", e.Tool, e.err, out)
	}
	return fmt.Sprintf("running %q: %v", e.Tool, e.err)
}

// Unwrap gives the error of package exec.
func (e *ToolError) Unwrap() error { return e.err }

// environment is what the programs of a build get of ours.
var environment = []string{"PATH=", "TMPDIR=", "LANG=", "LC_"}

// command runs one program in dir, quietly unless it fails. It dies with us.
func command(ctx context.Context, dir string, words ...string) error {
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"SRCARCH=" + srcArch()} // Debian's objtool is a wrapper that needs it
	for _, e := range os.Environ() {
		if slices.ContainsFunc(environment, func(p string) bool { return strings.HasPrefix(e, p) }) {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out beginning
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return &ToolError{words[0], out.String(), err}
	}
	return nil
}

// maxSaid is how much of what a tool says is kept: what a compiler says to a
// script may be without end.
const maxSaid = 1 << 20

// beginning keeps the first maxSaid bytes written to it. It has no other methods
// of a buffer: io.Copy would use them.
type beginning struct{ b bytes.Buffer }

func (o *beginning) String() string { return o.b.String() }

func (o *beginning) Write(p []byte) (int, error) {
	room := maxSaid - o.b.Len()
	if len(p) <= room {
		return o.b.Write(p)
	}
	if room >= 0 {
		o.b.Write(p[:room])
		o.b.WriteString("\n[output cut here]\n")
	}
	return len(p), nil
}

func srcArch() string {
	switch runtime.GOARCH {
	case "amd64", "386":
		return "x86"
	case "ppc64", "ppc64le":
		return "powerpc"
	case "s390x":
		return "s390"
	case "riscv64":
		return "riscv"
	}
	return runtime.GOARCH
}
