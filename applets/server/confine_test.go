package server

import (
	"strings"
	"testing"
	"time"

	"stapbox/core/sandbox"
)

func TestConfine(t *testing.T) {
	for _, tt := range []struct {
		option  string
		sandbox sandbox.Sandbox
		wantErr string
		want    string
	}{
		{"auto", sandbox.Sandbox{Layers: sandbox.AllLayers}, "", "Workers are confined by namespaces, Landlock, seccomp"},
		{"require", sandbox.Sandbox{Layers: sandbox.AllLayers}, "", "Workers are confined by namespaces, Landlock, seccomp"},
		{"auto", sandbox.Sandbox{Layers: sandbox.Landlock, Missing: []string{"namespaces: no"}}, "", "WARNING: workers are less confined than they could be, this host lacks namespaces: no"},
		{"require", sandbox.Sandbox{Layers: sandbox.Landlock, Missing: []string{"namespaces: no"}}, "--sandbox=require", "WARNING"},
		{"off", sandbox.Sandbox{}, "", "WARNING: workers are not confined (--sandbox=off)"},
	} {
		opts, err := parse([]string{"--sandbox=" + tt.option}, 1)
		if err != nil {
			t.Fatal(err)
		}
		out := &safe{}
		log, err := openLog("", out, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		s := &server{opts: opts, log: log}
		err = s.confine(&tt.sandbox)
		if (err != nil) != (tt.wantErr != "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
			t.Errorf("%s: got %v", tt.option, err)
		}
		if !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: got %q", tt.option, out)
		}
	}
}

func TestDetect(t *testing.T) {
	s := &server{opts: &options{sandbox: sandboxOff}}
	if got := s.detect(); got.Layers != 0 {
		t.Errorf("--sandbox=off: layers %v", got.Layers)
	}
}

func TestSandboxOptions(t *testing.T) {
	for arg, want := range map[string]string{
		"--sandbox=maybe": `sandbox "maybe" is not`, "--allow-path=x": "absolute path", "--allow-path=/": "absolute path", "--allow-path=/a:/b": "without colons",
		"--translator=gcc": `translator "gcc" is not`, "--translator=": `translator "" is not`,
	} {
		if _, err := parse([]string{arg}, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", arg, err)
		}
	}
	o, err := parse([]string{"--allow-path=/opt/app/", "--allow-path=/srv", "--translator=auto", "--sign-systemtap"}, 1)
	if err != nil || strings.Join(o.readable, " ") != "/opt/app /srv" || o.backend != "auto" || !o.sign {
		t.Errorf("got %+v, %v", o, err)
	}
}
