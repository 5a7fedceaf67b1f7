package config

import (
	"errors"
	"maps"
	"os/exec"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	got, err := Parse([]byte("# comment\r\n" + `A=1
export B='two $words'  # trailing
C="q \" \\ \$ \x"
D=a\ b"c d"'e'
A+=2 E=
F="line
two"
G=x#y
H=/a/*; I=a\
b
J=a~b`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Assignment{
		{"A", "1", false, 2}, {"B", "two $words", false, 3}, {"C", `q " \ $ \x`, false, 4},
		{"D", "a bc de", false, 5}, {"A", "2", true, 6}, {"E", "", false, 6}, {"F", "line\ntwo", false, 7}, {"G", "x#y", false, 9},
		{"H", "/a/*", false, 10}, {"I", "ab", false, 10}, {"J", "a~b", false, 12},
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
		"A=$B": `'$'`, "A=`x`": "'`'", "A=\"$B\"": `'$'`, "\nA=1;B": "line 2", "A=(1 2)": "this assignment",
		"hello": "not an assignment", "1A=2": "not an assignment", "'A'=1": "not an assignment", "=1": "not an assignment",
		"A='x": "without closing quote", "A=\"x": "without closing quote", "A=~/x": `'~'`, "A=x:~": `'~'`, "A=\x00": "NUL",
		"A=1 ls": "not an assignment", "A=1 &": "this statement", "A=1 >x": "this statement", "if a; then B=1; fi": "this statement",
		"declare A=1": "this statement", "A[1]=2": "this assignment", "export A": "this assignment", "A=$'x'": `'$'`, "A=$((1))": `'$'`,
		"! A=1": "this statement", "A=1 && B=2": "this statement", "A=<(x)": "this word",
		strings.Repeat("#", MaxSize+1): "more than",
	} {
		if _, err := Parse([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: got %v, want %q", in, err, want)
		}
	}
}

func TestEvaluate(t *testing.T) {
	env := map[string]string{"HOME": "/home/u", "E": "env", "EMPTY": ""}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	for in, want := range map[string]map[string]string{
		"A=1 B=$A$A; C=${B}x":                          {"A": "1", "B": "11", "C": "11x"},
		`A=$E B="${E} \$E" C='$E'`:                     {"A": "env", "B": "env $E", "C": "$E"},
		`A=${NONE:-d e}"" B=${EMPTY:-"x y"} C=${E:-x}`: {"A": "d e", "B": "x y", "C": "env"},
		"A=~ B=~/x C=\\~ D='~' E=a~":                   {"A": "/home/u", "B": "/home/u/x", "C": "~", "D": "~", "E": "a~"},
		"OLD+=' more' E+=2 N+=n":                       {"OLD": "old more", "E": "env2", "N": "n"},
		"E=here F=$E":                                  {"E": "here", "F": "here"},
		"A=$NONE":                                      {"A": ""},
		"export SCRIPT_PATH=/a/b/ X=yes":               {"SCRIPT_PATH": "/a/b/", "X": "yes"},
	} {
		got := map[string]string{"OLD": "old"}
		if err := Evaluate([]byte(in), got, lookup); err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if _, ok := want["OLD"]; !ok {
			want["OLD"] = "old"
		}
		if !maps.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestEvaluateRefuses(t *testing.T) {
	for _, in := range []string{"A=1; B=$(id)", "A=1\nB=`id`", "A=${B#x}", "A=${B:=x}", "A=$1", "A=$?", "A=${!B}", "A=${#B}", "A=~u\\x/", "source x", ". x"} {
		vars := map[string]string{}
		err := Evaluate([]byte(in), vars, func(string) (string, bool) { return "", false })
		if !errors.Is(err, ErrShell) {
			t.Errorf("%q: got %v, want ErrShell", in, err)
		}
		if len(vars) > 0 {
			t.Errorf("%q: %q assigned", in, vars)
		}
	}
}

// TestEvaluateLikeShell compares with the shell of this host.
func TestEvaluateLikeShell(t *testing.T) {
	sh, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	for _, in := range []string{
		`V=a\ b"c d"'e'`, `V="x \a \" \\ \$"`, `V=1; V+=2 W=3`, `V=~/x`, `V=a#b # c`, `V='a
b'`, `W=1; V="${W}${X:-y z}"`, "V=a\\\nb", `V=*`, `V=a{b,c}`, `V=""`, `V=`, `export V=a`,
	} {
		cmd := exec.Command(sh, "-c", in+"\nprintf %s \"$V\"")
		cmd.Env = []string{"HOME=/h"}
		want, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		vars := map[string]string{}
		err = Evaluate([]byte(in), vars, func(n string) (string, bool) {
			if n == "HOME" {
				return "/h", true
			}
			return "", false
		})
		if err != nil || vars["V"] != string(want) {
			t.Errorf("%q: got %q, %v; bash has %q", in, vars["V"], err, want)
		}
	}
}

func TestWords(t *testing.T) {
	got, err := Words([]byte("--rlimit-as=4294967296 --rlimit-cpu=60\n# comment\n-DX='a b' A=1 -Da\\\nb\r\n-x\n"))
	if want := []string{"--rlimit-as=4294967296", "--rlimit-cpu=60", "-DX=a b", "A=1", "-Dab", "-x"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	for in, want := range map[string]string{"a *": `'*'`, "$A": `'$'`, "a ; b": "not a valid word", "~": `'~'`, "a=~": `'~'`, "a <b": "not a valid word", "'a": "quote"} {
		if _, err := Words([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

func TestSplit(t *testing.T) {
	for in, want := range map[string][]string{
		"":                      nil,
		" a  b\tc\n":            {"a", "b", "c"},
		`-c 'ls -l' -D X="a b"`: {"-c", "ls -l", "-D", "X=a b"},
		`"" a\ b "\$x\y" $z; *`: {"", "a b", `$x\y`, "$z;", "*"},
		`'it'\''s'`:             {"it's"},
	} {
		if got, err := Split(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{"'a": "missing", `"a`: "missing", `a\`: "backslash"} {
		if _, err := Split(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("A=1\nB='x y'\nC=\"a\\\"b\" # c\n")
	f.Add("export A=\\\n1")
	f.Add("A=${B:-c}; D+=~/x")
	f.Fuzz(func(t *testing.T, in string) {
		vars := map[string]string{}
		Evaluate([]byte(in), vars, func(string) (string, bool) { return "", false })
		Words([]byte(in))
		list, err := Parse([]byte(in))
		if err != nil {
			return
		}
		// What was read can be written and read again.
		for _, a := range list {
			again, err := Parse([]byte(a.Name + "=" + Quote(a.Value)))
			if err != nil || len(again) != 1 || again[0].Value != strings.ReplaceAll(a.Value, "\r\n", "\n") {
				t.Errorf("%q: got %+v, %v", a.Value, again, err)
			}
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add(`-c 'ls -l' "a\"b" \x`)
	f.Fuzz(func(t *testing.T, in string) {
		words, err := Split(in)
		if err != nil {
			return
		}
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, Quote(w))
		}
		again, err := Split(strings.Join(quoted, " "))
		if err != nil || !reflect.DeepEqual(again, words) {
			t.Errorf("%q: got %q, %v; want %q", in, again, err, words)
		}
	})
}
