package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"stapbox/core/signing"
	"stapbox/core/trust"
)

// policy is what the administrator set in load.conf.
type policy struct {
	signing.Policy
	// MaxModules is how many modules a user other than root may have in the
	// kernel at once, attached or left behind.
	MaxModules int
}

const (
	defaultMaxModules = 32
	maxPolicySize     = 64 << 10
)

func defaultPolicy() policy { return policy{MaxModules: defaultMaxModules} }

// loadPolicy reads the file that says what else than the safe default is
// accepted. A missing file is the safe default; anything not understood, and a
// file that others than root may have written, is an error.
func loadPolicy(path string, rules trust.Rules) (policy, error) {
	b, err := trust.ReadFile(path, maxPolicySize, rules)
	if errors.Is(err, fs.ErrNotExist) {
		return defaultPolicy(), nil
	}
	if err != nil {
		return defaultPolicy(), err
	}
	p, err := parsePolicy(string(b))
	if err != nil {
		return defaultPolicy(), fmt.Errorf("%s:%w", path, err)
	}
	return p, nil
}

// parsePolicy reads lines "allow-sha1=yes", "refuse-expired=yes",
// "max-modules=N", and "#" comments.
func parsePolicy(text string) (policy, error) {
	p := defaultPolicy()
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, _ := strings.Cut(line, "=")
		var err error
		switch name {
		case "allow-sha1":
			p.AllowSHA1, err = yesNo(value)
		case "refuse-expired":
			p.RefuseExpired, err = yesNo(value)
		case "max-modules":
			var n uint64
			if n, err = strconv.ParseUint(value, 10, 16); err == nil {
				p.MaxModules = int(n)
			}
		default:
			err = errors.New("unknown name")
		}
		if err != nil {
			return p, fmt.Errorf("%d: %q is not a known setting", i+1, line)
		}
	}
	return p, nil
}

func yesNo(value string) (bool, error) {
	switch value {
	case "yes":
		return true, nil
	case "no":
		return false, nil
	}
	return false, errors.New("neither yes nor no")
}
