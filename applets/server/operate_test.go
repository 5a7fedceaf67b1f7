package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stapbox/core/compile"
	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/metrics/metricstest"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
	"stapbox/core/wire"
)

// issued is a certificate with its key.
type issued struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func issue(t *testing.T, name string, by *issued, change func(*x509.Certificate)) *issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(c)
	}
	if by == nil {
		by = &issued{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &issued{c, key}
}

func writePEM(t *testing.T, path string, list ...*issued) {
	t.Helper()
	var b bytes.Buffer
	for _, i := range list {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// as asks with a client certificate.
func (r *running) as(t *testing.T, who *issued, archive []byte) *wire.Response {
	t.Helper()
	config := wire.ClientTLS("", anybody)
	if who != nil {
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{who.cert.Raw}, PrivateKey: who.key, Leaf: who.cert}}
	}
	conn, err := tls.Dial("tcp", r.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	frame, err := wire.Frame(archive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.DecodeResponse(answer)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (r *running) refuses(t *testing.T, what string, got *wire.Response, want string) {
	t.Helper()
	if got.RC != 1 || !strings.HasPrefix(string(got.Stderr), "Server: ") || !strings.Contains(string(got.Stderr), want) {
		t.Errorf("%s: got %d, %q; want %q", what, got.RC, got.Stderr, want)
	}
}

func TestClientCertificates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clients.pem")
	ca := issue(t, "authority", nil, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })
	own := issue(t, "own", nil, nil)
	old := issue(t, "old", nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	writePEM(t, file, ca, own, old)
	r := start(t, "--client-ca="+file, "--require-client-cert")
	archive := request(t, "-p2", "-ehello")
	alice := issue(t, "alice", ca, nil)
	for _, who := range []*issued{alice, own} {
		if got := r.as(t, who, archive); got.RC != 0 {
			t.Errorf("%s: got %d, %q", who.cert.Subject, got.RC, got.Stderr)
		}
		if want := fmt.Sprintf("certificate=%s subject=\"%s\"", identity.Fingerprint(who.cert), who.cert.Subject); !strings.Contains(r.out.String(), strings.ReplaceAll(want, `"`+"CN="+who.cert.Subject.CommonName+`"`, `"CN=`+who.cert.Subject.CommonName+`"`)) {
			t.Errorf("the log lacks %s:\n%s", want, r.out)
		}
	}
	r.refuses(t, "none", r.as(t, nil, archive), "this server answers only clients that show a certificate (--require-client-cert).")
	for what, who := range map[string]*issued{
		"its time is from":                      old,
		"certificate signed by unknown":         issue(t, "stranger", nil, nil),
		"certificate specifies an incompatible": issue(t, "web", ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"certificate has expired":               issue(t, "late", ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
	} {
		r.refuses(t, what, r.as(t, who, archive), "the client certificate sha256:"+identity.Fingerprint(who.cert)+" is not accepted: ")
		r.refuses(t, what, r.as(t, who, archive), what)
	}
	// To see the server's certificate needs none.
	if _, err := (&wire.Client{Address: r.addr, Verify: anybody}).Contact(context.Background()); err != nil {
		t.Error(err)
	}
	// A reload with a bad file changes nothing, with a good one it counts.
	if err := os.WriteFile(file, []byte("nothing"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.reload()
	r.wait(t, "Reloading failed, all settings stay as they were: reading the certificates of clients: ")
	if got := r.as(t, alice, archive); got.RC != 0 {
		t.Errorf("after a bad reload: %d, %q", got.RC, got.Stderr)
	}
	writePEM(t, file, own)
	r.reload()
	r.refuses(t, "after a reload", r.as(t, alice, archive), "is not accepted")

	// Without --require-client-cert who shows none is served, a bad one is not.
	r = start(t, "--client-ca="+file)
	if got := r.as(t, nil, archive); got.RC != 0 {
		t.Errorf("got %d, %q", got.RC, got.Stderr)
	}
	r.refuses(t, "optional", r.as(t, alice, archive), "is not accepted")
}

// A directory is a trust store, with a list of revoked certificates.
func TestClientTrustStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "clients")
	rules := trust.UserRules(os.Getuid(), dir)
	ca := issue(t, "authority", nil, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })
	if _, err := edit.Add(dir, rules, ca.cert, edit.Note{When: time.Now()}); err != nil {
		t.Fatal(err)
	}
	alice, bob := issue(t, "alice", ca, nil), issue(t, "bob", ca, nil)
	if _, err := edit.Revoke(dir, rules, identity.Fingerprint(bob.cert)); err != nil {
		t.Fatal(err)
	}
	tr, err := readClientTrust(dir, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.check([]*x509.Certificate{alice.cert}, time.Now()); err != nil {
		t.Error(err)
	}
	if err := tr.check([]*x509.Certificate{bob.cert}, time.Now()); err == nil || err.Error() != "it is revoked" {
		t.Errorf("got %v", err)
	}
	if _, err := edit.Revoke(dir, rules, identity.Fingerprint(ca.cert)); err != nil {
		t.Fatal(err)
	}
	if tr, err = readClientTrust(dir, os.Getuid()); err != nil || tr.check([]*x509.Certificate{alice.cert}, time.Now()) == nil {
		t.Errorf("a revoked authority: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := readClientTrust(dir, os.Getuid()); err == nil || !strings.Contains(err.Error(), "must not be writable") {
		t.Errorf("got %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	for text, want := range map[string]string{
		"": "has none", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n": "PEM block", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n": "x509",
		strings.Repeat("x", maxClientFile+1): "has more than",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readClientTrust(file, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := readClientTrust(file+"none", 0); err == nil {
		t.Error("a file that is not there")
	}
}

func TestClientRate(t *testing.T) {
	r := start(t, "--client-rate=10")
	archive := request(t, "-p2", "-ehello")
	if got := r.ask(t, archive); got.RC != 0 {
		t.Fatalf("got %d, %q", got.RC, got.Stderr)
	}
	got := r.ask(t, archive)
	r.refuses(t, "rate", got, "this client may make 10 requests a minute (--client-rate). Try again in ")
	r.wait(t, "msg=refused peer=127.0.0.1:")
	// DATA/limits is read again, and counts less than the command line.
	if err := os.WriteFile(filepath.Join(r.data, "limits"), []byte("--client-rate=0 --client-requests=7\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.reload()
	if l := r.limits(); l.clientRate != 10 || l.clientRequests != 7 {
		t.Errorf("limits %+v", l)
	}
	for text, want := range map[string]string{"--port=1": "port", "word": "unrecognized argument", "--queue=-1": "must not be negative", "--queue=$X": "'$'"} {
		if err := os.WriteFile(filepath.Join(r.data, "limits"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := r.readLimits(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
		r.reload()
		if l := r.limits(); l.clientRequests != 7 {
			t.Errorf("%s: limits %+v", text, l)
		}
	}
}

func TestClientRequests(t *testing.T) {
	r := start(t, "--client-requests=1")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		(&wire.Client{Address: r.addr, Verify: anybody}).Exchange(ctx, request(t, "-p2", "-esleep"))
		close(ended)
	}()
	r.wait(t, "Options passed from the client: -p2 -esleep")
	r.refuses(t, "concurrency", r.ask(t, request(t, "-p2", "-ehello")), "this client has 1 requests under way, and may have 1 (--client-requests). Try again later.")
	cancel()
	<-ended
	r.wait(t, "the client is gone")
	time.Sleep(100 * time.Millisecond)
	if got := r.ask(t, request(t, "-p2", "-ehello")); got.RC != 0 {
		t.Errorf("got %d, %q", got.RC, got.Stderr)
	}
}

// Two clients, one slot for each: the slow one's requests do not hold the other's.
func TestClientShare(t *testing.T) {
	r := start(t, "--max-threads=2", "--queue=3")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range 3 {
		archive := request(t, "-p2", fmt.Sprintf("-esleep %d", i))
		go (&wire.Client{Address: r.addr, Verify: anybody}).Exchange(ctx, archive)
	}
	r.wait(t, "Options passed from the client: -p2 -esleep 2")
	r.wait(t, "Server is overloaded. Processing times may be longer than normal.")
	from := func(host, script string) *wire.Response {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
		conn, err := tls.DialWithDialer(d, "tcp", r.addr, wire.ClientTLS("", anybody))
		if err != nil {
			t.Error(err)
			return &wire.Response{}
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		frame, _ := wire.Frame(request(t, "-p2", "-e"+script))
		conn.Write(frame)
		answer, _ := io.ReadAll(conn)
		if got, err := wire.DecodeResponse(answer); err == nil {
			return got
		}
		return &wire.Response{}
	}
	if got := from("127.0.0.2", "hello"); got.RC != 0 {
		t.Errorf("another client: %d, %q", got.RC, got.Stderr)
	}
	// And the queue is bounded.
	go from("127.0.0.1", "sleep 3")
	for range 100 {
		if _, waiting := r.queue.counts(); waiting == 3 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.refuses(t, "queue", from("127.0.0.1", "sleep 4"), "Server is overloaded, try again later.")
	cancel()
}

// A reload in the middle of a request does not touch it, and what comes after is
// translated with the new settings.
func TestReload(t *testing.T) {
	r := start(t)
	slow := make(chan *wire.Response, 1)
	go func() {
		answer, _ := (&wire.Client{Address: r.addr, Verify: anybody}).Exchange(context.Background(), request(t, "-p2", "-ewho"))
		got, _ := wire.DecodeResponse(answer)
		slow <- got
	}()
	r.wait(t, "Options passed from the client: -p2 -ewho")
	before := r.compiler()
	rc := filepath.Join(r.data, "rc")
	if err := os.WriteFile(rc, []byte("-DFROM_RC=1"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.reload()
	if got := <-slow; got == nil || got.RC != 0 {
		t.Errorf("the request that was under way: %+v", got)
	}
	if o := r.compiler().Options; len(o) != 1 || o[0] != "-DFROM_RC=1" || r.compiler() == before {
		t.Errorf("options %q", o)
	}
	if got := r.ask(t, request(t, "-p2", "-ehello")); got.RC != 0 {
		t.Errorf("got %d, %q", got.RC, got.Stderr)
	}
	if err := os.WriteFile(rc, []byte("--nosuch"), 0o644); err != nil {
		t.Fatal(err)
	}
	after := r.compiler()
	r.reload()
	r.wait(t, "Reloading failed, all settings stay as they were: reading ")
	if r.compiler() != after {
		t.Error("a bad rc changed something")
	}
	if err := os.WriteFile(rc, []byte("-DFROM_RC=1"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.reload()
	if r.compiler() != after {
		t.Error("the same settings made a new service")
	}
	// A certificate that somebody made anew.
	id, err := identity.Generate(hostpaths.ServerIdentity(r.data), identity.Options{NodeName: "vm", KeyType: identity.ECDSA, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	r.reload()
	cert, err := (&wire.Client{Address: r.addr, Verify: anybody}).Contact(context.Background())
	if err != nil || !cert.Equal(id.Certificate) {
		t.Errorf("after a reload the server shows another certificate: %v", err)
	}
	if err := os.Remove(filepath.Join(hostpaths.ServerIdentity(r.data), identity.KeyFile)); err != nil {
		t.Fatal(err)
	}
	r.reload()
	if again, err := (&wire.Client{Address: r.addr, Verify: anybody}).Contact(context.Background()); err != nil || !again.Equal(cert) {
		t.Errorf("a certificate without key: %v", err)
	}
}

// The next certificate is made, trusted, announced, and takes over; connections
// and signatures follow.
// The names of signers are those of keys of all types; an Ed25519 key is a type
// that cannot be compared, and ended the server with the first signed answer.
func TestSignerNames(t *testing.T) {
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		r := start(t, "--key-type="+kind)
		if got := r.signerName(r.key()); got != identity.Fingerprint(r.id.Certificate) {
			t.Errorf("%s: got %q", kind, got)
		}
		other, err := identity.New(identity.Options{NodeName: "vm", KeyType: identity.KeyType(kind), Now: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.signerName(other.Key); got != "" {
			t.Errorf("%s: another key is that of %q", kind, got)
		}
		r.stop()
	}
}

func TestRenewal(t *testing.T) {
	r := start(t, "--renew-before=30")
	first := r.id.Certificate
	at := func(now time.Time) {
		r.mu.Lock()
		r.now = func() time.Time { return now }
		r.clockOf.since = func() time.Duration { return time.Duration(now.UnixNano()) - r.clockOf.offset }
		r.mu.Unlock()
		r.renew()
	}
	at(first.NotAfter.AddDate(0, 0, -31))
	if r.next != nil {
		t.Error("too early")
	}
	at(first.NotAfter.AddDate(0, 0, -29))
	if r.next == nil {
		t.Fatalf("no next certificate:\n%s", r.out)
	}
	next := r.next.Certificate
	if txt := r.pub[len(r.pub)-1][0].TXT; txt[len(txt)-1] != "next=sha256:"+identity.Fingerprint(next) {
		t.Errorf("announced %q", txt)
	}
	if !r.id.Certificate.Equal(first) {
		t.Error("the first certificate does not serve to its end")
	}
	n := len(r.pub)
	at(first.NotAfter.AddDate(0, 0, -28))
	if len(r.pub) != n || !r.next.Certificate.Equal(next) {
		t.Error("the next certificate changed")
	}
	old := r.key()
	at(first.NotAfter.Add(-30 * time.Minute))
	if !r.id.Certificate.Equal(next) || r.next != nil {
		t.Error("the next certificate did not take over")
	}
	if r.signerName(r.key()) != identity.Fingerprint(next) || r.signerName(old) != "" {
		t.Errorf("signers %v", r.signers)
	}
	if txt := r.pub[len(r.pub)-1][0].TXT; !strings.HasPrefix(txt[len(txt)-1], "certinfo="+identity.CertInfo(next)) {
		t.Errorf("announced %q", txt)
	}
	store, err := trust.Read(hostpaths.UserPeerStore(r.data), trust.UserRules(os.Getuid(), r.data))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*x509.Certificate{first, next} {
		if _, ok := store.Find(c.Raw); !ok {
			t.Errorf("%s is not trusted any more", identity.Fingerprint(c))
		}
	}
}

func TestJSONLog(t *testing.T) {
	r := start(t, "--log-format=json")
	r.ask(t, request(t, "-p2", "-ehello"))
	r.ask(t, request(t, "-p2", "-I/etc", "-ehello"))
	r.stop()
	requests := 0
	for line := range strings.Lines(r.out.String()) {
		var o struct {
			Time               time.Time
			Level, Msg         string
			Peer, Digest       string
			Script, Cache      string
			Release, Privilege string
			RC                 *int
			Seconds            float64
		}
		if err := json.Unmarshal([]byte(line), &o); err != nil || o.Msg == "" || o.Level == "" || o.Time.IsZero() {
			t.Errorf("line %q: %v", line, err)
		}
		if o.Msg != "request" {
			continue
		}
		requests++
		if !strings.HasPrefix(o.Peer, "127.0.0.1:") || o.RC == nil {
			t.Errorf("line %q", line)
		}
		// SHA-256 of "hello"
		if *o.RC == 0 && (o.Script != "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" || o.Cache != "miss" || len(o.Digest) != 32 || o.Release != testRelease || o.Privilege != "stapdev" || o.Seconds <= 0) {
			t.Errorf("line %q", line)
		}
	}
	if requests != 2 {
		t.Errorf("%d requests in\n%s", requests, r.out)
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path, io.Discard, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.printf("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.printf("two")
	if err := l.reopen(); err != nil {
		t.Fatal(err)
	}
	l.printf("three")
	before, _ := os.ReadFile(path + ".1")
	after, _ := os.ReadFile(path)
	if strings.Count(string(before), "\n") != 2 || !strings.HasSuffix(string(after), ": three\n") || strings.Count(string(after), "\n") != 1 {
		t.Errorf("before %q, after %q", before, after)
	}
	// Where it cannot be opened the old one goes on.
	if err := os.Rename(path, path+".2"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path+".2", path); err != nil {
		t.Fatal(err)
	}
	if err := l.reopen(); err == nil {
		t.Error("a link was followed")
	}
	l.printf("four")
	if after, _ = os.ReadFile(path + ".2"); !strings.HasSuffix(string(after), ": four\n") {
		t.Errorf("after %q", after)
	}
}

func (r *running) scrape(t *testing.T) metricstest.Samples {
	t.Helper()
	a := r.scrapes.Addr()
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /metrics HTTP/1.0\r\n\r\n")
	page, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(page), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") {
		t.Fatalf("got %q", page)
	}
	list, err := metricstest.Parse(body)
	if err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	return list
}

func TestMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics")
	r := start(t, "--metrics="+path, "--client-rate=600")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", st, err)
	}
	r.ask(t, request(t, "-p2", "-ehello"))
	r.compiler().Wait()
	r.ask(t, request(t, "-p2", "-ehello"))
	r.ask(t, request(t, "-p2", "-I/etc", "-ehello"))
	time.Sleep(100 * time.Millisecond)
	s := r.scrape(t)
	for _, tt := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{2, "stapbox_requests_total", []string{"result", "ok"}},
		{1, "stapbox_requests_total", []string{"result", "refused"}},
		{0, "stapbox_requests_total", []string{"result", "error"}},
		{1, "stapbox_cache_answers_total", []string{"cache", "hit"}},
		{1, "stapbox_cache_answers_total", []string{"cache", "miss"}},
		{1, "stapbox_cache_entries", nil},
		{1, "stapbox_refusals_total", []string{"reason", "request"}},
		{0, "stapbox_refusals_total", []string{"reason", "rate"}},
		{0, "stapbox_queue_length", nil},
		{0, "stapbox_workers", nil},
		{2, "stapbox_workers_limit", nil},
		{3, "stapbox_connections_accepted_total", nil},
		{1, "stapbox_queue_wait_seconds_count", nil},
		{1, "stapbox_phase_seconds_count", []string{"phase", "translate"}},
		{3, "stapbox_phase_seconds_count", []string{"phase", "check"}},
		{1, "stapbox_request_seconds_count", []string{"cache", "hit"}},
		{float64(r.id.Certificate.NotAfter.Unix()), "stapbox_certificate_expiry_seconds", []string{"certificate", "current"}},
	} {
		if got, ok := s.Get(tt.name, tt.labels...); !ok || got != tt.want {
			t.Errorf("%s%q: got %v, %v; want %v", tt.name, tt.labels, got, ok, tt.want)
		}
	}
	if got, ok := s.Get("process_resident_memory_bytes"); !ok || got < 1<<20 {
		t.Errorf("memory: %v", got)
	}
	r.stop()
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is left over")
	}
}

func TestParseRefusesOperation(t *testing.T) {
	for args, want := range map[string]string{
		"--log-format=xml":       "the formats are text and json",
		"--metrics=0.0.0.0:9100": "is not a loopback address (see --metrics-anywhere)",
		"--metrics=nonsense":     "is neither HOST:PORT nor the path of a socket",
		"--require-client-cert":  "needs --client-ca",
		"--client-ca=":           "names no file",
		"--client-threads=-1":    "must not be negative",
		"--client-requests=0":    "at least one request",
		"--client-rate=x":        "cannot parse number",
		"--client-rate=9999999":  "must not be greater than",
		"--queue=-1":             "must not be negative",
		"--drain-time=-1":        "must not be negative",
		"--renew-before=400":     "at most 300 days",
	} {
		if _, err := parse(strings.Fields(args), 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
	if o, err := parse([]string{"--metrics=0.0.0.0:9100", "--metrics-anywhere", "--queue=0"}, 1); err != nil || o.limits.queue != 0 {
		t.Errorf("got %+v, %v", o, err)
	}
}

// A file of -I that is changed counts for the next request, without a signal: what is
// kept was made with the old one.
func TestSecurityResidualChangedTapsetIsNoticed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.stp")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("function a() { return 1 }")
	r := start(t, "-I", dir)
	if r.compiler().Imports == nil {
		t.Error("modules may import anything")
	}
	ask := func() {
		t.Helper()
		if got := r.ask(t, request(t, "-p2", "-ehello")); got.RC != 0 {
			t.Errorf("got %d, %q", got.RC, got.Stderr)
		}
	}
	ask()
	before := r.compiler()
	ask()
	if r.compiler() != before {
		t.Error("an unchanged tapset made a new service")
	}
	write("function a() { return 22 } %{ /* C of the administrator's */ %}")
	ask()
	after := r.compiler()
	if after == before || slices.Equal(after.Environ, before.Environ) {
		t.Errorf("a changed tapset is not noticed: %q", after.Environ)
	}
	if after.Imports != nil {
		t.Error("C in the server's own tapsets may not import what it needs")
	}
	r.wait(t, "The tapsets of -I have changed")
	// A new file, and one that goes.
	if err := os.WriteFile(filepath.Join(dir, "b.stp"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ask()
	if r.compiler() == after {
		t.Error("a new file is not noticed")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	ask()
	r.wait(t, "The tapsets of -I have changed and cannot be read, answers are those of before")
}

// A kernel is announced only if there is something to build its modules with, also
// when that comes later.
func TestAnnouncesWhatItBuildsFor(t *testing.T) {
	r := start(t)
	r.mu.Lock()
	n := len(r.pub)
	r.findHeaders = func(k compile.Release) error { return fmt.Errorf("kernel release %q: no headers", k.Name) }
	r.mu.Unlock()
	r.announceAgain()
	if len(r.pub) != n || r.responder != nil {
		t.Errorf("announced: %v", r.pub[n:])
	}
	r.wait(t, "WARNING: Kernel "+testRelease+" is not announced: kernel release")
	r.announceAgain()
	r.mu.Lock()
	r.findHeaders = func(compile.Release) error { return nil }
	r.mu.Unlock()
	r.announceAgain()
	if len(r.pub) != n+1 || len(r.pub[n]) != 1 {
		t.Errorf("announced: %v", r.pub[n:])
	}
}
