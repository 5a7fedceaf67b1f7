package main

import (
	"archive/zip"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"stapbox/e2e/lab"
)

// malformed sends what no honest client sends. The server must refuse each, by
// closing or with an answer whose status is not 0, and go on.
func malformed(_ *ending, _ *lab.Lab, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: malformed ADDRESS:PORT")
	}
	frame := func(n int32, body []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(n)), body...)
	}
	whole := func(body []byte) []byte { return frame(int32(len(body)), body) }
	ordinary := map[string]string{"version": "5.6", "sysinfo": "sysinfo: 6.1.0 x86_64", "locale": "", "argv1": "-p4", "argv2": "-eprobe begin { exit() }"}
	with := func(change func(z *zip.Writer) error) []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for name, text := range ordinary {
			if w, err := z.Create(name); err == nil {
				io.WriteString(w, text)
			}
		}
		if err := change(z); err != nil {
			panic(err) // a bytes.Buffer takes everything
		}
		z.Close()
		return b.Bytes()
	}
	entry := func(name, text string, mode fs.FileMode) func(*zip.Writer) error {
		return func(z *zip.Writer) error {
			h := &zip.FileHeader{Name: name, Method: zip.Deflate}
			h.SetMode(mode)
			w, err := z.CreateHeader(h)
			if err == nil {
				_, err = io.WriteString(w, text)
			}
			return err
		}
	}
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"truncated frame", frame(500, []byte("PK"))},
		{"oversized length", frame(0x7fffffff, nil)},
		{"negative length", frame(-5, nil)},
		{"no archive", whole([]byte("this is no zip archive"))},
		{"zip bomb", whole(with(entry("script/bomb", string(make([]byte, 60<<20)), 0o644)))},
		{"../ path", whole(with(entry("../../escape", "x", 0o644)))},
		{"absolute path", whole(with(entry("/etc/escape", "x", 0o644)))},
		{"symlink member", whole(with(entry("script/link", "/etc/shadow", fs.ModeSymlink|0o777)))},
	} {
		// Who has sent less than announced says that no more comes; everybody
		// else stays, because a client that closes is taken for gone.
		answer, err := exchange(args[0], c.data, c.name == "truncated frame")
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Printf("%-18s %s\n", c.name+":", answer)
	}
	return nil
}

// exchange sends raw bytes in a TLS connection and tells what came back. An
// answer of success is an error.
func exchange(address string, data []byte, end bool) (string, error) {
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) // whom we talk to does not matter here
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write(data); err != nil {
		return "connection closed by the server", nil
	}
	if end {
		if err := conn.CloseWrite(); err != nil {
			return "connection closed by the server", nil
		}
	}
	b, err := io.ReadAll(conn)
	if len(b) == 0 {
		return "connection closed by the server without an answer", nil
	}
	if err != nil {
		return "", err
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return "", err
	}
	rc, err := fs.ReadFile(z, "rc")
	if err != nil {
		return "", err
	}
	text, err := fs.ReadFile(z, "stderr")
	if err != nil {
		return "", err
	}
	if string(bytes.TrimSpace(rc)) == "0" {
		return "", errors.New("the server answered with success")
	}
	return fmt.Sprintf("status %s: %s", bytes.TrimSpace(rc), bytes.TrimSpace(text)), nil
}
