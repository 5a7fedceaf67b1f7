// Package runopts reads the command line that staprun and stapio share
// (loader-relay section 2). staprun hands its own options on to stapio, which
// reads them again.
package runopts

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"stapbox/core/getopt"
	"stapbox/core/report"
)

// spec is the option string of both programs.
func spec() getopt.Spec { return getopt.Short("ALu::vihb:t:dc:o:x:N:S:DwRr:VT:C:M:F:") }

// Options are the parsed options. Fields are named for what they do; the letter
// is in the comment.
type Options struct {
	Verbose    int         // -v
	Help       bool        // -h
	Version    bool        // -V
	NoWarnings bool        // -w
	Delete     bool        // -d
	Attach     bool        // -A
	Detach     bool        // -L: load, start, leave
	Daemon     bool        // -D
	Input      bool        // -i: standard input goes to the script
	Rename     bool        // -R
	Uprobes    bool        // -u
	BufferMB   int         // -b, 0: the module decides
	Target     int32       // -x, -t
	Namespaces int32       // -N: a process whose namespaces the script means, 0: none
	Output     string      // -o
	ReadWait   int         // -T, milliseconds
	Monitor    int         // -M, seconds between looks, 0: no monitor
	Color      report.When // -C
	RelayFD    int         // -F, -1 when absent

	HasCommand bool // -c was given
	Command    string

	Rotate    bool  // -S was given
	FileLimit int64 // bytes of an output file after which the next is begun, 0: none
	FileCount int   // output files kept, 0: all

	Remote    bool // -r was given
	RemoteID  int32
	RemoteURI string

	Module string   // the first word
	Params []string // the other words: module parameters

	list []getopt.Option
}

// ErrUsage is wrapped by errors after which the usage text is shown.
const ErrUsage = constError("usage")

type constError string

func (e constError) Error() string { return string(e) }

type usageError struct{ text string }

func (e *usageError) Error() string        { return e.text }
func (e *usageError) Is(target error) bool { return target == ErrUsage }

// UsageErrorf makes an error after which the usage text is shown.
func UsageErrorf(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// GetoptError is an error of getopt(3) itself, shown with the program's name
// instead of ERROR.
type GetoptError struct{ error }

// Is makes the error an ErrUsage.
func (GetoptError) Is(target error) bool { return target == ErrUsage }

// conflicts in the order they are reported.
var conflicts = []struct{ a, b, text string }{
	{"A", "L", "You can't specify the '-A' and '-L' options together."},
	{"A", "b", "You can't specify the '-A' and '-b' options together.  The '-b'\nbuffer size option only has an effect when the module is inserted."},
	{"A", "c", "You can't specify the '-A' and '-c' options together.  The '-c cmd'\noption used to start a command only has an effect when the module\nis inserted."},
	{"A", "x", "You can't specify the '-A' and '-x' options together.  The '-x pid'\noption only has an effect when the module is inserted."},
	{"c", "x", "You can't specify the '-c' and '-x' options together."},
	{"D", "L", "You can't specify the '-D' and '-L' options together."},
	{"D", "d", "You can't specify the '-D' and '-d' options together."},
	{"D", "c", "You can't specify the '-D' and '-c' options together."},
}

// maxParams is the number of module parameters taken, as upstream's.
const maxParams = 63

// Parse reads the words after the program name.
func Parse(args []string) (Options, error) {
	o := Options{Color: report.Auto, RelayFD: -1, ReadWait: 200}
	list, words, err := getopt.Parse(spec(), args)
	given := map[string]bool{}
	for _, opt := range list {
		if opt.Name == "t" {
			given["x"] = true
		}
		given[opt.Name] = true
		if err := o.set(opt); err != nil {
			return o, err
		}
	}
	if err != nil {
		return o, GetoptError{err}
	}
	o.list = list
	if o.Help || o.Version {
		return o, nil
	}
	for _, c := range conflicts {
		if given[c.a] && given[c.b] {
			return o, UsageErrorf("%s", c.text)
		}
	}
	for _, needs := range []string{"D", "S"} {
		if given[needs] && !given["o"] {
			return o, UsageErrorf("You have to specify output FILE with '-%s' option.", needs)
		}
	}
	if len(words) > 0 {
		o.Module, o.Params = words[0], words[1:]
	}
	if o.Attach && len(o.Params) > 0 {
		return o, UsageErrorf("Cannot have module options with attach (-A).")
	}
	if len(o.Params) > maxParams {
		return o, UsageErrorf("%d module parameters are more than the %d allowed.", len(o.Params), maxParams)
	}
	return o, nil
}

func (o *Options) set(opt getopt.Option) error {
	switch opt.Name {
	case "v":
		o.Verbose++
	case "h":
		o.Help = true
	case "V":
		o.Version = true
	case "w":
		o.NoWarnings = true
	case "d":
		o.Delete = true
	case "A":
		o.Attach = true
	case "L":
		o.Detach = true
	case "D":
		o.Daemon = true
	case "i":
		o.Input = true
	case "c":
		o.HasCommand, o.Command = true, opt.Value
	case "R":
		o.Rename = true
	case "u":
		o.Uprobes = true
	case "b":
		n, err := strconv.Atoi(opt.Value)
		if err != nil || n < 1 || n > 4095 {
			return UsageErrorf("Invalid buffer size '%s' (should be 1-4095).", opt.Value)
		}
		o.BufferMB = n
	case "t", "x":
		n, err := strconv.ParseInt(opt.Value, 10, 32)
		if err != nil || n < 0 {
			return UsageErrorf("Invalid target process ID number '%s'.", opt.Value)
		}
		o.Target = int32(n)
	case "o":
		if opt.Value == "" {
			return UsageErrorf("The output FILE of '-o' is empty.")
		}
		o.Output = opt.Value
	case "T":
		n, err := strconv.Atoi(opt.Value)
		if err != nil || n < 1 {
			return UsageErrorf("Invalid reader timeout value '%s' (should be >= 1).", opt.Value)
		}
		o.ReadWait = n
	case "N":
		n, err := strconv.ParseInt(opt.Value, 10, 32)
		if err != nil || n < 1 {
			return UsageErrorf("Invalid target namespaces pid %s (should be > 0).", opt.Value)
		}
		o.Namespaces = int32(n)
	case "M":
		n, err := strconv.ParseInt(opt.Value, 10, 32)
		if err != nil || n < 1 {
			return UsageErrorf("Invalid monitor interval '%s' (should be >= 1).", opt.Value)
		}
		o.Monitor = int(n)
	case "S":
		return o.setRotation(opt.Value)
	case "r":
		return o.setRemote(opt.Value)
	case "C":
		switch w := report.When(opt.Value); w {
		case report.Auto, report.Never, report.Always:
			o.Color = w
		default:
			return UsageErrorf("Invalid option '%s' for -C.", opt.Value)
		}
	case "F":
		n, err := strconv.Atoi(opt.Value)
		if err != nil || n < 0 {
			return UsageErrorf("Invalid file descriptor option '%s'.", opt.Value)
		}
		o.RelayFD = n
	}
	return nil
}

// maxFileMB is the largest file size of -S: 2^43 MB are more than any file system
// holds, and still a number of bytes.
const maxFileMB = 1<<43 - 1

// setRotation reads -S MB[,N].
func (o *Options) setRotation(value string) error {
	size, count, counted := strings.Cut(value, ",")
	mb, err := strconv.ParseUint(size, 10, 63)
	n := uint64(0)
	if err == nil && counted {
		n, err = strconv.ParseUint(count, 10, 31)
	}
	if err != nil || mb > maxFileMB {
		return UsageErrorf("Invalid file size option '%s'.", value)
	}
	o.Rotate, o.FileLimit, o.FileCount = true, int64(mb)<<20, int(n)
	return nil
}

// maxURI is what fits a REMOTE_ID message beside its terminating zero.
const maxURI = 127

// setRemote reads -r N:URI.
func (o *Options) setRemote(value string) error {
	id, uri, ok := strings.Cut(value, ":")
	n, err := strconv.ParseInt(id, 10, 32)
	if err != nil || n < 0 || !ok || uri == "" {
		return UsageErrorf("Cannot process remote id option '%s'.", value)
	}
	o.Remote, o.RemoteID, o.RemoteURI = true, int32(n), uri[:min(len(uri), maxURI)]
	return nil
}

// Relay is the command line staprun gives to stapio: its own options, the
// descriptor of the control directory, the name of the loaded module, and the
// parameters. The descriptor comes before the module name, where it is read as
// an option whatever follows.
func (o Options) Relay(fd int, module string) []string {
	var list []getopt.Option
	for _, opt := range o.list {
		if opt.Name != "F" {
			list = append(list, opt)
		}
	}
	list = append(list, getopt.Option{Name: "F", Value: strconv.Itoa(fd), Given: true, Short: true})
	return spec().Words(list, append([]string{module}, o.Params...))
}

// WithOutput is the same command line with another FILE for -o.
func (o Options) WithOutput(file string) Options {
	o.Output = file
	o.list = append([]getopt.Option(nil), o.list...)
	for i := range o.list {
		if o.list[i].Name == "o" {
			o.list[i].Value = file
		}
	}
	return o
}

// ModulePath finds the file of a MODULE word: a word with a slash is a path, one
// that ends in ".ko" is a file in the working directory, any other is a name in
// the directory of approved modules.
func ModulePath(word, blessedDir string) string {
	switch {
	case strings.Contains(word, "/"):
		return word
	case len(word) > 3 && strings.HasSuffix(word, ".ko"):
		return word
	}
	return filepath.Join(blessedDir, word+".ko")
}

// ModuleName is the name in a MODULE word: its last path element up to the last
// dot. It names loaded modules; a module file has its name inside.
func ModuleName(word string) (string, error) {
	name := word[strings.LastIndex(word, "/")+1:]
	if i := strings.LastIndex(name, "."); i >= 0 {
		name = name[:i]
	}
	if name == "" {
		return "", UsageErrorf("Module name in '%s' is empty.", word)
	}
	if len(name) > maxModuleName {
		return "", UsageErrorf("Module name ('%s') is too long.", name)
	}
	return name, nil
}

const maxModuleName = 56

// Usage is the text of -h.
func Usage(program, release string) string {
	return fmt.Sprintf(`
%s [-v] [-w] [-V] [-h] [-u] [-c cmd ] [-x pid] [-N pid] [-i] [-A|-L|-d] [-C WHEN]
	[-b bufsize] [-R] [-r N:URI] [-o FILE [-D] [-S size[,N]]] [-T timeout] [-M sec]
	MODULE [module-options]
-v              Increase verbosity.
-V              Print version number and exit.
-h              Print this help text and exit.
-w              Suppress warnings.
-u              Accepted; kernels with uprobes built in need nothing loaded.
-c cmd          Command 'cmd' will be run and the script will exit
                when it does.  The '_stp_target' variable will contain
                the pid for the command.
-x pid          Sets the '_stp_target' variable to pid. Also -t.
-N pid          Sets the '_stp_namespaces_pid' variable to pid.
-i              Send standard input to the script.
-d              Delete a module. Only detached or unused modules
                that belong to you may be deleted. '*' deletes
                all of those.
-A              Attach to loaded systemtap module.
-L              Load module and start probes, then detach.
-D              Run in background. This requires '-o' option.
-R              Have staprun create a new name for the module before
                inserting it. This allows the same module to be run
                multiple times at once.
-r N:URI        Pass N:URI data to the script: remote_id() and remote_uri().
-b buffer size  The module will use that many megabytes of buffer for each
                CPU (1-4095). The default is chosen by the module.
-o FILE         Send output to FILE. This supports strftime(3) formats
                for FILE.
-S size[,N]     Switch output files when their size reaches that many
                megabytes. With N only the last N files are kept.
-T timeout      Milliseconds a reader waits for data. Defaults to 200.
-M sec          Monitor mode: show the state of the probes every sec seconds.
-C WHEN         Enable colored errors. WHEN must be either 'auto', 'never',
                or 'always'. Set to 'auto' by default.

MODULE can be either a module name or a module path.  If a
module name is used, it is searched in the following directory:
/lib/modules/%s/systemtap
`, program, release)
}
