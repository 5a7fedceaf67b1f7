package monitor

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxStatus is the longest status that is read, as upstream's.
const MaxStatus = 262144

// Status is what a module tells about itself in monitor_status.
type Status struct {
	Uptime, UID, Memory, Module string
	Globals                     []Global
	Probes                      []Probe
}

// Global is one global variable. A map or a statistic is shown as {key: value}.
type Global struct{ Name, Value string }

// Probe is one line of the probe list.
type Probe struct {
	Index               int64
	On                  bool
	Hits, Min, Avg, Max int64
	Name                string
}

// ErrStatus is wrapped by all errors of Parse.
var ErrStatus = errors.New("reading the status")

func statusError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrStatus, fmt.Sprintf(format, args...))
}

// value is one value of the text: a text, or the members of an object or array.
type value struct {
	kind    byte // 's' string, 'n' any other word, '{', '['
	text    string
	members []member
}

type member struct {
	key string
	value
}

// Parse reads a status. Modules write what is nearly JSON: 4.8 puts every number
// of a global into quotes, 4.9 and later write numbers, and both leave commas
// after the last member or before the first. So commas are taken as spaces, and
// keys that are not known are skipped.
func Parse(b []byte) (Status, error) {
	if len(b) > MaxStatus {
		return Status{}, statusError("it is longer than %d bytes", MaxStatus)
	}
	p := parser{b: b}
	top, err := p.value(0)
	if err != nil {
		return Status{}, err
	}
	if top.kind != '{' {
		return Status{}, statusError("it is no object")
	}
	if p.space(); p.at < len(b) {
		return Status{}, statusError("text after its end")
	}
	var s Status
	for _, m := range top.members {
		switch m.key {
		case "uptime":
			s.Uptime = m.String()
		case "uid":
			s.UID = m.String()
		case "memory":
			s.Memory = m.String()
		case "module_name":
			s.Module = m.String()
		case "globals":
			for _, g := range m.members {
				s.Globals = append(s.Globals, Global{g.key, g.String()})
			}
		case "probe_list":
			for _, e := range m.members {
				s.Probes = append(s.Probes, e.probe())
			}
		}
	}
	return s, nil
}

func (v value) probe() (p Probe) {
	for _, m := range v.members {
		n, _ := strconv.ParseInt(strings.TrimSpace(m.text), 10, 64)
		switch m.key {
		case "index":
			p.Index = n
		case "state":
			p.On = m.text == "on"
		case "hits":
			p.Hits = n
		case "min":
			p.Min = n
		case "avg":
			p.Avg = n
		case "max":
			p.Max = n
		case "name":
			p.Name = m.text
		}
	}
	return p
}

// String is the value in one line.
func (v value) String() string {
	if v.kind != '{' && v.kind != '[' {
		return v.text
	}
	var b strings.Builder
	b.WriteByte(v.kind)
	for i, m := range v.members {
		if i > 0 {
			b.WriteString(", ")
		}
		if m.key != "" {
			b.WriteString(m.key + ": ")
		}
		b.WriteString(m.String())
	}
	b.WriteByte(v.kind + 2) // '}' and ']'
	return b.String()
}

type parser struct {
	b  []byte
	at int
}

// maxDepth bounds the nesting: globals hold maps of statistics.
const maxDepth = 8

// space skips what separates values.
func (p *parser) space() {
	for p.at < len(p.b) && strings.IndexByte(" \t\r\n,\x00", p.b[p.at]) >= 0 {
		p.at++
	}
}

func (p *parser) value(depth int) (value, error) {
	p.space()
	if p.at == len(p.b) {
		return value{}, statusError("it ends within a value")
	}
	switch c := p.b[p.at]; c {
	case '"':
		text, err := p.text()
		return value{kind: 's', text: text}, err
	case '{', '[':
		if depth == maxDepth {
			return value{}, statusError("it is nested deeper than %d", maxDepth)
		}
		p.at++
		v := value{kind: c}
		for {
			p.space()
			switch {
			case p.at == len(p.b):
				return value{}, statusError("it ends within %q", c)
			case p.b[p.at] == c+2:
				p.at++
				return v, nil
			}
			var m member
			var err error
			if c == '{' {
				if m.key, err = p.key(); err != nil {
					return value{}, err
				}
			}
			if m.value, err = p.value(depth + 1); err != nil {
				return value{}, err
			}
			v.members = append(v.members, m)
		}
	}
	start := p.at
	for p.at < len(p.b) && strings.IndexByte(" \t\r\n,\x00{}[]:\"", p.b[p.at]) < 0 {
		p.at++
	}
	if p.at == start {
		return value{}, statusError("%q at %d where a value is expected", p.b[p.at], p.at)
	}
	return value{kind: 'n', text: string(p.b[start:p.at])}, nil
}

func (p *parser) key() (string, error) {
	if p.b[p.at] != '"' {
		return "", statusError("%q at %d where a name is expected", p.b[p.at], p.at)
	}
	key, err := p.text()
	if err != nil {
		return "", err
	}
	for p.at < len(p.b) && strings.IndexByte(" \t\r\n", p.b[p.at]) >= 0 {
		p.at++
	}
	if p.at == len(p.b) || p.b[p.at] != ':' {
		return "", statusError("no ':' after the name %.40q", key)
	}
	p.at++
	return key, nil
}

// text reads a string. Control characters in it are taken as they are.
func (p *parser) text() (string, error) {
	var b []byte
	for p.at++; p.at < len(p.b); p.at++ {
		switch c := p.b[p.at]; c {
		case '"':
			p.at++
			return string(b), nil
		case '\\':
			p.at++
			if p.at == len(p.b) {
				return "", statusError("it ends within a string")
			}
			switch e := p.b[p.at]; e {
			case 'n':
				b = append(b, '\n')
			case 't':
				b = append(b, '\t')
			case 'r':
				b = append(b, '\r')
			case 'b':
				b = append(b, '\b')
			case 'f':
				b = append(b, '\f')
			case 'u':
				n, err := strconv.ParseUint(string(p.b[p.at+1:min(p.at+5, len(p.b))]), 16, 16)
				if err != nil || p.at+5 > len(p.b) {
					return "", statusError("a bad \\u in a string")
				}
				b = utf8.AppendRune(b, rune(n))
				p.at += 4
			default:
				b = append(b, e)
			}
		default:
			b = append(b, c)
		}
	}
	return "", statusError("it ends within a string")
}
