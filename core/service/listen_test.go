package service

import (
	"net"
	"os"
	"slices"
	"testing"
)

const procTCP = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000   155        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F91 0100007F:9C40 01 00000000:00000000 00:00000000 00000000   155        0 4712 1 0000000000000000 20 4 30 10 -1
   2: 00000000000000000000000000000000:FDE8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   155        0 4713 1 0000000000000000 100 0 0 10 0
   3: 0100007F:zz 00000000:0000 0A 0 0 0 0 0 4714
`

func TestParseListening(t *testing.T) {
	got := ParseListening([]byte(procTCP))
	if len(got) != 2 || got["4711"] != 8080 || got["4713"] != 65000 {
		t.Errorf("got %v", got)
	}
}

func TestListening(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got, err := Listening("/proc", os.Getpid()); err != nil || !slices.Contains(got, l.Addr().(*net.TCPAddr).Port) {
		t.Errorf("got %v, %v, want %v among them", got, err, l.Addr())
	}
	if _, err := Listening("/proc", 1<<30); err == nil {
		t.Error("a process that is not there")
	}
}

func FuzzParseListening(f *testing.F) {
	f.Add([]byte(procTCP))
	f.Fuzz(func(t *testing.T, data []byte) {
		for inode, port := range ParseListening(data) {
			if inode == "" || port < 1 || port > 65535 {
				t.Errorf("inode %q, port %d", inode, port)
			}
		}
	})
}
