package setuid

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A process that has no more rights than its caller keeps its environment and
// its name.
func TestEnterWithoutPrivilege(t *testing.T) {
	if Secure() {
		t.Skip("the test itself runs with AT_SECURE set")
	}
	t.Setenv("SETUID_TEST", "kept")
	c, err := Enter([]string{"anything"})
	if err != nil || len(c.Environ) == 0 || c.Umask != -1 || os.Getenv("SETUID_TEST") != "kept" {
		t.Errorf("got %+v, %v; SETUID_TEST is %q", c, err, os.Getenv("SETUID_TEST"))
	}
	if _, err := Enter(nil); err != nil {
		t.Errorf("without a name: %v", err)
	}
}

// Descriptors that a privileged process has inherited are not for the programs to
// come. Root's own programs get root's.
func TestSecurity01InheritedDescriptors(t *testing.T) {
	fd, err := unix.Dup(0) // not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := Enter([]string{"anything"}); err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("without privilege: flags %x, %v", flags, err)
	}
	if err := keepDescriptors(); err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %x, %v", flags, err)
	}
	if flags, err := unix.FcntlInt(1, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("standard output: flags %x, %v", flags, err)
	}
}
