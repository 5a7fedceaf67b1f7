package relay

import (
	"slices"
	"testing"
)

func TestCommandWords(t *testing.T) {
	env := []string{"A=one two", "E=", "HOME=/home/u"}
	for _, tt := range []struct {
		command string
		want    []string
	}{
		{"ls -l /", []string{"ls", "-l", "/"}},
		{`echo "a  b" 'c  d' e\ f`, []string{"echo", "a  b", "c  d", "e f"}},
		{"echo $A", []string{"echo", "one", "two"}},
		{`echo "$A" '$A' "${A}"`, []string{"echo", "one two", "$A", "one two"}},
		{"echo x${E}y", []string{"echo", "xy"}},
		{"cat ~/x", []string{"cat", "/home/u/x"}},
		{"echo $((2+3*4))", []string{"echo", "14"}},
		{"echo /dev/nul[l]", []string{"echo", "/dev/null"}},
		{"echo /no/such/*", []string{"echo", "/no/such/*"}},
		{`printf "%s;|&\n" "(x)"`, []string{"printf", `%s;|&\n`, "(x)"}},
		{"echo #x a#b", []string{"echo", "#x", "a#b"}},
		{"a | b", []string{"sh", "-c", "a | b"}},
		{"a; b", []string{"sh", "-c", "a; b"}},
		{"a &", []string{"sh", "-c", "a &"}},
		{"a > f", []string{"sh", "-c", "a > f"}},
		{"(a)", []string{"sh", "-c", "(a)"}},
		{"{ a", []string{"sh", "-c", "{ a"}},
		{"a\nb", []string{"sh", "-c", "a\nb"}},
	} {
		got, err := commandWords(tt.command, env, "/")
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v; want %q", tt.command, got, err, tt.want)
		}
	}
	for command, want := range map[string]string{
		`echo "x`:         "wordexp: syntax error (unmatched quotes?) in -c COMMAND",
		`echo 'x`:         "wordexp: syntax error (unmatched quotes?) in -c COMMAND",
		"echo \\":         "wordexp: syntax error (unmatched quotes?) in -c COMMAND",
		"echo ${A":        "wordexp: syntax error (unmatched quotes?) in -c COMMAND",
		"echo $NONE":      "wordexp: parsing error (3)",
		"echo `id`":       "wordexp: parsing error (4)",
		"echo $(id)":      "wordexp: parsing error (4)",
		`echo "$(id)"`:    "wordexp: parsing error (4)",
		"echo ${A:-`id`}": "wordexp: parsing error (4)",
		"":                "empty -c COMMAND",
		"  ":              "empty -c COMMAND",
		"$E":              "empty -c COMMAND",
	} {
		if got, err := commandWords(command, env, "/"); err == nil || err.Error() != want {
			t.Errorf("%q: got %q, %v; want %s", command, got, err, want)
		}
	}
}

func FuzzCommandWords(f *testing.F) {
	f.Add(`echo "a $HOME" ~ $((1+2)) [a-z]*`)
	f.Add("a | b")
	f.Add("$(x) `y` ${z")
	f.Fuzz(func(t *testing.T, command string) {
		words, err := commandWords(command, []string{"HOME=/"}, "/")
		if err == nil && len(words) == 0 {
			t.Errorf("%q: no words and no error", command)
		}
	})
}
