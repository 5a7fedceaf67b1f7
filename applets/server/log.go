package server

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// logger writes lines "TIME: message" with the time as ctime(3) writes it, five
// words: tools take the ninth word of one of them (server-client 11.4). Errors
// also go to standard error, bare.
type logger struct {
	mu     sync.Mutex
	w      io.Writer
	stderr io.Writer // nil when w is standard error
	file   *os.File
	now    func() time.Time
}

func openLog(path string, stderr io.Writer, now func() time.Time) (*logger, error) {
	l := &logger{w: stderr, now: now}
	if path == "" {
		return l, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening log file: %w", err)
	}
	l.w, l.stderr, l.file = f, stderr, f
	return l, nil
}

func (l *logger) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimSuffix(fmt.Sprintf(format, args...), "\n")
	fmt.Fprintf(l.w, "%s: %s\n", l.now().Format("Mon Jan _2 15:04:05 2006"), text)
}

func (l *logger) errorf(format string, args ...any) {
	l.printf(format, args...)
	if l.stderr != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		fmt.Fprintf(l.stderr, format+"\n", args...)
	}
}

// Write takes the lines of log/slog as they are.
func (l *logger) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// Close closes the log file.
func (l *logger) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
