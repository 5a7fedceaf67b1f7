package initconf

import (
	"reflect"
	"strings"
	"testing"

	"stapbox/core/hostpaths"
)

// Requirements: R-002-039 R-002-041 R-002-043 R-002-052..058 R-002-060 R-002-062 R-002-065..066
func TestDefaults(t *testing.T) {
	s, warnings, err := New(map[string]string{})
	if err != nil || len(warnings) > 0 || hostpaths.InitConfig() != "/etc/systemtap/config" {
		t.Fatal(warnings, err)
	}
	s.vars = nil
	want := Settings{
		ScriptPath: "/etc/systemtap/script.d", ConfigPath: "/etc/systemtap/conf.d", CachePath: "/var/cache/systemtap",
		TempPath: "/tmp", StatPath: "/var/run/systemtap", LogFile: "/var/log/systemtap.log",
		PassAll: true, AutoCompile: true, SrvStat: true, ServerFallback: true, DefaultStart: []string{},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
}

// Requirements: R-002-052 R-002-056 R-002-058 R-002-060 R-002-064..065 R-002-068..069 R-002-074..075
func TestNew(t *testing.T) {
	vars := map[string]string{
		"SCRIPT_PATH": "/a/b/", "PASSALL": "no", "RECURSIVE": "On", "AUTOCOMPILE": "maybe", "ALLOW_CACHEONLY": "",
		"DEFAULT_START": " b  a ", "a_OPT": `-c "x y"`, "a_REQ": "b c", "b_OPT": "'x",
	}
	s, warnings, err := New(vars)
	if err != nil || s.ScriptPath != "/a/b" || s.PassAll || !s.Recursive || !s.AutoCompile || s.AllowCacheOnly || !reflect.DeepEqual(s.DefaultStart, []string{"b", "a"}) {
		t.Errorf("got %+v, %v", s, err)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], `AUTOCOMPILE: "maybe" is neither yes nor no, yes is used`) || !strings.Contains(warnings[1], `ALLOW_CACHEONLY: ""`) {
		t.Errorf("warnings %q", warnings)
	}
	if w, ok, err := s.Options("a"); err != nil || !ok || !reflect.DeepEqual(w, []string{"-c", "x y"}) {
		t.Errorf("got %q, %v, %v", w, ok, err)
	}
	if _, _, err := s.Options("b"); err == nil || !strings.HasPrefix(err.Error(), "b_OPT: missing") {
		t.Errorf("got %v", err)
	}
	if _, ok, err := s.Options("c"); ok || err != nil {
		t.Errorf("got %v, %v", ok, err)
	}
	for v, want := range map[string]bool{"": false, " ": true, "a": true} {
		if s, _, _ := New(map[string]string{"DEFAULT_START": v}); s.HasDefaultStart != want {
			t.Errorf("DEFAULT_START=%q: got %v", v, s.HasDefaultStart)
		}
	}
	if _, _, err := New(map[string]string{"STAT_PATH": "run"}); err == nil || !strings.Contains(err.Error(), `STAT_PATH: "run" is not an absolute path`) {
		t.Errorf("got %v", err)
	}
}

// Requirements: R-002-040 R-002-079 C-14
func TestKindOf(t *testing.T) {
	for name, want := range map[string]Kind{
		"a.conf": Loaded, "group1": IfOptions, "a-b_C": IfOptions, ".conf": Ignored, ".x.conf": Ignored, "a.conf~": Ignored,
		"a.conf.dpkg-old": Ignored, "README.txt": Ignored, "": Ignored,
	} {
		if got := KindOf(name); got != want {
			t.Errorf("%q: got %v, want %v", name, got, want)
		}
	}
	for text, want := range map[string]string{
		"a_OPT=-g\nb_REQ=a # x\n": "", "": "", "PASSALL=no": "PASSALL is neither", "ls": "not an assignment", "a_OPT=`x`": "shell",
	} {
		if err := OnlyOptions([]byte(text)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}
