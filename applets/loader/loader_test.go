package loader

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
	"stapbox/core/runopts"
	"stapbox/core/trust"
)

func TestInitialNamespace(t *testing.T) {
	for m, want := range map[string]bool{
		"         0          0 4294967295\n": true,
		"         0       1000          1\n": false,
		"         0          0          1\n": false,
		"0 0 1\n1 1 4294967294\n":            false,
		"":                                   false,
	} {
		if got := initialNamespace(m); got != want {
			t.Errorf("%q: got %v", m, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	l := &loader{Invocation: &invocation.Invocation{Environ: []string{
		"PATH=/x", "IFS=/", "ENV=/x", "BASH_ENV=/x", "CDPATH=/x", "SYSTEMTAP_MODULE=old", "STAPBOX_HANDOVER=9", "novalue", "HOME=/h",
	}}}
	got := l.environment("m_1")
	for _, want := range []string{"PATH=/x", "HOME=/h", "SYSTEMTAP_MODULE=m_1", "SYSTEMTAP_VERBOSE=0"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	for _, e := range got {
		for _, gone := range []string{"IFS=", "ENV=", "BASH_ENV=", "CDPATH=", "SYSTEMTAP_MODULE=old", "STAPBOX_HANDOVER=9", "novalue"} {
			if strings.HasPrefix(e, gone) {
				t.Errorf("%q reaches stapio", e)
			}
		}
	}
}

func TestParsePolicy(t *testing.T) {
	for _, tt := range []struct {
		text          string
		sha1, expired bool
		modules       int
		line          string // named by the error
	}{
		{"", false, false, 32, ""},
		{"# nothing\n\n", false, false, 32, ""},
		{"allow-sha1=yes\n", true, false, 32, ""},
		{"allow-sha1=yes\nallow-sha1=no\n", false, false, 32, ""},
		{"  refuse-expired=yes", false, true, 32, ""},
		{"max-modules=0\r\n", false, false, 0, ""},
		{"max-modules=100", false, false, 100, ""},
		{"max-modules=-1", false, false, 0, "1:"},
		{"max-modules=99999999", false, false, 0, "1:"},
		{"max-modules", false, false, 0, "1:"},
		{"allow-sha1=yes\nx", false, false, 0, "2:"},
		{"allow-sha1 = yes", false, false, 0, "1:"},
		{"allow-sha1=YES", false, false, 0, "1:"},
		{"refuse-expired=yes # really?", false, false, 0, "1:"},
	} {
		got, err := parsePolicy(tt.text)
		if (err != nil) != (tt.line != "") || err != nil && !strings.HasPrefix(err.Error(), tt.line) {
			t.Errorf("%q: error %v", tt.text, err)
		}
		if err == nil && (got.AllowSHA1 != tt.sha1 || got.RefuseExpired != tt.expired || got.MaxModules != tt.modules) {
			t.Errorf("%q: got %+v", tt.text, got)
		}
	}
}

// The policy counts only while it is its owner's alone, and reading it never
// blocks.
func TestLoadPolicyHoldsTheFileToTheRules(t *testing.T) {
	base := t.TempDir()
	rules := trust.Rules{Owners: []int{os.Getuid()}, Base: base}
	dir := filepath.Join(base, "stapbox")
	path := filepath.Join(dir, "load.conf")
	if p, err := loadPolicy(path, rules); err != nil || p.AllowSHA1 || p.MaxModules != 32 {
		t.Errorf("no directory: got %+v, %v", p, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(mode os.FileMode) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, []byte("allow-sha1=yes\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		prepare func() error
		want    string
	}{
		{"as it should be", func() error { write(0o644); return nil }, ""},
		{"group-writable", func() error { write(0o664); return nil }, "writable by the group"},
		{"world-writable", func() error { write(0o646); return nil }, "writable by others"},
		{"a link", func() error {
			write(0o644)
			if err := os.Rename(path, path+".real"); err != nil {
				return err
			}
			return os.Symlink(path+".real", path)
		}, "must not be a link"},
		{"a directory", func() error { os.Remove(path); return os.Mkdir(path, 0o755) }, "must be a regular file"},
		{"a FIFO", func() error { os.Remove(path); return unix.Mkfifo(path, 0o644) }, "must be a regular file"},
		{"too large", func() error {
			os.Remove(path)
			return os.WriteFile(path, bytes.Repeat([]byte("#"), maxPolicySize+1), 0o644)
		}, "more than"},
		{"world-writable directory", func() error { os.Remove(path); write(0o644); return os.Chmod(dir, 0o777) }, "writable by"},
	} {
		if err := tt.prepare(); err != nil {
			t.Fatal(err)
		}
		p, err := loadPolicy(path, rules)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
		if p.AllowSHA1 != (tt.want == "") {
			t.Errorf("%s: SHA-1 allowed: %v", tt.name, p.AllowSHA1)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add("allow-sha1=yes\nrefuse-expired=no\n# x\nmax-modules=5")
	f.Add("max-modules=99999999999999999999")
	f.Add("=\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePolicy(text)
		if err == nil && (p.MaxModules < 0 || p.MaxModules > 1<<16) {
			t.Errorf("got %+v", p)
		}
		if err == nil && p.AllowSHA1 && !strings.Contains(text, "allow-sha1=yes") {
			t.Error("SHA-1 allowed by nobody")
		}
	})
}

// A member of stapusr wrote lines of his own into the kernel log: it repeats the
// names of unknown parameters as they are.
func TestParametersCannotForgeLinesInTheKernelLog(t *testing.T) {
	for param, ok := range map[string]bool{
		"a=1": true, "text=\"two words\"": true, "text=\u00e9": true,
		"\"a\nfake: Kernel panic\"=1": false, "x\x1b[31m=1": false, "x=\x7f": false, "x=\u009b1m": false,
	} {
		l := &loader{opts: runopts.Options{Module: "m.ko", RelayFD: -1, Params: []string{param}}}
		if err := l.checkOptions(); (err == nil) != ok {
			t.Errorf("parameter %q: error %v", param, err)
		}
	}
}

func TestJoinParams(t *testing.T) {
	for _, tt := range []struct {
		words []string
		want  string // "" for an error
	}{
		{nil, "_stp_bufsize=16"},
		{[]string{"g=7", "h=-0x10"}, "_stp_bufsize=16 g=7 h=-0x10"},
		{[]string{`h="a b"`}, `_stp_bufsize=16 h="a b"`},
		{[]string{"h=a b"}, `_stp_bufsize=16 h="a b"`},
		{[]string{"h="}, "_stp_bufsize=16 h="},
		{[]string{`h=""`}, `_stp_bufsize=16 h=""`},
		{[]string{"h=a=b"}, "_stp_bufsize=16 h=a=b"},
		{[]string{"h=it's"}, "_stp_bufsize=16 h=it's"},
		{[]string{"h=\u00e0"}, "_stp_bufsize=16 h=\"\u00e0\""},
		{[]string{"h=a\u00a0b"}, "_stp_bufsize=16 h=\"a\u00a0b\""},
		{[]string{`h="a`, `b"`}, ""},
		{[]string{`h=a"b`}, ""},
		{[]string{`h="a" x="b"`}, ""},
		{[]string{`"h=a b"`}, ""},
		{[]string{"a b=c"}, ""},
		{[]string{"--"}, ""},
		{[]string{"=1"}, ""},
		{[]string{""}, ""},
		{[]string{"h=" + strings.Repeat("x", maxParamBytes)}, ""},
	} {
		got, err := joinParams(16, tt.words)
		if (err != nil) != (tt.want == "") || err == nil && got != tt.want {
			t.Errorf("%q: got %q, %v; want %q", tt.words, got, err, tt.want)
		}
	}
}

// kernelArgs splits parameters as next_arg of the kernel does: at white space
// outside quotes; quotes around a value are taken away.
func kernelArgs(text string) (list [][2]string) {
	isSpace := func(c byte) bool { return c == ' ' || c >= 9 && c <= 13 || c == 0xa0 }
	for {
		for text != "" && isSpace(text[0]) {
			text = text[1:]
		}
		if text == "" {
			return list
		}
		quoted, all := false, false
		if text[0] == '"' {
			text, quoted, all = text[1:], true, true
		}
		i, equals := 0, 0
		for ; i < len(text) && (quoted || !isSpace(text[i])); i++ {
			if equals == 0 && text[i] == '=' {
				equals = i
			}
			if text[i] == '"' {
				quoted = !quoted
			}
		}
		word := text[:i]
		text = text[i:]
		if all {
			word = strings.TrimSuffix(word, `"`)
		}
		name, value := word, ""
		if equals > 0 {
			name, value = word[:equals], word[equals+1:]
			if strings.HasPrefix(value, `"`) {
				value = strings.TrimSuffix(value[1:], `"`)
			}
		}
		list = append(list, [2]string{name, value})
	}
}

// Whatever the words, the kernel sees the buffer size and then each of them, and
// nothing else.
func FuzzJoinParams(f *testing.F) {
	f.Add("g=7", "h=a b")
	f.Add(`h="a b"`, `x=\"`)
	f.Add(`h="a`, `b" _stp_bufsize=4095`)
	f.Add("h=\u00a0", "x=\xa0y")
	f.Fuzz(func(t *testing.T, a, b string) {
		text, err := joinParams(1, []string{a, b})
		if err != nil {
			return
		}
		got := kernelArgs(text)
		if len(got) != 3 || got[0] != [2]string{"_stp_bufsize", "1"} {
			t.Fatalf("%q %q: the kernel gets %q", a, b, got)
		}
		for i, w := range []string{a, b} {
			name, value, _ := strings.Cut(w, "=")
			if len(value) >= 2 && value[0] == '"' {
				value = value[1 : len(value)-1]
			}
			if got[i+1] != [2]string{name, value} {
				t.Errorf("%q: the kernel gets %q", w, got[i+1])
			}
		}
	})
}

func TestCallersZone(t *testing.T) {
	winter := time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)
	summer := time.Date(2026, 7, 15, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		tz   string
		when time.Time
		name string
		west int64
		ok   bool
	}{
		{"", winter, "UTC", 0, true},
		{"UTC", winter, "UTC", 0, true},
		{"CET-1", winter, "CET", -3600, true},
		{"CET-1CEST,M3.5.0,M10.5.0/3", winter, "CET", -3600, true},
		{"CET-1CEST,M3.5.0,M10.5.0/3", summer, "CEST", -7200, true},
		{":EST5EDT,M3.2.0,M11.1.0", summer, "EDT", 14400, true},
		{"<+0330>-3:30", winter, "+0330", -12600, true},
		{"/etc/shadow", winter, "", 0, false},
		{"../../../etc/shadow", winter, "", 0, false},
		{"a/../../x", winter, "", 0, false},
		{"no such zone", winter, "", 0, false},
		{"Nosuch/Zone", winter, "", 0, false},
		{"Local", winter, "", 0, false},
		{"X\n5", winter, "", 0, false},
		{strings.Repeat("A", maxTZ+1) + "5", winter, "", 0, false},
	} {
		l := callersZone(tt.tz)
		if (l != nil) != tt.ok {
			t.Errorf("%q: got %v", tt.tz, l)
			continue
		}
		if l == nil {
			continue
		}
		if name, west := localZone(tt.tz, true, tt.when); name != tt.name || west != tt.west {
			t.Errorf("%q at %v: got %q, %d; want %q, %d", tt.tz, tt.when, name, west, tt.name, tt.west)
		}
	}
}

func FuzzCallersZone(f *testing.F) {
	f.Add("CET-1CEST,M3.5.0,M10.5.0/3")
	f.Add("<+03>-3")
	f.Add("/etc/passwd")
	f.Fuzz(func(t *testing.T, tz string) {
		localZone(tz, true, time.Unix(1800000000, 0))
	})
}

func TestClip(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("a", 5000), strings.Repeat("\"", 300), strings.Repeat("\u00e9", 500), strings.Repeat("\xff", 4000), strings.Repeat("\n", 4000)} {
		got := clip(s, 100)
		b, err := json.Marshal(got)
		if err != nil || len(b) > 102 {
			t.Errorf("%.20q: %d bytes of JSON, %v", s, len(b), err)
		}
		if len(s) <= 50 && got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

// Who holds a module is told from the links below /proc/PID/fd.
func TestHolders(t *testing.T) {
	proc := t.TempDir()
	for link, target := range map[string]string{
		"12/fd/3": "/proc/systemtap/m/x", "12/fd/4": "/proc/systemtap/m/y", "13/fd/0": "/proc/systemtap/m2/x",
		"14/fd/9": "/sys/kernel/debug/systemtap/m/trace0", "self/fd/1": "/proc/systemtap/m/x",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(proc, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(proc, link)); err != nil {
			t.Fatal(err)
		}
	}
	for pid, comm := range map[string]string{"12": "cat\n", "14": "a\x1bb\n"} {
		if err := os.WriteFile(filepath.Join(proc, pid, "comm"), []byte(comm), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := holders(proc, "m"), []string{`process 12 ("cat")`, `process 14 ("a\x1bb")`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
