package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// slow reads standard input at most at that many bytes a second. At its end it
// prints how many lines came, and the most memory a process called stapio had
// meanwhile, in KiB.
func slow(rate string) error {
	perSecond, err := strconv.Atoi(rate)
	if err != nil {
		return err
	}
	const turns = 50 // a second
	buf := make([]byte, perSecond/turns)
	lines, peak := 0, 0
	turn := time.NewTicker(time.Second / turns)
	defer turn.Stop()
	for {
		n, err := io.ReadFull(os.Stdin, buf)
		lines += bytes.Count(buf[:n], []byte{'\n'})
		peak = max(peak, peakOf("stapio"))
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
		<-turn.C
	}
	fmt.Println(lines, peak)
	return nil
}

// peakOf is the VmHWM of proc_pid_status(5), the highest of all processes of
// that name.
func peakOf(name string) int {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	peak := 0
	for _, c := range comms {
		if b, err := os.ReadFile(c); err != nil || string(bytes.TrimSpace(b)) != name {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(c), "status"))
		if err != nil {
			continue // it has just ended
		}
		if _, rest, ok := bytes.Cut(status, []byte("VmHWM:")); ok {
			var kib int
			if _, err := fmt.Sscan(string(rest), &kib); err == nil {
				peak = max(peak, kib)
			}
		}
	}
	return peak
}
