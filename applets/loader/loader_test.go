package loader

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stapbox/core/invocation"
	"stapbox/core/runopts"
	"stapbox/core/signing"
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

func TestLoadPolicy(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]signing.Policy{
		"":                             {},
		"# nothing\n\n":                {},
		"allow-sha1=yes\n":             {AllowSHA1: true},
		"allow-sha1=no\n":              {},
		"  refuse-expired=yes":         {RefuseExpired: true},
		"allow-sha1=yes\nx":            {},
		"allow-sha1 = yes":             {},
		"refuse-expired=yes # really?": {},
	} {
		path := filepath.Join(dir, "load.conf")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := loadPolicy(path)
		bad := strings.Contains(text, "x") && !strings.Contains(text, "refuse-expired=yes") || strings.Contains(text, " = ") || strings.Contains(text, "really")
		if (err != nil) != bad {
			t.Errorf("%q: error %v", text, err)
		}
		if !bad && (got.AllowSHA1 != want.AllowSHA1 || got.RefuseExpired != want.RefuseExpired) {
			t.Errorf("%q: got %+v", text, got)
		}
	}
	if p, err := loadPolicy(filepath.Join(dir, "none")); err != nil || p.AllowSHA1 || p.RefuseExpired {
		t.Errorf("no file: got %+v, %v", p, err)
	}
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
