package monitor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// window is one of the two that can be scrolled.
type window int

const (
	outputWindow window = iota
	probeWindow
)

// The columns of the probe list, in the order in which s goes through them.
const (
	byIndex = iota
	byState
	byHits
	byMin
	byAvg
	byMax
	byName
	columns
)

// state is everything a frame shows.
type state struct {
	status Status
	notice string // the last problem
	out    history

	paused, hidden, help, stopping, exited bool

	sort      int
	focus     window
	back      int // rows of output scrolled back from the newest
	seen      int // lines there were at the last frame
	top       int // first probe shown
	prompting bool
	prompt    string
}

// row is one line of the screen, padded to its width.
type row struct {
	text    string
	reverse bool
}

// layout divides a height: rows of the status, of the output, and the last row,
// which is the prompt.
func (s *state) layout(height int) (globals, probes, output int) {
	height-- // the prompt
	if s.hidden {
		return 0, 0, max(height-1, 0)
	}
	rest := height - 3 // title, table head, title of the output
	if rest <= 0 {
		return 0, 0, 0
	}
	globals = min(len(s.status.Globals), max(rest/4, 1), rest)
	probes = min(len(s.status.Probes), max(rest/2-globals, 1), rest-globals)
	return globals, probes, rest - globals - probes
}

// render draws the state: height rows of width cells. It changes nothing but
// scrolling that has gone too far.
func render(s *state, width, height int) []row {
	width, height = max(width, 1), max(height, 1)
	rows := make([]row, 0, height)
	add := func(reverse bool, format string, args ...any) {
		rows = append(rows, row{fit(fmt.Sprintf(format, args...), width), reverse})
	}
	if s.help {
		for _, l := range helpText() {
			add(false, "%s", l)
		}
	} else {
		globals, probes, output := s.layout(height)
		if !s.hidden {
			s.renderStatus(add, globals, probes, width)
		}
		s.renderOutput(add, output, width)
	}
	for len(rows) < height-1 {
		add(false, "")
	}
	rows = rows[:height-1]
	switch {
	case s.prompting:
		add(false, "probe to switch on or off (Enter, Esc): %s_", s.prompt)
	case s.exited:
		add(true, "EXITED: press q again to quit")
	case s.notice != "":
		add(false, "%s", s.notice)
	case s.stopping:
		add(false, "stopping")
	default:
		add(false, "h help  c clear  s sort  t toggle  p pause  r resume  x hide  q quit  Tab window")
	}
	return rows
}

func helpText() []string {
	return []string{
		"h      this help, and back",
		"c      reset the globals and the statistics of the probes",
		"s      sort the probes by the next column",
		"t      switch a probe on or off by its index",
		"p r    pause the script, resume it",
		"x      hide the status, and back",
		"q      quit; once more when the script has exited",
		"Tab    scroll the other window",
		"j k, arrows, PgUp PgDn, Home End",
		"       scroll",
	}
}

func (s *state) renderStatus(add func(bool, string, ...any), globals, probes, width int) {
	st := &s.status
	title := fmt.Sprintf("module: %s  uptime: %s  uid: %s  memory: %s", visible(st.Module), visible(st.Uptime), visible(st.UID), visible(st.Memory))
	if s.paused {
		title = "PAUSED  " + title
	}
	add(true, "%s", title)
	for i, g := range st.Globals[:globals] {
		if i == globals-1 && len(st.Globals) > globals {
			add(false, "(%d more global variables)", len(st.Globals)-globals+1)
			break
		}
		add(false, "%s: %s", visible(g.Name), visible(g.Value))
	}
	head := [columns]string{"index", "state", "hits", "min", "avg", "max", "name"}
	head[s.sort] = "*" + head[s.sort]
	mark := ""
	if s.focus == probeWindow {
		mark = "  <"
	}
	if width >= 60 {
		add(true, "%6s %6s %9s %9s %9s %9s  %s%s", head[0], head[1], head[2], head[3], head[4], head[5], head[6], mark)
	} else {
		add(true, "%6s %6s %9s  %s%s", head[0], head[1], head[2], head[6], mark)
	}
	s.top = max(min(s.top, len(st.Probes)-probes), 0)
	for _, p := range sorted(st.Probes, s.sort)[s.top : s.top+probes] {
		on := "off"
		if p.On {
			on = "on"
		}
		if width >= 60 {
			add(false, "%6d %6s %9d %9d %9d %9d  %s", p.Index, on, p.Hits, p.Min, p.Avg, p.Max, visible(p.Name))
		} else {
			add(false, "%6d %6s %9d  %s", p.Index, on, p.Hits, visible(p.Name))
		}
	}
}

// sorted is the list by a column, numbers of events from the highest down.
func sorted(probes []Probe, column int) []Probe {
	probes = slices.Clone(probes)
	slices.SortStableFunc(probes, func(a, b Probe) int {
		switch column {
		case byState:
			switch {
			case a.On == b.On:
				return cmp.Compare(a.Index, b.Index)
			case a.On:
				return -1
			}
			return 1
		case byHits:
			return cmp.Compare(b.Hits, a.Hits)
		case byMin:
			return cmp.Compare(b.Min, a.Min)
		case byAvg:
			return cmp.Compare(b.Avg, a.Avg)
		case byMax:
			return cmp.Compare(b.Max, a.Max)
		case byName:
			return strings.Compare(a.Name, b.Name)
		}
		return cmp.Compare(a.Index, b.Index)
	})
	return probes
}

func (s *state) renderOutput(add func(bool, string, ...any), height, width int) {
	tail := visible(string(s.out.partial))
	n := s.out.len()
	line := func(i int) string {
		if i == n {
			return tail
		}
		return s.out.at(i)
	}
	last := n - 1
	if tail != "" {
		last = n
	}
	if s.back > 0 { // what is looked at stays where it is
		for i := max(n-(s.out.total-s.seen), 0); i < n; i++ {
			s.back += len(wrap(s.out.at(i), width))
		}
	}
	s.seen = s.out.total
	// From the newest row back to the top of the window.
	var shown []string
	rows := 0
	for i := last; i >= 0 && rows < s.back+height; i-- {
		w := wrap(line(i), width)
		rows += len(w)
		slices.Reverse(w)
		shown = append(shown, w...)
	}
	s.back = max(min(s.back, rows-height), 0)
	title := fmt.Sprintf("output: %d lines", last+1)
	if s.back > 0 {
		title += fmt.Sprintf(", %d rows further down", s.back)
	}
	if s.focus == outputWindow {
		title += "  <"
	}
	add(true, "%s", title)
	shown = shown[s.back:min(s.back+height, len(shown))]
	slices.Reverse(shown)
	for _, l := range shown {
		add(false, "%s", l)
	}
}
