// Package metricstest reads the text exposition format of Prometheus strictly,
// for tests of what is shown. It is not a part of the product.
package metricstest

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// Sample is one line with a value.
type Sample struct {
	Name   string
	Labels map[string]string
	Value  float64
}

// Samples is a whole page.
type Samples []Sample

// Get gives the value of the sample with exactly this name and these labels,
// name and value in turn.
func (s Samples) Get(name string, labels ...string) (float64, bool) {
	for _, x := range s {
		if x.Name != name || len(x.Labels) != len(labels)/2 {
			continue
		}
		same := true
		for i := 0; i < len(labels); i += 2 {
			v, ok := x.Labels[labels[i]]
			same = same && ok && v == labels[i+1]
		}
		if same {
			return x.Value, true
		}
	}
	return 0, false
}

// Parse reads a page. What it accepts: HELP then TYPE before the samples of a
// metric, each metric in one piece and once, known types, well-formed names and
// labels, no sample twice, counters that are not negative, histograms that have
// all their parts, whose buckets grow and end with +Inf and the count.
func Parse(text string) (Samples, error) {
	if text != "" && !strings.HasSuffix(text, "\n") {
		return nil, fmt.Errorf("the last line does not end")
	}
	name := regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	line := regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(.*)\})? (\S+)$`)
	label := regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\["\\n])*)"(,|$)`)
	var out Samples
	seen, done := map[string]bool{}, map[string]bool{}
	help, metric, kind := "", "", ""
	for i, l := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		bad := func(why string) error { return fmt.Errorf("line %d %q: %s", i+1, l, why) }
		if rest, ok := strings.CutPrefix(l, "# HELP "); ok {
			if help, _, ok = strings.Cut(rest, " "); !ok || !name.MatchString(help) {
				return nil, bad("no name and help")
			}
			continue
		}
		if rest, ok := strings.CutPrefix(l, "# TYPE "); ok {
			var found bool
			metric, kind, found = strings.Cut(rest, " ")
			switch {
			case !found || metric != help:
				return nil, bad("not the type of what help was given for")
			case done[metric]:
				return nil, bad("a metric twice")
			case kind != "counter" && kind != "gauge" && kind != "histogram":
				return nil, bad("unknown type")
			}
			done[metric] = true
			continue
		}
		m := line.FindStringSubmatch(l)
		if m == nil {
			return nil, bad("no sample")
		}
		base := m[1]
		if kind == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if b, ok := strings.CutSuffix(base, suffix); ok && b == metric {
					base = b
				}
			}
		}
		if metric == "" || base != metric {
			return nil, bad("does not belong to the metric above it")
		}
		s := Sample{Name: m[1], Labels: map[string]string{}}
		for rest := m[3]; rest != ""; {
			p := label.FindStringSubmatch(rest)
			if p == nil {
				return nil, bad("labels")
			}
			if _, twice := s.Labels[p[1]]; twice {
				return nil, bad("a label twice")
			}
			s.Labels[p[1]] = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\"`, `"`).Replace(p[2])
			rest = rest[len(p[0]):]
		}
		var err error
		if s.Value, err = strconv.ParseFloat(m[4], 64); err != nil {
			return nil, bad("value")
		}
		if kind != "gauge" && !(s.Value >= 0) {
			return nil, bad("a negative count")
		}
		if seen[m[1]+"{"+m[3]] {
			return nil, bad("a sample twice")
		}
		seen[m[1]+"{"+m[3]] = true
		out = append(out, s)
	}
	return out, out.histograms()
}

// histograms checks buckets against counts.
func (s Samples) histograms() error {
	last, bound := 0.0, math.Inf(-1)
	for i, x := range s {
		base, ok := strings.CutSuffix(x.Name, "_bucket")
		if !ok {
			continue
		}
		le, err := strconv.ParseFloat(x.Labels["le"], 64)
		if err != nil {
			return fmt.Errorf("%s: le=%q", x.Name, x.Labels["le"])
		}
		if le <= bound || x.Value < last {
			return fmt.Errorf("%s: bucket %v with %v follows %v with %v", x.Name, le, x.Value, bound, last)
		}
		bound, last = le, x.Value
		if !math.IsInf(le, 1) {
			continue
		}
		if i+2 >= len(s) || s[i+1].Name != base+"_sum" || s[i+2].Name != base+"_count" || s[i+2].Value != last {
			return fmt.Errorf("%s: sum and count do not follow the last bucket, or are not right", base)
		}
		last, bound = 0, math.Inf(-1)
	}
	if !math.IsInf(bound, -1) {
		return fmt.Errorf("a histogram without +Inf")
	}
	return nil
}
