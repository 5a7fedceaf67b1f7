package privilege

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var hostGroups = Groups{GroupUsr: 156, GroupSys: 157, GroupDev: 158}

func user(uid int, gids ...int) User { return User{UID: uid, GIDs: gids, Groups: hostGroups} }

// TestDecide holds every row of loader-relay 4.2 as decisions L1 and L2 change
// it, for every kind of user.
// Requirements: R-000-001..002 R-000-011
func TestDecide(t *testing.T) {
	root, dev, devOnly := user(0, 0), user(1, 100, 156, 158), user(1, 100, 158)
	sys, usr, nobody := user(1, 100, 156, 157), user(1, 100, 156), user(1, 100)
	sysDev := user(1, 157, 158)
	newgrp := user(1, 156) // the effective group counts
	notBlessed := NotBlessed("/lib/modules/6/systemtap", "/tmp/m.ko")
	for _, tt := range []struct {
		name      string
		user      User
		signature Signature
		required  Level
		blessed   bool
		allow     bool
		creds     Level
		rule      string
	}{
		{"altered, root", root, Altered, StapUsr, true, false, 0, "a"},
		{"altered, dev", dev, Altered, StapUsr, true, false, 0, "a"},
		{"altered, usr", usr, Altered, StapUsr, true, false, 0, "a"},
		{"unsigned, root", root, Untrusted, StapDev, false, true, All, "b"},
		{"check error, root", root, CheckError, StapDev, false, true, All, "b"},
		{"verified, root", root, Verified, StapUsr, false, true, All, "b"},
		{"unsigned, dev", dev, Untrusted, StapDev, false, true, All, "c"},
		{"check error, dev", dev, CheckError, StapDev, false, true, All, "c"},
		{"verified usr module, dev", dev, Verified, StapUsr, false, true, All, "c"},
		{"unsigned, stapdev without stapusr", devOnly, Untrusted, StapDev, false, false, 0, "g"},
		{"unsigned blessed, stapdev without stapusr", devOnly, Untrusted, StapDev, true, false, 0, "g"},
		{"verified usr module, stapdev without stapusr", devOnly, Verified, StapUsr, false, false, 0, "e"},
		{"verified sys module, stapdev and stapsys", sysDev, Verified, StapSys, false, true, StapSys | StapUsr, "d"},
		{"verified usr module, usr", usr, Verified, StapUsr, false, true, StapUsr, "d"},
		{"verified usr module, newgrp", newgrp, Verified, StapUsr, false, true, StapUsr, "d"},
		{"verified usr module, sys", sys, Verified, StapUsr, false, true, StapSys | StapUsr, "d"},
		{"verified sys module, sys", sys, Verified, StapSys, false, true, StapSys | StapUsr, "d"},
		{"verified sys module, usr", usr, Verified, StapSys, false, false, 0, "e"},
		{"verified dev module, usr", usr, Verified, StapDev, false, false, 0, "e"},
		{"verified dev module, sys", sys, Verified, StapDev, true, false, 0, "e"},
		{"verified usr module, nobody", nobody, Verified, StapUsr, false, false, 0, "e"},
		{"verified module without level, nobody", nobody, Verified, None, false, false, 0, "e"},
		{"unsigned blessed, usr", usr, Untrusted, StapDev, true, true, All, "f"},
		{"unsigned blessed, sys", sys, Untrusted, StapDev, true, true, All, "f"},
		{"check error blessed, usr", usr, CheckError, StapDev, true, true, All, "f"},
		{"unsigned blessed, nobody", nobody, Untrusted, StapUsr, true, false, 0, "g"},
		{"unsigned elsewhere, usr", usr, Untrusted, StapUsr, false, false, 0, "g"},
		{"check error elsewhere, usr", usr, CheckError, StapUsr, false, false, 0, "g"},
		{"unsigned elsewhere, sys", sys, Untrusted, StapUsr, false, false, 0, "g"},
		{"nothing checked", usr, Signature(0), StapUsr, true, false, 0, "a"},
	} {
		m := Module{Path: "/tmp/m.ko", Signature: tt.signature, Required: tt.required, Blessed: notBlessed}
		if tt.blessed {
			m.Blessed = nil
		}
		v := Decide(tt.user, m)
		if v.Allow != tt.allow || v.Credentials != tt.creds || v.Rule != tt.rule {
			t.Errorf("%s: got %v, credentials %#x, rule %s; want %v, %#x, %s", tt.name, v.Allow, v.Credentials, v.Rule, tt.allow, tt.creds, tt.rule)
		}
		if v.Allow == (v.Reason != "") {
			t.Errorf("%s: allow %v with reason %q", tt.name, v.Allow, v.Reason)
		}
	}
}

func TestRefusalsNameTheRule(t *testing.T) {
	blessed := NotBlessed("/lib/modules/6/systemtap", "/tmp/m.ko")
	for _, tt := range []struct {
		user User
		m    Module
		want []string
	}{
		{user(1), Module{Path: "/tmp/m.ko", Signature: Verified, Required: StapSys, Blessed: blessed}, []string{
			"Your privilege credentials (none) are insufficient to load the module /tmp/m.ko (stapsys required)", `be part of group "stapusr"`}},
		{user(1, 156), Module{Path: "/tmp/m.ko", Signature: Verified, Required: StapDev, Blessed: blessed}, []string{
			"Your privilege credentials (stapusr) are insufficient to load the module /tmp/m.ko (stapdev required)"}},
		{user(1, 156), Module{Path: "/tmp/m.ko", Signature: Untrusted, Blessed: blessed}, []string{
			`Members of the "stapusr" and "stapsys" groups can only use unsigned modules within`, `"/lib/modules/6/systemtap" directory`,
			`Module "/tmp/m.ko" does not exist within that directory.`, "Unable to verify the signature for the module /tmp/m.ko."}},
		{user(0), Module{Path: "/tmp/m.ko", Signature: Altered, Why: "signer X signed other bytes"}, []string{
			"Unable to verify the signed module /tmp/m.ko. It may have been altered since it was created.", "signer X signed other bytes"}},
	} {
		v := Decide(tt.user, tt.m)
		for _, w := range tt.want {
			if !strings.Contains(v.Reason, w) {
				t.Errorf("%+v: reason %q lacks %q", tt.m, v.Reason, w)
			}
		}
	}
	if v := Decide(user(1, 158), Module{Signature: Untrusted, Blessed: blessed}); !strings.Contains(v.Hint, `only together with group "stapusr"`) {
		t.Errorf("stapdev without stapusr: hint %q", v.Hint)
	}
}

func TestBlessed(t *testing.T) {
	stat := func(mode, uid, gid uint32) *unix.Stat_t { return &unix.Stat_t{Mode: mode, Uid: uid, Gid: gid} }
	const dir, reg = unix.S_IFDIR, unix.S_IFREG
	isDev := func(uid uint32) bool { return uid == 7 }
	for _, tt := range []struct {
		name        string
		dir, module *unix.Stat_t
		want        string // part of the reason, "" for blessed
	}{
		{"root's alone", stat(dir|0o755, 0, 0), stat(reg|0o644, 0, 0), ""},
		{"developers may add", stat(dir|0o775, 0, 158), stat(reg|0o644, 0, 0), ""},
		{"a developer's module", stat(dir|0o775, 0, 158), stat(reg|0o644, 7, 100), ""},
		{"a developer's module, root's directory", stat(dir|0o755, 0, 0), stat(reg|0o644, 7, 100), "must be owned by root"},
		{"somebody's module", stat(dir|0o775, 0, 158), stat(reg|0o644, 8, 100), "must be owned by root"},
		{"no directory", stat(reg|0o755, 0, 0), stat(reg|0o644, 0, 0), "must refer to a directory"},
		{"somebody's directory", stat(dir|0o755, 7, 0), stat(reg|0o644, 0, 0), "should be owned by root"},
		{"world-writable directory", stat(dir|0o777, 0, 0), stat(reg|0o644, 0, 0), "should not be world writable"},
		{"another group's directory", stat(dir|0o775, 0, 100), stat(reg|0o644, 0, 0), "writable by no group"},
		{"world-writable module", stat(dir|0o755, 0, 0), stat(reg|0o666, 0, 0), "must not be world writable"},
		{"group-writable module", stat(dir|0o755, 0, 0), stat(reg|0o664, 0, 100), "writable by no group"},
	} {
		err := Blessed("/d", "/d/m.ko", tt.dir, tt.module, hostGroups, isDev)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestLevels(t *testing.T) {
	for _, tt := range []struct {
		user User
		want Level
		name string
	}{
		{user(0), All, "stapdev"},
		{user(1, 158), All, "stapdev"},
		{user(1, 157), StapSys | StapUsr, "stapsys"},
		{user(1, 156), StapUsr, "stapusr"},
		{user(1, 100), None, "none"},
		{User{UID: 1, GIDs: []int{0}}, None, "none"}, // no groups on this host: id 0 is nobody's
	} {
		if got := tt.user.Levels(); got != tt.want || got.String() != tt.name {
			t.Errorf("%+v: got %v, want %v", tt.user, got, tt.want)
		}
	}
	if s := Level(1).String(); s != "unknown" {
		t.Errorf("level 1 is %q", s)
	}
	if _, err := ParseLevel("root"); err == nil {
		t.Error(`ParseLevel("root") succeeded`)
	}
}

// Requirements: R-000-010
func TestReadGroups(t *testing.T) {
	const file = "root:x:0:\nstapusr:x:156:a,b\nstapusr:x:999:\nbad\nstapsys:x:notanumber:\nother:x:158:\n"
	got := ReadGroups(strings.NewReader(file), strings.NewReader("# note\nstapsys=157\nstapdev=158\nstapusr=1\nroot=5\n"))
	if got[GroupUsr] != 156 || got[GroupSys] != 157 || len(got) != 2 {
		t.Errorf("got %v: the file's stapusr and the recorded stapsys were wanted, not a stapdev whose id has another name", got)
	}
	if got := ReadGroups(strings.NewReader(""), strings.NewReader("stapdev=0\n")); len(got) != 0 {
		t.Errorf("recorded id 0: got %v", got)
	}
}

func TestMember(t *testing.T) {
	const passwd = "root:x:0:0::/:/bin/sh\nann:x:7:158::/:/bin/sh\nbob:x:8:8::/:/bin/sh\ncat:x:9:9::/:/bin/sh\n"
	const group = "stapdev:x:158:bob\n"
	for uid, want := range map[uint32]bool{7: true, 8: true, 9: false, 10: false} {
		if got := Member(uid, GroupDev, strings.NewReader(passwd), strings.NewReader(group)); got != want {
			t.Errorf("uid %d: got %v, want %v", uid, got, want)
		}
	}
}

func FuzzReadGroups(f *testing.F) {
	f.Add("stapusr:x:156:\n", "stapdev=158\n")
	f.Add(":::\nstapdev::4294967295:", "stapusr=-1")
	f.Fuzz(func(t *testing.T, group, recorded string) {
		for name := range ReadGroups(strings.NewReader(group), strings.NewReader(recorded)) {
			if !known(name) {
				t.Errorf("group %q", name)
			}
		}
		Member(1, GroupDev, strings.NewReader(group), strings.NewReader(recorded))
	})
}
