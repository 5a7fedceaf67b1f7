package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stapbox/core/compile"
	"stapbox/core/config"
	"stapbox/core/getopt"
	"stapbox/core/identity"
	"stapbox/core/sandbox"
	"stapbox/core/stapopts"
	"stapbox/core/systemd"
)

// settings are what SIGHUP reads again: all of them count, or none.
type settings struct {
	limits  limits
	clients *clientTrust
	options []string        // of the translator, from DATA/rc
	rlimits []sandbox.Limit // of workers
	id      *identity.Identity
	tapsets string // a digest of what is in them
	stamp   string // by which a change is noticed
	embeds  bool   // there is C in them
}

// rc reads the server user's DATA/rc, where an administrator sets limits for
// the translator. Without limits there, some are set all the same.
func (s *server) rc() ([]string, []sandbox.Limit, error) {
	limits := map[string]uint64{"cpu": 60, "as": 3 << 30, "fsize": 256 << 20}
	path := filepath.Join(s.data, "rc")
	words, err := readWords(path)
	if err != nil {
		return nil, nil, err
	}
	if len(words) > 0 {
		o, err := stapopts.Parse(append(append([]string{}, words...), "-e", ""))
		if err != nil {
			return nil, nil, fmt.Errorf("reading %q: %w", path, err)
		}
		for _, l := range o.Rlimits {
			limits[l.Name] = l.Value
		}
	}
	var list []sandbox.Limit
	for _, name := range []string{"as", "cpu", "fsize", "nproc", "stack"} {
		if v, ok := limits[name]; ok {
			list = append(list, sandbox.Limit{Name: name, Value: v})
		}
	}
	return words, list, nil
}

// readWords reads a file of options; one that is not there has none.
func readWords(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	words, err := config.Words(data)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	return words, nil
}

// readLimits reads DATA/limits: the limits among the options of the command
// line, which count after it.
func (s *server) readLimits() (limits, error) {
	path := filepath.Join(s.data, "limits")
	words, err := readWords(path)
	if err != nil {
		return limits{}, err
	}
	o := &options{limits: defaultLimits()}
	list, rest, err := getopt.Parse(getopt.Spec{Defs: limitDefs()}, words)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("unrecognized argument '%s'", rest[0])
	}
	for i := 0; err == nil && i < len(list); i++ {
		err = o.setNumber(list[i])
	}
	if err != nil {
		return limits{}, fmt.Errorf("reading %q: %w", path, err)
	}
	for _, g := range s.opts.given {
		if err := o.setNumber(g); err != nil {
			return limits{}, err
		}
	}
	return o.limits, nil
}

// digestTapsets is a digest of what is in the directories of -I, "" without any.
func digestTapsets(dirs []string) (digest string, embeds bool, err error) {
	if len(dirs) == 0 {
		return "", false, nil
	}
	h := sha256.New()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() || filepath.Ext(path) != ".stp" && filepath.Ext(path) != ".stpm" {
				return err
			}
			data, err := os.ReadFile(path)
			fmt.Fprintf(h, "%q %d\n%s", path, len(data), data)
			embeds = embeds || bytes.Contains(data, []byte("%{"))
			return err
		})
		if err != nil {
			return "", false, fmt.Errorf("option '-I %s': %w", dir, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), embeds, nil
}

// stampTapsets changes whenever a file of the tapsets does. It reads none of them.
func stampTapsets(dirs []string) string {
	var b strings.Builder
	for _, dir := range dirs {
		filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				fmt.Fprintf(&b, "%q %v\n", path, err)
			} else if st, err := e.Info(); err == nil {
				fmt.Fprintf(&b, "%q %v %d %d\n", path, st.Mode(), st.Size(), st.ModTime().UnixNano())
			}
			return nil
		})
	}
	return b.String()
}

// current is the compile service for a new request. A file of -I that was changed
// counts from now on: answers that are kept were made with the old one.
func (s *server) current() *compile.Service {
	if len(s.opts.tapsets) == 0 {
		return s.compiler()
	}
	stamp := stampTapsets(s.opts.tapsets)
	s.mu.Lock()
	if stamp == s.stamp {
		s.mu.Unlock()
		return s.compiler()
	}
	s.mu.Unlock()
	// No reload comes between what is copied here and what counts afterwards.
	s.settling.Lock()
	defer s.settling.Unlock()
	s.mu.Lock()
	same := stamp == s.stamp
	n := &settings{limits: s.lim, clients: s.clients, options: s.options, rlimits: s.service.Rlimits, stamp: stamp}
	s.mu.Unlock()
	if same {
		return s.compiler()
	}
	var err error
	if n.tapsets, n.embeds, err = digestTapsets(s.opts.tapsets); err != nil {
		s.log.errorf("The tapsets of -I have changed and cannot be read, answers are those of before: %v", err)
		return s.compiler()
	}
	s.log.printf("The tapsets of -I have changed")
	s.apply(n)
	return s.compiler()
}

// read reads all settings.
func (s *server) read() (*settings, error) {
	var n settings
	var err error
	if n.limits, err = s.readLimits(); err != nil {
		return nil, err
	}
	if n.clients, err = s.readClients(); err != nil {
		return nil, err
	}
	if n.options, n.rlimits, err = s.rc(); err != nil {
		return nil, err
	}
	n.stamp = stampTapsets(s.opts.tapsets)
	if n.tapsets, n.embeds, err = digestTapsets(s.opts.tapsets); err != nil {
		return nil, err
	}
	return &n, nil
}

// reload reads all settings again. Connections and requests that are there go
// on, with the settings they began with. One bad setting leaves all as they were.
func (s *server) reload() {
	s.log.printf("Received signal 1, reloading")
	if state, err := systemd.Reloading(); err == nil {
		s.tell(state)
	}
	// Whatever came of it, the service goes on.
	defer s.tell(systemd.Ready)
	s.settling.Lock()
	defer s.settling.Unlock()
	n, err := s.read()
	if err == nil {
		n.id, err = s.changed()
	}
	if err != nil {
		s.figures.reloads.Add(1, "failed")
		s.log.errorf("Reloading failed, all settings stay as they were: %v", err)
		return
	}
	s.apply(n)
	s.figures.reloads.Add(1, "ok")
	s.log.printf("Reloaded: %v", &n.limits)
	s.renew()
}

// changed is the identity on disk, if it is another one than that in use.
func (s *server) changed() (*identity.Identity, error) {
	id, err := identity.Load(s.opts.ssl, s.now())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id != nil && s.id.Certificate.Equal(id.Certificate) {
		return nil, nil
	}
	return id, nil
}

// apply makes settings count.
func (s *server) apply(n *settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lim, s.clients, s.options, s.stamp, s.embedded = n.limits, n.clients, n.options, n.stamp, n.embeds
	slots := max(s.opts.threads, 1)
	s.queue.set(slots, n.limits.share(slots), n.limits.queueBound(slots))
	options := append(slices.Clone(n.options), s.opts.translator...)
	for _, dir := range s.opts.tapsets {
		options = append(options, "-I"+dir)
	}
	if s.service == nil || !slices.Equal(options, s.service.Options) || !slices.Equal(n.rlimits, s.service.Rlimits) || n.tapsets != s.tapsets {
		next := s.newService(options, n.rlimits, n.tapsets)
		s.tapsets = n.tapsets
		if s.service != nil {
			next.Succeed(s.service)
			next.Cache = s.service.Cache
			s.former = append(s.former, s.service)
		}
		s.service = next
	}
	if n.id != nil {
		s.use(n.id)
	}
}

// reopen opens the log again: it was moved away.
func (s *server) reopen() {
	if err := s.log.reopen(); err != nil {
		s.log.errorf("Reopening the log failed, the old one is used: %v", err)
		return
	}
	s.log.printf("Received signal 10, log file opened again")
}
