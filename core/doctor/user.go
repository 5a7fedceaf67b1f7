package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"stapbox/core/hostpaths"
	"stapbox/core/privilege"
	"stapbox/core/trust"
)

func levels() []string { return []string{privilege.GroupUsr, privilege.GroupSys, privilege.GroupDev} }

func (h *Host) groupIDs() privilege.Groups {
	return privilege.ReadGroups(strings.NewReader(h.Group), strings.NewReader(h.Recorded))
}

func (h *Host) caller() privilege.User {
	return privilege.User{UID: h.UID, GIDs: h.GIDs, Groups: h.groupIDs()}
}

// loadsAll reports whether the user loads modules without a signature.
func (h *Host) loadsAll() bool {
	u := h.caller()
	return h.UID == 0 || u.In(privilege.GroupDev) && u.In(privilege.GroupUsr)
}

// name is the user of an id, or the number where passwd(5) has no name for it.
func (h *Host) name(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	for line := range strings.Lines(h.Passwd) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == number && f[0] != "" {
			return f[0]
		}
	}
	return "uid " + number
}

// unlisted is how a command names the user who asks if /etc/passwd does not have
// him (LDAP): id(1) knows. It is "" if it does.
func (h *Host) unlisted() string {
	if !strings.HasPrefix(h.name(uint32(h.UID)), "uid ") {
		return ""
	}
	return fmt.Sprintf(`"$(id -un %d)"`, h.UID)
}

// join is the command that makes the user a member of stapusr. usermod(8) refuses
// users of LDAP, gpasswd(1) does not.
func (h *Host) join() string {
	if name := h.unlisted(); name != "" {
		return "sudo gpasswd -a " + name + " " + privilege.GroupUsr
	}
	return "sudo usermod -a -G " + privilege.GroupUsr + " " + quote(h.name(uint32(h.UID)))
}

// install is the command that puts this executable in its place.
func (h *Host) install() string { return "sudo " + quote(h.Self) + " install" }

// groups: the three names exist, and ids from elsewhere do not contradict them
// (decision L10).
func groups(h *Host) []Finding {
	var found []Finding
	if h.RecordedErr != nil {
		// Who could write the file may have put his own group there: it is not made
		// good, but made again.
		f, cure := hostpaths.GroupIDs(), ""
		var unsafe *trust.UnsafeError
		if errors.As(h.RecordedErr, &unsafe) && unsafe.Kind == "directory" {
			cure = (&Store{Err: h.RecordedErr}).broken().Cure + " && "
		}
		found = append(found, cured(f, fmt.Sprintf("the recorded ids of groups do not count: %v", h.RecordedErr),
			cure+"sudo rm -f "+f+" && "+h.install()))
	}
	ids := h.groupIDs()
	var texts, missing []string
	for _, name := range levels() {
		if id, have := ids[name]; have {
			texts = append(texts, fmt.Sprintf("%s=%d", name, id))
			continue
		}
		missing = append(missing, name)
	}
	if missing != nil {
		list := strings.Join(missing, " ")
		found = append(found, cured(list, "groups that do not exist (or whose recorded id has another name): "+list, h.install()))
	}
	for line := range strings.Lines(h.Recorded) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if id, have := ids[name]; have && slices.Contains(levels(), name) && value != strconv.Itoa(int(id)) {
			found = append(found, note(name, fmt.Sprintf("group %s is %d in /etc/group, the recorded id %s is not used", name, id, value), h.install()))
		}
	}
	if found == nil {
		return ok("", "%s", strings.Join(texts, ", "))
	}
	return found
}

// membership: the process holds a level. Being listed in a file counts from the
// next login.
func membership(h *Host) []Finding {
	u, name := h.caller(), h.name(uint32(h.UID))
	have := slices.DeleteFunc(levels(), func(g string) bool { return !u.In(g) })
	switch {
	case h.UID == 0:
		return ok(name, "root may load anything")
	case u.In(privilege.GroupDev) && !u.In(privilege.GroupUsr):
		return []Finding{cured(name, `group "stapdev" counts only together with group "stapusr"`, h.join())}
	case len(have) > 0:
		return ok(name, "%s is a member of %s", name, strings.Join(have, ", "))
	}
	for _, g := range levels() {
		if privilege.Member(uint32(h.UID), g, strings.NewReader(h.Passwd), strings.NewReader(h.Group)) {
			return []Finding{cured(name, fmt.Sprintf("%s became a member of %s after this session began: log in again, or", name, g), "newgrp "+g)}
		}
	}
	return []Finding{cured(name, fmt.Sprintf("%s is in none of the groups stapusr, stapsys, stapdev; log in again after", name), h.join())}
}

// staprun: the setuid copy and the relay it hands over to (decision L9).
func staprun(h *Host) []Finding {
	p, path := h.Staprun, h.Staprun.Path
	gid, haveGroup := h.groupIDs()[privilege.GroupUsr]
	var found []Finding
	add := func(text, cure string) { found = append(found, cured(path, text, cure)) }
	switch {
	case p.Missing:
		add(path+" is missing: stapbox is not installed", h.install())
	case !p.Unread && !p.Ours:
		return []Finding{cured(path, path+" is another SystemTap's", h.remove(path))}
	case p.Link && h.UID != 0:
		add(path+" is a plain link (install --no-setuid): only root loads modules", h.install())
	}
	if p.Link && h.UID == 0 && found == nil {
		found = ok(path, "%s is a plain link: only root loads modules", path)
	}
	if !p.Missing && !p.Link {
		switch {
		case p.UID != 0:
			add(fmt.Sprintf("%s belongs to %s, not to root", path, h.name(uint32(p.UID))), h.install())
		case p.Mode != 0o4750:
			add(fmt.Sprintf("%s has mode %04o, not 4750", path, p.Mode), h.install())
		case haveGroup && p.GID != int(gid):
			add(fmt.Sprintf("%s belongs to group %d, not to stapusr (%d)", path, p.GID, gid), h.install())
		case p.Other:
			add(path+" is another version than "+h.Self, h.install())
		}
		if p.NoSuid != "" && h.UID != 0 {
			add(fmt.Sprintf("%s is on %s, which is mounted nosuid", path, p.NoSuid), "sudo mount -o remount,suid "+quote(p.NoSuid))
		}
		if p.Names > 1 {
			found = append(found, note(path, fmt.Sprintf("%s has %d names; installing a new version takes the power of the old file", path, p.Names), "sudo find / -xdev -samefile "+path))
		}
	}
	if s := h.Stapio; !p.Missing && (s.Missing || !s.Ours) {
		found = append(found, cured(s.Path, s.Path+" is missing, or is not of stapbox: staprun hands over to it", h.install()))
	}
	for _, s := range h.Stale {
		found = append(found, note(s, s+" is a setuid copy that an interrupted installation left", "sudo rm "+quote(s)))
	}
	if found == nil {
		return ok(path, "%s, mode 4750, of this version", path)
	}
	return found
}

// remove is what takes another SystemTap away. Packages put programs into /usr/bin
// only; all of SystemTap's need the one named.
func (h *Host) remove(path string) string {
	if h.Tool != "" && strings.HasPrefix(path, "/usr/bin/") {
		return "sudo " + h.Tool + " remove systemtap-runtime"
	}
	return "sudo rm " + quote(path)
}

// others: programs of another SystemTap that are found before ours.
func others(h *Host) []Finding {
	var found []Finding
	for _, p := range h.Strange {
		found = append(found, cured(p.Path, p.Path+" is another SystemTap's and found under a name of ours", h.remove(p.Path)))
	}
	if found == nil {
		return ok("", "no other SystemTap is in the way")
	}
	return found
}

// process: what the process that asks, and its children, may gain.
func process(h *Host) []Finding {
	var found []Finding
	if h.NoNewPrivs && h.UID != 0 {
		found = append(found, cured("no_new_privs", "this process has no_new_privs: the setuid bit of staprun has no effect; outside of it:", "sudo -i -u "+cmp.Or(h.unlisted(), quote(h.name(uint32(h.UID))))))
	}
	if h.NoModules {
		found = append(found, cured("CAP_SYS_MODULE", "CAP_SYS_MODULE is out of reach here (a container?); start it with", "podman run --cap-add=SYS_MODULE ..."))
	}
	if h.Namespace {
		found = append(found, cured("user namespace", "this is a user namespace: no module can be loaded from it; leave it:", "exit"))
	}
	if h.Seccomp && !h.NoModules {
		found = append(found, note("seccomp", "a seccomp filter is on, it may refuse finit_module (containers: --security-opt seccomp=unconfined)", ""))
	}
	if found == nil {
		return ok("", "this session may gain the rights of staprun")
	}
	return found
}
