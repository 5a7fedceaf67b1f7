package service

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Listening are the TCP ports on which a process listens: its descriptors are
// links "socket:[INODE]", and the sockets of its network are the lines of
// /proc/PID/net/tcp and tcp6 (proc(5)):
//
//	SL LOCAL:PORT REMOTE:PORT STATE QUEUES TIMER RETRANSMITS UID TIMEOUT INODE ...
//
// with the state 0A and the port in hexadecimal.
func Listening(proc string, pid int) ([]int, error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	entries, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return nil, fmt.Errorf("looking at the descriptors of process %d: %w", pid, err)
	}
	own := map[string]bool{}
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join(dir, "fd", e.Name()))
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	var ports []int
	for _, name := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile(filepath.Join(dir, "net", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for inode, port := range ParseListening(data) {
			if own[inode] && !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
	}
	slices.Sort(ports)
	return ports, nil
}

// ParseListening reads /proc/net/tcp: the port for the inode of each socket that
// listens. Lines that are something else have none.
func ParseListening(data []byte) map[string]int {
	ports := map[string]int{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != "0A" {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		if port, err := strconv.ParseUint(hex, 16, 16); err == nil && port > 0 {
			ports[f[9]] = int(port)
		}
	}
	return ports
}
