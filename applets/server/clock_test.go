package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"stapbox/core/identity"
)

func TestSecurity07ClockIsBelieved(t *testing.T) {
	start := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	var boot time.Duration
	c := steadyClock{since: func() time.Duration { return boot }}
	for i, tt := range []struct {
		boot    time.Duration
		clock   time.Duration // from start
		believe bool
		says    string
	}{
		{0, 0, true, ""},
		{time.Hour, time.Hour, true, ""},
		{2 * time.Hour, 20 * time.Hour, true, ""}, // less than a day
		{3 * time.Hour, 11 * 8760 * time.Hour, false, "has jumped by"},
		{3*time.Hour + time.Minute, 11*8760*time.Hour + time.Minute, false, ""},
		{4 * time.Hour, 22 * time.Hour, true, ""}, // right again
		{5 * time.Hour, -8760 * time.Hour, false, "has jumped by -"},
		{5*time.Hour + 59*time.Minute, -8760*time.Hour + 59*time.Minute, false, ""},
		{6 * time.Hour, -8760*time.Hour + time.Hour, true, "counts from now on"},
		{7 * time.Hour, -8760*time.Hour + 2*time.Hour, true, ""},
		{8 * time.Hour, 26 * time.Hour, false, "has jumped by"},
	} {
		boot = tt.boot
		var said string
		if got := c.believe(start.Add(tt.clock), func(f string, a ...any) { said += fmt.Sprintf(f, a...) }); got != tt.believe || !strings.Contains(said, tt.says) || (tt.says == "") != (said == "") {
			t.Errorf("%d: got %v, said %q", i, got, said)
		}
	}
}

// While the clock is in 2038 for a moment the server keeps its certificate, the next
// one too; and one that started then takes the one back that clients trust.
func TestSecurity07ServerKeepsItsCertificate(t *testing.T) {
	r := start(t, "--renew-before=30")
	first := r.id.Certificate
	base := time.Now()
	var boot time.Duration
	at := func(clock, since time.Duration) {
		r.mu.Lock()
		r.now, boot = func() time.Time { return base.Add(clock) }, since
		r.clockOf.since = func() time.Duration { return boot }
		if since == 0 {
			r.clockOf = steadyClock{since: r.clockOf.since}
		}
		r.mu.Unlock()
		r.renew()
	}
	check := func(what string) {
		t.Helper()
		id, err := r.identity()
		if err != nil || !id.Certificate.Equal(first) || r.next != nil {
			t.Errorf("%s: got %v, %v, next %v", what, id.Certificate.NotBefore, err, r.next)
		}
	}
	at(0, 0)
	check("at first")
	at(11*8760*time.Hour, time.Hour)
	check("in 2038")
	at(2*time.Hour, 2*time.Hour)
	check("afterwards")
	if n := strings.Count(r.out.String(), "has jumped by"); n != 1 {
		t.Errorf("the log says %d times that the clock has jumped:\n%s", n, r.out)
	}
	// It lasts: a server needs a certificate that is valid.
	at(11*8760*time.Hour, 3*time.Hour)
	at(11*8760*time.Hour+2*time.Hour, 5*time.Hour)
	if id, err := r.identity(); err != nil || id.Certificate.Equal(first) {
		t.Errorf("a clock that stays: %v", err)
	}
	// And is over after all.
	at(6*time.Hour, 6*time.Hour)
	at(8*time.Hour, 8*time.Hour)
	check("in the end")
	if !strings.Contains(r.out.String(), "Certificate sha256="+identity.Fingerprint(first)+", which was kept, is valid now and takes over") {
		t.Errorf("the log says nothing about it:\n%s", r.out)
	}
}
