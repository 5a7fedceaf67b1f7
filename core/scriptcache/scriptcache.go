// Package scriptcache knows the compiled scripts of the init manager: which
// files belong to one, what is recorded about it, and whether it may still be
// loaded (services 3.5).
//
// A compiled script NAME for a kernel is a pair in the directory of that kernel's
// release: the module NAME.ko and the record NAME.opts. NAME.ko.sgn, a signature,
// and NAME.uprobes, a mark of old releases, may stand beside them.
//
// The record has lines, each ended by 0x0a:
//
//	Linux host 6.1.0-1 #1 SMP ... x86_64 GNU/Linux    uname -a where and when it was compiled
//	target=6.1.0-1 x86_64                             release and machine it is for
//	stap=VERSION                                      what compiled it
//	-g -D A=1 --                                      normalised options of stap
//
// Readers use the first and the last line, and target= if it is between them:
// upstream's records have only these two.
package scriptcache

import (
	"errors"
	"fmt"
	"strings"
)

// Record is the contents of NAME.opts.
type Record struct {
	Uname   string // uname -a
	Release string // of the kernel it is for, "" if the record does not say
	Machine string
	Stap    string
	Options string // normalised, ends with "--"
}

// Suffixes of the files of one compiled script, the record last: it vouches for
// the others.
func Suffixes() []string { return []string{".ko", ".ko.sgn", ".uprobes", ".opts"} }

// Format writes a record.
func (r Record) Format() []byte {
	return fmt.Appendf(nil, "%s\ntarget=%s %s\nstap=%s\n%s\n", r.Uname, r.Release, r.Machine, r.Stap, r.Options)
}

// maxRecord is more than any command line has.
const maxRecord = 256 << 10

// ParseRecord reads a record.
func ParseRecord(data []byte) (Record, error) {
	if len(data) > maxRecord {
		return Record{}, fmt.Errorf("record has more than %d bytes", maxRecord)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(lines) < 2 {
		return Record{}, errors.New("record has less than two lines")
	}
	r := Record{Uname: lines[0], Options: lines[len(lines)-1]}
	for _, l := range lines[1 : len(lines)-1] {
		if v, ok := strings.CutPrefix(l, "target="); ok && r.Release == "" {
			if r.Release, r.Machine, ok = strings.Cut(v, " "); !ok || r.Release == "" {
				return Record{}, fmt.Errorf("target %q is not a release and a machine", v)
			}
		}
		if v, ok := strings.CutPrefix(l, "stap="); ok && r.Stap == "" {
			r.Stap = v
		}
	}
	return r, nil
}

// Kernel is a kernel that a cache may be for.
type Kernel struct {
	Uname    string // uname -a of the running kernel
	Release  string // of the kernel asked for, which need not be the running one
	Machine  string
	Node     string // name of this host
	Version  string // uname -v
	Vermagic string // of the module, "" if it has none
}

// ErrNoRecord is the reason of Check for a module without record.
var ErrNoRecord error = constError("there is no record (.opts) beside the module")

type constError string

func (e constError) Error() string { return string(e) }

// Check says why a compiled script must not be used, nil if it may be. options
// are the current ones, hasScript whether the script is still there to be
// compared with; without it neither options nor uname -a count.
//
// The kernel fits when uname -a is as it was, or when the record says that the
// module was made for this release and machine, wherever that was. Without such
// a line the module itself and the name of its directory, which is k.Release,
// must say so. A kernel of the same release that was built again is another one,
// but only a module compiled on this very host for that very kernel shows it.
func Check(r *Record, k Kernel, options string, hasScript bool) error {
	release, _, _ := strings.Cut(k.Vermagic, " ")
	if release == "" {
		return errors.New("the module does not say which kernel it is for")
	}
	if release != k.Release {
		return fmt.Errorf("the module is for kernel %q, not %q", release, k.Release)
	}
	if !hasScript {
		return nil
	}
	if r == nil {
		return ErrNoRecord
	}
	if r.Options != options {
		return fmt.Errorf("the options were %q and are %q", r.Options, options)
	}
	if r.Uname == k.Uname {
		return nil
	}
	if r.Release != "" && (r.Release != k.Release || r.Machine != k.Machine) {
		return fmt.Errorf("it was compiled for %q, not %q", r.Release+" "+r.Machine, k.Release+" "+k.Machine)
	}
	// sysname nodename release version machine ...
	if f := strings.SplitN(r.Uname, " ", 4); len(f) == 4 && f[1] == k.Node && f[2] == k.Release && !strings.HasPrefix(f[3]+" ", k.Version+" ") {
		return errors.New("the kernel was built again since (uname -v)")
	}
	return nil
}

// ValidName reports why a script cannot be a service: its name is part of the
// names of variables and the name of a module.
func ValidName(name string) error {
	if name == "" {
		return errors.New("the name is empty")
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return fmt.Errorf("%s is not a valid script name (must match [a-zA-Z_][a-zA-Z0-9_]*)", clean(name))
		}
	}
	if strings.ToLower(name) != name {
		return fmt.Errorf("%s is not a valid script name (stap -m takes no capital letters)", name)
	}
	if len(name) > maxName {
		return fmt.Errorf("%s is not a valid script name (more than %d letters, the longest module name)", name, maxName)
	}
	return nil
}

const maxName = 54

// clean is a name as it may be shown: without control characters.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
