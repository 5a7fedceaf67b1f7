package doctor

import (
	"fmt"
	"strings"
	"time"
)

// build: a compile server, and a user who compiles here, need headers and a
// compiler.
func build(h *Host) []Finding {
	var found []Finding
	if h.Headers != nil {
		f := cured(h.Release, fmt.Sprintf("headers of kernel %s are not installed", h.Release), h.add("linux-headers-"+h.Release, "kernel-devel-"+h.Release))
		if h.OtherHeaders {
			f.State = Note
		}
		found = append(found, f)
	}
	if len(h.Lacking) > 0 {
		found = append(found, cured(h.Lacking[0], "not installed: "+strings.Join(h.Lacking, ", "), h.add("gcc make binutils", "gcc make binutils")))
	}
	switch {
	case found == nil && h.Server != "":
		return ok(h.Server, "headers and compiler are there (%s)", h.Server)
	case found == nil:
		return ok("", "headers and compiler are there")
	case h.Server == "":
		return ok("", "no headers or compiler; this host has no compile server")
	}
	for i := range found {
		found[i].Text += " (" + h.Server + ")"
	}
	return found
}

// add is what installs packages, under Debian's names or Fedora's.
func (h *Host) add(debian, fedora string) string {
	if h.Tool == "dnf" {
		return "sudo dnf install " + fedora
	}
	return "sudo apt-get install " + debian
}

// network: multicast DNS finds servers and lets them be found.
func network(h *Host) []Finding {
	var found []Finding
	if h.Links == 0 {
		found = append(found, note("interfaces", "no interface for multicast DNS: name the server, --use-server=SERVER:PORT", ""))
	}
	if h.Port != nil {
		f := note("5353/udp", fmt.Sprintf("the port of multicast DNS cannot be shared: %v; who has it:", h.Port), "sudo ss -ulpn sport = :5353")
		if h.Server != "" {
			f.State = Cure
		}
		found = append(found, f)
	}
	if found == nil {
		return ok("", "multicast DNS works on %s", plural(h.Links, "interface"))
	}
	return found
}

// server: there is one to ask. Only a browse knows whether it answers.
func server(h *Host) []Finding {
	switch {
	case h.AskedErr != nil:
		return []Finding{cured("multicast DNS", fmt.Sprintf("asking for servers: %v", h.AskedErr), "ip address")}
	case h.Online && h.Trusted != "":
		return ok(h.Trusted, "%s answers and is trusted", h.Trusted)
	case h.Online && h.compilesHere():
		return ok("", "%s answer, none is trusted (scripts are compiled here)", plural(h.Found, "server"))
	case h.Online && h.Found > 0:
		return []Finding{cured("", fmt.Sprintf("%s found, none is trusted", plural(h.Found, "server")), trustAny)}
	case h.Online:
		return []Finding{cured("", "no compile server answers; on the host of one:", "stap-serverd")}
	case len(h.Servers) > 0:
		s := h.Servers[0]
		return ok(s.Address, "%s at %s answered last on %s", hostName(s.Host), s.Address, s.When.UTC().Format(time.DateOnly))
	}
	return ok("", "none is remembered; stapbox doctor --online looks for one")
}
