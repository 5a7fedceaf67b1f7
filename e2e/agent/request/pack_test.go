package request

import (
	"bytes"
	"math/rand"
	"testing"
)

func TestPack(t *testing.T) {
	noise := make([]byte, 10000)
	rand.New(rand.NewSource(1)).Read(noise)
	for name, tt := range map[string]struct {
		data   []byte
		packed bool
	}{
		"nothing": {nil, false}, "short": {make([]byte, short-1), false}, "long": {make([]byte, short), true}, "noise": {noise, false},
	} {
		r, a := Request{Data: tt.data}, Answer{Stdout: tt.data}
		r.Pack()
		a.Pack()
		if r.Packed != tt.packed || a.Packed != tt.packed {
			t.Errorf("%s: packed %v, %v", name, r.Packed, a.Packed)
		}
		if err := r.Unpack(); err != nil || !bytes.Equal(r.Data, tt.data) || r.Packed {
			t.Errorf("%s: the request: %v", name, err)
		}
		if err := a.Unpack(); err != nil || !bytes.Equal(a.Stdout, tt.data) || a.Packed {
			t.Errorf("%s: the answer: %v", name, err)
		}
	}
	if err := (&Request{Data: []byte("x"), Packed: true}).Unpack(); err == nil {
		t.Error("what is not packed is unpacked")
	}
}
