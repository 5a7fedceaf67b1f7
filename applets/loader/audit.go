package loader

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"stapbox/core/privilege"
	"stapbox/core/signing"
)

// priority is facility authpriv (10), severity info (6), as RFC 3164 writes it.
const priority = "<86>"

// decision is the audit line of one verdict.
type decision struct {
	Allow     bool   `json:"allow"`
	Rule      string `json:"rule"`
	UID       int    `json:"uid"`
	User      string `json:"levels"`
	Module    string `json:"module"`
	Path      string `json:"path"`
	SHA256    string `json:"sha256"`
	Required  string `json:"required"`
	Signature string `json:"signature"`
	Signer    string `json:"signer,omitempty"`
	Why       string `json:"why,omitempty"`
}

// audit writes one line about a verdict to the system log, or to the kernel's
// if no system log is there.
func (l *loader) audit(u privilege.User, m *module) {
	d := decision{
		Allow: m.verdict.Allow, Rule: m.verdict.Rule, UID: u.UID, User: u.Levels().String(),
		Module: m.name, Path: m.path, SHA256: hex.EncodeToString(m.digest[:]),
		Required: m.facts.Required.String(), Signature: m.facts.Signature.String(), Why: m.signed.Reason,
	}
	if m.signed.Signer != nil {
		d.Signer = signing.Fingerprint(m.signed.Signer)
	}
	text, err := json.Marshal(d)
	if err != nil {
		return // strings, numbers and booleans always marshal
	}
	line := fmt.Sprintf("%sstaprun[%d]: %s", priority, os.Getpid(), text)
	if sendSyslog(line) == nil {
		return
	}
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer f.Close()
		f.WriteString(line + "\n")
	}
}

// sendSyslog sends one datagram to the system log, without ever waiting for it.
func sendSyslog(line string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(line), 0, &unix.SockaddrUnix{Name: "/dev/log"})
}
