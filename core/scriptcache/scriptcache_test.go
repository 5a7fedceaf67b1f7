package scriptcache

import (
	"reflect"
	"strings"
	"testing"
)

const uname = "Linux host 6.1.0-1 #1 SMP Debian x86_64 GNU/Linux"

// Requirements: R-002-045
func TestRecord(t *testing.T) {
	r := Record{uname, "6.1.0-1", "x86_64", "5.2/stapbox", "-g -D A=1 --"}
	want := uname + "\ntarget=6.1.0-1 x86_64\nstap=5.2/stapbox\n-g -D A=1 --\n"
	if got := string(r.Format()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for in, want := range map[string]Record{
		want:                    r,
		uname + "\n--\n":        {Uname: uname, Options: "--"},
		uname + "\n--":          {Uname: uname, Options: "--"},
		"u\nx\nfuture=1\n-v --": {Uname: "u", Options: "-v --"},
	} {
		if got, err := ParseRecord([]byte(in)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "\n", "x", "x\n", "u\ntarget=6.1\n--", strings.Repeat("a\n", maxRecord)} {
		if r, err := ParseRecord([]byte(in)); err == nil {
			t.Errorf("%.20q is accepted: %+v", in, r)
		}
	}
}

// B-40: a cache prepared on another machine, or under another kernel, is used.
// Requirements: R-002-009..012 R-002-089..090 C-19
func TestCheck(t *testing.T) {
	here := Kernel{Uname: uname, Release: "6.1.0-1", Machine: "x86_64", Node: "host", Version: "#1 SMP Debian", Vermagic: "6.1.0-1 SMP mod_unload"}
	full := Record{uname, "6.1.0-1", "x86_64", "v", "-g --"}
	for _, tt := range []struct {
		name   string
		record *Record
		change func(*Kernel)
		script bool
		want   string // "" for valid
	}{
		{"unchanged", &full, nil, true, ""},
		{"other options", &Record{Uname: uname, Options: "--"}, nil, true, "the options were"},
		{"no record", nil, nil, true, "no record"},
		{"no record, no script", nil, nil, false, ""},
		{"other options, no script", &Record{Uname: "u", Options: "--"}, nil, false, ""},
		{"no script, wrong kernel", nil, func(k *Kernel) { k.Vermagic = "6.1.0-2 SMP" }, false, `is for kernel "6.1.0-2"`},
		{"wrong kernel", &full, func(k *Kernel) { k.Vermagic = "6.1.0-2 SMP" }, true, `is for kernel "6.1.0-2"`},
		{"longer release", &full, func(k *Kernel) { k.Vermagic = "6.1.0-11 SMP" }, true, "is for kernel"},
		{"no vermagic", &full, func(k *Kernel) { k.Vermagic = "" }, true, "does not say"},
		{"prepared elsewhere", &Record{"Linux build 6.5 #3 x86_64", "6.1.0-1", "x86_64", "v", "-g --"}, nil, true, ""},
		{"prepared here under another kernel", &Record{"Linux host 5.10 #7 SMP x86_64 GNU/Linux", "6.1.0-1", "x86_64", "v", "-g --"}, nil, true, ""},
		{"prepared elsewhere by upstream", &Record{Uname: "Linux build 6.5 #3 x86_64", Options: "-g --"}, nil, true, ""},
		{"for another machine", &Record{"Linux build 6.5 #3 x86_64", "6.1.0-1", "aarch64", "v", "-g --"}, nil, true, "compiled for"},
		{"for another release by its record", &Record{"Linux build 6.5 #3 x86_64", "6.1.0-2", "x86_64", "v", "-g --"}, nil, true, "compiled for"},
		{"kernel built again", &Record{"Linux host 6.1.0-1 #2 SMP Debian x86_64 GNU/Linux", "6.1.0-1", "x86_64", "v", "-g --"}, nil, true, "built again"},
		{"kernel built again, by upstream", &Record{Uname: "Linux host 6.1.0-1 #2 SMP Debian x86_64 GNU/Linux", Options: "-g --"}, nil, true, "built again"},
		{"kernel built again elsewhere", &Record{"Linux build 6.1.0-1 #2 SMP Debian x86_64 GNU/Linux", "6.1.0-1", "x86_64", "v", "-g --"}, nil, true, ""},
		{"host renamed", &full, func(k *Kernel) { k.Node = "new"; k.Uname = strings.Replace(uname, "host", "new", 1) }, true, ""},
	} {
		k := here
		if tt.change != nil {
			tt.change(&k)
		}
		err := Check(tt.record, k, "-g --", tt.script)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// B-47: names are checked wherever they come from.
func TestValidName(t *testing.T) {
	for _, n := range []string{"a", "_", "a1", "net_top", strings.Repeat("a", maxName)} {
		if err := ValidName(n); err != nil {
			t.Error(err)
		}
	}
	for n, want := range map[string]string{
		"": "empty", "-x": "must match", "1a": "must match", "a-b": "must match", "a.b": "must match", "../x": "must match", "a b": "must match",
		"é": "must match", "\x1b[2J": "?[2J", "Abc": "capital", strings.Repeat("a", maxName+1): "longest",
	} {
		if err := ValidName(n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", n, err, want)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(uname + "\ntarget=6.1.0-1 x86_64\nstap=v\n--\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := ParseRecord(in)
		if err != nil {
			return
		}
		Check(&r, Kernel{Vermagic: "6.1", Release: "6.1"}, "--", true)
		if r.Release == "" {
			return
		}
		if again, err := ParseRecord(r.Format()); err != nil || again != r {
			t.Errorf("%q: %+v, then %+v, %v", in, r, again, err)
		}
	})
}
