package compile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"stapbox/core/cache"
	"stapbox/core/sandbox"
	"stapbox/core/wire"
)

// Every field of influences changes the key alone.
func TestKeyCoversInfluences(t *testing.T) {
	base := influences{Args: []string{"-p4", "-ex"}}
	key := base.key()
	seen := map[cache.Key]string{key: "nothing"}
	for i := range reflect.TypeFor[influences]().NumField() {
		name := reflect.TypeFor[influences]().Field(i).Name
		other := base
		switch f := reflect.ValueOf(&other).Elem().Field(i).Addr().Interface().(type) {
		case *string:
			*f = "x"
		case *[]string:
			*f = append([]string{"x"}, *f...)
		case *[]sandbox.Limit:
			*f = []sandbox.Limit{{Name: "cpu", Value: 1}}
		default:
			t.Fatalf("%s has a type this test does not know", name)
		}
		if was, ok := seen[other.key()]; ok {
			t.Errorf("%s gives the key of %s", name, was)
		}
		seen[other.key()] = name
	}
	// The border between two texts counts, and what a list belongs to.
	for _, tt := range []struct {
		name string
		a, b influences
	}{
		{"arguments", influences{Args: []string{"ab", "c"}}, influences{Args: []string{"a", "bc"}}},
		{"empty argument", influences{Args: []string{""}}, influences{}},
		{"order of arguments", influences{Args: []string{"-DA", "-DB"}}, influences{Args: []string{"-DB", "-DA"}}},
		{"neighbours", influences{Release: "6", BuildDir: ""}, influences{Release: "", BuildDir: "6"}},
		{"lists", influences{Args: []string{"LANG=C"}}, influences{Locale: []string{"LANG=C"}}},
		{"limit", influences{Rlimits: []sandbox.Limit{{Name: "cpu", Value: 1}}}, influences{Rlimits: []sandbox.Limit{{Name: "cpu", Value: 2}}}},
		{"name of a limit", influences{Rlimits: []sandbox.Limit{{Name: "cpu", Value: 1}}}, influences{Rlimits: []sandbox.Limit{{Name: "as", Value: 1}}}},
	} {
		if tt.a.key() == tt.b.key() {
			t.Errorf("%s: one key for two", tt.name)
		}
	}
	file := func(name, text string) wire.File { return wire.File{Name: name, Data: []byte(text)} }
	seenFiles := map[string]int{}
	for i, files := range [][]wire.File{
		nil, {file("a", "")}, {file("a", "b")}, {file("ab", "")}, {file("a", "c")}, {file("a", "b"), file("b", "")}, {file("a", ""), file("b", "b")},
	} {
		if was, ok := seenFiles[contents(files)]; ok {
			t.Errorf("files %d and %d have one digest", was, i)
		}
		seenFiles[contents(files)] = i
	}
	if contents([]wire.File{file("a", "x"), file("b", "y")}) != contents([]wire.File{file("b", "y"), file("a", "x")}) {
		t.Error("the order of files in the archive counts")
	}
}

// logged is a service with a cache, whose workers leave a line each in runs.
type logged struct {
	*testService
	runs  string
	lines *safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// awaits waits until so many wait for answers in the making.
func (l *logged) awaits(t *testing.T, n int) {
	t.Helper()
	for range 2000 {
		l.Service.mu.Lock()
		got := 0
		for _, f := range l.flights {
			got += f.waiting
		}
		l.Service.mu.Unlock()
		if got == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("never %d waiting", n)
}

func newCached(t *testing.T) *logged {
	t.Helper()
	s := newService(t)
	store, err := cache.Open(filepath.Join(t.TempDir(), "answers"), 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	l := &logged{testService: s, runs: filepath.Join(t.TempDir(), "runs"), lines: &safeBuffer{}}
	s.Cache = store
	s.Requests = slog.New(slog.NewTextHandler(l.lines, nil))
	// Where workers can write the file of runs.
	s.Sandbox = sandbox.Off(s.Worker)
	s.Environ = append(s.Environ, runsVariable+"="+l.runs)
	t.Cleanup(func() {
		s.Wait()
		store.Close()
	})
	return l
}

func (l *logged) count(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(l.runs)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

// do asks, waits until the answer is stored, and tells what the log says of it.
func (l *logged) do(t *testing.T, r *wire.Request) (answer []byte, made string) {
	t.Helper()
	archive, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	before := len(l.lines.String())
	answer, err = l.Do(context.Background(), archive, "test")
	if err != nil {
		t.Fatal(err)
	}
	l.Wait()
	line := l.lines.String()[before:]
	_, made, _ = strings.Cut(line, " cache=")
	made, rest, _ := strings.Cut(made, " ")
	if made != "" && len(strings.Fields(rest)[0]) != len("key=")+12 {
		t.Errorf("log: %s", line)
	}
	return answer, made
}

func TestServiceCaches(t *testing.T) {
	for _, tt := range []struct {
		name   string
		args   []string
		second string
		status int
	}{
		{"module", []string{"-p4", "-emodule stapdev"}, madeHit, 0},
		{"signed module", []string{"-p4", "-emodule stapusr", "--privilege=stapusr"}, madeHit, 0},
		{"with a name", []string{"-p4", "-mname", "-emodule stapdev"}, madeHit, 0},
		{"output only", []string{"-p2", "-enothing"}, madeHit, 0},
		{"times of its own", []string{"-v", "-p2", "-enothing"}, madeOff, 0},
		{"failing script", []string{"-p2", "-efail"}, madeMiss, 1},
		{"crash", []string{"-p2", "-ecrash"}, madeMiss, 1},
		{"no module", []string{"-p4", "-enothing"}, madeMiss, 1},
		{"module of another level", []string{"-p4", "-emodule stapdev", "--privilege=stapusr"}, madeMiss, 1},
		{"cut off", []string{"-p1", "-eflood"}, madeMiss, 0},
		{"refused", []string{"-p4", "-k", "-ex"}, "", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newCached(t)
			first, made := l.do(t, req61(tt.args...))
			if want := strings.Replace(tt.second, madeHit, madeMiss, 1); made != want {
				t.Errorf("first: got %q, want %q", made, want)
			}
			second, made := l.do(t, req61(tt.args...))
			if made != tt.second {
				t.Errorf("second: got %q, want %q", made, tt.second)
			}
			if tt.second == madeHit && (!bytes.Equal(first, second) || l.count(t) != 1) {
				t.Errorf("the answers are %d and %d bytes, equal %v, after %d runs", len(first), len(second), bytes.Equal(first, second), l.count(t))
			}
			got, err := wire.DecodeResponse(second)
			if err != nil || got.RC != tt.status {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// What changes the answer makes a miss.
func TestServiceCacheMisses(t *testing.T) {
	l := newCached(t)
	build := t.TempDir()
	header := filepath.Join(build, "include/generated/utsrelease.h")
	if err := os.MkdirAll(filepath.Dir(header), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(header, "#define UTS_RELEASE \"6.12\"\n")
	l.Releases[1].BuildDir = build
	ask := func(change func(*wire.Request)) *wire.Request {
		r := req61("-p2", "-enothing", "--", "a")
		r.Release = "6.12"
		r.Files = []wire.File{{Name: "script/a", Data: []byte("x")}}
		if change != nil {
			change(r)
		}
		return r
	}
	if _, made := l.do(t, ask(nil)); made != madeMiss {
		t.Fatalf("first: %s", made)
	}
	expect := func(name, want string, r *wire.Request) {
		t.Helper()
		if _, made := l.do(t, r); made != want {
			t.Errorf("%s: got %s, want %s", name, made, want)
		}
	}
	expect("the same", madeHit, ask(nil))
	expect("release by -r", madeHit, ask(func(r *wire.Request) { r.Args = append([]string{"-r6.12"}, r.Args...) }))
	expect("other client", madeHit, ask(func(r *wire.Request) { r.Version = "4.8" }))
	for name, change := range map[string]func(*wire.Request){
		"release":        func(r *wire.Request) { r.Release = l.Releases[0].Name },
		"pass":           func(r *wire.Request) { r.Args[0] = "-p1" },
		"script":         func(r *wire.Request) { r.Args[1] = "-esay" },
		"argument":       func(r *wire.Request) { r.Args[3] = "b" },
		"macro":          func(r *wire.Request) { r.Args = append([]string{"-DX"}, r.Args...) },
		"module name":    func(r *wire.Request) { r.Args = append([]string{"-mx"}, r.Args...) },
		"privilege":      func(r *wire.Request) { r.Args = append([]string{"--privilege=stapsys"}, r.Args...) },
		"guru":           func(r *wire.Request) { r.Args = append([]string{"-g"}, r.Args...) },
		"locale":         func(r *wire.Request) { r.Locale = []string{"LANG=C"} },
		"bad locale":     func(r *wire.Request) { r.Locale = []string{"bad"} },
		"file":           func(r *wire.Request) { r.Files[0].Data = []byte("y") },
		"name of a file": func(r *wire.Request) { r.Files[0].Name = "script/b" },
		"another file":   func(r *wire.Request) { r.Files = append(r.Files, wire.File{Name: "tapset/t"}) },
	} {
		expect(name, madeMiss, ask(change))
	}
	expect("still there", madeHit, ask(nil))

	write(header, "#define UTS_RELEASE \"6.12\"\n#define X\n")
	expect("kernel build", madeMiss, ask(nil))
	write(filepath.Join(build, ".config"), "CONFIG_X=y\n")
	expect("kernel configuration", madeMiss, ask(nil))
	l.Options = []string{"-DSERVER=2"}
	expect("server's options", madeMiss, ask(nil))
	l.Rlimits = []sandbox.Limit{{Name: "cpu", Value: 34}}
	expect("limits", madeMiss, ask(nil))
	l.self().digest = "another program"
	expect("translator, tapset or runtime", madeMiss, ask(nil))

	// An answer that is signed with another key is not served.
	signed := req61("-p4", "-emodule stapusr", "--privilege=stapusr")
	expect("signed", madeMiss, signed)
	expect("signed again", madeHit, signed)
	old := l.Key()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l.Key = func() crypto.Signer { return key }
	answer, made := l.do(t, signed)
	got, err := wire.DecodeResponse(answer)
	if err != nil || made != madeMiss {
		t.Fatalf("new key: %s, %v", made, err)
	}
	modules, sigs := got.Modules()
	if !ed25519.Verify(key.Public().(ed25519.PublicKey), modules[0].Data, sigs[0].Data) {
		t.Error("not signed with the new key")
	}
	l.Key = func() crypto.Signer { return old }
	expect("old key again", madeHit, signed)
}

// Fifty equal requests at once run one worker, and all get its answer.
func TestSingleFlight(t *testing.T) {
	for _, script := range []string{"slow module stapdev", "slow fail"} {
		t.Run(script, func(t *testing.T) {
			l := newCached(t)
			slots := make(chan struct{}, 1)
			l.Slot = func(ctx context.Context) (func(), error) {
				slots <- struct{}{}
				return func() { <-slots }, nil
			}
			archive, err := req61("-p4", "-e"+script).Encode()
			if err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			answers := make([][]byte, 50)
			for i := range answers {
				all.Go(func() {
					var err error
					if answers[i], err = l.Do(context.Background(), archive, "test"); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if n := l.count(t); n != 1 {
				t.Errorf("%d workers ran", n)
			}
			for _, a := range answers {
				if !bytes.Equal(a, answers[0]) {
					t.Error("the answers differ")
				}
			}
			log := l.lines.String()
			if n := strings.Count(log, "cache=joined"); n != 49 || strings.Count(log, "cache=miss") != 1 {
				t.Errorf("%d joined:\n%s", n, log)
			}
		})
	}
}

// The client that leads goes away; the others get their answer. When all are
// gone the worker ends.
func TestSingleFlightLeaderLeaves(t *testing.T) {
	l := newCached(t)
	archive, err := req61("-p4", "-eslow module stapdev").Encode()
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	lead, leave := context.WithCancel(context.Background())
	defer leave()
	all.Go(func() {
		if answer, err := l.Do(lead, archive, "leader"); err == nil {
			t.Errorf("the leader got %d bytes", len(answer))
		}
	})
	l.awaits(t, 1)
	for range 3 {
		all.Go(func() {
			answer, err := l.Do(context.Background(), archive, "other")
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := wire.DecodeResponse(answer); err != nil || got.RC != 0 || len(got.Files) != 1 {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	l.awaits(t, 4)
	leave()
	all.Wait()
	if n := l.count(t); n != 1 {
		t.Errorf("%d workers ran", n)
	}

	hang, err := req61("-p4", "-ehang").Encode()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	for range 3 {
		all.Go(func() {
			if _, err := l.Do(ctx, hang, "test"); err == nil {
				t.Error("an answer from a worker that hangs")
			}
		})
	}
	l.awaits(t, 3)
	began := time.Now()
	cancel()
	all.Wait()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the worker ended after %v", d)
	}
	l.Wait() // the first answer may still be on its way to the cache
	if left, _ := os.ReadDir(l.TempDir); len(left) != 0 || len(l.flights) != 0 {
		t.Errorf("left over: %v, %d flights", left, len(l.flights))
	}
}

// Damage is a miss; a cache that cannot be written costs nothing but itself and
// is reported once.
func TestServiceCacheTrouble(t *testing.T) {
	l := newCached(t)
	first, _ := l.do(t, req61("-p2", "-enothing"))
	entries, err := l.Cache.List()
	if err != nil || len(entries) != 1 || entries[0].Note.Release != "6.1.0-1-cloud-amd64" || entries[0].Note.Level != "stapdev" {
		t.Fatalf("entries %+v, %v", entries, err)
	}
	l.Cache.Close()
	for i := range 3 {
		second, made := l.do(t, req61("-p2", "-enothing"))
		if made != madeMiss || !bytes.Equal(first, second) {
			t.Errorf("%d: %s", i, made)
		}
	}
	if n := strings.Count(strings.Join(l.log, "\n"), "Not cached"); n != 1 {
		t.Errorf("reported %d times:\n%s", n, strings.Join(l.log, "\n"))
	}
}

// A client that waits for a slot when there is none is told so, and so are those
// that joined it.
func TestServiceNoSlot(t *testing.T) {
	l := newCached(t)
	l.Slot = func(context.Context) (func(), error) { return nil, fmt.Errorf("overloaded") }
	answer, made := l.do(t, req61("-p2", "-enothing"))
	got, err := wire.DecodeResponse(answer)
	if err != nil || got.RC != 1 || string(got.Stderr) != "Server: overloaded\n" || made != madeMiss {
		t.Errorf("got %+v, %v, %s", got, err, made)
	}
}

// BenchmarkHit is the server's part of a known request, without TLS.
func BenchmarkHit(b *testing.B) {
	store, err := cache.Open(filepath.Join(b.TempDir(), "answers"), 16<<20)
	if err != nil {
		b.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	s := &Service{
		Releases: []Release{{Name: "6.1.0-1-cloud-amd64"}}, Arch: "x86_64", TempDir: b.TempDir(), StateDir: b.TempDir(),
		WallClock: 10 * time.Second, Limits: wire.RequestLimits(wire.DefaultMaxUncompressed), Worker: []string{"/proc/self/exe", "stap"},
		Key: func() crypto.Signer { return key }, Log: func(string, ...any) {}, Requests: slog.New(slog.DiscardHandler), Cache: store,
	}
	archive, err := req61("-p4", "-emodule stapusr", "--privilege=stapusr").Encode()
	if err != nil {
		b.Fatal(err)
	}
	for range 2 {
		if _, err := s.Do(context.Background(), archive, "test"); err != nil {
			b.Fatal(err)
		}
		s.Wait()
	}
	for b.Loop() {
		if _, err := s.Do(context.Background(), archive, "test"); err != nil {
			b.Fatal(err)
		}
	}
}

// A client that asks more than its share, and is turned away, does not have those
// turned away that ask the same.
func TestSingleFlightOfAnother(t *testing.T) {
	l := newCached(t)
	type who struct{}
	joined := make(chan struct{})
	l.Slot = func(ctx context.Context) (func(), error) {
		if ctx.Value(who{}) == "greedy" {
			<-joined
			return nil, fmt.Errorf("overloaded")
		}
		return func() {}, nil
	}
	archive, err := req61("-p4", "-emodule stapdev").Encode()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(name string, want int) {
		answer, err := l.Do(context.WithValue(context.Background(), who{}, name), archive, name)
		if err != nil {
			t.Error(err)
			return
		}
		if got, err := wire.DecodeResponse(answer); err != nil || got.RC != want {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	var all sync.WaitGroup
	all.Go(func() { ask("greedy", 1) })
	l.awaits(t, 1)
	all.Go(func() { ask("honest", 0) })
	l.awaits(t, 2)
	close(joined)
	all.Wait()
}
