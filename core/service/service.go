// Package service is what a manager of compile servers knows: how a server is
// described, on command lines, in files and in words; which servers a command
// line means; and which servers run (services 2).
//
//	lines.go    the files: lines VARIABLE=VALUE, taken literally
//	global.go   the settings of the manager itself
//	spec.go     one server
//	choose.go   a command line to the servers it means
//	status.go   the directory of running servers
//	process.go  processes
//	listen.go   the ports of a process
//
// It starts and stops nothing; applet service does.
package service

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Spec describes a server. What is empty is the default's.
type Spec struct {
	Arch     string
	User     string
	Nickname string
	Runtime  string   // -R
	Releases []string // -r: releases, and build trees with "/" before
	Include  []string // -I
	Build    []string // -B
	Define   []string // -D

	// What lists of the command line are handed out to.
	Log, Port, SSL, MaxThreads, MaxRequest, MaxArchive string
}

// The options that are lists handed out to servers in turn.
const (
	Log        = "log"
	Port       = "port"
	SSL        = "ssl"
	MaxThreads = "max-threads"
	MaxRequest = "max-request-size"
	MaxArchive = "max-compressed-request"
)

// Distributed are their names, in the order of a server's command line.
func Distributed() []string { return []string{Log, Port, SSL, MaxThreads, MaxRequest, MaxArchive} }

// Handed is the field for an item of the list of this name.
func (s *Spec) Handed(name string) *string {
	switch name {
	case Log:
		return &s.Log
	case Port:
		return &s.Port
	case SSL:
		return &s.SSL
	case MaxThreads:
		return &s.MaxThreads
	case MaxRequest:
		return &s.MaxRequest
	case MaxArchive:
		return &s.MaxArchive
	}
	return nil
}

// Clone is a copy that shares no lists.
func (s *Spec) Clone() *Spec {
	c := *s
	for _, list := range []*[]string{&c.Releases, &c.Include, &c.Build, &c.Define} {
		*list = slices.Clone(*list)
	}
	return &c
}

// Defaults are for what a Spec leaves empty.
type Defaults struct {
	Arch, Release, User, Log string
}

// Fill is the spec with defaults.
func (s *Spec) Fill(d Defaults) *Spec {
	s = s.Clone()
	for _, f := range []struct {
		field *string
		value string
	}{{&s.Arch, d.Arch}, {&s.User, d.User}, {&s.Log, d.Log}} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	if len(s.Releases) == 0 && d.Release != "" {
		s.Releases = []string{d.Release}
	}
	return s
}

// Matches reports whether the spec, as somebody wrote it, means a server that
// was started as run. The nickname does not count; of what is handed out only
// what was written counts.
func (s *Spec) Matches(run *Spec, d Defaults) bool {
	for _, name := range Distributed() {
		if want := *s.Handed(name); want != "" && want != *run.Handed(name) {
			return false
		}
	}
	a, b := s.Fill(d), run.Fill(d)
	return a.Arch == b.Arch && a.User == b.User && a.Runtime == b.Runtime &&
		slices.Equal(a.Releases, b.Releases) && slices.Equal(a.Include, b.Include) &&
		slices.Equal(a.Build, b.Build) && slices.Equal(a.Define, b.Define)
}

// String is the server in words, as start and status print it:
//
//	-a "A" -r "R"... -R "P" -D "d"... -I "i"... -B "b"... -u "U" -n "N" --log "L" --port "P" ...
//
// Within quotes, backslashes and quotes have a backslash before.
func (s *Spec) String() string {
	var b strings.Builder
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	add := func(option string, values ...string) {
		for _, v := range values {
			if v == "" {
				continue
			}
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(option + ` "` + quote.Replace(v) + `"`)
		}
	}
	add("-a", s.Arch)
	add("-r", s.Releases...)
	add("-R", s.Runtime)
	add("-D", s.Define...)
	add("-I", s.Include...)
	add("-B", s.Build...)
	add("-u", s.User)
	add("-n", s.Nickname)
	for _, name := range Distributed() {
		add("--"+name, *s.Handed(name))
	}
	return b.String()
}

// Flags are what all servers of a command line have in common.
type Flags struct {
	Keep     bool // -k
	Password bool // -P
}

// Args is the command line of stap-serverd.
func (s *Spec) Args(f Flags) []string {
	args := []string{"-a", s.Arch}
	if f.Keep {
		args = append(args, "-k")
	}
	if f.Password {
		args = append(args, "-P")
	}
	for _, l := range []struct {
		option string
		values []string
	}{{"-r", s.Releases}, {"-B", s.Build}, {"-I", s.Include}, {"-D", s.Define}} {
		for _, v := range l.values {
			args = append(args, l.option, v)
		}
	}
	if s.Runtime != "" {
		args = append(args, "-R", s.Runtime)
	}
	args = append(args, "--log="+s.Log)
	for _, name := range Distributed()[1:] {
		if v := *s.Handed(name); v != "" {
			args = append(args, "--"+name, v)
		}
	}
	return args
}

// CheckValue refuses what cannot be a value: it would be another line of a file.
func CheckValue(option, value string) error {
	if i := strings.IndexFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 }); i >= 0 {
		return fmt.Errorf("the value %q of option %s has a control character", value, option)
	}
	return nil
}

// ParsePID reads the number of a process.
func ParsePID(word string) (int, bool) {
	n, err := strconv.ParseUint(word, 10, 31)
	return int(n), err == nil && n > 0 && word[0] != '0'
}
