package loader

import (
	"encoding/binary"
	"strings"
	"time"
)

// localZone is the time zone that the module is told: the caller's TZ if it names
// one, else the host's. A TZ that starts with a slash or leads upwards is not
// looked at, as glibc does it in privileged programs; for root such a path is
// read by the package time itself, which still has his environment.
func localZone(tz string, set bool, now time.Time) (name string, secondsWest int64) {
	location := time.Local
	if set {
		if l := callersZone(tz); l != nil {
			location = l
		}
	}
	name, east := now.In(location).Zone()
	return name, -int64(east)
}

const maxTZ = 128

// callersZone reads a value of TZ: a name below the host's zoneinfo directory
// such as "Europe/Berlin", or a rule such as "CET-1CEST" (tzset(3)). It is nil
// for anything else.
func callersZone(tz string) *time.Location {
	tz = strings.TrimPrefix(tz, ":")
	switch {
	case tz == "":
		return time.UTC
	case len(tz) > maxTZ || strings.HasPrefix(tz, "/") || strings.Contains(tz, ".."):
		return nil
	}
	for i := 0; i < len(tz); i++ {
		if c := tz[i]; c <= ' ' || c > '~' {
			return nil
		}
	}
	if l, err := time.LoadLocation(tz); err == nil && tz != "Local" {
		return l
	}
	if !strings.ContainsAny(tz, "0123456789") {
		return nil
	}
	l, err := time.LoadLocationFromTZData("TZ", ruleFile(tz))
	if err != nil {
		return nil
	}
	// What is no rule leaves the one zone of the file.
	if name, east := time.Unix(0, 0).In(l).Zone(); name == noRule && east == 0 {
		return nil
	}
	return l
}

const noRule = "?"

// ruleFile is a tzfile(5) of version 2 without transitions, whose footer is the
// rule: the package time reads rules only there.
func ruleFile(rule string) []byte {
	header := func() []byte {
		b := append([]byte("TZif2"), make([]byte, 15)...)
		for _, count := range []uint32{0, 0, 0, 0, 1, uint32(len(noRule) + 1)} {
			b = binary.BigEndian.AppendUint32(b, count)
		}
		b = append(b, 0, 0, 0, 0, 0, 0) // one zone: at UTC, no daylight saving, name 0
		return append(b, noRule+"\x00"...)
	}
	return append(append(append(header(), header()...), "\n"+rule...), '\n')
}
