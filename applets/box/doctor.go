package box

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"stapbox/core/getopt"
	"stapbox/core/kmod"
	"stapbox/core/transport"
)

// finding is one thing that is not as it should be.
type finding struct {
	What    string `json:"what"`              // one line
	Object  string `json:"object,omitempty"`  // the name of the thing
	Owner   string `json:"owner,omitempty"`   // the user it belongs to
	Command string `json:"command,omitempty"` // what cures it
}

// check is one row of the doctor's table.
type check struct {
	name string
	fine string // what is the case when there are no findings
	look func(*doctor) ([]finding, error)
}

// doctor looks at the host. The fields are the host's edges, so that tests can
// stand in for it.
type doctor struct {
	modules func() ([]kmod.Loaded, error)
	passwd  func() ([]byte, error)
}

func hostDoctor() *doctor {
	return &doctor{
		modules: func() ([]kmod.Loaded, error) { return kmod.List(transport.Dirs) },
		passwd:  func() ([]byte, error) { return os.ReadFile("/etc/passwd") },
	}
}

// checks is the table, in the order of the report.
func checks() []check {
	return []check{
		{"leftover-modules", "no module is loaded with nobody attached to it", (*doctor).leftovers},
	}
}

func doctorSpec() getopt.Spec { return getopt.Spec{Defs: []getopt.Def{{Long: "json"}}} }

// result is a check's part of the report.
type result struct {
	Check    string    `json:"check"`
	OK       bool      `json:"ok"`
	Error    string    `json:"error,omitempty"` // why it could not be made
	Findings []finding `json:"findings"`
}

// examine makes every check, and tells whether all is well.
func (d *doctor) examine(table []check) (results []result, ok bool) {
	ok = true
	for _, c := range table {
		r := result{Check: c.name, Findings: []finding{}}
		found, err := c.look(d)
		if err != nil {
			r.Error = err.Error()
		}
		r.Findings = append(r.Findings, found...)
		r.OK = err == nil && len(found) == 0
		ok = ok && r.OK
		results = append(results, r)
	}
	return results, ok
}

// show writes the report for people.
func show(w io.Writer, table []check, results []result) {
	for i, r := range results {
		switch {
		case r.OK:
			fmt.Fprintf(w, "ok     %s: %s\n", r.Check, table[i].fine)
		case r.Error != "":
			fmt.Fprintf(w, "error  %s: %s\n", r.Check, r.Error)
		}
		for _, f := range r.Findings {
			fmt.Fprintf(w, "wrong  %s: %s\n", r.Check, f.What)
			if f.Command != "" {
				fmt.Fprintf(w, "       cure: %s\n", f.Command)
			}
		}
	}
}

// examine runs the doctor.
func (b *box) examine(d *doctor, asJSON bool) error {
	table := checks()
	results, ok := d.examine(table)
	if !ok {
		b.status = exitError
	}
	if !asJSON {
		show(b.inv.Stdout, table, results)
		return nil
	}
	e := json.NewEncoder(b.inv.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		OK     bool     `json:"ok"`
		Checks []result `json:"checks"`
	}{ok, results})
}

// leftovers are modules to which nobody is attached: left by a stapio that was
// killed, or detached on purpose (staprun -L). They go on running their probes
// and hold memory of the kernel.
func (d *doctor) leftovers() ([]finding, error) {
	modules, err := d.modules()
	if err != nil {
		return nil, err
	}
	var found []finding
	for _, m := range modules {
		if m.Uses > 0 {
			continue
		}
		owner := d.user(m.UID)
		found = append(found, finding{
			What:   fmt.Sprintf("module %s, loaded by %s, runs with nobody attached (staprun -A %s attaches)", m.Name, owner, m.Name),
			Object: m.Name, Owner: owner, Command: "staprun -d " + m.Name,
		})
	}
	return found, nil
}

// user is the name of a uid, or the number where /etc/passwd has no name for it.
func (d *doctor) user(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	b, err := d.passwd()
	if err != nil {
		return "uid " + number
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == number && f[0] != "" {
			return f[0]
		}
	}
	return "uid " + number
}
