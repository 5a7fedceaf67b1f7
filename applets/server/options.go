package server

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"stapbox/core/backend"
	"stapbox/core/cache"
	"stapbox/core/compile"
	"stapbox/core/getopt"
	"stapbox/core/identity"
	"stapbox/core/kbuild"
	"stapbox/core/metrics"
	"stapbox/core/stapopts"
	"stapbox/core/wire"
)

// options is the command line (server-client 4.1).
type options struct {
	help, version bool

	arch       string
	releases   []compile.Release
	translator []string // -D, for every translation and for the advertisement
	keep       bool
	port       int
	ssl        string
	log        string
	threads    int
	maxRequest int64 // uncompressed
	maxArchive int64 // compressed
	keyType    identity.KeyType
	cacheDir   string   // "" for the one in the user's data directory
	cacheSize  int64    // 0 for no cache
	sandbox    string   // sandboxAuto, sandboxRequire or sandboxOff
	readable   []string // --allow-path
	backend    string   // --translator
	sign       bool     // --sign-systemtap
	json       bool     // the log
	metrics    string   // where --metrics listens
	clientCA   string   // certificates of clients that are accepted, or of their issuers
	mokDir     string   // "" for moks beside the certificate
	makeMOK    bool     // make a machine owner key if there is none
	mokGuru    bool     // sign guru-mode modules with it
	ignored    []string // words that mean nothing
	tapsets    []string // -I
	idle       []string // options that upstream has a use for, and this server has none

	metricsAnywhere, requireCert bool

	limits limits
	given  []getopt.Option // the limits among the options
}

var spec = getopt.Spec{Defs: []getopt.Def{
	{Short: 'a', Arg: getopt.RequiredArg},
	{Short: 'r', Arg: getopt.RequiredArg},
	{Short: 'R', Arg: getopt.RequiredArg},
	{Short: 'I', Arg: getopt.RequiredArg},
	{Short: 'D', Arg: getopt.RequiredArg},
	{Short: 'B', Arg: getopt.RequiredArg},
	{Short: 'k'},
	{Short: 'P'},
	{Short: 'h', Long: "help"},
	{Short: 'V', Long: "version"},
	{Long: "port", Arg: getopt.RequiredArg},
	{Long: "ssl", Arg: getopt.RequiredArg},
	{Long: "log", Arg: getopt.RequiredArg},
	{Long: "max-threads", Arg: getopt.RequiredArg},
	{Long: "max-request-size", Arg: getopt.RequiredArg},
	{Long: "max-compressed-request", Arg: getopt.RequiredArg},
	{Long: "key-type", Arg: getopt.RequiredArg},
	{Long: "cache-dir", Arg: getopt.RequiredArg},
	{Long: "cache-size", Arg: getopt.RequiredArg},
	{Long: "sandbox", Arg: getopt.RequiredArg},
	{Long: "allow-path", Arg: getopt.RequiredArg},
	{Long: "translator", Arg: getopt.RequiredArg},
	{Long: "sign-systemtap"},
	{Long: "log-format", Arg: getopt.RequiredArg},
	{Long: "metrics", Arg: getopt.RequiredArg},
	{Long: "metrics-anywhere"},
	{Long: "client-ca", Arg: getopt.RequiredArg},
	{Long: "require-client-cert"},
	{Long: "client-threads", Arg: getopt.RequiredArg},
	{Long: "client-requests", Arg: getopt.RequiredArg},
	{Long: "client-rate", Arg: getopt.RequiredArg},
	{Long: "queue", Arg: getopt.RequiredArg},
	{Long: "drain-time", Arg: getopt.RequiredArg},
	{Long: "renew-before", Arg: getopt.RequiredArg},
	{Long: "mok-dir", Arg: getopt.RequiredArg},
	{Long: "make-mok"},
	{Long: "mok-guru"},
}}

// limitDefs are the options that may be in DATA/limits.
func limitDefs() []getopt.Def {
	var list []getopt.Def
	for _, name := range []string{"client-threads", "client-requests", "client-rate", "queue", "drain-time", "renew-before"} {
		list = append(list, getopt.Def{Long: name, Arg: getopt.RequiredArg})
	}
	return list
}

// defaultCacheSize is room for some thousand modules.
const defaultCacheSize = 256 << 20

// What --sandbox says.
const (
	sandboxAuto    = "auto"
	sandboxRequire = "require"
	sandboxOff     = "off"
)

const usage = `Usage: stap-serverd [OPTION]...
Compile and sign scripts for clients on other hosts.

  -r RELEASE|DIR                build for this kernel release, or for the kernel
                                whose build tree is DIR (may be repeated; the
                                running kernel is served too, if its headers are here)
  -a ARCH                       architecture (this host's); for another one SystemTap
                                must translate, see --translator
  -I DIR                        tapsets for every translation (may be repeated)
  -D NAME[=VALUE]               macro for every translation
  -k                            keep the directories of requests
  -R DIR, -B OPTION, -P         for SystemTap's server, without effect here
      --port=NUM                port to listen on (chosen by the kernel)
      --ssl=DIR                 directory of key and certificate
      --key-type=TYPE           of a new key: rsa (default), ecdsa or ed25519
      --log=FILE                append messages to FILE
      --max-threads=NUM         requests compiled at once (number of processors)
      --cache-dir=DIR           keep answers in DIR (~/.systemtap/answers)
      --cache-size=NUM[KMG]     bytes of answers to keep (256M); 0 keeps none
      --sandbox=auto|require|off  confine translators as far as this host allows,
                                or not start without all of it (auto)
      --allow-path=PATH         scripts may name files there, besides those of
                                /usr (may be repeated)
      --translator=builtin|systemtap|auto  with auto, SystemTap translates what
                                the built-in one does not know (builtin)
      --sign-systemtap          sign modules of SystemTap for stapusr and stapsys
      --mok-dir=DIR             machine owner keys (MOK), with which modules are
                                signed for kernels that load no others (moks in
                                the directory of key and certificate)
      --make-mok                make one if there is none
      --mok-guru                sign guru-mode modules with it, too
      --max-request-size=NUM    bytes of a request, unpacked (200000)
      --max-compressed-request=NUM  bytes of a request, packed (20000)
      --client-ca=FILE|DIR      ask clients for certificates, and accept those in
                                FILE or DIR and those their authorities issued
      --require-client-cert     serve nobody without one
      --client-threads=NUM      requests of one client compiled at once (all but one)
      --client-requests=NUM     requests of one client under way (128)
      --client-rate=NUM         requests of one client in a minute (0: any number)
      --queue=NUM               requests that wait to be compiled (64 for each at once)
      --drain-time=SECONDS      for requests under way at the end (10)
      --renew-before=DAYS       before its end, make the next certificate (30)
      --log-format=text|json    how messages look
      --metrics=ADDR            show metrics at 127.0.0.1:PORT or the socket /PATH
      --metrics-anywhere        any address will do for --metrics
  -h, --help                    show this help
  -V, --version                 show the version
`

// number reads decimal, 0x and 0 numbers, as strtoul(3) does with base 0.
func number(option, value string) (int64, error) {
	n, err := strconv.ParseInt(value, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot parse number '--%s=%s'", option, value)
	}
	return n, nil
}

func parse(args []string, processors int) (*options, error) {
	o := &options{
		threads: processors, maxRequest: wire.DefaultMaxUncompressed,
		maxArchive: wire.DefaultMaxCompressed, keyType: identity.RSA,
		cacheSize: defaultCacheSize, limits: defaultLimits(),
		sandbox: sandboxAuto, backend: stapopts.TranslatorBuiltin,
	}
	list, words, err := getopt.Parse(spec, args)
	if err != nil {
		return nil, err
	}
	for _, w := range words {
		o.ignored = append(o.ignored, fmt.Sprintf("unrecognized argument '%s'", w))
	}
	for _, g := range list {
		if err := o.set(g); err != nil {
			return nil, err
		}
	}
	if o.requireCert && o.clientCA == "" {
		return nil, errors.New("option --require-client-cert needs --client-ca, which says whose certificates are accepted")
	}
	if o.metrics != "" {
		if _, _, err := metrics.Network(o.metrics, o.metricsAnywhere); err != nil {
			return nil, fmt.Errorf("option '--metrics=%s': %w (see --metrics-anywhere)", o.metrics, err)
		}
	}
	return o, nil
}

func (o *options) set(g getopt.Option) error {
	switch g.Name {
	case "help":
		o.help = true
	case "version":
		o.version = true
	case "a":
		o.arch = g.Value
	case "r":
		k := compile.Release{Name: g.Value}
		if strings.HasPrefix(g.Value, "/") {
			var err error
			if k, err = buildTree(g.Value); err != nil {
				return err
			}
		}
		o.releases = append(o.releases, k)
	case "D":
		if _, err := stapopts.Parse([]string{"-D" + g.Value, "-e", ""}); err != nil {
			return err
		}
		o.translator = append(o.translator, "-D"+g.Value)
	case "I":
		// Workers are elsewhere, and their list of paths has colons between.
		if !filepath.IsAbs(g.Value) || strings.Contains(g.Value, ":") || filepath.Clean(g.Value) == "/" {
			return fmt.Errorf("option '-I %s' needs an absolute path without colons, and not /", g.Value)
		}
		o.tapsets = append(o.tapsets, filepath.Clean(g.Value))
	case "R":
		o.idle = append(o.idle, fmt.Sprintf("-R %s means nothing here: the runtime is built in", g.Value))
	case "B":
		o.idle = append(o.idle, fmt.Sprintf("-B %s means nothing here: modules are built without make", g.Value))
	case "P":
		o.idle = append(o.idle, "-P means nothing here: the key is protected by the owner and mode of its file, not by a password")
	case "k":
		o.keep = true
	case "ssl":
		o.ssl = g.Value
	case "log":
		o.log = g.Value
	case "cache-dir":
		if g.Value == "" {
			return errors.New("option '--cache-dir=' names no directory")
		}
		o.cacheDir = g.Value
	case "cache-size":
		n, err := cache.ParseSize(g.Value)
		if err != nil {
			return fmt.Errorf("option '--cache-size=%s': %w", g.Value, err)
		}
		o.cacheSize = n
	case "sandbox":
		switch g.Value {
		case sandboxAuto, sandboxRequire, sandboxOff:
			o.sandbox = g.Value
		default:
			return fmt.Errorf("sandbox %q is not auto, require or off", g.Value)
		}
	case "translator":
		if _, err := backend.New(g.Value, nil, nil); err != nil || g.Value == "" {
			return fmt.Errorf("translator %q is not builtin, systemtap or auto", g.Value)
		}
		o.backend = g.Value
	case "sign-systemtap":
		o.sign = true
	case "mok-dir":
		if g.Value == "" {
			return errors.New("option '--mok-dir=' names no directory")
		}
		o.mokDir = g.Value
	case "make-mok":
		o.makeMOK = true
	case "mok-guru":
		o.mokGuru = true
	case "allow-path":
		if !filepath.IsAbs(g.Value) || strings.Contains(g.Value, ":") || filepath.Clean(g.Value) == "/" {
			return fmt.Errorf("option '--allow-path=%s' needs an absolute path without colons, and not /", g.Value)
		}
		o.readable = append(o.readable, filepath.Clean(g.Value))
	case "key-type":
		t, err := identity.ParseKeyType(g.Value)
		if err != nil {
			return err
		}
		o.keyType = t
	case "log-format":
		if g.Value != "text" && g.Value != "json" {
			return fmt.Errorf("option '--log-format=%s': the formats are text and json", g.Value)
		}
		o.json = g.Value == "json"
	case "metrics":
		o.metrics = g.Value
	case "metrics-anywhere":
		o.metricsAnywhere = true
	case "client-ca":
		if g.Value == "" {
			return errors.New("option '--client-ca=' names no file")
		}
		o.clientCA = g.Value
	case "require-client-cert":
		o.requireCert = true
	default:
		if slices.ContainsFunc(limitDefs(), func(d getopt.Def) bool { return d.Long == g.Name }) {
			o.given = append(o.given, g)
		}
		return o.setNumber(g)
	}
	return nil
}

func (o *options) setNumber(g getopt.Option) error {
	n, err := number(g.Name, g.Value)
	if err != nil {
		return err
	}
	bad := func(text string) error { return fmt.Errorf("invalid entry: %s '--%s=%s'", text, g.Name, g.Value) }
	switch g.Name {
	case "port":
		if n < 0 || n > 65535 {
			return bad("port must be between 0 and 65535")
		}
		o.port = int(n)
	case "max-threads":
		if n < 0 {
			return bad("max threads must not be negative")
		}
		o.threads = int(min(n, 4096))
	case "max-request-size":
		if n < 1 {
			return bad("max (uncompressed) request size must be greater than 0")
		}
		o.maxRequest = n
	case "max-compressed-request":
		if n < 1 {
			return bad("max compressed request size must be greater than 0")
		}
		o.maxArchive = n
	default:
		return o.limits.set(g.Name, n, bad)
	}
	return nil
}

func (l *limits) set(name string, n int64, bad func(string) error) error {
	const most = 1 << 20
	switch {
	case n < 0:
		return bad("the number must not be negative")
	case n > most:
		return bad(fmt.Sprintf("the number must not be greater than %d", most))
	}
	switch name {
	case "client-threads":
		l.clientThreads = int(n)
	case "client-requests":
		if n < 1 {
			return bad("a client needs at least one request")
		}
		l.clientRequests = int(n)
	case "client-rate":
		l.clientRate = int(n)
	case "queue":
		l.queue = int(n)
	case "drain-time":
		l.drain = time.Duration(n) * time.Second
	case "renew-before":
		if n > 300 {
			return bad("a certificate lasts a year, its successor is made at most 300 days before its end")
		}
		l.renew = time.Duration(n) * 24 * time.Hour
	}
	return nil
}

// buildTree finds the release of a kernel's build tree.
func buildTree(dir string) (compile.Release, error) {
	k, err := kbuild.FindKernel(filepath.Clean(dir))
	if err != nil {
		return compile.Release{}, fmt.Errorf("option '-r %s': %w", dir, err)
	}
	return compile.Release{Name: k.Release, BuildDir: k.BuildDir}, nil
}

// kernels is what the server builds for, in ascending order; of several trees
// for one release the last given counts. The running kernel is always served,
// as upstream does it, but not advertised for nothing: beside others only if its
// headers are here.
func (o *options) kernels(running string) []compile.Release {
	list := []compile.Release{{Name: running}}
	if _, err := kbuild.FindKernel(running); err != nil && len(o.releases) > 0 {
		list = nil
	}
	for _, k := range o.releases {
		if i := slices.IndexFunc(list, func(l compile.Release) bool { return l.Name == k.Name }); i >= 0 {
			list[i] = k
			continue
		}
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b compile.Release) int { return strings.Compare(a.Name, b.Name) })
	return list
}
