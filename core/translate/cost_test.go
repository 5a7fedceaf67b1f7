package translate

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Statements count as upstream counts them, whatever they hold; other work has a
// limit of its own, and time one that depends on neither.
func TestWorkIsCharged(t *testing.T) {
	tc := newToolchain(t)
	long := func(s string) string { return `"` + strings.Repeat(s, 500) + `"` }
	many := func(s, between string, n int) string {
		return strings.TrimSuffix(strings.Repeat(s+between, n), between)
	}
	// Each fills strings a and b, runs one statement 9,000 times, fewer than
	// MAXACTION allows in a begin probe.
	around := func(setup, stmt string) string {
		return fmt.Sprintf(`global a, b, c, m, s probe begin { a = %s; b = %s; c = "%s"; %s for (i = 0; i < 9000; i++) %s }`,
			long("a"), long("b"), strings.Repeat("a", 250)+"b", setup, stmt)
	}
	keys := strings.Join([]string{"a", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a"}, ", ")
	for _, tt := range []struct{ name, setup, stmt string }{
		{"isinstr", "", "i += isinstr(a, c)"},
		{"str_replace", "", `b = str_replace(a, "a", "b")`},
		{"str_replace by nothing", "", `b = str_replace(a, "a", "")`},
		{"text_str", "", "b = text_str(a)"},
		{"text_strn", "", "b = text_strn(a, 500, 1)"},
		{"tokenize", "", "s = " + many("strlen(tokenize(a, b))", "+", 2)},
		{"calls in one statement", "", "i += " + many("strlen(a)", "+", 40) + " - 20000"},
		{"operators on strings", "", "b = " + many("a", ".", 60)},
		{"comparisons", "b = a;", "if (" + many("a == b", "&&", 20) + ") s++"},
		{"conversions", "", "b = sprintf(\"" + many("%d", "", 100) + "\"" + strings.Repeat(", i", 100) + ")"},
		{"padding", "", `printf("%8000d", i)`},
		{"indexes", "", "m[" + keys + "] = i"},
		{"copies", "", "b = f(a, a, a, a, a, a, a, a, a, a)"},
		{"integers", "", "s = " + many("(i*3)", "-", 2000)},
	} {
		script := around(tt.setup, tt.stmt)
		if tt.name == "copies" {
			script = "function f:string(a:string, b:string, c:string, d:string, e:string, f:string, g:string, h:string, i:string, j:string) { return a }\n" + script
		}
		if tt.name == "indexes" {
			script = strings.Replace(script, "m,", "m[3],", 1)
		}
		out, _ := exec.Command(tc.build(t, unit(t, script, Options{}))).CombinedOutput()
		got := string(out[max(0, len(out)-600):])
		if !strings.Contains(got, "ERROR: MAXACTION exceeded near") {
			t.Errorf("%s: got ...%q, want MAXACTION exceeded", tt.name, got)
		}
	}
}

func TestTimeLimit(t *testing.T) {
	tc := newToolchain(t)
	for _, tt := range []struct{ name, script, ms, want string }{
		{"little does not read the clock", `global n probe begin { while (n < 300) n++ println(n) }`, "100000", "300\nclock read 0 times\n"},
		{"a clock that stands", `global n probe begin { while (n < 3000) n++ println(n) }`, "0", "3000\nclock read 6 times\n"},
		{"time is up", `global n probe begin { while (1) n++ } probe error { println(n) }`, "300",
			"ERROR: MAXTIME_SESSION exceeded (1000 ms) near identifier 'n' at t.stp:1:34 in probe begin\n2500\nclock read 5 times\n"},
		{"catch brings no time back", `global n, m probe begin { while (1) try { while (1) n++ } catch { m++ } } probe error { println(n, " ", m) }`, "300", " 1\nclock read"},
		{"statements come first", `global n probe begin { while (n < 6000) n++ } probe error { println(n) }`, "1", "ERROR: MAXACTION exceeded near"},
	} {
		out, _ := exec.Command(tc.build(t, unit(t, tt.script, Options{})), tt.ms).CombinedOutput()
		if !strings.Contains(string(out), tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, out, tt.want)
		}
	}
	out, err := exec.Command(tc.build(t, unit(t, `global n probe begin { while (n < 1000000) n++ println(n) }`, Options{SuppressTimeLimits: true})), "100000").CombinedOutput()
	if err != nil || string(out) != "1000000\nclock read 0 times\n" {
		t.Errorf("--suppress-time-limits: got %q, error %v", out, err)
	}
}

// Code that runs without a branch is charged where it stands.
func TestChargesInTheUnit(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		want         int
	}{
		{"a small handler", `global n, a probe timer.s(1) { n++ a[pid()]++ printf("%d %s\n", n, execname()) } probe end { println(a[1]) }`, 0},
		{"1000 calls", "global n probe begin { n = " + strings.TrimSuffix(strings.Repeat("pid()+", 1000), "+") + " }", 1000 / 64},
		{"a few calls in a loop", `global n probe begin { while (n < 9) n = pid() + tid() + cpu() }`, 1},
		{"a few calls in a function", `global n function f() { return pid() + tid() + cpu() } probe begin { n = f() }`, 1},
		{"a loop's third part", "global n probe begin { for (i = 0; i < 9; i = " + strings.TrimSuffix(strings.Repeat("pid()+", 10), "+") + ") n++ }", 1},
	} {
		if got := strings.Count(unit(t, tt.script, Options{}), "stp_charge_at("); got < tt.want || tt.want == 0 && got != 0 {
			t.Errorf("%s: %d charges, want %d", tt.name, got, tt.want)
		}
	}
}

// A condition is charged before what it decides about, which may not run.
func TestChargesBeforeConditions(t *testing.T) {
	calls := strings.TrimSuffix(strings.Repeat("pid()+", 20), "+")
	for name, script := range map[string]string{
		"if":    "global n probe begin { if (" + calls + " < 0) n++ else n-- }",
		"while": "global n probe begin { while (" + calls + " < 0) n++ }",
		"for":   "global n probe begin { for (; " + calls + " < 0;) n++ }",
		"probe": "global n probe timer.s(1) if (" + strings.TrimSuffix(strings.Repeat("n+", 200), "+") + " < 0) { n++ }",
	} {
		if text := unit(t, script, Options{}); !regexp.MustCompile(`if \(stp_charge_at\(c, \d+, .*\n\s*goto \w+;\n\s*if \(!?\(`).MatchString(text) {
			t.Errorf("%s: no charge before it", name)
		}
	}
}

// What runs before a part of an expression that does not run is charged all the same,
// wherever the 64 units are reached. An operator is a sixteenth of a call.
func TestChargesOutsideOfBranches(t *testing.T) {
	calls := func(n int) string { return strings.TrimSuffix(strings.Repeat("pid()+", n), "+") }
	charge := regexp.MustCompile(`^if \(stp_charge_at\(c, (\d+),`)
	for n := 50; n < 60; n++ {
		for _, branch := range []string{"(z&&(" + calls(10) + "))", "(!z||(" + calls(10) + "))", "(z?" + calls(10) + ":0)", "(z?" + calls(100) + ":0)"} {
			text := unit(t, "global n, z probe begin { n = "+strings.Repeat(calls(n)+"+"+branch+"+", 20)+"0 } probe end { println(z) }", Options{})
			charged, depth := 0, 0
			for line := range strings.Lines(text) {
				line = strings.TrimSpace(line)
				if m := charge.FindStringSubmatch(line); m != nil && depth == 0 {
					units, err := strconv.Atoi(m[1])
					if err != nil {
						t.Fatal(err)
					}
					charged += units
				}
				if strings.HasPrefix(line, "if (") && strings.HasSuffix(line, "{") {
					depth++
				} else if line == "}" && depth > 0 {
					depth--
				}
			}
			// What is left of a branch is charged outside too: less than a charge.
			if least, most := 20*n, 20*(n+n/8+64); charged < least || charged > most {
				t.Errorf("%d calls, then %.30s: %d units are charged outside of branches, want %d to %d", n, branch, charged, least, most)
			}
		}
	}
}
