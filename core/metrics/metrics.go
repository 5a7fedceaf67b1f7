// Package metrics keeps figures about a running service and shows them to a
// scraper, in the text exposition format of Prometheus, version 0.0.4:
//
//	# HELP name text            "\" and line feed escaped as \\ and \n
//	# TYPE name counter|gauge|histogram
//	name{label="value"} 1       in values '"' is escaped too
//
// A histogram has, for each set of labels, name_bucket{le="..."} with the number
// of values up to le, the last for "+Inf", name_sum and name_count.
//
// Label values come from the program, never from clients: each new one costs
// memory for good.
package metrics

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Registry is a set of metrics, shown in the order they were made.
type Registry struct {
	mu   sync.Mutex
	list []family
}

type family interface{ write(b *strings.Builder) }

func (r *Registry) add(f family) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, f)
}

// WriteTo writes all metrics.
func (r *Registry) WriteTo(w io.Writer) (int64, error) {
	r.mu.Lock()
	list := slices.Clone(r.list)
	r.mu.Unlock()
	var b strings.Builder
	for _, f := range list {
		f.write(&b)
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// head is what metrics have in common.
type head struct {
	name, help, kind string
	labels           []string
}

func (h *head) title(b *strings.Builder) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", h.name, strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(h.help), h.name, h.kind)
}

// labelled is the text in braces for one set of values.
func (h *head) labelled(values []string) string {
	if len(values) != len(h.labels) {
		panic(fmt.Sprintf("metric %s has %d labels and got %d values", h.name, len(h.labels), len(values)))
	}
	escape := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	parts := make([]string, len(values))
	for i, v := range values {
		parts[i] = h.labels[i] + `="` + escape.Replace(strings.ToValidUTF8(v, "?")) + `"`
	}
	return strings.Join(parts, ",")
}

func sample(b *strings.Builder, name, labels string, v float64) {
	b.WriteString(name)
	if labels != "" {
		b.WriteString("{" + labels + "}")
	}
	b.WriteString(" " + number(v) + "\n")
}

func number(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// Counter only grows.
type Counter struct {
	head
	mu     sync.Mutex
	values map[string]float64
}

// Counter makes a counter.
func (r *Registry) Counter(name, help string, labels ...string) *Counter {
	c := &Counter{head: head{name, help, "counter", labels}, values: map[string]float64{}}
	if len(labels) == 0 {
		c.values[""] = 0
	}
	r.add(c)
	return c
}

// Add adds n to the counter with these label values.
func (c *Counter) Add(n float64, values ...string) {
	k := c.labelled(values)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.values[k] += n
}

func (c *Counter) write(b *strings.Builder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.title(b)
	for _, k := range sorted(c.values) {
		sample(b, c.name, k, c.values[k])
	}
}

// gauge is looked up when it is shown.
type gauge struct {
	head
	look func(emit func(v float64, values ...string))
}

// Gauge makes a gauge whose values look gives, each time they are shown.
func (r *Registry) Gauge(name, help string, look func(emit func(v float64, values ...string)), labels ...string) {
	r.add(&gauge{head{name, help, "gauge", labels}, look})
}

// GaugeOf makes a gauge without labels.
func (r *Registry) GaugeOf(name, help string, look func() float64) {
	r.Gauge(name, help, func(emit func(float64, ...string)) { emit(look()) })
}

func (g *gauge) write(b *strings.Builder) {
	g.title(b)
	g.look(func(v float64, values ...string) { sample(b, g.name, g.labelled(values), v) })
}

// Histogram counts values by size.
type Histogram struct {
	head
	bounds []float64
	mu     sync.Mutex
	values map[string]*distribution
}

type distribution struct {
	buckets []uint64 // one more than there are bounds
	sum     float64
}

// Histogram makes a histogram with these upper bounds, in ascending order.
func (r *Registry) Histogram(name, help string, bounds []float64, labels ...string) *Histogram {
	h := &Histogram{head: head{name, help, "histogram", labels}, bounds: bounds, values: map[string]*distribution{}}
	r.add(h)
	return h
}

// Observe counts a value.
func (h *Histogram) Observe(v float64, values ...string) {
	k := h.labelled(values)
	i, _ := slices.BinarySearch(h.bounds, v) // a value equal to a bound is within it
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.values[k]
	if d == nil {
		d = &distribution{buckets: make([]uint64, len(h.bounds)+1)}
		h.values[k] = d
	}
	d.buckets[i]++
	d.sum += v
}

func (h *Histogram) write(b *strings.Builder) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.title(b)
	for _, k := range sorted(h.values) {
		d := h.values[k]
		with := k
		if with != "" {
			with += ","
		}
		n := uint64(0)
		for i, c := range d.buckets {
			n += c
			bound := math.Inf(1)
			if i < len(h.bounds) {
				bound = h.bounds[i]
			}
			sample(b, h.name+"_bucket", with+`le="`+number(bound)+`"`, float64(n))
		}
		sample(b, h.name+"_sum", k, d.sum)
		sample(b, h.name+"_count", k, float64(n))
	}
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
