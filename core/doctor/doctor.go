// Package doctor says what on this host would refuse a run for the user who
// asks, and the one command that cures each thing.
//
// Look (look.go) collects facts as that user: it reads files, asks the kernel
// and binds one socket, and changes nothing. Each check is a pure function from
// these facts to findings:
//
//	ok     nothing would refuse
//	note   nothing would refuse either, but somebody should know
//	cure   a run, or a server, would be refused
//
// Names that come from files and modules may hold anything; a finding holds
// printable ASCII only, and its command quotes them for a shell.
package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"stapbox/core/config"
)

// State is how bad a finding is.
type State string

// The states.
const (
	OK   State = "ok"
	Note State = "note"
	Cure State = "cure"
)

// Finding is one line of the report.
type Finding struct {
	Check   string `json:"check"`
	State   State  `json:"state"`
	Subject string `json:"subject"` // the file, group, module ... it is about
	Text    string `json:"text"`
	Cure    string `json:"cure"` // a command, "" where there is none
}

// check is one row of the table.
type check struct {
	name string
	look func(*Host) []Finding
}

// checks is the table, in the order of the report.
func checks() []check {
	return []check{
		{"groups", groups},
		{"membership", membership},
		{"staprun", staprun},
		{"other-systemtap", others},
		{"process", process},
		{"kernel", kernel},
		{"lockdown", lockdown},
		{"fips", fips},
		{"proc", proc},
		{"signers", signers},
		{"peers", peers},
		{"blessed", blessed},
		{"build", build},
		{"network", network},
		{"server", server},
		{"identity", identities},
		{"clock", clock},
		{"leftover-modules", leftovers},
	}
}

// Examine makes every check. Each gives at least one finding.
func Examine(h *Host) []Finding {
	var all []Finding
	for _, c := range checks() {
		for _, f := range c.look(h) {
			f.Check = c.name
			f.Subject, f.Text, f.Cure = printable(f.Subject), printable(f.Text), printable(f.Cure)
			all = append(all, f)
		}
	}
	return all
}

// Refused reports whether a finding would refuse a run.
func Refused(all []Finding) bool {
	return slices.ContainsFunc(all, func(f Finding) bool { return f.State == Cure })
}

// WriteText writes the report for people.
func WriteText(w io.Writer, all []Finding) {
	for _, f := range all {
		fmt.Fprintf(w, "%-4s  %-16s %s\n", f.State, f.Check, f.Text)
		if f.Cure != "" {
			fmt.Fprintf(w, "      %16s $ %s\n", "", f.Cure)
		}
	}
}

// WriteJSON writes the report for programs.
func WriteJSON(w io.Writer, all []Finding) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(all)
}

func ok(subject, format string, args ...any) []Finding {
	return []Finding{{State: OK, Subject: subject, Text: fmt.Sprintf(format, args...)}}
}

func note(subject, text, cure string) Finding {
	return Finding{State: Note, Subject: subject, Text: text, Cure: cure}
}

func cured(subject, text, cure string) Finding {
	return Finding{State: Cure, Subject: subject, Text: text, Cure: cure}
}

// quote makes a name one word of a shell command. What cannot be shown is octal
// in it ($'...', POSIX.1-2024 XCU 2.2.4): another sign in its place would make the
// command about another file.
func quote(name string) string {
	if name == printable(name) {
		return config.Quote(name)
	}
	word := "$'"
	for _, c := range []byte(name) {
		switch {
		case c < ' ' || c > '~':
			word += fmt.Sprintf("\\%03o", c)
		case c == '\'' || c == '\\':
			word += "\\" + string(rune(c))
		default:
			word += string(rune(c))
		}
	}
	return word + "'"
}

// hostName is a name from the network or a certificate, which its owner chose: no
// name of a host has a space, and text that has none cannot look like a command.
func hostName(s string) string {
	return strings.ReplaceAll(s[:min(len(s), 253)], " ", "?")
}

// printable replaces what is not printable ASCII.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
