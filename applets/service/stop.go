package service

import (
	"fmt"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"stapbox/core/service"
)

func (m *manager) stopAll() int {
	if len(m.chosen.Choices) == 0 {
		all := m.allRunning()
		if len(all) == 0 {
			m.notRunning("Stopping stap-server: ")
			return exitOK
		}
		rc := exitOK
		for _, r := range all {
			rc = max(rc, m.stop(r))
		}
		return rc
	}
	rc := exitOK
	for _, c := range m.chosen.Choices {
		if c.Unknown != "" {
			rc = max(rc, m.unknown(c.Unknown))
			continue
		}
		running := m.meant(c)
		if len(running) == 0 {
			m.notRunning("Stopping stap-server " + c.Fill(m.defaults).String())
		}
		for _, r := range running {
			rc = max(rc, m.stop(r))
		}
	}
	return rc
}

func (m *manager) notRunning(text string) {
	m.out.begin(text)
	m.out.success()
}

// stop ends a server: one signal, so that it can finish what it has begun, and
// no other.
func (m *manager) stop(r *service.Running) int {
	opts := r.Spec.Fill(m.defaults).String()
	action := "stap-server stop " + opts
	m.out.begin("Stopping stap-server " + opts)
	m.log("Stopping stap-server " + opts)
	h, err := service.Hold(m.dir.Proc, r.PID, r.Facts.StartTime)
	if err != nil {
		m.complain(err.Error())
		return m.failed(action)
	}
	if h != nil {
		defer h.Close()
		if err := m.owns(r); err != nil {
			m.complain(err.Error())
			return m.failed(action)
		}
		if err := h.Signal(unix.SIGTERM); err != nil && err != unix.ESRCH {
			m.complain(fmt.Sprintf("Stopping process %d: %v", r.PID, err))
			return m.failed(action)
		}
		if !h.Wait(m.opts.stop) {
			m.complain(fmt.Sprintf("%d not shutting down", r.PID))
			return m.failed(action)
		}
	}
	if err := m.dir.Remove(r.PID); err != nil {
		m.complain(err.Error())
		return m.failed(action)
	}
	m.forget(r.PID)
	return m.passed(action)
}

// owns refuses to have root signal a process on the word of a status file that
// is not about it: another user's file is about his own servers, and one of
// root's, which who owns the directory can give another number, about those of
// the user in it.
func (m *manager) owns(r *service.Running) error {
	if m.euid != 0 {
		return nil
	}
	uid, err := service.Owner(m.dir.Proc, r.PID)
	switch {
	case err != nil:
		return err
	case r.Owner != 0 && uid != r.Owner:
		return fmt.Errorf("The status file of process %d belongs to user id %d, the process does not", r.PID, r.Owner)
	case r.Owner == 0 && r.User != "":
		u, err := user.Lookup(r.User)
		if err != nil {
			u, err = user.LookupId(r.User)
		}
		if err == nil && u.Uid != strconv.Itoa(uid) {
			return fmt.Errorf("The status file of process %d says that user %s runs it, but user id %d does", r.PID, r.User, uid)
		}
	}
	return nil
}

// forget takes a server off the list.
func (m *manager) forget(pid int) {
	kept := make([]*service.Running, 0, len(m.running))
	for _, r := range m.running {
		if r.PID != pid {
			kept = append(kept, r)
		}
	}
	m.running = kept
}
