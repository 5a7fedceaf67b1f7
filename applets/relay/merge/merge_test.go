package merge

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stapbox/core/invocation"
)

func rec(generation int, seq uint32, text string) string {
	var b []byte
	if generation == 5 {
		b = magic()
	}
	b = binary.NativeEndian.AppendUint32(b, seq)
	return string(binary.NativeEndian.AppendUint32(b, uint32(len(text)))) + text
}

// merged runs stap-merge on files f0, f1, ... with these contents.
func merged(t testing.TB, dir string, args []string, contents ...string) (status int, stdout, stderr string) {
	t.Helper()
	for i, c := range contents {
		name := fmt.Sprintf("f%d", i)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(c), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, name)
	}
	var out, errs bytes.Buffer
	status = Main(context.Background(), &invocation.Invocation{Name: "stap-merge", Args: args, Dir: dir, Stdout: &out, Stderr: &errs})
	return status, out.String(), errs.String()
}

// Upstream's 5.x read one past the array of files and crashed (loader-relay 10.3).
func TestDefect_10_3_08_EndOfTheFiles(t *testing.T) {
	for n := range 4 {
		var list []string
		for i := range n + 1 {
			list = append(list, rec(5, uint32(i+1), "x"))
		}
		status, stdout, stderr := merged(t, t.TempDir(), nil, list...)
		if status != 0 || stdout != strings.Repeat("x", n+1) || stderr != "" {
			t.Errorf("%d files: status %d, %q, %q", n+1, status, stdout, stderr)
		}
	}
}

func TestMerge(t *testing.T) {
	for _, g := range []int{4, 5} {
		r := func(seq uint32, text string) string { return rec(g, seq, text) }
		for _, tt := range []struct {
			name   string
			args   []string
			files  []string
			status int
			stdout string
			stderr string
			only   int
		}{
			{name: "two CPUs", files: []string{r(1, "one\n") + r(4, "four\n"), r(2, "two\n") + r(3, "three\n")}, stdout: "one\ntwo\nthree\nfour\n"},
			{name: "drops", files: []string{r(1, "a") + r(4, "b"), r(2, "c") + r(7, "d")}, stdout: "acbd", stderr: "got 4. expected 3\ngot 7. expected 5\nsequence had 3 drops\n"},
			{name: "verbose", args: []string{"-v"}, files: []string{r(1, "one\n"), r(2, "two\n")}, stdout: "[CPU:0, seq=1, length=4]\none\n[CPU:1, seq=2, length=4]\ntwo\n"},
			{name: "after attaching", files: []string{r(700, "a"), r(701, "b")}, stdout: "ab"},
			{name: "wrap", files: []string{r(0xfffffffe, "a") + r(0, "c"), r(0xffffffff, "b") + r(1, "d")}, stdout: "abcd"},
			{name: "one file", files: []string{r(1, "a") + r(2, "b")}, stdout: "ab"},
			{name: "an empty file among them", files: []string{"", r(1, "a"), ""}, stdout: "a"},
			{name: "all empty", files: []string{"", ""}},
			{name: "the longest record", files: []string{r(1, strings.Repeat("x", 131072))}, stdout: strings.Repeat("x", 131072)},
			{name: "cut body", files: []string{r(1, "a"), r(2, "bcdef")[:len(r(2, ""))+2]}, status: 1, stdout: "abc", stderr: "f1: the file ends in the record at 0: 3 bytes are missing\n"},
			{name: "cut header", files: []string{r(1, "a") + r(2, "b")[:6], r(3, "c")}, status: 1, stdout: "ac", stderr: "f0: the file ends in the header of the record at "},
			{name: "no records", files: []string{r(1, "a"), "this is text\n"}, status: 1, stderr: "f1: the file does not start with a record"},
			{name: "less than a header", files: []string{"abc"}, status: 1, stderr: "f0: the file does not start with a record"},
			{name: "both generations", files: []string{r(1, "a"), rec(9-g, 2, "b")}, status: 1, stderr: fmt.Sprintf("f0 has records of SystemTap %d.x, f1 of %d.x", g, 9-g)},
			{name: "length 0", only: 5, files: []string{r(1, "a") + r(2, "") + r(3, "c")}, status: 1, stdout: "ac", stderr: "f0: the record at 13 has a length of 0 and is left out\n"},
			{name: "length 0", only: 4, files: []string{r(1, "a") + r(2, "") + r(3, "c")}, status: 1, stdout: "a", stderr: "f0: the record at 9 has a length of 0: the rest of the file is left out\n"},
			{name: "garbage", only: 5, files: []string{r(1, "a") + "garbage" + r(2, "b")}, status: 1, stdout: "ab", stderr: "f0: 7 bytes at 13 belong to no record\n"},
			{name: "padding", only: 5, files: []string{r(1, "a") + "\x00\x00\x00" + r(2, "b")}, stdout: "ab"},
			{name: "no option", args: []string{"-x"}, status: 1, stderr: "stap-merge: invalid option -- 'x'\n" + usage},
			{name: "no file", status: 1, stderr: "stap-merge: no input files\n" + usage},
			{name: "missing file", args: []string{"none"}, status: 1, stderr: "error opening file none: no such file or directory"},
			{name: "directory", args: []string{"."}, status: 1, stderr: ". is a directory"},
			{name: "the same file twice", args: []string{"./f0"}, files: []string{r(1, "a")}, status: 1, stderr: "./f0 and f0 are the same file"},
			{name: "empty output name", args: []string{"-o", ""}, files: []string{r(1, "a")}, status: 1, stderr: "option '-o' has an empty name"},
		} {
			if tt.only != 0 && tt.only != g {
				continue
			}
			t.Run(fmt.Sprintf("%d.x %s", g, tt.name), func(t *testing.T) {
				status, stdout, stderr := merged(t, t.TempDir(), tt.args, tt.files...)
				if status != tt.status || stdout != tt.stdout || !strings.Contains(stderr, tt.stderr) || tt.stderr == "" && stderr != "" {
					t.Errorf("got %d, %.200q, %q; want %d, %.200q, %q", status, stdout, stderr, tt.status, tt.stdout, tt.stderr)
				}
			})
		}
	}
}

func TestOutputFile(t *testing.T) {
	dir := t.TempDir()
	status, stdout, stderr := merged(t, dir, []string{"-v", "-o", "out"}, rec(5, 1, "one\n"), rec(5, 3, "three\n"))
	if want := "[CPU:0, seq=1, length=4]\n[CPU:1, seq=3, length=6]\nsequence had 1 drops\n"; status != 0 || stdout != want {
		t.Errorf("got %d, %q, %q", status, stdout, stderr)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "out")); string(b) != "one\nthree\n" || err != nil {
		t.Errorf("output %q, %v", b, err)
	}
	// An input is never written over, by whatever name it is called.
	if err := os.Link(filepath.Join(dir, "f0"), filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f0", "other"} {
		status, _, stderr = merged(t, dir, []string{"-o", name}, rec(5, 1, "one\n"), rec(5, 3, "three\n"))
		if b, err := os.ReadFile(filepath.Join(dir, "f0")); status != 1 || !strings.Contains(stderr, "the output "+name+" is the input f0") || string(b) != rec(5, 1, "one\n") {
			t.Errorf("-o %s: status %d, %q; the input is %q, %v", name, status, stderr, b, err)
		}
	}
	if status, _, stderr := merged(t, dir, []string{"-o", "no/out"}, rec(5, 1, "a")); status != 1 || !strings.Contains(stderr, "error opening output file no/out: no such file or directory") {
		t.Errorf("got %d, %q", status, stderr)
	}
	if status, _, stderr := merged(t, dir, []string{"-o", "/dev/full"}, rec(5, 1, "a")); status != 1 || !strings.Contains(stderr, "no space left on device") {
		t.Errorf("full disk: got %d, %q", status, stderr)
	}
}

func TestManyFiles(t *testing.T) {
	const files, each = 200, 50
	contents := make([]strings.Builder, files)
	var want strings.Builder
	for i := range files * each {
		line := fmt.Sprintf("%d\n", i)
		contents[i*7%files].WriteString(rec(5, uint32(i+1), line))
		want.WriteString(line)
	}
	var all []string
	for i := range contents {
		all = append(all, contents[i].String())
	}
	if status, stdout, stderr := merged(t, t.TempDir(), nil, all...); status != 0 || stdout != want.String() || stderr != "" {
		t.Errorf("got %d, %d bytes, %q; want %d bytes", status, len(stdout), stderr, want.Len())
	}
}

func FuzzSource(f *testing.F) {
	f.Add([]byte(rec(5, 1, "one\n") + "x" + rec(5, 2, "two")))
	f.Add([]byte(rec(4, 1, "one\n") + rec(4, 0xffffffff, "two")))
	f.Add([]byte(rec(5, 1, "") + rec(5, 2, "")))
	f.Add([]byte("\xf0\x9f\xa9"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSource(bytes.NewReader(b), "f", 0)
		if s.detect() != nil {
			return
		}
		total := 0
		for {
			err := s.next()
			if err != nil {
				if err == io.EOF && !s.damaged && s.generation == 4 && s.offset != int64(len(b)) {
					t.Errorf("%d of %d bytes were read without complaint", s.offset, len(b))
				}
				return
			}
			if len(s.payload) == 0 {
				t.Fatal("an empty record")
			}
			if total += len(s.payload); total > len(b) {
				t.Fatalf("%d bytes of %d", total, len(b))
			}
		}
	})
}
