// Package cache keeps finished answers of a compile server on disk, so that a
// request that was answered before costs one read.
//
// A cache is a directory of mode 0700. Entries are named by their key, the
// SHA-256 of everything that the answer depends on (core/compile works it out):
//
//	DIR/lock                 held while names change; "TOTAL\n", bytes of all entries
//	DIR/3f/3fa9...           one entry, 64 digits, mode 0600
//	DIR/3f/.new-...          an entry that is being written
//
// An entry, integers big-endian:
//
//	offset   octets
//	0        8      "stapbox\x01"
//	8        2      version of the format, 1
//	10       2      length M of the note
//	12       4      length N of the answer
//	16       32     the key again
//	48       M      note: a JSON object, for people (type Note)
//	48+M     N      the answer: the response archive as the client gets it
//	48+M+N   32     SHA-256 of all octets before
//
// Nothing follows. An entry is written under another name, synced, renamed and
// its directory synced: whatever ends the writer, a name in the directory stands
// for a whole entry. What is not, or belongs to another user, or is open to
// others, is removed when it is read and counts as absent.
//
// Several processes of one user may share a directory. The time of last
// modification of an entry is that of its last use; the longest unused ones go
// when the entries, each counted in blocks of 4096 octets, would exceed the size
// of the cache. Readers take no lock: an entry that is removed while it is read
// is read to its end.
//
// An entry says nothing about who asked. Whoever asks for the same script with
// the same options gets the same answer, as he would by having it compiled
// again; other requests have other keys, and keys cannot be asked for. What one
// client can learn of others is from the time an answer takes: that somebody has
// made this very request, of which he has all octets himself.
//
// The digest finds damage, not forgery: who may write the directory may put
// another unsigned module there, though no signature that the server did not
// make. Workers of requests may not write it.
package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Key names an entry.
type Key [sha256.Size]byte

// String is the name of the entry's file.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// Short is what logs show of a key.
func (k Key) Short() string { return k.String()[:12] }

// ParseKey is the inverse of Key.String.
func ParseKey(s string) (Key, error) {
	var k Key
	if len(s) != 2*len(k) || strings.ToLower(s) != s {
		return k, fmt.Errorf("key %.80q is not made of %d digits 0-9a-f", s, 2*len(k))
	}
	if _, err := hex.Decode(k[:], []byte(s)); err != nil {
		return k, fmt.Errorf("key %.80q is not made of %d digits 0-9a-f", s, 2*len(k))
	}
	return k, nil
}

// Note is what an entry says about itself to people. Nothing is decided by it.
type Note struct {
	Made      time.Time `json:"made"`
	Release   string    `json:"release"`
	Level     string    `json:"level"`
	Module    string    `json:"module,omitempty"`
	Signature string    `json:"signature"`        // "signed" or "unsigned"
	SHA256    string    `json:"sha256,omitempty"` // of the module
	Signer    string    `json:"signer,omitempty"` // SHA-256 of the certificate whose key signed
}

const (
	magic         = "stapbox\x01"
	formatVersion = 1
	headerSize    = len(magic) + 2 + 2 + 4 + sha256.Size
	maxNote       = 4096
	maxAnswer     = 64 << 20
	minEntry      = headerSize + sha256.Size
	maxEntry      = minEntry + maxNote + maxAnswer // fits 32 bits
	blockSize     = 4096
)

// ErrDamaged says that an entry is not what was put there. It has been removed.
var ErrDamaged = errors.New("damaged entry")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// encode makes the contents of an entry.
func encode(key Key, note Note, answer []byte) ([]byte, error) {
	text, err := json.Marshal(note)
	if err != nil {
		return nil, err
	}
	if len(text) > maxNote || len(answer) > maxAnswer {
		return nil, ErrTooLarge
	}
	b := make([]byte, 0, minEntry+len(text)+len(answer))
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint16(b, formatVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(answer)))
	b = append(b, key[:]...)
	b = append(b, text...)
	b = append(b, answer...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

// header reads the lengths of an entry of the given size.
func header(b []byte, size int64, key Key) (note, answer int, err error) {
	switch {
	case len(b) < headerSize || size < int64(minEntry):
		return 0, 0, damaged("it is too short")
	case string(b[:len(magic)]) != magic:
		return 0, 0, damaged("it does not begin as an entry does")
	}
	if v := binary.BigEndian.Uint16(b[8:]); v != formatVersion {
		return 0, 0, damaged("its format is version %d, not %d", v, formatVersion)
	}
	note, answer64 := int(binary.BigEndian.Uint16(b[10:])), int64(binary.BigEndian.Uint32(b[12:]))
	switch {
	case note > maxNote || answer64 > maxAnswer || int64(minEntry+note)+answer64 != size:
		return 0, 0, damaged("its lengths do not add up to its size")
	case !bytes.Equal(b[16:headerSize], key[:]):
		return 0, 0, damaged("it carries another key")
	}
	return note, int(answer64), nil
}

// decode reads an entry. The answer is a part of b.
func decode(b []byte, key Key) (Note, []byte, error) {
	n, a, err := header(b, int64(len(b)), key)
	if err != nil {
		return Note{}, nil, err
	}
	body := b[:headerSize+n+a]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return Note{}, nil, damaged("its digest is wrong")
	}
	note, err := readNote(body[headerSize : headerSize+n])
	if err != nil {
		return Note{}, nil, err
	}
	return note, body[headerSize+n:], nil
}

func readNote(text []byte) (Note, error) {
	var note Note
	if err := json.Unmarshal(text, &note); err != nil {
		return Note{}, damaged("its note cannot be read")
	}
	return note, nil
}

// ParseSize reads a number of bytes: decimal digits, then nothing, K, M or G for
// 1024 bytes and its powers.
func ParseSize(s string) (int64, error) {
	digits, shift := s, 0
	if i := strings.IndexAny(s, "kKmMgG"); i >= 0 && i == len(s)-1 {
		digits, shift = s[:i], map[byte]int{'k': 10, 'm': 20, 'g': 30}[s[i]|0x20]
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("size %.40q is not a number of bytes, with K, M or G after it or without", s)
	}
	return int64(n) << shift, nil
}
