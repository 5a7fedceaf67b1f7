// Package initconf is the configuration of the init manager (services 3.1): the
// meaning of the variables that core/config has read.
//
//	SCRIPT_PATH CONFIG_PATH CACHE_PATH TEMP_PATH STAT_PATH LOG_FILE   absolute paths
//	PASSALL RECURSIVE AUTOCOMPILE ALLOW_CACHEONLY SRVSTAT SERVER_FALLBACK   yes or no
//	DEFAULT_START            names of scripts, separated by blanks
//	NAME_OPT                 options of stap for script NAME
//	NAME_REQ                 names of scripts that NAME requires
package initconf

import (
	"fmt"
	"path/filepath"
	"strings"

	"stapbox/core/config"
	"stapbox/core/hostpaths"
)

// Settings are all settings but those of single scripts.
type Settings struct {
	ScriptPath, ConfigPath, CachePath, TempPath, StatPath, LogFile string

	PassAll        bool // a command fails when one script fails
	Recursive      bool // as if -R was given
	AutoCompile    bool // start compiles what has no valid cache
	AllowCacheOnly bool // scripts that exist only compiled count
	SrvStat        bool // compiled scripts say in /proc that they are ours
	ServerFallback bool // what cannot be compiled here is tried on a compile server

	DefaultStart []string
	// HasDefaultStart tells a DEFAULT_START of blanks, which starts nothing, from
	// an empty one, which starts everything.
	HasDefaultStart bool

	vars map[string]string
}

// New reads the variables. Warnings are about values that have no meaning, for
// which the default stands.
func New(vars map[string]string) (s Settings, warnings []string, err error) {
	s.vars = vars
	for _, p := range []struct {
		to            *string
		name, initial string
	}{
		{&s.ScriptPath, "SCRIPT_PATH", filepath.Join(hostpaths.Sysconfdir, "systemtap/script.d")},
		{&s.ConfigPath, "CONFIG_PATH", filepath.Join(hostpaths.Sysconfdir, "systemtap/conf.d")},
		{&s.CachePath, "CACHE_PATH", "/var/cache/systemtap"},
		{&s.TempPath, "TEMP_PATH", "/tmp"},
		{&s.StatPath, "STAT_PATH", "/var/run/systemtap"},
		{&s.LogFile, "LOG_FILE", "/var/log/systemtap.log"},
	} {
		*p.to = vars[p.name]
		if *p.to == "" {
			*p.to = p.initial
		}
		if !filepath.IsAbs(*p.to) {
			return s, nil, fmt.Errorf("%s: %q is not an absolute path", p.name, *p.to)
		}
		*p.to = filepath.Clean(*p.to)
	}
	for _, b := range []struct {
		to      *bool
		name    string
		initial bool
	}{
		{&s.PassAll, "PASSALL", true},
		{&s.Recursive, "RECURSIVE", false},
		{&s.AutoCompile, "AUTOCOMPILE", true},
		{&s.AllowCacheOnly, "ALLOW_CACHEONLY", false},
		{&s.SrvStat, "SRVSTAT", true},
		{&s.ServerFallback, "SERVER_FALLBACK", true},
	} {
		value, set := vars[b.name]
		v, ok := boolean(value)
		if !ok {
			v = b.initial
			if set {
				warnings = append(warnings, fmt.Sprintf("%s: %q is neither yes nor no, %s is used", b.name, value, yesNo(v)))
			}
		}
		*b.to = v
	}
	s.DefaultStart, s.HasDefaultStart = strings.Fields(vars["DEFAULT_START"]), vars["DEFAULT_START"] != ""
	return s, warnings, nil
}

func boolean(v string) (value, ok bool) {
	switch strings.ToLower(v) {
	case "y", "yes", "1", "true", "on":
		return true, true
	case "n", "no", "0", "false", "off":
		return false, true
	}
	return false, false
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Options are the words of NAME_OPT; ok is false if it is not set.
func (s Settings) Options(name string) (words []string, ok bool, err error) {
	v, ok := s.vars[name+"_OPT"]
	words, err = config.Split(v)
	if err != nil {
		err = fmt.Errorf("%s_OPT: %w", name, err)
	}
	return words, ok, err
}

// Requires are the names in NAME_REQ.
func (s Settings) Requires(name string) []string { return strings.Fields(s.vars[name+"_REQ"]) }

// Kind says whether a file of CONFIG_PATH is read (contradiction C-14).
type Kind int

// The kinds of files.
const (
	Ignored   Kind = iota
	Loaded         // *.conf
	IfOptions      // a plain name: only with nothing but *_OPT and *_REQ in it
)

// KindOf judges a file by its name.
func KindOf(name string) Kind {
	plain, conf := strings.CutSuffix(name, ".conf")
	switch {
	case conf && plain != "" && plain[0] != '.':
		return Loaded
	case name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == "":
		return IfOptions
	}
	return Ignored
}

// OnlyOptions says why a file has more than *_OPT and *_REQ in it.
func OnlyOptions(data []byte) error {
	vars := map[string]string{}
	none := func(string) (string, bool) { return "", false }
	if err := config.Evaluate(data, vars, none); err != nil {
		return err
	}
	for name := range vars {
		if !strings.HasSuffix(name, "_OPT") && !strings.HasSuffix(name, "_REQ") {
			return fmt.Errorf("%s is neither NAME_OPT nor NAME_REQ", name)
		}
	}
	return nil
}
