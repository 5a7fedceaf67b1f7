package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/mok"
)

// TestMachineKeys: a server makes one key if it is told to, announces what it
// has, and sees keys that come later.
func TestMachineKeys(t *testing.T) {
	r := start(t)
	if got := r.moks.list(); len(got) != 0 {
		t.Errorf("a server that was not told to made %d keys", len(got))
	}
	key, err := mok.Generate(r.moks.dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := r.moks.list(); len(got) != 1 || got[0].Fingerprint() != key.Fingerprint() {
		t.Errorf("the new key is not seen: %d", len(got))
	}
	if want := filepath.Join(r.opts.ssl, "moks"); r.moks.dir != want {
		t.Errorf("keys are in %q, want %q", r.moks.dir, want)
	}
	r.wait(t, "Found MOK with fingerprint '"+key.Fingerprint()+"'")
	if err := os.RemoveAll(r.moks.dir); err != nil {
		t.Fatal(err)
	}
	if got := r.moks.list(); len(got) != 0 {
		t.Error("keys that are gone are still used")
	}

	dir := filepath.Join(t.TempDir(), "moks")
	for range 2 { // the second one finds the key
		r = start(t, "--mok-dir="+dir, "--make-mok")
		if got := r.moks.list(); len(got) != 1 {
			t.Fatalf("%d keys, want 1", len(got))
		}
		r.stop()
	}
	want := "mok_info=" + r.moks.fingerprints()[0]
	if txt := r.pub[0][0].TXT; txt[len(txt)-1] != want {
		t.Errorf("announced is %q, want %q at the end", txt, want)
	}
	if _, err := parse([]string{"--mok-dir="}, 1); err == nil || !strings.Contains(err.Error(), "names no directory") {
		t.Errorf("got error %v", err)
	}
}
