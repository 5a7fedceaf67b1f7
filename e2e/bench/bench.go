// Package bench measures the product beside upstream's SystemTap, in one run on
// one machine, and holds the results against the budgets of the design.
//
// Both sides work in the tree of lab.FetchPeer, with the same compiler and
// headers for the same kernel, and take turns. Every figure is a median; what
// is compared is mostly ratios, since absolute times depend on what else the
// machine does: the load average is printed with every row.
//
// STAPBOX_ONLY=PART in the environment runs one part: size, start, compile,
// serve, load, modules, guest or flood.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stapbox/e2e/lab"
)

// How often things are measured.
const (
	runs       = 5
	firstRuns  = 3   // first compiles take upstream half a minute
	startRuns  = 101 // of staprun -V
	manyScript = 500 // requests that the server's memory is watched over
)

// unit says how a row's figures are shown.
type unit struct {
	name   string
	factor float64
}

var (
	seconds      = unit{"s", 1}
	milliseconds = unit{"ms", 1e3}
	mebibytes    = unit{"MiB", 1.0 / (1 << 20)}
	megabytes    = unit{"MB", 1e-6}
	bytes        = unit{"bytes", 1}
	records      = unit{"records", 1}
	perSecond    = unit{"/s", 1}
)

func (u unit) show(v float64) string {
	if u == bytes {
		return fmt.Sprintf("%.0f bytes", v)
	}
	return fmt.Sprintf("%.3g %s", v*u.factor, u.name)
}

// row is one line of the table.
type row struct {
	what         string
	unit         unit
	ours, theirs []float64 // theirs may be empty
	most         float64   // budget for the median of ours; 0 is none
	ratio        float64   // budget for ours divided by theirs; 0 is none
	none         bool      // the budget is 0
	load         string
}

func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// held says whether the budgets hold. A ratio without figures of upstream does
// not.
func (r *row) held() bool {
	if len(r.ours) == 0 {
		return false
	}
	ours := median(r.ours)
	if r.most != 0 && ours > r.most || r.none && ours != 0 {
		return false
	}
	return r.ratio == 0 || len(r.theirs) > 0 && ours <= r.ratio*median(r.theirs)
}

func (r *row) budget() string {
	var list []string
	if r.none {
		return "none"
	}
	if r.most != 0 {
		list = append(list, r.unit.show(r.most))
	}
	if r.ratio != 0 {
		list = append(list, fmt.Sprintf("%.3gx", r.ratio))
	}
	if len(list) == 0 {
		return "-"
	}
	return "<= " + strings.Join(list, ", ")
}

// columns are the row's figures as the table shows them.
func (r *row) columns() (theirs, ours, ratio string) {
	theirs, ours, ratio = "-", "-", "-"
	if len(r.ours) > 0 {
		ours = r.unit.show(median(r.ours))
	}
	if len(r.theirs) > 0 {
		theirs = r.unit.show(median(r.theirs))
		if len(r.ours) > 0 {
			ratio = fmt.Sprintf("%.3g", median(r.ours)/median(r.theirs))
		}
	}
	return
}

func spread(u unit, list []float64) string {
	if len(list) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s .. %s (%d)", u.show(slices.Min(list)), u.show(slices.Max(list)), len(list))
}

// bench is one run.
type bench struct {
	lab      *lab.Lab
	programs *lab.Programs
	peer     *lab.Peer
	net      *lab.Network
	out      io.Writer
	work     string // /mnt in the tree
	numbers  int
	rows     []*row
}

// Run measures everything, prints it, and fails if a budget is missed.
func Run(ctx context.Context, l *lab.Lab, programs *lab.Programs, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("benchmarks enter upstream's tree and boot guests with networks: only root can")
	}
	b := &bench{lab: l, programs: programs, out: out}
	if b.peer, err = l.FetchPeer(ctx); err != nil {
		return fmt.Errorf("setting up the peer: %w", err)
	}
	if b.net, err = l.NewNetwork(); err != nil {
		return err
	}
	defer b.net.Close()
	if b.work, err = os.MkdirTemp(b.peer.Dir, "bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	if err := b.install(); err != nil {
		return err
	}
	fmt.Fprintf(out, "bench: upstream is SystemTap %s; both build for kernel %s with the same compiler; load average %s\n", b.peer.Version, b.peer.Kernel.Release, load())
	only := os.Getenv("STAPBOX_ONLY")
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"size", b.size}, {"start", b.start}, {"compile", b.compile}, {"serve", b.serve}, {"load", b.load}, {"modules", b.modules}, {"guest", b.guest}, {"flood", b.flood}} {
		if only != "" && only != part.name {
			continue
		}
		if err := part.run(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return b.close()
}

// install copies the product to where the tree sees it.
func (b *bench) install() error {
	if err := os.Chmod(b.work, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(b.work, "bin"), 0o755); err != nil {
		return err
	}
	box, err := os.ReadFile(b.programs.Box)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.work, "bin/stapbox"), box, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"stap", "stap-serverd", "staprun"} {
		if err := os.Symlink("stapbox", filepath.Join(b.work, "bin", name)); err != nil {
			return err
		}
	}
	return nil
}

// add prints a row with its spread; the table at the end shows the medians.
func (b *bench) add(r *row) {
	r.load = load()
	b.rows = append(b.rows, r)
	fmt.Fprintf(b.out, "bench: %s: upstream %s, ours %s; load average %s\n", r.what, spread(r.unit, r.theirs), spread(r.unit, r.ours), r.load)
}

// close prints the table.
func (b *bench) close() error {
	header := [6]string{"medians", "upstream", "ours", "ratio", "budget", ""}
	table := [][6]string{header}
	missed := 0
	for _, r := range b.rows {
		verdict := "OK"
		if !r.held() {
			verdict = "MISSED"
			missed++
		}
		theirs, ours, ratio := r.columns()
		table = append(table, [6]string{r.what, theirs, ours, ratio, r.budget(), verdict})
	}
	var width [6]int
	for _, line := range table {
		for i, cell := range line {
			width[i] = max(width[i], len(cell))
		}
	}
	fmt.Fprintln(b.out)
	for _, line := range table {
		text := fmt.Sprintf("%-*s  %*s  %*s  %*s  %-*s  %s", width[0], line[0], width[1], line[1], width[2], line[2], width[3], line[3], width[4], line[4], line[5])
		fmt.Fprintln(b.out, strings.TrimRight(text, " "))
	}
	fmt.Fprintf(b.out, "\n%d of %d budgets hold; load average %s\n", len(b.rows)-missed, len(b.rows), load())
	if missed > 0 {
		return fmt.Errorf("%d of %d budgets are missed", missed, len(b.rows))
	}
	return nil
}

// load is the load average of the last minute: what else the machine does.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// number is a new one each time: scripts that have it have not been seen before.
func (b *bench) number() int {
	if b.numbers == 0 {
		b.numbers = int(time.Now().Unix()%1e6) * 1000
	}
	b.numbers++
	return b.numbers
}
