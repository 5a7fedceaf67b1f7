package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"stapbox/core/wire"
)

// attack is one thing that no honest client does. Its error is what the server
// did wrong; to refuse, or to close, is right.
type attack struct {
	name string
	run  func() error
}

// abuser attacks a server from addresses that honest clients do not have.
type abuser struct {
	*serving
	t      *testing.T
	secret []byte // of the server's key
	held   []net.Conn
	slow   sync.WaitGroup
	over   chan struct{}
}

const abuserAddress = "127.0.0.66"

var errStill = errors.New("the server neither answers nor closes")

// plain sends octets without TLS, and waits until the server has had enough.
func (a *abuser) plain(data []byte) error {
	c, err := a.dial(abuserAddress)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write(data)
	c.(*net.TCPConn).CloseWrite()
	_, err = io.Copy(io.Discard, c)
	return stillOpen(err)
}

func stillOpen(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return errStill
	}
	return nil // closed in whatever way
}

// inTLS sends octets in a TLS connection and gives what comes back.
func (a *abuser) inTLS(data []byte, half bool) ([]byte, error) {
	low, err := a.dial(abuserAddress)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(low, wire.ClientTLS("", func(*x509.Certificate) error { return nil }))
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := conn.Write(data); err != nil {
		return nil, stillOpen(err)
	}
	if half {
		conn.CloseWrite()
	}
	answer, err := io.ReadAll(conn)
	return answer, stillOpen(err)
}

// sent is an attack of octets in TLS.
func (a *abuser) sent(name string, data []byte, half bool) attack {
	return attack{name, func() error {
		answer, err := a.inTLS(data, half)
		if err != nil || len(answer) == 0 {
			return err
		}
		return a.check(answer, false)
	}}
}

// check looks at an answer: it must be one, and show nothing of the server's.
// What is refused must say so by its status.
func (a *abuser) check(answer []byte, refused bool) error {
	r, err := wire.DecodeResponse(answer)
	if err != nil {
		return fmt.Errorf("the answer: %w", err)
	}
	text := string(r.Stdout) + string(r.Stderr)
	for _, f := range r.Files {
		text += string(f.Data)
	}
	for _, secret := range []string{string(a.secret), "PRIVATE KEY", "root:x:", "root:*:", "root:!", "root:$", secretOfOthers} {
		if strings.Contains(text, secret) {
			return fmt.Errorf("the answer shows %q", secret)
		}
	}
	if strings.Contains(string(r.Stdout)+string(r.Stderr), a.Dir) {
		return fmt.Errorf("the answer names the server's directory: %.500q", r.Stderr)
	}
	if strings.Contains(text, "goroutine ") {
		return fmt.Errorf("something fell over: %.500q", r.Stderr)
	}
	if refused && r.RC == 0 {
		return fmt.Errorf("status 0, stdout %.200q, stderr %.200q", r.Stdout, r.Stderr)
	}
	return nil
}

// asked is an attack in the words or files of a well-formed request.
func (a *abuser) asked(name string, refused bool, change func(*wire.Request)) attack {
	r := &wire.Request{Version: wire.Version, Release: a.kernel.Release, Arch: "x86_64", HasLocale: true}
	change(r)
	archive, err := encodeAny(r)
	return attack{name, func() error {
		if err != nil {
			return err
		}
		answer, err := a.inTLS(frameOf(archive), false)
		if err != nil {
			return err
		}
		if len(answer) == 0 {
			return errors.New("no answer")
		}
		return a.check(answer, refused)
	}}
}

// words is an attack in the arguments.
func (a *abuser) words(refused bool, words ...string) attack {
	return a.asked(fmt.Sprintf("%.80q", words), refused, func(r *wire.Request) { r.Args = words })
}

// guru is an attack in C that a member of stapdev sends.
func (a *abuser) guru(name, script string, more ...string) attack {
	return a.asked(name, false, func(r *wire.Request) { r.Args = append([]string{"-p4", "-g", "-e" + script}, more...) })
}

// encodeAny writes a request without the checks of honest clients.
func encodeAny(r *wire.Request) ([]byte, error) {
	members := [][2]string{{"version", r.Version}, {"sysinfo", "sysinfo: " + r.Release + " " + r.Arch}, {"locale", strings.Join(append(slices.Clone(r.Locale), ""), "\n")}}
	for i, w := range r.Args {
		members = append(members, [2]string{"argv" + strconv.Itoa(i+1), w})
	}
	if len(r.MOK) > 0 {
		members = append(members, [2]string{"mok_fingerprints", strings.Join(r.MOK, "\n")})
	}
	for _, f := range r.Files {
		members = append(members, [2]string{f.Name, string(f.Data)})
	}
	return zipOf(members...)
}

func zipOf(members ...[2]string) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, m := range members {
		w, err := z.Create(m[0])
		if err == nil {
			_, err = io.WriteString(w, m[1])
		}
		if err != nil {
			return nil, err
		}
	}
	err := z.Close()
	return b.Bytes(), err
}

// storedZip is an honest request whose members are not compressed, so that
// every octet of it is known.
func (a *abuser) storedZip() []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, m := range [][2]string{
		{"version", wire.Version}, {"sysinfo", "sysinfo: " + a.kernel.Release + " x86_64"}, {"locale", "\n"},
		{"argv1", "-p4"}, {"argv2", "--privilege=stapusr"}, {"argv3", "-e" + hello},
	} {
		w, err := z.CreateRaw(&zip.FileHeader{Name: m[0], Method: zip.Store, CRC32: crc32.ChecksumIEEE([]byte(m[1])), CompressedSize64: uint64(len(m[1])), UncompressedSize64: uint64(len(m[1]))})
		if err == nil {
			_, err = io.WriteString(w, m[1])
		}
		if err != nil {
			a.t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		a.t.Fatal(err)
	}
	return b.Bytes()
}

// truncated ends requests at each place where a part of the format ends, one
// octet before and one after.
func (a *abuser) truncated() (list []attack) {
	whole := a.storedZip()
	places := map[int]bool{1: true, 2: true, 3: true, len(whole) - 1: true}
	for _, signature := range []string{"PK\x03\x04", "PK\x01\x02", "PK\x05\x06"} {
		for i, n := 0, 0; n < 3; n++ { // of the first members only
			next := bytes.Index(whole[i:], []byte(signature))
			if next < 0 {
				break
			}
			i += next
			for _, d := range []int{-1, 0, 1, 4, 12, 18, 22, 26, 30, 40} {
				if at := i + d; at > 0 && at < len(whole) {
					places[at] = true
				}
			}
			i += 4
		}
	}
	var sorted []int
	for p := range places {
		sorted = append(sorted, p)
	}
	slices.Sort(sorted)
	frame := frameOf(whole)
	for n := range 4 {
		list = append(list, a.sent(fmt.Sprintf("%d octets of the length", n), frame[:n], true))
	}
	for i, p := range sorted {
		if i%2 == 0 {
			list = append(list, a.sent(fmt.Sprintf("%d of %d octets", p, len(whole)), frame[:4+p], true))
		} else {
			list = append(list, a.sent(fmt.Sprintf("an archive of its first %d octets", p), frameOf(whole[:p]), false))
		}
	}
	return list
}

// lengths are those that lie.
func (a *abuser) lengths() (list []attack) {
	whole := a.storedZip()
	for _, n := range []int32{-1, -5, -1 << 31, 1<<31 - 1, 1 << 30, 1 << 24, 200001, 1, 3, 21, 22, int32(len(whole)) - 1, int32(len(whole)) - 22, int32(len(whole)) + 1, int32(len(whole)) + 5000} {
		list = append(list, a.sent(fmt.Sprintf("length %d of %d", n, len(whole)), lengthAnd(n, whole), true))
	}
	list = append(list,
		a.sent("length 0, then a request", append(make([]byte, 4), frameOf(whole)...), true),
		a.sent("two requests", append(frameOf(whole), frameOf(whole)...), false),
		a.sent("a request and a megabyte", append(frameOf(whole), make([]byte, 1<<20)...), false),
		a.sent("five megabytes after the request", append(frameOf(whole), make([]byte, 5<<20)...), false),
		a.sent("zeros only", make([]byte, 1<<16), true),
		a.sent("a length of 0x20 octets", bytes.Repeat([]byte(" "), 64), true),
	)
	return list
}

// zips are archives with tricks.
func (a *abuser) zips() (list []attack) {
	whole := a.storedZip()
	add := func(name string, archive []byte) { list = append(list, a.sent(name, frameOf(archive), false)) }
	patch := func(name string, at int, with ...byte) {
		b := bytes.Clone(whole)
		copy(b[at:], with)
		add(name, b)
	}
	end := bytes.LastIndex(whole, []byte("PK\x05\x06"))
	central := bytes.Index(whole, []byte("PK\x01\x02"))
	ff := bytes.Repeat([]byte{0xff}, 8)
	// Each field (APPNOTE.TXT 4.3.7, 4.3.12, 4.3.16) with all bits set.
	for _, f := range []struct {
		name     string
		at, size int
	}{
		{"number of this disk", end + 4, 2}, {"disk of the directory", end + 6, 2}, {"entries on this disk", end + 8, 2}, {"entries", end + 10, 2},
		{"size of the directory", end + 12, 4}, {"place of the directory", end + 16, 4}, {"length of the comment", end + 20, 2},
		{"directory: signature", central, 4}, {"directory: version needed", central + 6, 2}, {"directory: flags", central + 8, 2}, {"directory: method", central + 10, 2},
		{"directory: checksum", central + 16, 4}, {"directory: compressed size", central + 20, 4}, {"directory: size", central + 24, 4},
		{"directory: length of the name", central + 28, 2}, {"directory: length of the extra field", central + 30, 2}, {"directory: length of the comment", central + 32, 2},
		{"directory: disk", central + 34, 2}, {"directory: mode", central + 38, 4}, {"directory: place", central + 42, 4},
		{"member: signature", 0, 4}, {"member: flags", 6, 2}, {"member: method", 8, 2}, {"member: checksum", 14, 4}, {"member: compressed size", 18, 4},
		{"member: size", 22, 4}, {"member: length of the name", 26, 2}, {"member: length of the extra field", 28, 2},
	} {
		patch("all bits of "+f.name, f.at, ff[:f.size]...)
	}
	patch("encrypted", central+8, 1, 0)
	patch("strongly encrypted", central+8, 0x41, 0)
	patch("patched data", central+8, 0x20, 0)
	patch("a data descriptor that is not there", central+8, 8, 0)
	patch("no entries", end+8, 0, 0, 0, 0)
	patch("one entry", end+8, 1, 0, 1, 0)
	patch("a directory at the beginning", end+16, 0, 0, 0, 0)
	patch("a directory in itself", end+16, byte(end), byte(end>>8), 0, 0)
	patch("a member in the directory", central+42, byte(central), byte(central>>8), 0, 0)

	// Several entries of the directory for the octets of one member.
	second := central + bytes.Index(whole[central+1:], []byte("PK\x01\x02")) + 1
	patch("overlapping members", second+42, 0, 0, 0, 0)
	b := bytes.Clone(whole)
	copy(b[second+46:], "version") // as long as sysinfo
	add("one name twice in the directory", b)
	add("a name that the member does not have", patched(whole, central+46, "sysinfo"))

	member := func(name, as, text string, mode fs.FileMode) {
		add(name, a.archive(a.t, header(as, mode), text, false))
	}
	for _, size := range []int{1 << 20, 3 << 20, 40 << 20} {
		member(fmt.Sprintf("bomb of %d MB", size>>20), "script/bomb", string(make([]byte, size)), 0o644)
	}
	member("bomb in an argument", "argv3", string(make([]byte, 3<<20)), 0o644)
	member("bomb in the locale", "locale2", strings.Repeat("\n", 1<<20), 0o644)
	inner := string(a.archive(a.t, header("script/bomb", 0o644), string(make([]byte, 8<<20)), false))
	member("an archive in the archive", "script/inner.zip", inner, 0o644)
	for _, name := range []string{
		"/etc/escape", "../escape", "script/../../escape", "script/..", "..", ".", "script//x", "script/./x", "script/", "script", "tapset",
		`script\..\..\escape`, `C:\escape`, "script/nul\x00/x", "script/line\nend", "argv0", "argv01", "argv-1", "argv99999999999999999999", "argv4",
		"argv3/x", "version/x", "script/" + strings.Repeat("x", 300), "script/" + strings.Repeat("d/", 500) + "x", "unknown/tree", "stap.key", "script/\xff\xfe",
		"Version", "version", "sysinfo", "rc",
	} {
		text := "5.6"
		if strings.HasSuffix(name, "/") {
			text = "" // or it could not be written
		}
		member(fmt.Sprintf("member %.40q", name), name, text, 0o644)
	}
	for what, mode := range map[string]fs.FileMode{
		"link": fs.ModeSymlink | 0o777, "device": fs.ModeDevice | 0o666, "terminal": fs.ModeDevice | fs.ModeCharDevice | 0o666, "pipe": fs.ModeNamedPipe | 0o666,
		"socket": fs.ModeSocket | 0o666, "setuid": fs.ModeSetuid | 0o755,
	} {
		member("a "+what, "script/"+what, "/etc/shadow", mode)
	}
	var many [][2]string
	for i := range 5000 {
		many = append(many, [2]string{fmt.Sprintf("script/%d", i), "x"})
	}
	if b, err := zipOf(many...); err == nil {
		add("5000 members", b)
	}
	// zip64: the end says "look there", and there is nonsense (APPNOTE.TXT 4.3.14).
	zip64 := func(entries, size, place uint64) []byte {
		b := bytes.Clone(whole[:end])
		b = append(b, "PK\x06\x06"...)
		b = binary.LittleEndian.AppendUint64(b, 44)
		b = append(b, 45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		for _, n := range []uint64{entries, entries, size, place} {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
		b = append(b, "PK\x06\x07\x00\x00\x00\x00"...)
		b = binary.LittleEndian.AppendUint64(b, uint64(end))
		b = append(b, 1, 0, 0, 0)
		return append(b, "PK\x05\x06\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00"...)
	}
	size := uint64(end - central)
	for name, b := range map[string][]byte{
		"2^63 entries": zip64(1<<63, size, uint64(central)), "2^40 entries": zip64(1<<40, size, uint64(central)), "a directory of 2^63 octets": zip64(6, 1<<63, uint64(central)),
		"a directory at 2^63": zip64(6, size, 1<<63), "true numbers": zip64(6, size, uint64(central)),
	} {
		add("zip64 with "+name, b)
	}
	add("something before the archive", append([]byte(strings.Repeat("x", 100)), whole...))
	add("something after the archive", append(bytes.Clone(whole), make([]byte, 70000)...))
	add("two ends", append(bytes.Clone(whole), whole[end:]...))
	return list
}

func patched(b []byte, at int, with string) []byte {
	b = bytes.Clone(b)
	copy(b[at:], with)
	return b
}

// record is a TLS record (RFC 8446, 5.1).
func record(kind byte, version uint16, length int, body ...byte) []byte {
	b := []byte{kind, byte(version >> 8), byte(version), byte(length >> 8), byte(length)}
	return append(b, body...)
}

// hello13 is the first flight of an honest client, as octets.
func clientHello() []byte {
	a, b := net.Pipe()
	defer a.Close()
	go tls.Client(b, wire.ClientTLS("", func(*x509.Certificate) error { return nil })).Handshake()
	defer b.Close()
	head := make([]byte, 5)
	if _, err := io.ReadFull(a, head); err != nil {
		return nil
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	io.ReadFull(a, body)
	return append(head, body...)
}

// handshakes are what is no TLS, or no more than the beginning of it.
func (a *abuser) handshakes() (list []attack) {
	add := func(name string, data []byte) {
		list = append(list, attack{name, func() error { return a.plain(data) }})
	}
	first := clientHello()
	if len(first) < 100 {
		a.t.Fatal("there is no ClientHello")
	}
	add("nothing", nil)
	add("HTTP", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	add("SSH", []byte("SSH-2.0-x\r\n"))
	add("a request without TLS", frameOf(a.storedZip()))
	add("SSL 2", append([]byte{0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10}, make([]byte, 40)...))
	add("zeros", make([]byte, 1<<16))
	add("ones", bytes.Repeat([]byte{0xff}, 1<<16))
	for n := range 6 {
		add(fmt.Sprintf("%d octets of ClientHello", n*len(first)/6+n), first[:n*len(first)/6+n])
	}
	add("a ClientHello and no more", first)
	add("two of them", append(bytes.Clone(first), first...))
	add("twenty of them", bytes.Repeat(first, 20))
	add("SSL 3", patched(first, 1, "\x03\x00"))
	add("a version of the future", patched(first, 1, "\x09\x09"))
	add("a record of 65535 octets", record(22, 0x301, 65535, make([]byte, 65535)...))
	add("a handshake of 16 MB", record(22, 0x301, 4, 1, 0xff, 0xff, 0xff))
	var huge []byte // a ClientHello of 200,000 octets in records of the largest size
	for i := range 13 {
		body := make([]byte, 16384)
		if i == 0 {
			copy(body, []byte{1, 3, 0x0d, 0x40, 3, 3})
		}
		huge = append(huge, record(22, 0x301, len(body), body...)...)
	}
	add("a ClientHello of 200 KB", huge)
	add("empty records", bytes.Repeat(record(22, 0x301, 0), 1000))
	add("records of one octet", bytes.Join([][]byte{record(22, 0x301, 1, 1), record(22, 0x301, 1, 0), record(22, 0x301, 1, 0)}, nil))
	add("alerts", bytes.Repeat(record(21, 0x303, 2, 1, 0), 1000))
	add("a fatal alert", record(21, 0x303, 2, 2, 40))
	add("ChangeCipherSpec first", bytes.Repeat(record(20, 0x303, 1, 1), 1000))
	add("data first", record(23, 0x303, 16, make([]byte, 16)...))
	add("heartbeat", record(24, 0x303, 3, 1, 0xff, 0xff))
	add("a session of 255 octets", patched(first, 43, "\xff"))
	add("no cipher suites", patched(first, 44+32, "\x00\x00"))
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		list = append(list, attack{tls.VersionName(v), func() error {
			return a.withTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: v, MaxVersion: v}, func(c *tls.Conn, _ net.Conn) error {
				if c.Handshake() == nil {
					return errors.New("the server accepts it")
				}
				return nil
			})
		}})
	}
	good := wire.ClientTLS("", func(*x509.Certificate) error { return nil })
	old := good.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, config := range []*tls.Config{good, old} {
		after := func(name string, data []byte) {
			list = append(list, attack{fmt.Sprintf("after the handshake (%v): %s", config.MaxVersion, name), func() error {
				return a.withTLS(config, func(c *tls.Conn, low net.Conn) error {
					if err := c.Handshake(); err != nil {
						return err
					}
					low.Write(data)
					low.(*net.TCPConn).CloseWrite()
					_, err := io.Copy(io.Discard, low)
					return stillOpen(err)
				})
			}})
		}
		after("renegotiation", first)
		after("a KeyUpdate in the clear", record(22, 0x303, 5, 24, 0, 0, 1, 1))
		after("noise", []byte(noise(5000)))
		after("nothing", nil)
	}
	list = append(list, attack{"another name, no certificate, 64 protocols", func() error {
		c := good.Clone()
		c.ServerName = strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + ".example"
		for i := range 64 {
			c.NextProtos = append(c.NextProtos, strings.Repeat("p", 200)+strconv.Itoa(i))
		}
		return a.withTLS(c, func(c *tls.Conn, _ net.Conn) error { c.Handshake(); return nil })
	}})
	return list
}

func (a *abuser) withTLS(config *tls.Config, f func(*tls.Conn, net.Conn) error) error {
	low, err := a.dial(abuserAddress)
	if err != nil {
		return err
	}
	defer low.Close()
	low.SetDeadline(time.Now().Add(20 * time.Second))
	return f(tls.Client(low, config), low)
}

// slowness are peers that keep what they have, or give it octet by octet. They
// stay while everything else is tried.
func (a *abuser) slowness() (list []attack) {
	first, request := clientHello(), frameOf(a.storedZip())
	config := wire.ClientTLS("", func(*x509.Certificate) error { return nil })
	hold := func(name, from string, n int, begin func(net.Conn) (drip func(i int) error)) {
		list = append(list, attack{fmt.Sprintf("%d peers from %s: %s", n, from, name), func() error {
			for range n {
				c, err := a.dial(from)
				if err != nil {
					return err
				}
				a.held = append(a.held, c)
				a.slow.Go(func() {
					drip := begin(c)
					for i := 0; drip != nil; i++ {
						select {
						case <-a.over:
							return
						case <-time.After(200 * time.Millisecond):
						}
						if drip(i) != nil {
							return
						}
					}
				})
			}
			return nil
		}})
	}
	one := func(c io.Writer, data []byte) func(int) error {
		return func(i int) error {
			_, err := c.Write(data[i%len(data) : i%len(data)+1])
			return err
		}
	}
	shaken := func(c net.Conn) *tls.Conn {
		conn := tls.Client(c, config)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		conn.HandshakeContext(ctx)
		return conn
	}
	for i := range 2 {
		from := fmt.Sprintf("127.0.1.%d", i+1)
		hold("say nothing", from, 8, func(net.Conn) func(int) error { return nil })
		hold("trickle a handshake", from, 8, func(c net.Conn) func(int) error { return one(c, first) })
		hold("stop in the middle of the handshake", from, 8, func(c net.Conn) func(int) error { c.Write(first[:len(first)/2]); return nil })
		hold("stop after their hello", from, 8, func(c net.Conn) func(int) error { c.Write(first); return nil })
		hold("trickle the length", from, 4, func(c net.Conn) func(int) error { return one(shaken(c), request[:4]) })
		hold("trickle the archive", from, 4, func(c net.Conn) func(int) error {
			conn := shaken(c)
			conn.Write(request[:4])
			return one(conn, request[4:])
		})
		hold("stop before the last octet", from, 4, func(c net.Conn) func(int) error { shaken(c).Write(request[:len(request)-1]); return nil })
		hold("never read the answer", from, 4, func(c net.Conn) func(int) error {
			c.(*net.TCPConn).SetReadBuffer(1)
			shaken(c).Write(request)
			return nil
		})
		hold("go on after the request", from, 4, func(c net.Conn) func(int) error {
			conn := shaken(c)
			conn.Write(request)
			return one(conn, request)
		})
	}
	// All places for connections, by hosts that each stay below their share.
	for i := range 5 {
		hold("take all places", fmt.Sprintf("127.0.2.%d", i+1), 120, func(net.Conn) func(int) error { return nil })
	}
	return list
}

// arguments try what else an argument might be.
func (a *abuser) arguments() (list []attack) {
	p4 := func(words ...string) { list = append(list, a.words(true, append([]string{"-p4"}, words...)...)) }
	for _, w := range []string{
		"-B/tmp", "-BCC=/tmp/x", "-R/", "-R/etc", "-I/", "-I/etc", "-I.", "-I..", "-Itapset/..", "-Itapset/../..", "-I", "--tmpdir=/", "--tmpdir=/etc", "-k",
		"--rlimit-as=1", "--rlimit-cpu=1", "--rlimit-fsize=1", "--rlimit-nproc=999999", "--rlimit-stack=99999999999", "--client-options", "--translator=systemtap", "--translator=auto",
		"--translator=/bin/sh", "--use-server", "--use-server=evil", "--list-servers=all", "--trust-servers=ssl,no-prompt", "--sysroot=/", "--sysenv=LD_PRELOAD=/tmp/x",
		"--remote=direct:", "--modinfo=x", "--ldd", "--sign-module=/tmp/x", "--runtime=dyninst", "--bpf", "--poison-cache", "--clean-cache", "--disable-cache", "--interactive",
		"--privilege=root", "--privilege=", "--privilege=stapdev,stapusr", "-r/etc", "-r..", "-r../../etc", "-r9.9.9", "-amips", "-a../../x", "-m../x", "-m/tmp/x", "-mx\n", "-m" + strings.Repeat("m", 300), "-mx.ko/..",
		"-DX=%s", "-DX=$(id)", "-DX=`id`", "-D-include/etc/shadow", "-DX\n#include \"/etc/shadow\"", "-GX=;", "-Gnosuch=1", "-S1;id", "-p9", "-p-1", "-p4 -k", "-s0", "-x0", "-x-1", "-xid",
		"--nosuch", "--", "-\x00", "--help", "--version", "-V", "-h",
	} {
		p4(w, "-e"+hello)
	}
	list = slices.DeleteFunc(list, func(a attack) bool {
		return strings.Contains(a.name, `"--client-options"`) || strings.Contains(a.name, `"--"`)
	})
	for _, words := range [][]string{
		{"-e" + hello, "--client-options"}, {"-p4", "-e" + hello, "-"}, {"--client-options", "-p4", "--client-options", "-k", "-e" + hello}, {"-e", "--", "-k"}, {"--", "-e" + hello}, {"@/etc/passwd"}, {"-p4", "@script"},
		{"-p4", "-e" + hello, "@/etc/shadow"}, {"-p4", "-e", "-k"}, {"-p4", "/etc/shadow"}, {"-p4", "-"}, {"-p4", "script/../../x"}, {"-p4", "script/nosuch.stp"}, {"-p4"}, {},
		{"-p4", "-e" + hello, "-e" + hello}, {"-p4", "-E" + hello}, {"-p4", "-e" + hello, "-E@"}, {"-e"}, {"-l"}, {"-l", "**"}, {"-L", "**.**"}, {"-l" + strings.Repeat("*.", 400)},
		{"-p4", "-e" + hello, "a\nb", "c\x01d", "\x1b[2J"}, {"-p4", "-c/bin/sh -c id", "-e" + hello}, {"-p4", "-o/etc/passwd", "-e" + hello}, {"-p4", "-x1", "-e" + hello},
		{"-p2", "-v", "-v", "-v", "-v", "-v", "-e" + hello}, {"-p4", "-mname", "--privilege=stapusr", "-e" + hello}, {"-p4", "-g", "--privilege=stapusr", "-e" + hello},
		{"-p4", "--privilege=stapusr", "--privilege=stapdev", "-g", "-e" + hello}, {"-p4", "--privilege=stapusr", "-DX=1", "-e" + hello},
	} {
		list = append(list, a.words(false, words...))
	}
	list = append(list,
		a.words(false, append([]string{"-p4", "-e" + hello}, slices.Repeat([]string{"x"}, 1900)...)...),
		a.words(false, append([]string{"-p4"}, slices.Repeat([]string{"-v"}, 1900)...)...),
		a.words(false, append([]string{"-p4", "-e" + hello}, slices.Repeat([]string{"-DX=1"}, 1900)...)...),
		a.words(false, "-p4", "-e"+hello, strings.Repeat("long", 20000)),
		a.words(false, "-p4", "-e"+hello+" # "+strings.Repeat("long", 20000)),
	)
	return list
}

// paths try to reach files of the server by name, wherever a request has names.
func (a *abuser) paths() (list []attack) {
	key := filepath.Join(a.Dir, "ssl", "server", "stap.key")
	ask := func(name string, refused bool, change func(*wire.Request)) {
		list = append(list, a.asked(name, refused, func(r *wire.Request) {
			r.Args = []string{"-p4", "-e" + hello}
			change(r)
		}))
	}
	for _, file := range []string{"/etc/shadow", key, "/proc/self/environ", "../../../../../../etc/shadow", "script/../../../../etc/shadow", "/dev/zero", "/proc/self/fd/0", "~/.ssh/id_rsa"} {
		ask("the script "+file, true, func(r *wire.Request) { r.Args = []string{"-p4", file} })
		ask("the tapset "+file, true, func(r *wire.Request) { r.Args = append(r.Args, "-I"+file) })
		ask("the release "+file, true, func(r *wire.Request) { r.Release = file })
		ask("-r "+file, true, func(r *wire.Request) { r.Args = append(r.Args, "-r"+file) })
		ask("the architecture "+file, true, func(r *wire.Request) { r.Arch = file })
		ask("the version "+file, true, func(r *wire.Request) { r.Version = file })
		for _, name := range []string{"LANG", "LC_ALL", "LC_MESSAGES", "LD_PRELOAD", "PATH", "SYSTEMTAP_DIR"} {
			if name == "LANG" || file == key || file == "/etc/shadow" {
				ask(name+"="+file, false, func(r *wire.Request) { r.Locale = []string{name + "=" + file} })
			}
		}
	}
	for _, l := range []string{"LANG=$(id)", "LANG=;id", "LANG=x\x00LD_PRELOAD=y", "LANG", "=x", "LC_ALL=" + strings.Repeat("x", 40000), "LANG=x=y=z", "GCONV_PATH=/tmp", "GCC_EXEC_PREFIX=/tmp", "TMPDIR=/etc", "STAPBOX_WORKER=init"} {
		ask(fmt.Sprintf("locale %.40q", l), false, func(r *wire.Request) { r.Locale = []string{l} })
	}
	ask("2000 lines of locale", false, func(r *wire.Request) { r.Locale = slices.Repeat([]string{"LC_NOSUCH=\x1b[31m"}, 2000) })
	for _, m := range []string{"missing", "../../x", strings.Repeat("ab:", 20000)} {
		ask(fmt.Sprintf("owner key %.20q", m), true, func(r *wire.Request) { r.MOK = []string{m} })
	}
	for _, v := range []string{"", "-1", "99999999999.1", "1.0\nx", "5.6 5.6", "0", "1.0", "99.9", strings.Repeat("1.", 50) + "1"} {
		ask(fmt.Sprintf("version %.20q", v), false, func(r *wire.Request) { r.Version = v })
	}
	return list
}

// scripts are bombs in the language of scripts.
func (a *abuser) scripts() (list []attack) {
	add := func(name, text string) {
		list = append(list, a.asked(name, false, func(r *wire.Request) { r.Args = []string{"-p4", "-e" + text} }))
	}
	many := strings.Repeat
	var levels, aliases, functions, globals, library strings.Builder
	for i := range 40 {
		fmt.Fprintf(&levels, "@define m%d %%( @m%d @m%d %%)\n", i+1, i, i)
		fmt.Fprintf(&aliases, "probe a%d = a%d, a%d {}\n", i+1, i, i)
	}
	for i := range 3000 {
		fmt.Fprintf(&functions, "function f%d(x) { return f%d(x) }\n", i, (i+1)%3000)
		fmt.Fprintf(&globals, "global g%d[1000000]\n", i)
		fmt.Fprintf(&library, "probe begin(%d) { println(%d) }\n", i, i)
	}
	add("parentheses in parentheses", "probe begin { x = "+many("(", 50000)+"1"+many(")", 50000)+" }")
	add("open parentheses", "probe begin { x = "+many("(", 150000))
	add("signs", "probe begin { x = "+many("-", 100000)+"1 }")
	add("negations", "probe begin { x = "+many("!", 100000)+"1 }")
	add("blocks in blocks", "probe begin "+many("{", 50000)+many("}", 50000))
	add("conditions in conditions", "probe begin { "+many("if (1) ", 50000)+"exit() }")
	add("loops in loops", "probe begin { "+many("while (1) ", 50000)+"exit() }")
	add("choices in choices", "probe begin { x = "+many("1 ? ", 20000)+"1"+many(" : 2", 20000)+" }")
	add("calls in calls", "function f(x) { return x } probe begin { println("+many("f(", 20000)+"1"+many(")", 20000)+") }")
	add("a long sum", "probe begin { println("+many("1+", 60000)+"1) }")
	add("a long text", "probe begin { println("+many(`"x".`, 30000)+`"x") }`)
	add("a literal of 150 KB", `probe begin { println("`+many("x", 150000)+`") }`)
	add("an open literal", `probe begin { println("`+many("x", 150000))
	add("an open comment", "/*"+many("x", 150000))
	add("comments in comments", many("/*", 70000))
	add("a number of 100000 digits", "probe begin { println("+many("9", 100000)+") }")
	add("indices in indices", "global a probe begin { x = "+many("a[", 20000)+"1"+many("]", 20000)+" }")
	add("an array for everything", "global a[2147483647] probe begin { a[1] = 1 }")
	add("a larger array", "global a[99999999999999999999] probe begin { a[1] = 1 }")
	add("arrays", globals.String()+"probe begin { exit() }")
	add("macros that double", "@define m0 %( x %)\n"+levels.String()+"probe begin { @m40 }")
	add("a macro of itself", "@define m %( @m @m %) probe begin { @m }")
	add("macros of each other", "@define a %( @b %) @define b %( @a %) probe begin { @a }")
	add("a macro with its own argument", "@define m(x) %( @m(@x @x) %) probe begin { @m(1) }")
	add("aliases that double", "probe a0 = begin {}\n"+aliases.String()+"probe a40 {}")
	add("an alias of itself", "probe a = a {} probe a {}")
	add("aliases of each other", "probe a = b {} probe b = c {} probe c = a {} probe a, b, c {}")
	add("aliases by pattern", "probe a = a* {} probe ** {}")
	add("functions in a circle", functions.String()+"probe begin { f0(1) }")
	add("3000 probes", library.String())
	add("one probe at 20000 points", "probe "+many("begin,", 20000)+"begin { exit() }")
	add("conditionals in conditionals", many("%( 1 == 1 %? ", 20000)+"probe begin {}"+many(" %)", 20000))
	add("open conditionals", many("%( 1 == 1 %? ", 50000))
	add("a width of 999999999", `probe begin { printf("%999999999d%.999999999s\n", 1, "x") }`)
	add("20000 directives", `probe begin { printf("`+many("%d", 20000)+`") }`)
	add("patterns", `probe begin { if ("x" =~ "`+many("(a*)*", 5000)+`") exit() }`)
	add("a pattern with a count", `probe begin { if ("x" =~ "((a{1,999}){1,999}){1,999}") exit() }`)
	add("points of everything", "probe **.**(*).** { exit() }")
	add("NUL", "probe begin { exit()\x00 }")
	add("no UTF-8", "probe begin { println(\"\xff\xfe\xc0\x80\") \xff }")
	add("private macro names", "probe begin { println(@1, $1, @#, $#, $99999999999) }")
	add("try in try", "probe begin { "+many("try { ", 5000)+"exit()"+many(" } catch {}", 5000)+" }")
	add("tapset of 1500 files", "probe begin { exit() }")
	list[len(list)-1] = a.asked("a tapset of 1500 files", false, func(r *wire.Request) {
		r.Args = []string{"-p4", "-Itapset/t", "-eprobe begin { f0() f1499() }"}
		for i := range 1500 {
			r.Files = append(r.Files, wire.File{Name: fmt.Sprintf("tapset/t/%d.stp", i), Data: fmt.Appendf(nil, "function f%d() { f%d() }", i, (i+1)%1500)})
		}
	})
	return list
}

// c are bombs for the compiler, its preprocessor, the assembler and the linker.
func (a *abuser) c() (list []attack) {
	many := strings.Repeat
	top := func(name, text string) { list = append(list, a.guru(name, "%{\n"+text+"\n%}\nprobe begin { exit() }")) }
	asm := func(name, text string) { top(name, fmt.Sprintf("asm(%q);", text)) }
	var doubles, cases strings.Builder
	doubles.WriteString("#define X0 int x; x x x x x x x x x x\n")
	for i := range 14 {
		fmt.Fprintf(&doubles, "#define X%d %s\n", i+1, many(fmt.Sprintf("X%d ", i), 10))
	}
	for i := range 20000 {
		fmt.Fprintf(&cases, "case %d: x ^= f(%d); ", i*7, i)
	}
	top("a file that includes itself", "#include __FILE__")
	top("macros that grow tenfold", doubles.String()+"X14")
	top("/dev/zero", `#include "/dev/zero"`)
	top("/dev/stdin", `#include "/dev/stdin"`)
	top("/dev/urandom", `#include "/dev/urandom"`)
	top("/proc/self/mem", `#include "/proc/self/mem"`)
	top("an array of a terabyte", "char a[1L << 40];")
	top("a gigabyte of ones", "char a[1 << 30] = {1};")
	top("an initializer of 2^28", "int a[] = {[0 ... 1 << 28] = 1};")
	top("a vector of a gigabyte", "typedef int v __attribute__((vector_size(1 << 30))); v x;")
	top("an alignment of 2^28", "int x __attribute__((aligned(1 << 28)));")
	top("parentheses", "int x = "+many("(", 100000)+"1"+many(")", 100000)+";")
	top("pointers", "int "+many("*", 150000)+"x;")
	top("structs in structs", many("struct {", 20000)+"int x;"+many("} x;", 20000))
	top("20000 cases", "int f(int); int g(int x) { switch (x) { "+cases.String()+"} return x; }")
	top("_Pragma", many("_Pragma(\"GCC push_options\") ", 5000))
	top("_Pragma in macros", "#define P _Pragma(\"message(\\\"x\\\")\")\n#define Q P P P P P P P P P P\n#define R Q Q Q Q Q Q Q Q Q Q\n#define S R R R R R R R R R R\n#define T S S S S S S S S S S\n#define U T T T T T T T T T T\nU")
	top("warnings", many("#warning x\n", 15000))
	top("errors", many("int x = ;\n", 15000))
	top("conditionals", many("#if 1\n", 30000))
	top("lines", "#line 2147483647 \"/etc/shadow\"\nint x = ;")
	top("loops to unroll", "int f(int x) { "+many("for (int i = 0; i < 100; i++) ", 30)+"x++; return x; }")
	asm("a thousand million octets", ".rept 1000000000\n.byte 1\n.endr")
	asm("octets in octets", many(".rept 1000\n", 6)+".byte 1\n"+many(".endr\n", 6))
	asm("a terabyte of space", ".space 0x10000000000")
	asm("an origin far away", ".org 0x10000000000")
	asm("a fill", ".fill 0x7fffffff, 8, 1")
	asm("a macro of itself", ".macro m\nm\nm\n.endm\nm")
	asm("an endless loop", ".set x, 0\n.macro m n\n.if 1\nm (\\n + 1)\n.endif\n.endm\nm 0")
	asm("incbin of /dev/zero", ".incbin \"/dev/zero\"")
	asm("incbin of /dev/urandom", ".incbin \"/dev/urandom\", 0, 1000000000")
	asm("include of itself", ".include \"/proc/self/fd/0\"")
	asm("sections", ".altmacro\n.macro s n\n.section .s\\n\n.byte 1\n.endm\n.set i, 0\n.rept 60000\ns %i\n.set i, i+1\n.endr")
	asm("symbols", ".altmacro\n.macro s n\ns\\n: .globl s\\n\n.endm\n.set i, 0\n.rept 300000\ns %i\n.set i, i+1\n.endr")
	asm("intermediate code", ".section .gnu.lto_.x,\"e\"\n.string \"x\"\n.section .gnu.lto_.opts,\"e\"\n.string \"-fplugin=/tmp/x\"\n.globl __gnu_lto_slim")
	asm("a second module", ".section .gnu.linkonce.this_module,\"aw\"\n.space 4096")
	asm("another level", ".section .stap_privilege,\"a\"\n.string \"stapusr\"")
	if !stress() { // each takes as long as it may
		var some []attack
		for i := 0; i < len(list); i += 4 {
			some = append(some, list[i])
		}
		list = some
	}
	return list
}

// found are what the fuzz targets of the tree found, as far as a request can
// carry it.
func (a *abuser) found() (list []attack) {
	for _, f := range []struct {
		dir string
		use func(values []string) (args []string, raw string)
	}{
		{"wire/testdata/fuzz/FuzzReadFrame", func(v []string) ([]string, string) { return nil, v[0] }},
		{"wire/testdata/fuzz/FuzzDecodeRequest", func(v []string) ([]string, string) { return nil, string(frameOf([]byte(v[0]))) }},
		{"getopt/testdata/fuzz/FuzzParse", func(v []string) ([]string, string) { return strings.Split(v[0], "\x00"), "" }},
		{"stapopts/testdata/fuzz/FuzzParseOptions", func(v []string) ([]string, string) { return strings.Split(v[0], "\x00"), "" }},
		{"script/testdata/fuzz/FuzzLoad", func(v []string) ([]string, string) { return []string{"-p4", "-e" + v[0]}, "" }},
		{"script/parser/testdata/fuzz/FuzzParse", func(v []string) ([]string, string) { return []string{"-p4", "-e" + v[0]}, "" }},
		{"script/token/testdata/fuzz/FuzzScanner", func(v []string) ([]string, string) { return []string{"-p4", "-g", "-e" + v[0]}, "" }},
		{"translate/testdata/fuzz/FuzzTranslate", func(v []string) ([]string, string) { return []string{"-p4", "-g", "-e" + v[0]}, "" }},
	} {
		dir := filepath.Join("..", "core", filepath.FromSlash(f.dir))
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(names) == 0 {
			a.t.Fatalf("%s has nothing: %v", dir, err)
		}
		for _, name := range names {
			values := seed(a.t, name)
			if len(values) == 0 {
				continue
			}
			title := filepath.Base(dir) + " " + filepath.Base(name)
			args, raw := f.use(values)
			if raw != "" {
				list = append(list, a.sent(title, []byte(raw), true))
			} else {
				list = append(list, a.words(false, args...))
			}
		}
	}
	return list
}

// seed reads the texts of a file that go test keeps for a fuzz target.
func seed(t *testing.T, name string) (values []string) {
	t.Helper()
	text, ok := strings.CutPrefix(string(read(t, name)), "go test fuzz v1\n")
	if !ok {
		t.Fatalf("%s is no seed", name)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		for _, kind := range []string{"string(", "[]byte("} {
			if quoted, ok := strings.CutPrefix(line, kind); ok {
				v, err := strconv.Unquote(strings.TrimSuffix(quoted, ")"))
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				values = append(values, v)
			}
		}
	}
	return values
}

const secretOfOthers = "SECRET_of_another_request"

// TestServerAbused tries hostile inputs, one after the other. After each the
// server answers the next honest request within its normal time, and when all
// are over it holds what it held before.
func TestServerAbused(t *testing.T) {
	dir := filepath.Join(stage.dir, "server-abused")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rc"), []byte("--rlimit-cpu=1 --rlimit-as=1500000000 --rlimit-fsize=67108864\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := serve(t, "abused", "--max-threads=2", "--max-compressed-request=200000", "--max-request-size=2000000")
	a := &abuser{serving: s, t: t, over: make(chan struct{})}
	a.secret = keyLine(t, s)

	known := s.frame(t, "-p4", "--privilege=stapusr", "-e"+hello)
	scripts := 0
	honest := func(fresh bool) (time.Duration, error) {
		raw := known
		if fresh {
			scripts++
			raw = s.frame(t, "-p4", "--privilege=stapusr", fmt.Sprintf(`-eprobe begin { printf("honest %d\n"); exit() }`, scripts))
		}
		start := time.Now()
		got, err := s.send(raw, false)
		took := time.Since(start)
		if err != nil {
			return took, err
		}
		if m, sig := got.Modules(); got.RC != 0 || len(m) != 1 || len(sig[0].Data) == 0 {
			return took, fmt.Errorf("status %d, %d modules, %s", got.RC, len(m), got.Stderr)
		}
		return took, nil
	}
	normal := func(fresh bool) time.Duration {
		var times []time.Duration
		for range 9 {
			took, err := honest(fresh)
			if err != nil {
				t.Fatalf("the honest client: %v", err)
			}
			times = append(times, took)
		}
		slices.Sort(times)
		return times[len(times)/2]
	}
	honest(false)
	usual := map[bool]time.Duration{false: normal(false), true: normal(true)}
	t.Logf("honest requests: a known one in %v, a new one in %v", usual[false], usual[true])
	// The last answer is being stored, its connection closed, a compiler looked
	// at: what is open for 200 ms is open.
	before := s.usage(t)
	for same, n := 0, 0; same < 10 && n < 500; n++ {
		time.Sleep(20 * time.Millisecond)
		u := s.usage(t)
		if same++; !slices.Equal(u.files, before.files) {
			same = 0
		}
		before = u
	}

	total, slowest := 0, map[bool]time.Duration{}
	try := func(group string, list []attack) {
		if g := os.Getenv("STAPBOX_ABUSE"); g != "" && g != group {
			return
		}
		began := time.Now()
		worst := map[bool]time.Duration{}
		for i, at := range list {
			// An input that makes the server late does so again; another load of
			// this machine does not.
			for round := 1; ; round++ {
				start := time.Now()
				if err := at.run(); err != nil {
					t.Errorf("%s: %s: %v", group, at.name, err)
				}
				if d := time.Since(start); testing.Verbose() && d > 2*time.Second {
					t.Logf("%s: %s took %v", group, at.name, d.Round(10*time.Millisecond))
				}
				fresh := i%10 == 9 || i == len(list)-1
				took, err := honest(fresh)
				worst[fresh] = max(worst[fresh], took)
				if err != nil {
					t.Errorf("after %s: %s: %v", group, at.name, err)
					break
				}
				most := max(10*usual[fresh], 2*time.Second)
				if took <= most {
					break
				}
				late := fmt.Sprintf("after %s: %s: an honest answer in %v, more than %v, in round %d", group, at.name, took, most, round)
				if round == 3 {
					t.Error(late)
					break
				}
				t.Log(late)
			}
		}
		total += len(list)
		for k, v := range worst {
			slowest[k] = max(slowest[k], v)
		}
		t.Logf("%-22s %3d inputs in %6v, slowest honest answer: known %v, new %v", group, len(list), time.Since(began).Round(10*time.Millisecond),
			worst[false].Round(100*time.Microsecond), worst[true].Round(100*time.Microsecond))
	}
	// They stay for the rest.
	try("slow peers", a.slowness())
	try("truncated", a.truncated())
	try("lengths", a.lengths())
	try("archives", a.zips())
	try("TLS", a.handshakes())
	try("arguments", a.arguments())
	try("paths", a.paths())
	try("scripts", a.scripts())
	try("C", a.c())
	try("found by fuzzing", a.found())
	t.Logf("%d hostile inputs; slowest honest answer: known %v, new %v", total, slowest[false], slowest[true])
	if total < 300 && os.Getenv("STAPBOX_ABUSE") == "" {
		t.Errorf("%d hostile inputs are fewer than 300", total)
	}

	close(a.over)
	for _, c := range a.held {
		c.Close()
	}
	a.slow.Wait()
	after := s.usage(t)
	for deadline := time.Now().Add(10 * time.Second); (len(after.files) != len(before.files) || after.children != "") && time.Now().Before(deadline); after = s.usage(t) {
		time.Sleep(50 * time.Millisecond)
	}
	if len(after.files) != len(before.files) {
		slices.Sort(before.files)
		slices.Sort(after.files)
		t.Errorf("open files before:\n%s\nafter:\n%s", strings.Join(before.files, "\n"), strings.Join(after.files, "\n"))
	}
	if after.children != "" {
		t.Errorf("children: %s", after.children)
	}
	if len(after.temp) != 1 {
		t.Errorf("temporary files: %q", after.temp)
	}
	if grown := after.rss - before.rss; grown > 32<<10 {
		t.Errorf("the server had %d KiB of memory, then %d: %d more", before.rss, after.rss, grown)
	}
	t.Logf("memory %d KiB, then %d KiB; %d open files", before.rss, after.rss, len(after.files))
	for line := range strings.Lines(s.Log()) {
		if strings.ContainsAny(line[:len(line)-1], "\x1b\x00\r") {
			t.Errorf("a client writes into the log: %q", line)
		}
		if strings.Contains(line, "panic") || strings.Contains(line, "goroutine ") {
			t.Errorf("the log shows %q", line)
		}
	}
	for _, path := range []string{"/etc/escape", "/escape", filepath.Join(s.Dir, "escape"), filepath.Join(s.Dir, "tmp", "escape")} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// keyLine is a line of the server's key that nothing else has.
func keyLine(t *testing.T, s *serving) []byte {
	t.Helper()
	lines := bytes.Split(read(t, filepath.Join(s.Dir, "ssl", "server", "stap.key")), []byte("\n"))
	if len(lines) < 4 || len(lines[2]) < 40 {
		t.Fatal("the server has no key that could be looked for")
	}
	return lines[2]
}
