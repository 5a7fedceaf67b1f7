package service

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"stapbox/core/getopt"
	"stapbox/core/service"
)

const usage = `Usage: %[1]s {start|stop|restart|condrestart|try-restart|force-reload|status|list|configtest} [OPTION]...
       %[1]s {run|trust} -n NICK
Start, stop and watch compile servers: those the options describe, else, to
start, the configured ones, else all that run.

  -c FILE                       settings, read after those of the host
  -a ARCH                       architecture (this host's)
  -r RELEASE|DIR                kernel release, or build tree (the running one);
                                may be repeated
  -i                            a server for each kernel release in /lib/modules
      --combine                 with -i: one server for all of them
  -I DIR                        tapsets (may be repeated)
  -B OPTION                     for make (may be repeated)
  -D NAME[=VALUE]               macro for every translation (may be repeated)
  -R DIR                        runtime
  -u USER                       user of the server, a member of group stap-server
                                (STAP_USER, else the invoking user)
  -n NICK                       the running or configured server of this name, or
                                the name of a new one
  -p PID                        the running server with this process id
  -k                            keep the directories of requests
  -P                            for SystemTap's servers

These may be repeated; their values go to the servers in turn:
      --log FILE                log (LOG_FILE)
      --port N                  port (chosen by the kernel)
      --ssl DIR                 key and certificate (~USER/.systemtap/ssl/server)
      --max-threads N           requests compiled at once (number of processors)
      --max-request-size N      bytes of a request, unpacked (50000)
      --max-compressed-request N  bytes of a request, packed (5000)

      --wait-ready=SECONDS      how long a server may take to start (10; 30 if it
                                has to make its key)
      --wait-stop=SECONDS       how long it may take to end (15)
      --json                    status and list for programs
  -h, --help                    show this help
  -V, --version                 show the version
`

// options is a command line.
type options struct {
	action        string
	help, version bool
	list          []getopt.Option // all, in order
	config        string          // -c
	flags         service.Flags
	json          bool
	ready         time.Duration // 0 for the default
	stop          time.Duration
}

// stopTime is how long a server may take to end: its own drain time and some.
const stopTime = 15 * time.Second

func optionSpec() getopt.Spec {
	s := getopt.Short("a:r:R:I:B:D:u:n:p:c:ikP")
	for _, name := range service.Distributed() {
		s.Defs = append(s.Defs, getopt.Def{Long: name, Arg: getopt.RequiredArg})
	}
	s.Defs = append(s.Defs,
		getopt.Def{Long: "combine"}, getopt.Def{Long: "json"},
		getopt.Def{Long: "wait-ready", Arg: getopt.RequiredArg}, getopt.Def{Long: "wait-stop", Arg: getopt.RequiredArg},
		getopt.Def{Short: 'h', Long: "help"}, getopt.Def{Short: 'V', Long: "version"})
	return s
}

// parse reads a command line. An action that there is not is no error here.
func parse(args []string) (*options, error) {
	o := &options{stop: stopTime}
	switch {
	case len(args) == 0:
		return o, nil
	case args[0] == "usage" || args[0] == "help" || args[0] == "-h" || args[0] == "--help":
		o.help = true
		return o, nil
	case args[0] == "-V" || args[0] == "--version":
		o.version = true
		return o, nil
	}
	o.action = args[0]
	if !o.known() {
		return o, nil
	}
	list, rest, err := getopt.Parse(optionSpec(), args[1:])
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("unexpected word '%s'", rest[0])
	}
	o.list = list
	for _, g := range list {
		switch g.Name {
		case "help":
			o.help = true
		case "version":
			o.version = true
		case "c":
			o.config = g.Value
		case "k":
			o.flags.Keep = true
		case "P":
			o.flags.Password = true
		case "json":
			o.json = true
		case "wait-ready", "wait-stop":
			n, err := strconv.ParseUint(g.Value, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("option '--%s' needs a number of seconds up to 65535, not '%s'", g.Name, g.Value)
			}
			if d := time.Duration(n) * time.Second; g.Name == "wait-stop" {
				o.stop = d
			} else {
				o.ready = max(d, time.Millisecond)
			}
		}
	}
	return o, nil
}

func (o *options) known() bool {
	return slices.Contains([]string{"start", "stop", "restart", "condrestart", "try-restart", "force-reload", "reload", "status", "list", "configtest", "run", "trust"}, o.action)
}

// starts reports whether the action starts servers that did not run.
func (o *options) starts() bool {
	return slices.Contains([]string{"start", "restart", "force-reload"}, o.action)
}

// words is a command line for people.
func words(args []string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return '?'
		}
		return r
	}, strings.Join(args, " "))
}
