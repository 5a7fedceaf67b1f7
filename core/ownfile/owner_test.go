package ownfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const user = 4242

// What root, or a user, reads nobody else can have written, nor put in its place.
func TestSecurity05OnlyOurs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	for _, tt := range []struct {
		name string
		uid  int
		make func(dir, file string) error
		want string
	}{
		{"root's", 0, func(dir, file string) error { return nil }, ""},
		{"root's, for a user", user, func(dir, file string) error { return nil }, ""},
		{"his own", user, func(dir, file string) error {
			return errors.Join(os.Chown(dir, user, user), os.Chown(file, user, user))
		}, ""},
		{"a user's, for root", 0, func(dir, file string) error { return os.Chown(file, user, user) }, "/d/f\" belongs to user id 4242; hint: chown root"},
		{"in a user's directory, for root", 0, func(dir, file string) error { return os.Chown(dir, user, user) }, "/d\" belongs to user id 4242; hint: chown root"},
		{"another user's", user, func(dir, file string) error { return os.Chown(file, 4711, 0) }, "belongs to user id 4711; hint: chown 4242"},
		{"for everybody", 0, func(dir, file string) error { return os.Chmod(file, 0o646) }, "can be written by everybody; hint: chmod go-w"},
		{"directory for everybody", 0, func(dir, file string) error { return os.Chmod(dir, 0o777) }, "/d\" can be written by everybody"},
		{"sticky directory", 0, func(dir, file string) error { return os.Chmod(dir, os.ModeSticky|0o777) }, ""},
		{"for root's group", 0, func(dir, file string) error { return os.Chmod(file, 0o664) }, ""},
		{"for a group", 0, func(dir, file string) error { return errors.Join(os.Chown(file, 0, user), os.Chmod(file, 0o664)) }, "can be written by group id 4242"},
		{"for a group that is nobody's own", 0, func(dir, file string) error { return errors.Join(os.Chown(file, 0, 4343), os.Chmod(file, 0o664)) }, "can be written by group id 4343"},
		{"a sticky file", 0, func(dir, file string) error { return os.Chmod(file, os.ModeSticky|0o666) }, "can be written by everybody"},
		{"for his own group", user, func(dir, file string) error {
			return errors.Join(os.Chown(file, user, user), os.Chown(dir, user, user), os.Chmod(dir, 0o775), os.Chmod(file, 0o664))
		}, ""},
		{"a link to a user's", 0, func(dir, file string) error {
			other := filepath.Join(filepath.Dir(dir), "other")
			return errors.Join(os.WriteFile(other, nil, 0o644), os.Chown(other, user, user), os.Remove(file), os.Symlink(other, file))
		}, "belongs to user id 4242"},
		{"a user's link to root's", 0, func(dir, file string) error {
			return errors.Join(os.Rename(file, dir+"/real"), os.Symlink("real", file), os.Lchown(file, user, user))
		}, "belongs to user id 4242"},
		{"a user's link between root's", 0, func(dir, file string) error {
			middle := filepath.Join(filepath.Dir(dir), "middle")
			return errors.Join(os.Rename(file, dir+"/real"), os.Symlink(middle, file), os.Symlink("d/real", middle), os.Lchown(middle, user, user))
		}, "/middle\" belongs to user id 4242"},
		{"a link between in everybody's directory", 0, func(dir, file string) error {
			open := filepath.Join(filepath.Dir(dir), "open")
			return errors.Join(os.Mkdir(open, 0o755), os.Chmod(open, 0o777), os.Rename(file, dir+"/real"), os.Symlink("../open/link", file), os.Symlink("../d/real", open+"/link"))
		}, "/open\" can be written by everybody"},
		{"a link between in a user's directory, for a directory", 0, func(dir, file string) error {
			his, real := filepath.Join(filepath.Dir(dir), "his"), filepath.Join(filepath.Dir(dir), "real")
			return errors.Join(os.Mkdir(his, 0o755), os.Rename(dir, real), os.Symlink(his+"/link", dir), os.Symlink(real, his+"/link"), os.Chown(his, user, user))
		}, "/his\" belongs to user id 4242"},
		{"links between root's", 0, func(dir, file string) error {
			return errors.Join(os.Rename(file, dir+"/real"), os.Symlink("../d/./link", file), os.Symlink(dir+"//real", dir+"/link"))
		}, ""},
		{"a user's link to nothing", 0, func(dir, file string) error {
			return errors.Join(os.Remove(file), os.Symlink("nothing", file), os.Lchown(file, user, user))
		}, "/d/f\" belongs to user id 4242"},
		{"a link to nothing in a user's directory", 0, func(dir, file string) error {
			his := filepath.Join(filepath.Dir(dir), "his")
			return errors.Join(os.Mkdir(his, 0o755), os.Chown(his, user, user), os.Remove(file), os.Symlink(his+"/nothing", file))
		}, "/his\" belongs to user id 4242"},
		{"missing in a user's directory", 0, func(dir, file string) error { return errors.Join(os.Remove(file), os.Chown(dir, user, user)) }, "/d\" belongs to user id 4242"},
		{"missing", 0, func(dir, file string) error { return os.RemoveAll(dir) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			passwdFile, groupFile = filepath.Join(base, "passwd"), filepath.Join(base, "group")
			t.Cleanup(func() { passwdFile, groupFile = "/etc/passwd", "/etc/group" })
			dir := filepath.Join(base, "d")
			file := filepath.Join(dir, "f")
			if err := errors.Join(os.WriteFile(passwdFile, []byte("app:x:4242:4242::/:\n"), 0o644), os.WriteFile(groupFile, []byte("app:x:4242:\nstaff:x:4343:\n"), 0o644),
				os.Mkdir(dir, 0o755), os.WriteFile(file, []byte("text"), 0o644), tt.make(dir, file)); err != nil {
				t.Fatal(err)
			}
			err := OnlyOurs(file, tt.uid)
			data, rerr := ReadOurs(file, tt.uid, 10)
			if tt.want == "" {
				if err != nil || rerr != nil && !errors.Is(rerr, os.ErrNotExist) || rerr == nil && string(data) != "text" {
					t.Errorf("got %v; read %q, %v", err, data, rerr)
				}
				return
			}
			var foreign *ForeignError
			if !errors.As(err, &foreign) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if rerr == nil {
				t.Errorf("%q was read", data)
			}
		})
	}
	// The file that is open counts, not one that has its name by now.
	file := filepath.Join(t.TempDir(), "f")
	if err := errors.Join(os.WriteFile(file, []byte("his"), 0o644), os.Chown(file, user, user)); err != nil {
		t.Fatal(err)
	}
	f := open(t, file)
	if err := errors.Join(os.Remove(file), os.WriteFile(file, []byte("root's"), 0o644)); err != nil {
		t.Fatal(err)
	}
	var foreign *ForeignError
	if err := Check(f, 0); !errors.As(err, &foreign) {
		t.Errorf("a user's file that is open: got %v", err)
	}
}

// The parent of what a link leads to is not the parent of the link.
func TestSecurity05ParentBehindALink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	base := t.TempDir()
	his := filepath.Join(base, "his")
	if err := errors.Join(os.MkdirAll(his+"/d", 0o755), os.WriteFile(his+"/f", nil, 0o644), os.WriteFile(base+"/f", nil, 0o644),
		os.Symlink(his+"/d", base+"/link"), os.Chown(his, user, user)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(base)
	for _, path := range []string{base + "/link/../f", "link/../f"} {
		var foreign *ForeignError
		if err := OnlyOurs(path, 0); !errors.As(err, &foreign) || foreign.At != his {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

// In a user namespace root's files and those of other users may look alike: whose they
// are is not said, nor how to give them away.
func TestSecurity05UserNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	const overflow = 65534 // of a kernel on which nobody has changed it
	dir := t.TempDir()
	t.Cleanup(func() { uidMapFile = "/proc/self/uid_map" })
	for _, tt := range []struct {
		name, uidMap string
		owner, uid   int
		want         string // "": accepted
	}{
		{"one id", "         0       1000          1\n", overflow, 0, "does not have (it shows 65534): root's and other users' look alike here; hint: leave the namespace"},
		{"no id", "", overflow, overflow, "does not have (it shows 65534)"},
		{"an id it has", "0 1000 1\n1 100000 65536\n", user, 0, "belongs to user id 4242; hint: chown root"},
		{"a container's nobody", "0 1000 1\n1 100000 65536\n", overflow, 0, "belongs to user id 65534; hint: chown root"},
		{"a container's nobody's", "0 1000 1\n1 100000 65536\n", overflow, overflow, ""},
		{"the host's nobody's", "         0          0 4294967295\n", overflow, overflow, ""},
	} {
		uidMapFile = filepath.Join(dir, "uid_map")
		file := filepath.Join(dir, "f")
		if err := errors.Join(os.WriteFile(uidMapFile, []byte(tt.uidMap), 0o644), os.WriteFile(file, nil, 0o644), os.Chown(file, tt.owner, 0)); err != nil {
			t.Fatal(err)
		}
		var foreign *ForeignError
		if err := OnlyOurs(file, tt.uid); tt.want == "" && err != nil || tt.want != "" && (!errors.As(err, &foreign) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestOnlyOursLoop(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Symlink("b", dir+"/a"), os.Symlink("a", dir+"/b")); err != nil {
		t.Fatal(err)
	}
	if err := OnlyOurs(dir+"/a", os.Getuid()); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("got %v", err)
	}
}

// Below a file nothing can be, whoever may write to it; it is judged where it is the
// end of the way.
func TestOnlyOursBelowAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := errors.Join(os.WriteFile(file, nil, 0o666), os.Chmod(file, 0o666)); err != nil {
		t.Fatal(err)
	}
	if err := OnlyOurs(file+"/x", os.Getuid()); err != nil {
		t.Errorf("below it: %v", err)
	}
	if err := OnlyOurs(file+"/", os.Getuid()); err == nil || !strings.Contains(err.Error(), "can be written by everybody") {
		t.Errorf("itself: got %v", err)
	}
}

func TestReadOursRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	long := filepath.Join(dir, "long")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o600), os.WriteFile(long, make([]byte, 11), 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{fifo: "not a regular file", dir: "not a regular file", long: "more than 10 bytes"} {
		if _, err := ReadOurs(path, os.Getuid(), 10); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", path, err, want)
		}
	}
}

func TestPrivateGroup(t *testing.T) {
	const passwd = "root:x:0:0::/:\napp:x:4242:4242::/:\nother:x:4343:4343::/:\nteam:x:4444:4445::/:\n"
	for _, tt := range []struct {
		group string
		gid   uint32
		want  bool
	}{
		{"app:x:4242:\n", 4242, true},
		{"app:x:4242:app\n", 4242, true},
		{"app:x:4242:app,other\n", 4242, false},
		{"app:x:4242:\nsame:x:4242:other\n", 4242, false},
		{"other:x:4343:app\n", 4343, false},
		{"team:x:4445:\n", 4445, false},
		{"extra:x:5000:app\n", 5000, false},
		{"", 4242, false},
		{"app:x\n", 4242, false},
	} {
		if got := private(passwd, tt.group, tt.gid, 4242); got != tt.want {
			t.Errorf("%q, gid %d: got %v", tt.group, tt.gid, got)
		}
	}
}

func FuzzPrivateGroup(f *testing.F) {
	f.Add("app:x:4242:4242::/:\n", "app:x:4242:\n")
	f.Fuzz(func(t *testing.T, passwd, group string) { private(passwd, group, 4242, 4242) })
}
