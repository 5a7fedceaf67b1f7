package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"stapbox/e2e/lab"
)

// Scripts that print much.
const (
	// 150,000 lines of 64 bytes.
	linesScript = `probe begin { for (i = 0; i < 150000; i++) printf("%063d\n", i); exit() }`
	// Every CPU prints a record of 100 lines with each tick of its clock, for five
	// seconds. The number of records comes over the control channel, where nothing
	// is lost.
	tickScript = `global n
probe timer.profile { for (i = 0; i < 100; i++) printf("%063d\n", i); n++ }
probe timer.s(5) { exit() }
probe end { warn(sprintf("generated %d", n)) }`
)

const (
	linesBytes  = 150000 * 64
	recordLines = 100 // of a record of tickScript
)

// toFile runs "$@" with its output in a file, which must be whole.
const toFile = `"$@" -o /tmp/flood || exit 1
[ $(stat -c %s /tmp/flood) = 9600000 ] || { echo "the file has $(stat -c %s /tmp/flood) bytes"; exit 1; }
rm /tmp/flood`

// toSlowReader runs "$@" into a pipe that is read at a megabyte a second, and
// prints the number of lines that came, the most memory stapio had in KiB, and
// what it said.
const toSlowReader = `{ "$@" 2>/tmp/said; } | /agent slow 1000000
cat /tmp/said`

// flood measures how much output is carried, what that costs, and what is lost
// when it is more than the reader takes.
func (b *bench) flood(ctx context.Context) error {
	theirs, ours, err := b.sides()
	if err != nil {
		return err
	}
	image := lab.NewImage()
	staprun, env, err := b.peer.Runtime(ctx, image, "peer")
	if err != nil {
		return err
	}
	for _, m := range []struct {
		side
		name, script string
	}{{theirs, "lines", linesScript}, {ours, "ourlines", linesScript}, {theirs, "ticks", tickScript}, {ours, "ourticks", tickScript}} {
		if _, err := b.time(ctx, m.side, b.p4(m.side, "-m", m.name, "-DMAXACTION=10000000", "-DMAXTIME_SESSION=60000", "-DSTP_NO_OVERLOAD", "-e", m.script)...); err != nil {
			return err
		}
		text, err := os.ReadFile(filepath.Join(b.work, m.name+".ko"))
		if err != nil {
			return err
		}
		image.File("modules/"+m.name+".ko", 0o644, text)
	}
	g, err := b.lab.Boot(lab.GuestConfig{Kernel: b.peer.Kernel, Image: image, Agent: b.programs.Agent, Box: b.programs.Box, Memory: 2048, CPUs: 4})
	if err != nil {
		return err
	}
	defer g.Kill()
	do := func(script, staprun, module string, env []string, args ...string) (out string, wall, cpu float64, err error) {
		r := lab.Command(lab.Root, append([]string{"/bin/sh", "-c", script, "sh", staprun, "/modules/" + module + ".ko"}, args...)...)
		r.Env = append(r.Env, env...)
		r.Timeout = 180
		a, err := g.Do(r)
		if err == nil && (a.Status != 0 || a.TimedOut) {
			err = fmt.Errorf("%s %s in the guest: status %d\n%s%s", staprun, module, a.Status, a.Stdout, a.Stderr)
		}
		return string(a.Stdout), float64(a.Millis) / 1e3, float64(a.CPU) / 1e6, err
	}
	carried := &row{what: "150,000 records (9.6 MB) to a file, upstream's module", unit: seconds, ratio: 1}
	spent := &row{what: "the same, processor time", unit: seconds, ratio: 1}
	own := &row{what: "150,000 records to a file, own module", unit: seconds, ratio: 1}
	ownSpent := &row{what: "the same, processor time", unit: seconds, ratio: 1}
	for i := range runs + 1 {
		_, wall, cpu, err := do(toFile, staprun, "lines", env)
		_, ourWall, ourCPU, err2 := do(toFile, "/usr/bin/staprun", "lines", nil)
		_, ownWall, ownCPU, err3 := do(toFile, "/usr/bin/staprun", "ourlines", nil)
		if err := errors.Join(err, err2, err3, ctx.Err()); err != nil {
			return err
		}
		if i == 0 {
			continue // warms up
		}
		carried.theirs, own.theirs = append(carried.theirs, wall), append(own.theirs, wall)
		spent.theirs, ownSpent.theirs = append(spent.theirs, cpu), append(ownSpent.theirs, cpu)
		carried.ours, spent.ours = append(carried.ours, ourWall), append(spent.ours, ourCPU)
		own.ours, ownSpent.ours = append(own.ours, ownWall), append(ownSpent.ours, ownCPU)
	}
	for _, r := range []*row{carried, spent, own, ownSpent} {
		b.add(r)
	}
	fmt.Fprintf(b.out, "bench: bytes a second: upstream %.3g, ours %.3g, ours with own module %.3g\n",
		linesBytes/median(carried.theirs), linesBytes/median(carried.ours), linesBytes/median(own.ours))

	return errors.Join(b.overrun(ctx, do, staprun, env), ctx.Err())
}

// overrun lets every CPU print more than the reader takes. Each record must be
// read, or counted as lost by the module or by stapio. Upstream's module counts
// records as lost of which it has stored a part, and its staprun does not always
// end here: what became of it is printed, not judged.
func (b *bench) overrun(ctx context.Context, do guestRun, staprun string, env []string) error {
	missing := &row{what: "four flooding CPUs, slow reader: records not accounted for", unit: records, none: true}
	peak := &row{what: "the same, most memory of stapio", unit: mebibytes, most: 32 << 20}
	for range runs {
		out, _, _, err := do(toSlowReader, "/usr/bin/staprun", "ourticks", nil, "-b", "1")
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		l, err := readLoss(out)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "bench: %+v\n", l)
		missing.ours = append(missing.ours, math.Abs(l.generated-l.arrived-l.dropped-l.lost))
		peak.ours = append(peak.ours, l.peak*1024)
	}
	out, _, _, err := do(toSlowReader, staprun, "ticks", env, "-b", "1")
	if err != nil {
		fmt.Fprintf(b.out, "bench: upstream: %v\n", err)
	} else if l, err := readLoss(out); err != nil {
		fmt.Fprintf(b.out, "bench: upstream: %v\n", err)
	} else {
		fmt.Fprintf(b.out, "bench: upstream: %+v\n", l)
	}
	b.add(missing)
	b.add(peak)
	return nil
}

// guestRun runs script, with a staprun, one of the modules and arguments as $@,
// in the guest; wall and cpu are seconds.
type guestRun func(script, staprun, module string, env []string, args ...string) (out string, wall, cpu float64, err error)

// loss is what became of the records of the flood.
type loss struct {
	generated, arrived float64
	dropped            float64 // by the module, for want of room
	lost               float64 // as stapio counts
	peak               float64 // KiB
}

// readLoss reads what toSlowReader prints.
func readLoss(out string) (loss, error) {
	var l loss
	var lines float64
	if _, err := fmt.Sscan(out, &lines, &l.peak); err != nil {
		return l, fmt.Errorf("%w in %q", err, out)
	}
	l.arrived = lines / recordLines
	number := func(pattern string) float64 {
		m := regexp.MustCompile(pattern).FindStringSubmatch(out)
		if m == nil {
			return 0
		}
		n, _ := strconv.ParseFloat(m[1], 64) // digits by its pattern
		return n
	}
	l.generated = number(`generated ([0-9]+)`)
	l.dropped = number(`There were ([0-9]+) transport failures`)
	l.lost = number(`There were ([0-9]+) lost messages`)
	if l.generated == 0 {
		return l, fmt.Errorf("no number of records in %q", out)
	}
	return l, nil
}
