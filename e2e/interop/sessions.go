package interop

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"stapbox/e2e/lab"
)

// session is a use of staprun and stapio beyond running a script to its end.
// Both sides' modules of its script run under both sides' pairs; all four must
// show what upstream's module shows under upstream's pair.
type session struct {
	script *Script
	// sh runs in an empty directory, with the module's file in $KO, its name in
	// $NAME, and $STAPRUN.
	sh   string
	mask *regexp.Regexp // what differs from run to run, or is known to differ: why says which
	why  string
}

// sessionHead has what the shell scripts use.
const sessionHead = `await() { i=0; until eval "$1" >/dev/null 2>&1; do i=$((i+1)); [ $i -gt 200 ] && { echo "no $1"; exit 99; }; sleep 0.05; done; }
gone() { await "! grep -q $NAME /proc/modules"; }
rm -rf /tmp/session; mkdir /tmp/session; cd /tmp/session
`

func newSession(name, text, sh string, options ...string) *session {
	return &session{script: &Script{Name: "session_" + name, Text: []byte(text + "\n"), Options: options}, sh: sh}
}

// sessions are those of loader-relay 1 and 7 that users meet.
func sessions() []*session {
	list := []*session{
		newSession("begin_end", `probe begin { println("begin"); exit() } probe end { println("end") }`,
			`$STAPRUN $KO; echo $?`),
		newSession("timers", `global n; probe begin { println("begin") } probe timer.ms(30) { printf("tick %d\n", n++); if (n == 5) exit() } probe end { println("end") }`,
			`$STAPRUN $KO; echo $?`),
		newSession("arrays", `global a, b; probe begin { for (i = 0; i < 20; i++) { a[i * 7 % 20] = i; b["k" . sprint(i), i % 3] = sprint(i * i) } foreach (k in a+ limit 5) printf("%d %d\n", k, a[k]); foreach ([s, k] in b- limit 5) printf("%s %d %s\n", s, k, b[s, k]); exit() }`,
			`$STAPRUN $KO; echo $?`),
		newSession("target", `probe begin { printf("target is %s\n", target() > 1 ? "a process" : "none") } probe end { println("end") }`,
			`$STAPRUN -c 'sleep 0.3; echo command' $KO; echo $?
$STAPRUN -c "sleep 0.3; echo 'a  b' | cat; exit 0" $KO; echo $?
X='p  q' $STAPRUN -c 'echo $X "$X"' $KO | sort; echo $?
$STAPRUN -x 1 $KO & sleep 0.5; kill -INT $(pidof stapio); wait $!; echo $?`),
		newSession("system", `probe begin { system("echo from the script; echo to stderr >&2") } probe timer.ms(700) { exit() } probe end { println("end") }`,
			`$STAPRUN $KO; echo $?`),
		newSession("error", `probe begin { println("begin"); error("boo") } probe end { println("end") } probe error { println("error") }`,
			`$STAPRUN $KO; echo $?; gone`),
		newSession("warn", `global n; probe timer.ms(20) { warn("again"); warn(sprintf("number %d", n)); if (++n == 3) exit() }`,
			`$STAPRUN $KO; echo $?; $STAPRUN -w $KO; echo $?; $STAPRUN -C always $KO; echo $?`),
		newSession("bulk", `probe begin { println("first"); println("second"); exit() } probe end { println("third") }`,
			`$STAPRUN -o out $KO; echo $?; ls; cat out_* | strings -n 3 | sort; rm *; $STAPRUN $KO; ls`, "-b"),
		newSession("parameters", `global n = 5, s = "text", neg = -1; probe begin { printf("%d [%s] %d\n", n, s, neg); exit() }`,
			`$STAPRUN $KO; $STAPRUN $KO n=0x10 'neg=-77' s=word; $STAPRUN $KO 's="two words"'; echo $?`),
		newSession("status", `probe begin { println("begin") } probe end { println("end") }`,
			`$STAPRUN -c 'exit 3' $KO; echo $?; $STAPRUN -c 'sh -c "kill -9 \$\$"' $KO; echo $?; $STAPRUN -c true $KO; echo $?
$STAPRUN -c nosuchprogram $KO; echo $?
for s in INT TERM HUP; do $STAPRUN $KO & sleep 0.4; kill -$s $(pidof stapio); wait $!; echo $s $?; done`),
		newSession("start_error", `global g; probe begin { g = 1 / (g - g) }`,
			`$STAPRUN $KO; echo $?; $STAPRUN -c 'echo command' $KO; echo $?`),
		newSession("attach", `global n; probe begin { println("begin") } probe timer.ms(20) { if (n < 20) println(n++) } probe end { println("end") }`,
			`$STAPRUN -L $KO; echo $?; sleep 1; $STAPRUN -A $NAME & sleep 0.7; kill -QUIT $(pidof stapio); wait $!; echo $?
$STAPRUN -A $NAME & sleep 0.5; kill -INT $(pidof stapio); wait $!; echo $?; gone; $STAPRUN -d $NAME; echo $?`),
		newSession("flight", `global n; probe begin { println("begin") } probe timer.ms(20) { if (n < 20) println(n++) } probe end { println("end") }`,
			`$STAPRUN -D -o out.%Y $KO > pid; echo $?; await "grep -q 19 out.*"; kill -USR2 $(cat pid); sleep 0.5; kill -INT $(cat pid); gone; ls | sed s/$(date +%Y)/YEAR/; cat out.*`),
		newSession("exists", `probe begin { println("begin") } probe end { println("end") }`,
			`$STAPRUN $KO > out & await "grep -q begin out"; $STAPRUN $KO; echo $?; $STAPRUN -d $NAME; echo $?; kill $(pidof stapio); wait $!; echo $?; cat out`),
		newSession("rename", `probe begin { println(module_name() == "`+"t_session_rename"+`"); exit() }`,
			`$STAPRUN -R $KO; echo $?`),
		newSession("input", `probe input.char { printf("[%s]", char) if (char == "\n") exit() }`,
			`printf 'abc\n' | $STAPRUN -i $KO; echo; echo $?`),
	}
	for _, s := range list {
		switch strings.TrimPrefix(s.script.Name, "session_") {
		case "exists":
			s.mask, s.why = regexp.MustCompile(`(?m)^ERROR: (Another process is attached|Cannot attach to) .*\n|/modules/(up|our)/`), "we say that the module is in use, upstream that it may not be running"
		case "attach":
			s.mask, s.why = regexp.MustCompile(`(?m)^WARNING: There were 21 lost messages, 0 lost bytes, and 0 unexpected sequences.\n`), "upstream's relay counts what an earlier one has printed as lost"
		}
	}
	return list
}

// run runs a session's module, a file of the guest, under a pair.
func (r *run) runSession(s *session, p Pair, file string) (Result, error) {
	req := lab.Shell(lab.Root, sessionHead+s.sh)
	req.Env = append(append(req.Env, p.Env...), "STAPRUN="+p.Staprun, "KO="+file, "NAME="+s.script.Module())
	req.Timeout = 60
	a, err := r.guest.Do(req)
	if err != nil {
		return Result{}, err
	}
	got := s.script.ResultOf(a)
	if s.mask != nil {
		got.Stderr = s.mask.ReplaceAllLiteralString(got.Stderr, "")
	}
	left, err := r.guest.Do(lab.Shell(lab.Root, "killall -9 stapio 2>/dev/null; dmesg -c | grep -E 'BUG|Oops|Call Trace|INFO: task'; for m in $(lsmod | grep -o '^t_[^ ]*'); do echo $m is left loaded; rmmod $m; done; true"))
	if err != nil {
		return got, err
	}
	switch {
	case a.TimedOut:
		return got, fmt.Errorf("no end within its time")
	case len(left.Stdout) > 0:
		return got, fmt.Errorf("left behind:\n%s", left.Stdout)
	}
	return got, nil
}

// compareSessions runs each session four times.
func (r *run) compareSessions(ctx context.Context, list []*session) {
	for _, s := range list {
		if ctx.Err() != nil {
			return
		}
		if !s.script.compiled {
			continue
		}
		name := strings.ReplaceAll(s.script.Name, "_", " ")
		up, our := module("up", s.script), module("our", s.script)
		reference, err := r.runSession(s, r.theirs, up)
		if err != nil {
			r.result(name+": upstream's module, upstream's pair", failed, fmt.Sprintf("%v\n%s%s", err, reference.Stdout, reference.Stderr))
			continue
		}
		for _, x := range []struct {
			what string
			pair Pair
			file string
		}{
			{"upstream's module, our pair", OurPair, up},
			{"our module, upstream's pair", r.theirs, our},
			{"our module, our pair", OurPair, our},
		} {
			row := name + ": " + x.what
			got, err := r.runSession(s, x.pair, x.file)
			if err != nil {
				r.result(row, failed, fmt.Sprintf("%v\n%s%s", err, got.Stdout, got.Stderr))
			} else if d := Difference(got, reference); d != "" {
				r.result(row, different, d)
			} else {
				r.result(row, ok, s.why)
			}
		}
	}
}
