package interop

import (
	"reflect"
	"strings"
	"testing"

	"stapbox/e2e/agent/request"
)

func TestParse(t *testing.T) {
	s, err := parse("x", []byte("// A title: not a key.\n// options: -DA=1 -w\n// args: -- 1 'a b' ''\n// globals: g=7\n// staprun: -x 5\n// mask: [0-9]+ cycles\n// digest: yes\nprobe begin { }\n// args: late\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"-p4", "-r", "R", "-m", "t_x", "-DA=1", "-w", "-G", "g=7", "x.stp", "--", "1", "a b", ""}
	if got := s.Compile("R"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if r := s.ResultOf(request.Answer{Stderr: []byte("took 12 cycles"), Status: 3}); r != (Result{Stderr: "took <...>", Status: 3}) {
		t.Errorf("got %+v", r)
	}
	r := s.Request(Pair{Staprun: "/bin/staprun", Env: []string{"A=b"}}, "/m.ko")
	if got := strings.Join(r.Argv[4:], " "); got != "/bin/staprun -x 5 /m.ko g=7" || !s.Digest || r.Env[len(r.Env)-1] != "A=b" {
		t.Errorf("got %q with %q", r.Argv, r.Env)
	}
	for _, bad := range []string{"// args: 'open\n", "// mask: (\n"} {
		if _, err := parse("x", []byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestCorpus(t *testing.T) {
	scripts, err := Load("../testdata/scripts")
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) < 30 {
		t.Errorf("%d scripts, want 30", len(scripts))
	}
	floods := 0
	for _, s := range scripts {
		golden, err := s.Golden()
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		if s.Digest {
			floods++
			if !strings.HasSuffix(golden.Stdout, "\nin order\n") {
				t.Errorf("%s: %q", s.Name, golden.Stdout)
			}
		}
	}
	if floods < 3 {
		t.Errorf("%d floods, want 3", floods)
	}
}

func TestRecord(t *testing.T) {
	s := &Script{Path: t.TempDir() + "/x.stp"}
	for _, want := range []Result{{"out\n", "err\n", 255}, {"", "", 0}} {
		if err := s.Record(want); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Golden(); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func TestDifference(t *testing.T) {
	long := strings.Repeat("x", 500)
	for _, tt := range []struct {
		got, want Result
		text      string
	}{
		{Result{"a\n", "", 0}, Result{"a\n", "", 0}, ""},
		{Result{"a\n", "", 1}, Result{"a\n", "", 0}, "status 1, want 0\n"},
		{Result{"a\nb\n", "", 0}, Result{"a\n", "", 0}, "stdout line 2:\n\tgot  \"b\\n\"\n\twant \"\"\nstdout line 3:\n\tgot  \"\"\n\twant nothing\n"},
		{Result{"", long + "a", 0}, Result{"", long + "b", 0}, "stderr line 1:\n\tgot  \"" + long[:100] + "a\"\n\twant \"" + long[:100] + "b\"\n"},
	} {
		if got := Difference(tt.got, tt.want); got != tt.text {
			t.Errorf("got %q, want %q", got, tt.text)
		}
	}
}
