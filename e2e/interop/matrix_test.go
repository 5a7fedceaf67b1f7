package interop

import (
	"slices"
	"strings"
	"testing"

	"stapbox/e2e/lab"
)

// A cell is held to what the case says, and to the pair it is measured by.
func TestJudge(t *testing.T) {
	old, new := &lab.Peer{Kernel: &lab.Kernel{Release: "6.1"}}, &lab.Peer{Kernel: &lab.Kernel{Release: "7.2"}}
	module := func(release string) answer {
		return answer{stdout: matrixModule + ".ko\n", module: []byte("..vermagic=" + release + " SMP")}
	}
	fails := answer{exit: 1, stderr: "it does not compile\n"}
	refused := answer{exit: 1, stderr: "semantic error: x\n"}
	unknown := func(text string) answer { return answer{exit: 1, stderr: text} }
	const listing = "Systemtap Compile Server Status for 'online'\n host=vm.local address=10.78.0.1 port=1 sysinfo=\"RELEASE x86_64\" version=5.6 certinfo=\"00:01\"\n"
	for _, tt := range []struct {
		name, client, server, of string
		answer                   answer
		own                      answer // of the pair it is measured by
		want                     string
	}{
		{"a module", sideOurs, side56, "hello", module("7.2"), module("7.2"), ok},
		{"of our server for 4.8", side48, sideOurs, "hello", module("6.1"), module("7.2"), ok},
		{"for another kernel", side48, sideOurs, "hello", module("7.2"), module("7.2"), different},
		{"none", sideOurs, sideOurs, "two-file script", fails, module("7.2"), different},
		{"status 0 without one", sideOurs, sideOurs, "hello", answer{stdout: matrixModule + ".ko\n"}, module("7.2"), different},
		{"as 4.8's own", sideOurs, side48, "hello", fails, fails, asOwn},
		{"other words than 4.8's own", sideOurs, side48, "hello", refused, fails, different},
		{"a module where 4.8 has none", sideOurs, side48, "hello", module("6.1"), fails, different},
		{"as 4.8's own, which is to be a refusal", sideOurs, side48, "privilege refusal", fails, fails, different},
		{"4.8's own has no answer", sideOurs, side48, "hello", fails, answer{exit: -1}, different},
		{"no answer", sideOurs, side48, "hello", answer{exit: -1}, answer{exit: -1}, different},
		{"a refusal", side56, sideOurs, "privilege refusal", refused, refused, ok},
		{"in other words", side56, sideOurs, "privilege refusal", answer{exit: 1, stderr: "semantic error: y\n"}, refused, different},
		{"no refusal", side56, sideOurs, "privilege refusal", module("7.2"), refused, different},
		{"an unknown release", side56, side56, "unknown release", unknown("\n"), answer{}, ok},
		{"our server names it", side56, sideOurs, "unknown release", unknown("release " + noRelease), answer{}, ok},
		{"our server must", side56, sideOurs, "unknown release", unknown("\n"), answer{}, different},
		{"trust", side48, sideOurs, "--trust-servers", answer{}, answer{}, ok},
		{"trust that was not given", side48, sideOurs, "--trust-servers", answer{stderr: "Unable to connect"}, answer{}, different},
		{"a listing", side56, sideOurs, "--list-servers", answer{stderr: listing}, answer{}, ok},
		{"another server's", side56, sideOurs, "--list-servers", answer{stderr: strings.Replace(listing, "00:01", "00:02", 1)}, answer{}, different},
		{"no address beside it", side56, sideOurs, "--list-servers", answer{stderr: listing + " host=vm.local address=::%2 port=1 certinfo=\"00:01\"  certinfo=\"00:01\"\n"}, answer{}, different},
	} {
		m := &matrixRun{trees: map[string]*lab.Peer{sideOurs: new, side48: old, side56: new}, done: map[string]answer{}}
		for _, s := range []*station{{side: sideOurs, tree: new}, {side: sideOurs, tree: old}, {side: side48, tree: old}, {side: side56, tree: new}} {
			s.address, s.certInfo = "10.78.0.1:1", "00:01"
			m.stations = append(m.stations, s)
		}
		list := cases()
		c := list[slices.IndexFunc(list, func(c caseOf) bool { return c.name == tt.of })]
		reference := tt.server
		if reference == sideOurs {
			reference = side56
		}
		m.done[cell(reference, reference, c)] = tt.own
		m.done[cell(tt.client, tt.server, c)] = tt.answer
		if got, why := m.judge(tt.client, tt.server, c); got != tt.want {
			t.Errorf("%s: got %s (%s), want %s", tt.name, got, why, tt.want)
		}
	}
}
