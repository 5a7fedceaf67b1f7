package service

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stapbox/core/service"
)

// A message about a program names the one that was started.
func TestServerPath(t *testing.T) {
	dir := t.TempDir()
	box, link := filepath.Join(dir, "stapbox"), filepath.Join(dir, "stap-server")
	if err := errors.Join(os.WriteFile(box, nil, 0o755), os.Symlink(box, link)); err != nil {
		t.Fatal(err)
	}
	if got := serverPath(link); got != box+" as stap-serverd" {
		t.Errorf("got %q", got)
	}
	server := filepath.Join(dir, "stap-serverd")
	if err := os.WriteFile(server, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := serverPath(link); got != box+" as stap-serverd" {
		t.Errorf("beside another program: got %q", got)
	}
	if err := errors.Join(os.Remove(server), os.Link(box, server)); err != nil {
		t.Fatal(err)
	}
	if got := serverPath(link); got != server {
		t.Errorf("got %q", got)
	}
	if got := serverPath("/proc/self/exe"); strings.HasPrefix(got, "/usr/bin/stap-serverd") || !strings.Contains(got, "stap-serverd") {
		t.Errorf("got %q", got)
	}
	if got := serverPath(filepath.Join(dir, "none")); got != filepath.Join(dir, "none") {
		t.Errorf("got %q", got)
	}
	const want = "Unable to start a systemtap server: /this did not start: "
	m, _, stderr, _ := runs(t, nil, "start", "-n", "native")
	if rc := m.run(t.Context()); rc != exitFailure || !strings.Contains(stderr.String(), want) {
		t.Errorf("start: status %d, %q", rc, stderr)
	}
	stderr.Reset()
	old := legacy{inv: m.inv, euid: m.euid, places: m.places}
	if rc := old.start(t.Context()); rc != exitFailure || !strings.Contains(stderr.String(), want) {
		t.Errorf("stap-start-server: status %d, %q", rc, stderr)
	}
}

// A kernel without headers is named; build trees and other architectures are looked at
// elsewhere.
func TestWithoutHeaders(t *testing.T) {
	m := &manager{}
	m.defaults.Arch = "x86_64"
	errs := m.withoutHeaders(&service.Spec{Arch: "x86_64", Releases: []string{"9.9.9-nosuch", "/lib/modules/x/build"}})
	if len(errs) != 1 || errs[0].Error() != `kernel release "9.9.9-nosuch": kernel headers are not installed` {
		t.Errorf("got %v", errs)
	}
	if errs := m.withoutHeaders(&service.Spec{Arch: "arm64", Releases: []string{"9.9.9-nosuch"}}); len(errs) > 0 {
		t.Errorf("another architecture: %v", errs)
	}
	const want = `kernel release "1.2": kernel headers are not installed`
	for action, more := range map[string]string{"start": ": the server builds nothing for it\n", "configtest": "\n"} {
		m, _, stderr, _ := runs(t, nil, action, "-n", "native")
		if rc := m.run(t.Context()); rc != exitFailure || !strings.Contains(stderr.String(), want+more) {
			t.Errorf("%s: status %d, %q", action, rc, stderr)
		}
	}
}
