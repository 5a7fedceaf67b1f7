package service

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// markColumn is where Red Hat's init scripts have their markers.
const markColumn = 60

// output writes the lines of actions. A line is ended when the next one begins,
// or the action ends.
type output struct {
	w      io.Writer
	redHat bool
	column int
	open   bool
	marked bool // the open line has its marker
}

func (o *output) begin(text string) {
	if o.open {
		io.WriteString(o.w, "\n")
	}
	io.WriteString(o.w, text)
	o.column, o.open, o.marked = len([]rune(text)), true, false
	if strings.HasSuffix(text, " ") {
		o.column = -o.column
	}
}

func (o *output) mark(plain, redHat string) {
	blanks := ""
	switch {
	case o.redHat:
		blanks = strings.Repeat(" ", max(markColumn-max(o.column, -o.column), min(max(o.column, 0), 1)))
		plain = "[" + redHat + "]"
	case o.open && o.column > 0:
		blanks = " "
	}
	io.WriteString(o.w, blanks+plain)
	o.open, o.marked = true, true
}

func (o *output) success() { o.mark("OK", "  OK  ") }
func (o *output) failure() { o.mark("FAILED", "FAILED") }

func (o *output) end() {
	if o.open {
		io.WriteString(o.w, "\n")
	}
	o.column, o.open, o.marked = 0, false, false
}

// complain writes an error for people and for the log. It comes after the marker
// of the line that is begun.
func (m *manager) complain(text string) {
	m.log(text)
	if m.out.open && !m.out.marked {
		m.complaints = append(m.complaints, text)
		return
	}
	m.out.end()
	fmt.Fprintln(m.inv.Stderr, text)
}

// failed ends a line of an action that went wrong.
func (m *manager) failed(action string) int {
	m.out.failure()
	m.out.end()
	for _, text := range m.complaints {
		fmt.Fprintln(m.inv.Stderr, text)
	}
	m.complaints = nil
	m.log("Error: " + action)
	m.syslog("Error: " + action)
	return exitFailure
}

func (m *manager) passed(action string) int {
	m.out.success()
	m.log("Pass: " + action)
	return exitOK
}

// log appends a line to the manager's log, "Mon dd HH:MM:SS: TEXT". Whoever may
// not write there has the messages on his terminal.
func (m *manager) log(text string) {
	f, err := m.openLog(m.logFile, m.defaults.User)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%s: %s\n", m.now().Format("Jan _2 15:04:05"), words([]string{text}))
}

// syslog sends an error to the system's log, if there is one (RFC 3164; facility
// daemon, severity error).
func (m *manager) syslog(text string) {
	c, err := net.DialTimeout("unixgram", m.devLog, time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprintf(c, "<27>%s %s[%d]: %s", m.now().Format("Jan _2 15:04:05"), m.inv.Name, os.Getpid(), words([]string{text}))
}
