// Package server is the applet stap-serverd: the compile server. It listens
// for TLS connections, each with one request, and answers every one of them
// with version, status, standard output and standard error, also when it
// refuses (server-client 4, 11.1).
//
// Connections are cheap and have deadlines, translations are dear and have
// slots: a peer that says nothing, or says it slowly, never holds a slot.
//
//	options.go     the command line
//	server.go      start: options to a running server
//	confine.go     what workers run in, and which translators there are
//	listen.go      sockets, accepting
//	connection.go  one client from handshake to answer
//	clients.go     certificates of clients
//	limits.go      what one client, or one host, may take
//	queue.go       whose turn it is to translate
//	serve.go       signals and the end
//	reload.go      settings that are read again
//	identity.go    the server's own certificate, its renewal, its announcement
//	mok.go         keys for kernels that load signed modules only
//	figures.go     metrics
//	log.go         the log
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"stapbox/core/backend"
	"stapbox/core/cache"
	"stapbox/core/compile"
	"stapbox/core/discovery"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/sandbox"
	"stapbox/core/service"
	"stapbox/core/systemd"
	"stapbox/core/uname"
	"stapbox/core/version"
	"stapbox/core/wire"
)

// Deadlines and bounds of connections.
const (
	handshakeTime  = 10 * time.Second
	requestTime    = 60 * time.Second
	idleTime       = 15 * time.Second
	answerTime     = 120 * time.Second
	lingerTime     = 2 * time.Second
	lingerBytes    = 4 << 20
	wallClock      = 120 * time.Second
	drainTime      = 4 * time.Second // for what is not a request
	maxConnections = 512
	maxPerPeer     = maxConnections / 4
	queuePerSlot   = 64
)

// server is one run of stap-serverd.
type server struct {
	signals chan os.Signal // nil until run
	inv     *invocation.Invocation
	euid    int
	uid     int
	user    string
	node    string
	arch    string
	opts    *options
	now     func() time.Time
	data    string // the user's data directory
	clock   time.Duration
	// publish is discovery.Publish; a test that is about something else leaves
	// the network alone.
	publish func(host string, services []discovery.Service, log func(string, ...any)) (io.Closer, error)

	log      *logger
	audit    *slog.Logger // a line for each request
	figures  *figures
	notifier *systemd.Notifier
	watchdog time.Duration // how often the service manager wants to hear of us
	started  time.Time
	release  string // of the running kernel
	home     string
	temp     string
	foreign  bool // -a names another architecture than this host's

	sandbox   *sandbox.Sandbox // of workers
	systemtap string           // an installed stap, when it may be used
	moks      *machineKeys

	listeners []net.Listener
	activated bool         // the service manager opened them
	scrapes   net.Listener // for metrics, or nil
	port      int

	open     openConnections
	accounts accounts
	queue    queue
	work     work

	settling    sync.Mutex // held from reading settings until they count, before mu
	mu          sync.Mutex
	lim         limits       // as read last
	clients     *clientTrust // nil: certificates of clients are not asked for
	service     *compile.Service
	former      []*compile.Service // that served before a reload
	id, next    *identity.Identity
	clockOf     steadyClock // by which certificates are renewed
	shakes      handshakes
	announced   []compile.Release           // kernels of the last announcement
	findHeaders func(compile.Release) error // nil: those of this host
	tapsets     string                      // a digest of what -I names
	stamp       string                      // of the files of -I, as of that digest
	options     []string                    // of the translator, by rc
	embedded    bool                        // C in them imports what it likes: they are the administrator's
	signers     map[string]string           // fingerprints of certificates by public key
	responder   io.Closer
}

// compiler is the compile service with the settings of now.
func (s *server) compiler() *compile.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.service
}

func (s *server) allCompilers() []*compile.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*compile.Service{s.service}, s.former...)
}

func (s *server) limits() limits {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lim
}

// Main runs stap-serverd.
func Main(ctx context.Context, inv *invocation.Invocation) int {
	opts, err := parse(inv.Args, runtime.NumCPU())
	if err != nil {
		inv.Errorf("%v", err)
		explain(inv, err)
		return 1
	}
	if opts.help {
		fmt.Fprint(inv.Stdout, usage)
		return 0
	}
	if opts.version {
		fmt.Fprintf(inv.Stdout, "stap-serverd (stapbox %s, protocol version %s)\n", version.Version, version.Protocol)
		return 0
	}
	// Managers know a server by this name of its process, whatever file it is.
	if err := os.WriteFile("/proc/self/comm", []byte(service.ServerName), 0); err != nil {
		inv.Errorf("setting the name of the process: %v", err)
	}
	// The work is done by workers; what is left here is little, and a server
	// that idles for weeks should keep little.
	debug.SetGCPercent(25)
	release, arch, node := uname.Host()
	s := &server{
		inv: inv, euid: os.Geteuid(), uid: os.Getuid(), node: node, arch: arch, opts: opts,
		now: time.Now, clock: wallClock,
		publish: func(host string, services []discovery.Service, log func(string, ...any)) (io.Closer, error) {
			return discovery.Publish(host, services, log)
		},
	}
	if u, err := user.LookupId(strconv.Itoa(s.uid)); err == nil {
		s.user = u.Username
	} else {
		s.user = strconv.Itoa(s.uid)
	}
	return s.run(ctx, release)
}

func (s *server) run(ctx context.Context, release string) int {
	// Who asks for a reload before there is something to reload gets it then.
	s.signals = make(chan os.Signal, 16)
	signal.Notify(s.signals, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(s.signals)
	var err error
	if s.log, err = openLog(s.opts.log, s.inv.Stderr, s.now); err != nil {
		s.inv.Errorf("%v", err)
		explain(s.inv, err)
		return 1
	}
	defer s.log.Close()
	if s.opts.json {
		s.log.useJSON()
	}
	s.audit = s.log.requests()
	s.started = s.now()
	s.figures = newFigures(s)
	s.work.changed = make(chan struct{}, 1)
	for _, w := range s.opts.ignored {
		s.inv.Errorf("%s", w)
	}
	if s.euid == 0 {
		s.log.errorf("For security reasons, invocation of stap-serverd as root is not supported.")
		return 1
	}
	s.log.printf("===== compile server pid %d starting as %s =====", os.Getpid(), s.user)
	for _, w := range s.opts.idle {
		s.log.printf("WARNING: %s", w)
	}
	if err := s.setup(release); err != nil {
		s.log.errorf("%v", err)
		explain(s.inv, err)
		return 1
	}
	if err := s.listen(); err != nil {
		s.log.errorf("%v", err)
		explain(s.inv, err)
		return 1
	}
	defer s.closeListeners()
	if s.opts.threads > 0 {
		s.log.printf("Using a maximum of %d threads", s.opts.threads)
	} else {
		s.log.printf("Concurrency disabled")
	}
	if err := s.openCache(); err != nil {
		s.log.errorf("%v", err)
		explain(s.inv, err)
		return 1
	}
	if s.service.Cache != nil {
		defer s.service.Cache.Close()
	}

	// The first certificate, before anybody can ask for it.
	if _, err := s.identity(); err != nil {
		s.log.errorf("%v", err)
		s.log.errorf("Cannot check/create certificate, giving up.")
		explain(s.inv, fmt.Errorf("Cannot check/create certificate, giving up: %w", err))
		return 1
	}
	return s.serve(ctx)
}

// setup fills in the compile service.
func (s *server) setup(release string) error {
	if s.opts.arch != "" && s.opts.arch != s.arch {
		s.log.printf("WARNING: the built-in translator builds for %s only: what is asked for %s is refused unless SystemTap translates", s.arch, s.opts.arch)
		s.foreign, s.arch = true, s.opts.arch
		s.opts.translator = append(s.opts.translator, "-a"+s.arch)
	}
	home := s.inv.Getenv("HOME")
	if home == "" {
		if u, err := user.LookupId(strconv.Itoa(s.uid)); err == nil {
			home = u.HomeDir
		}
	}
	s.data = hostpaths.UserDir(s.inv.Getenv("SYSTEMTAP_DIR"), home)
	if s.data == "" {
		return errors.New("there is neither SYSTEMTAP_DIR nor HOME, so no place for key and certificate")
	}
	if !filepath.IsAbs(s.data) {
		s.data = filepath.Join(s.inv.Dir, s.data)
	}
	if s.opts.ssl == "" {
		s.opts.ssl = hostpaths.ServerIdentity(s.data)
	} else if !filepath.IsAbs(s.opts.ssl) {
		s.opts.ssl = filepath.Join(s.inv.Dir, s.opts.ssl)
	}
	s.home, s.temp = home, s.inv.Getenv("TMPDIR")
	if s.temp == "" {
		s.temp = "/tmp"
	}
	s.release = release
	var err error
	if s.notifier, err = systemd.NewNotifier(s.inv.Getenv("NOTIFY_SOCKET")); err != nil {
		return err
	}
	if s.watchdog, err = systemd.WatchdogTime(s.inv.Getenv("WATCHDOG_USEC"), s.inv.Getenv("WATCHDOG_PID"), os.Getpid()); err != nil {
		return err
	}
	n, err := s.read()
	if err != nil {
		return err
	}
	if err := s.confine(s.detect()); err != nil {
		return err
	}
	if err := s.findSystemtap(); err != nil {
		return err
	}
	if s.moks, err = s.openMachineKeys(); err != nil {
		return err
	}
	s.apply(n)
	answers := s.opts.cacheDir
	if answers == "" {
		answers = hostpaths.Answers(s.data)
	} else if !filepath.IsAbs(answers) {
		answers = filepath.Join(s.inv.Dir, answers)
	}
	return s.service.Exposes(s.opts.ssl, answers, s.temp)
}

// newService makes a compile service.
func (s *server) newService(options []string, rlimits []sandbox.Limit, digest string) *compile.Service {
	environ := []string{"HOME=" + s.home}
	if dir := s.inv.Getenv("SYSTEMTAP_DIR"); dir != "" {
		environ = append(environ, "SYSTEMTAP_DIR="+s.data)
	}
	if digest != "" {
		// It makes answers others: what is in the tapsets counts.
		environ = append(environ, "STAPBOX_TAPSETS="+digest)
	}
	if s.systemtap != "" {
		environ = append(environ, backend.SystemtapVariable+"="+s.systemtap)
	}
	service := &compile.Service{
		Releases: s.opts.kernels(s.release), Arch: s.arch,
		Options: options, Rlimits: rlimits,
		Environ: environ, Home: s.home, TempDir: s.temp, StateDir: hostpaths.Kernels(s.data), WallClock: s.clock,
		Limits: wire.RequestLimits(s.opts.maxRequest), Keep: s.opts.keep,
		Worker: compile.Self, Slot: s.slot, Sandbox: s.sandbox, Readable: append(slices.Clone(s.opts.readable), s.opts.tapsets...),
		Translator: s.opts.backend, SignSystemtap: s.opts.sign,
		Key: s.key, SignerName: s.signerName, Log: s.log.printf, Requests: s.audit,
		Done: s.figures.done, Phase: s.figures.phase,
		MOKs: s.moks.list, MOKGuru: s.opts.mokGuru,
	}
	if !s.embedded {
		service.Imports = service.RuntimeImports
	}
	return service
}

// openCache opens the cache of answers. A directory that was asked for must be
// usable, unless its disk is full; without the one in the user's data directory
// a server still serves.
func (s *server) openCache() error {
	if s.opts.cacheSize == 0 {
		s.log.printf("Answers are not cached")
		return nil
	}
	dir := s.opts.cacheDir
	if dir == "" {
		dir = hostpaths.Answers(s.data)
	} else if !filepath.IsAbs(dir) {
		dir = filepath.Join(s.inv.Dir, dir)
	}
	store, err := cache.Open(dir, s.opts.cacheSize)
	if err == nil {
		var entries int
		var size int64
		if entries, size, err = store.Size(); err == nil {
			s.service.Cache = store
			s.log.printf("Cache %s has %d answers in %d bytes, at most %d", dir, entries, size, s.opts.cacheSize)
			return nil
		}
		store.Close()
	}
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	if s.opts.cacheDir != "" && !full {
		return err
	}
	s.log.errorf("Answers are not cached: %v", err)
	return nil
}
