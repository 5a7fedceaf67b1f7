package doctor

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
)

// gunzip opens /proc/config.gz (RFC 1952). Its header is ten bytes,
//
//	1f 8b 08 FLAGS MTIME(4) XFL OS
//
// with a file name that ends with 0 behind it if FLAGS has 8; other flags do not
// occur there. The checksum at the end is left alone: it is the kernel's memory.
func gunzip(b []byte) ([]byte, error) {
	if len(b) < 10 || b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 || b[3]&^8 != 0 {
		return nil, errors.New("no gzip file of the kernel")
	}
	flags, b := b[3], b[10:]
	if flags&8 != 0 {
		_, rest, found := bytes.Cut(b, []byte{0})
		if !found {
			return nil, errors.New("no gzip file of the kernel")
		}
		b = rest
	}
	return io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), maxText))
}
