package scriptopt

import (
	"slices"
	"strings"
	"testing"

	"stapbox/core/config"
)

func split(t testing.TB, s string) []string {
	t.Helper()
	w, err := config.Split(s)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// Requirements: R-002-070..073 B-44
func TestParse(t *testing.T) {
	for _, tt := range []struct{ in, compile, start, params string }{
		{"", "--", "-L", ""},
		{"-g -DA=1 -o /x -s 4 -S 10,2 -x 42 -vF", "-g -D A=1 -v --", "-o /x -b 4 -S 10,2 -x 42 -D", ""},
		{"-p 4 -m n -r 1.2 -e 'probe x {}' -hVkF", "--", "-L", ""},
		{"-vtgbu -P -q -w -I /t -R /r -D X -d /m", "-v -t -g -b -u -P -q -w -I /t -R /r -D X -d /m --", "-L", ""},
		{"-l x -L y", "--", "-L", ""},
		{"-vvp4", "-v -v --", "-L", ""},
		{"--vp=12345 --save-uprobes --save-up", "--vp 12345 --save-uprobes --save-uprobes --", "-L", ""},
		{"--help --version", "--", "-L", ""},
		{"--privilege=stapusr --use-server --use-server=h:1 --skip-badvars", "--privilege stapusr --use-server --use-server=h:1 --skip-badvars --", "-L", ""},
		{"-G v=1 -B CONFIG=y -a x86_64 -E 'probe end {}' -T 5", "-G v=1 -B CONFIG=y -a x86_64 -E probe end {} -T 5 --", "-L", ""},
		{"-v p1=2 -g -- p2=3 -x", "-v -g --", "-L", "p1=2 p2=3 -x"},
		{"-o /a -v -o /b", "-v --", "-o /b -D", ""},
		// B-44: quotes group
		{"-c 'ls -l' -D 'A=\"x y\"'", "-D A=\"x y\" --", "-c ls -l -L", ""},
	} {
		o, err := Parse(split(t, tt.in))
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if o.Line() != tt.compile || strings.Join(o.Start, " ") != tt.start || strings.Join(o.Params, " ") != tt.params {
			t.Errorf("%q: compile %q, start %q, params %q; want %q, %q, %q", tt.in, o.Line(), o.Start, o.Params, tt.compile, tt.start, tt.params)
		}
		if warned := len(o.Warnings) > 0; warned != strings.Contains(tt.in, "-l ") {
			t.Errorf("%q: warnings %q", tt.in, o.Warnings)
		}
	}
}

// B-45: what staprun would refuse is refused before anything starts.
func TestParseRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"--no-such":             "unrecognized option '--no-such'",
		"-z":                    "invalid option -- 'z'",
		"-D":                    "requires an argument",
		"-o /x -c ls":           "'-D' and '-c'",
		"-S 10":                 "output FILE",
		"-c ls -x 1":            "'-c' and '-x'",
		"-o ''":                 "empty",
		"--client-options":      "cannot be used for a service",
		"--list-servers":        "cannot be used for a service",
		"--trust-servers=ssl":   "cannot be used for a service",
		"--prologue-searching=": "",
	} {
		_, err := Parse(split(t, in))
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", in, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "Failed to parse parameters. (")):
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

func TestWithStart(t *testing.T) {
	base, err := Parse([]string{"-g", "-o", "/x"})
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"":                    "-L",
		"-b 4 -o /y -S 1 p=1": "-b 4 -o /y -S 1 -D",
		"-w -x5":              "-w -x 5 -L",
	} {
		o, err := base.WithStart(split(t, in))
		if err != nil || strings.Join(o.Start, " ") != want || o.Line() != "-g --" {
			t.Errorf("%q: got %q, %v; want %q", in, o.Start, err, want)
		}
	}
	for _, in := range []string{"-d", "-A", "-o /x -c ls", "-t 1 -c ls", "-S 1", "--x"} {
		if _, err := base.WithStart(split(t, in)); err == nil {
			t.Errorf("%q is accepted", in)
		}
	}
	if base.Daemon() != true || base.WithOutput("/z").Start[1] != "/z" || base.Start[1] != "/x" {
		t.Errorf("WithOutput changes the original: %q", base.Start)
	}
}

// What is normalised once stays as it is.
func FuzzParse(f *testing.F) {
	f.Add("-g -DA=1 -o /x -s 4 -S 10,2 -x 42 -vF")
	f.Add("--vp=1 --color --use-server=x -- a -b")
	f.Fuzz(func(t *testing.T, in string) {
		words, err := config.Split(in)
		if err != nil {
			return
		}
		o, err := Parse(words)
		if err != nil {
			return
		}
		again, err := Parse(o.Compile)
		if err != nil || !slices.Equal(again.Compile, o.Compile) {
			t.Errorf("%q: %q, then %q, %v", in, o.Compile, again.Compile, err)
		}
	})
}
