package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
)

// soon is when the end of a certificate is worth a remark.
const soon = 30 * 24 * time.Hour

// trustArgs makes the words after "trust" canonical.
func trustArgs(words []string) ([]string, error) {
	if len(words) == 0 {
		return nil, errors.New("trust needs one of list and revoke")
	}
	store := getopt.Def{Long: "store", Arg: getopt.RequiredArg}
	spec, operands := getopt.Spec{Defs: []getopt.Def{store}}, 1
	switch words[0] {
	case "list":
		spec.Defs, operands = append(spec.Defs, getopt.Def{Long: "json"}), 0
	case "revoke":
	default:
		return nil, fmt.Errorf("trust has no command %q, only list and revoke", words[0])
	}
	opts, rest, err := getopt.Parse(spec, words[1:])
	switch {
	case err != nil:
		return nil, err
	case len(rest) > operands:
		return nil, fmt.Errorf("unexpected word %q", rest[operands])
	case len(rest) < operands:
		return nil, errors.New("trust revoke needs a fingerprint, or its first 8 digits")
	}
	return append([]string{words[0]}, getopt.Canonical(opts, rest)...), nil
}

func (b *box) trustCommand() *cli.Command {
	store := &cli.StringFlag{Name: "store", Usage: "only the store in `DIR`"}
	return &cli.Command{
		Name: "trust", Usage: "look at the certificates that are believed, and take trust away", HideHelpCommand: true,
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "list peers and signers",
				Flags: []cli.Flag{store, &cli.BoolFlag{Name: "json", Usage: "for programs"}},
				Action: func(c *cli.Context) error {
					return b.trustList(b.trustStores(c.String("store")), c.Bool("json"), time.Now())
				},
			},
			{
				Name: "revoke", Usage: "believe a certificate no more", ArgsUsage: "FINGERPRINT",
				Flags:  []cli.Flag{store},
				Action: func(c *cli.Context) error { return b.trustRevoke(b.trustStores(c.String("store")), c.Args().First()) },
			},
		},
	}
}

// trustStore is a place of certificates.
type trustStore struct {
	purpose string // peer or signer; "store" for one that was named
	dir     string
	rules   trust.Rules
	named   bool // the user asked for it: it must be there
}

// dataDir is the user's data directory, "" if there is none.
func (b *box) dataDir() string {
	data := hostpaths.UserDir(b.inv.Getenv("SYSTEMTAP_DIR"), b.inv.Getenv("HOME"))
	if data != "" && !filepath.IsAbs(data) {
		data = filepath.Join(b.inv.Dir, data)
	}
	return data
}

// trustStores are the stores that count for this user: his own and the host's.
func (b *box) trustStores(dir string) []trustStore {
	uid := os.Getuid()
	if dir != "" {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(b.inv.Dir, dir)
		}
		return []trustStore{{"store", dir, trust.UserRules(uid, dir), true}}
	}
	var list []trustStore
	if data := b.dataDir(); data != "" {
		list = append(list, trustStore{"peer", hostpaths.UserPeerStore(data), trust.UserRules(uid, data), false})
	}
	return append(list,
		trustStore{"peer", hostpaths.HostPeerStore(), trust.HostRules(), false},
		trustStore{"signer", hostpaths.SignerStore(), trust.HostRules(), false})
}

// trusted is a row of the list, for programs.
type trusted struct {
	Purpose     string    `json:"purpose"`
	Store       string    `json:"store"`
	Fingerprint string    `json:"sha256"`
	State       string    `json:"state"` // valid, expiring, expired, early, revoked
	NotBefore   time.Time `json:"not_before,omitzero"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Host        string    `json:"host,omitempty"`
	Added       string    `json:"added,omitempty"`
	By          string    `json:"by,omitempty"`
	Scope       string    `json:"scope,omitempty"`
	Subject     string    `json:"subject,omitempty"`
}

func stateOf(c trust.Certificate, now time.Time) string {
	switch {
	case c.Revoked:
		return "revoked"
	case now.After(c.NotAfter):
		return "expired"
	case now.Before(c.NotBefore):
		return "early"
	case now.Add(soon).After(c.NotAfter):
		return "expiring"
	}
	return "valid"
}

// readTrust reads stores. Those that are not there are left out; what is wrong
// with others is said.
func (b *box) readTrust(stores []trustStore) (places []trustStore, found []*trust.Store) {
	for _, p := range stores {
		s, err := trust.Read(p.dir, p.rules)
		if errors.Is(err, fs.ErrNotExist) && !p.named {
			continue
		}
		if err != nil {
			b.inv.Errorf("ERROR: %v", err)
			b.status = exitError
			continue
		}
		for _, w := range s.Warnings {
			b.inv.Errorf("WARNING: %s", w)
		}
		places, found = append(places, p), append(found, s)
	}
	return places, found
}

func (b *box) trustList(stores []trustStore, asJSON bool, now time.Time) error {
	places, found := b.readTrust(stores)
	list := []trusted{}
	for i, s := range found {
		have := map[string]bool{}
		for _, c := range s.Certificates {
			have[c.Fingerprint] = true
			list = append(list, trusted{
				places[i].purpose, s.Dir, c.Fingerprint, stateOf(c, now), c.NotBefore.UTC(), c.NotAfter.UTC(),
				c.Host, c.Added, c.By, c.Scope, c.Subject.String(),
			})
		}
		for digest := range s.Revoked {
			// Also those nobody has: they would not be believed if they came.
			if f := fmt.Sprintf("%x", digest); !have[f] {
				list = append(list, trusted{Purpose: places[i].purpose, Store: s.Dir, Fingerprint: f, State: "revoked"})
			}
		}
	}
	if asJSON {
		enc := json.NewEncoder(b.inv.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	for _, r := range list {
		until := "-"
		if !r.NotAfter.IsZero() {
			until = r.NotAfter.Format(time.DateOnly)
		}
		fmt.Fprintf(b.inv.Stdout, "%-6s sha256:%s %-8s %-10s %s %s\n", r.Purpose, r.Fingerprint, r.State, until, printable(r.Host), r.Store)
	}
	return nil
}

// trustRevoke puts a certificate on the list of revoked ones of each store that
// has it; in a store that was named also one that is not there.
func (b *box) trustRevoke(stores []trustStore, fingerprint string) error {
	prefix := strings.ToLower(strings.TrimPrefix(fingerprint, "sha256:"))
	if len(prefix) < 8 || len(prefix) > 64 || strings.Trim(prefix, "0123456789abcdef") != "" {
		return fmt.Errorf("fingerprint %q has not 8 to 64 digits 0-9a-f", fingerprint)
	}
	places, found := b.readTrust(stores)
	full := ""
	for _, s := range found {
		for _, c := range s.Certificates {
			if !strings.HasPrefix(c.Fingerprint, prefix) || c.Fingerprint == full {
				continue
			}
			if full != "" {
				return fmt.Errorf("fingerprints that begin with %q: sha256:%s and sha256:%s", prefix, full, c.Fingerprint)
			}
			full = c.Fingerprint
		}
	}
	if full == "" && len(prefix) == 64 {
		full = prefix
	}
	if full == "" {
		return fmt.Errorf("no certificate has a fingerprint that begins with %q", prefix)
	}
	done := false
	for i, p := range places {
		has := false
		for _, c := range found[i].Certificates {
			has = has || c.Fingerprint == full
		}
		if !has && !p.named {
			continue
		}
		changed, err := edit.Revoke(p.dir, p.rules, full)
		switch {
		case err != nil:
			b.inv.Errorf("ERROR: %v", err)
			b.status = exitError
		case changed:
			fmt.Fprintf(b.inv.Stdout, "revoked sha256:%s in %s\n", full, p.dir)
		default:
			fmt.Fprintf(b.inv.Stdout, "sha256:%s was revoked before in %s\n", full, p.dir)
		}
		done = true
	}
	if !done && b.status == 0 {
		return fmt.Errorf("no store has the certificate sha256:%s; name one with --store to refuse it before it comes", full)
	}
	return nil
}
