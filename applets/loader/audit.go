package loader

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"stapbox/core/privilege"
	"stapbox/core/signing"
)

// priority is facility authpriv (10), severity info (6), as RFC 3164 writes it.
const priority = "<86>"

// decision is one line of the audit trail: a verdict about a module to load, or
// about one that is loaded and to be removed or attached to.
type decision struct {
	Action    string `json:"action"` // load, remove, attach
	Allow     bool   `json:"allow"`
	Rule      string `json:"rule"` // a to g for a verdict about a module, else what refused
	UID       int    `json:"uid"`
	As        int    `json:"as,omitempty"` // the uid root goes on as
	User      string `json:"levels,omitempty"`
	Module    string `json:"module"`
	Path      string `json:"path,omitempty"`
	SHA256    string `json:"sha256,omitempty"`
	Required  string `json:"required,omitempty"`
	Signature string `json:"signature,omitempty"`
	Signer    string `json:"signer,omitempty"`
	Why       string `json:"why,omitempty"`
}

// describe is what the audit trail says about a module that has been read.
func describe(u privilege.User, m *module) decision {
	d := decision{
		Action: "load", Allow: m.verdict.Allow, Rule: m.verdict.Rule, UID: u.UID, User: u.Levels().String(),
		Module: m.name, Path: m.path, SHA256: hex.EncodeToString(m.digest[:]),
		Required: m.facts.Required.String(), Signature: m.facts.Signature.String(), Why: m.signed.Reason,
	}
	if m.signed.Signer != nil {
		d.Signer = signing.Fingerprint(m.signed.Signer)
	}
	return d
}

// Room in one line: the kernel's log, which stands in for a missing system log,
// takes no record longer than some 960 bytes (dev-kmsg), and a caller must not be
// able to make his line too long to be written.
const (
	maxAuditPath = 200
	maxAuditWhy  = 200
	maxAuditName = 100
)

// audit writes one line to the system log, or to the kernel's if no system log is
// there.
func audit(d decision) {
	d.Module, d.Path, d.Why = clip(d.Module, maxAuditName), clip(d.Path, maxAuditPath), clip(d.Why, maxAuditWhy)
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

// clip shortens a text in the middle until JSON needs no more than limit bytes
// for it.
func clip(s string, limit int) string {
	size := func(s string) int {
		b, err := json.Marshal(s)
		if err != nil {
			return 0
		}
		return len(b) - 2
	}
	for keep := len(s) / 2; size(s) > limit; keep -= keep/8 + 1 {
		s = strings.ToValidUTF8(s[:keep]+"..."+s[len(s)-keep:], "")
	}
	return s
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
