package server

import (
	"time"

	"golang.org/x/sys/unix"
)

// steadyClock tells whether the clock of the host can be believed: it is compared
// with the time since boot. A jump is believed when it has lasted for jumpTime: a
// clock that was wrong at boot is set right, and stays so. The caller holds s.mu.
type steadyClock struct {
	since  func() time.Duration // boot; nil for CLOCK_BOOTTIME
	begun  bool
	offset time.Duration // of the believed clock from the time since boot

	jumping bool
	jump    time.Duration // offset of the clock that is not believed
	at      time.Duration // when it was first seen
}

const (
	jumpSize = 24 * time.Hour
	jumpTime = time.Hour
)

// believe looks at the clock. What is to be said about it goes to say.
func (c *steadyClock) believe(now time.Time, say func(format string, args ...any)) bool {
	since := bootTime()
	if c.since != nil {
		since = c.since()
	}
	offset := time.Duration(now.UnixNano()) - since
	switch {
	case !c.begun:
		c.begun, c.offset = true, offset
	case (offset - c.offset).Abs() <= jumpSize:
		c.jumping, c.offset = false, offset // small steps add up
	case !c.jumping || (offset-c.jump).Abs() > jumpSize:
		c.jumping, c.jump, c.at = true, offset, since
		say("The clock of this host has jumped by %v to %s UTC: certificates are not renewed until that has lasted for %v", (offset - c.offset).Round(time.Second), now.UTC().Format(time.DateTime), jumpTime)
	case since-c.at >= jumpTime:
		c.jumping, c.offset = false, offset
		say("The clock of this host has been at its new time for %v, which counts from now on", jumpTime)
	}
	return !c.jumping
}

// bootTime is CLOCK_BOOTTIME, which goes on while the host sleeps.
func bootTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0 // no kernel since 2.6.39
	}
	return time.Duration(ts.Nano())
}
