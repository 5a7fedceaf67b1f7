package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRenew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	const before = 30 * 24 * time.Hour
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var lines []string
	at := func(now time.Time) (id, next *Identity) {
		t.Helper()
		lines = nil
		id, next, err := Renew(dir, Options{NodeName: "vm", KeyType: ECDSA, Now: now}, before, func(f string, a ...any) { lines = append(lines, fmt.Sprintf(f, a...)) })
		if err != nil {
			t.Fatal(err)
		}
		return id, next
	}
	first, next := at(start)
	if next != nil {
		t.Error("a new certificate has a next one")
	}
	end := first.Certificate.NotAfter
	if id, next := at(end.Add(-before - time.Second)); !id.Certificate.Equal(first.Certificate) || next != nil {
		t.Error("too early for a next one")
	}
	id, next := at(end.Add(-before))
	if !id.Certificate.Equal(first.Certificate) || next == nil || !strings.Contains(strings.Join(lines, "\n"), "Made the next certificate sha256="+Fingerprint(next.Certificate)) {
		t.Fatalf("got %v, %v, %q", id, next, lines)
	}
	// The clock goes back to before it was made, and right again.
	if again, made, err := Prepare(dir, Options{NodeName: "vm", KeyType: ECDSA, Now: start}); err != nil || made || !again.Certificate.Equal(next.Certificate) {
		t.Errorf("a next one whose time has not come was replaced: %v, %v", made, err)
	}
	// It stays the same, and the first one serves to its end.
	if id, again := at(end.Add(-ChangeBefore - time.Second)); !id.Certificate.Equal(first.Certificate) || !again.Certificate.Equal(next.Certificate) {
		t.Error("the overlap changed something")
	}
	id, after := at(end.Add(-ChangeBefore))
	if !id.Certificate.Equal(next.Certificate) || after != nil {
		t.Error("the next one did not take over")
	}
	der, err := os.ReadFile(PreviousFile(dir))
	if err != nil || string(der) != string(first.Certificate.Raw) {
		t.Errorf("previous.cert: %v", err)
	}
	if _, err := os.Lstat(NextDir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("next: %v", err)
	}
	// A server that was off all the time has no next one: it makes a new one.
	if id, _ := at(end.AddDate(2, 0, 0)); id.Certificate.Equal(next.Certificate) {
		t.Error("an expired certificate is used")
	}
}

// A change that was cut off between its renames is ended, not begun anew: the
// new certificate is the one that clients were told about.
func TestRenewCutOff(t *testing.T) {
	dir := t.TempDir()
	o := Options{NodeName: "vm", KeyType: ECDSA, Now: time.Now()}
	if _, err := Generate(dir, o); err != nil {
		t.Fatal(err)
	}
	next, made, err := Prepare(dir, o)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	if err := os.Rename(filepath.Join(NextDir(dir), KeyFile), filepath.Join(dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	id, _, err := Renew(dir, o, time.Hour, t.Logf)
	if err != nil || !id.Certificate.Equal(next.Certificate) {
		t.Errorf("got %v, %v", id, err)
	}
}

func TestPromoteRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Promote(dir, time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: got %v", err)
	}
	if _, _, err := Prepare(dir, Options{NodeName: "vm", KeyType: ECDSA, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(NextDir(dir), KeyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Promote(dir, time.Now()); err == nil || !strings.Contains(err.Error(), "too open") {
		t.Errorf("an open key: got %v", err)
	}
	// It is not replaced either: somebody has to look at it.
	if _, _, err := Prepare(dir, Options{NodeName: "vm", Now: time.Now()}); err == nil {
		t.Error("an open key was replaced")
	}
}
