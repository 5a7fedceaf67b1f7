// Package wire is the protocol between client and compile server
// (server-client 2.1, 3): one request per TLS connection.
//
//	client -> server   length N, signed 32 bits big-endian, then a ZIP archive
//	                   of N octets; N = 0 is a contact for trust: no answer
//	server -> client   a ZIP archive up to the end of the stream, no length
//
// Request members:
//
//	version              protocol version of the client, "5.6"
//	sysinfo              "sysinfo: RELEASE ARCH"
//	locale               lines NAME=VALUE, each ended
//	argv1 ... argvN      one translator argument each, raw
//	mok_fingerprints     only where the kernel wants signed modules
//	script/ABS/PATH      the script file; script/- for standard input
//	tapset/ABS/PATH/...  one tree per -I
//
// Response members:
//
//	version rc stdout stderr          rc in decimal
//	stap000000/NAME.ko[.sgn]          and whatever else the build left
//	signing_key.x509                  a machine owner key to enrol
//
// Archives from the other side are decoded in memory under Limits, counted
// while they inflate: nothing their directory says is believed. Links, devices,
// absolute names, "..", names that occur twice and encrypted members are
// refused, never skipped.
package wire

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
)

// File is a regular file in an archive.
type File struct {
	Name string // relative, "/" between the parts
	Data []byte
}

// Limits on an archive.
type Limits struct {
	Members      int   // files and directories
	Uncompressed int64 // sum of the contents
	Ratio        int64 // Uncompressed to compressed, once past ratioFrom
}

// ratioFrom is the size from which Limits.Ratio counts: small texts may
// compress well.
const ratioFrom = 1 << 20

// Limits of the two directions where nobody set others. Deflate cannot do
// better than 1032:1, a build directory does not reach 50:1.
const (
	DefaultMaxCompressed   = 20000
	DefaultMaxUncompressed = 200000
	maxNameLength          = 4096
	maxNameDepth           = 64
	maxRequestMembers      = 2048
	maxRatio               = 200
)

// ResponseLimits are what a client accepts from a server.
var ResponseLimits = Limits{Members: 10000, Uncompressed: 256 << 20, Ratio: maxRatio}

// MaxResponse is the size of the largest response archive a client reads.
const MaxResponse = 64 << 20

// RequestLimits are what a server accepts, given --max-request-size.
func RequestLimits(uncompressed int64) Limits {
	return Limits{Members: maxRequestMembers, Uncompressed: uncompressed, Ratio: maxRatio}
}

// SizeError says that an archive holds more, or less, than it may.
type SizeError struct {
	Size, Max int64
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("Uncompressed request size of %d bytes is not within the expected range of 1 to %d bytes.", e.Size, e.Max)
}

// readArchive returns the files of an archive in its order. Directories are
// checked and dropped.
func readArchive(data []byte, limits Limits) ([]File, error) {
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	if len(z.File) > limits.Members {
		return nil, fmt.Errorf("archive has more than %d members", limits.Members)
	}
	var declared int64
	for _, f := range z.File {
		if f.UncompressedSize64 > uint64(limits.Uncompressed) {
			return nil, &SizeError{int64(min(f.UncompressedSize64, 1<<62)), limits.Uncompressed}
		}
		declared += int64(f.UncompressedSize64)
	}
	if declared < 1 || declared > limits.Uncompressed {
		return nil, &SizeError{declared, limits.Uncompressed}
	}
	var files []File
	var total int64
	isDir := make(map[string]bool) // every name seen, and its parents
	for _, f := range z.File {
		name, dir := strings.CutSuffix(f.Name, "/")
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("archive member %.100q: %w", f.Name, err)
		}
		switch mode := f.Mode(); {
		case mode.IsDir() != dir:
			return nil, fmt.Errorf("archive member %.100q: name and type disagree", f.Name)
		case !dir && !mode.IsRegular():
			return nil, fmt.Errorf("archive member %.100q: %s, not a regular file", f.Name, kind(mode))
		case f.Flags&1 != 0:
			return nil, fmt.Errorf("archive member %.100q: encrypted", f.Name)
		}
		if was, seen := isDir[name]; seen && (!dir || !was) {
			return nil, fmt.Errorf("archive member %.100q: name occurs twice", f.Name)
		}
		isDir[name] = dir
		for p := path.Dir(name); p != "."; p = path.Dir(p) {
			if was, seen := isDir[p]; seen && !was {
				return nil, fmt.Errorf("archive member %.100q: %.100q is a file", f.Name, p)
			}
			isDir[p] = true
		}
		if dir {
			continue
		}
		content, err := inflate(f, limits, total, int64(len(data)))
		if err != nil {
			return nil, err
		}
		total += int64(len(content))
		files = append(files, File{Name: name, Data: content})
	}
	return files, nil
}

func inflate(f *zip.File, limits Limits, before, compressed int64) ([]byte, error) {
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("archive member %.100q: %w", f.Name, err)
	}
	defer r.Close()
	var b bytes.Buffer
	most := limits.Uncompressed
	if limits.Ratio > 0 {
		most = min(most, max(ratioFrom, limits.Ratio*compressed))
	}
	left := most - before
	n, err := io.Copy(&b, io.LimitReader(r, left+1))
	if err != nil {
		return nil, fmt.Errorf("archive member %.100q: %w", f.Name, err)
	}
	switch {
	case n <= left:
	case most < limits.Uncompressed:
		return nil, fmt.Errorf("archive member %.100q: archive inflates to more than %d times its size", f.Name, limits.Ratio)
	default:
		return nil, &SizeError{before + n, limits.Uncompressed}
	}
	return b.Bytes(), nil
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m&(fs.ModeDevice|fs.ModeCharDevice) != 0:
		return "a device"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a special file"
}

// checkName accepts relative names that mean the same to everybody.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("empty name")
	case len(name) > maxNameLength:
		return fmt.Errorf("name has more than %d bytes", maxNameLength)
	case strings.ContainsAny(name, "\x00\\\n\r"):
		return errors.New("name has a NUL, backslash or line end")
	case name[0] == '/':
		return errors.New("absolute name")
	}
	parts := strings.Split(name, "/")
	if len(parts) > maxNameDepth {
		return fmt.Errorf("name has more than %d parts", maxNameDepth)
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." {
			return fmt.Errorf("name has the part %q", p)
		}
		if len(p) > 255 {
			return errors.New("name has a part of more than 255 bytes")
		}
	}
	return nil
}

// compressors holds idle compressors by level: each is about a megabyte, and a
// server needs one for every member of every answer.
var compressors [flate.BestCompression + 1]sync.Pool

type compressor struct {
	*flate.Writer
	pool *sync.Pool
}

func (c *compressor) Close() error {
	err := c.Writer.Close()
	c.pool.Put(c.Writer)
	return err
}

// writeArchive is the inverse of readArchive. level is a flate level: requests
// are small and limited in size, responses are large and waited for.
func writeArchive(files []File, level int) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		pool := &compressors[level]
		c, ok := pool.Get().(*flate.Writer)
		if !ok {
			var err error
			if c, err = flate.NewWriter(nil, level); err != nil {
				return nil, err
			}
		}
		c.Reset(w)
		return &compressor{c, pool}, nil
	})
	seen := make(map[string]bool)
	for _, f := range files {
		if err := checkName(f.Name); err != nil {
			return nil, fmt.Errorf("archive member %.100q: %w", f.Name, err)
		}
		if seen[f.Name] {
			return nil, fmt.Errorf("archive member %.100q: name occurs twice", f.Name)
		}
		seen[f.Name] = true
		h := &zip.FileHeader{Name: f.Name, Method: zip.Deflate}
		if len(f.Data) < 32 {
			h.Method = zip.Store // deflate would only make it longer
		}
		h.SetMode(0o644)
		w, err := z.CreateHeader(h)
		if err != nil {
			return nil, fmt.Errorf("writing the archive: %w", err)
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, fmt.Errorf("writing the archive: %w", err)
		}
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("writing the archive: %w", err)
	}
	return b.Bytes(), nil
}
