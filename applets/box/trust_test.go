package box

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/trust"
	"stapbox/core/trust/edit"
)

// believed puts new certificates into a store: one that is good for a year, one
// that ends soon, one whose time is over.
func believed(t *testing.T, dir string, rules trust.Rules) (prints []string) {
	t.Helper()
	for _, ago := range []int{0, 345, 400} {
		made := time.Now().AddDate(0, 0, -ago)
		id, err := identity.New(identity.Options{NodeName: "server", KeyType: identity.ECDSA, Now: made})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := edit.Add(dir, rules, id.Certificate, edit.Note{Host: "server", When: made, By: "me", Scope: "peer"}); err != nil {
			t.Fatal(err)
		}
		prints = append(prints, identity.Fingerprint(id.Certificate))
	}
	return prints
}

func TestTrust(t *testing.T) {
	home := t.TempDir()
	dir := filepath.Join(home, ".systemtap/ssl/client")
	prints := believed(t, dir, trust.UserRules(os.Getuid(), filepath.Join(home, ".systemtap")))
	row := func(i int, state string) {
		t.Helper()
		out, errOut, status := runBox(home, "trust", "list", "--store", dir)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); f[1] == "sha256:"+prints[i] {
				if f[2] != state || f[4] != "server" || f[5] != dir {
					t.Errorf("line %q, want %s", line, state)
				}
				return
			}
		}
		t.Errorf("not in the list: %d, %s, %s", status, out, errOut)
	}
	row(0, "valid")
	row(1, "expiring")
	row(2, "expired")
	// The user's own store is looked at unasked.
	out, errOut, status := runBox(home, "trust", "list", "--json")
	var list []trusted
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) < 3 || list[0].Purpose != "peer" || list[0].Store != dir || list[0].NotAfter.IsZero() {
		t.Errorf("got %v, %d, %s, %s", err, status, out, errOut)
	}
	out, _, status = runBox(home, "trust", "revoke", prints[0][:8])
	if want := "revoked sha256:" + prints[0] + " in " + dir + "\n"; status != 0 || out != want {
		t.Errorf("got %d, %q; want %q", status, out, want)
	}
	row(0, "revoked")
	if out, _, status = runBox(home, "trust", "revoke", "sha256:"+prints[0]); status != 0 || !strings.Contains(out, "was revoked before") {
		t.Errorf("got %d, %q", status, out)
	}
	// What nobody has can be refused in a store that is named.
	strange := strings.Repeat("ab", 32)
	if _, errOut, status = runBox(home, "trust", "revoke", strange); status != 1 || !strings.Contains(errOut, "no store has the certificate sha256:"+strange+"; name one with --store") {
		t.Errorf("got %d, %q", status, errOut)
	}
	if out, _, status = runBox(home, "trust", "revoke", "--store", dir, strange); status != 0 || !strings.Contains(out, "revoked sha256:"+strange) {
		t.Errorf("got %d, %q", status, out)
	}
	if out, _, _ = runBox(home, "trust", "list"); !strings.Contains(out, "sha256:"+strange+" revoked") {
		t.Errorf("got %q", out)
	}
	for want, args := range map[string][]string{
		"trust needs one of list and revoke":                           {"trust"},
		`trust has no command "add"`:                                   {"trust", "add"},
		"trust revoke needs a fingerprint":                             {"trust", "revoke"},
		`unexpected word "x"`:                                          {"trust", "list", "x"},
		`fingerprint "1234567" has not 8 to 64 digits`:                 {"trust", "revoke", "1234567"},
		`fingerprint "../../etc" has not 8 to 64 digits`:               {"trust", "revoke", "../../etc"},
		`no certificate has a fingerprint that begins with "00000000"`: {"trust", "revoke", "00000000"},
		"opening trust store":                                          {"trust", "list", "--store", "/proc/nonexistent/store"},
	} {
		if _, errOut, status := runBox(home, args...); status == 0 || !strings.Contains(errOut, want) {
			t.Errorf("%q: got %d, %q", args, status, errOut)
		}
	}
	// A store that others may write is not read.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, errOut, status := runBox(home, "trust", "list"); status != 1 || !strings.Contains(errOut, "must not be writable") {
		t.Errorf("got %d, %q", status, errOut)
	}
}
