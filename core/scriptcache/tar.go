package scriptcache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// The part of tar(5) that an archive of plain files needs. It is ours because
// archive/tar, with sparse files and the rest, would be as large as this whole
// applet. A header of 512 bytes, numbers in octal digits:
//
//	0    100  name            136  12  time, seconds since 1970
//	100    8  mode            148   8  sum of the header's bytes, these eight as blanks
//	124   12  size            156   1  type: '0' or 0 file, '5' directory
//	257    6  "ustar"         345 155  prefix: directories before the name
//
// then the data, padded to 512 bytes. Two empty headers end the archive. A long
// name comes before its header in a file of type 'L' (GNU) or 'x' (pax, a line
// "LENGTH path=NAME").
const block = 512

type header struct {
	name string
	kind byte
	size int64
	time time.Time
}

// number reads octal digits.
func number(b []byte) (int64, error) {
	s := strings.Trim(string(b), " \x00")
	if s == "" {
		return 0, nil
	}
	return strconv.ParseInt(s, 8, 63)
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

var errHeader error = constError("damaged tar header")

// checksum of a header: each byte as a positive number.
func checksum(h []byte) (sum int64) {
	for i, c := range h {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
	}
	return sum
}

// tarReader reads headers and data in turn.
type tarReader struct {
	r    io.Reader
	left int64 // bytes of the last file, with padding
}

// next reads a header; io.EOF is the end.
func (t *tarReader) next() (header, error) {
	longName := ""
	for range 16 { // of which the last is a file's
		if _, err := io.CopyN(io.Discard, t.r, t.left); err != nil {
			return header{}, noEOF(err)
		}
		t.left = 0
		var b [block]byte
		if _, err := io.ReadFull(t.r, b[:]); err != nil {
			return header{}, noEOF(err)
		}
		if b == [block]byte{} {
			return header{}, io.EOF
		}
		size, err := number(b[124:136])
		seconds, terr := number(b[136:148])
		sum, serr := number(b[148:156])
		if err != nil || terr != nil || serr != nil || sum != checksum(b[:]) || size < 0 || size > maxTotal {
			return header{}, errHeader
		}
		h := header{name: text(b[:100]), kind: b[156], size: size, time: time.Unix(seconds, 0)}
		if prefix := text(b[345:500]); prefix != "" && string(b[257:262]) == "ustar" && b[262] == 0 {
			h.name = prefix + "/" + h.name
		}
		t.left = (size + block - 1) / block * block
		switch h.kind {
		case 'L', 'x', 'g':
			if size > 1<<16 {
				return header{}, errHeader
			}
			data, err := t.data(h)
			if err != nil {
				return header{}, err
			}
			if h.kind == 'L' {
				longName = text(data)
			} else if p := paxPath(data); p != "" && h.kind == 'x' {
				longName = p
			}
			continue
		case 0:
			h.kind = '0'
		}
		if longName != "" {
			h.name = longName
		}
		return h, nil
	}
	return header{}, errHeader
}

// data reads the file that belongs to the last header.
func (t *tarReader) data(h header) ([]byte, error) {
	data := bytes.NewBuffer(nil)
	if _, err := io.CopyN(data, t.r, h.size); err != nil {
		return nil, noEOF(err)
	}
	t.left -= h.size
	return data.Bytes(), nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// paxPath finds path= among lines of "LENGTH KEY=VALUE".
func paxPath(data []byte) string {
	for line := range bytes.Lines(data) {
		if _, v, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" path=")); ok {
			return string(v)
		}
	}
	return ""
}

// appendTar packs one file.
func appendTar(w io.Writer, f File) error {
	name := f.Path()
	prefix := ""
	if len(name) > 100 {
		prefix, name = f.Release, f.Name
	}
	if len(name) > 100 || len(prefix) > 155 {
		return fmt.Errorf("packing %q: the name is too long", f.Path())
	}
	var b [block]byte
	copy(b[:], name)
	octal := func(at, digits int, v int64) { copy(b[at:], fmt.Sprintf("%0*o", digits, v)) }
	octal(100, 7, 0o644)
	octal(108, 7, 0)
	octal(116, 7, 0)
	octal(124, 11, int64(len(f.Data)))
	octal(136, 11, max(f.Time.Unix(), 0))
	b[156] = '0'
	copy(b[257:], "ustar\x0000")
	copy(b[345:], prefix)
	octal(148, 6, checksum(b[:]))
	b[155] = ' '
	if _, err := w.Write(b[:]); err != nil {
		return err
	}
	if _, err := w.Write(f.Data); err != nil {
		return err
	}
	_, err := w.Write(make([]byte, (block-len(f.Data)%block)%block))
	return err
}
