// Package stapopts reads the command line of stap: every option of stap(1) 5.6,
// the safety patterns of what goes into a build, and what a client may not give
// to a server (server-client 3 and 4.5).
package stapopts

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"stapbox/core/getopt"
	"stapbox/core/privilege"
	"stapbox/core/sandbox"
	"stapbox/core/script"
	"stapbox/core/script/parser"
)

// Translators that --translator names.
const (
	TranslatorBuiltin   = "builtin"
	TranslatorSystemtap = "systemtap"
	TranslatorAuto      = "auto"
)

// Options is a command line of stap, read once, by the client, by the server
// (for what it is asked to do and to sign) and by the server's worker.
type Options struct {
	Help, Version bool

	LastPass     int
	Verbose      int
	Keep         bool
	Suppress     int           // -w
	Strict       bool          // -W: warnings are errors
	Unoptimized  bool          // -u
	Timing       bool          // -t: count and time the probes
	Coverage     bool          // -q: say what of the library the script uses
	Timeout      time.Duration // -T, 0 for none
	QuietErrors  bool          // --suppress-handler-errors
	NoTimeLimits bool          // --suppress-time-limits
	Guru         bool
	Kernel       string // -r
	Arch         string // -a
	Module       string // -m
	Defines      []string
	Globals      []string
	Output       string // -o
	Command      string // -c
	HasCmd       bool
	Target       int    // -x
	BufferMB     int    // -s
	Bulk         bool   // -b
	Monitor      int    // --monitor: seconds, 0 for none
	Flight       bool   // -F: leave the module running, or relay in the background with -o
	FileSize     string // -S, as staprun reads it
	Namespaces   int    // --target-namespaces
	Color        string
	Translator   string          // --translator: builtin, systemtap, auto, or "" for the default
	TempDir      string          // --tmpdir
	Rlimits      []sandbox.Limit // --rlimit-NAME=NUM
	Privilege    privilege.Level
	// PrivilegeSet tells --privilege=stapdev from nothing.
	PrivilegeSet bool

	ClientOptions bool // --client-options was seen: a server's worker
	ServerDefines int  // how many of Defines stand before it: they are for every script

	UseServer     []string // one per --use-server, "" for the default query
	ListServers   []string // one per --list-servers
	TrustServers  []string
	OnServerError bool // --use-server-on-error
	SignModule    bool // --sign-module
	// BadOnError is the argument --use-server-on-error did not understand.
	BadOnError string

	Script    string // -e
	HasScript bool
	File      string // the script file, "-" for standard input
	Args      []string
	Scripts   []string // -E
	Tapsets   []string // -I
	// ClientTapsets are those of Tapsets that stand after --client-options.
	ClientTapsets []string
	Compatible    string // --compatible
	List          rune   // 'l' or 'L', 0 for neither
	Pattern       string // of List

	hasPass bool // -p

	// Forward are the options that go to a server, one word each, in order
	// (server-client 3.4).
	Forward []string
	// Notes are remarks for the user, such as a shortened module name.
	Notes []string
}

// maxTimeout is the longest time of -T: the longest interval of a timer.
const maxTimeout = 24 * time.Hour

// UsageError is an error after which stap shows where help is.
type UsageError struct{ Text string }

func (e *UsageError) Error() string { return e.Text }

// Hint is what stap prints after a UsageError.
const Hint = "Try '--help' for more information. [man stap]\nA message like [man foo] means for more info, run % man foo\n"

// What a server says to an option of a client; the two wordings are upstream's.
type clientRule int

const (
	allowed clientRule = iota
	invalidWith
	isInvalidWith
)

type optionDef struct {
	short   rune
	long    string
	arg     getopt.Arg
	forward bool
	client  clientRule
	missing bool   // documented by upstream; this version says it cannot do it
	pattern string // the argument must match; -r only with --client-options
}

const (
	no  = getopt.NoArg
	req = getopt.RequiredArg
	opt = getopt.OptionalArg
)

// table is every option of stap(1) 5.6.
var table = []optionDef{
	{short: 'h', long: "help"},
	{short: 'V', long: "version"},
	{short: 'p', arg: req, forward: true},
	{short: 'v', forward: true},
	{short: 'k', client: invalidWith},
	{short: 'g', forward: true},
	{short: 'w', forward: true},
	{short: 'e', arg: req, forward: true},
	{short: 'E', arg: req, forward: true},
	{short: 'l', arg: req, forward: true},
	{short: 'L', arg: req, forward: true},
	{short: 'I', arg: req},
	{long: "compatible", arg: req, forward: true},
	{long: "check-version", forward: true},
	{short: 'D', arg: req, forward: true, pattern: "^[a-z_][a-z_0-9]*(=-?[a-z_0-9]+)?$"},
	{short: 'G', arg: req, pattern: "^[a-z_][a-z0-9_]*=[a-z0-9_.-]+$"},
	{short: 'r', arg: req, forward: true, pattern: "^[a-z0-9_.+-]+$"},
	{short: 'a', arg: req, forward: true, pattern: "^[a-z0-9_-]+$"},
	{short: 'm', arg: req, forward: true, pattern: "^[a-z0-9_]+$"},
	{short: 'o', arg: req, forward: true},
	{short: 'c', arg: req, forward: true},
	{short: 'x', arg: req, forward: true},
	{short: 's', arg: req, forward: true},
	{short: 'b', forward: true},
	{long: "monitor", arg: opt, forward: true},
	{short: 'F', forward: true},
	{short: 'S', arg: req, forward: true, pattern: "^[0-9]+(,[0-9]+)?$"},
	{long: "target-namespaces", arg: req},
	{long: "translator", arg: req, forward: true},
	{long: "privilege", arg: req, forward: true},
	{long: "privileged", arg: req, forward: true}, // as some documents write it
	{long: "unprivileged", forward: true},
	{long: "color", arg: opt},
	{long: "colour", arg: opt},
	{long: "client-options"},
	{long: "tmpdir", arg: req, client: isInvalidWith},
	{long: "disable-cache", client: isInvalidWith},
	{long: "use-server", arg: opt, client: isInvalidWith},
	{long: "list-servers", arg: opt, client: isInvalidWith},
	{long: "trust-servers", arg: opt, client: isInvalidWith},
	{long: "use-server-on-error", arg: opt, client: isInvalidWith},
	{long: "rlimit-as", arg: req, client: isInvalidWith},
	{long: "rlimit-cpu", arg: req, client: isInvalidWith},
	{long: "rlimit-nproc", arg: req, client: isInvalidWith},
	{long: "rlimit-stack", arg: req, client: isInvalidWith},
	{long: "rlimit-fsize", arg: req, client: isInvalidWith},

	{long: "vp", arg: req, forward: true, missing: true},
	{short: 'P', forward: true, missing: true},
	{short: 'u', forward: true},
	{short: 'W', forward: true},
	{short: 'i', long: "interactive", client: invalidWith, missing: true},
	{short: 't', forward: true},
	{short: 'q', client: invalidWith},
	{short: 'B', arg: req, client: invalidWith, missing: true},
	{short: 'R', arg: req, client: invalidWith, missing: true},
	{short: 'd', arg: req, forward: true, missing: true},
	{short: 'T', arg: req, forward: true},
	{long: "debug", client: invalidWith, missing: true},
	{long: "modinfo", arg: req, client: isInvalidWith, missing: true},
	{long: "ldd", client: isInvalidWith, missing: true},
	{long: "all-modules", client: isInvalidWith, missing: true},
	{long: "skip-badvars", forward: true, missing: true},
	{long: "prologue-searching", arg: opt, missing: true},
	{long: "suppress-handler-errors", forward: true},
	{long: "clean-cache", client: isInvalidWith, missing: true},
	{long: "poison-cache", client: isInvalidWith, missing: true},
	{long: "semantic-keep-going", forward: true, missing: true},
	{long: "sign-module", arg: opt, client: isInvalidWith},
	{long: "dump-probe-types", forward: true, missing: true},
	{long: "dump-probe-aliases", forward: true, missing: true},
	{long: "dump-functions", forward: true, missing: true},
	{long: "remote", arg: req, client: isInvalidWith, missing: true},
	{long: "remote-prefix", client: isInvalidWith, missing: true},
	{long: "download-debuginfo", arg: opt, missing: true},
	{long: "sysroot", arg: req, client: invalidWith, missing: true},
	{long: "sysenv", arg: req, client: invalidWith, missing: true},
	{long: "suppress-time-limits", forward: true},
	{long: "runtime", arg: req, missing: true},
	{long: "bpf", missing: true},
	{long: "dyninst", missing: true},
	{long: "save-uprobes", missing: true},
	{long: "example", missing: true},
	{long: "no-global-var-display", missing: true},
	{long: "language-server", missing: true},
	{long: "build-as", arg: req, missing: true},
	{long: "use-http-server", arg: req, client: isInvalidWith, missing: true},
}

func (d optionDef) name() string {
	if d.long != "" {
		return d.long
	}
	return string(d.short)
}

// written is the option as users write it: -r, --privilege.
func (d optionDef) written() string {
	if d.short != 0 {
		return "-" + string(d.short)
	}
	return "--" + d.long
}

// Spec is the option syntax of stap.
func Spec() getopt.Spec {
	var s getopt.Spec
	for _, d := range table {
		s.Defs = append(s.Defs, getopt.Def{Short: d.short, Long: d.long, Arg: d.arg})
	}
	return s
}

// Parse reads a command line of stap. The error is what stap prints;
// after a UsageError the Hint follows. Options read before an error are
// returned too.
func Parse(args []string) (*Options, error) {
	o := &Options{LastPass: 5, Privilege: privilege.StapDev, Color: "auto"}
	list, words, err := getopt.Parse(Spec(), args)
	var clientOnly []string // -I -D -m given by a client
	for _, g := range list {
		if g.Name == "privileged" {
			g.Name = "privilege" // other servers know only this one
		}
		i := slices.IndexFunc(table, func(d optionDef) bool { return d.name() == g.Name })
		d := table[i]
		if o.ClientOptions {
			switch d.client {
			case invalidWith:
				return o, fmt.Errorf("ERROR: %s invalid with --client-options", d.written())
			case isInvalidWith:
				return o, fmt.Errorf("ERROR: %s is invalid with --client-options", d.written())
			}
			if (d.short == 'I' || d.short == 'D' || d.short == 'm') && !slices.Contains(clientOnly, d.written()) {
				clientOnly = append(clientOnly, d.written())
			}
		}
		if d.short == 'm' {
			if base, ok := strings.CutSuffix(g.Value, ".ko"); ok {
				g.Value = base
				o.Notes = append(o.Notes, fmt.Sprintf("Truncating module name to '%s'", base))
			}
		}
		if d.pattern != "" && (d.short != 'r' || o.ClientOptions) {
			// Without regard to case k and s are also U+212A and U+017F, of which
			// the patterns know nothing.
			if !isASCII(g.Value) || !regexp.MustCompile("(?i)"+d.pattern).MatchString(g.Value) {
				from := ""
				if d.short == 'r' {
					from = " from client"
				}
				return o, fmt.Errorf("ERROR: Safety pattern mismatch for %s parameter%s ('%s' vs. '%s') rc=1", d.written(), from, g.Value, d.pattern)
			}
		}
		if d.missing {
			return o, fmt.Errorf("ERROR: option %s is not supported by this stap", d.written())
		}
		if err := o.set(d, g); err != nil {
			return o, err
		}
		if d.forward {
			o.Forward = append(o.Forward, forward(d, g)...)
		}
	}
	if err != nil {
		return o, &UsageError{"stap: " + err.Error()}
	}
	if o.HasScript || o.List != 0 {
		o.Args = words
	} else if len(words) > 0 {
		o.File, o.Args = words[0], words[1:]
	}
	if o.Help || o.Version {
		return o, nil
	}
	return o, o.check(clientOnly)
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > unicode.MaxASCII }) < 0
}

func (o *Options) set(d optionDef, g getopt.Option) error {
	switch d.name() {
	case "help":
		o.Help = true
	case "version":
		o.Version = true
	case "p":
		n, err := strconv.Atoi(g.Value)
		if err != nil || n < 1 || n > 5 {
			return errors.New("Invalid pass number (should be 1-5).")
		}
		o.LastPass, o.hasPass = n, true
	case "v":
		o.Verbose++
	case "k":
		o.Keep = true
	case "g":
		o.Guru = true
	case "w":
		o.Suppress++
	case "W":
		o.Strict = true
	case "u":
		o.Unoptimized = true
	case "t":
		o.Timing = true
		o.Defines = append(o.Defines, "STP_TIMING")
	case "q":
		o.Coverage = true
	case "T":
		n, err := strconv.ParseFloat(g.Value, 64)
		if err != nil || !(n >= 0.001) {
			return errors.New("Invalid timeout interval.")
		}
		if n > maxTimeout.Seconds() {
			return fmt.Errorf("Invalid timeout interval (more than %.0f seconds).", maxTimeout.Seconds())
		}
		o.Timeout = time.Duration(n*1000) * time.Millisecond
	case "suppress-handler-errors":
		o.QuietErrors = true
	case "suppress-time-limits":
		o.NoTimeLimits = true
	case "e":
		if o.HasScript {
			return &UsageError{"Only one script can be given on the command line."}
		}
		o.Script, o.HasScript = g.Value, true
	case "E":
		o.Scripts = append(o.Scripts, g.Value)
	case "l", "L":
		if o.List != 0 {
			return errors.New("ERROR: only one of the -l/-L/--dump-* switches may be specified")
		}
		o.List, o.Pattern = d.short, g.Value
	case "I":
		o.Tapsets = append(o.Tapsets, g.Value)
		if o.ClientOptions {
			o.ClientTapsets = append(o.ClientTapsets, g.Value)
		}
	case "compatible":
		if parser.CompareVersions(g.Value, script.Compatible) > 0 {
			return fmt.Errorf("ERROR: systemtap version %s cannot be compatible with future version %s", script.Compatible, g.Value)
		}
		o.Compatible = g.Value
	case "check-version":
		// Nothing in the language of this translator has changed between versions.
	case "D":
		o.Defines = append(o.Defines, g.Value)
	case "G":
		o.Globals = append(o.Globals, g.Value)
	case "r":
		o.Kernel = g.Value
	case "a":
		o.Arch = g.Value
	case "m":
		o.Module = g.Value
	case "o":
		o.Output = g.Value
	case "c":
		if g.Value == "" {
			return errors.New("Empty CMD string invalid.")
		}
		o.Command, o.HasCmd = g.Value, true
	case "x":
		n, err := strconv.ParseInt(g.Value, 10, 32)
		if err != nil || n < 1 {
			return errors.New("Invalid target process ID number.")
		}
		o.Target = int(n)
	case "s":
		n, err := strconv.Atoi(g.Value)
		if err != nil || n < 1 || n > 4095 {
			return errors.New("Invalid buffer size (should be 1-4095).")
		}
		o.BufferMB = n
	case "F":
		o.Flight = true
	case "S":
		o.FileSize = g.Value
	case "target-namespaces":
		n, err := strconv.ParseInt(g.Value, 10, 32)
		if err != nil || n < 1 {
			return errors.New("Invalid process ID number.")
		}
		o.Namespaces = int(n)
	case "b":
		o.Bulk = true
		o.Defines = append(o.Defines, "STP_BULKMODE")
	case "monitor":
		o.Monitor = 1
		if g.Given {
			n, err := strconv.Atoi(g.Value)
			if err != nil || n < 1 {
				return fmt.Errorf("Invalid monitor interval (%s).", g.Value)
			}
			o.Monitor = n
		}
		o.Defines = append(o.Defines, "STP_MONITOR")
	case "unprivileged":
		return o.setPrivilege("stapusr")
	case "privilege":
		return o.setPrivilege(g.Value)
	case "color", "colour":
		o.Color = "always"
		if g.Given {
			o.Color = g.Value
		}
		if !slices.Contains([]string{"always", "auto", "never"}, o.Color) {
			return fmt.Errorf("Invalid argument '%s' for --color.", o.Color)
		}
	case "translator":
		if !slices.Contains([]string{TranslatorBuiltin, TranslatorSystemtap, TranslatorAuto}, g.Value) {
			return fmt.Errorf("Invalid argument '%s' for --translator.", g.Value)
		}
		o.Translator = g.Value
	case "client-options":
		o.ClientOptions, o.ServerDefines = true, len(o.Defines)
	case "tmpdir":
		o.TempDir = g.Value
	case "sign-module":
		if g.Given {
			return errors.New("ERROR: --sign-module=PATH is only valid with --client-options")
		}
		o.SignModule = true
	case "disable-cache":
		// Nothing is cached on this side.
	case "use-server":
		o.UseServer = append(o.UseServer, g.Value)
	case "list-servers":
		o.ListServers = append(o.ListServers, g.Value)
	case "trust-servers":
		o.TrustServers = append(o.TrustServers, g.Value)
	case "use-server-on-error":
		switch v := strings.ToLower(g.Value); {
		case !g.Given, v == "y", v == "ye", v == "yes":
			o.OnServerError = true
		case v == "n", v == "no":
			o.OnServerError = false
		default:
			o.BadOnError = g.Value
			o.Notes = append(o.Notes, fmt.Sprintf("Invalid argument '%s' for --use-server-on-error.", g.Value))
		}
	case "rlimit-as", "rlimit-cpu", "rlimit-nproc", "rlimit-stack", "rlimit-fsize":
		n, err := strconv.ParseUint(g.Value, 0, 63)
		if err != nil {
			return fmt.Errorf("Invalid argument '%s' for --%s.", g.Value, d.long)
		}
		o.Rlimits = append(o.Rlimits, sandbox.Limit{Name: strings.TrimPrefix(d.long, "rlimit-"), Value: n})
	default:
		return fmt.Errorf("ERROR: option %s is not supported by this stap", d.written())
	}
	return nil
}

func (o *Options) setPrivilege(name string) error {
	l, err := privilege.ParseLevel(name)
	if err != nil {
		return fmt.Errorf("Invalid argument '%s' for --privilege.", name)
	}
	if o.PrivilegeSet && o.Privilege != l {
		return errors.New("Privilege level may be set only once.")
	}
	o.Privilege, o.PrivilegeSet = l, true
	return nil
}

// Unprivileged reports whether the script runs below stapdev, so that its
// module must be signed.
func (o *Options) Unprivileged() bool { return o.Privilege != privilege.StapDev }

func (o *Options) check(clientOnly []string) error {
	if o.ClientOptions && o.LastPass > 4 {
		o.LastPass = 4
	}
	if len(o.ListServers) > 0 || len(o.TrustServers) > 0 {
		return nil
	}
	switch {
	case o.List == 0:
	case o.HasScript:
		return &UsageError{"Cannot specify a script with -l/-L/--dump-* switches."}
	case o.hasPass:
		return &UsageError{"Cannot specify -p with -l/-L/--dump-* switches."}
	default:
		o.LastPass = 2
	}
	if !o.HasScript && o.File == "" && o.List == 0 {
		return &UsageError{"A script must be specified."}
	}
	if o.HasCmd && o.Target != 0 {
		return &UsageError{"You can't specify -c and -x together."}
	}
	if o.Flight && o.HasCmd {
		return &UsageError{"You can't specify -c and -F together."}
	}
	if o.NoTimeLimits && !o.Guru {
		return errors.New("ERROR --suppress-time-limits requires guru mode (-g)")
	}
	if o.FileSize != "" && o.Output == "" {
		return &UsageError{"You can't specify -S without -o."}
	}
	if o.Unprivileged() {
		level := o.Privilege.String()
		if len(clientOnly) > 0 {
			return &UsageError{fmt.Sprintf("You can't specify %s when --privilege=%s is specified.", strings.Join(clientOnly, ", "), level)}
		}
		if o.Guru {
			return &UsageError{fmt.Sprintf("You can't specify -g and --privilege=%s together.", level)}
		}
	}
	return nil
}

// forward is an option as it goes to a server. An empty value of a letter is a word
// of its own, or the next word would be taken for it.
func forward(d optionDef, g getopt.Option) []string {
	switch {
	case d.short != 0 && g.Given && g.Value == "" && d.arg == getopt.RequiredArg:
		return []string{"-" + string(d.short), ""}
	case d.short != 0:
		return []string{"-" + string(d.short) + g.Value}
	case g.Given:
		return []string{"--" + d.long + "=" + g.Value}
	}
	return []string{"--" + d.long}
}
