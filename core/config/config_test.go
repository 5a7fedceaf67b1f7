package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	got, err := Parse([]byte(`# comment
A=1
export B='two $words'  # trailing
C="q \" \\ \$ \x"
D=a\ b"c d"'e'
A+=2 E=
F="line
two"
G=x#y
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Assignment{
		{"A", "1", false, 2}, {"B", "two $words", false, 3}, {"C", `q " \ $ \x`, false, 4},
		{"D", "a bc de", false, 5}, {"A", "2", true, 6}, {"E", "", false, 6}, {"F", "line\ntwo", false, 7}, {"G", "x#y", false, 9},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if v := Values(got); v["A"] != "12" {
		t.Errorf("A: got %q, want 12", v["A"])
	}
}

func TestParseRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"A=$B": `'$'`, "A=`x`": "'`'", "A=\"$B\"": `'$'`, "\nA=1;B=2": "line 2", "A=(1 2)": `'('`,
		"hello": "not an assignment", "1A=2": "not an assignment", "'A'=1": "not an assignment", "=1": "not an assignment",
		"A='x": "missing", "A=\"x": "missing", "A=x\\": "backslash", "A=~/x": `'~'`, "A=*": `'*'`, "A=\x00": "NUL",
		strings.Repeat("#", MaxSize+1): "more than",
	} {
		if _, err := Parse([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: got %v, want %q", in, err, want)
		}
	}
}

func TestWords(t *testing.T) {
	got, err := Words([]byte("--rlimit-as=4294967296 --rlimit-cpu=60\n# comment\n-DX='a b'\n"))
	if want := []string{"--rlimit-as=4294967296", "--rlimit-cpu=60", "-DX=a b"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("A=1\nB='x y'\nC=\"a\\\"b\" # c\n")
	f.Add("export A=\\\n1")
	f.Fuzz(func(t *testing.T, in string) {
		list, err := Parse([]byte(in))
		if err != nil {
			return
		}
		// What was read can be written and read again.
		for _, a := range list {
			again, err := Parse([]byte(a.Name + "=" + Quote(a.Value)))
			if err != nil || len(again) != 1 || again[0].Value != a.Value {
				t.Errorf("%q: got %+v, %v", a.Value, again, err)
			}
		}
	})
}
