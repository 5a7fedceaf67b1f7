// Package server is the applet stap-serverd: the compile server. It listens
// for TLS connections, each with one request, and answers every one of them
// with version, status, standard output and standard error, also when it
// refuses (server-client 4, 11.1).
//
// Connections are cheap and have deadlines, translations are dear and have
// slots: a peer that says nothing, or says it slowly, never holds a slot.
package server

import (
	"context"
	"crypto"
	"crypto/tls"
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"stapbox/core/cache"
	"stapbox/core/compile"
	"stapbox/core/config"
	"stapbox/core/discovery"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/invocation"
	"stapbox/core/sandbox"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
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
	drainTime      = 4 * time.Second
	maxConnections = 512
	maxPerPeer     = maxConnections / 4
	queuePerSlot   = 64
)

// server is one run of stap-serverd.
type server struct {
	inv   *invocation.Invocation
	euid  int
	uid   int
	user  string
	node  string
	arch  string
	opts  *options
	now   func() time.Time
	data  string // the user's data directory
	clock time.Duration
	// publish is discovery.Publish; a test that is about something else leaves
	// the network alone.
	publish func(host string, services []discovery.Service, log func(string, ...any)) (io.Closer, error)

	log     *logger
	moks    *machineKeys
	service *compile.Service
	port    int

	mu        sync.Mutex
	id        *identity.Identity
	responder io.Closer
	active    int // requests that are not answered yet

	slots chan struct{}
	queue chan struct{}
}

// Main runs stap-serverd.
func Main(ctx context.Context, inv *invocation.Invocation) int {
	opts, err := parse(inv.Args, runtime.NumCPU())
	if err != nil {
		inv.Errorf("%v", err)
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
	// The work is done by workers; what is left here is little, and a server
	// that idles for weeks should keep little.
	debug.SetGCPercent(25)
	release, arch, node := compile.Uname()
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
	var err error
	if s.log, err = openLog(s.opts.log, s.inv.Stderr, s.now); err != nil {
		s.inv.Errorf("%v", err)
		return 1
	}
	defer s.log.Close()
	for _, w := range s.opts.ignored {
		s.inv.Errorf("%s", w)
	}
	if s.euid == 0 {
		s.log.errorf("For security reasons, invocation of stap-serverd as root is not supported.")
		return 1
	}
	s.log.printf("===== compile server pid %d starting as %s =====", os.Getpid(), s.user)
	if err := s.setup(release); err != nil {
		s.log.errorf("%v", err)
		return 1
	}
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(s.opts.port)))
	if err != nil {
		s.log.errorf("Error setting socket address: %v", err)
		return 1
	}
	defer l.Close()
	s.port = l.Addr().(*net.TCPAddr).Port
	s.log.printf("Using network address [::]:%d", s.port)
	if s.opts.threads > 0 {
		s.log.printf("Using a maximum of %d threads", s.opts.threads)
	} else {
		s.log.printf("Concurrency disabled")
	}
	if err := s.confine(); err != nil {
		s.log.errorf("%v", err)
		return 1
	}
	s.slots = make(chan struct{}, max(s.opts.threads, 1))
	s.queue = make(chan struct{}, queuePerSlot*cap(s.slots))

	if err := s.openCache(); err != nil {
		s.log.errorf("%v", err)
		return 1
	}
	if s.service.Cache != nil {
		defer s.service.Cache.Close()
	}

	// The first certificate, before anybody can ask for it.
	if _, err := s.identity(); err != nil {
		s.log.errorf("%v", err)
		s.log.errorf("Cannot check/create certificate, giving up.")
		return 1
	}
	return s.serve(ctx, l)
}

// setup fills in the compile service.
func (s *server) setup(release string) error {
	if s.opts.arch != "" && s.opts.arch != s.arch {
		return fmt.Errorf("architecture %q is not supported, this server builds for %q", s.opts.arch, s.arch)
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
	temp := s.inv.Getenv("TMPDIR")
	if temp == "" {
		temp = "/tmp"
	}
	options, limits, err := s.rc()
	if err != nil {
		return err
	}
	environ := []string{"HOME=" + home}
	if dir := s.inv.Getenv("SYSTEMTAP_DIR"); dir != "" {
		environ = append(environ, "SYSTEMTAP_DIR="+s.data)
	}
	if s.opts.backend != compile.TranslatorBuiltin {
		path, err := compile.FindSystemtap(context.Background(), s.inv.LookupEnv)
		switch {
		case err == nil:
			s.log.printf("SystemTap is %s", path)
			environ = append(environ, compile.SystemtapVariable+"="+path)
		case s.opts.backend == compile.TranslatorSystemtap:
			return fmt.Errorf("--translator=systemtap: %w", err)
		default:
			s.log.printf("Only the built-in translator is here: %v", err)
		}
	}
	if s.moks, err = s.openMachineKeys(); err != nil {
		return err
	}
	s.service = &compile.Service{
		Releases: s.opts.kernels(release), Arch: s.arch,
		Options: append(options, s.opts.translator...), Rlimits: limits,
		Environ: environ, Home: home, TempDir: temp, StateDir: hostpaths.Kernels(s.data), WallClock: s.clock,
		Limits: wire.RequestLimits(s.opts.maxRequest), Keep: s.opts.keep,
		Worker: compile.Self, Slot: s.slot, Readable: s.opts.readable,
		Translator: s.opts.backend, SignSystemtap: s.opts.sign,
		MOKs: s.moks.list, MOKGuru: s.opts.mokGuru,
		Key: func() crypto.Signer {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.id.Key
		},
		Log:      s.log.printf,
		Requests: slog.New(slog.NewTextHandler(s.log, nil)),
	}
	return nil
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

// confine finds out how workers can be confined, and whether that is enough.
func (s *server) confine() error {
	if s.opts.sandbox == sandboxOff {
		s.service.Sandbox = sandbox.Off(s.service.Worker)
		s.log.errorf("WARNING: workers are not confined (--sandbox=off): whoever may send requests can reach what this user can")
		return nil
	}
	c := s.service.Confinement()
	s.log.printf("Workers are confined by %v", c.Layers)
	if c.Layers&sandbox.Landlock != 0 {
		s.log.printf("Landlock has version %d", sandbox.LandlockABI())
	}
	if len(c.Missing) == 0 {
		return nil
	}
	for _, m := range c.Missing {
		s.log.errorf("WARNING: workers are less confined than they could be, this host lacks %s", m)
	}
	if s.opts.sandbox == sandboxRequire {
		return errors.New("this host does not confine workers as --sandbox=require demands")
	}
	return nil
}

// rc reads the server user's DATA/rc, where an administrator sets limits for
// the translator. Without limits there, some are set all the same.
func (s *server) rc() ([]string, []compile.Rlimit, error) {
	limits := map[string]uint64{"cpu": 60, "as": 3 << 30, "fsize": 256 << 20}
	path := filepath.Join(s.data, "rc")
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	words, err := config.Words(data)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %q: %w", path, err)
	}
	if len(words) > 0 {
		o, err := compile.ParseOptions(append(append([]string{}, words...), "-e", ""))
		if err != nil {
			return nil, nil, fmt.Errorf("reading %q: %w", path, err)
		}
		for _, l := range o.Rlimits {
			delete(limits, l.Name)
		}
	}
	var list []compile.Rlimit
	for _, name := range []string{"as", "cpu", "fsize"} {
		if v, ok := limits[name]; ok {
			list = append(list, compile.Rlimit{Name: name, Value: v})
		}
	}
	return words, list, nil
}

// identity is the server's certificate as of now. When its time is over it is
// made anew, trusted in the user's own store, and advertised.
func (s *server) identity() (*identity.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id != nil && s.id.Valid(s.now()) == nil {
		return s.id, nil
	}
	id, err := identity.Ensure(s.opts.ssl, identity.Options{NodeName: s.node, KeyType: s.opts.keyType, Now: s.now()}, s.log.printf)
	if err != nil {
		return nil, err
	}
	s.id = id
	s.log.printf("Certificate %s sha256=%s", identity.CertInfo(id.Certificate), identity.Fingerprint(id.Certificate))
	store := hostpaths.UserPeerStore(s.data)
	_, err = edit.Add(store, trust.UserRules(s.uid, s.data), id.Certificate, edit.Note{
		Host: s.node, When: s.now(), By: "stap-serverd", Scope: "peer, current user",
	})
	if err != nil {
		s.log.errorf("Unable to authorize certificate for the local client: %v", err)
	}
	s.advertise()
	return id, nil
}

// advertise publishes the services, replacing what was published before. A
// server that cannot be found by browsing still serves those who know it.
func (s *server) advertise() {
	s.withdraw()
	var services []discovery.Service
	for _, k := range s.service.Releases {
		services = append(services, discovery.Service{Port: s.port,
			TXT: discovery.TXT(k.Name, s.arch, s.opts.translator, version.Protocol, identity.CertInfo(s.id.Certificate), s.moks.fingerprints())})
	}
	r, err := s.publish(s.node, services, s.log.printf)
	if err != nil {
		s.log.errorf("Failed to add %s service: %v", discovery.Type, err)
		return
	}
	s.responder = r
}

func (s *server) withdraw() {
	if s.responder != nil {
		s.responder.Close()
		s.responder = nil
	}
}

// serve accepts connections until a signal comes or ctx ends, then drains.
func (s *server) serve(ctx context.Context, l net.Listener) int {
	// SIGPIPE is not among them: to ask for it would bring it for every client
	// that goes away.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM,
		syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGXFSZ, syscall.SIGXCPU)
	defer signal.Stop(signals)

	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var warming, connections sync.WaitGroup
	warming.Go(s.service.Warm(work))
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		s.accept(work, l, &connections)
	}()

	select {
	case sig := <-signals:
		s.log.printf("Received signal %d, exiting", sig)
	case <-ctx.Done():
		s.log.printf("Exiting")
	case <-accepting:
		s.log.errorf("Accepting connections ended")
	}
	l.Close()
	<-accepting
	s.mu.Lock()
	s.withdraw()
	active := s.active
	s.mu.Unlock()

	done := make(chan struct{})
	if active > 0 {
		s.log.printf("Waiting for %d outstanding requests to complete...", active)
	}
	go func() {
		connections.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drainTime):
		s.log.printf("Timeout reached, exiting (forced)")
	case sig := <-signals:
		s.log.printf("Received another signal %d, exiting (forced)", sig)
	}
	// Ends workers and, through their deadlines, connections that say nothing.
	cancel(errors.New("the server is shutting down"))
	warming.Wait()
	select {
	case <-done:
		// Answers that are on their way to the cache.
		stored := make(chan struct{})
		go func() {
			s.service.Wait()
			close(stored)
		}()
		select {
		case <-stored:
		case <-time.After(drainTime):
		}
	case <-time.After(drainTime):
	}
	return 0
}

func (s *server) accept(ctx context.Context, l net.Listener, connections *sync.WaitGroup) {
	config := wire.ServerTLS(func() (*tls.Certificate, error) {
		id, err := s.identity()
		if err != nil {
			s.log.errorf("%v", err)
			return nil, err
		}
		cert := id.TLS()
		return &cert, nil
	})
	open := openConnections{of: make(map[string]int)}
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, or the peer is gone already: both pass.
			s.log.errorf("Accepting a connection: %v", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		host := peerOf(c.RemoteAddr())
		if err := open.add(host); err != nil {
			s.log.printf("Refused connection from %s: %v", c.RemoteAddr(), err)
			c.Close()
			continue
		}
		connections.Go(func() {
			defer open.remove(host)
			s.connection(ctx, c, config)
		})
	}
}

// openConnections counts connections, in all and by host: one host that opens
// them and says nothing must not keep the others out.
type openConnections struct {
	mu  sync.Mutex
	all int
	of  map[string]int
}

func (o *openConnections) add(host string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.all >= maxConnections:
		return fmt.Errorf("%d connections are open", o.all)
	case o.of[host] >= maxPerPeer:
		return fmt.Errorf("%d connections from this host are open", o.of[host])
	}
	o.all++
	o.of[host]++
	return nil
}

func (o *openConnections) remove(host string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all--
	if o.of[host]--; o.of[host] == 0 {
		delete(o.of, host)
	}
}

// peerOf is the host of an address: all of a /64 network is one, as a host may
// choose freely there.
func peerOf(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return a.String()
	}
	if ip := t.AddrPort().Addr().Unmap(); ip.Is6() && !ip.IsLinkLocalUnicast() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return t.AddrPort().Addr().Unmap().String()
}

// connection serves one client.
func (s *server) connection(ctx context.Context, raw net.Conn, config *tls.Config) {
	peer := raw.RemoteAddr().String()
	s.log.printf("Accepted connection from %s", peer)
	defer s.log.printf("Request from %s complete", peer)
	low := &wire.DeadlineConn{Conn: raw, Idle: idleTime}
	conn := tls.Server(low, config)
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A shutdown ends the connection whatever it waits for.
	defer context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now()) })()

	low.Phase(handshakeTime)
	if err := conn.HandshakeContext(ctx); err != nil {
		s.log.printf("Handshake with %s: %v", peer, err)
		return
	}
	low.Phase(requestTime)
	archive, err := wire.ReadFrame(conn, s.opts.maxArchive)
	var frame *wire.FrameError
	switch {
	case errors.Is(err, wire.ErrTrustContact):
		return
	case errors.As(err, &frame):
		s.log.errorf("%v", err)
		s.refuse(conn, low, err.Error())
		return
	case err != nil:
		s.log.errorf("%v", err)
		return
	}
	defer s.begin()()

	// From here on the client only waits. The end of its TCP stream means that
	// it is gone, and nobody wants the answer any more; close_notify alone ends
	// the other direction only (RFC 8446, 6.1).
	low.Phase(0)
	low.Idle = 0
	go func() {
		n, err := io.Copy(io.Discard, io.LimitReader(conn, lingerBytes))
		if err == nil && n < lingerBytes {
			n, err = io.Copy(io.Discard, io.LimitReader(raw, lingerBytes))
		}
		if n == lingerBytes {
			err = errors.New("the client sends more than its request")
		} else if err == nil {
			err = io.EOF
		}
		cancel(fmt.Errorf("the client is gone: %w", err))
	}()
	answer, err := s.service.Do(ctx, archive, peer)
	if err != nil {
		s.log.printf("Request from %s ended: %v", peer, err)
		return
	}
	s.answer(conn, low, answer)
}

// begin counts a request until the function it returns is called.
func (s *server) begin() (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active++
	if s.active == 1 {
		s.log.printf("Processing 1 request...")
	} else {
		s.log.printf("Processing %d concurrent requests...", s.active)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.active--
	}
}

// slot waits for the right to translate.
func (s *server) slot(ctx context.Context) (release func(), err error) {
	select {
	case s.queue <- struct{}{}:
	default:
		return nil, errors.New("Server is overloaded, try again later.")
	}
	defer func() { <-s.queue }()
	select {
	case s.slots <- struct{}{}:
	default:
		s.log.printf("Server is overloaded. Processing times may be longer than normal.")
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return func() { <-s.slots }, nil
}

// refuse answers what never became a request.
func (s *server) refuse(conn *tls.Conn, low *wire.DeadlineConn, reason string) {
	answer, err := (&wire.Response{Version: version.Protocol, RC: 1, Stderr: []byte("Server: " + reason + "\n")}).Encode()
	if err != nil {
		s.log.errorf("%v", err)
		return
	}
	s.answer(conn, low, answer)
	// The client may still be sending: closing now would reset the connection
	// and take the answer with it.
	low.Phase(lingerTime)
	io.Copy(io.Discard, io.LimitReader(conn, lingerBytes))
}

func (s *server) answer(conn *tls.Conn, low *wire.DeadlineConn, answer []byte) {
	low.Phase(answerTime)
	_, err := conn.Write(answer)
	if err == nil {
		err = conn.CloseWrite()
	}
	if err != nil && !strings.Contains(err.Error(), "broken pipe") {
		s.log.printf("Answering %s: %v", conn.RemoteAddr(), err)
	}
}
