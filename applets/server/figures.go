package server

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"stapbox/core/cache"
	"stapbox/core/compile"
	"stapbox/core/metrics"
	"stapbox/core/version"
)

// figures are what --metrics shows.
type figures struct {
	metrics.Registry
	accepted, requests, answers, refusals, reloads *metrics.Counter
	times, waits, phases, passes                   *metrics.Histogram
}

// newFigures registers everything that can be counted about s.
func newFigures(s *server) *figures {
	f := &figures{}
	short := []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120}
	f.Gauge("stapbox_build_info", "Version of the program and of the protocol.", func(emit func(float64, ...string)) {
		emit(1, version.Version, version.Protocol, runtime.Version())
	}, "version", "protocol", "go")
	f.accepted = f.Counter("stapbox_connections_accepted_total", "Connections accepted, refused ones included.")
	f.GaugeOf("stapbox_connections", "Connections that are open.", func() float64 { return float64(s.open.count()) })
	f.requests = f.Counter("stapbox_requests_total", "Requests by result: ok, failed (an error of the script), refused (by a rule), gone (the client), error (of the server).", "result")
	for _, r := range []string{"ok", "failed", "refused", "gone", "error"} {
		f.requests.Add(0, r)
	}
	f.refusals = f.Counter("stapbox_refusals_total", "Connections and requests refused, by reason; request is what the compile service refuses.", "reason")
	for _, r := range []string{"certificate", "concurrency", "connections", "draining", "frame", "handshake", "queue", "rate", "request"} {
		f.refusals.Add(0, r)
	}
	f.answers = f.Counter("stapbox_cache_answers_total", "Answers by where they came from: hit, miss, joined (an equal request under way), off (could not have been kept).", "cache")
	for _, r := range []string{"hit", "miss", "joined", "off"} {
		f.answers.Add(0, r)
	}
	size := sized{look: func() *cache.Store { return s.compiler().Cache }}
	f.GaugeOf("stapbox_cache_bytes", "Size of the cache.", func() float64 { _, b := size.get(); return b })
	f.GaugeOf("stapbox_cache_entries", "Answers in the cache.", func() float64 { n, _ := size.get(); return n })
	f.GaugeOf("stapbox_cache_limit_bytes", "Size the cache may have.", func() float64 { return float64(s.opts.cacheSize) })
	f.GaugeOf("stapbox_requests_active", "Requests that are not answered yet.", func() float64 { n, _ := s.work.counts(); return float64(n) })
	f.GaugeOf("stapbox_workers", "Requests that are being translated.", func() float64 { n, _ := s.queue.counts(); return float64(n) })
	f.GaugeOf("stapbox_workers_limit", "Requests that may be translated at once.", func() float64 { return float64(max(s.opts.threads, 1)) })
	f.GaugeOf("stapbox_queue_length", "Requests that wait for a worker.", func() float64 { _, n := s.queue.counts(); return float64(n) })
	f.waits = f.Histogram("stapbox_queue_wait_seconds", "Time that requests waited for a worker.", short)
	f.times = f.Histogram("stapbox_request_seconds", "Time from the request to its answer.", short, "cache")
	f.phases = f.Histogram("stapbox_phase_seconds", "Time of the parts of the work: check, translate (the worker), sign, store.", short, "phase")
	f.passes = f.Histogram("stapbox_pass_seconds", "Time of the passes of the translator, as the workers tell it.", short, "pass")
	f.reloads = f.Counter("stapbox_reloads_total", "Reloads by result: ok, failed.", "result")
	f.Gauge("stapbox_certificate_expiry_seconds", "When the certificates end, in seconds since 1970.", func(emit func(float64, ...string)) {
		s.mu.Lock()
		id, next := s.id, s.next
		s.mu.Unlock()
		if id != nil {
			emit(float64(id.Certificate.NotAfter.Unix()), "current")
		}
		if next != nil {
			emit(float64(next.Certificate.NotAfter.Unix()), "next")
		}
	}, "certificate")
	f.GaugeOf("process_resident_memory_bytes", "Memory of the server, without its workers.", resident)
	f.GaugeOf("process_start_time_seconds", "When the server started, in seconds since 1970.", func() float64 { return float64(s.started.UnixMilli()) / 1e3 })
	return f
}

func (f *figures) refused(reason string) { f.refusals.Add(1, reason) }

// done counts a request.
func (f *figures) done(o compile.Outcome) {
	result := "ok"
	switch {
	case o.Gone:
		result = "gone"
	case o.Refused:
		result = "refused"
		f.refused("request")
	case o.Failed:
		result = "error"
	case o.RC != 0:
		result = "failed"
	}
	f.requests.Add(1, result)
	how := o.Cache
	if how == "" {
		how = "none"
	} else {
		f.answers.Add(1, how)
	}
	f.times.Observe(o.Time.Seconds(), how)
}

// phase counts the time of a part of the work.
func (f *figures) phase(name string, took time.Duration) {
	if name == "wait" {
		f.waits.Observe(took.Seconds())
	} else if pass, ok := strings.CutPrefix(name, "pass"); ok {
		f.passes.Observe(took.Seconds(), pass)
	} else {
		f.phases.Observe(took.Seconds(), name)
	}
}

// sized remembers the size of the cache for a moment: to look takes its lock.
type sized struct {
	look func() *cache.Store
	mu   sync.Mutex
	at   time.Time
	n, b float64
}

func (z *sized) get() (entries, bytes float64) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if store := z.look(); store != nil && time.Since(z.at) > time.Second {
		if n, b, err := store.Size(); err == nil {
			z.n, z.b, z.at = float64(n), float64(b), time.Now()
		}
	}
	return z.n, z.b
}

// resident is the memory of this process (proc(5), statm).
func resident() float64 {
	b, err := os.ReadFile("/proc/self/statm")
	if f := strings.Fields(string(b)); err == nil && len(f) > 1 {
		pages, _ := strconv.ParseFloat(f[1], 64)
		return pages * float64(os.Getpagesize())
	}
	return 0
}
