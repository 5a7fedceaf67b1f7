package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func at(year int) func() time.Time {
	return func() time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
}

func TestStrftime(t *testing.T) {
	at := time.Date(2026, time.March, 5, 14, 7, 9, 0, time.UTC)
	for format, want := range map[string]string{
		"plain": "plain", "%Y-%m-%d": "2026-03-05", "%F_%T": "2026-03-05_14:07:09", "%%": "%", "%e|%k|%l": " 5|14| 2",
		"%j": "064", "%s": "1772719629", "%a %b": "Thu Mar", "%U %W %V %u %w": "09 09 10 4 4", "%C%y %G": "2026 2026", "%I %p": "02 PM",
	} {
		if got, err := strftime(format, at); got != want || err != nil {
			t.Errorf("%q: got %q, %v; want %q", format, got, err, want)
		}
	}
	for _, bad := range []string{"%", "x%", "%Q"} {
		if got, err := strftime(bad, at); err == nil {
			t.Errorf("%q: got %q, want an error", bad, got)
		}
	}
}

// files reads a directory as "name=content" words.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s=%s", e.Name(), b))
	}
	return strings.Join(list, " ")
}

func TestOutputNames(t *testing.T) {
	for _, tt := range []struct {
		name  string
		dest  destination
		cpus  []int
		turns int
		want  string
	}{
		{"stream", destination{template: "out-%Y"}, []int{allCPUs}, 0, "out-2026=ab"},
		{"stream, turned twice", destination{template: "out"}, []int{allCPUs}, 2, "out=a out.1= out.2=b"},
		{"stream, -S", destination{template: "out", rotate: true}, []int{allCPUs}, 1, "out.0=a out.1=b"},
		{"stream, -S 0,2", destination{template: "out", rotate: true, keep: 2}, []int{allCPUs}, 3, "out.2= out.3=b"},
		{"stream, -S 1 byte", destination{template: "out", rotate: true, limit: 1}, []int{allCPUs}, 0, "out.0=a out.1=b"},
		{"stream, -S 1 byte, 1 file", destination{template: "out", rotate: true, limit: 1, keep: 1}, []int{allCPUs}, 0, "out.1=b"},
		{"stream, -S 2 bytes", destination{template: "out", rotate: true, limit: 2}, []int{allCPUs}, 0, "out.0=ab"},
		{"bulk", destination{template: "out"}, []int{0, 3}, 0, "out_0=ab out_3=ab"},
		{"bulk, turned", destination{template: "out"}, []int{0, 3}, 1, "out_0=a out_3=a out_cpu0.1=b out_cpu3.1=b"},
		{"bulk, -S", destination{template: "out", rotate: true}, []int{1}, 1, "out_cpu1.0=a out_cpu1.1=b"},
		{"bulk without -o", destination{}, []int{0, 1}, 0, "stpd_cpu0=ab stpd_cpu1=ab"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.dest.dir, tt.dest.now = t.TempDir(), at(2026)
			o, err := openOutput(tt.dest, tt.cpus)
			if err != nil {
				t.Fatal(err)
			}
			each := func(f func(*stream)) {
				for _, cpu := range tt.cpus {
					f(o.of(cpu))
				}
			}
			each(func(s *stream) { s.add(nil, []byte("a")) })
			for range tt.turns {
				o.turn()
				each((*stream).flush)
			}
			each(func(s *stream) { s.add(nil, []byte("b")) })
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			if got := files(t, tt.dest.dir); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// The names of files to be removed are made with the time they were opened.
func TestOutputForgetsWithTheTimeOfOpening(t *testing.T) {
	dir := t.TempDir()
	year := 2026
	d := destination{template: "%Y", dir: dir, rotate: true, keep: 1, now: func() time.Time { return at(year)() }}
	o, err := openOutput(d, []int{allCPUs})
	if err != nil {
		t.Fatal(err)
	}
	for year = 2027; year < 2030; year++ {
		o.turn()
		o.of(allCPUs).flush()
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); got != "2029.3=" {
		t.Errorf("got %s", got)
	}
}

// Loader-relay 10.2, 6: upstream removes /dev/null at a switch of files.
func TestOutputNeverRemovesDevNull(t *testing.T) {
	o, err := openOutput(destination{template: devNull, rotate: true, limit: 1, keep: 1, now: time.Now}, []int{allCPUs})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		o.of(allCPUs).add(nil, []byte("xx"))
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(devNull); err != nil || st.Mode().IsRegular() {
		t.Fatalf("%s is %v, %v", devNull, st, err)
	}
}

func TestOutputRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []destination{
		{template: "none/out", dir: dir},
		{template: "out"},
		{template: "%", dir: dir},
		{template: strings.Repeat("a/", 2100), dir: dir},
	} {
		d.now = time.Now
		if _, err := openOutput(d, []int{allCPUs}); err == nil {
			t.Errorf("%.20q in %q was accepted", d.template, d.dir)
		}
	}
}

type brokenPipe struct{ writes int }

func (b *brokenPipe) Write([]byte) (int, error) { b.writes++; return 0, errors.New("broken pipe") }

func toStdout(t *testing.T, w io.Writer) (*output, *stream) {
	t.Helper()
	o, err := openOutput(destination{stdout: w, now: time.Now}, []int{allCPUs})
	if err != nil {
		t.Fatal(err)
	}
	return o, o.of(allCPUs)
}

// Upstream 5.x goes on writing to a broken pipe for ever (loader-relay 10.3).
func TestOutputStopsAtTheFirstFailure(t *testing.T) {
	w := &brokenPipe{}
	o, s := toStdout(t, w)
	for range 2 {
		s.add(nil, []byte("a"))
		s.flush()
	}
	select {
	case <-o.broken:
	default:
		t.Error("nobody is told")
	}
	if w.writes != 1 || o.Close() == nil {
		t.Errorf("%d writes, error %v", w.writes, o.Close())
	}
}

func TestOutputGoesToStdout(t *testing.T) {
	var b bytes.Buffer
	o, s := toStdout(t, &b)
	s.add([]byte("x"), []byte("y"))
	o.turn() // standard output has no next file
	if o.Close() != nil || b.String() != "xy" {
		t.Errorf("got %q", b.String())
	}
}
