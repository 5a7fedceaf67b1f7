package lab

import (
	"bytes"
	"strings"
	"testing"
)

// TestAddVariables writes into a volume of our own making, and into none that it
// does not know.
func TestAddVariables(t *testing.T) {
	volume := make([]byte, 72)
	copy(volume[40:], "_FVH")
	volume[48] = 72
	volume = append(volume, authenticatedStore...)
	volume = append(volume, 228, 0, 0, 0, 0x5a, 0xfe, 0, 0, 0, 0, 0, 0)
	volume = append(volume, bytes.Repeat([]byte{0xff}, 200)...)
	v := Variable{"db", [16]byte{1}, []byte("abcde")}
	got, err := addVariables(volume, []Variable{v, v})
	if err != nil || len(got) != len(volume) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	one := "\xaa\x55\x3f\x00\x07\x00\x00\x00" + strings.Repeat("\x00", 28) + "\x06\x00\x00\x00\x05\x00\x00\x00" + "\x01" + strings.Repeat("\x00", 15) + "d\x00b\x00\x00\x00abcde\xff"
	if want := one + one + "\xff\xff"; !strings.HasPrefix(string(got[100:]), want) {
		t.Errorf("got  %q\nwant %q", got[100:], want)
	}
	for name, c := range map[string]struct {
		volume []byte
		vars   []Variable
		want   string
	}{
		"nothing":   {nil, nil, "no firmware volume"},
		"format":    {bytes.Replace(volume, []byte{0x5a, 0xfe}, []byte{0, 0}, 1), nil, "unknown format"},
		"not empty": {got, nil, "has variables already"},
		"too much":  {volume, []Variable{v, v, v}, "are more than the 200"},
	} {
		if _, err := addVariables(c.volume, c.vars); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want %q", name, err, c.want)
		}
	}
}
