package doctor

import (
	"fmt"
	"strings"

	"stapbox/core/privilege"
)

// kernel: it can load modules, and has what the runtime of ours needs.
func kernel(h *Host) []Finding {
	var found []Finding
	var lacks []string
	if h.ConfigFrom != "" {
		for _, name := range []string{"MODULES", "MODULE_UNLOAD", "PROC_FS", "RELAY"} {
			if !h.Config[name] {
				lacks = append(lacks, "CONFIG_"+name)
			}
		}
	}
	switch {
	case lacks != nil:
		list := strings.Join(lacks, " ")
		found = append(found, cured(list, fmt.Sprintf("kernel %s is without %s (%s): start another", h.Release, list, h.ConfigFrom), "sudo systemctl reboot"))
	case !h.ModulesFile:
		found = append(found, cured(h.Release, "there is no /proc/modules: /proc is not mounted, or the kernel loads no modules", "sudo mount -t proc proc /proc"))
	}
	if h.Disabled {
		found = append(found, cured("modules_disabled", "kernel.modules_disabled is set, which lasts until the next boot (see /etc/sysctl.d)", "sudo systemctl reboot"))
	}
	if found == nil {
		return ok(h.Release, "%s loads modules", h.Release)
	}
	return found
}

// lockdown: a kernel that loads signed modules only wants a key of a server
// among its own.
func lockdown(h *Host) []Finding {
	why := ""
	switch {
	case h.Lockdown == "integrity", h.Lockdown == "confidentiality":
		why = "lockdown=" + h.Lockdown
	case h.Enforced:
		why = "module.sig_enforce"
	}
	boot := "Secure Boot is off"
	if h.SecureBoot {
		boot = "Secure Boot is on"
	}
	ours := h.enrolledOurs()
	switch {
	case why == "":
		return ok("", "no signature for the kernel is needed; %s", boot)
	case len(ours) > 0:
		return ok(ours[0], "%s, signed modules only; the key of a server is enrolled", why)
	}
	return []Finding{cured(why, fmt.Sprintf("%s (%s): signed modules only, and no key of a compile server is enrolled; compare the fingerprint of the one that stap saves, then", why, boot), "sudo mokutil --import signing_key.x509")}
}

// fips: which keys still count.
func fips(h *Host) []Finding {
	if !h.FIPS {
		return ok("", "the kernel is not in FIPS mode")
	}
	return []Finding{note("fips_enabled", "FIPS mode: the kernel verifies its modules with RSA of 2048 bits or more and SHA-2 only", "")}
}

// proc: modules talk through /proc/systemtap, and -x and -c look at processes.
func proc(h *Host) []Finding {
	var found []Finding
	for o := range strings.SplitSeq(h.ProcOptions, ",") {
		switch name, value, _ := strings.Cut(o, "="); {
		case name == "subset":
			found = append(found, cured("/proc", "/proc is mounted with "+o+": /proc/systemtap cannot be seen", "sudo mount -t proc proc /proc"))
		case name == "hidepid" && value != "0" && value != "off" && h.UID != 0:
			found = append(found, note("/proc", "/proc is mounted with "+o+": -x finds only processes of your own", "sudo mount -o remount,hidepid=0 /proc"))
		}
	}
	if found != nil {
		return found
	}
	if !h.Debugfs {
		return ok("/proc", "/proc is there; no debugfs (for modules before 4.5)")
	}
	return ok("/proc", "/proc and debugfs are there")
}

// blessed: the directory of approved modules (decision L3).
func blessed(h *Host) []Finding {
	d := h.Blessed
	if d.Missing {
		return []Finding{note(d.Path, d.Path+" is missing: no approved modules", h.install())}
	}
	dev, haveDev := h.groupIDs()[privilege.GroupDev]
	switch {
	case !d.IsDir:
		return []Finding{cured(d.Path, d.Path+" is no directory", "sudo rm "+quote(d.Path))}
	case d.UID != 0:
		return []Finding{cured(d.Path, d.Path+" does not belong to root: its modules are refused", "sudo chown root "+quote(d.Path))}
	case d.Mode&0o002 != 0:
		return []Finding{cured(d.Path, d.Path+" is writable by everybody: its modules are refused", "sudo chmod o-w "+quote(d.Path))}
	case d.Mode&0o020 != 0 && d.GID != 0 && !(haveDev && d.GID == int(dev)):
		return []Finding{cured(d.Path, d.Path+" is writable by a group other than stapdev: its modules are refused", "sudo chmod g-w "+quote(d.Path))}
	}
	return ok(d.Path, "%s", d.Path)
}

// leftovers are modules to which nobody is attached: left by a stapio that was
// killed, or detached on purpose (staprun -L). They go on running their probes
// and hold memory of the kernel.
func leftovers(h *Host) []Finding {
	if h.ModulesErr != nil && !h.ModulesFile {
		return ok("", "no module is loaded")
	}
	if h.ModulesErr != nil {
		return []Finding{cured("/proc/modules", h.ModulesErr.Error(), "sudo mount -t proc proc /proc")}
	}
	var found []Finding
	for _, m := range h.Modules {
		if m.Uses > 0 {
			continue
		}
		sudo := ""
		if int(m.UID) != h.UID && h.UID != 0 {
			sudo = "sudo "
		}
		found = append(found, cured(m.Name, fmt.Sprintf("module %s, loaded by %s, runs with nobody attached", m.Name, h.name(m.UID)), sudo+"staprun -d "+quote(m.Name)))
	}
	if found == nil {
		return ok("", "no module is loaded with nobody attached to it")
	}
	return found
}
