package client

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stapbox/core/privilege"
)

// HOME is another user's: nothing that he may have put there is used.
func TestSecurity05ForeignHome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has homes of others")
	}
	for _, tt := range []struct {
		name    string
		make    func(d *desk, home string) error
		code    int
		warning string
		rc      bool // its rc counts
	}{
		{"one's own", func(d *desk, home string) error { return nil }, 0, "", true},
		{"another user's", func(d *desk, home string) error {
			return os.Chown(home, 4242, 4242)
		}, 0, "WARNING: \"HOME/.systemtap\" is not used, but \"OWN/.systemtap\": \"HOME\" belongs to user id 4242; hint: chown root\n", false},
		{"for others to write", func(d *desk, home string) error {
			return os.Chmod(filepath.Join(home, ".systemtap"), 0o777)
		}, 0, "WARNING: \"HOME/.systemtap\" is not used, but \"OWN/.systemtap\": \"HOME/.systemtap\" can be written by everybody; hint: chmod go-w\n", false},
		{"SYSTEMTAP_DIR", func(d *desk, home string) error {
			other := filepath.Join(filepath.Dir(home), "other")
			d.inv.Environ = append(d.inv.Environ, "SYSTEMTAP_DIR="+other)
			return errors.Join(os.Mkdir(other, 0o755), os.Chown(other, 4242, 4242))
		}, 0, "WARNING: \"OTHER\" is not used, but \"OWN/.systemtap\": \"OTHER\" belongs to user id 4242; hint: chown root\n", false},
		{"rc alone", func(d *desk, home string) error {
			return os.Chown(filepath.Join(home, ".systemtap/rc"), 4242, 4242)
		}, 0, "WARNING: \"HOME/.systemtap/rc\" is ignored: \"HOME/.systemtap/rc\" belongs to user id 4242; hint: chown root\n", false},
		{"and no other", func(d *desk, home string) error {
			return errors.Join(os.Chown(home, 4242, 4242), os.Chown(d.passwdHome, 4242, 4242))
		}, 1, "stap: ERROR: \"HOME/.systemtap\" is not used: \"HOME\" belongs to user id 4242; hint: chown root\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, privilege.GroupDev)
			base := filepath.Dir(d.dir)
			home := filepath.Join(base, "home")
			d.passwdHome = filepath.Join(base, "own")
			if err := errors.Join(os.Mkdir(d.passwdHome, 0o755), os.Mkdir(filepath.Join(home, ".systemtap"), 0o755),
				os.WriteFile(filepath.Join(home, ".systemtap/rc"), []byte("-w"), 0o644), tt.make(d, home)); err != nil {
				t.Fatal(err)
			}
			d.translator = &fakeBackend{}
			code := d.stap("-p4", "-e", hello)
			got := strings.NewReplacer(home, "HOME", d.passwdHome, "OWN", filepath.Join(base, "other"), "OTHER").Replace(d.err.String())
			if code != tt.code || got != tt.warning {
				t.Errorf("status %d, got %q, want %q", code, got, tt.warning)
			}
			if words, err := d.rc(); tt.code == 0 && (err != nil || len(words) == 1 != tt.rc) {
				t.Errorf("rc has %q, %v", words, err)
			}
			// Help is for everybody.
			if code := d.stap("--help"); code != 0 || d.err.Len() > 0 || !strings.Contains(d.out.String(), "Usage: stap") {
				t.Errorf("--help: status %d, %q", code, d.err.String())
			}
			for _, option := range []string{"-V", "--version"} {
				if code := d.stap(option); code != 0 || d.err.String() != versionText() {
					t.Errorf("%s: status %d, %q", option, code, d.err.String())
				}
			}
		})
	}
}

// A directory of --tmpdir that others may write to, also a sticky one, or that somebody
// else may put another in the place of, is refused.
func TestSecurity12TempDirOfAGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives directories away")
	}
	for name, tt := range map[string]struct {
		make func(parent, dir string) error
		want string
	}{
		"group":               {func(parent, dir string) error { return errors.Join(os.Chown(dir, 0, 4242), os.Chmod(dir, 0o775)) }, "can be written by group id 4242"},
		"another's":           {func(parent, dir string) error { return os.Chown(dir, 4242, 4242) }, "belongs to uid 4242"},
		"sticky":              {func(parent, dir string) error { return os.Chmod(dir, os.ModeSticky|0o777) }, "can be written by everybody"},
		"parent of another":   {func(parent, dir string) error { return os.Chown(parent, 4242, 0) }, "belongs to user id 4242"},
		"parent of a group":   {func(parent, dir string) error { return errors.Join(os.Chown(parent, 0, 4242), os.Chmod(parent, 0o775)) }, "can be written by group id 4242"},
		"parent of everybody": {func(parent, dir string) error { return os.Chmod(parent, 0o777) }, "can be written by everybody"},
		"sticky parent":       {func(parent, dir string) error { return os.Chmod(parent, os.ModeSticky|0o777) }, ""},
		"root's group":        {func(parent, dir string) error { return os.Chmod(dir, 0o775) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, privilege.GroupDev)
			d.translator = &fakeBackend{}
			parent := filepath.Join(t.TempDir(), "parent")
			dir := filepath.Join(parent, "t")
			if err := errors.Join(os.MkdirAll(dir, 0o755), tt.make(parent, dir)); err != nil {
				t.Fatal(err)
			}
			code := d.stap("--tmpdir="+dir, "-p4", "-e", hello)
			if tt.want == "" && code != 0 || tt.want != "" && (code != 1 || !strings.Contains(d.err.String(), "--tmpdir: ") || !strings.Contains(d.err.String(), tt.want)) {
				t.Errorf("status %d, %s", code, d.err.String())
			}
		})
	}
}

// With a HOME that is no directory there is no DATA, as without one.
func TestHomeIsNoDirectory(t *testing.T) {
	d := newDesk(t, privilege.GroupDev)
	d.inv.Environ[0] = "HOME=/dev/null"
	d.translator = &fakeBackend{}
	if code := d.stap("-p4", "-e", hello); code != 0 || d.err.String() != "" {
		t.Errorf("status %d, stderr %q", code, d.err.String())
	}
}
