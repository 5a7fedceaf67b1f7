package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// logger writes lines "TIME: message" with the time as ctime(3) writes it, five
// words: tools take the ninth word of one of them (server-client 11.4). Errors
// also go to standard error, bare. With JSON each line is an object with time,
// level and msg, the lines about requests with more.
type logger struct {
	mu     sync.Mutex
	w      io.Writer
	stderr io.Writer // nil when w is standard error
	file   *os.File
	path   string
	now    func() time.Time
	json   slog.Handler // nil for text
	flood  flood
}

// flood bounds the lines that anybody can cause by connecting, or by sending
// what is no request: they could fill a disk. Metrics count everything.
type flood struct {
	every time.Duration
	most  int

	mu            sync.Mutex
	written, left int
	ticking       bool
}

// Lines about connections in a time.
const (
	floodTime  = 10 * time.Second
	floodLines = 1000
)

// some tells whether one more line about connections may be written. The number
// of those that were not is, when the time is over.
func (l *logger) some() bool {
	f := &l.flood
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ticking {
		f.ticking = true
		time.AfterFunc(f.every, func() {
			f.mu.Lock()
			left := f.left
			f.written, f.left, f.ticking = 0, 0, false
			f.mu.Unlock()
			if left > 0 {
				l.printf("%d lines about connections were left out", left)
			}
		})
	}
	if f.written >= f.most {
		f.left++
		return false
	}
	f.written++
	return true
}

// aboutf is printf for lines about connections.
func (l *logger) aboutf(format string, args ...any) {
	if l.some() {
		l.printf(format, args...)
	}
}

func openLog(path string, stderr io.Writer, now func() time.Time) (*logger, error) {
	l := &logger{w: stderr, now: now, path: path, flood: flood{every: floodTime, most: floodLines}}
	if path == "" {
		return l, nil
	}
	f, err := openLogFile(path)
	if err != nil {
		return nil, err
	}
	l.w, l.stderr, l.file = f, stderr, f
	return l, nil
}

// openLogFile opens a log, which has the command lines of all clients and is not for
// everybody to read.
func openLogFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, fmt.Errorf("opening log file: %w", err)
	}
	// One of before that is another's stays as it is.
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o007 != 0 {
		f.Chmod(st.Mode().Perm() &^ 0o007)
	}
	return f, nil
}

// useJSON makes all lines JSON. An object has each name once: the level and the
// time of a request are not those of the line.
func (l *logger) useJSON() {
	l.json = slog.NewJSONHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch {
		case a.Key == slog.LevelKey && a.Value.Kind() == slog.KindString:
			a.Key = "privilege"
		case a.Key == slog.TimeKey && a.Value.Kind() == slog.KindDuration:
			return slog.Float64("seconds", a.Value.Duration().Seconds())
		}
		return a
	}})
}

// reopen opens the file under its name again.
func (l *logger) reopen() error {
	if l.file == nil {
		return nil
	}
	f, err := openLogFile(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Close()
	l.w, l.file = f, f
	return nil
}

func (l *logger) printf(format string, args ...any) { l.line(slog.LevelInfo, format, args...) }

func (l *logger) line(level slog.Level, format string, args ...any) {
	text := strings.TrimSuffix(fmt.Sprintf(format, args...), "\n")
	if l.json != nil {
		l.json.Handle(context.Background(), slog.NewRecord(l.now(), level, text, 0))
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, "%s: %s\n", l.now().Format("Mon Jan _2 15:04:05 2006"), text)
}

func (l *logger) errorf(format string, args ...any) {
	l.line(slog.LevelError, format, args...)
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

// requests is where the lines about requests go: with the client that the
// context is of.
func (l *logger) requests() *slog.Logger {
	if l.json != nil {
		return slog.New(auditHandler{l.json})
	}
	return slog.New(auditHandler{slog.NewTextHandler(l, nil)})
}

// auditHandler adds who asked.
type auditHandler struct{ slog.Handler }

// Handle adds the certificate of the client, if it showed one.
func (h auditHandler) Handle(ctx context.Context, r slog.Record) error {
	if c := clientOf(ctx); c.certificate != "" {
		r.AddAttrs(slog.String("certificate", c.certificate), slog.String("subject", c.subject))
	}
	return h.Handler.Handle(ctx, r)
}

// Close closes the log file.
func (l *logger) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
