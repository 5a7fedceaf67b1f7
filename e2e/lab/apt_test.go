package lab

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// archive is a Debian archive on loopback (a "flat" one: an index Packages and
// the packages beside it).
type archive struct {
	*httptest.Server

	mu     sync.Mutex
	index  string
	files  map[string][]byte
	asked  map[string]int // requests by path
	broken map[string]int // how often a file is still cut short
}

func newArchive(t *testing.T) *archive {
	a := &archive{files: map[string][]byte{}, asked: map[string]int{}, broken: map[string]int{}}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		name := strings.TrimPrefix(filepath.Clean(r.URL.Path), "/")
		a.asked[name]++
		b, ok := a.files[name]
		if name == "Packages" {
			b, ok = []byte(a.index), true
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		if a.broken[name] > 0 {
			a.broken[name]--
			b = append(bytes.Clone(b[:len(b)/2]), make([]byte, len(b)-len(b)/2)...)
		}
		w.Write(b)
	}))
	t.Cleanup(a.Close)
	return a
}

// replace makes packages, given as "NAME VERSION" or "NAME VERSION DEPENDS", the
// only ones that the archive has.
func (a *archive) replace(t *testing.T, packages ...string) {
	t.Helper()
	var index strings.Builder
	files := map[string][]byte{}
	for _, p := range packages {
		f := strings.Fields(p)
		name, version := f[0], f[1]
		control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: test\n", name, version)
		if len(f) > 2 {
			control += "Depends: " + f[2] + "\n"
		}
		dir := t.TempDir()
		tree := filepath.Join(dir, "tree")
		for path, text := range map[string]string{"DEBIAN/control": control, "opt/" + name: version + "\n"} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(tree, path), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		file := name + "_" + version + "_all.deb"
		if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", tree, filepath.Join(dir, file)).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb: %v\n%s", err, out)
		}
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		files[file] = b
		fmt.Fprintf(&index, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", control, file, len(b), sha256.Sum256(b))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.index, a.files = index.String(), files
}

// labOf is a lab with an empty cache whose packages come from the archive.
func labOf(t *testing.T, a *archive) (*Lab, *bytes.Buffer) {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is missing: apt-get install dpkg")
	}
	dir := t.TempDir()
	sources := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(sources, []byte("deb [trusted=yes] "+a.URL+" ./\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	return &Lab{Dir: filepath.Join(dir, "lab"), Log: log, Sources: sources}, log
}

var things = regexp.MustCompile(`^thing-`)

// fetchThing unpacks package thing and those it needs, as a kernel is fetched:
// what is needed has its version in its name.
func fetchThing(l *Lab, root string) error {
	return l.unpack(filepath.Join(l.Dir, root), "thing", func() ([]string, error) { return l.closure([]string{"thing"}, things) })
}

func hasFile(t *testing.T, l *Lab, name, want string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(l.Dir, name))
	if err != nil || string(b) != want {
		t.Errorf("%s: %q, %v; want %q", name, b, err, want)
	}
}

// TestFetchWithoutLists: no lists, an empty cache.
func TestFetchWithoutLists(t *testing.T) {
	a := newArchive(t)
	a.replace(t, "thing 1 thing-1", "thing-1 1")
	l, log := labOf(t, a)
	if err := fetchThing(l, "x/things"); err != nil {
		t.Fatal(err)
	}
	hasFile(t, l, "x/things/opt/thing", "1\n")
	hasFile(t, l, "x/things/opt/thing-1", "1\n")
	if !regexp.MustCompile(`lab: fetching package lists\nlab: fetching thing: 2 packages, 0\.\d MB\n`).Match(log.Bytes()) {
		t.Errorf("said: %s", log)
	}
}

// TestFetchAfterRemoval: the lists name files that are gone, as a week after a
// kernel's update.
func TestFetchAfterRemoval(t *testing.T) {
	a := newArchive(t)
	a.replace(t, "thing 1 thing-1", "thing-1 1")
	l, log := labOf(t, a)
	if err := fetchThing(l, "x/before"); err != nil {
		t.Fatal(err)
	}
	a.replace(t, "thing 2 thing-2", "thing-2 2")
	log.Reset()
	if err := fetchThing(l, "x/after"); err != nil {
		t.Fatal(err)
	}
	hasFile(t, l, "x/after/opt/thing", "2\n")
	hasFile(t, l, "x/after/opt/thing-2", "2\n")
	for _, w := range []string{"404", "lab: trying again with fresh package lists\n"} {
		if !strings.Contains(log.String(), w) {
			t.Errorf("%q is not said in: %s", w, log)
		}
	}
}

// TestFetchWithOldLists: lists of more than a day are refreshed without a 404,
// younger ones are not.
func TestFetchWithOldLists(t *testing.T) {
	a := newArchive(t)
	a.replace(t, "thing 1")
	l, _ := labOf(t, a)
	if err := fetchThing(l, "x/1"); err != nil {
		t.Fatal(err)
	}
	lists := a.asked["Packages"]
	if err := fetchThing(l, "x/2"); err != nil {
		t.Fatal(err)
	}
	if a.asked["Packages"] != lists {
		t.Errorf("young lists were fetched again")
	}
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(filepath.Join(l.Dir, "apt/updated"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := fetchThing(l, "x/3"); err != nil {
		t.Fatal(err)
	}
	if a.asked["Packages"] == lists {
		t.Errorf("old lists were not fetched again")
	}
}

// TestFetchDamaged: a package that comes damaged is fetched again, and what an
// interrupted run left is removed.
func TestFetchDamaged(t *testing.T) {
	a := newArchive(t)
	a.replace(t, "thing 1")
	l, log := labOf(t, a)
	left := filepath.Join(l.Dir, "x", unpacking+"killed")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	a.broken["thing_1_all.deb"] = 1
	if err := fetchThing(l, "x/things"); err != nil {
		t.Fatal(err)
	}
	hasFile(t, l, "x/things/opt/thing", "1\n")
	if a.asked["thing_1_all.deb"] < 2 || !strings.Contains(log.String(), "trying again") {
		t.Errorf("asked for %d times; said: %s", a.asked["thing_1_all.deb"], log)
	}
	if exists(left) {
		t.Errorf("%s is still there", left)
	}
}

// TestFetchOnce: of several that want the same at once one fetches it, and nobody
// removes what another works with.
func TestFetchOnce(t *testing.T) {
	a := newArchive(t)
	a.replace(t, "thing 1")
	l, _ := labOf(t, a)
	l.Log = &lockedBuffer{}
	errs := make(chan error)
	for range 4 {
		go func() { errs <- fetchThing(l, "tree") }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	hasFile(t, l, "tree/opt/thing", "1\n")
	if n := a.asked["thing_1_all.deb"]; n != 1 {
		t.Errorf("fetched %d times, not once", n)
	}
}

// TestFetchUnknown: what the archive does not have is named, and nothing is left.
func TestFetchUnknown(t *testing.T) {
	a := newArchive(t)
	a.replace(t, "other 1")
	l, _ := labOf(t, a)
	err := fetchThing(l, "x/things")
	if err == nil || !strings.Contains(err.Error(), `"thing"`) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(l.Dir, "x")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
