package server

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"stapbox/core/mok"
)

// machineKeys are the machine owner keys of a server. They are read again when
// their directory has changed.
type machineKeys struct {
	dir string
	log func(format string, args ...any)

	mu      sync.Mutex
	changed time.Time
	keys    []*mok.Key
}

// openMachineKeys reads the keys, and makes one if that is asked for and there is
// none.
func (s *server) openMachineKeys() (*machineKeys, error) {
	m := &machineKeys{dir: s.opts.mokDir, log: s.log.printf}
	switch {
	case m.dir == "":
		m.dir = filepath.Join(s.opts.ssl, "moks")
	case !filepath.IsAbs(m.dir):
		m.dir = filepath.Join(s.inv.Dir, m.dir)
	}
	if len(m.list()) == 0 && s.opts.makeMOK {
		s.log.printf("Generating a machine owner key in %s", m.dir)
		if _, err := mok.Generate(m.dir, s.now()); err != nil {
			return nil, fmt.Errorf("--make-mok: %w", err)
		}
		m.list()
	}
	return m, nil
}

// list is the keys as of now.
func (m *machineKeys) list() []*mok.Key {
	m.mu.Lock()
	defer m.mu.Unlock()
	st, err := os.Stat(m.dir)
	if err != nil {
		m.keys, m.changed = nil, time.Time{}
		return nil
	}
	if st.ModTime().Equal(m.changed) {
		return m.keys
	}
	m.keys = mok.Keys(m.dir, func(err error) { m.log("%v", err) })
	m.changed = st.ModTime()
	for _, k := range m.keys {
		m.log("Found MOK with fingerprint '%s'", k.Fingerprint())
	}
	return m.keys
}

// fingerprints are what the announcement says.
func (m *machineKeys) fingerprints() []string {
	var out []string
	for _, k := range m.list() {
		out = append(out, k.Fingerprint())
	}
	return out
}
