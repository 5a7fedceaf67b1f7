package runopts

import (
	"errors"
	"strings"
	"testing"
)

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"-q m", "invalid option -- 'q'"},
		{"-b", "option requires an argument -- 'b'"},
		{"-b 0 m", "Invalid buffer size '0' (should be 1-4095)."},
		{"-b 4096 m", "Invalid buffer size '4096' (should be 1-4095)."},
		{"-b x m", "Invalid buffer size 'x' (should be 1-4095)."},
		{"-T 0 m", "Invalid reader timeout value '0' (should be >= 1)."},
		{"-C red m", "Invalid option 'red' for -C."},
		{"-F -1 m", "Invalid file descriptor option '-1'."},
		{"-x y m", "Invalid target process ID number 'y'."},
		{"-A -L m", "You can't specify the '-A' and '-L' options together."},
		{"-A -b 1 m", "You can't specify the '-A' and '-b' options together.  The '-b'\nbuffer size option only has an effect when the module is inserted."},
		{"-c a -x 1 m", "You can't specify the '-c' and '-x' options together."},
		{"-c a -t 1 m", "You can't specify the '-c' and '-x' options together."},
		{"-D -L m", "You can't specify the '-D' and '-L' options together."},
		{"-D -d m", "You can't specify the '-D' and '-d' options together."},
		{"-D -c x m", "You can't specify the '-D' and '-c' options together."},
		{"-D m", "You have to specify output FILE with '-D' option."},
		{"-S 1 m", "You have to specify output FILE with '-S' option."},
		{"-A -c a m", "You can't specify the '-A' and '-c' options together.  The '-c cmd'\noption used to start a command only has an effect when the module\nis inserted."},
		{"-A -x 1 m", "You can't specify the '-A' and '-x' options together.  The '-x pid'\noption only has an effect when the module is inserted."},
		{"-A m g=1", "Cannot have module options with attach (-A)."},
		{"-N 0 m", "Invalid target namespaces pid 0 (should be > 0)."},
		{"-N a m", "Invalid target namespaces pid a (should be > 0)."},
		{"-M 0 m", "Invalid monitor interval '0' (should be >= 1)."},
		{"-o f -S 1, m", "Invalid file size option '1,'."},
		{"-o f -S 1x m", "Invalid file size option '1x'."},
		{"-o f -S 9223372036854775807 m", "Invalid file size option '9223372036854775807'."},
		{"-r 1 m", "Cannot process remote id option '1'."},
		{"-r 1: m", "Cannot process remote id option '1:'."},
		{"-r -1:unix m", "Cannot process remote id option '-1:unix'."},
		{"m " + strings.Repeat("a=1 ", 64), "64 module parameters are more than the 63 allowed."},
	} {
		_, err := Parse(strings.Fields(tt.line))
		if err == nil || err.Error() != tt.want || !errors.Is(err, ErrUsage) {
			t.Errorf("%q: got %v, want %q", tt.line, err, tt.want)
		}
	}
}

func TestParse(t *testing.T) {
	o, err := Parse(strings.Fields("-vv hello.ko -w -R -x 12 -b 16 -o out%d -T 50 -C never g=7"))
	if err != nil {
		t.Fatal(err)
	}
	if o.Verbose != 2 || !o.NoWarnings || !o.Rename || o.Target != 12 || o.BufferMB != 16 || o.Output != "out%d" ||
		o.ReadWait != 50 || o.Color != "never" || o.Module != "hello.ko" || len(o.Params) != 1 {
		t.Errorf("got %+v", o)
	}
	got := strings.Join(o.Relay(5, "hello_1"), " ")
	if want := "-v -v -w -R -x12 -b16 -oout%d -T50 -Cnever -F5 hello_1 g=7"; got != want {
		t.Errorf("for stapio: got %q, want %q", got, want)
	}
	if got := strings.Join(o.WithOutput("/o").Relay(5, "m"), " "); !strings.Contains(got, " -o/o ") || o.Output != "out%d" {
		t.Errorf("with another file: %q, was %q", got, o.Output)
	}
	again, err := Parse(strings.Fields(got))
	if err != nil || again.RelayFD != 5 || again.Module != "hello_1" {
		t.Errorf("stapio reads %+v, %v", again, err)
	}
	o, err = Parse([]string{"--", "m", "-x=1"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(o.Relay(3, "m"), " "), "-F3 -- m -x=1"; got != want {
		t.Errorf("after --: got %q, want %q", got, want)
	}
}

func TestParseTakesEveryOption(t *testing.T) {
	o, err := Parse([]string{"-iL", "-c", "sleep 1", "-N7", "-r", "2:ssh://host:22", "-S", "2,3", "-of", "-M5", "m"})
	if err != nil {
		t.Fatal(err)
	}
	if !o.Input || !o.Detach || !o.HasCommand || o.Command != "sleep 1" || o.Namespaces != 7 || o.RemoteID != 2 ||
		o.RemoteURI != "ssh://host:22" || o.FileLimit != 2<<20 || o.FileCount != 3 || o.Monitor != 5 {
		t.Errorf("got %+v", o)
	}
	if o, err = Parse([]string{"-r0:" + strings.Repeat("u", 300), "-D", "-of", "m"}); err != nil || len(o.RemoteURI) != 127 || !o.Daemon {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestModule(t *testing.T) {
	const dir = "/lib/modules/6/systemtap"
	for word, want := range map[string][2]string{
		"pmod":         {dir + "/pmod.ko", "pmod"},
		"pmod.ko":      {"pmod.ko", "pmod"},
		"./pmod":       {"./pmod", "pmod"},
		"/a/b.c/d.ko":  {"/a/b.c/d.ko", "d"},
		"../x/y.z.ko":  {"../x/y.z.ko", "y.z"},
		"a/../../p.ko": {"a/../../p.ko", "p"},
	} {
		name, err := ModuleName(word)
		if got := ModulePath(word, dir); got != want[0] || name != want[1] || err != nil {
			t.Errorf("%q: got %q, %q, %v; want %q", word, got, name, err, want)
		}
	}
	for _, word := range []string{"", ".", ".ko", "a/", "/.x"} {
		if name, err := ModuleName(word); err == nil {
			t.Errorf("%q: got %q, want an error", word, name)
		}
	}
	if _, err := ModuleName(strings.Repeat("n", 56)); err != nil {
		t.Errorf("56 characters: %v", err)
	}
	if _, err := ModuleName(strings.Repeat("n", 57)); err == nil {
		t.Error("57 characters were accepted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("-vvR\x00m.ko\x00g=1")
	f.Add("-F3\x00--\x00-x")
	f.Fuzz(func(t *testing.T, line string) {
		o, err := Parse(strings.Split(line, "\x00"))
		if err != nil || o.Module == "" || o.Help || o.Version {
			return
		}
		again, err := Parse(o.Relay(7, "name"))
		if err != nil || again.RelayFD != 7 || again.Module != "name" || len(again.Params) != len(o.Params) {
			t.Errorf("%q: stapio reads %+v, %v", line, again, err)
		}
	})
}
