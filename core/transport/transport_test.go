package transport

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEncode holds the examples of loader-relay section 14 (little-endian).
func TestEncode(t *testing.T) {
	zeroes := func(n int) string { return strings.Repeat("00", n) }
	reloc, err := RelocationMessage("kernel", "_stext", 0xffffffff81000000)
	if err != nil {
		t.Fatal(err)
	}
	pad := func(s string, n int) string { return hex.EncodeToString([]byte(s)) + zeroes(n-len(s)) }
	for _, tt := range []struct {
		name       string
		m          Message
		gen4, gen5 string
	}{
		{"READY", Message{Type: Ready}, "08000000", "58000000"},
		{"BULK", BulkMessage(), "07000000" + zeroes(128), "57000000" + zeroes(128)},
		{"START pid 1234", StartMessage(1234), "00000000 d2040000 00000000", "50000000 d2040000 00000000"},
		{"EXIT", Message{Type: Exit}, "01000000", "51000000"},
		{"PRIV root", CredentialsMessage(0xe), "0f000000 0e000000", "5f000000 0e000000"},
		{"RELOCATION", reloc, "09000000" + pad("kernel", 128) + pad("_stext", 128) + "00000081ffffffff", "59000000" + pad("kernel", 128) + pad("_stext", 128) + "00000081ffffffff"},
		{"TZINFO UTC+1 CET", TZInfoMessage(-3600, "CET"), "0e000000 f0f1ffffffffffff" + pad("CET", 64), "5e000000 f0f1ffffffffffff" + pad("CET", 64)},
		{"REMOTE_ID 0:unix", RemoteIDMessage(0, "unix"), "10000000 00000000" + pad("unix", 128), "60000000 00000000" + pad("unix", 128)},
		{"NAMESPACES_PID 1", NamespacesMessage(1), "12000000 01000000", "62000000 01000000"},
		{"MNT_NS_FDS 8,9", MountNamespacesMessage(8, 9), "13000000 08000000 09000000", "63000000 08000000 09000000"},
		{"NAMESPACES_PID 1", Message{NamespacesPID, []byte{1, 0, 0, 0}}, "12000000 01000000", "62000000 01000000"},
	} {
		for g, want := range map[Generation]string{Gen4: tt.gen4, Gen5: tt.gen5} {
			if got := g.Encode(tt.m); !bytes.Equal(got, unhex(t, want)) {
				t.Errorf("%s, generation %d: got %x, want %s", tt.name, g, got, want)
			}
			back, err := g.Decode(g.Encode(tt.m))
			if err != nil || back.Type != tt.m.Type || !bytes.Equal(back.Payload, tt.m.Payload) {
				t.Errorf("%s, generation %d: reads back as %v, %v", tt.name, g, back, err)
			}
		}
	}
	reply, err := Gen5.Decode(unhex(t, "50000000 00000000 eaffffff"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := StartResult(reply); r != -22 || err != nil {
		t.Errorf("START reply -EINVAL: got %d, %v", r, err)
	}
	if _, err := StartResult(Message{Start, make([]byte, 7)}); err == nil {
		t.Error("a short reply to START was accepted")
	}
	if _, err := RelocationMessage("kernel", strings.Repeat("x", 128), 0); err == nil {
		t.Error("a relocation of 128 bytes was accepted")
	}
	if m := TZInfoMessage(0, strings.Repeat("z", 100)); len(m.Payload) != 72 || m.Payload[71] != 0 {
		t.Error("a long time zone name is not cut with a NUL at its end")
	}
	if _, err := Gen5.Decode([]byte{1, 2, 3}); !errors.Is(err, ErrShort) {
		t.Errorf("three bytes: got %v, want ErrShort", err)
	}
}

func record(g Generation, seq uint32, text string) []byte {
	var b []byte
	if g == Gen5 {
		b = append(b, 0xf0, 0x9f, 0xa9, 0xba)
	}
	for _, v := range []uint32{seq, uint32(len(text))} {
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
	}
	return append(b, text...)
}

func split(g Generation, chunks ...[]byte) (string, uint64) {
	s := &Splitter{Generation: g}
	var out []string
	for _, c := range chunks {
		s.Write(c)
		for {
			r, ok := s.Next()
			if !ok {
				break
			}
			out = append(out, fmt.Sprintf("%d:%s", r.Sequence, r.Payload))
		}
	}
	if r, ok := s.Rest(); ok {
		out = append(out, fmt.Sprintf("%d:%s", r.Sequence, r.Payload))
	}
	return strings.Join(out, " "), s.LostBytes
}

func TestSplitter(t *testing.T) {
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	zeroes := make([]byte, 9)
	for _, tt := range []struct {
		name string
		gen  Generation
		data []byte
		want string
		lost uint64
	}{
		{"the spec's record", Gen5, []byte{0xf0, 0x9f, 0xa9, 0xba, 1, 0, 0, 0, 4, 0, 0, 0, 'o', 'n', 'e', '\n'}, "1:one\n", 0},
		{"4.x record", Gen4, []byte{1, 0, 0, 0, 4, 0, 0, 0, 'o', 'n', 'e', '\n'}, "1:one\n", 0},
		{"two", Gen5, cat(record(Gen5, 1, "a"), record(Gen5, 2, "b")), "1:a 2:b", 0},
		{"zero padding between", Gen5, cat(record(Gen5, 1, "a"), zeroes, record(Gen5, 2, "b")), "1:a 2:b", 0},
		{"garbage before a header", Gen5, cat([]byte("xyz"), record(Gen5, 1, "a")), "1:a", 3},
		{"length 0", Gen5, cat(record(Gen5, 1, ""), record(Gen5, 2, "b")), "2:b", 5},
		{"length 131073", Gen5, cat([]byte{0xf0, 0x9f, 0xa9, 0xba, 1, 0, 0, 0, 1, 0, 2, 0}, record(Gen5, 2, "b")), "2:b", 7},
		{"cut body", Gen5, record(Gen5, 7, "abcdef")[:15], "7:abc", 3},
		{"cut header", Gen5, record(Gen5, 7, "abcdef")[:9], "", 6},
		{"4.x garbage", Gen4, cat(record(Gen4, 0x01020304, "a"), []byte{0xff, 0xff, 0xff}, record(Gen4, 0x01020305, "b")), "16909060:a 16909061:b", 3},
	} {
		got, lost := split(tt.gen, tt.data)
		if got != tt.want || lost != tt.lost {
			t.Errorf("%s: got %q, %d lost; want %q, %d", tt.name, got, lost, tt.want, tt.lost)
		}
		// Split anywhere, the result is the same.
		for i := range tt.data {
			if g, l := split(tt.gen, tt.data[:i], tt.data[i:]); g != got || l != lost {
				t.Errorf("%s, split at %d: got %q, %d lost; want %q, %d", tt.name, i, g, l, got, lost)
			}
		}
	}
}

// Loader-relay 15, 6: bytes that look like a header of 4.x are not taken for
// one unless their sequence number fits and another header follows.
func TestSplitterFindsItsPlaceIn4x(t *testing.T) {
	fake := record(Gen4, 1<<30, "")
	fake[4] = 2
	var data []byte
	for seq := uint32(1); seq <= 5; seq++ {
		data = append(data, record(Gen4, seq, "text")...)
		if seq == 3 {
			data = append(data, fake...)                        // far away
			data = append(data, record(Gen4, 100, "ab")[:9]...) // near, but nothing follows
		}
	}
	if got, lost := split(Gen4, data); got != "1:text 2:text 3:text 4:text 5:text" || lost != 5 {
		t.Errorf("got %q, %d lost", got, lost)
	}
	// The numbers of other CPUs count too.
	shared := new(Newest)
	a, b := &Splitter{Generation: Gen4, Newest: shared}, &Splitter{Generation: Gen4, Newest: shared}
	a.Write(record(Gen4, 0xffffffff, "a"))
	a.Next()
	b.Write(record(Gen4, 0x10203040, "x"))
	if r, ok := b.Next(); ok {
		t.Errorf("took %d for a record beside one of number 2^32-1", r.Sequence)
	}
	b = &Splitter{Generation: Gen4, Newest: shared}
	b.Write(record(Gen4, 1, "b")) // the counter has wrapped
	if r, ok := b.Next(); !ok || r.Sequence != 1 {
		t.Errorf("after the wrap: got %v, %v", r, ok)
	}
}

// When no more data came while upstream looked for the magic, what was shifted
// so far was taken for a header.
func TestDefect_10_3_10_NoHeaderFromHalfASearch(t *testing.T) {
	head := record(Gen5, 7, "x")[:12]
	for cut := 1; cut < len(head); cut++ {
		if got, lost := split(Gen5, append([]byte("garbage"), head[:cut]...)); got != "" || lost < 7 {
			t.Errorf("%d bytes of a header: got %q, %d lost", cut, got, lost)
		}
	}
}

func TestMissing(t *testing.T) {
	for _, g := range []Generation{Gen4, Gen5} {
		data := record(g, 7, "abcdef")
		head := len(data) - 6
		for i := range len(data) + 1 {
			s := &Splitter{Generation: g}
			s.Write(data[:i])
			s.Next()
			want := head - i
			if i == 0 || i == len(data) {
				want = 0
			} else if i >= head {
				want = len(data) - i
			}
			if got := s.Missing(); got != want {
				t.Errorf("generation %d, %d bytes read: %d missing, want %d", g, i, got, want)
			}
		}
	}
}

func TestAppendHeader(t *testing.T) {
	for _, g := range []Generation{Gen4, Gen5} {
		r := Record{7, []byte("abc")}
		if got := append(r.AppendHeader(nil, g), r.Payload...); !bytes.Equal(got, record(g, 7, "abc")) {
			t.Errorf("generation %d: got %x", g, got)
		}
	}
}

func drain(m *Merger, now time.Time) (out []uint32, wait time.Duration) {
	for {
		r, ok, w := m.Next(now)
		if !ok {
			return out, w
		}
		out = append(out, r.Sequence)
	}
}

func TestMergerOrdersAcrossCPUs(t *testing.T) {
	m := NewMerger(2, true)
	now := time.Now()
	for _, s := range []uint32{2, 4, 5} {
		m.Put(0, Record{Sequence: s})
	}
	if out, wait := drain(m, now); len(out) != 0 || wait != GapWait {
		t.Errorf("before 1 came: got %v, wait %v", out, wait)
	}
	m.Put(1, Record{Sequence: 1})
	m.Put(1, Record{Sequence: 3})
	if out, wait := drain(m, now); fmt.Sprint(out) != "[1 2 3 4 5]" || wait != 0 {
		t.Errorf("got %v, wait %v", out, wait)
	}
	if m.LostRecords+m.Unexpected != 0 {
		t.Errorf("counted %d lost, %d unexpected", m.LostRecords, m.Unexpected)
	}
}

func TestMergerGivesUpGaps(t *testing.T) {
	now := time.Now()
	m := NewMerger(2, true)
	m.Put(0, Record{Sequence: 3})
	drain(m, now)
	if out, wait := drain(m, now.Add(GapWait-time.Millisecond)); len(out) != 0 || wait != time.Millisecond {
		t.Errorf("just before the time: got %v, wait %v", out, wait)
	}
	// CPU 1 may have it: its reader did not get to look.
	if out, wait := drain(m, now.Add(GapWait)); len(out) != 0 || wait == 0 {
		t.Errorf("with CPU 1 not read: got %v, wait %v", out, wait)
	}
	m.Idle(1)
	if out, _ := drain(m, now.Add(GapWait)); fmt.Sprint(out) != "[3]" || m.LostRecords != 2 {
		t.Errorf("after the time: got %v, %d lost", out, m.LostRecords)
	}
	m.Put(1, Record{Sequence: 2})
	if out, _ := drain(m, now); fmt.Sprint(out) != "[2]" || m.Unexpected != 1 || m.LostRecords != 2 {
		t.Errorf("latecomer: got %v, %d unexpected, %d lost", out, m.Unexpected, m.LostRecords)
	}
	// A CPU that is never read is not waited for forever.
	stuck := NewMerger(2, true)
	stuck.Put(0, Record{Sequence: 2})
	drain(stuck, now)
	if out, _ := drain(stuck, now.Add(longestWait)); fmt.Sprint(out) != "[2]" {
		t.Errorf("after the longest wait: got %v", out)
	}
	// No CPU can bring 4 any more: there is nothing to wait for.
	m.Put(0, Record{Sequence: 5})
	m.Put(1, Record{Sequence: 6})
	if r, ok, _ := m.Next(now); !ok || r.Sequence != 5 || m.LostRecords != 3 {
		t.Errorf("all CPUs later: got %v, %v, %d lost", r, ok, m.LostRecords)
	}
	m.End(0)
	m.End(1)
	m.Put(0, Record{Sequence: 9})
	if out, wait := drain(m, now); fmt.Sprint(out) != "[6 9]" || wait != 0 || m.LostRecords != 5 {
		t.Errorf("after the end: got %v, wait %v, %d lost", out, wait, m.LostRecords)
	}
}

func TestMergerWrapsAndAttaches(t *testing.T) {
	m := NewMerger(1, false)
	for _, s := range []uint32{0xfffffffe, 0xffffffff, 0, 1} {
		m.Put(0, Record{Sequence: s})
	}
	if out, _ := drain(m, time.Now()); len(out) != 4 || out[3] != 1 || m.LostRecords+m.Unexpected != 0 {
		t.Errorf("got %v, %d lost, %d unexpected", out, m.LostRecords, m.Unexpected)
	}
}

// After attaching, the first record is the lowest of what all CPUs have.
func TestMergerAttachesToAllCPUs(t *testing.T) {
	m := NewMerger(3, false)
	now := time.Now()
	m.Put(0, Record{Sequence: 57})
	m.Idle(2)
	if out, wait := drain(m, now); len(out) != 0 || wait == 0 {
		t.Errorf("before CPU 1 was read: got %v, wait %v", out, wait)
	}
	m.Put(1, Record{Sequence: 55})
	m.Put(1, Record{Sequence: 56})
	if out, _ := drain(m, now); fmt.Sprint(out) != "[55 56 57]" || m.LostRecords+m.Unexpected != 0 {
		t.Errorf("got %v, %d lost, %d unexpected", out, m.LostRecords, m.Unexpected)
	}
}

// A long stream uses the same memory again and again.
func TestStreamMakesNoGarbage(t *testing.T) {
	m := NewMerger(2, true)
	s := [2]*Splitter{{Generation: Gen5}, {Generation: Gen5}}
	now := time.Now()
	seq := uint32(0)
	text := strings.Repeat("x", 3000)
	round := func() {
		for i := range 100 {
			seq++
			s[i%2].Write(record(Gen5, seq, text))
			for r, ok := s[i%2].Next(); ok; r, ok = s[i%2].Next() {
				m.Put(i%2, r)
			}
		}
		for r, ok, _ := m.Next(now); ok; r, ok, _ = m.Next(now) {
			if string(r.Payload) != text {
				t.Fatalf("record %d is damaged", r.Sequence)
			}
		}
		m.Release()
	}
	round()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		round()
	}
	runtime.ReadMemStats(&after)
	// What record makes is the test's own.
	if own, all := uint64(50*100*3100*2), after.TotalAlloc-before.TotalAlloc; all > own {
		t.Errorf("%d bytes allocated for 15 MB, the test itself accounts for less than %d", all, own)
	}
	if m.LostRecords+m.Unexpected != 0 || seq != 5100 {
		t.Errorf("%d lost, %d unexpected of %d", m.LostRecords, m.Unexpected, seq)
	}
}

func TestMergerBoundsEachCPU(t *testing.T) {
	m := NewMerger(2, true)
	for !m.Full(0) {
		m.Put(0, Record{Sequence: 1, Payload: make([]byte, 1<<16)})
	}
	if m.Full(1) {
		t.Error("a flood on CPU 0 holds CPU 1 back")
	}
	drain(m, time.Now())
	if m.Full(0) {
		t.Error("the queue is empty and still full")
	}
}

func TestCheckName(t *testing.T) {
	for _, bad := range []string{"", ".", "..", "a/b", "../x", "a b", "a\nb", strings.Repeat("x", 57)} {
		if CheckName(bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	for _, good := range []string{"stap_1", "a'b", strings.Repeat("x", 55)} {
		if err := CheckName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x50, 0, 0, 0, 0, 0, 0, 0, 0xea, 0xff, 0xff, 0xff})
	f.Add([]byte{2, 0, 0, 0, 'E'})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, g := range []Generation{Gen4, Gen5} {
			m, err := g.Decode(b)
			if err != nil {
				continue
			}
			if back := g.Encode(m); !bytes.Equal(back, b) {
				t.Errorf("%x reads as %v, which writes as %x", b, m, back)
			}
			StartResult(m)
		}
	})
}

func FuzzSplitter(f *testing.F) {
	f.Add(append(record(Gen5, 1, "one\n"), record(Gen5, 2, "two\n")...), 5)
	f.Add(record(Gen4, 1, "one\n"), 3)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		at = min(max(at, 0), len(b))
		for _, g := range []Generation{Gen4, Gen5} {
			whole, lost := split(g, b)
			cut, lostCut := split(g, b[:at], b[at:])
			// Where 4.x lost its place, what is found depends on what is there.
			if (whole != cut || lost != lostCut) && (g == Gen5 || lost+lostCut == 0) {
				t.Errorf("generation %d: %q, %d lost, split at %d: %q, %d lost", g, whole, lost, at, cut, lostCut)
			}
			if lost > uint64(len(b))+MaxPayload {
				t.Errorf("generation %d: %d bytes lost of %d", g, lost, len(b))
			}
		}
	})
}
