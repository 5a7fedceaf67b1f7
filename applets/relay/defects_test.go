package relay

import (
	"testing"
	"time"

	"stapbox/core/transport"
)

// Defects of upstream's relay, by their place in loader-relay 10.3. Those that
// need a module are in the end-to-end tests.

// Switching assumed that there is a CPU 0.
func TestDefect_10_3_05_SwitchingWithoutCPU0(t *testing.T) {
	dir := t.TempDir()
	o, err := openOutput(destination{template: "out", dir: dir, rotate: true, now: time.Now}, []int{1, 3})
	if err != nil {
		t.Fatal(err)
	}
	o.turn()
	for _, cpu := range []int{1, 3} {
		o.of(cpu).flush()
		o.of(cpu).add(nil, []byte("x"))
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := files(t, dir), "out_cpu1.0= out_cpu1.1=x out_cpu3.0= out_cpu3.1=x"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Every reader thread switched the one file, and some closed descriptor 0.
func TestDefect_10_3_06_OneFileForEachSwitch(t *testing.T) {
	dir := t.TempDir()
	o, err := openOutput(destination{template: "out", dir: dir, now: time.Now}, []int{allCPUs})
	if err != nil {
		t.Fatal(err)
	}
	s := o.of(allCPUs)
	for range 4 { // as many readers see one signal
		o.turn()
	}
	s.flush()
	s.flush()
	s.add(nil, []byte("x"))
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := files(t, dir), "out= out.1=x"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Bulk readers wrote only what the last read of a record gave.
func TestDefect_10_3_07_WholeRecordsInBulkMode(t *testing.T) {
	dir := t.TempDir()
	o, err := openOutput(destination{template: "out", dir: dir, now: time.Now}, []int{0})
	if err != nil {
		t.Fatal(err)
	}
	t1 := &traceReaders{gen: transport.Gen5, out: o}
	s := &transport.Splitter{Generation: transport.Gen5}
	take := t1.writeRecords(0, s)
	record := append(transport.Record{Sequence: 1, Payload: []byte("abcdefgh")}.AppendHeader(nil, transport.Gen5), "abcdefgh"...)
	for i := range record { // one byte a read
		s.Write(record[i : i+1])
		take()
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := files(t, dir), "out_0="+string(record); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
