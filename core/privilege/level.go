// Package privilege answers two questions: which SystemTap privilege levels a
// user holds, and whether a given user may load a given module.
//
// A level set is the bit mask of the module ABI (loader-relay 4.1):
//
//	0x2 stapusr   own processes, timers, begin/end/error
//	0x4 stapsys   system-wide unprivileged probing
//	0x8 stapdev   everything
//
// A holder of stapsys holds stapusr too (0x6), a holder of stapdev and the
// root user hold all (0xE).
package privilege

import "fmt"

// Level is a set of SystemTap privilege levels.
type Level uint32

// The bits of a Level, and the sets that users and scripts really have.
const (
	None    Level = 0
	StapUsr Level = 0x2
	StapSys Level = 0x4
	StapDev Level = 0x8
	All           = StapUsr | StapSys | StapDev
)

// Contains reports whether every level of required is in l.
func (l Level) Contains(required Level) bool { return l&required == required }

// String is the name of the highest level in the set, as upstream's messages
// show it: "stapdev", "stapsys", "stapusr", "none" or "unknown".
func (l Level) String() string {
	switch {
	case l.Contains(StapDev):
		return "stapdev"
	case l.Contains(StapSys):
		return "stapsys"
	case l.Contains(StapUsr):
		return "stapusr"
	case l == None:
		return "none"
	}
	return "unknown"
}

// ParseLevel reads the argument of --privilege: stapusr, stapsys or stapdev.
func ParseLevel(name string) (Level, error) {
	for _, l := range []Level{StapUsr, StapSys, StapDev} {
		if l.String() == name {
			return l, nil
		}
	}
	return None, fmt.Errorf("privilege level %q is not stapusr, stapsys or stapdev", name)
}
