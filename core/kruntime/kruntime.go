// Package kruntime carries the kernel side of every module: C sources, MIT or
// GPL-2.0 at the user's choice, that are compiled once per kernel and linked
// with the unit that core/translate writes for a script.
//
// The sources use exported kernel symbols only. What they need to know about a
// script - limits, probes, arrays, privilege - is data in the script unit
// (struct stp_script in stp.h), so one set of objects serves all scripts.
//
// Linking: the objects of Always, the script unit, and from an archive of the
// other objects whatever those leave undefined. Module metadata (licence,
// description) comes from main.c, parameters and .stap_privilege from the
// script unit. The objects are made without function tracing: it would make
// them bigger and let a tracer run inside a probe.
package kruntime

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"sort"
)

//go:embed c/*.c c/*.h
var files embed.FS

// HeaderName is the file name under which a script unit includes Header.
const HeaderName = "stp.h"

// EmbedHeaderName is what a script unit with C of the script includes instead:
// it includes the kernel's headers.
const EmbedHeaderName = "embed.h"

// always are the sources whose objects every module needs.
var always = []string{"control.c", "data.c", "files.c", "limit.c", "main.c", "print.c", "probe.c"}

// Probe is a question about a kernel that a compilation answers: when Snippet
// compiles, -D of Name is given for the runtime's sources.
type Probe struct {
	Name    string
	Snippet string
}

// Probes are the questions to ask once per kernel. -D STP_PROBED tells the
// sources that they were asked; without it kernel versions decide.
var Probes = []Probe{
	{"STP_HAVE_HRTIMER_SETUP", `#include <linux/hrtimer.h>
static enum hrtimer_restart f(struct hrtimer *t) { return HRTIMER_NORESTART; }
void stp_probe(struct hrtimer *t);
void stp_probe(struct hrtimer *t) { hrtimer_setup(t, f, CLOCK_MONOTONIC, HRTIMER_MODE_REL); }
`},
}

// Sources answers all files of the runtime by name: C sources, the internal
// header and the flat header. They belong in one directory.
func Sources() map[string][]byte {
	out := map[string][]byte{}
	entries, err := fs.ReadDir(files, "c")
	if err != nil {
		panic(err) // embedded: cannot be missing in a built program
	}
	for _, e := range entries {
		data, err := files.ReadFile("c/" + e.Name())
		if err != nil {
			panic(err)
		}
		out[e.Name()] = data
	}
	return out
}

// Header answers the flat header of script units.
func Header() []byte { return Sources()[HeaderName] }

// Always answers the names of the sources every module is linked with.
func Always() []string { return append([]string(nil), always...) }

// Optional answers the names of the sources to put in an archive.
func Optional() []string {
	var out []string
	for name := range Sources() {
		if name[len(name)-2:] == ".c" && !isAlways(name) {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out
}

func isAlways(name string) bool {
	for _, a := range always {
		if a == name {
			return true
		}
	}
	return false
}

// Version is a digest of all sources and of the questions asked.
func Version() string {
	sources := Sources()
	names := make([]string, 0, len(sources))
	for name := range sources {
		names = append(names, name)
	}
	sort.Strings(names)
	h := sha256.New()
	for _, name := range names {
		h.Write([]byte(name + "\x00"))
		sum := sha256.Sum256(sources[name])
		h.Write(sum[:])
	}
	for _, p := range Probes {
		h.Write([]byte(p.Name + "\x00" + p.Snippet + "\x00"))
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}
