package getopt

import (
	"reflect"
	"strings"
	"testing"
)

var stapLike = Spec{Defs: []Def{
	{Short: 'p', Arg: RequiredArg},
	{Short: 'v'},
	{Short: 'D', Arg: RequiredArg},
	{Short: 'I', Arg: RequiredArg},
	{Short: 'u', Arg: OptionalArg},
	{Short: 'V', Long: "version"},
	{Long: "use-server", Arg: OptionalArg},
	{Long: "use-server-on-error", Arg: OptionalArg},
	{Long: "privilege", Arg: RequiredArg},
	{Long: "unprivileged"},
}}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		line  string
		canon string
		err   string
	}{
		{"-p4 x.stp", "--p=4 -- x.stp", ""},
		{"-p 4", "--p=4 --", ""},
		{"-vvv", "--v --v --v --", ""},
		{"-vp4", "--v --p=4 --", ""},
		{"-DN=1 -D N=2", "--D=N=1 --D=N=2 --", ""},
		{"-I/dir", "--I=/dir --", ""},
		{"-u x", "--u -- x", ""},
		{"-u/x", "--u=/x --", ""},
		{"-V", "--version --", ""},
		{"--version", "--version --", ""},
		{"--use-server", "--use-server --", ""},
		{"--use-server=a:1 x", "--use-server=a:1 -- x", ""},
		{"--use-server= x", "--use-server= -- x", ""},
		{"--use-server x", "--use-server -- x", ""},
		{"--privilege stapusr", "--privilege=stapusr --", ""},
		{"--priv=stapusr", "--privilege=stapusr --", ""},
		{"x -v y -- -v", "--v -- x y -v", ""},
		{"-", "-- -", ""},
		{"--un", "--unprivileged --", ""},
		{"-q", "", "invalid option -- 'q'"},
		{"-:", "", "invalid option -- ':'"},
		{"-vq", "", "invalid option -- 'q'"},
		{"-p", "", "option requires an argument -- 'p'"},
		{"--privilege", "", "option '--privilege' requires an argument"},
		{"--nope", "", "unrecognized option '--nope'"},
		{"--=x", "", "unrecognized option '--'"},
		{"--unprivileged=1", "", "option '--unprivileged' doesn't allow an argument"},
		{"--use", "", "option '--use' is ambiguous; possibilities: '--use-server' '--use-server-on-error'"},
	} {
		opts, words, err := Parse(stapLike, strings.Fields(tt.line))
		if tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("%q: got error %v, want %q", tt.line, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tt.line, err)
			continue
		}
		if got := strings.Join(Canonical(opts, words), " "); got != tt.canon {
			t.Errorf("%q: got %q, want %q", tt.line, got, tt.canon)
		}
	}
}

func TestPosixStopsAtTheFirstWord(t *testing.T) {
	s := stapLike
	s.Posix = true
	opts, words, err := Parse(s, []string{"-v", "x", "-p4"})
	if err != nil || len(opts) != 1 || !reflect.DeepEqual(words, []string{"x", "-p4"}) {
		t.Errorf("got %v %v %v", opts, words, err)
	}
}

func TestShortReadsAnOptionString(t *testing.T) {
	got := Short("Au::b:")
	want := Spec{Defs: []Def{{Short: 'A'}, {Short: 'u', Arg: OptionalArg}, {Short: 'b', Arg: RequiredArg}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWordsArePermutedAndSafe(t *testing.T) {
	args := []string{"m.ko", "-v", "a=1", "-b", "16", "--version", "--", "-x"}
	opts, words, err := Parse(Spec{Defs: append(stapLike.Defs, Def{Short: 'b', Arg: RequiredArg})}, args)
	if err != nil {
		t.Fatal(err)
	}
	s := Spec{Defs: append(stapLike.Defs, Def{Short: 'b', Arg: RequiredArg})}
	got := strings.Join(s.Words(opts, words), " ")
	if want := "-v -b16 --version -- m.ko a=1 -x"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"-p4", "-vvv x -- -y", "--use-server=1\x00-u", "--\x00-", "-D\x00", "-\xff", "--priv\x00stapusr"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\x00")
		opts, words, err := Parse(stapLike, args)
		if err != nil {
			return
		}
		// What was written in canonical form reads back as the same options.
		var long Spec
		for _, d := range stapLike.Defs {
			long.Defs = append(long.Defs, Def{Long: d.Name(), Arg: d.Arg})
		}
		again, words2, err := Parse(long, Canonical(opts, words))
		if err != nil {
			t.Fatalf("%q: canonical form: %v", args, err)
		}
		for i := range opts {
			opts[i].Short = false
		}
		if len(opts)+len(again) > 0 && !reflect.DeepEqual(opts, again) || strings.Join(words, "\x00") != strings.Join(words2, "\x00") {
			t.Fatalf("%q: %v %v, again %v %v", args, opts, words, again, words2)
		}
	})
}
