package relay

import (
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/transport"
)

// await, which comes before START, waits until every reader waits in the kernel.
func TestReadersWaitBeforeStart(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[1])
	out, err := openOutput(destination{stdout: io.Discard, now: time.Now}, []int{allCPUs})
	if err != nil {
		t.Fatal(err)
	}
	// The reader of CPU 0 is busy with a read(2), which blocks.
	readers, err := startReaders([]*transport.TraceFile{{Name: "trace0", FD: pipe[0]}}, transport.Gen5, time.Second, out, false, true)
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan struct{})
	go func() { readers.await(); close(waited) }()
	select {
	case <-waited:
		t.Error("the reader was not waited for")
	case <-time.After(50 * time.Millisecond):
	}
	// It finds the pipe empty, and waits.
	if err := unix.SetNonblock(pipe[0], true); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(pipe[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	readers.starting.Wait()
	<-waited
	readers.finish(discard, nil)
}
