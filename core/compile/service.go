// Package compile answers the requests of a compile server.
//
// A request archive is read and checked (service.go); its answer is looked up by
// everything it depends on (key.go), awaited where it is in the making
// (flight.go), or made: a worker, which is this program again in a sandbox,
// translates (worker.go, core/backend), and the server signs what it left.
package compile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"stapbox/core/backend"
	"stapbox/core/cache"
	"stapbox/core/getopt"
	"stapbox/core/kmod"
	"stapbox/core/mok"
	"stapbox/core/sandbox"
	"stapbox/core/signing"
	"stapbox/core/stapopts"
	"stapbox/core/wire"
)

// maxOutput is how much a worker may write to stdout and stderr, each.
const maxOutput = 4 << 20

// Release is a kernel a service builds for.
type Release struct {
	Name     string // what uname -r says there, and what clients ask for
	BuildDir string // its build tree, "" for /lib/modules/NAME/build
}

// Service answers compile requests: it decodes and checks them, has a worker
// translate them, and signs what the worker made. Requests that are the same at
// the same time are translated once; finished answers are kept in Cache. One
// Service serves any number of requests at a time; how many workers run at once
// is up to Slot.
type Service struct {
	Releases  []Release
	Arch      string          // normalised (Arch)
	Options   []string        // translator options of the server (-D ...), before the client's
	Rlimits   []sandbox.Limit // of a worker
	Environ   []string        // HOME, SYSTEMTAP_DIR and the like, for the worker
	StateDir  string          // prepared kernels; workers of requests only read it
	Home      string          // replaced by <server> in what clients see
	TempDir   string          // where request directories are made
	WallClock time.Duration   // of a worker
	Limits    wire.Limits
	Keep      bool

	// Worker is the executable and argv[0] of a worker: this very program as
	// applet stap. A running program is reached through /proc even after its
	// file was replaced.
	Worker []string
	// Sandbox is what workers run in; nil is as much as this host allows.
	Sandbox *sandbox.Sandbox
	// Translator is stapopts.TranslatorBuiltin, also if it is "", stapopts.TranslatorSystemtap, or
	// stapopts.TranslatorAuto, with which clients may choose.
	Translator string
	// SignSystemtap lets modules of stapopts.TranslatorSystemtap be signed.
	SignSystemtap bool
	// Readable are files and directories that scripts may name, besides the
	// toolchain's.
	Readable []string

	// Imports is what modules below stapdev may import from the kernel of a release,
	// usually RuntimeImports; nil is no second look.
	Imports func(Release) (map[string]bool, error)

	// Cache keeps answers; nil is none.
	Cache *cache.Store
	// Slot waits for the right to run a worker for a request; nil is no limit. Its
	// error is for the client. Answers that are there already need none.
	Slot func(context.Context) (release func(), err error)

	// MOKs are the machine owner keys that modules are signed with for kernels;
	// nil is none. MOKGuru lets modules with guru-mode code be among them.
	MOKs    func() []*mok.Key
	MOKGuru bool

	Key func() crypto.Signer
	// SignerName names the certificate of a key of Key for the log; nil is no name.
	SignerName func(crypto.Signer) string
	Log        func(format string, args ...any)
	// Requests gets one structured line per request.
	Requests *slog.Logger
	// Done is told what became of each request, and Phase how long a part of the
	// work took: check, wait (for a slot), translate, sign, store, or pass1 to
	// pass4 as the worker says. Either may be nil.
	Done  func(Outcome)
	Phase func(name string, took time.Duration)

	// preparing holds, per release name, a channel that is closed when what is
	// made once for that kernel is ready; see Warm.
	preparing map[string]chan struct{}

	mu      sync.Mutex
	flights map[cache.Key]*flight
	kernels map[string]*readiness // by release name
	making  sync.WaitGroup        // flights, until their answers are stored

	detect   sync.Once
	once     sync.Once
	program  program
	unstored atomic.Bool // the last answer could not be stored
}

// Outcome is what became of a request.
type Outcome struct {
	RC      int
	Refused bool   // a rule of the server was against it; RC is not 0
	Gone    bool   // the client did not wait for the answer
	Failed  bool   // for a reason that is the server's
	Cache   string // hit, miss, joined, off; "" when it did not come to that
	Time    time.Duration
}

func (s *Service) phase(name string, took time.Duration) {
	if s.Phase != nil {
		s.Phase(name, took)
	}
}

// Succeed makes s, which was not used yet, the successor of a service that has
// begun to serve the same kernels with other settings: what is prepared, or will
// be, is not prepared anew. Both may be used from here on.
func (s *Service) Succeed(old *Service) { s.preparing = old.preparing }

// Warm prepares all kernels, one after the other, until ctx ends. Requests for
// a kernel whose turn has not come wait for it: otherwise they would do the
// same work beside it. It is called before the first request; the function
// returned does the work.
func (s *Service) Warm(ctx context.Context) func() {
	s.preparing = make(map[string]chan struct{})
	for _, k := range s.Releases {
		s.preparing[k.Name] = make(chan struct{})
	}
	return func() {
		s.self()
		for _, k := range s.Releases {
			start := time.Now()
			if err := s.Prepare(ctx, k); err != nil {
				s.Log("%v", err)
			} else {
				s.Log("Kernel %s is ready after %v", k.Name, time.Since(start).Round(time.Millisecond))
			}
			close(s.preparing[k.Name])
		}
	}
}

// Self is Service.Worker for this program.
var Self = []string{"/proc/self/exe", "stap"}

// request is one request on its way through the service.
type request struct {
	archive []byte
	wire    *wire.Request // without Files once it is checked: many may wait
	opts    *stapopts.Options
	argv    []string // of the client, without -r
	release Release
	env     []string
	// translator is that of this request, madeBy the one that made the module
	translator, madeBy string
	digest             string
	// contents is the digest of the files in archive
	contents string
	// complaints about the request, the beginning of stderr
	complaints string
	script     string        // SHA-256 of the text of the script
	id         cache.Key     // of the answer
	key        crypto.Signer // the server's, the same from check to signature
	mok        *mok.Key      // that the module is signed with for the kernel, or nil
	offer      []byte        // certificate of one for the client to enrol, or nil

	dir    string // the request directory
	lock   *os.File
	stdout []byte
	stderr bytes.Buffer
	rc     int
	cut    bool // stdout or stderr is not whole
	files  []wire.File
	module string
	signer string // fingerprint-free note for the log: "signed", "unsigned"
	sum    string // SHA-256 of the module
	by     string // the name of the certificate whose key signed it
}

// refusal ends a request with a reason for the client and for the log.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// Do answers one request archive with a response archive. There is always an
// answer with version, status and both outputs; a refusal says why in stderr.
// ctx ends with the client's connection.
func (s *Service) Do(ctx context.Context, archive []byte, peer string) ([]byte, error) {
	start := time.Now()
	r := &request{archive: archive, rc: 1, signer: "unsigned"}
	var res result
	if err := s.guard(func() error { return s.receive(ctx, r) }); err != nil {
		res = s.finish(ctx, r, err)
	} else {
		res = s.answer(ctx, r)
	}
	s.record(ctx, r, res, peer, start)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if res.answer == nil {
		return nil, res.err
	}
	return res.answer, nil
}

// guard makes a panic of f an error: a bug that a request meets is the end of
// the request, not of the server and of all others' requests.
func (s *Service) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Log("A bug: %v: %s", p, oneLine(string(debug.Stack())))
			err = fmt.Errorf("a bug: %v", p)
		}
	}()
	return f()
}

// finish ends the work on a request, whatever came of it, and writes the answer.
func (s *Service) finish(ctx context.Context, r *request, err error) result {
	var no *refusal
	switch {
	case errors.As(err, &no):
		r.rc, r.files = max(r.rc, 1), nil
		s.Log("%s", oneLine(no.text))
		fmt.Fprintln(&r.stderr, no.text)
	case err != nil:
		// Details of the host are for the log only.
		r.rc, r.files = max(r.rc, 1), nil
		s.Log("Error processing client request: %v", err)
		if ctx.Err() == nil {
			fmt.Fprintln(&r.stderr, "Server: an internal error ended this request, the log of the server has the details")
		}
	}
	if r.dir != "" {
		if s.Keep {
			s.Log("Keeping temporary directory %s", r.dir)
		} else if rerr := os.RemoveAll(r.dir); rerr != nil {
			s.Log("Removing %s: %v", r.dir, rerr)
		}
		r.lock.Close()
	}
	// A failure may come from a full disk, a limit or a signal as well as from the
	// script, and its status does not tell; that of a script costs little again,
	// as no compiler has run. So only success is kept.
	res := result{rc: r.rc, signer: r.signer, module: r.module, sum: r.sum, by: r.by, err: err, madeBy: r.madeBy,
		keep: err == nil && r.rc == 0 && !r.cut && r.madeBy != stapopts.TranslatorSystemtap}
	if ctx.Err() != nil {
		res.keep = false
		return res
	}
	answer, err := (&wire.Response{
		Version: wire.Version, RC: r.rc, Files: r.files,
		Stdout: s.hide(r.stdout, r), Stderr: s.hide(r.stderr.Bytes(), r), SigningKey: r.offer,
	}).Encode()
	if err != nil {
		res.err, res.keep = err, false
		return res
	}
	res.answer = answer
	return res
}

func (s *Service) record(ctx context.Context, r *request, res result, peer string, start time.Time) {
	took := time.Since(start)
	if s.Done != nil {
		var no *refusal
		o := Outcome{RC: res.rc, Refused: errors.As(res.err, &no), Gone: ctx.Err() != nil, Cache: res.made, Time: took}
		o.Failed = res.err != nil && !o.Refused && !o.Gone
		s.Done(o)
	}
	attrs := []slog.Attr{
		slog.String("peer", peer), slog.String("digest", r.digest),
		slog.Int("rc", res.rc), slog.String("signature", res.signer),
		slog.Duration("time", took.Round(time.Microsecond)),
	}
	for _, a := range [][2]string{{"script", r.script}, {"module", res.module}, {"module_sha256", res.sum}, {"signer", res.by}} {
		if a[1] != "" {
			attrs = append(attrs, slog.String(a[0], a[1]))
		}
	}
	if r.wire != nil {
		attrs = append(attrs, slog.String("release", oneLine(r.wire.Release)), slog.String("client", r.wire.Version))
	}
	if r.opts != nil {
		attrs = append(attrs, slog.String("level", r.opts.Privilege.String()))
	}
	if r.mok != nil {
		attrs = append(attrs, slog.String("mok", r.mok.Fingerprint()))
	}
	if res.madeBy != "" {
		attrs = append(attrs, slog.String("translator", res.madeBy))
	}
	if res.made != "" {
		attrs = append(attrs, slog.String("cache", res.made), slog.String("key", r.id.Short()))
	}
	level := slog.LevelInfo
	if res.err != nil {
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("error", oneLine(res.err.Error())))
	}
	s.Requests.LogAttrs(context.WithoutCancel(ctx), level, "request", attrs...)
}

// hide replaces the names of places on the server.
func (s *Service) hide(text []byte, r *request) []byte {
	for _, dir := range []string{filepath.Join(r.dir, "response"), r.dir, s.Home} {
		if r.dir == "" && dir != s.Home || dir == "" || dir == "/" || dir == "response" {
			continue
		}
		text = bytes.ReplaceAll(text, []byte(dir), []byte("<server>"))
	}
	return text
}

// receive reads and checks a request and finds the key of its answer. It waits
// for the kernel to be prepared: the key covers what is prepared.
func (s *Service) receive(ctx context.Context, r *request) error {
	began := time.Now()
	err := s.read(ctx, r)
	s.phase("check", time.Since(began))
	if err != nil {
		return err
	}
	if ready := s.preparing[r.release.Name]; ready != nil {
		select {
		case <-ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	r.id = s.influences(r).key()
	return nil
}

// read unpacks a request to check it. Few do at a time, and none keeps the files:
// requests that wait should take little memory.
func (s *Service) read(ctx context.Context, r *request) error {
	turn := s.self().reading
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var err error
	if r.wire, err = wire.DecodeRequest(r.archive, s.Limits); err != nil {
		var size *wire.SizeError
		switch {
		case errors.Is(err, wire.ErrSysinfo):
			return refuse("%v", err)
		case errors.As(err, &size):
			return refuse("%v (--max-request-size)", err)
		}
		return refuse("Unable to extract client request: %v", err)
	}
	err = s.check(r)
	r.wire.Files = nil
	return err
}

// make has a checked request translated and signs the module.
func (s *Service) make(ctx context.Context, r *request) error {
	err := s.ready(ctx, r)
	if err != nil {
		return err
	}
	if r.dir, r.lock, err = s.makeDir(); err != nil {
		return err
	}
	if err := s.unpack(r); err != nil {
		return err
	}
	began := time.Now()
	err = s.translate(ctx, r)
	s.phase("translate", time.Since(began))
	s.passes(filepath.Join(r.dir, "response", wire.BuildDir))
	if err != nil {
		return err
	}
	r.madeBy = backend.MadeBy(filepath.Join(r.dir, "response", wire.BuildDir))
	if r.rc != 0 || r.opts.LastPass < 4 {
		return nil
	}
	began = time.Now()
	defer func() { s.phase("sign", time.Since(began)) }()
	return s.sign(r)
}

// check decides everything that can be decided without running anything.
func (s *Service) check(r *request) error {
	var complaints []string
	r.env, complaints = checkLocale(r.wire.Locale)
	if !r.wire.HasLocale && wire.CompareVersions(r.wire.Version, "1.6") >= 0 {
		complaints = append(complaints, "Unable to open file locale for reading: the request has none")
	}
	s.complain(r, complaints)
	s.Log("Client version is %s", r.wire.Version)
	s.Log("Options passed from the client: %s", oneLine(strings.Join(r.wire.Args, " ")))

	if err := s.target(r, r.wire.Release, r.wire.Arch); err != nil {
		return err
	}

	spec := stapopts.Spec()
	list, words, err := getopt.Parse(spec, r.wire.Args)
	if err != nil {
		return refuse("stap: %v\n%s", err, strings.TrimSuffix(stapopts.Hint, "\n"))
	}
	// The server's own -r says where the build tree is; a client's may only
	// repeat the release it asked for in sysinfo, or name another one we have.
	own := list[:0]
	var last string
	for _, o := range list {
		if o.Name == "r" {
			last = o.Value
			continue
		}
		if o.Name == "translator" {
			continue // see translator
		}
		own = append(own, o)
	}
	all := append(append(slices.Clone(s.Options), "--client-options"), r.wire.Args...)
	r.opts, err = stapopts.Parse(all)
	var usage *stapopts.UsageError
	switch {
	case errors.As(err, &usage):
		return refuse("%v\n%s", err, strings.TrimSuffix(stapopts.Hint, "\n"))
	case err != nil:
		return refuse("%v", err)
	case r.opts.Help || r.opts.Version:
		return refuse("ERROR: a compile server answers neither --help nor --version")
	}
	if last != "" && last != r.wire.Release {
		if err := s.target(r, last, r.wire.Arch); err != nil {
			return err
		}
	}
	if a := r.opts.Arch; a != "" && a != s.Arch {
		return refuse("Target architecture %s is not supported by this server, which builds for %s", a, s.Arch)
	}
	if f := r.opts.File; f != "" && (!strings.HasPrefix(f, "script/") || filepath.Clean(f) != f) {
		return refuse("ERROR: script %q is not part of the request: a server opens no file of its own by a client's word. Send the script with the request, as stap does.", f)
	}
	if r.translator, err = s.translator(r.opts); err != nil {
		return err
	}
	for _, dir := range r.opts.ClientTapsets {
		if !strings.HasPrefix(dir, "tapset/") || filepath.Clean(dir) != dir {
			return refuse("ERROR: tapset %q is not part of the request: a server reads no directory of its own by a client's word. Send it with the request, as stap -I does.", dir)
		}
	}
	if err := s.chooseMOK(r); err != nil {
		return err
	}
	r.argv = spec.Words(own, words)
	r.digest, r.contents, r.script = digest(r), contents(r.wire.Files), scriptDigest(r)
	r.complaints, r.key = r.stderr.String(), s.Key()
	return nil
}

// complain tells the client and the log about what is not used of a request.
func (s *Service) complain(r *request, complaints []string) {
	for _, c := range complaints {
		s.Log("%s", c)
		fmt.Fprintf(&r.stderr, "Server: %s\n", c)
	}
}

// target finds the kernel to build for.
func (s *Service) target(r *request, release, arch string) error {
	i := slices.IndexFunc(s.Releases, func(k Release) bool { return k.Name == release })
	if i < 0 {
		return refuse("Target kernel version %s is not supported by this server", oneLine(release))
	}
	if arch != "" && arch != s.Arch {
		return refuse("Target architecture %s is not supported by this server, which builds for %s", oneLine(arch), s.Arch)
	}
	r.release = s.Releases[i]
	return nil
}

// digest names what was asked: equal requests have equal digests.
func digest(r *request) string {
	h := sha256.New()
	put := func(parts ...string) {
		for _, p := range parts {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
	}
	put("request", r.release.Name, r.release.BuildDir)
	put(strconv.Itoa(len(r.argv)))
	put(r.argv...)
	put(strconv.Itoa(len(r.env)))
	put(r.env...)
	files := slices.SortedFunc(slices.Values(r.wire.Files), func(a, b wire.File) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range files {
		put(f.Name, string(f.Data))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// scriptDigest is the SHA-256 of the text of the script: of -e, or of the file.
func scriptDigest(r *request) string {
	text := []byte(r.opts.Script)
	if !r.opts.HasScript {
		i := slices.IndexFunc(r.wire.Files, func(f wire.File) bool { return f.Name == r.opts.File })
		if i < 0 {
			return ""
		}
		text = r.wire.Files[i].Data
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// unpack writes the trees of the request. Their names were checked when the
// archive was read; os.Root holds the files below the directory all the same.
func (s *Service) unpack(r *request) error {
	for _, d := range []string{"request", "response", filepath.Join("response", wire.BuildDir)} {
		if err := os.Mkdir(filepath.Join(r.dir, d), 0o700); err != nil {
			return fmt.Errorf("making a request directory: %w", err)
		}
	}
	root, err := os.OpenRoot(filepath.Join(r.dir, "request"))
	if err != nil {
		return fmt.Errorf("opening a request directory: %w", err)
	}
	defer root.Close()
	again, err := wire.DecodeRequest(r.archive, s.Limits)
	if err != nil {
		return fmt.Errorf("unpacking a request again: %w", err)
	}
	for _, f := range again.Files {
		if err := root.MkdirAll(filepath.Dir(f.Name), 0o700); err != nil {
			return fmt.Errorf("unpacking %q: %w", f.Name, err)
		}
		w, err := root.OpenFile(f.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("unpacking %q: %w", f.Name, err)
		}
		_, err = w.Write(f.Data)
		if cerr := w.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("unpacking %q: %w", f.Name, err)
		}
	}
	return nil
}

// sign takes the module the worker left and, below stapdev, signs it. The
// level the signature stands for is the one the request was checked with, and
// the module must declare the same (decision T6).
func (s *Service) sign(r *request) error {
	dir := filepath.Join(r.dir, "response", wire.BuildDir)
	names, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return err
	}
	switch {
	case len(names) == 0:
		return refuse("Unable to find a module in %s", dir)
	case len(names) > 1:
		return refuse("Too many modules (%d) in %s", len(names), dir)
	}
	module, err := backend.ReadLeft(names[0], backend.MaxModule)
	if err != nil {
		return fmt.Errorf("reading the module: %w", err)
	}
	name := filepath.Base(names[0])
	plain := module
	if module, err = s.signForKernel(r, plain); err != nil {
		return err
	}
	files := []wire.File{{Name: name, Data: module}}
	if r.opts.Unprivileged() {
		level, present, err := kmod.RequiredLevel(plain)
		if err != nil {
			return fmt.Errorf("reading the privilege level of the module: %w", err)
		}
		if !present || level != r.opts.Privilege {
			return refuse("Server: the module declares privilege level %s and not %s, it is not signed", level, r.opts.Privilege)
		}
		if err := s.checkImports(r, plain); err != nil {
			return err
		}
		sig, err := signing.Sign(module, r.key)
		if err != nil {
			return err
		}
		files = append(files, wire.File{Name: name + signing.Extension, Data: sig})
		r.signer = "signed"
		if s.SignerName != nil {
			r.by = s.SignerName(r.key)
		}
	}
	sum := sha256.Sum256(module)
	r.sum = hex.EncodeToString(sum[:])
	r.files, r.module = files, strings.TrimSuffix(name, ".ko")
	return nil
}
