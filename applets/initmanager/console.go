package initmanager

import (
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/report"
)

// Markers at the end of a command.
const (
	passed  = "  OK  "
	failed  = "FAILED"
	warning = "WARNING"
)

// redHatFunctions is there where init scripts write their markers in brackets at
// column 60; elsewhere they are bare words.
const redHatFunctions = "/etc/rc.d/init.d/functions"

// console writes what the user sees, and the same into the log:
//
//	Mon dd HH:MM:SS: TEXT
//
// What is logged before the log is known waits until it is (B-50).
type console struct {
	out, err io.Writer
	quiet    bool
	brackets bool // markers are those of Red Hat's init scripts
	now      func() time.Time

	file    *os.File // the log
	held    []string
	column  int    // of the cursor
	blank   bool   // what is left of it is blank
	partial string // text of the current line, logged with its end
}

// say writes text that is also logged, line by line.
func (c *console) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.show(text)
	for {
		line, rest, ended := strings.Cut(text, "\n")
		c.partial += line
		if !ended {
			return
		}
		if c.partial != "" {
			c.log(c.partial)
		}
		c.partial, text = "", rest
	}
}

// show writes text that is not logged.
func (c *console) show(text string) {
	if c.quiet || text == "" {
		return
	}
	io.WriteString(c.out, text)
	c.blank = strings.HasSuffix(text, " ")
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		c.column, text = 0, text[i+1:]
	}
	c.column += len(text)
}

// failure writes a line of its own about something that went wrong.
func (c *console) failure(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.log(text)
	if c.quiet {
		fmt.Fprintln(c.err, text)
		return
	}
	if c.column > 0 {
		c.show("\n")
	}
	c.show(text + "\n")
}

// mark ends the output of a command.
func (c *console) mark(m string) {
	if c.partial != "" {
		c.log(c.partial)
		c.partial = ""
	}
	if !c.brackets {
		m = strings.TrimSpace(m)
		if c.column > 0 && !c.blank {
			m = " " + m
		}
		c.show(m + "\n")
		return
	}
	pad := strings.Repeat(" ", max(60-c.column, 1))
	if report.IsTerminal(c.out) {
		pad = "\x1b[60G"
	}
	c.show(pad + "[" + m + "]\n")
}

// log writes one line into the log.
func (c *console) log(text string) {
	line := c.now().Format("Jan _2 15:04:05") + ": " + strings.ReplaceAll(text, "\n", " ") + "\n"
	if c.file == nil {
		c.held = append(c.held, line)
		return
	}
	io.WriteString(c.file, line)
}

// openLog opens the log and writes what has waited.
func (c *console) openLog(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	c.file = f
	for _, l := range c.held {
		io.WriteString(f, l)
	}
	c.held = nil
	return nil
}

func (c *console) close() {
	if c.partial != "" {
		c.log(c.partial)
		c.partial = ""
	}
	if c.file != nil {
		c.file.Close()
	}
}

// syslog sends a line to the system's log, which need not be there yet.
func (c *console) syslog(text string) {
	w, err := syslog.New(syslog.LOG_ERR|syslog.LOG_DAEMON, "systemtap")
	if err != nil {
		return
	}
	defer w.Close()
	w.Err(text)
}

// confirm asks a question. No answer is no.
func (m *manager) confirm(question string) bool {
	if m.opts.yes {
		return true
	}
	for {
		fmt.Fprintf(m.inv.Stdout, "%s [y/N]: ", question)
		line, err := m.stdin.ReadString('\n')
		switch strings.TrimSpace(line) {
		case "y", "Y", "yes", "Yes", "YES", "1":
			return true
		case "", "n", "N", "no", "No", "NO", "0":
			if err != nil && errors.Is(err, io.EOF) {
				fmt.Fprintln(m.inv.Stdout)
			}
			return false
		}
		if err != nil {
			return false
		}
	}
}
