package wire

import (
	"compress/flate"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Version is the protocol version this implementation speaks, the release of
// upstream whose behaviour it has.
const Version = "5.6"

// Request is what a client asks for.
type Request struct {
	Version string   // protocol version of the client, "1.0" if it sent none
	Release string   // kernel release to build for
	Arch    string   // normalised architecture
	Args    []string // translator arguments
	Locale  []string // lines NAME=VALUE as sent, not validated
	// HasLocale is false for clients that sent no locale member.
	HasLocale bool
	MOK       []string // fingerprints of machine owner keys, or "missing"
	Files     []File   // members below script/ and tapset/
}

// Encode makes the archive of a request.
func (r *Request) Encode() ([]byte, error) {
	var files []File
	for i, a := range r.Args {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, fmt.Errorf("argument %d: %.100q has a NUL byte", i+1, a)
		}
		files = append(files, File{"argv" + strconv.Itoa(i+1), []byte(a)})
	}
	var locale strings.Builder
	for _, l := range r.Locale {
		locale.WriteString(l + "\n")
	}
	files = append(files, File{"locale", []byte(locale.String())})
	if len(r.MOK) > 0 {
		files = append(files, File{"mok_fingerprints", []byte(strings.Join(r.MOK, "\n") + "\n")})
	}
	files = append(files,
		File{"sysinfo", []byte("sysinfo: " + r.Release + " " + r.Arch)},
		File{"version", []byte(r.Version)})
	for _, f := range r.Files {
		if !isTree(f.Name) {
			return nil, fmt.Errorf("file %.100q is below neither script nor tapset", f.Name)
		}
		files = append(files, f)
	}
	return writeArchive(files, flate.BestCompression)
}

func isTree(name string) bool {
	return strings.HasPrefix(name, "script/") || strings.HasPrefix(name, "tapset/")
}

// ErrSysinfo says that a request has no usable sysinfo member.
var ErrSysinfo = errors.New("Unable to read sysinfo")

// DecodeRequest reads the archive of a request. With ErrSysinfo the rest of the
// request is returned too.
func DecodeRequest(data []byte, limits Limits) (*Request, error) {
	files, err := readArchive(data, limits)
	if err != nil {
		return nil, err
	}
	r := &Request{Version: "1.0"}
	args := make(map[int]string)
	var sysinfo []string
	for _, f := range files {
		switch {
		case f.Name == "version":
			if r.Version, err = firstVersion(f.Data); err != nil {
				return nil, err
			}
		case f.Name == "sysinfo":
			sysinfo = strings.Fields(string(f.Data))
		case f.Name == "locale":
			r.HasLocale = true
			lines := strings.Split(string(f.Data), "\n")
			// What follows the last line end is no line.
			r.Locale = lines[:len(lines)-1]
		case f.Name == "mok_fingerprints":
			r.MOK = strings.Fields(string(f.Data))
		case isTree(f.Name):
			r.Files = append(r.Files, f)
		case strings.HasPrefix(f.Name, "argv"):
			n, err := strconv.Atoi(f.Name[4:])
			if err != nil || strconv.Itoa(n) != f.Name[4:] || n < 1 {
				return nil, fmt.Errorf("archive member %.100q: not an argument number", f.Name)
			}
			if strings.IndexByte(string(f.Data), 0) >= 0 {
				return nil, fmt.Errorf("archive member %.100q: NUL byte in an argument", f.Name)
			}
			args[n] = string(f.Data)
		case path.Dir(f.Name) == ".":
			// A member that later versions may give a meaning.
		default:
			return nil, fmt.Errorf("archive member %.100q: unknown tree", f.Name)
		}
	}
	for n := 1; n <= len(args); n++ {
		a, ok := args[n]
		if !ok {
			return nil, fmt.Errorf("archive has %d arguments, but no argv%d", len(args), n)
		}
		r.Args = append(r.Args, a)
	}
	if len(sysinfo) < 2 {
		return r, ErrSysinfo
	}
	r.Release = sysinfo[1]
	if len(sysinfo) > 2 {
		r.Arch = sysinfo[2]
	}
	return r, nil
}

func firstVersion(data []byte) (string, error) {
	fields := strings.Fields(string(data))
	if len(fields) == 0 {
		return "1.0", nil
	}
	if err := CheckVersion(fields[0]); err != nil {
		return "", err
	}
	return fields[0], nil
}

// CheckVersion accepts what every peer understands: dotted decimal numbers
// without signs. (Real peers abort on anything else.)
func CheckVersion(v string) error {
	bad := fmt.Errorf("protocol version %.40q is not made of dotted decimal numbers", v)
	if len(v) > 40 {
		return bad
	}
	for _, part := range strings.Split(v, ".") {
		if part == "" || len(part) > 9 {
			return bad
		}
		for _, c := range []byte(part) {
			if c < '0' || c > '9' {
				return bad
			}
		}
	}
	return nil
}

// CompareVersions orders two versions: component by component as numbers, the
// longer one is the later one. A version CheckVersion refuses counts as 0.
func CompareVersions(a, b string) int {
	split := func(v string) []string {
		if CheckVersion(v) != nil {
			return []string{"0"}
		}
		return strings.Split(v, ".")
	}
	as, bs := split(a), split(b)
	for i := range min(len(as), len(bs)) {
		x, _ := strconv.Atoi(as[i])
		y, _ := strconv.Atoi(bs[i])
		if x != y {
			if x < y {
				return -1
			}
			return 1
		}
	}
	switch {
	case len(as) < len(bs):
		return -1
	case len(as) > len(bs):
		return 1
	}
	return 0
}
