package doctor

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"stapbox/core/trust"
)

// soon is when the end of a certificate is worth a remark.
const soon = 30 * 24 * time.Hour

const (
	trustAny     = trustCommand + "SERVER:PORT"
	trustCommand = "sudo stap --trust-servers=ssl,signer,all-users --use-server="
)

// trustServer is the command that adds trust in the server that answered last.
func (h *Host) trustServer() string {
	if len(h.Servers) == 0 {
		return trustAny
	}
	return trustCommand + quote(h.Servers[0].Address)
}

// broken is about a store that cannot be used.
func (s *Store) broken() Finding {
	sudo := "sudo "
	if s.Mine {
		sudo = ""
	}
	var unsafe *trust.UnsafeError
	var path *fs.PathError
	if !s.Mine && errors.Is(s.Err, fs.ErrPermission) && errors.As(s.Err, &path) {
		return cured(s.Dir, s.Err.Error(), "sudo chmod a+rX "+quote(filepath.Dir(path.Path))+" "+quote(path.Path))
	}
	if !errors.As(s.Err, &unsafe) {
		return cured(s.Dir, s.Err.Error(), sudo+"ls -l "+quote(s.Dir))
	}
	cure := "mv " + quote(unsafe.Path) + " " + quote(unsafe.Path+".old")
	switch {
	case strings.Contains(unsafe.Reason, "owned by root"):
		cure = "chown root " + quote(unsafe.Path)
	case strings.Contains(unsafe.Reason, "owned"):
		sudo, cure = "sudo ", `chown "$USER" `+quote(unsafe.Path)
	case strings.Contains(unsafe.Reason, "writable"):
		cure = "chmod go-w " + quote(unsafe.Path)
	}
	return cured(unsafe.Path, unsafe.Error(), sudo+cure)
}

// inspect looks at the certificates of one store.
func (s *Store) inspect(now time.Time) (valid int, found []Finding) {
	if s.None {
		return 0, nil
	}
	if s.Err != nil {
		return 0, []Finding{s.broken()}
	}
	for _, w := range s.Warnings {
		found = append(found, note(s.Dir, w, ""))
	}
	for _, c := range s.Certificates {
		what := fmt.Sprintf("sha256:%.8s of %s", c.Fingerprint, orUnknown(c.Host))
		day := c.NotAfter.UTC().Format(time.DateOnly)
		revoke := "stapbox trust revoke " + c.Fingerprint[:min(8, len(c.Fingerprint))]
		if !s.Mine {
			revoke = "sudo " + revoke
		}
		switch {
		case c.Revoked:
		case now.After(c.NotAfter):
			found = append(found, note(c.Fingerprint, what+" expired on "+day, revoke))
		case now.Before(c.NotBefore): // the clock has a check of its own
		case now.Add(soon).After(c.NotAfter):
			valid++
			found = append(found, note(c.Fingerprint, what+" expires on "+day+"; then trust its next one", ""))
		default:
			valid++
		}
	}
	return valid, found
}

func orUnknown(host string) string {
	if host == "" {
		return "an unnamed host"
	}
	return hostName(host)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// signers: whose modules staprun loads for members of stapusr and stapsys.
func signers(h *Host) []Finding {
	valid, found := h.Signers.inspect(h.Now)
	if valid > 0 {
		return append(ok(h.Signers.Dir, "%s trusted to sign modules", plural(valid, "certificate")), found...)
	}
	if h.Signers.Err == nil || h.Signers.None {
		text, cure := "no signer of modules is trusted", h.trustServer()
		if h.Signers.NSS {
			text, cure = "only an NSS database is there, which staprun does not read", "sudo stap-authorize-signing-cert --import="+quote(h.Signers.Dir)
		}
		if h.loadsAll() {
			return append(ok(h.Signers.Dir, "%s (not needed here)", text), found...)
		}
		found = append([]Finding{cured(h.Signers.Dir, text, cure)}, found...)
	}
	return found
}

// peers: which servers may compile.
func peers(h *Host) []Finding {
	total, nss := 0, (*Store)(nil)
	var found []Finding
	for i := range h.Peers {
		s := &h.Peers[i]
		valid, more := s.inspect(h.Now)
		total += valid
		found = append(found, more...)
		if s.NSS && nss == nil {
			nss = s
		}
	}
	if total > 0 {
		return append(ok("", "%s of compile servers trusted", plural(total, "certificate")), found...)
	}
	text, cure, dir := "no compile server is trusted", h.trustServer(), ""
	if nss != nil {
		text, dir = "only an NSS database is there, which stap does not read", nss.Dir
		cure = "sudo stap-authorize-server-cert --import=" + quote(nss.Dir)
		if nss.Mine {
			cure = "stap-authorize-cert --import=" + quote(nss.Dir) + " " + quote(nss.Dir)
		}
	}
	if h.compilesHere() {
		return append(ok(dir, "%s (not needed here)", text), found...)
	}
	return append([]Finding{cured(dir, text, cure)}, found...)
}

// identities: the certificates of servers on this host.
func identities(h *Host) []Finding {
	var found []Finding
	for _, id := range h.Owned {
		// Nobody makes a key in another's directory, not even root.
		generate, dir := "stap-gen-cert ", quote(id.Dir)
		if id.User != "" {
			generate = "sudo -u " + quote(id.User) + " " + generate
		}
		if id.Err != nil {
			found = append(found, cured(id.Dir, id.Err.Error(), generate+dir))
			continue
		}
		day := id.Cert.NotAfter.UTC().Format(time.DateOnly)
		switch {
		case h.Now.After(id.Cert.NotAfter):
			found = append(found, cured(id.Dir, fmt.Sprintf("the certificate in %s expired on %s: clients refuse it", id.Dir, day), generate+dir))
		case h.Now.Add(soon).After(id.Cert.NotAfter):
			found = append(found, note(id.Dir, fmt.Sprintf("the certificate in %s expires on %s; a server that runs makes the next, as does", id.Dir, day), generate+"--renew "+dir))
		}
	}
	switch {
	case found != nil:
		return found
	case len(h.Owned) == 0:
		return ok("", "no compile server has its key here")
	}
	last := h.Owned[0].Cert.NotAfter
	for _, id := range h.Owned {
		if id.Cert.NotAfter.Before(last) {
			last = id.Cert.NotAfter
		}
	}
	return ok(h.Owned[0].Dir, "this server's certificate lasts until %s", last.UTC().Format(time.DateOnly))
}

// clock: a certificate whose time has not come is the right one on a host with a
// wrong clock.
func clock(h *Host) []Finding {
	early := func(c *x509.Certificate, where string) []Finding {
		return []Finding{cured(where, fmt.Sprintf("the clock says %s, before a certificate in %s was made", h.Now.UTC().Format(time.DateTime), where), "sudo timedatectl set-ntp true")}
	}
	for _, s := range append([]Store{h.Signers}, h.Peers...) {
		if s.Store == nil {
			continue
		}
		for _, c := range s.Certificates {
			if h.Now.Before(c.NotBefore) {
				return early(c.Certificate, s.Dir)
			}
		}
	}
	for _, id := range h.Owned {
		if id.Cert != nil && h.Now.Before(id.Cert.NotBefore) {
			return early(id.Cert, filepath.Clean(id.Dir))
		}
	}
	return ok("", "the clock says %s UTC", h.Now.UTC().Format(time.DateTime))
}
