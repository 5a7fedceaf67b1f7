package stapopts

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"stapbox/core/privilege"
)

// Requirements: C-05
func TestParseOptions(t *testing.T) {
	o, err := Parse([]string{"-vvp4", "-r", "6.1.0", "-DMAXACTION=5", "-G", "x=1", "--privilege=stapsys", "--use-server", "--use-server=1.2.3.4:5",
		"-e", "probe begin {}", "a", "--", "-b"})
	if err != nil {
		t.Fatal(err)
	}
	if o.LastPass != 4 || o.Verbose != 2 || o.Kernel != "6.1.0" || o.Privilege != privilege.StapSys || !o.Unprivileged() || o.Script != "probe begin {}" {
		t.Errorf("got %+v", o)
	}
	if want := []string{"", "1.2.3.4:5"}; !reflect.DeepEqual(o.UseServer, want) {
		t.Errorf("servers: got %q, want %q", o.UseServer, want)
	}
	if want := []string{"-v", "-v", "-p4", "-r6.1.0", "-DMAXACTION=5", "--privilege=stapsys", "-eprobe begin {}"}; !reflect.DeepEqual(o.Forward, want) {
		t.Errorf("forward: got %q, want %q", o.Forward, want)
	}
	if want := []string{"a", "-b"}; !reflect.DeepEqual(o.Args, want) {
		t.Errorf("arguments: got %q, want %q", o.Args, want)
	}
	if o, err := Parse([]string{"-p4", "-m", "mod.ko", "x.stp", "1"}); err != nil || o.File != "x.stp" || o.Module != "mod" || len(o.Notes) != 1 {
		t.Errorf("got %+v, %v", o, err)
	}
	// As some documents write it; other servers know only the first.
	if o, err := Parse([]string{"--privileged=stapusr", "-e", "x"}); err != nil || o.Privilege != privilege.StapUsr || !slices.Contains(o.Forward, "--privilege=stapusr") {
		t.Errorf("got %+v, %v", o, err)
	}
	if o, err := Parse([]string{"--client-options", "-e", "x"}); err != nil || o.LastPass != 4 || o.Unprivileged() {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"-p7 -e x", "Invalid pass number (should be 1-5)."},
		{"-p x -e x", "Invalid pass number"},
		{"-v", "A script must be specified."},
		{"-e x -e y", "Only one script"},
		{"-x abc -e x", "Invalid target process ID number."},
		{"-s 5000 -e x", "Invalid buffer size (should be 1-4095)."},
		{"-c true -x 5 -e x", "You can't specify -c and -x together."},
		{"--privilege=foo -e x", "Invalid argument 'foo' for --privilege."},
		{"--privilege=stapusr --privilege=stapsys -e x", "Privilege level may be set only once."},
		{"-g --privilege=stapusr -e x", "You can't specify -g and --privilege=stapusr together."},
		{"-m a.b -e x", "ERROR: Safety pattern mismatch for -m parameter ('a.b' vs. '^[a-z0-9_]+$') rc=1"},
		{"-m \u017f -e x", "Safety pattern mismatch for -m parameter ('\u017f' vs."},
		{"-D \u212a=1 -e x", "Safety pattern mismatch for -D parameter"},
		{"-m a\xff -e x", "Safety pattern mismatch for -m parameter"},
		{"-D a-b -e x", "Safety pattern mismatch for -D parameter"},
		{"-G abc -e x", "Safety pattern mismatch for -G parameter"},
		{"-a x/y -e x", "Safety pattern mismatch for -a parameter"},
		{"--client-options -r ../x -e x", "Safety pattern mismatch for -r parameter from client ('../x' vs."},
		{"--client-options -k -e x", "ERROR: -k invalid with --client-options"},
		{"--client-options -R/x -e x", "ERROR: -R invalid with --client-options"},
		{"--client-options -q -e x", "ERROR: -q invalid with --client-options"},
		{"--client-options -BX=1 -e x", "ERROR: -B invalid with --client-options"},
		{"--client-options --sysroot=/ -e x", "ERROR: --sysroot invalid with --client-options"},
		{"--client-options --tmpdir=/x -e x", "ERROR: --tmpdir is invalid with --client-options"},
		{"--client-options --use-server -e x", "ERROR: --use-server is invalid with --client-options"},
		{"--client-options --remote=x -e x", "ERROR: --remote is invalid with --client-options"},
		{"--client-options --rlimit-cpu=1 -e x", "ERROR: --rlimit-cpu is invalid with --client-options"},
		{"--sign-module=/x -e x", "ERROR: --sign-module=PATH is only valid with --client-options"},
		{"--client-options --sign-module -e x", "ERROR: --sign-module is invalid with --client-options"},
		{"--client-options --privilege=stapusr -m x -DA -DB -e x", "You can't specify -m, -D when --privilege=stapusr is specified."},
		{"--rlimit-cpu=x -e x", "Invalid argument 'x' for --rlimit-cpu."},
		{"--color=blue -e x", "Invalid argument 'blue' for --color."},
		{"-R 1 -e x", "option -R is not supported"},
		{"-E x", "A script must be specified."},
		{"-l x -L y", "ERROR: only one of the -l/-L/--dump-* switches may be specified"},
		{"-l x -e y", "Cannot specify a script with -l/-L/--dump-* switches."},
		{"-L x -p2", "Cannot specify -p with -l/-L/--dump-* switches."},
		{"--compatible=9.9 -e x", "ERROR: systemtap version 5.6 cannot be compatible with future version 9.9"},
		{"--compatible=abc -e x", "cannot be compatible with future version abc"},
		{"--client-options --privilege=stapusr -I tapset/x -DA -e x", "You can't specify -I, -D when --privilege=stapusr is specified."},
		{"--monitor=0 -e x", "Invalid monitor interval (0)."},
		{"--monitor=x -e x", "Invalid monitor interval (x)."},
		{"-T 0 -e x", "Invalid timeout interval."},
		{"-T NaN -e x", "Invalid timeout interval."},
		{"-T 86401 -e x", "Invalid timeout interval (more than 86400 seconds)."},
		{"--suppress-time-limits -e x", "requires guru mode (-g)"},
		{"--client-options -q -e x", "-q invalid with --client-options"},
		{"--nosuch -e x", "stap: unrecognized option '--nosuch'"},
	} {
		_, err := Parse(strings.Fields(tt.args))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.args, err, tt.want)
		}
	}
	var usage *UsageError
	if _, err := Parse([]string{"-g", "--unprivileged", "-e", "x"}); !errors.As(err, &usage) {
		t.Errorf("got %T, want a UsageError", err)
	}
}

// The table says of every option either how it is set or that it is missing.
func TestOptionTableComplete(t *testing.T) {
	for _, d := range table {
		args := []string{d.written()}
		if d.arg == req {
			args = append(args, "1")
		}
		_, err := Parse(append(args, "-e", "x"))
		unsupported := err != nil && strings.Contains(err.Error(), "not supported")
		if d.pattern == "" && unsupported != d.missing {
			t.Errorf("%s: missing is %v, got %v", d.written(), d.missing, err)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add("-p4\x00-eprobe begin {}\x00--privilege=stapusr")
	f.Add("-r../x\x00--\x00-v")
	f.Fuzz(func(t *testing.T, in string) {
		o, err := Parse(append([]string{"--client-options"}, strings.Split(in, "\x00")...))
		if err == nil && !o.Help && !o.Version && (o.LastPass > 4 || o.TempDir != "" || o.Unprivileged() && (o.Guru || len(o.Defines) > 0)) {
			t.Errorf("got %+v", o)
		}
	})
}

// An empty value is a value: it is not lost on the way to a server, where the next
// option would be taken for it.
func TestEmptyValues(t *testing.T) {
	o, err := Parse([]string{"-e", "", "-p2", "--privilege=stapdev", "-E", ""})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"-e", "", "-p2", "--privilege=stapdev", "-E", ""}; !reflect.DeepEqual(o.Forward, want) {
		t.Errorf("got %q, want %q", o.Forward, want)
	}
	again, err := Parse(o.Forward)
	if err != nil || !again.HasScript || again.Script != "" || again.LastPass != 2 {
		t.Errorf("got %+v, %v", again, err)
	}
	if _, err := Parse([]string{"-c", "", "-e", "x"}); err == nil || err.Error() != "Empty CMD string invalid." {
		t.Errorf("-c without a command: got %v", err)
	}
}
