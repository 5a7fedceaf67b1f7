package translate

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"stapbox/core/script/check"
	"stapbox/core/script/parser"
)

// limits are the -D macros of stap(1), RESOURCE LIMITS, that the runtime obeys.
type limits struct {
	stringLen, mapEntries, nesting         int64
	action, actionInterruptible            int64
	time                                   [3]int64 // ms: of timers, of other events, of begin, end and error; 0: none
	errors, skipped, trylock, trylockDelay int64
	minStack                               int64
	overloadInterval, overloadThreshold    int64
	bufferSize                             int64
	suppress                               bool
	bulk, monitor, timing                  bool
	relayHost, relayGuest                  string
	procfsSize                             int64    // STP_PROCFS_BUFSIZE; 0: MAXSTRINGLEN
	macros                                 []string // the other -D, for C
}

// parseLimits applies the -D options in order; the last one of a name counts.
func parseLimits(o Options) (*limits, error) {
	l := &limits{
		stringLen: 512, mapEntries: 2048, action: 1000, skipped: 100, trylock: 1000, trylockDelay: 10,
		minStack: 1024, overloadInterval: 1000000000, overloadThreshold: 500000000, bufferSize: 8192,
		time:     [3]int64{10, 100, 1000},
		suppress: o.SuppressHandlerErrors,
	}
	const unlimited = 1<<63 - 1
	known := map[string]struct {
		value    *int64
		min, max int64
	}{
		"MAXSTRINGLEN":            {&l.stringLen, 16, 1 << 16},
		"MAXMAPENTRIES":           {&l.mapEntries, 1, parser.MaxArray},
		"MAXNESTING":              {&l.nesting, 1, 10000},
		"MAXACTION":               {&l.action, 0, unlimited / 10},
		"MAXACTION_INTERRUPTIBLE": {&l.actionInterruptible, 0, unlimited},
		"MAXTIME":                 {&l.time[0], 0, 1 << 31},
		"MAXTIME_INTERRUPTIBLE":   {&l.time[1], 0, 1 << 31},
		"MAXTIME_SESSION":         {&l.time[2], 0, 1 << 31},
		"MAXERRORS":               {&l.errors, 0, 1<<31 - 1},
		"MAXSKIPPED":              {&l.skipped, 0, 1<<31 - 1},
		"MAXTRYLOCK":              {&l.trylock, 0, 1 << 20},
		"TRYLOCKDELAY":            {&l.trylockDelay, 0, 1000},
		"MINSTACKSPACE":           {&l.minStack, 0, 1 << 16},
		"STP_OVERLOAD_INTERVAL":   {&l.overloadInterval, 1, unlimited},
		"STP_OVERLOAD_THRESHOLD":  {&l.overloadThreshold, 0, unlimited},
		"STP_BUFFER_SIZE":         {&l.bufferSize, 256, 131072},
		"STP_PROCFS_BUFSIZE":      {&l.procfsSize, 1, check.MaxProcfsSize},
	}
	interruptible := false
	for _, d := range o.Defines {
		name, text, has := strings.Cut(d, "=")
		switch name {
		case "STP_NO_OVERLOAD":
			l.overloadThreshold = 0
			continue
		case "STP_BULKMODE":
			l.bulk = true
			continue
		case "STP_MONITOR":
			l.monitor = true
			continue
		case "STP_TIMING":
			l.timing = true
			continue
		case "RELAY_HOST", "RELAY_GUEST":
			if !has {
				text = "default"
			}
			if !relayName(text) {
				return nil, fmt.Errorf("-D %s: %q is not a name of up to 56 letters, digits and '_'", name, text)
			}
			if name == "RELAY_HOST" {
				l.relayHost = text
			} else {
				l.relayGuest = text
			}
			continue
		}
		k, ok := known[name]
		if !ok {
			l.macros = append(l.macros, d)
			continue
		}
		if !has {
			text = "1"
		}
		v, err := strconv.ParseInt(strings.TrimRight(strings.Trim(strings.TrimSpace(text), "()"), "uUlL"), 0, 64)
		if err != nil {
			return nil, fmt.Errorf("-D %s: %q is not a number", name, text)
		}
		if v < k.min || v > k.max {
			return nil, fmt.Errorf("-D %s: %d is not between %d and %d", name, v, k.min, k.max)
		}
		*k.value = v
		interruptible = interruptible || name == "MAXACTION_INTERRUPTIBLE"
	}
	if l.relayHost != "" && l.relayGuest != "" {
		return nil, errors.New("-D RELAY_HOST and -D RELAY_GUEST cannot be given together")
	}
	if l.procfsSize == 0 {
		l.procfsSize = l.stringLen
	}
	if !interruptible {
		l.actionInterruptible = l.action * 10
	}
	if o.SuppressTimeLimits {
		l.action, l.actionInterruptible, l.time = 0, 0, [3]int64{}
		l.trylock, l.overloadThreshold = unlimited, 0
	}
	return l, nil
}

// classes writes the limits of a handler for each enum stp_class.
func (l *limits) classes() string {
	var out strings.Builder
	for i, name := range []string{"MAXTIME", "MAXTIME_INTERRUPTIBLE", "MAXTIME_SESSION"} {
		actions := l.actionInterruptible
		if i == 0 {
			actions = l.action
		}
		fmt.Fprintf(&out, "\t\t{ %d, %dLL, %s },\n", actions, l.time[i]*1000000, quote(fmt.Sprintf("%s exceeded (%d ms)", name, l.time[i])))
	}
	return out.String()
}

// relayName reports whether s can name a host of records.
func relayName(s string) bool {
	return s != "" && len(s) <= 56 && s == cname(s)
}
