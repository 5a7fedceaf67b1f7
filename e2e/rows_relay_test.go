package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// Scripts of the rows about stapio.
const (
	scriptHello  = `probe begin { println("begin"); exit() } probe end { println("end") }`
	scriptStay   = `probe begin { println("begin") } probe end { println("end") }`
	scriptTick   = `global n; probe begin { println("begin") } probe timer.ms(20) { printf("%d\n", n++) } probe end { println("end") }`
	scriptTarget = `probe begin { printf("target %d\n", target()) } probe end { println("end") }`
	scriptFlood  = `probe begin { exit() } probe end { for (i = 0; i < 20000; i++) printf("%d\n", i) }`
	scriptPages  = `probe begin { for (i = 0; i < 30000; i++) printf("%99d\n", i); exit() }`
	scriptBusy   = `probe begin { t = gettimeofday_ms(); while (gettimeofday_ms() < t + 6000) n++; println("began") } probe end { println("end") }`
	scriptWarn   = `probe timer.ms(200) { warn("later") }`
)

// manyActions lets a handler do what takes seconds in an emulated machine.
const manyActions = "-DMAXACTION=1000000000"

const muchTime = "-DMAXTIME_SESSION=60000"

// shellHead is what the rows' shell scripts have: m is the module's file, NAME
// its name; await waits until a command succeeds, listens until a process is a stapio
// that listens to INT, bit 1 of the last digit, and attached until the file has output, too.
const shellHead = `NAME=e2e_test_module_with_long_name STAPIO=/usr/libexec/stapbox/stapio
await() { i=0; until eval "$1" >/dev/null 2>&1; do i=$((i+1)); [ $i -gt 300 ] && { echo "no $1"; killall -9 stapio; staprun -d $NAME; exit 99; }; sleep 0.1; done; }
gone() { await "! grep -q $NAME /proc/modules"; }
listens() { await "grep -q stapio /proc/$1/comm && grep -q 'SigCgt:.*[2367abef]$' /proc/$1/status"; }
attached() { await "pidof stapio" && listens $(pidof stapio) && await "grep -q begin $1"; }
`

// inGuest runs a shell script as the developer, in a directory of its own, with
// the module of a script beside it as m.ko.
func inGuest(t *testing.T, s *scene, stp, sh string, args ...string) request.Answer {
	t.Helper()
	s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/row; mkdir -m 755 /tmp/row; chown 1001:1001 /tmp/row"))
	if stp != "" {
		s.put(t, "/tmp/row/m.ko", lab.Dev, 0o644, module(t, s.kernel, "", stp, args...))
	}
	r := lab.Shell(lab.Dev, shellHead+sh)
	r.Dir, r.Timeout = "/tmp/row", 60
	return s.do(t, r)
}

// shellRow is a row that is a shell script: its exit status is 0, its output and
// parts of its standard error are given.
func shellRow(section, id, what, stp, sh, stdout string, stderr ...string) row {
	return row{section, id, what, func(t *testing.T, s *scene) {
		var args []string
		if stp == scriptFlood || stp == scriptPages || stp == scriptBusy {
			args = []string{manyActions, muchTime}
		}
		want(t, inGuest(t, s, stp, sh, args...), 0, stdout, stderr...)
	}}
}

func rowsRelay() []row {
	rows := append(rowsSequences(), rowsOutput()...)
	rows = append(rows, rowsExit()...)
	return append(rows, rowsReverse()...)
}

func pinsRelay() []pin {
	return []pin{
		{"1.10", 6, "its six sequences"},
		{"7.6", 16, "the statements of its seven points"},
		{"13", 5, "the table's last five lines, stapio's"},
		{"15", 8, "points 1 to 7 and 12; 1, 2, 5, 6 and 7 with fake modules of both generations"},
	}
}

func rowsSequences() []row {
	return []row{
		shellRow("1.10", "a", "start: staprun loads, stapio sends READY, BULK and START, begin probes run", scriptHello,
			`staprun m.ko`, "begin\nend\n"),
		shellRow("1.10", "b", "^C: EXIT, end probes, all output, module removed", scriptStay,
			`staprun m.ko > out & attached out; kill -INT $(pidof stapio); wait $!; echo $?; cat out; gone`, "0\nbegin\nend\n"),
		{"1.10", "c", "exit() and error() of the script end the session", func(t *testing.T, s *scene) {
			want(t, inGuest(t, s, scriptHello, `staprun m.ko; echo $?; gone`), 0, "begin\nend\n0\n")
			a := inGuest(t, s, `probe begin { println("begin"); error("boo") } probe end { println("end") } probe error { println("error probe") }`, `staprun m.ko; echo $?; gone`)
			want(t, a, 0, "begin\nerror probe\n1\n", "ERROR: boo")
		}},
		shellRow("1.10", "d", "detach with -L or SIGQUIT, attach with -A: the stream goes on, older data first", scriptTick,
			`staprun -L m.ko; echo $?
grep -q $NAME /proc/modules || echo unloaded
sleep 0.5
staprun -A $NAME > out & await "grep -q 20 out"; kill -QUIT $(pidof stapio); wait $!; echo $?
staprun -A $NAME >> out & attached out; kill -INT $(pidof stapio); wait $!; echo $?
gone
head -3 out; sed '1d;$d' out > body; sort -n body > sorted; seq 0 $(tail -1 sorted) | cmp - sorted; tail -1 out`,
			"0\n0\n0\nbegin\n0\n1\nend\n", "\nDisconnecting from systemtap module.\nTo reconnect, type \"staprun -A e2e_test_module_with_long_name\"\n"),
		shellRow("1.10", "e", "kill -9 of stapio leaves the module detached; staprun -A and -d work afterwards", scriptTick,
			`staprun m.ko > out & attached out; kill -9 $(pidof stapio); wait $!; echo $?
grep -q $NAME /proc/modules || echo unloaded
staprun -A $NAME > again & await "grep -q 1 again"; kill -9 $(pidof stapio); wait $!
staprun -d $NAME; echo $?; gone`, "137\n0\n"),
		shellRow("1.10", "f", "there is no time limit: -T is only how long a reader waits", scriptTick,
			`staprun -T 20 m.ko > out & attached out; sleep 1; pidof stapio > /dev/null || echo ended; kill $(pidof stapio); wait $!; echo $?; tail -1 out`, "0\nend\n"),
	}
}

func rowsOutput() []row {
	return []row{
		shellRow("7.6", "a", "standard output gets the payloads unmodified", `probe begin { printf("%c%c%c", 0xff, 1, 0xc3); exit() }`,
			`staprun m.ko | od -An -tx1`, " ff 01 c3\n"),
		shellRow("7.6", "b", "-o: strftime(3) name, truncated, mode 0666 and umask", scriptHello,
			`echo old old old old > out.$(date +%Y); umask 027; staprun -o out.%Y m.ko; cat out.$(date +%Y)
rm out.*; staprun -o out.%Y m.ko; stat -c %a out.$(date +%Y)`, "begin\nend\n640\n"),
		{"7.6", "c", "bulk mode: one file for each CPU, records with their headers", func(t *testing.T, s *scene) {
			a := inGuest(t, s, scriptHello, `staprun -o out m.ko; ls out_*; cat out_* > /tmp/row/all; echo $?`, "-b")
			want(t, a, 0, "out_0\nout_1\n0\n")
			got := s.do(t, lab.Shell(lab.Dev, "cat /tmp/row/all"))
			if text, ok := bulkText(got.Stdout); !ok || text != "begin\nend\n" {
				t.Errorf("the files hold %q", got.Stdout)
			}
		}},
		{"7.6", "d", "bulk mode without -o: stpd_cpuN in the working directory", func(t *testing.T, s *scene) {
			want(t, inGuest(t, s, scriptHello, `staprun m.ko; ls stpd*`, "-b"), 0, "stpd_cpu0\nstpd_cpu1\n")
		}},
		shellRow("7.6", "e", "-S MB: FILE.0, FILE.1, ... none larger than that", scriptPages,
			`staprun -o out -S 1 m.ko; ls out.*; for f in out.*; do [ $(stat -c %s $f) -le 1048576 ] || echo $f is too large; done; cat out.0 out.1 out.2 | awk '$1 != NR-1 {print "line", NR, $1; exit} END {print NR}'`,
			"out.0\nout.1\nout.2\n30000\n"),
		shellRow("7.6", "f", "-S MB,N: the last N files stay", scriptPages,
			`staprun -o out -S 1,2 m.ko; ls out.*`, "out.1\nout.2\n"),
		{"7.6", "g", "-S in bulk mode: FILE_cpuN.0", func(t *testing.T, s *scene) {
			want(t, inGuest(t, s, scriptHello, `staprun -o out -S 1 m.ko; ls out*`, "-b"), 0, "out_cpu0.0\nout_cpu1.0\n")
		}},
		shellRow("7.6", "h", "each name of a switched file is expanded with the time of its own opening", scriptTick,
			`staprun -o %s -S 1 m.ko & await "grep -q begin *.0"; sleep 1.1; kill -USR2 $(pidof stapio); await "ls *.1"; kill $(pidof stapio); wait $!; set -- *.0 *.1; [ ${1%.0} -lt ${2%.1} ] && echo later`, "later\n"),
		shellRow("7.6", "i", "SIGUSR2: the first file is FILE, then come FILE.1 and so on; nothing is lost", scriptTick,
			`staprun -o out m.ko & attached out; for n in 1 2; do kill -USR2 $(pidof stapio); await "ls out.$n"; sleep 0.1; done; kill $(pidof stapio); wait $!
ls out*; cat out out.1 out.2 > all; sed '1d;$d' all > body; seq 0 $(tail -1 body) | cmp - body`, "out\nout.1\nout.2\n"),
		{"7.6", "j", "SIGUSR2 in bulk mode: FILE_N, then FILE_cpuN.1", func(t *testing.T, s *scene) {
			want(t, inGuest(t, s, scriptTick, `staprun -o out m.ko & await "grep -q begin out_*"; kill -USR2 $(pidof stapio); await "ls out_cpu1.1"; kill $(pidof stapio); wait $!; ls out*`, "-b"),
				0, "out_0\nout_1\nout_cpu0.1\nout_cpu1.1\n")
		}},
		shellRow("7.6", "k", "SIGUSR2 without -o is ignored", scriptTick,
			`staprun m.ko > out & attached out; kill -USR2 $(pidof stapio); sleep 0.3; pidof stapio > /dev/null || echo ended; kill $(pidof stapio); wait $!; echo $?; ls; tail -1 out`, "0\nm.ko\nout\nend\n"),
		shellRow("7.6", "l", "-o /dev/null stays /dev/null, numbers or not, and stays there", scriptPages,
			`staprun -o /dev/null -S 1,1 m.ko; echo $?; ls /dev/null*; [ -c /dev/null ] || echo no device`, "0\n/dev/null\n"),
		shellRow("7.6", "m", "a closed pipe: one message, orderly exit, status 1", scriptTick,
			`(staprun m.ko; echo $? > status) | head -2; await "ls status"; cat status; gone`, "begin\n0\n1\n", "ERROR: error writing output: Broken pipe"),
		shellRow("7.6", "n", "a full disk: one message that names the file, orderly exit, status 1", scriptTick,
			`staprun -o /dev/full m.ko; echo $?; gone`, "1\n", "ERROR: error writing output /dev/full: No space left on device"),
		shellRow("7.6", "o", "a file that cannot be opened: message, status 1, module removed", scriptHello,
			`staprun -o none/out m.ko; echo $?; staprun -o %Q m.ko; echo $?; gone`, "1\n1\n",
			"ERROR: Couldn't open output file /tmp/row/none/out: No such file or directory", "ERROR: Invalid FILE name format"),
		shellRow("7.6", "p", "-L makes no output file", scriptTick,
			`staprun -L -o out m.ko; echo $?; ls; staprun -d $NAME`, "0\nm.ko\n"),
	}
}

// bulkText puts the records of a bulk file into their order and gives their
// text; ok is false when it does not consist of records alone.
func bulkText(b []byte) (text string, ok bool) {
	parts := map[uint32]string{}
	for len(b) > 0 {
		if len(b) < 12 || !bytes.HasPrefix(b, []byte{0xf0, 0x9f, 0xa9, 0xba}) {
			return "", false
		}
		seq, n := binary.LittleEndian.Uint32(b[4:]), int(binary.LittleEndian.Uint32(b[8:]))
		if len(b) < 12+n {
			return "", false
		}
		parts[seq], b = string(b[12:12+n]), b[12+n:]
	}
	for seq := uint32(1); int(seq) <= len(parts); seq++ {
		text += parts[seq]
	}
	return text, true
}

func rowsExit() []row {
	var signals strings.Builder
	for _, sig := range []string{"INT", "TERM", "HUP"} {
		fmt.Fprintf(&signals, "staprun m.ko > out & attached out; kill -%s $(pidof stapio); wait $!; echo %s $?; rm out; gone\n", sig, sig)
	}
	signals.WriteString("staprun m.ko > out & attached out; p=$(pidof stapio); kill -STOP $p; kill -INT $p; kill -TERM $p; kill -HUP $p; kill -CONT $p; wait $!; echo three $?; gone\nstaprun -x 1 m.ko > out & attached out; kill $(pidof stapio); wait $!; echo x $?\n")
	return []row{
		shellRow("13", "i", "run finished, exit(), ^C, TERM, HUP, three interrupts: 0", scriptStay, signals.String(),
			"INT 0\nTERM 0\nHUP 0\nthree 0\nx 0\n"),
		{"13", "j", "an ERROR of the module, a target that failed, staprun -d that failed: 1", func(t *testing.T, s *scene) {
			want(t, inGuest(t, s, `probe begin { error("boo") }`, `staprun m.ko; echo $?`), 0, "1\n", "ERROR: boo")
			want(t, inGuest(t, s, scriptTarget, `staprun -c false m.ko | tail -1; staprun -c false m.ko > /dev/null; echo $?
staprun -c 'kill -9 $$; true' m.ko > /dev/null; echo $?`), 0, "end\n1\n1\n",
				"WARNING: Child process exited with status 1", "WARNING: Child process exited with signal 9 (Killed)")
			want(t, inGuest(t, s, scriptHello, `staprun -L m.ko; SYSTEMTAP_STAPRUN=/bin/false $STAPIO -A $NAME > /dev/null; echo $?; staprun -d $NAME; echo $?`), 0, "1\n0\n")
		}},
		shellRow("13", "k", "detach, and the process that -D leaves: 0", scriptTick,
			`staprun -L m.ko; echo $?; staprun -d $NAME
staprun m.ko > out & attached out; kill -QUIT $(pidof stapio); wait $!; echo $?; staprun -d $NAME
staprun -D -o out m.ko > pid; echo $?; kill $(cat pid); gone`, "0\n0\n0\n"),
		shellRow("13", "l", "staprun -d could not be run, or was killed: 255", scriptHello,
			`printf '#!/bin/sh\nkill -9 $$\n' > killed; chmod 755 killed
staprun -L m.ko; SYSTEMTAP_STAPRUN=/no/such $STAPIO -A $NAME > /dev/null; echo $?; staprun -d $NAME
staprun -L m.ko; SYSTEMTAP_STAPRUN=./killed $STAPIO -A $NAME > /dev/null; echo $?; staprun -d $NAME; echo $?`, "255\n255\n0\n"),
		shellRow("13", "m", "stapio killed: 128 and the signal, the module stays until staprun -d", scriptStay,
			`staprun m.ko > out & attached out; kill -9 $(pidof stapio); wait $!; echo $?; staprun -d $NAME; echo $?; gone`, "137\n0\n"),
	}
}

// withFakes makes a row of a test that needs no guest: its modules are fakes of
// both generations, as real ones of 4.x need a kernel of their time.
func withFakes(id, what string, test func(*testing.T)) row {
	return row{"15", id, what, func(t *testing.T, _ *scene) { test(t) }}
}

func rowsReverse() []row {
	return []row{
		withFakes("1", "modules of 4.8 and 5.x complete every sequence with the same stapio; -A needs no TRANSPORT", relaySequences),
		withFakes("2", "what a module does not know of -N does not end the run", relayNamespaces),
		withFakes("5", "a gap delays output about two seconds and is counted once; what came before attaching is not", relayGaps),
		withFakes("6", "garbage, split headers and bodies, impossible lengths, a cut end: the rest is found again", relayDamage),
		withFakes("7", "EPIPE and ENOSPC: one message, orderly EXIT, status 1", relayWriteErrors),
		shellRow("15", "3", "START that blocks for seconds: signals count afterwards, the target waits", scriptBusy,
			`for try in 1 2 3; do
  staprun -c 'echo target' m.ko > out & listens $!; sleep 0.7; late=$(grep -c began out); kill -INT $!; wait $!; status=$?
  [ $late = 0 ] && break; echo "try $try: the module had begun before the signal" >&2
done; echo $status; cat out; gone`, "0\nbegan\nend\n"),
		shellRow("15", "4", "all that is there at EXIT comes out, in order, before the process ends", scriptFlood,
			`staprun m.ko > out; echo $?; seq 0 19999 | cmp - out`, "0\n"),
		{"15", "12", "daemon: pid line, silent, messages to the system log, working directory /, own session", func(t *testing.T, s *scene) {
			s.do(t, lab.Shell(lab.Root, "rm -f /tmp/devlog; syslogd -O /tmp/devlog"))
			defer s.do(t, lab.Shell(lab.Root, "killall syslogd; rm -f /dev/log"))
			a := inGuest(t, s, scriptWarn, `staprun -D -o out m.ko > pid 2> err; echo $?; p=$(cat pid); [ -d /proc/$p ] || echo no process
ls -l /proc/$p | grep -o 'cwd -> .*'; [ $(cut -d' ' -f6 /proc/$p/stat) = $p ] && echo own session; cat /proc/$p/comm
sleep 0.5; cat err; kill $p; gone; grep -o 'stapio\[[0-9]*\]: WARNING: later' /tmp/devlog | sort | uniq | sed "s/$p/PID/"`)
			want(t, a, 0, "0\ncwd -> /\nown session\nstapio\nstapio[PID]: WARNING: later\n")
		}},
	}
}
