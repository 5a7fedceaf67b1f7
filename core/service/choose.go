package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"stapbox/core/getopt"
)

// Choice is a server that a command line means.
type Choice struct {
	Spec              // as it was written, without defaults
	Base     *Running // the running server that -n or -p found
	Modified bool     // options after -n or -p change what was found
	Unknown  string   // a nickname that -n did not find
}

// Finds reports whether the choice means a running server.
func (c *Choice) Finds(r *Running, d Defaults) bool {
	if c.Base != nil && !c.Modified {
		return c.Base.PID == r.PID
	}
	return c.Matches(&r.Spec, d)
}

// Chosen is what a command line says about servers.
type Chosen struct {
	Choices []*Choice
	// Handed are lists for which there was no server in the command line: they
	// go to configured servers, or select running ones.
	Handed map[string][]string
	// Left are releases that -i passed over, as nothing can be built for them.
	Left []string
}

// Known is what there is to choose from.
type Known struct {
	Running []*Running
	Configs []*Config
	Modules string // the directory with a directory for each kernel release
	Dir     string // what paths of the command line are relative to
}

// ErrUsage is an error after which the usage is shown.
var ErrUsage = errors.New("usage")

// UnmanagedError says that -p names no server of this manager. Nothing is to be
// done then.
type UnmanagedError struct{ PID string }

func (e *UnmanagedError) Error() string { return "No stap-server running as pid " + e.PID }

// MissingError is a build tree without the file that tells its release.
type MissingError struct{ File string }

func (e *MissingError) Error() string { return "Missing " + e.File }

// Unwrap makes it an ErrUsage.
func (e *MissingError) Unwrap() error { return ErrUsage }

// Choose reads the options about servers, in their order (services 2.2). Other
// options are passed over.
func Choose(opts []getopt.Option, known Known) (*Chosen, error) {
	c := chooser{known: known, out: &Chosen{Handed: map[string][]string{}}}
	combine := slices.ContainsFunc(opts, func(o getopt.Option) bool { return o.Name == "combine" })
	for _, o := range opts {
		if err := CheckValue("'"+o.Name+"'", o.Value); err != nil {
			return nil, errors.Join(ErrUsage, err)
		}
		if err := c.option(o.Name, o.Value, combine); err != nil {
			return nil, err
		}
	}
	c.close()
	c.hand()
	return c.out, nil
}

type chooser struct {
	known Known
	out   *Chosen

	cur       Choice
	given     bool // something was said about cur
	based     bool // cur is what -n or -p found
	inherited bool // the releases of cur are those of its base
	released  bool // -r was given
}

func (c *chooser) close() {
	if c.given {
		cur := c.cur
		c.out.Choices = append(c.out.Choices, &cur)
	}
	c.cur, c.given, c.based, c.inherited, c.released = Choice{}, false, false, false, false
}

// change notes that an option says something about cur.
func (c *chooser) change() {
	c.given = true
	if c.based && !c.cur.Modified {
		c.modify(&c.cur)
	}
}

// modify makes a choice a copy of its base. The copy of a running server is
// another one, with no nickname yet.
func (c *chooser) modify(choice *Choice) {
	choice.Modified = true
	if choice.Base != nil {
		choice.Nickname = ""
	}
}

func (c *chooser) path(value string) string {
	value = Unquote(value)
	if value != "" && !filepath.IsAbs(value) {
		value = filepath.Join(c.known.Dir, value)
	}
	return value
}

func (c *chooser) option(name, value string, combine bool) error {
	switch name {
	case "a":
		c.change()
		c.cur.Arch = Unquote(value)
	case "R":
		c.change()
		c.cur.Runtime = c.path(value)
	case "u":
		c.change()
		c.cur.User = Unquote(value)
	case "I":
		c.change()
		c.cur.Include = append(c.cur.Include, c.path(value))
	case "B":
		c.change()
		c.cur.Build = append(c.cur.Build, Unquote(value))
	case "D":
		c.change()
		c.cur.Define = append(c.cur.Define, Unquote(value))
	case "r":
		return c.release(Unquote(value))
	case "n":
		c.nickname(Unquote(value))
	case "p":
		return c.pid(value)
	case "i":
		return c.installed(combine)
	case Log, SSL:
		c.out.Handed[name] = append(c.out.Handed[name], c.path(value))
	case Port, MaxThreads, MaxRequest, MaxArchive:
		c.out.Handed[name] = append(c.out.Handed[name], Unquote(value))
	}
	return nil
}

func (c *chooser) release(value string) error {
	if strings.HasPrefix(value, "/") {
		file := filepath.Join(value, "include/config/kernel.release")
		if st, err := os.Stat(file); err != nil || !st.Mode().IsRegular() {
			return &MissingError{file}
		}
	}
	c.change()
	if c.inherited {
		c.cur.Releases, c.inherited = nil, false
	}
	c.released = true
	if value != "" {
		c.cur.Releases = append(c.cur.Releases, value)
	}
	return nil
}

func (c *chooser) nickname(name string) {
	base, spec := (*Running)(nil), Spec{}
	i := slices.IndexFunc(c.known.Running, func(r *Running) bool { return r.Nickname == name && name != "" })
	j := slices.IndexFunc(c.known.Configs, func(f *Config) bool { return f.Nickname == name && name != "" })
	found := true
	switch {
	case i >= 0:
		base = c.known.Running[i]
		spec = *base.Spec.Clone()
	case j >= 0:
		spec = *c.known.Configs[j].Clone()
	default:
		found = false
	}
	switch {
	case !found && c.based && c.cur.Modified && c.cur.Nickname == "":
		// A name for the changed copy of a server.
	case c.based || c.cur.Nickname != "":
		c.close()
	}
	c.given = true
	if !found {
		c.cur.Nickname, c.cur.Unknown = name, name
		return
	}
	c.cur = Choice{Spec: spec, Base: base}
	c.based, c.inherited, c.released = true, true, false
}

func (c *chooser) pid(word string) error {
	pid, ok := ParsePID(word)
	i := slices.IndexFunc(c.known.Running, func(r *Running) bool { return ok && r.PID == pid })
	if i < 0 {
		return &UnmanagedError{word}
	}
	if c.based || c.cur.Nickname != "" {
		c.close()
	}
	base := c.known.Running[i]
	c.cur = Choice{Spec: *base.Spec.Clone(), Base: base}
	c.given, c.based, c.inherited, c.released = true, true, true, false
	return nil
}

// installed is -i: a server for each kernel here that can be built for, or one
// for all. What stands before is for each of them, unless it is a server of its
// own.
func (c *chooser) installed(combine bool) error {
	if c.based || c.released || c.cur.Nickname != "" {
		c.close()
	}
	template := c.cur.Clone()
	template.Arch, template.Releases = "", nil
	c.given = false
	c.close()
	entries, err := os.ReadDir(c.known.Modules)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	var releases []string
	for _, e := range entries {
		dir := filepath.Join(c.known.Modules, e.Name())
		if st, err := os.Stat(dir); err != nil || !st.IsDir() || CheckValue("", e.Name()) != nil {
			continue
		}
		if st, err := os.Stat(filepath.Join(dir, "build")); err != nil || !st.IsDir() {
			c.out.Left = append(c.out.Left, e.Name())
			continue
		}
		releases = append(releases, e.Name())
	}
	switch {
	case len(releases) == 0:
		return fmt.Errorf("No kernel releases found in %s", c.known.Modules)
	case combine:
		s := template.Clone()
		s.Releases = releases
		c.out.Choices = append(c.out.Choices, &Choice{Spec: *s})
	default:
		for _, r := range releases {
			s := template.Clone()
			s.Releases = []string{r}
			c.out.Choices = append(c.out.Choices, &Choice{Spec: *s})
		}
	}
	return nil
}

// hand hands the lists out, an item for each choice.
func (c *chooser) hand() {
	if len(c.out.Choices) == 0 {
		return
	}
	for _, name := range Distributed() {
		list := c.out.Handed[name]
		for i := range min(len(list), len(c.out.Choices)) {
			choice := c.out.Choices[i]
			if list[i] == "" {
				continue
			}
			if field := choice.Handed(name); *field != list[i] {
				*field = list[i]
				if choice.Base != nil && !choice.Modified {
					c.modify(choice)
				}
			}
		}
	}
	c.out.Handed = map[string][]string{}
}

// Configured are the configured servers, with the lists handed out to those
// whose files leave their values open. Without files there is one, of defaults.
func (c *Chosen) Configured(configs []*Config) []*Choice {
	var list []*Choice
	for _, f := range configs {
		list = append(list, &Choice{Spec: *f.Clone()})
	}
	if len(list) == 0 {
		list = []*Choice{{}}
	}
	for _, name := range Distributed() {
		items := c.Handed[name]
		for i := range list {
			if field := list[i].Handed(name); *field == "" && len(items) > 0 {
				*field, items = items[0], items[1:]
			}
		}
	}
	return list
}

// Selects reports whether lists that were given without a server fit a running
// one; without lists every one does. A port is what was asked for, or what the
// server has.
func (c *Chosen) Selects(r *Running) bool {
	for _, name := range Distributed() {
		list := c.Handed[name]
		if len(list) == 0 || slices.Contains(list, *r.Spec.Handed(name)) {
			continue
		}
		if name != Port || r.Facts.Port == 0 || !slices.Contains(list, strconv.Itoa(r.Facts.Port)) {
			return false
		}
	}
	return true
}
