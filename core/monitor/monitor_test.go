package monitor

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// status49 has the forms of 4.9 and later: numbers, statistics, maps, commas
// that are too many.
const status49 = `{
"uptime": "00:00:07",
"uid": "1000",
"memory": "204data/52text/13ctx/2063net/144alloc kb",
"module_name": "stap_1234",
"globals": {
,"count": 3,
"name": "a \"b\"",
"s": {"@count":2,"@min":1,"@max":5,"@sum":6,"@avg":3},
"m": {"(1, x)": 5, "(2, y)": {"@count":1}, }
},
"probe_list": [
{"index": 0, "state": "on", "hits": 12, "min": 100, "avg": 150, "max": 900, "name": "timer.ms(100)"},
{"index": 1, "state": "off", "hits": 0, "min": 0, "avg": 0, "max": 0, "name": "begin"},
]
}
`

// status48 has those of 4.8: every value of a global is quoted.
const status48 = `{"uptime": "00:00:01", "uid": "0", "memory": "1kb", "module_name": "stap_1", "globals": {"x": "3", "s": "5(count)", "a": "[2048]"},
"probe_list": [ {"index": 0, "state": "on", "hits": 1, "min": 2, "avg": 2, "max": 2, "name": "begin"}, ] }`

func TestParse(t *testing.T) {
	got, err := Parse([]byte(status49))
	want := Status{
		Uptime: "00:00:07", UID: "1000", Memory: "204data/52text/13ctx/2063net/144alloc kb", Module: "stap_1234",
		Globals: []Global{{"count", "3"}, {"name", `a "b"`}, {"s", "{@count: 2, @min: 1, @max: 5, @sum: 6, @avg: 3}"}, {"m", "{(1, x): 5, (2, y): {@count: 1}}"}},
		Probes:  []Probe{{0, true, 12, 100, 150, 900, "timer.ms(100)"}, {1, false, 0, 0, 0, 0, "begin"}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("4.9: got %+v, %v", got, err)
	}
	got, err = Parse([]byte(status48))
	want = Status{
		Uptime: "00:00:01", UID: "0", Memory: "1kb", Module: "stap_1",
		Globals: []Global{{"x", "3"}, {"s", "5(count)"}, {"a", "[2048]"}}, Probes: []Probe{{0, true, 1, 2, 2, 2, "begin"}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("4.8: got %+v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "it ends within a value"},
		{"3", "it is no object"},
		{"{", "it ends within '{'"},
		{`{"a": "b`, "it ends within a string"},
		{`{"a": "b\`, "it ends within a string"},
		{`{"a": "\u12"}`, `a bad \u in a string`},
		{`{"a" 3}`, `no ':' after the name "a"`},
		{`{a: 3}`, "'a' at 1 where a name is expected"},
		{`{"a": :}`, "':' at 6 where a value is expected"},
		{`{} x`, "text after its end"},
		{`{"a": ` + strings.Repeat("[", 20), "it is nested deeper than 8"},
		{strings.Repeat(" ", MaxStatus+1), "it is longer than 262144 bytes"},
	} {
		if _, err := Parse([]byte(tt.in)); !errors.Is(err, ErrStatus) || !strings.HasSuffix(err.Error(), ": "+tt.want) {
			t.Errorf("%.40q: got %v, want %q", tt.in, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(status49))
	f.Add([]byte(status48))
	f.Add([]byte(`{"globals": {"x": [1,,2],}, "probe_list": [3, {}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil && !errors.Is(err, ErrStatus) {
			t.Errorf("got %v", err)
		}
		checkFrame(t, &state{status: s}, 80, 24)
	})
}

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "\x1b[31mred": "^[[31mred", "a\tb": "a       b", "\x07\x7f\x00": "^G^?^@", "\x9b31m": `\x9b31m`, "\u009b": `\u009b`,
		"\u202egnp": `\u202egnp`, "\u200b": `\u200b`, "ä日": "ä日", "\xff": `\xff`, "a\r": "a^M",
	} {
		if got := visible(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// checkFrame holds what every frame must be: as many rows as the screen, each of
// its width, nothing that a terminal acts on.
func checkFrame(t *testing.T, s *state, width, height int) []row {
	t.Helper()
	rows := render(s, width, height)
	if len(rows) != height {
		t.Fatalf("%dx%d: %d rows", width, height, len(rows))
	}
	for i, r := range rows {
		cells := 0
		for _, c := range r.text {
			if c < ' ' || c >= 0x7f && c < 0xa0 || c == utf8.RuneError {
				t.Fatalf("%dx%d: row %d has %q", width, height, i, r.text)
			}
			cells += runeWidth(c)
		}
		if cells != width {
			t.Fatalf("%dx%d: row %d has %d cells: %q", width, height, i, cells, r.text)
		}
	}
	return rows
}

func FuzzRender(f *testing.F) {
	f.Add("line\n\x1b[2Jtext\xff", "name\x07", 80, 24, 3)
	f.Add("日本語日本語", "x", 3, 5, 100)
	f.Fuzz(func(t *testing.T, text, name string, width, height, scroll int) {
		width, height = 1+width&0xff, 1+height&0x7f
		s := &state{status: Status{Uptime: name, Module: name, Globals: []Global{{name, text}, {text, name}}, Probes: []Probe{{Name: name}, {Name: text}}}}
		s.out.write([]byte(text))
		s.out.message(name)
		s.back = max(scroll, 0) % 1000
		checkFrame(t, s, width, height)
		for _, k := range keys([]byte(text)) {
			s.press(k, 5)
		}
		checkFrame(t, s, width, height)
	})
}

func sample() *state {
	s := &state{}
	s.update([]byte(status49), nil)
	for i := range 30 {
		s.status.Probes = append(s.status.Probes, Probe{Index: int64(i + 2), On: i%3 > 0, Hits: int64(i * i), Min: int64(i), Avg: int64(2 * i), Max: int64(3 * i), Name: fmt.Sprintf("kernel.trace(\"sched_%d\")", i)})
	}
	for i := range 60 {
		s.out.write(fmt.Appendf(nil, "output line %d\n", i))
	}
	s.out.write([]byte("an escape \x1b[31m, and a line that is so long that it does not fit in eighty columns, by far\n"))
	s.out.message("WARNING: text of the module\n")
	s.out.write([]byte("no end"))
	return s
}

var update = flag.Bool("update", false, "write the frames of testdata anew")

// TestFrames holds the frames at three sizes against testdata; reversed rows
// start with '#'.
func TestFrames(t *testing.T) {
	for _, tt := range []struct {
		name          string
		width, height int
		change        func(s *state)
	}{
		{"80x24", 80, 24, func(*state) {}},
		{"40x10", 40, 10, func(*state) {}},
		{"200x50", 200, 50, func(*state) {}},
		{"80x24-sorted-scrolled", 80, 24, func(s *state) { s.sort, s.focus, s.top = byHits, probeWindow, 3; s.back = 5; s.seen = s.out.total }},
		{"80x24-hidden", 80, 24, func(s *state) { s.hidden = true }},
		{"80x24-help", 80, 24, func(s *state) { s.help = true }},
		{"80x24-prompt-paused", 80, 24, func(s *state) { s.press('p', 1); s.press('t', 1); s.press('1', 1); s.press('2', 1) }},
		{"80x24-exited", 80, 24, func(s *state) { s.exited = true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := sample()
			tt.change(s)
			var b strings.Builder
			for _, r := range checkFrame(t, s, tt.width, tt.height) {
				mark := " "
				if r.reverse {
					mark = "#"
				}
				b.WriteString(strings.TrimRight(mark+r.text, " ") + "\n")
			}
			file := filepath.Join("testdata", tt.name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got\n%s\nwant\n%s", b.String(), want)
			}
		})
	}
	for width := 1; width < 130; width += 3 { // every size has a frame
		for height := 1; height < 60; height += 4 {
			checkFrame(t, sample(), width, height)
		}
	}
}

func TestKeys(t *testing.T) {
	s := sample()
	for _, tt := range []struct {
		typed, words string
		over         bool
		check        func() bool
	}{
		{"c", "clear", false, nil},
		{"t12\r", "12", false, nil},
		{"t123456\x7f7\n", "12347", false, nil},
		{"tx\x1b", "", false, func() bool { return !s.prompting }},
		{"p", "pause", false, func() bool { return s.paused }},
		{"r", "resume", false, func() bool { return !s.paused }},
		{"sss", "", false, func() bool { return s.sort == byMin }},
		{"ssss", "", false, func() bool { return s.sort == byIndex }},
		{"h", "", false, func() bool { return s.help }},
		{"h", "", false, func() bool { return !s.help }},
		{"kk\x1b[A", "", false, func() bool { return s.back == 3 }},
		{"j\x1bOB\x1b[5~", "", false, func() bool { return s.back == 11 }},
		{"\x1b[6~\x1b[F", "", false, func() bool { return s.back == 0 }},
		{"\x1b[1~", "", false, func() bool { render(s, 80, 24); return s.back > 40 }},
		{"\x1b[4~\tjj", "", false, func() bool { return s.top == 2 && s.back == 0 }},
		{"\x1b[H", "", false, func() bool { return s.top == 0 }},
		{"\x1b[F", "", false, func() bool { render(s, 80, 24); return s.top > 10 }},
		{"x", "", false, func() bool { return s.hidden && s.focus == outputWindow }},
		{"\t", "", false, func() bool { return s.focus == outputWindow }},
		{"\x1b[99~\x1b[", "", false, nil},
		{"q", "quit", false, func() bool { return s.stopping }},
	} {
		var words []string
		for _, k := range keys([]byte(tt.typed)) {
			word, over := s.press(k, 10)
			if word != "" {
				words = append(words, word)
			}
			if over != tt.over {
				t.Errorf("%q: over is %v", tt.typed, over)
			}
		}
		if strings.Join(words, " ") != tt.words || tt.check != nil && !tt.check() {
			t.Errorf("%q: sends %q, want %q; %+v", tt.typed, words, tt.words, []any{s.back, s.top, s.sort, s.focus})
		}
	}
	s.exited = true
	if word, over := s.press('q', 1); word != "" || !over {
		t.Errorf("q after the end: %q, %v", word, over)
	}
}

func TestHistory(t *testing.T) {
	var h history
	for i := range maxHistory + 100 {
		h.write(fmt.Appendf(nil, "%d\n", i))
	}
	if h.len() != maxHistory || h.at(0) != "100" || h.at(maxHistory-1) != fmt.Sprint(maxHistory+99) {
		t.Errorf("%d lines from %q to %q", h.len(), h.at(0), h.at(h.len()-1))
	}
	h = history{}
	h.write([]byte(strings.Repeat("x", 10*maxLine) + "\nend\r\n"))
	if h.len() != 11 && h.len() != 12 || len(h.at(0)) > 2*maxLine || h.at(h.len()-1) != "end" {
		t.Errorf("%d lines, the first of %d bytes", h.len(), len(h.at(0)))
	}
	// What is looked at stays while output goes on.
	s := sample()
	s.back = 20
	s.seen = s.out.total
	before := fmt.Sprint(render(s, 80, 24)[14:22])
	for i := range 7 {
		s.out.write(fmt.Appendf(nil, " more\nmore %d", i))
	}
	if after := fmt.Sprint(render(s, 80, 24)[14:22]); after != before {
		t.Errorf("the window moved from\n%s\nto\n%s", before, after)
	}
}

// pty is a pseudo terminal: its master, and what a program has.
func pty(t *testing.T, width, height int) (master int, slave *os.File) {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	t.Cleanup(func() { unix.Close(master) })
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	resize(t, master, width, height)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func resize(t *testing.T, master, width, height int) {
	t.Helper()
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(height), Col: uint16(width)}); err != nil {
		t.Fatal(err)
	}
}

// screen collects what is written to a terminal.
type screen struct {
	t  *testing.T
	mu sync.Mutex
	b  strings.Builder
}

func watch(t *testing.T, master int) *screen {
	s := &screen{t: t}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := unix.Read(master, buf)
			if err != nil || n <= 0 {
				return
			}
			s.mu.Lock()
			s.b.Write(buf[:n])
			s.mu.Unlock()
		}
	}()
	return s
}

// wait waits until the text was written after a place, and gives the place
// after it.
func (s *screen) wait(after int, text string) int {
	s.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		all := s.b.String()
		s.mu.Unlock()
		if i := strings.Index(all[after:], text); i >= 0 {
			return after + i + len(text)
		}
		if time.Now().After(end) {
			s.t.Fatalf("no %q in %q", text, all[after:])
		}
	}
}

// The view in a terminal: it draws, obeys keys, follows the size, stays after
// the end and gives the terminal back as it was.
func TestTerminal(t *testing.T) {
	master, slave := pty(t, 80, 24)
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var words []string
	v, err := New(Config{In: slave, Out: slave, Interval: 50 * time.Millisecond,
		Status: func() ([]byte, error) { return []byte(status49), nil },
		Control: func(word string) error {
			mu.Lock()
			defer mu.Unlock()
			words = append(words, word)
			if word == "7" {
				return errors.New("no such \x1b probe")
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	s := watch(t, master)
	ended := make(chan error, 1)
	go func() { ended <- v.Run(context.Background()) }()
	at := s.wait(0, "\x1b[?1049h")
	at = s.wait(at, "module: stap_1234")
	fmt.Fprint(v, "from the script \x1b]0;title\x07\n")
	v.Message("WARNING: careful\n")
	at = s.wait(at, "from the script ^[]0;title^G")
	s.wait(at, "WARNING: careful")
	unix.Write(master, []byte("ct7\r"))
	at = s.wait(at, "no such ^[ probe")
	resize(t, master, 100, 30)
	unix.Kill(os.Getpid(), unix.SIGWINCH)
	at = s.wait(at, "\x1b[2J")
	at = s.wait(at, "\x1b[30;1H")
	unix.Write(master, []byte("q"))
	at = s.wait(at, "stopping")
	v.Exited()
	at = s.wait(at, "EXITED: press q again to quit")
	select {
	case err := <-ended:
		t.Fatalf("the view ended by itself: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	unix.Write(master, []byte("q"))
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.wait(at, "\x1b[?1049l")
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("settings %+v, %v; before %+v", after, err, before)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(words, " "); got != "clear 7 quit" {
		t.Errorf("words %q", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.Contains(s.b.String(), "\x1b]0;") || strings.Contains(s.b.String(), "\x07") {
		t.Error("an escape sequence of the script reached the terminal")
	}
}

// Close gives the terminal back from another goroutine, as for a signal; a panic
// does too.
func TestTerminalRestored(t *testing.T) {
	for name, end := range map[string]func(v *View, cancel func()){
		"Close":         func(v *View, _ func()) { v.Close() },
		"context":       func(_ *View, cancel func()) { cancel() },
		"Close, unused": nil,
	} {
		t.Run(name, func(t *testing.T) {
			master, slave := pty(t, 80, 24)
			before, _ := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			v, err := New(Config{In: slave, Out: slave, Interval: time.Second,
				Status: func() ([]byte, error) { return nil, errors.New("gone") }, Control: func(string) error { return nil }})
			if err != nil {
				t.Fatal(err)
			}
			if end == nil {
				if err := v.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			s := watch(t, master)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- v.Run(ctx) }()
			at := s.wait(0, "gone")
			end(v, cancel)
			if err := <-ended; err != nil {
				t.Error(err)
			}
			s.wait(at, leave)
			if after, _ := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS); *after != *before {
				t.Error("the settings have changed")
			}
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("panic", func(t *testing.T) {
		master, slave := pty(t, 80, 24)
		s := watch(t, master)
		v, err := New(Config{In: slave, Out: slave, Status: func() ([]byte, error) { return []byte(status48), nil }, Control: func(string) error { panic("for the test") }})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan any, 1)
		go func() {
			defer func() { ended <- recover() }()
			v.Run(context.Background())
		}()
		at := s.wait(0, "stap_1")
		unix.Write(master, []byte("c"))
		if r := <-ended; r != "for the test" {
			t.Errorf("recovered %v", r)
		}
		s.wait(at, leave)
	})
}

func TestNoTerminal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := New(Config{In: f, Out: f}); !errors.Is(err, ErrNoTerminal) {
		t.Errorf("got %v, want ErrNoTerminal", err)
	}
}
