package compile

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"stapbox/core/backend"
	"stapbox/core/cache"
	"stapbox/core/kbuild"
	"stapbox/core/sandbox"
	"stapbox/core/wire"
)

// influences is everything that the answer to a request depends on. A backend
// that looks at anything else needs a line here: two requests that differ in it
// would get the same answer.
//
// Not here, because they decide only whether there is a successful answer, and
// others are not kept: limits on size and time, the load, the version of the
// client (but for the complaints about what it sent) and where it is. The
// architecture a client names is this server's or refused.
type influences struct {
	Program    string          // SHA-256 of the worker's file: translator, tapset and runtime are parts of it
	Protocol   string          // version the answer carries
	Release    string          // kernel release asked for, in sysinfo or by -r
	BuildDir   string          // where the server was told to look for its headers
	Kernel     string          // kbuild.Identity: headers, prepared objects, compiler, linker, objtool
	Arch       string          // that modules are built for
	Options    []string        // the server's own translator options
	Rlimits    []sandbox.Limit // of the worker: a script may ask a lot
	Environ    []string        // of the worker
	Home       string          // what is hidden from clients in texts
	Args       []string        // of the client but -r, in order: script, -p, -m, -D, arguments ...
	Translator string          // that was chosen; what SystemTap makes is not kept
	Privilege  string          // level the script is checked and signed for
	Locale     []string        // accepted LANG and LC_*
	Complaints string          // about locale lines that were not accepted
	MOK        []string        // the machine owner key that signs for the kernel, see mokInfluence
	Files      string          // contents: names and texts of the script and tapset files of the request
	Signer     string          // SHA-256 of the public key, or "" for none
}

// key is the digest of all influences. Every text goes in with its length, every
// list with its number, so that no two sets of them are one row of octets.
func (i *influences) key() (key cache.Key) {
	h := sha256.New()
	number := func(n uint64) { h.Write(binary.BigEndian.AppendUint64(nil, n)) }
	text := func(s string) {
		number(uint64(len(s)))
		io.WriteString(h, s)
	}
	list := func(l []string) {
		number(uint64(len(l)))
		for _, s := range l {
			text(s)
		}
	}
	text("stapbox answer 2")
	text(i.Program)
	text(i.Protocol)
	text(i.Release)
	text(i.BuildDir)
	text(i.Kernel)
	text(i.Arch)
	list(i.Options)
	number(uint64(len(i.Rlimits)))
	for _, l := range i.Rlimits {
		text(l.Name)
		number(l.Value)
	}
	list(i.Environ)
	text(i.Home)
	list(i.Args)
	text(i.Translator)
	text(i.Privilege)
	list(i.Locale)
	text(i.Complaints)
	list(i.MOK)
	text(i.Files)
	text(i.Signer)
	h.Sum(key[:0])
	return key
}

// contents is a digest of files, whatever their order in the archive.
func contents(files []wire.File) string {
	h := sha256.New()
	files = slices.SortedFunc(slices.Values(files), func(a, b wire.File) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range files {
		for _, part := range [][]byte{[]byte(f.Name), f.Data} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
			h.Write(part)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// program is what is learned once about this program.
type program struct {
	digest  string
	runtime kbuild.Runtime
	err     error
	reading chan struct{} // held while a request is unpacked to be checked
}

// self learns it, at the first call.
func (s *Service) self() *program {
	s.once.Do(func() {
		s.program.reading = make(chan struct{}, runtime.GOMAXPROCS(0))
		s.program.runtime = kbuild.Runtime{Version: backend.Runtime().Version}
		s.program.digest, s.program.err = fileDigest(s.Worker[0])
		if s.program.err != nil {
			s.Log("Answers are not cached: %v", s.program.err)
		}
	})
	return &s.program
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading %q: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// influences collects what the answer to r depends on, as things are now.
func (s *Service) influences(r *request) *influences {
	p := s.self()
	k, err := s.kernel(r.release)
	identity := kbuild.Identity(s.StateDir, k, p.runtime, backend.Path)
	if err != nil {
		identity += err.Error()
	}
	return &influences{
		Program: p.digest, Protocol: wire.Version,
		Release: r.release.Name, BuildDir: r.release.BuildDir, Kernel: identity, Arch: s.Arch,
		Options: s.Options, Rlimits: s.Rlimits, Environ: s.Environ, Home: s.Home,
		Args: r.argv, Translator: r.translator, Privilege: r.opts.Privilege.String(), Locale: r.env, Complaints: r.complaints,
		MOK: mokInfluence(r.mok), Files: r.contents, Signer: signer(r.key),
	}
}

// signer names a key for influences.
func signer(key crypto.Signer) string {
	if key == nil {
		return ""
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		// Signing will say so.
		return err.Error()
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// cacheable tells whether an answer to r may be kept at all. With -v it tells
// the times of its own run, and with -k on the server every request is to leave
// its directory.
func (s *Service) cacheable(r *request) bool {
	return s.Cache != nil && !s.Keep && r.opts.Verbose == 0 && s.self().err == nil
}
