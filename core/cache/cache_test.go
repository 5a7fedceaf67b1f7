package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childVariable makes the test binary a process that writes entries into the
// directory it names until it is killed.
const childVariable = "STAPBOX_TEST_CACHE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

func child(dir string) int {
	s, err := Open(dir, 200<<10)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("writing")
	for i := rand.IntN(1000); ; i++ {
		key := keyOf(i % 100)
		if err := s.Put(key, Note{}, answerOf(key)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if _, _, err := s.Get(keyOf(rand.IntN(100))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

func keyOf(i int) Key { return sha256.Sum256([]byte(strconv.Itoa(i))) }

// answerOf is the one answer that belongs to a key.
func answerOf(key Key) []byte {
	return bytes.Repeat(key[:], 1+int(binary.BigEndian.Uint16(key[:]))%300)
}

func newStore(t *testing.T, max int64) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a", "answers")
	s, err := Open(dir, max)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, dir
}

func put(t *testing.T, s *Store, i int) Key {
	t.Helper()
	key := keyOf(i)
	if err := s.Put(key, Note{Release: "6.1", Module: "m" + strconv.Itoa(i)}, answerOf(key)); err != nil {
		t.Fatal(err)
	}
	return key
}

func size(t *testing.T, s *Store, entries int) int64 {
	t.Helper()
	n, bytes, err := s.Size()
	if err != nil || n != entries {
		t.Errorf("got %d entries, %v; want %d", n, err, entries)
	}
	return bytes
}

// total is what the lock file says, which must be what a count finds.
func total(t *testing.T, s *Store, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{s: s}
	if err := l.count(); err != nil {
		t.Fatal(err)
	}
	if string(text) != fmt.Sprintf("%d\n", l.total) {
		t.Errorf("the lock file says %q, the files have %d", text, l.total)
	}
}

func TestPutGet(t *testing.T) {
	s, dir := newStore(t, 1<<20)
	if _, _, err := s.Get(keyOf(1)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty: got %v", err)
	}
	key := put(t, s, 1)
	total(t, s, dir)
	note, got, err := s.Get(key)
	if err != nil || !bytes.Equal(got, answerOf(key)) || note.Module != "m1" {
		t.Errorf("got %d bytes, %+v, %v", len(got), note, err)
	}
	put(t, s, 1)
	size(t, s, 1)
	total(t, s, dir)
	st, err := os.Stat(filepath.Join(dir, path(key)))
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("entry: %v, %v", st.Mode(), err)
	}
	for _, d := range []string{dir, filepath.Join(dir, key.String()[:2])} {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", d, st.Mode(), err)
		}
	}
	// Another process finds it.
	again, err := Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, got, err := again.Get(key); err != nil || !bytes.Equal(got, answerOf(key)) {
		t.Errorf("opened again: %v", err)
	}
	if k, err := s.Find(key.String()[:8]); err != nil || k != key {
		t.Errorf("find: %v, %v", k, err)
	}
	if _, err := s.Find("xyz"); err == nil {
		t.Error("found xyz")
	}
}

// Every kind of damage is a miss, and the file is gone.
func TestDamaged(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, path string, b []byte) error
		want   string
	}{
		{"empty", func(_ *testing.T, p string, b []byte) error { return os.WriteFile(p, nil, 0o600) }, "0 bytes"},
		{"truncated", func(_ *testing.T, p string, b []byte) error { return os.Truncate(p, int64(len(b)-1)) }, "lengths"},
		{"longer", func(_ *testing.T, p string, b []byte) error { return os.WriteFile(p, append(b, 0), 0o600) }, "lengths"},
		{"answer changed", flip(100 + headerSize), "digest"},
		{"digest changed", flip(-1), "digest"},
		{"note changed", flip(headerSize + 1), "digest"},
		{"magic", flip(0), "begin"},
		{"version", flip(9), "version"},
		{"key", flip(20), "another key"},
		{"huge", func(_ *testing.T, p string, b []byte) error { return os.Truncate(p, 1<<40) }, "bytes"},
		{"entry of another key", func(t *testing.T, p string, b []byte) error {
			b, err := encode(keyOf(2), Note{}, []byte("other"))
			if err != nil {
				t.Fatal(err)
			}
			return os.WriteFile(p, b, 0o600)
		}, "another key"},
		{"open to others", func(_ *testing.T, p string, b []byte) error { return os.Chmod(p, 0o640) }, "mode 0640"},
		{"foreign owner", func(t *testing.T, p string, b []byte) error {
			if os.Geteuid() != 0 {
				t.Skip("giving a file away needs root")
			}
			return os.Chown(p, 12345, -1)
		}, "uid 12345"},
		{"link", func(t *testing.T, p string, b []byte) error {
			elsewhere := filepath.Join(t.TempDir(), "x")
			return errors.Join(os.WriteFile(elsewhere, b, 0o600), os.Remove(p), os.Symlink(elsewhere, p))
		}, "regular"},
		{"pipe", func(_ *testing.T, p string, b []byte) error {
			return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600))
		}, "regular"},
		{"directory", func(_ *testing.T, p string, b []byte) error {
			return errors.Join(os.Remove(p), os.Mkdir(p, 0o700))
		}, "regular"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, dir := newStore(t, 1<<20)
			key := put(t, s, 1)
			name := filepath.Join(dir, path(key))
			b, err := os.ReadFile(name)
			if err == nil {
				err = tt.damage(t, name, b)
			}
			if err != nil {
				t.Fatal(err)
			}
			if all, err := s.Verify(); err != nil || len(all) != 1 || !errors.Is(all[0].Err, ErrDamaged) {
				t.Errorf("verify: %+v, %v", all, err)
			}
			if _, _, err := s.Get(key); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, _, err := s.Get(key); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("then: got %v", err)
			}
			put(t, s, 1)
			if _, got, err := s.Get(key); err != nil || !bytes.Equal(got, answerOf(key)) {
				t.Errorf("stored again: got %v", err)
			}
		})
	}
}

func flip(at int) func(*testing.T, string, []byte) error {
	return func(_ *testing.T, p string, b []byte) error {
		b[(at+len(b))%len(b)] ^= 1
		return os.WriteFile(p, b, 0o600)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"group": 0o750, "all": 0o701} {
		d := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, mode)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(d, 1<<20); err == nil || !strings.Contains(err.Error(), "is open to others") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, 1<<20); err == nil {
		t.Error("a file was opened")
	}
	if _, err := OpenExisting(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: got %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("giving a directory away needs root")
	}
	foreign := filepath.Join(dir, "foreign")
	if err := errors.Join(os.Mkdir(foreign, 0o700), os.Chown(foreign, 12345, -1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(foreign, 1<<20); err == nil || !strings.Contains(err.Error(), "belongs to uid 12345") {
		t.Errorf("foreign: got %v", err)
	}
	// Root may look after it, and leaves no file its owner cannot open.
	s, err := OpenExisting(foreign)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.Prune(0); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(foreign, lockName), &st); err != nil || st.Uid != 12345 {
		t.Errorf("lock: uid %d, %v", st.Uid, err)
	}
}

func TestEviction(t *testing.T) {
	s, dir := newStore(t, 100<<10)
	for i := range 120 {
		put(t, s, i)
		if _, bytes, err := s.Size(); err != nil || bytes > 100<<10 {
			t.Fatalf("after %d: %d bytes, %v", i, bytes, err)
		}
		// One that is used all the time stays.
		if i > 0 {
			if _, _, err := s.Get(keyOf(0)); err != nil {
				t.Fatalf("after %d: %v", i, err)
			}
		}
	}
	total(t, s, dir)
	if _, _, err := s.Get(keyOf(1)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the longest unused: got %v", err)
	}
	if _, _, err := s.Get(keyOf(119)); err != nil {
		t.Errorf("the last: got %v", err)
	}
	if err := s.Put(keyOf(1000), Note{}, make([]byte, 100<<10)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: got %v", err)
	}
	if err := s.Put(keyOf(1001), Note{Release: strings.Repeat("x", maxNote)}, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("note: got %v", err)
	}
	if err := s.Put(keyOf(1002), Note{}, make([]byte, 99<<10-300)); err != nil {
		t.Errorf("just fits: got %v", err)
	}
	size(t, s, 1)
}

// A cache that is opened with a smaller size is made to fit; what interrupted
// writers left is removed; files of others stay.
func TestOpenCleans(t *testing.T) {
	s, dir := newStore(t, 1<<20)
	for i := range 40 {
		put(t, s, i)
	}
	shard := filepath.Dir(filepath.Join(dir, path(keyOf(1))))
	old, young, other := filepath.Join(shard, newPrefix+"old"), filepath.Join(shard, newPrefix+"young"), filepath.Join(shard, "README")
	for _, name := range []string{old, young, other} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-2 * time.Hour)
	if err := errors.Join(os.Chtimes(old, then, then), os.WriteFile(filepath.Join(dir, lockName), []byte("rubbish"), 0o600)); err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir, 50<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if n, bytes, err := again.Size(); err != nil || bytes > 50<<10 || n == 0 {
		t.Errorf("got %d entries, %d bytes, %v", n, bytes, err)
	}
	total(t, again, dir)
	for name, want := range map[string]bool{old: false, young: true, other: true} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestListPrune(t *testing.T) {
	s, dir := newStore(t, 1<<20)
	for i := range 10 {
		put(t, s, i)
		when := time.Now().Add(time.Duration(i-100) * time.Minute)
		if err := os.Chtimes(filepath.Join(dir, path(keyOf(i))), when, when); err != nil {
			t.Fatal(err)
		}
	}
	bad := filepath.Join(dir, path(keyOf(9)))
	b, err := os.ReadFile(bad)
	if err == nil {
		err = flip(-1)(t, bad, b)
	}
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 10 || list[0].Key != keyOf(0) || list[3].Note.Module != "m3" || list[3].Err != nil {
		t.Errorf("list: %+v, %v", list, err)
	}
	checked, err := s.Verify()
	if err != nil || len(checked) != 10 || checked[9].Err == nil || checked[8].Err != nil {
		t.Errorf("verify: %+v, %v", checked, err)
	}
	if n, bytes, err := s.Prune(-1); err != nil || n != 1 || bytes != blocks(int64(len(b))) {
		t.Errorf("prune damaged: %d, %d, %v", n, bytes, err)
	}
	total(t, s, dir)
	left := size(t, s, 9)
	if n, _, err := s.Prune(left - 1); err != nil || n != 1 {
		t.Errorf("prune one: %d, %v", n, err)
	}
	if _, _, err := s.Read(keyOf(0)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the longest unused: %v", err)
	}
	if n, _, err := s.Prune(0); err != nil || n != 8 {
		t.Errorf("prune all: %d, %v", n, err)
	}
	total(t, s, dir)
}

// Readers never see anything but the right answer, whatever writers and
// evictions of two processes do.
func TestConcurrent(t *testing.T) {
	a, dir := newStore(t, 150<<10)
	b, err := Open(dir, 120<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	end := time.Now().Add(700 * time.Millisecond)
	var all sync.WaitGroup
	var hits, misses [4]int
	for i := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for time.Now().Before(end) {
				key, s := keyOf(r.IntN(80)), []*Store{a, b}[r.IntN(2)]
				_, got, err := s.Get(key)
				switch {
				case errors.Is(err, fs.ErrNotExist):
					misses[i]++
					if err := s.Put(key, Note{}, answerOf(key)); err != nil {
						t.Error(err)
					}
				case err != nil:
					t.Error(err)
				case !bytes.Equal(got, answerOf(key)):
					t.Errorf("%v: another answer", key)
				default:
					hits[i]++
				}
			}
		})
	}
	all.Wait()
	t.Logf("hits %v, misses %v", hits, misses)
	if _, bytes, err := a.Size(); err != nil || bytes > 150<<10 {
		t.Errorf("%d bytes, %v", bytes, err)
	}
	total(t, a, dir)
}

func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "answers")
	for range 25 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childVariable+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 1))
		time.Sleep(time.Duration(rand.IntN(40000)) * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		if stderr.Len() > 0 {
			t.Fatalf("the writer said %s", stderr.Bytes())
		}
	}
	s, err := Open(dir, 200<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	entries, err := s.Verify()
	if err != nil || len(entries) == 0 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries {
		if e.Err != nil {
			t.Errorf("%v: %v", e.Key, e.Err)
		} else if _, got, err := s.Get(e.Key); err != nil || !bytes.Equal(got, answerOf(e.Key)) {
			t.Errorf("%v: another answer, %v", e.Key, err)
		}
	}
	if _, bytes, err := s.Size(); err != nil || bytes > 200<<10 {
		t.Errorf("%d bytes, %v", bytes, err)
	}
	total(t, s, dir)
	t.Logf("%d entries after 25 kills", len(entries))
}

// A full disk stores nothing and damages nothing.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("a small disk needs the right to mount a tmpfs: %v", err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	dir := filepath.Join(disk, "answers")
	s, err := Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stored, refused := 0, 0
	for i := range 100 {
		key := keyOf(i)
		switch err := s.Put(key, Note{}, answerOf(key)); {
		case err == nil:
			stored++
		case errors.Is(err, unix.ENOSPC):
			refused++
		default:
			t.Fatal(err)
		}
	}
	if stored == 0 || refused == 0 {
		t.Errorf("%d stored, %d refused", stored, refused)
	}
	entries, err := s.Verify()
	if err != nil || len(entries) != stored {
		t.Errorf("%d entries, %v; want %d", len(entries), err, stored)
	}
	for _, e := range entries {
		if e.Err != nil {
			t.Errorf("%v: %v", e.Key, e.Err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", newPrefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(disk, "filler"), make([]byte, 1<<20), 0o600); err == nil {
		t.Error("the disk is not full")
	}
	// Nothing fits any more, and all that is there is still served.
	for _, e := range entries {
		if _, _, err := s.Get(e.Key); err != nil {
			t.Errorf("%v: %v", e.Key, err)
		}
	}
	if _, _, err := s.Prune(0); err != nil {
		t.Error(err)
	}
	size(t, s, 0)
}

// A lock that is held by a process that does not go on costs the entry, not more.
func TestLockHeld(t *testing.T) {
	s, dir := newStore(t, 1<<20)
	kept := put(t, s, 1)
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if err == nil {
		defer lock.Close()
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(keyOf(2), Note{}, []byte("x")); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	if _, _, err := s.Get(kept); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", newPrefix+"*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// The owner of a cache has linked a file of root's in the place of the lock. Root,
// who looks after the cache, neither gives it away nor writes to it.
func TestSecurity04LockOfAnothersCache(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root looks after caches of others")
	}
	s, dir := newStore(t, 1<<20)
	put(t, s, 1)
	other := filepath.Join(filepath.Dir(dir), "of-root")
	lock := filepath.Join(dir, lockName)
	if err := errors.Join(os.WriteFile(other, []byte("contents"), 0o644), os.Remove(lock), os.Link(other, lock), os.Chown(dir, 4242, 4242)); err != nil {
		t.Fatal(err)
	}
	s, err := OpenExisting(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, f := range map[string]func() error{
		"prune": func() error { _, _, err := s.Prune(1); return err },
		"size":  func() error { _, _, err := s.Size(); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "must have one name") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	var st unix.Stat_t
	if text, err := os.ReadFile(other); err != nil || string(text) != "contents" || unix.Stat(other, &st) != nil || st.Uid != 0 {
		t.Errorf("the file of root's has %q, owner %d, %v", text, st.Uid, err)
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "17": 17, "1K": 1024, "2m": 2 << 20, "3G": 3 << 30} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%s: got %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "K", "-1", "1T", "1KB", "1.5M", "0x10", "9999999999G", "K1"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%s: got %d", in, got)
		}
	}
	key := keyOf(1)
	if got, err := ParseKey(key.String()); err != nil || got != key {
		t.Errorf("got %v, %v", got, err)
	}
	for _, in := range []string{"", "ab", strings.ToUpper(key.String()), strings.Repeat("g", 64)} {
		if _, err := ParseKey(in); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func FuzzEntry(f *testing.F) {
	key := keyOf(1)
	for _, answer := range []string{"", "answer", strings.Repeat("x", 5000)} {
		b, err := encode(key, Note{Release: "6.1", Made: time.Unix(1, 0).UTC()}, []byte(answer))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(bytes.Clone(b), 0))
		b = bytes.Clone(b)
		binary.BigEndian.PutUint32(b[12:], 0xffffffff)
		f.Add(b)
	}
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What is read must be what a digest stands for: make it fit, so that the
		// fuzzer gets past it.
		b = bytes.Clone(b)
		if len(b) >= sha256.Size {
			sum := sha256.Sum256(b[:len(b)-sha256.Size])
			copy(b[len(b)-sha256.Size:], sum[:])
		}
		note, answer, err := decode(b, key)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v", err)
			}
			return
		}
		again, err := encode(key, note, answer)
		if err != nil {
			return // a note that becomes longer when written
		}
		if _, same, err := decode(again, key); err != nil || !bytes.Equal(same, answer) {
			t.Errorf("written again: %v", err)
		}
	})
}
