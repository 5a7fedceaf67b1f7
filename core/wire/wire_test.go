package wire

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

type member struct {
	name string
	mode fs.FileMode
	data string
}

func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, m := range members {
		h := &zip.FileHeader{Name: m.name, Method: zip.Deflate}
		h.SetMode(m.mode)
		w, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var limits = RequestLimits(DefaultMaxUncompressed)

// The request of server-client 3.3.
func sample() *Request {
	return &Request{
		Version: "4.8", Release: "6.1.0-56-cloud-amd64", Arch: "x86_64",
		Args:   []string{"-p4", "-r6.1.0-56-cloud-amd64", "-eprobe begin { printf(\"hi\\n\") exit() }", ""},
		Locale: []string{"LANG=C.UTF-8"}, HasLocale: true,
		MOK:   []string{"missing"},
		Files: []File{{"script/home/u/a.stp", []byte("probe begin {}")}, {"script/-", nil}, {"tapset/t/x.stp", []byte("# x")}},
	}
}

func TestRequestRoundTrip(t *testing.T) {
	want := sample()
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRequest(data, limits)
	if err != nil {
		t.Fatal(err)
	}
	want.Files[1].Data = got.Files[1].Data // an empty file is nil or not
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// As Info-ZIP writes it: directories, nothing compressed, an unterminated last
// line in locale.
func TestDecodeRequestInfoZIP(t *testing.T) {
	data := archive(t,
		member{"argv1", 0o644, "-p4"}, member{"locale", 0o644, "LANG=C\nLC_ALL=x"},
		member{"script/", fs.ModeDir | 0o755, ""}, member{"script/tmp/", fs.ModeDir | 0o755, ""},
		member{"script/tmp/a.stp", 0o600, "x"}, member{"future", 0o644, "?"},
		member{"sysinfo", 0o644, "sysinfo: 6.1 x86_64 more"}, member{"version", 0o644, "4.8\n"})
	got, err := DecodeRequest(data, limits)
	if err != nil {
		t.Fatal(err)
	}
	want := &Request{Version: "4.8", Release: "6.1", Arch: "x86_64", Args: []string{"-p4"}, Locale: []string{"LANG=C"},
		HasLocale: true, Files: []File{{"script/tmp/a.stp", []byte("x")}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	sysinfo := member{"sysinfo", 0o644, "sysinfo: 6.1 x86_64"}
	many := make([]member, maxRequestMembers+1)
	for i := range many {
		many[i] = member{fmt.Sprintf("script/%d", i), 0o644, "x"}
	}
	lying := archive(t, member{"argv1", 0o644, strings.Repeat("A", 60000)})
	// Both places that tell the inflated size, made small.
	for _, sig := range []string{"PK\x01\x02", "PK\x07\x08"} {
		i := bytes.Index(lying, []byte(sig))
		off := map[string]int{"PK\x01\x02": 24, "PK\x07\x08": 12}[sig]
		binary.LittleEndian.PutUint32(lying[i+off:], 10)
	}
	encrypted := archive(t, sysinfo)
	i := bytes.Index(encrypted, []byte("PK\x01\x02"))
	encrypted[i+8] |= 1
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"junk", []byte("hello, this is not an archive"), "not a valid zip"},
		{"nothing", nil, "not a valid zip"},
		{"no members", archive(t), "is not within the expected range of 1 to 200000 bytes"},
		{"too large", archive(t, member{"argv1", 0o644, strings.Repeat("A", 200001)}), "Uncompressed request size of 200001 bytes"},
		{"too large in sum", archive(t, member{"argv1", 0o644, strings.Repeat("A", 120000)}, member{"argv2", 0o644, strings.Repeat("A", 120000)}), "Uncompressed request size of 240000 bytes"},
		{"zip bomb with a lying directory", lying, ""},
		{"too many members", archive(t, many...), "more than 2048 members"},
		{"parent directory", archive(t, sysinfo, member{"script/../../etc/passwd", 0o644, "x"}), `".."`},
		{"only dots", archive(t, member{"..", 0o644, "x"}), `".."`},
		{"absolute", archive(t, member{"/etc/passwd", 0o644, "x"}), "absolute"},
		{"backslash", archive(t, member{`script\..\x`, 0o644, "x"}), "backslash"},
		{"line end in a name", archive(t, member{"script/a\nb", 0o644, "x"}), "line end"},
		{"empty part", archive(t, member{"script//x", 0o644, "x"}), `part ""`},
		{"long part", archive(t, member{"script/" + strings.Repeat("x", 256), 0o644, "x"}), "255 bytes"},
		{"deep", archive(t, member{"script" + strings.Repeat("/x", 64), 0o644, "x"}), "64 parts"},
		{"symbolic link", archive(t, sysinfo, member{"locale", fs.ModeSymlink | 0o777, "/etc/shadow"}), "a symbolic link"},
		{"device", archive(t, member{"argv1", fs.ModeDevice | fs.ModeCharDevice | 0o666, "x"}), "a device"},
		{"named pipe", archive(t, member{"argv1", fs.ModeNamedPipe | 0o666, "x"}), "a named pipe"},
		{"duplicate", archive(t, member{"argv1", 0o644, "x"}, member{"argv1", 0o644, "y"}), "occurs twice"},
		{"file and directory", archive(t, member{"script/a", 0o644, "x"}, member{"script/a/b", 0o644, "y"}), "is a file"},
		{"directory and file", archive(t, member{"script/a/b", 0o644, "x"}, member{"script/a", 0o644, "y"}), "occurs twice"},
		{"encrypted", encrypted, "encrypted"},
		{"no sysinfo", archive(t, member{"argv1", 0o644, "-p4"}), "Unable to read sysinfo"},
		{"short sysinfo", archive(t, member{"sysinfo", 0o644, "sysinfo:"}), "Unable to read sysinfo"},
		{"gap in the arguments", archive(t, sysinfo, member{"argv1", 0o644, "a"}, member{"argv3", 0o644, "b"}), "no argv2"},
		{"argument zero", archive(t, sysinfo, member{"argv0", 0o644, "a"}), "not an argument number"},
		{"argument with a sign", archive(t, sysinfo, member{"argv+1", 0o644, "a"}), "not an argument number"},
		{"NUL in an argument", archive(t, sysinfo, member{"argv1", 0o644, "a\x00b"}), "NUL"},
		{"version abc", archive(t, sysinfo, member{"version", 0o644, "abc"}), `"abc"`},
		{"version -1", archive(t, sysinfo, member{"version", 0o644, "4.-1"}), `"4.-1"`},
		{"unknown tree", archive(t, sysinfo, member{"etc/passwd", 0o644, "x"}), "unknown tree"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeRequest(tt.data, limits)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestEncodeRefuses(t *testing.T) {
	r := sample()
	r.Args = []string{"a\x00"}
	if _, err := r.Encode(); err == nil || !strings.Contains(err.Error(), "NUL") {
		t.Errorf("NUL: got %v", err)
	}
	for name, want := range map[string]string{"etc/x": "neither", "script/../x": `".."`, "script/home/u/a.stp": "twice"} {
		r := sample()
		r.Files = append(r.Files, File{Name: name})
		if _, err := r.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

func TestResponse(t *testing.T) {
	want := &Response{Version: "5.6", RC: 1, HasRC: true, Stdout: []byte("out"), HasStdout: true, Stderr: []byte("err"), HasStderr: true,
		Files: []File{{"stap_1.ko", bytes.Repeat([]byte("ko"), 100)}, {"stap_1.ko.sgn", []byte("sig")}, {"uprobes/uprobes.ko", []byte("u")}}}
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeResponse(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	modules, sigs := got.Modules()
	if len(modules) != 1 || modules[0].Name != "stap_1.ko" || string(sigs[0].Data) != "sig" {
		t.Errorf("modules: got %v, %v", modules, sigs)
	}
}

func TestDecodeResponseRefuses(t *testing.T) {
	version := member{"version", 0o644, "4.8"}
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "no answer"},
		{"junk", []byte("junk"), "not a valid zip"},
		{"two build directories", archive(t, version, member{"stap000000/a.ko", 0o644, "x"}, member{"stap000001/b.ko", 0o644, "x"}), "Incorrect number of files"},
		{"status", archive(t, member{"rc", 0o644, "many"}), "not a number"},
		{"negative status", archive(t, member{"rc", 0o644, "-1"}), "not a number"},
		{"version", archive(t, member{"version", 0o644, "x.y"}), "dotted decimal"},
		{"link", archive(t, member{"stap000000/a.ko", fs.ModeSymlink | 0o777, "/etc/passwd"}), "a symbolic link"},
		{"parent", archive(t, member{"stap000000/../../a.ko", 0o644, "x"}), `".."`},
		{"bomb", archive(t, member{"stdout", 0o644, strings.Repeat("\x00", 8<<20)}), "200 times"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := DecodeResponse(tt.data); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	// What upstream sends when it refuses early, and a real status with a line end.
	if r, err := DecodeResponse(archive(t, version)); err != nil || r.HasRC || r.HasStderr {
		t.Errorf("only a version: got %+v, %v", r, err)
	}
	if r, err := DecodeResponse(archive(t, member{"rc", 0o644, "0\n"})); err != nil || !r.HasRC || r.Version != "1.0" {
		t.Errorf("status with line end: got %+v, %v", r, err)
	}
}

func TestReadFrame(t *testing.T) {
	for _, tt := range []struct {
		in, want string
	}{
		{"", "Error reading size of request file"},
		{"\x00\x00", "Error reading size of request file"},
		{"\xff\xff\xff\xfb", "Invalid request size: negative value"},
		{"\x7f\xff\xff\xff", "Error size of (compressed) request file is too large"},
		{"\x00\x00\x00\x0b", "Error size of (compressed) request file is too large"},
		{"\x00\x00\x00\x05abc", "Expected 5 bytes, got 3 while reading client request from socket"},
	} {
		_, err := ReadFrame(strings.NewReader(tt.in), 10)
		var frame *FrameError
		if !errors.As(err, &frame) || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.in, err, tt.want)
		}
	}
	if _, err := ReadFrame(strings.NewReader("\x00\x00\x00\x00"), 10); !errors.Is(err, ErrTrustContact) {
		t.Errorf("length 0: got %v", err)
	}
	if data, err := ReadFrame(strings.NewReader("\x00\x00\x00\x03abcdef"), 10); err != nil || string(data) != "abc" {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestCompareVersions(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"4.8", "4.10", -1}, {"5.0", "4.10", 1}, {"5.6", "5.6", 0}, {"5.6", "5.6.1", -1}, {"abc", "1.0", -1}, {"5.6.1", "5.6", 1}} {
		if got := CompareVersions(tt.a, tt.b); got != tt.want {
			t.Errorf("%s, %s: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) {
	data, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(archive(f, member{"script/a/", fs.ModeDir | 0o755, ""}, member{"sysinfo", 0o644, "sysinfo: a b"}))
	f.Add(archive(f, member{"locale", fs.ModeSymlink | 0o777, "/etc/shadow"}))
	f.Add(archive(f, member{"script/../x", 0o644, "x"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRequest(data, limits)
		if err != nil {
			return
		}
		var size int
		for _, f := range r.Files {
			size += len(f.Data)
			if checkName(f.Name) != nil {
				t.Errorf("name %q came through", f.Name)
			}
		}
		if size > DefaultMaxUncompressed {
			t.Errorf("%d bytes came through", size)
		}
	})
}

// A bomb costs memory in proportion to its own size, not to what a response may
// hold.
func TestRatio(t *testing.T) {
	bomb := archive(t, member{"rc", 0o644, "0"}, member{"stap000000/a.ko", 0o644, strings.Repeat("\x00", 64<<20)})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := DecodeResponse(bomb)
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "more than 200 times") {
		t.Errorf("got %v", err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 80<<20 {
		t.Errorf("%d bytes were allocated for an archive of %d", n, len(bomb))
	}
	// What is within the ratio passes, also in several members.
	fair := archive(t, member{"stdout", 0o644, strings.Repeat("\x00", ratioFrom-1)}, member{"rc", 0o644, "0"})
	if _, err := DecodeResponse(fair); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeResponse(f *testing.F) {
	data, err := (&Response{Version: "5.6", Stdout: []byte("x"), Files: []File{{"a.ko", []byte("x")}}}).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(archive(f, member{"rc", 0o644, "0\n"}, member{"stap000000/a.ko", 0o644, "x"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeResponse(data)
		if err == nil {
			r.Modules()
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03abc"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := ReadFrame(bytes.NewReader(data), 100)
		if err == nil && (len(body) == 0 || len(body) > 100) {
			t.Errorf("got %d bytes", len(body))
		}
	})
}

// Who announces a lot and sends nothing costs nothing, however much a server
// accepts.
func TestReadFrameRoom(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 20 {
		_, err := ReadFrame(bytes.NewReader([]byte{0x40, 0, 0, 0, 'P', 'K'}), 1<<31)
		if want := "Expected 1073741824 bytes, got 2 while reading client request from socket"; err == nil || err.Error() != want {
			t.Fatalf("got %v, want %q", err, want)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 10<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}
