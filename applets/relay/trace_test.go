package relay

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/transport"
)

// await, which comes before START, waits until every reader waits in the kernel. None
// takes signals: its CPU may be that of START.
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
	if threadsWithoutSignals(t) == 0 {
		t.Error("the reader's thread takes signals")
	}
	readers.finish(discard, nil)
}

// threadsWithoutSignals counts the threads of this process that block HUP, INT, QUIT,
// USR2 and TERM.
func threadsWithoutSignals(t *testing.T) (n int) {
	t.Helper()
	const signals = 1<<0 | 1<<1 | 1<<2 | 1<<11 | 1<<14
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads: %q, %v", threads, err)
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, mask, _ := strings.Cut(string(b), "\nSigBlk:\t")
		mask, _, _ = strings.Cut(mask, "\n")
		if blocked, err := strconv.ParseUint(mask, 16, 64); err != nil {
			t.Fatalf("%s: %v", path, err)
		} else if blocked&signals == signals {
			n++
		}
	}
	return n
}
