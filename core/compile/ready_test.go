package compile

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Headers that were replaced under a running server are prepared anew, by a
// worker that may write where they are; what fails is not tried again and again.
func TestServicePreparesAgain(t *testing.T) {
	s := newService(t)
	tree := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("include/generated/utsrelease.h", "#define UTS_RELEASE \"6.1.0-1-cloud-amd64\"\n")
	put(".config", "CONFIG_X=y\n")
	put("Makefile", "\n")
	s.Releases[0].BuildDir = tree
	prepared := func() (n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, l := range s.log {
			if strings.HasPrefix(l, "Kernel 6.1.0-1-cloud-amd64 is prepared anew") {
				n++
			}
		}
		return n
	}
	ask := func(script string, want int) {
		t.Helper()
		// The worker of this test prepares nothing, whatever it is told.
		got := s.ask(t, context.Background(), req61("-p4", "-e"+script))
		if got.RC != 1 || !strings.Contains(string(got.Stderr), "could not be prepared") {
			t.Errorf("got %d, %q", got.RC, got.Stderr)
		}
		if n := prepared(); n != want {
			t.Errorf("prepared %d times, want %d", n, want)
		}
	}
	ask("module stapdev", 1)
	ask("module stapdev again", 1)
	put(".config", "CONFIG_X=y\nCONFIG_Y=y\n")
	ask("module stapdev", 2)
	s.Service.mu.Lock()
	s.kernels["6.1.0-1-cloud-amd64"].at = time.Now().Add(-2 * retryTime)
	s.Service.mu.Unlock()
	ask("module stapdev", 3)
	// Who needs no module needs none of it.
	if got := s.ask(t, context.Background(), req61("-p2", "-enothing")); got.RC != 0 || prepared() != 3 {
		t.Errorf("-p2: got %d, %q", got.RC, got.Stderr)
	}
}
