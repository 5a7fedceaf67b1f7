package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/trust"
	"stapbox/core/wire"
)

// Servers that a browse found and that then answered are remembered, so that
// the next run asks them at once. The file is text:
//
//	stapbox servers 1
//	TIME TAB ADDRESS:PORT TAB HOST TAB VERSION TAB SYSINFO TAB CERTINFO TAB SHA256
//
// with one line per server and kernel, the one that answered last first. TIME is
// in seconds since 1970, SYSINFO is the "RELEASE ARCH" that it compiled for,
// SHA256 is that of its certificate. Lines that are not like this are passed
// over. What the file says is no more than where to ask first: a server is
// believed for its certificate, as ever.
const (
	rememberedMagic = "stapbox servers 1"
	maxRemembered   = 32
	maxMemory       = 32 << 10 // bytes of the file
	memoryLife      = 30 * 24 * time.Hour
	// Servers that are gone should not cost much more than the browse that
	// comes then.
	rememberedConnect   = 400 * time.Millisecond
	rememberedHandshake = 2 * time.Second
	rememberedTried     = 3
)

// memory is one line.
type memory struct {
	when time.Time
	record
}

func parseMemory(data []byte, now time.Time) []memory {
	if len(data) > maxMemory {
		return nil
	}
	head, rest, ok := strings.Cut(string(data), "\n")
	if !ok || head != rememberedMagic {
		return nil
	}
	var out []memory
	for line := range strings.Lines(rest) {
		if m, ok := parseMemoryLine(strings.TrimSuffix(line, "\n")); ok && len(out) < maxRemembered &&
			!m.when.After(now.Add(time.Hour)) && now.Sub(m.when) < memoryLife {
			out = append(out, m)
		}
	}
	return out
}

func parseMemoryLine(line string) (memory, bool) {
	f := strings.Split(line, "\t")
	if len(f) != 7 || strings.ContainsFunc(line, func(r rune) bool { return r != '\t' && (r < ' ' || r > '~' || r == '"') }) {
		return memory{}, false
	}
	when, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil || when < 0 || when > 1<<40 {
		return memory{}, false
	}
	addr, err := netip.ParseAddrPort(f[1])
	if err != nil || addr.Port() == 0 || addr.Addr().IsUnspecified() || addr.Addr().IsMulticast() {
		return memory{}, false
	}
	digest, err := trust.ParseFingerprint("sha256:" + f[6])
	if err != nil {
		return memory{}, false
	}
	return memory{time.Unix(when, 0), record{
		addr: addr.Addr(), port: int(addr.Port()), host: f[2], version: f[3], sysinfo: f[4], certinfo: f[5],
		fingerprint: fmt.Sprintf("%x", digest), found: true, remembered: true,
	}}, true
}

func formatMemory(list []memory) []byte {
	var b bytes.Buffer
	b.WriteString(rememberedMagic + "\n")
	for _, m := range list {
		line := strings.Join([]string{
			strconv.FormatInt(m.when.Unix(), 10), m.address(), m.host, m.version, m.sysinfo, m.certinfo, m.fingerprint,
		}, "\t") + "\n"
		if _, ok := parseMemoryLine(strings.TrimSuffix(line, "\n")); ok && b.Len()+len(line) <= maxMemory {
			b.WriteString(line)
		}
	}
	return b.Bytes()
}

// memories reads the file. It must be the user's, or root's: another user
// could otherwise see to it that this one asks in the wrong place first.
func (c *client) memories() ([]memory, error) {
	f, err := os.OpenFile(hostpaths.RememberedServers(c.data), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("examining %q: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != c.uid && st.Uid != 0 {
		return nil, fmt.Errorf("%q is not a file of this user", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxMemory+1))
	if err != nil {
		return nil, err
	}
	return parseMemory(data, c.now()), nil
}

// fromMemory are the remembered servers that may do: known to compile for this
// kernel, trusted as the request needs it, and one of those that were asked for.
// There are none when something else was asked for that only a browse can tell.
func (s *servers) fromMemory(ctx context.Context) []record {
	list, err := s.c.memories()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && s.c.opts.Verbose > 0 {
			s.c.say("Remembered servers: %v", err)
		}
		return nil
	}
	list = slices.DeleteFunc(list, func(m memory) bool { return m.sysinfo != s.kernel })
	if len(list) == 0 {
		return nil
	}
	wanted := s.requested(ctx)
	for _, w := range wanted {
		// A serial number may have become that of a second server, which is
		// refused (decision T1).
		if w.full || w.certinfo != "" {
			return nil
		}
	}
	var out []record
	for _, m := range list {
		fits := s.wantDefault() || slices.ContainsFunc(wanted, func(w record) bool { return w.equal(m.record) })
		if fits && !s.revokedPeer(m.fingerprint) && s.known(m.fingerprint, s.c.peerStores()...) && (!s.c.opts.Unprivileged() || s.known(m.fingerprint, s.c.signerStore())) {
			if out = append(out, m.record); len(out) == rememberedTried {
				break
			}
		}
	}
	return out
}

// known reports whether one of the stores has a certificate.
func (s *servers) known(fingerprint string, dirs ...store) bool {
	return slices.ContainsFunc(dirs, func(d store) bool {
		return slices.ContainsFunc(s.store(d), func(r record) bool { return r.fingerprint == fingerprint })
	})
}

// askRemembered has a remembered server do it, if there is one that still
// answers. It is quick about those that do not.
func (c *client) askRemembered(ctx context.Context, s *servers, archive []byte) ([]byte, record, bool) {
	list := s.fromMemory(ctx)
	if len(list) == 0 {
		return nil, record{}, false
	}
	answer, r, ok := c.exchange(ctx, s, list, archive)
	if ok && declines(answer) {
		return nil, record{}, false
	}
	return answer, r, ok
}

// declines reports whether an answer says that the server does not build for
// this kernel any more. Upstream's has nothing but its version in it then.
func declines(answer []byte) bool {
	r, err := wire.DecodeResponse(answer)
	return err != nil || !r.HasRC || r.RC != 0 && bytes.HasPrefix(r.Stderr, []byte("Target kernel version "))
}

// remember notes that a server answered. It matters to the next run only, so
// nothing fails for it.
func (c *client) remember(s *servers, r record, cert *x509.Certificate) {
	if !r.found || cert == nil {
		return
	}
	list, err := c.memories()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	m := memory{c.now(), r}
	m.sysinfo, m.certinfo, m.fingerprint = s.kernel, identity.CertInfo(cert), identity.Fingerprint(cert)
	m.host = clean(m.host)
	if len(list) > 0 {
		first := list[0]
		if first.fingerprint == m.fingerprint && first.sysinfo == m.sysinfo && first.address() == m.address() && c.now().Sub(first.when) < time.Hour {
			return // nothing new
		}
	}
	list = slices.DeleteFunc(list, func(o memory) bool { return o.fingerprint == m.fingerprint && o.sysinfo == m.sysinfo })
	list = append([]memory{m}, list...)
	if err := c.keepMemories(list[:min(len(list), maxRemembered)]); err != nil && c.opts.Verbose > 0 {
		c.say("Remembering the server: %v", err)
	}
}

// keepMemories replaces the file.
func (c *client) keepMemories(list []memory) error {
	if err := os.MkdirAll(c.data, 0o755); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(c.data, &st); err != nil {
		return fmt.Errorf("examining %q: %w", c.data, err)
	}
	if int(st.Uid) != c.uid {
		return nil // root with another user's home; the file would be in his way
	}
	f, err := os.CreateTemp(c.data, ".servers-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(formatMemory(list))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Clean(hostpaths.RememberedServers(c.data)))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
