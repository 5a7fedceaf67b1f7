package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"stapbox/core/script/parser"
	"stapbox/core/script/tapset"
	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// dear is a statement that a handler repeats until a limit stops it.
type dear struct {
	name, stmt string
}

// What the statements below use. Strings are as long as strings can be.
var dearGlobals = `global a = "` + strings.Repeat("a", 511) + `", b = "` + strings.Repeat("b", 511) + `", half = "` + strings.Repeat("a", 255) + `b", odd = "` + strings.Repeat(`\001`, 511) + `"
global digits = "` + strings.Repeat("0", 500) + `", n, s, last
global full[1500], big[20000], gone[20000], wide[200000], keys[40], words[1500], st[300], lin, lg
function copies:string(p:string, q:string, r:string, t:string, u:string, v:string) { return p . q }
function deep(x) { if (x > 0) return deep(x - 1) return 0 }
function fill() { for (i = 0; i < 1400; i++) { big[last] = (last * 7919) % 20011 gone[last] = last last++ } }
` + strings.Repeat("probe begin(-100) { fill() }\n", 14) + `probe begin(-100) { for (i = 0; i < 1200; i++) { full[a, i] = i words[sprintf("%s%d", half, (i * 7919) % 1201)] = a } }
probe begin(-100) { for (i = 0; i < 2000; i++) lin <<< 2 * i for (i = 0; i < 60; i++) lg <<< (1 << i) for (i = 0; i < 250; i++) st[i] <<< i }
`

const allKeys = "a, a, a, a, a, a, a, a, a, a, a, a, a"

// dearFunctions has the dearest use of each function of the library, by name and
// number of arguments: a function that is not here fails the test.
var dearFunctions = map[string]string{
	"pid/0": "n += pid()", "tid/0": "n += tid()", "ppid/0": "n += ppid()", "uid/0": "n += uid()", "euid/0": "n += euid()",
	"gid/0": "n += gid()", "egid/0": "n += egid()", "execname/0": "s = execname()", "cpu/0": "n += cpu()", "target/0": "n += target()",
	"module_name/0": "s = module_name()", "pp/0": "s = pp()", "pn/0": "s = pn()", "_stdin_line/0": "s = _stdin_line()",
	"exit/0": "exit()", "error/1": "try { error(a) } catch (e) { s = e }", "warn/1": "warn(a)", "log/1": "log(a)", "system/1": "system(a)",
	"ns_pid/0": "n += ns_pid()", "ns_tid/0": "n += ns_tid()", "ns_ppid/0": "n += ns_ppid()", "ns_pgrp/0": "n += ns_pgrp()", "ns_sid/0": "n += ns_sid()",
	"ns_uid/0": "n += ns_uid()", "ns_euid/0": "n += ns_euid()", "ns_gid/0": "n += ns_gid()", "ns_egid/0": "n += ns_egid()",
	"remote_id/0": "n += remote_id()", "remote_uri/0": "s = remote_uri()",
	"strlen/1": "n += strlen(a)", "substr/3": "s = substr(a, 0, 511)", "stringat/2": "n += stringat(a, 510)",
	"isinstr/2": "n += isinstr(a, half)", "str_replace/3": `s = str_replace(a, "a", "")`, "strtol/2": "n += strtol(digits, 10)",
	"text_str/1": "s = text_str(odd)", "text_strn/3": "s = text_strn(odd, 500, 1)",
	"tokenize/2": "s = tokenize(a, b)", "tokenize/1": `s = tokenize(b)`,
	"gettimeofday_ns/0": "n += gettimeofday_ns()", "gettimeofday_us/0": "n += gettimeofday_us()", "gettimeofday_ms/0": "n += gettimeofday_ms()",
	"gettimeofday_s/0": "n += gettimeofday_s()", "get_cycles/0": "n += get_cycles()", "ctime/1": "s = ctime(2147483647)", "ctime/0": "s = ctime()",
	"tz_gmtoff/0": "n += tz_gmtoff()", "tz_name/0": "s = tz_name()", "tz_ctime/1": "s = tz_ctime(2147483647)", "randint/1": "n += randint(1048576)",
}

// unprivileged are the operators and statements. Each holds as many of its kind as
// is of use: one statement may have thousands.
var dearForms = []dear{
	{name: "counting", stmt: "n++"},
	{name: "integers", stmt: "n = " + times("(n*3)", "-", 500)},
	{name: "divisions", stmt: "n = " + times("(n/3)", "-", 100)},
	{name: "calls in one statement", stmt: "n += " + times("strlen(a)", "+", 200)},
	{name: "searches in one statement", stmt: "n += " + times("isinstr(a, half)", "+", 200)},
	{name: "tokens in one statement", stmt: "n += " + times("strlen(tokenize(a, b))", "+", 200)},
	{name: "clock in one statement", stmt: "n = " + times("gettimeofday_ns()", "^", 200)},
	{name: "chance in one statement", stmt: "n = " + times("randint(1048576)", "^", 200)},
	{name: "concatenation", stmt: "s = " + times("a", ".", 100)},
	{name: "appending", stmt: "{ s = half s .= half s .= half }"},
	{name: "comparison", stmt: "n += " + times("(a == a)", "+", 100)},
	{name: "order of strings", stmt: "n += " + times("(a <= a)", "+", 100)},
	{name: "choice", stmt: "s = " + times("n ? s . a : ", "", 20) + "b"},
	{name: "arguments", stmt: "s = copies(a, a, a, a, a, a)"},
	{name: "recursion", stmt: "n += deep(9)"},
	{name: "try", stmt: `try { n = 1 / (n - n) } catch (e) { s = e }`},
	{name: "print", stmt: "print(" + times("a", ", ", 30) + ")"},
	{name: "print of numbers", stmt: "print(" + times("-9223372036854775807", ", ", 60) + ")"},
	{name: "printf with padding", stmt: `printf("%8000d%-8000s%08000x", n, a, n)`},
	{name: "printf with widths", stmt: `printf("%*d%*s", 1000000, n, 1000000, a)`},
	{name: "printf of binary", stmt: `printf("%8b%8b%8b%8b", n, n, n, n)`},
	{name: "printf of characters", stmt: `printf("` + times("%#c", "", 100) + `"` + times(", n", "", 100) + ")"},
	{name: "sprintf", stmt: `s = sprintf("` + times("%d", "", 100) + `"` + times(", n", "", 100) + ")"},
	{name: "sprintf with padding", stmt: `s = sprintf("` + times("%8000d", "", 20) + `"` + times(", n", "", 20) + ")"},
	{name: "println", stmt: "println(a)"},
	{name: "many string keys", stmt: "keys[" + allKeys + "] = n"},
	{name: "many string keys, read", stmt: "n += " + times("keys["+allKeys+"]", "+", 20)},
	{name: "many string keys, in", stmt: "n += ([" + allKeys + "] in keys)"},
	{name: "many string keys, deleted", stmt: "{ keys[" + allKeys + "] = 1 delete keys[" + allKeys + "] }"},
	{name: "string value", stmt: `words["x"] = a`},
	{name: "slice, in", stmt: "n += ([*, -1] in full)"},
	{name: "slice, in, with strings", stmt: "n += ([half, *] in full)"},
	{name: "slice, deleted", stmt: "delete full[*, -1]"},
	{name: "slice, foreach", stmt: "foreach ([p, q] in full[*, -1]) n++"},
	{name: "foreach", stmt: "foreach (k in big) n += k"},
	{name: "foreach of strings", stmt: "foreach (v = k in words) s = k"},
	{name: "sort by number", stmt: "{ foreach (v = k in big- limit 1) n++ foreach (v = k+ in big limit 1) n++ }"},
	{name: "sort by string", stmt: "{ foreach (k+ in words limit 1) n++ foreach (k- in words limit 1) n++ }"},
	{name: "sort by string and number", stmt: "{ foreach ([p-, q] in full limit 1) n++ foreach ([p, q+] in full limit 1) n++ foreach ([p+, q] in full limit 1) n++ }"},
	{name: "sort by statistics", stmt: "{ foreach (k in st @avg+ limit 1) n++ foreach (k in st @sum- limit 1) n++ }"},
	{name: "statistics", stmt: "{ lin <<< n lg <<< n st[n % 250] <<< n }"},
	{name: "extraction", stmt: "n += " + times("@avg(st[3])", "+", 50)},
	{name: "bucket", stmt: "n += @hist_linear(lin, 0, 4000, 1)[7]"},
	{name: "print of a linear histogram", stmt: "print(@hist_linear(lin, 0, 4000, 1))"},
	{name: "print of a logarithmic histogram", stmt: "print(@hist_log(lg))"},
	{name: "foreach of a histogram", stmt: "foreach (v = i in @hist_linear(lin, 0, 4000, 1)) n += v"},
	{name: "delete of statistics", stmt: "{ delete lin lin <<< 1 }"},
	{name: "delete of an array", stmt: "delete gone"},
	{name: "delete of a large empty array", stmt: "{ wide[1] = 1 delete wide }"},
}

func times(s, between string, n int) string {
	return strings.TrimSuffix(strings.Repeat(s+between, n), between)
}

// dearRows sorts the functions by who may call them, and adds the forms.
func dearRows(t *testing.T) (usr, dev []dear) {
	t.Helper()
	files, err := tapset.Parse(parser.Options{Release: "6.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var last []dear
	for _, f := range files {
		for _, fn := range f.Functions {
			key := fmt.Sprintf("%s/%d", fn.Name, len(fn.Params))
			stmt, ok := dearFunctions[key]
			if !ok {
				t.Errorf("function %s has no row in dearFunctions", key)
				continue
			}
			seen[key] = true
			row := dear{key, stmt}
			switch {
			case fn.Name == "exit":
				last = append(last, row) // ends the session
			case strings.HasPrefix(fn.Name, "ctime") || fn.Name == "tz_ctime" || fn.C != nil && !fn.C.Has("unprivileged"):
				dev = append(dev, row)
			default:
				usr = append(usr, row)
			}
		}
	}
	for key := range dearFunctions {
		if !seen[key] {
			t.Errorf("dearFunctions has a row for %s, which is no function", key)
		}
	}
	usr = append(append(usr, dearForms...), last...)
	dev = append(dev, dear{name: "memory", stmt: `printf("%.2000M", -2130706432)`}) // the kernel's text
	return usr, dev
}

// dearScript has a handler for each row, and says in the end when that began and
// what stopped it. The texts of rows are a script's own: a catch without a
// statement is all that may follow when a limit is used up.
func dearScript(globals string, rows []dear, point func(int) string) string {
	var script strings.Builder
	script.WriteString(globals)
	for i, row := range rows {
		fmt.Fprintf(&script, "global e%d = \"none\", at%d\nprobe %s { at%d = gettimeofday_ns() try { while (1) %s } catch (e%d) { } }\n", i, i, point(i), i, row.stmt, i)
		fmt.Fprintf(&script, "probe end { printf(\"\\nrow %d %%d %%s\\n\", at%d, e%d) }\n", i, i, i)
	}
	fmt.Fprintf(&script, "probe timer.ms(%d) { exit() }\n", 3100+25*len(rows))
	return script.String()
}

// countedScene is a guest of one CPU whose clock counts instructions.
func countedScene(t *testing.T, version string) *scene {
	t.Helper()
	k, err := stage.lab.FetchKernel(version)
	if err != nil {
		t.Fatal(err)
	}
	g, err := stage.lab.Boot(lab.GuestConfig{Kernel: k, Agent: stage.programs.Agent, Box: stage.programs.Box, Counted: true, Append: "nokaslr", Memory: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Kill)
	return &scene{kernel: k, guest: g}
}

// absence is a time when the CPU did not run what was ready to run, in ns.
type absence struct{ end, length int64 }

// watched runs a request while the guest's agent watches the CPU.
func (s *scene) watched(t *testing.T, r request.Request) (request.Answer, []absence) {
	t.Helper()
	got := s.do(t, lab.Shell(lab.Root, "echo -1 > /proc/sys/kernel/sched_rt_runtime_us; setsid /agent late /tmp/late >/dev/null 2>/tmp/late.err & echo $!; sleep 0.2"))
	pid := strings.TrimSpace(string(got.Stdout))
	a := s.do(t, r)
	got = s.do(t, lab.Shell(lab.Root, "kill "+pid+"; cat /tmp/late.err >&2; cat /tmp/late"))
	if len(got.Stderr) > 0 {
		t.Fatalf("watching: %s", got.Stderr)
	}
	var out []absence
	lines := bufio.NewScanner(bytes.NewReader(got.Stdout))
	for lines.Scan() {
		var w absence
		if _, err := fmt.Sscan(lines.Text(), &w.end, &w.length); err != nil {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		out = append(out, w)
	}
	return a, out
}

func longest(list []absence) time.Duration {
	var most int64
	for _, w := range list {
		most = max(most, w.length)
	}
	return time.Duration(most)
}

// A member of stapusr held a CPU with interrupts off for minutes: MAXACTION
// counted statements, whatever they did, and ten thousand of them in timers. Now
// whatever a handler does, no CPU is away longer than twice the time limit.
func TestSecurity02NoScriptHoldsACPU(t *testing.T) {
	bootsGuest(t)
	usr, dev := dearRows(t)
	for _, version := range lab.Versions() {
		t.Run(version, func(t *testing.T) {
			s := countedScene(t, version)
			id, _ := signers(t)
			s.trustSigner(t, id)
			put := func(level, script string, args ...string) string {
				m := module(t, s.kernel, level, script, args...)
				s.put(t, "/tmp/dear.ko", lab.Root, 0o644, m)
				s.put(t, "/tmp/dear.ko.sgn", lab.Root, 0o644, sign(t, m, id))
				return "/tmp/dear.ko"
			}
			for i, who := range []struct {
				user    lab.User
				level   string
				globals string
				rows    []dear
			}{
				{lab.Usr, "stapusr", dearGlobals, usr},
				// A line of standard input there is only with a file.
				{lab.Dev, "", "global n, s probe procfs(\"x\").write { n++ }\n", dev},
			} {
				for _, in := range []struct {
					context string
					limit   time.Duration
					point   func(i int) string
				}{
					{"timer", 10 * time.Millisecond, func(i int) string { return fmt.Sprintf("timer.ms(%d)", 3000+25*i) }},
					{"begin", time.Second, func(i int) string { return fmt.Sprintf("begin(%d)", i) }},
				} {
					if in.context == "begin" && !s.turn(i) {
						continue // a second for each row
					}
					t.Run(who.user.Name+" "+in.context, func(t *testing.T) {
						// The output is hundreds of megabytes: they have to fit where they wait, and who
						// keeps them holds the CPU too.
						r := lab.Shell(who.user, "staprun -b 500 "+put(who.level, dearScript(who.globals, who.rows, in.point))+" | tail -c 20000")
						r.Timeout = 180
						a, absences := s.watched(t, r)
						checkRows(t, who.rows, in.limit, a, absences)
					})
				}
			}
			t.Run("timers that are due together", func(t *testing.T) {
				script := "global a = \"" + strings.Repeat("a", 511) + "\"\nprobe begin { println(\"ready\") }\n" +
					strings.Repeat("probe timer.ms(500) { for (i = 0; i < 200; i++) n += isinstr(a, a) + isinstr(a, \"b\") }\n", 60) + "probe timer.ms(1900) { println(\"end\") exit() }"
				r := lab.Command(lab.Usr, "staprun", put("stapusr", script))
				a, absences := s.watched(t, r)
				want(t, a, 0, "ready\nend\n")
				if l := longest(absences); l > 20*time.Millisecond {
					t.Errorf("60 timers kept the CPU away for %v", l)
				}
			})
			// 200 calls in one statement, 150 statements: 36 s in a begin probe, 45 s
			// with interrupts off.
			for _, tt := range []struct {
				point string
				limit time.Duration
			}{{"begin", time.Second}, {"timer.s(1)", 10 * time.Millisecond}} {
				t.Run("200 calls in one statement, "+tt.point, func(t *testing.T) {
					script := "global a = \"" + strings.Repeat("a", 511) + "\", d = \"" + strings.Repeat("b", 511) + "\", n probe " + tt.point +
						" { for (i = 0; i < 150; i++) n += " + times("strlen(tokenize(a, d))", "+", 200) + " exit() } probe timer.s(5) { exit() }"
					r := lab.Command(lab.Usr, "staprun", put("stapusr", script))
					a, absences := s.watched(t, r)
					want(t, a, 1, "", "ERROR: MAX", " exceeded", "in probe "+tt.point)
					t.Logf("%v: %s", longest(absences), a.Stderr)
					if l := longest(absences); l > 2*tt.limit {
						t.Errorf("the CPU was away for %v", l)
					}
				})
			}
			// Work that was not charged: escapes of two bytes each, names of 60,000
			// bytes in the traces of errors that are caught.
			const utf, caught = "for (i = 0; i < 480; i++) n = (text_strn(u, 0, 1) < \"\") + (text_strn(u, 0, 1) < \"\") + (text_strn(u, 0, 1) < \"\")", "for (i = 0; i < 200; i++) try { n += %s(i) } catch { }"
			name := strings.Repeat("f", 60000)
			for what, script := range map[string]string{
				"escapes":                        "global u = \"" + strings.Repeat(`\303\251`, 255) + "\", n\nprobe timer.ms(500) { " + utf + " }\n",
				"escapes, 60 timers due at once": "global u = \"" + strings.Repeat(`\303\251`, 255) + "\", n\n" + strings.Repeat("probe timer.ms(500) { "+utf+" }\n", 60),
				"long names":                     "global n\nfunction " + name + "(x) { error(\"e\") return x }\nprobe timer.ms(500) { " + fmt.Sprintf(caught, name) + " }\n",
				"long names, 20 timers due at once": "global n\nfunction " + name + "(x) { error(\"e\") return x }\nfunction g() { " + fmt.Sprintf(caught, name) + " }\n" +
					strings.Repeat("probe timer.ms(500) { g() }\n", 20),
			} {
				t.Run(what, func(t *testing.T) {
					r := lab.Command(lab.Usr, "staprun", put("stapusr", script+"probe timer.ms(1900) { exit() }"))
					a, absences := s.watched(t, r)
					l := longest(absences)
					t.Logf("%v: status %d, %s", l, a.Status, a.Stderr)
					if l > 20*time.Millisecond {
						t.Errorf("the CPU was away for %v", l)
					}
				})
			}
			t.Run("another event", func(t *testing.T) {
				put("", "global a = \""+strings.Repeat("a", 511)+"\", half = \""+strings.Repeat("a", 255)+"b\", n probe procfs(\"w\").write { while (1) n += "+times("isinstr(a, half)", "+", 50)+" } probe timer.s(9) { exit() }")
				r := lab.Shell(lab.Root, "staprun /tmp/dear.ko & S=$!; until [ -e "+controlDir+"/w ]; do kill -0 $S || break; sleep 0.1; done; echo x > "+controlDir+"/w; wait $S")
				a, absences := s.watched(t, r)
				want(t, a, 1, "", "ERROR: MAXTIME_INTERRUPTIBLE exceeded (100 ms) near")
				if l := longest(absences); l > 200*time.Millisecond {
					t.Errorf("the CPU was away for %v", l)
				}
			})
			a := s.do(t, lab.Shell(lab.Root, "dmesg | grep -iE 'stall|lockup|BUG:|WARNING|Oops|Call Trace|took too long|interrupt took'"))
			if len(a.Stdout) > 0 {
				t.Errorf("the kernel complains:\n%s", a.Stdout)
			}
		})
	}
}

// checkRows wants that each row ran, that a limit stopped it, and that it was not
// away too long; it prints how long.
func checkRows(t *testing.T, rows []dear, limit time.Duration, a request.Answer, absences []absence) {
	t.Helper()
	type start struct {
		row int
		at  int64
	}
	var starts []start
	how := make([]string, len(rows))
	for _, line := range strings.Split(string(a.Stdout), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "row" {
			continue
		}
		row, err := strconv.Atoi(f[1])
		at, err2 := strconv.ParseInt(f[2], 10, 64)
		if err == nil && err2 == nil && row < len(rows) && at > 0 {
			starts = append(starts, start{row, at})
			how[row] = strings.Join(f[3:], " ")
		}
	}
	sort.Slice(starts, func(i, j int) bool { return starts[i].at < starts[j].at })
	took := make([]time.Duration, len(rows))
	ran := make([]bool, len(rows))
	for i, st := range starts {
		ran[st.row] = true
		until := int64(1 << 62)
		if i+1 < len(starts) {
			until = starts[i+1].at
		}
		for _, w := range absences {
			if w.end > st.at && w.end <= until+int64(time.Millisecond) && w.end-w.length < until {
				took[st.row] = max(took[st.row], time.Duration(w.length))
			}
		}
	}
	var table strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&table, "%-36s %12v  %s\n", row.name, took[i], how[i])
		if !ran[i] {
			t.Errorf("%s: its handler did not run", row.name)
			continue
		}
		if !strings.HasPrefix(how[i], "MAX") {
			t.Errorf("%s: no limit stopped it: %s", row.name, how[i])
		}
		if took[i] > 2*limit {
			t.Errorf("%s: the CPU was away for %v, more than twice %v", row.name, took[i], limit)
		}
	}
	t.Logf("status %d, stderr %.2000q\n%s", a.Status, a.Stderr, table.String())
}
