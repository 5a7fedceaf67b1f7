// Package discovery lets compile servers be found without configuration: DNS
// service discovery (RFC 6763) over multicast DNS (RFC 6762) for the service
// type _stap._tcp (server-client 5).
//
// A server publishes one service per kernel release it builds for. The TXT
// strings of a service are, in this order (mok_info must stay last):
//
//	sysinfo=RELEASE ARCH
//	optinfo=-R/rt -DMACRO ...     options of the server, informational
//	version=5.6                   protocol version, dotted decimals
//	certinfo=00:cc:17:06:94       serial number of the certificate
//	mok_info=99:e7:...            one per machine owner key
//
// The instance name is "Systemtap Compile Server on HOST", at most 63 bytes,
// with " #2", " #3" and so on where that is taken.
package discovery

import (
	"fmt"
	"net/netip"
	"strings"
)

// Type is the service type.
const Type = "_stap._tcp"

const (
	domain      = "local."
	maxInstance = 63
	maxTXT      = 255
	maxStrings  = 64 // of a service; others are not read
)

// Service is one service to publish.
type Service struct {
	Port int
	TXT  []string
}

// TXT makes the strings of a service.
func TXT(release, arch string, options []string, version, certinfo string, mok []string) []string {
	out := []string{
		"sysinfo=" + release + " " + arch,
		"optinfo=" + strings.Join(options, " "),
		"version=" + version,
		"certinfo=" + certinfo,
	}
	for _, m := range mok {
		out = append(out, "mok_info="+m)
	}
	for i, s := range out {
		if len(s) > maxTXT {
			out[i] = s[:maxTXT]
		}
	}
	return out
}

// wireTXT writes strings as package dns takes them: a backslash begins an
// escape there.
func wireTXT(txt []string) []string {
	out := make([]string, len(txt))
	for i, s := range txt {
		out[i] = strings.ReplaceAll(s, `\`, `\\`)
	}
	return out
}

// Server is a service that was found.
type Server struct {
	Instance string
	Host     string     // target of the SRV record, without the final dot
	Addr     netip.Addr // with zone when it is link-local
	// Others are its other addresses on the same link.
	Others   []netip.Addr
	Port     int
	Sysinfo  string // "RELEASE ARCH", "" when not told
	Version  string // "1.0" when not told
	Certinfo string
	MOK      []string
	Options  string
}

// parseTXT reads the strings of a service. They come from anybody on the
// network: keys in any case, missing, twice or unknown are all fine, the first
// of a key counts, and nothing unprintable comes through. The strings are
// written as package dns gives them, with escapes; none is longer than 255
// bytes in the packet.
func parseTXT(s *Server, txt []string) {
	s.Version = "1.0"
	seen := make(map[string]bool)
	for i, t := range txt {
		if i == maxStrings {
			return
		}
		key, value, ok := strings.Cut(unescape(t), "=")
		key = strings.ToLower(key)
		if !ok || seen[key] && key != "mok_info" {
			continue
		}
		seen[key] = true
		value = printable(value)
		switch key {
		case "sysinfo":
			s.Sysinfo = value
		case "optinfo":
			s.Options = value
		case "version":
			s.Version = value
		case "certinfo":
			s.Certinfo = value
		case "mok_info":
			s.MOK = append(s.MOK, value)
		}
	}
}

// printable keeps what is safe on a terminal and inside quotes.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' {
			return -1
		}
		return r
	}, s)
}

// instanceName is the nth name (from 1) of a host's services.
func instanceName(host string, n int) string {
	name := "Systemtap Compile Server on " + host
	suffix := ""
	if n > 1 {
		suffix = fmt.Sprintf(" #%d", n)
	}
	if room := maxInstance - len(suffix); len(name) > room {
		// Not through the middle of a character.
		name = strings.ToValidUTF8(name[:room], "")
	}
	return name + suffix
}
