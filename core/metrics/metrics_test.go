package metrics

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/metrics/metricstest"
)

func page() *Registry {
	r := &Registry{}
	c := r.Counter("x_total", "Things \\ with\ntwo lines.", "result")
	c.Add(2, "a\"b\\c\nd")
	c.Add(1, "ok")
	r.Counter("y_total", "No labels.")
	r.GaugeOf("g", "A gauge.", func() float64 { return -1.5 })
	h := r.Histogram("t_seconds", "Times.", []float64{0.1, 1}, "phase")
	for _, v := range []float64{0.1, 0.2, 5} {
		h.Observe(v, "one")
	}
	return r
}

const text = `# HELP x_total Things \\ with\ntwo lines.
# TYPE x_total counter
x_total{result="a\"b\\c\nd"} 2
x_total{result="ok"} 1
# HELP y_total No labels.
# TYPE y_total counter
y_total 0
# HELP g A gauge.
# TYPE g gauge
g -1.5
# HELP t_seconds Times.
# TYPE t_seconds histogram
t_seconds_bucket{phase="one",le="0.1"} 1
t_seconds_bucket{phase="one",le="1"} 2
t_seconds_bucket{phase="one",le="+Inf"} 3
t_seconds_sum{phase="one"} 5.3
t_seconds_count{phase="one"} 3
`

func TestText(t *testing.T) {
	var b strings.Builder
	if _, err := page().WriteTo(&b); err != nil || b.String() != text {
		t.Errorf("got\n%s%v\nwant\n%s", &b, err, text)
	}
	s, err := metricstest.Parse(b.String())
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := s.Get("x_total", "result", "a\"b\\c\nd"); !ok || v != 2 {
		t.Errorf("got %v, %v in %+v", v, ok, s)
	}
	// The parser of the tests is strict.
	for _, bad := range []string{
		"x 1\n", strings.Replace(text, "y_total 0", "y_total -1", 1), strings.Replace(text, `le="1"} 2`, `le="1"} 4`, 1),
		strings.Replace(text, "_count{phase=\"one\"} 3", "_count{phase=\"one\"} 4", 1), text + text, strings.TrimSuffix(text, "\n"),
	} {
		if _, err := metricstest.Parse(bad); err == nil {
			t.Errorf("accepted:\n%s", bad)
		}
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		page().Serve(l)
		close(done)
	}()
	url := "http://" + l.Addr().String()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(url + "/metrics?x=1")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(body) != text || resp.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("got %v, %v, %s", err, resp.Header, body)
	}
	if resp, err = client.Head(url + "/metrics"); err != nil || resp.StatusCode != 200 || resp.ContentLength != int64(len(text)) {
		t.Errorf("HEAD: %+v, %v", resp, err)
	}
	if resp, err = client.Get(url + "/"); err != nil || resp.StatusCode != 404 {
		t.Errorf("another path: %+v, %v", resp, err)
	}
	if resp, err = client.Post(url+"/metrics", "text/plain", strings.NewReader("x")); err != nil || resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %+v, %v", resp, err)
	}
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(raw, "GET /metrics HTTP/1.1\r\nX: %s", strings.Repeat("x", maxHeader))
	if line, _ := bufio.NewReader(raw).ReadString('\n'); line != "HTTP/1.1 400 Bad Request\r\n" {
		t.Errorf("a long header: %q", line)
	}
	raw.Close()

	// Scrapers that say nothing are few, have little time, and end with the server.
	for range 3 * maxScrapers {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	began := time.Now()
	for {
		if resp, err := client.Get(url + "/metrics"); err == nil {
			resp.Body.Close()
			break
		}
		if time.Since(began) > scrapeTime+3*time.Second {
			t.Fatal("silent scrapers hold the place of others")
		}
		time.Sleep(100 * time.Millisecond)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	time.Sleep(50 * time.Millisecond)
	began = time.Now()
	l.Close()
	<-done
	if d := time.Since(began); d > time.Second {
		t.Errorf("ended after %v", d)
	}
}

func TestNetwork(t *testing.T) {
	for _, tt := range []struct {
		address  string
		anywhere bool
		want     string
		bad      string
	}{
		{"127.0.0.1:9100", false, "tcp 127.0.0.1:9100", ""},
		{"[::1]:9100", false, "tcp [::1]:9100", ""},
		{"localhost:0", false, "tcp 127.0.0.1:0", ""},
		{"unix:/run/x", false, "unix /run/x", ""},
		{"/run/x", false, "unix /run/x", ""},
		{"192.0.2.1:9100", true, "tcp 192.0.2.1:9100", ""},
		{":9100", true, "tcp :9100", ""},
		{":9100", false, "", "is not the number of a host"},
		{"0.0.0.0:9100", false, "", "is not a loopback address"},
		{"192.0.2.1:9100", false, "", "is not a loopback address"},
		{"[::ffff:192.0.2.1]:9100", false, "", "is not a loopback address"},
		{"example.org:9100", true, "", "is not the number of a host"},
		{"127.0.0.1", false, "", "is neither HOST:PORT nor"},
		{"127.0.0.1:99999", false, "", "is not a port"},
		{"127.0.0.1:http", false, "", "is not a port"},
		{"unix:x", false, "", "is not absolute"},
		{"", false, "", "is neither"},
	} {
		network, name, err := Network(tt.address, tt.anywhere)
		if got := strings.TrimSpace(network + " " + name); got != tt.want || tt.bad == "" && err != nil || tt.bad != "" && (err == nil || !strings.Contains(err.Error(), tt.bad)) {
			t.Errorf("%q: got %q, %v", tt.address, got, err)
		}
	}
	if l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s")); err != nil {
		t.Error(err)
	} else {
		l.Close()
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET /metrics HTTP/1.1\r\nHost: x"))
	f.Add([]byte("HEAD /metrics?x HTTP/1.0"))
	f.Add([]byte("\x16\x03\x01"))
	f.Fuzz(func(t *testing.T, head []byte) {
		method, status := parseRequest(head)
		if status == "200 OK" && method != "GET" && method != "HEAD" {
			t.Errorf("%q: %q", head, method)
		}
	})
}
