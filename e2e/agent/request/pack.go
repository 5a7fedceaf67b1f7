package request

import (
	"bytes"
	"compress/gzip"
	"io"
)

// The line between lab and agent is a serial port, which an emulated processor
// reads byte by byte: what is long goes over it in gzip format.
const short = 4096

// pack compresses what is long and becomes shorter by it.
func pack(data []byte) ([]byte, bool) {
	if len(data) < short {
		return data, false
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data) // into memory
	w.Close()
	if b.Len() >= len(data) {
		return data, false
	}
	return b.Bytes(), true
}

func unpack(data []byte, packed bool) ([]byte, error) {
	if !packed {
		return data, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// Pack makes a request short for the line; Unpack is for the other end.
func (r *Request) Pack() { r.Data, r.Packed = pack(r.Data) }

func (r *Request) Unpack() (err error) {
	r.Data, err = unpack(r.Data, r.Packed)
	r.Packed = false
	return err
}

// Pack makes an answer short for the line; Unpack is for the other end.
func (a *Answer) Pack() { a.Stdout, a.Packed = pack(a.Stdout) }

func (a *Answer) Unpack() (err error) {
	a.Stdout, err = unpack(a.Stdout, a.Packed)
	a.Packed = false
	return err
}
