package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxMessage bounds what Enter reads.
const maxMessage = 64 << 20

// order is a Spec as it goes to the new process.
type order struct {
	Spec
	layers Layers
	uid    uint64 // 0: the parent's
}

func (o *order) encode() ([]byte, error) {
	b := make([]byte, 4)
	var err error
	put := func(key string, values ...string) {
		for _, v := range values {
			if strings.Contains(v, "\x00") {
				err = fmt.Errorf("%s %q contains a NUL octet", key, v)
			}
			b = append(append(append(append(b, key...), '='), v...), 0)
		}
	}
	one := func(key, value string) {
		if value != "" {
			put(key, value)
		}
	}
	one("path", o.Path)
	put("arg", o.Args...)
	put("env", o.Env...)
	one("dir", o.Dir)
	put("read", o.Read...)
	put("write", o.Write...)
	one("private", o.Private)
	put("size", strconv.FormatUint(o.Size, 10))
	for _, l := range o.Limits {
		put("limit", l.Name+"="+strconv.FormatUint(l.Value, 10))
	}
	put("layers", strconv.Itoa(int(o.layers)))
	put("uid", strconv.FormatUint(o.uid, 10))
	if err == nil && len(b)-4 > maxMessage {
		err = errors.New("the words are too long")
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b, err
}

func readOrder(r io.Reader) (*order, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxMessage {
		return nil, fmt.Errorf("%d octets are too many", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return parseOrder(string(b))
}

func parseOrder(text string) (*order, error) {
	o := &order{}
	if text == "" {
		return o, nil
	}
	if !strings.HasSuffix(text, "\x00") {
		return nil, errors.New("the last word has no end")
	}
	for _, line := range strings.Split(text[:len(text)-1], "\x00") {
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("%q has no value", line)
		}
		var err error
		switch key {
		case "path":
			o.Path = value
		case "arg":
			o.Args = append(o.Args, value)
		case "env":
			o.Env = append(o.Env, value)
		case "dir":
			o.Dir = value
		case "read":
			o.Read = append(o.Read, value)
		case "write":
			o.Write = append(o.Write, value)
		case "private":
			o.Private = value
		case "size":
			o.Size, err = strconv.ParseUint(value, 10, 63)
		case "limit":
			name, number, _ := strings.Cut(value, "=")
			l := Limit{Name: name}
			l.Value, err = strconv.ParseUint(number, 10, 64)
			o.Limits = append(o.Limits, l)
		case "layers":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 8)
			o.layers = Layers(n)
		case "uid":
			o.uid, err = strconv.ParseUint(value, 10, 31)
		default:
			return nil, fmt.Errorf("%q is unknown", key)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	return o, nil
}
