package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// The modules of this file are driven through their files alone, by a shell that
// is root: what staprun and stapio do with them is tested elsewhere.
const moduleShell = `
use() { D=/proc/systemtap/$1; }
attach() { exec 3<>$D/.cmd; }
detach() { exec 3>&-; }
start() { printf '\137\0\0\0\016\0\0\0' >&3; printf '\120\0\0\0\0\0\0\0\0\0\0\0' >&3; }
finish() { printf '\121\0\0\0' >&3; }
bulk() { printf '\127\0\0\0%0128d' 0 >&3; }
message() { dd bs=8196 count=1 <&3 2>/dev/null | tr -c '\040-\176\012' .; echo; }
printed() { cat $D/trace* 2>/dev/null | tr -c '\040-\176\012' '\n'; }
magic() { for f in $D/trace*; do dd if=$f bs=12 count=1 2>/dev/null | head -c 4; done | od -An -tx1; }
use one
`

// built compiles a module of the given name for the scene's kernel.
func built(t *testing.T, s *scene, name, script string, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(stage.programs.Applet("stap"), append([]string{"-p4", "-r", s.kernel.Headers, "-m", name, "-e", script}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SYSTEMTAP_DIR="+kernelState())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if out, err := cmd.Output(); err != nil {
		t.Fatalf("compiling %q: %v\n%s%s", script, err, out, stderr.Bytes())
	}
	return read(t, filepath.Join(dir, name+".ko"))
}

// drive puts a module named one into the guest and runs a shell script on it.
func (s *scene) drive(t *testing.T, module []byte, script string) request.Answer {
	t.Helper()
	s.put(t, "/tmp/one.ko", lab.Root, 0o644, module)
	r := lab.Shell(lab.Root, moduleShell+script)
	r.Timeout = 60
	return s.do(t, r)
}

// Messages as the function message shows them.
const (
	msgTransport   = "T...\n"
	msgStart       = "P...........\n"
	msgExit        = "Q...\n"
	msgRequestExit = "]...\n"
)

// A module that nobody is attached to goes on and keeps its newest records,
// oldest first; what it overwrites meanwhile is no transport failure.
func TestDetachedModule(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		t.Run("keeps the newest records", func(t *testing.T) {
			m := built(t, s, "one", `global n probe timer.ms(1) { for (i = 0; i < 90 && n < 40000; i++) printf("line %d %60s\n", n++, "x") } probe end { println("n is ", n) }`)
			got := s.drive(t, m, `insmod /tmp/one.ko _stp_bufsize=1
attach; start; message; message; detach
sleep 8
attach; printed | grep -o '^line [0-9]*' | cut -c6- | sort -n > /tmp/lines
awk 'NR == 1 {first = $1; want = $1} $1 != want++ {gaps++} END {print (first > 10000 ? "the old ones are gone" : first), gaps + 0, "gaps, last", $1}' /tmp/lines
finish; message; printed | grep is; detach; rmmod one`)
			want(t, got, 0, msgTransport+msgStart+"the old ones are gone 0 gaps, last 39999\n"+msgExit+"n is 40000\n")
		})
		flood := built(t, s, "one", `global n probe timer.ms(10) { printf("line %d\n", n++) } probe timer.s(1) { exit() }`)
		t.Run("a new reader starts with a whole record", func(t *testing.T) {
			got := s.drive(t, flood, `insmod /tmp/one.ko
attach; start; sleep 1; for f in $D/trace*; do dd if=$f bs=14 count=1 2>/dev/null | wc -c; done | sort -n | tail -1
detach; attach; magic | grep -o 'f0 9f a9 ba' | head -1; finish; detach; rmmod one`)
			want(t, got, 0, "14\nf0 9f a9 ba\n")
		})
		t.Run("who attaches late is told to end", func(t *testing.T) {
			got := s.drive(t, flood, `insmod /tmp/one.ko
attach; start; message; message; detach; sleep 2
attach; message; detach		# this one takes the message and dies
attach; message; finish; message; detach
attach; message; detach; rmmod one`)
			want(t, got, 0, msgTransport+msgStart+msgRequestExit+msgRequestExit+msgExit+msgExit)
		})
		t.Run("bulk mode", func(t *testing.T) {
			bulk := `probe begin { println("hello") exit() }`
			for _, tt := range []struct{ arg, want string }{{"-b", "taken"}, {"-DSTP_BULKMODE", "taken"}, {"-w", "refused"}} {
				got := s.drive(t, built(t, s, "one", bulk, tt.arg), `insmod /tmp/one.ko
attach; bulk 2>/dev/null && echo taken || echo refused; start; magic | grep -o 'f0 9f a9 ba'; finish; detach; rmmod one`)
				want(t, got, 0, tt.want+"\nf0 9f a9 ba\n")
			}
		})
	})
}

// timer.profile ticks on every CPU, and only as long as that is there.
func TestProfile(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		got := s.drive(t, built(t, s, "one", `global n
probe timer.profile { n[cpu()]++ }
probe procfs("clear").write { delete n }
probe end { foreach (c+ in n) printf("CPU %d: %s\n", c, n[c] < 20 ? "few" : n[c] > 700 ? "many" : "ticks") }`), `
run() { insmod /tmp/one.ko; attach; start; $1; echo > $D/clear; sleep 2; finish; printed | grep CPU; detach; rmmod one; }
run :
run 'eval echo 0 > /sys/devices/system/cpu/cpu1/online'
run 'eval echo 1 > /sys/devices/system/cpu/cpu1/online'
run :`)
		want(t, got, 0, "CPU 0: ticks\nCPU 1: ticks\n"+"CPU 0: ticks\n"+"CPU 0: ticks\n"+"CPU 0: ticks\nCPU 1: ticks\n")
	})
}

// Probes of files, with the texts that upstream 5.6 gives.
func TestModuleFiles(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		m := built(t, s, "one", `global n
probe procfs("r").read { $value = "abcdef\n" $value .= "x\n" printf("read %d\n", ++n) }
probe procfs("none").read { println("none") }
probe procfs("w").write { printf("write %d [%s]\n", strlen($value), substr($value, 0, 10)) }
probe procfs("e").read { $value = "part" error("boo") }
probe procfs("d/f/g").umask(0).read { $value = "nested\n" }
probe procfs("d/h").umask(040).read { $value = "nested too\n" }
probe procfs("small").read.maxsize(4) { $value = "123456789" }
probe procfs("two").read { $value = "one\n" }
probe procfs("two").read { $value = "two\n" }
probe procfs("two").write { print("w1 " . $value) }
probe procfs("two").write { print("w2 " . $value) }
probe procfs.write { print("command " . $value) }
probe input.char { printf("char [%s]\n", char) }
probe input.line { printf("line [%s]\n", line) }
probe procfs("quit").write { exit() }`, "-DMAXERRORS=9")
		got := s.drive(t, m, `insmod /tmp/one.ko; ls $D | grep -v trace; attach; start
cd $D; stat -c '%a %n' * d/* d/f/* | grep -v trace | tr '\n' ' '; echo
cat r; dd if=r bs=1 2>/dev/null; cat none; cat e; echo; cat d/f/g d/h small; echo; cat two
echo hello > w; echo > w; awk 'BEGIN { while (n++ < 600) printf "a" }' > /tmp/600; dd if=/tmp/600 of=w bs=600 2>/dev/null
echo z > two; echo go > command; printf 'ab\nc' > __stdin; echo d > __stdin; echo 1 > quit
printed > /tmp/p; cd /; finish; ls $D | grep -v trace; echo 1 2>/dev/null > $D/w || echo gone
while :; do message > /tmp/m; grep -q '^Q' /tmp/m && break; grep ERROR /tmp/m; done; detach; rmmod one
grep -v '^\(char\|\]\|\)$' /tmp/p`)
		text := string(got.Stdout)
		head, printed, _ := strings.Cut(text, "gone\n")
		if w := `200 __stdin 200 command 555 d 400 e 400 none 200 quit 400 r 400 small 600 two 200 w 555 d/f 404 d/h 444 d/f/g 
abcdef
x
abcdef
x
part
nested
nested too
123
two
`; head != w {
			t.Errorf("got\n%s\nwant\n%s\n%s", head, w, got.Stderr)
		}
		for _, w := range []string{
			"ERROR: boo near identifier 'error' at", "in probe procfs(\"e\").read\n",
			"ERROR: buffer size exceeded, consider .maxsize(10). near identifier '$value' at",
			"read 1\n", "read 2\n", "none\n", "write 6 [hello\n", "write 1 [\n", "write 511 [aaaaaaaaaa]\n", "write 89 [aaaaaaaaaa]\n",
			"w1 z\n", "w2 z\n", "command go\n", "char [a]\n", "line [ab\n", "line [cd\n",
		} {
			if !strings.Contains(printed, w) {
				t.Errorf("%q is missing in\n%s", w, printed)
			}
		}
		if strings.Contains(printed, "read 3") {
			t.Error("reading in pieces runs the handler more than once")
		}
	})
}

func TestModuleMonitor(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		m := built(t, s, "one", `global n, s = "a\"b\\\x01\xff", a, b, seven = 7
probe begin { a[1] = 2; a[-3] = 4; b["x", 1] = "q\"\n" for (i = 0; i < 900; i++) b[sprintf("%0200d", i), i] = "v" }
probe timer.ms(20) { n++ }
probe end { foreach (k in a) println(k, a[k]) foreach ([q, l] in b) println(q, l) println(n, s, seven) }`, "--monitor", "-DMAXACTION=100000")
		got := s.drive(t, m, `insmod /tmp/one.ko n=5; attach; start; sleep 1; st() { cat $D/monitor_status; }; ct() { echo "$1" > $D/monitor_control; }
stat -c '%a %n' $D/monitor*
st; ct pause; st; ct resume; ct 1; st; ct 1; ct clear; st; ct 99; ct junk; ct ''; ct quit
message; message; message; finish; detach; rmmod one`)
		lines := strings.Split(string(got.Stdout), "\n")
		if len(lines) != 10 || !strings.HasPrefix(lines[0], "200 ") || !strings.HasPrefix(lines[1], "400 ") || lines[8]+"\n" != msgRequestExit {
			t.Fatalf("status %d, stdout %q, stderr %q", got.Status, got.Stdout, got.Stderr)
		}
		type status struct {
			Uptime, UID, Memory string
			Module              string `json:"module_name"`
			Globals             map[string]any
			Probes              []struct {
				Index, Hits, Min, Avg, Max int64
				State, Name                string
			} `json:"probe_list"`
		}
		var all [4]status
		for i := range all {
			if err := json.Unmarshal([]byte(lines[2+i]), &all[i]); err != nil {
				t.Fatalf("%v: %.300q", err, lines[2+i])
			}
		}
		g := all[0].Globals
		if g["s"] != "a\"b\\\x01\u00ff" || g["seven"] != 7.0 || g["a"].(map[string]any)["(-3)"] != 4.0 || g["b"].(map[string]any)["(x, 1)"] != "q\"\n" || g["n"].(float64) < 6 {
			t.Errorf("globals: %.300v", g)
		}
		p := all[0].Probes
		if len(p) != 3 || p[0].Name != "begin" || p[0].Hits != 1 || p[2].Name != "timer.ms(20)" || p[2].Hits < 2 || p[2].Min > p[2].Avg || p[2].Avg > p[2].Max || p[2].State != "on" || p[2].Index != 2 {
			t.Errorf("probes: %+v", p)
		}
		if all[0].Module != "one" || all[0].UID != "0" || all[0].Uptime < "00:00:01" || all[0].Uptime > "00:00:30" {
			t.Errorf("got %q, %q, %q", all[0].Module, all[0].UID, all[0].Uptime)
		}
		if all[1].Probes[0].State != "off" || all[1].Probes[2].State != "off" {
			t.Errorf("after pause: %+v", all[1].Probes)
		}
		if all[2].Probes[0].State != "on" || all[2].Probes[1].State != "off" {
			t.Errorf("after resume and 1: %+v", all[2].Probes)
		}
		if g := all[3].Globals; len(g["a"].(map[string]any)) != 0 || g["n"].(float64) > 50 || g["n"].(float64) < 5 || g["s"] != "a\"b\\\x01\u00ff" {
			t.Errorf("after clear: %v", g)
		}
	})
}

// Guests put their records into the host's files; neither goes before the other.
func TestRelayHostAndGuests(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		guest := `global n probe timer.ms(20) { printf("from %s %d\n", module_name(), n++) }`
		for name, m := range map[string][]byte{
			"other": built(t, s, "other", `probe begin { println("up") }`, "-DRELAY_HOST=foo"),
			"g1":    built(t, s, "g1", guest, "-DRELAY_GUEST=foo"),
			"g2":    built(t, s, "g2", guest, "-DRELAY_GUEST=foo"),
		} {
			s.put(t, "/tmp/"+name+".ko", lab.Root, 0o644, m)
		}
		got := s.drive(t, built(t, s, "one", `probe begin { println("host") } probe end { println("host ends") }`, "-DRELAY_HOST=foo"), `exec 2>/dev/null
insmod /tmp/g1.ko || echo no host
insmod /tmp/one.ko; stat -c '%a' /proc/systemtap/.relay.0.foo; insmod /tmp/other.ko || echo one host of a name
insmod /tmp/g1.ko; insmod /tmp/g2.ko; rmmod one || echo in use
for m in one g1 g2; do use $m; attach; start; detach; done; sleep 1
use g1; attach; finish; printed | grep -c from; detach; rmmod g1; sleep 1; rmmod one || echo still in use
use one; attach; printed > /tmp/p; for g in g1 g2; do grep -c "from $g" /tmp/p | grep -q '^[1-9]' && echo records of $g; done
finish; detach; rmmod one || echo a host that has ended too
use g2; attach; finish; detach; rmmod g2
for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; rmmod one && echo removed && break; done; ls -A /proc/systemtap`)
		want(t, got, 0, `no host
400
one host of a name
in use
0
still in use
records of g1
records of g2
a host that has ended too
removed
`)
	})
}

// Values of module parameters, as the loader and everybody else may give them.
func TestModuleParameters(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		script := `global n = 3, s = "first", int = 1, c = 2, t0 = 3, stp_script = 4, probes = "p", __this_module = 5
probe begin { printf("%d [%s] %d %d %d %d %s %d\n", n, s, int, c, t0, stp_script, probes, __this_module) exit() }`
		s.put(t, "/tmp/one.ko", lab.Root, 0o644, built(t, s, "one", script, "-DMAXSTRINGLEN=20"))
		for _, tt := range []struct{ args, want string }{
			{``, "3 [first] 1 2 3 4 p 5\n"},
			{`n=42`, "42 [first] 1 2 3 4 p 5\n"},
			{`n=-42 int=9 c=8 t0=7 stp_script=6 probes=q __this_module=1`, "-42 [first] 9 8 7 6 q 1\n"},
			{`n=0x7fffffffffffffff`, "9223372036854775807 [first] 1 2 3 4 p 5\n"},
			{`n=-9223372036854775808`, "-9223372036854775808 [first] 1 2 3 4 p 5\n"},
			{`n=010`, "8 [first] 1 2 3 4 p 5\n"},
			{`n=9223372036854775808`, "refused\n"},
			{`n=0x8000000000000000`, "refused\n"},
			{`n=12x`, "refused\n"},
			{`n=`, "refused\n"},
			{`n`, "refused\n"},
			{`'s="two words"'`, "3 [two words] 1 2 3 4 p 5\n"},
			{`s=`, "3 [] 1 2 3 4 p 5\n"},
			{`s=1234567890123456789`, "3 [1234567890123456789] 1 2 3 4 p 5\n"},
			{`s=12345678901234567890`, "refused\n"},
			{`_stp_bufsize=1 n=1`, "1 [first] 1 2 3 4 p 5\n"},
			{`_stp_bufsize=x`, "refused\n"},
		} {
			r := lab.Shell(lab.Root, moduleShell+`insmod /tmp/one.ko `+tt.args+` 2>/dev/null || { echo refused; exit 0; }
attach; start; printed | grep '\['; finish; detach; rmmod one`)
			t.Run(tt.args, func(t *testing.T) { want(t, s.do(t, r), 0, tt.want) })
		}
		s.do(t, lab.Shell(lab.Root, "dmesg -c")) // refusals are in the kernel's log
	})
}

// The time zone of who inserted the module.
func TestModuleTimeZone(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		m := built(t, s, "one", `probe begin { printf("[%s] %d %s\n", tz_name(), tz_gmtoff(), tz_ctime(86400)) exit() }`)
		got := s.drive(t, m, `insmod /tmp/one.ko
attach; printf '\136\0\0\0\360\361\377\377\377\377\377\377CET%061d' 0 | sed 's/CET0*$/CET/' > /tmp/tz; head -c 76 /dev/zero >> /tmp/tz; dd if=/tmp/tz bs=76 count=1 >&3 2>/dev/null
start; printed | grep '\['; finish; detach; rmmod one`)
		want(t, got, 0, "[CET] -3600 Fri Jan  2 01:00:00 1970 CET\n")
	})
}

// Who owns the files may write any bytes to them, from many processes at once.
func TestHostileOwnerOfModuleFiles(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		id, _ := signers(t)
		s.trustSigner(t, id)
		defer s.forgetSigners(t)
		m := built(t, s, "one", `global n, a
probe procfs("a/r").read.maxsize(5000) { for (i = 0; i < 20; i++) $value .= "0123456789" n++ }
probe procfs("w").write { n += strlen($value) a[$value] = n }
probe input.char { n++ } probe input.line { n += strlen(line) }
probe timer.ms(1) { println(n) } probe end { println("down ", n, a[""]) }`, "--privilege=stapsys", "--monitor", "-DMAXERRORS=1000000", "-DMAXSKIPPED=1000000")
		s.put(t, "/tmp/owned.ko", lab.Root, 0o644, m)
		s.put(t, "/tmp/owned.ko.sgn", lab.Root, 0o644, sign(t, m, id))
		s.do(t, lab.Shell(lab.Root, "mv /tmp/owned.ko /tmp/one.ko; mv /tmp/owned.ko.sgn /tmp/one.ko.sgn"))
		r := lab.Shell(lab.Sys, moduleShell+`staprun -w /tmp/one.ko > /tmp/hostile.out 2>/dev/null & pid=$!
while [ ! -e $D/w ]; do sleep 0.1; done
for i in 1 2 3 4; do (
	for j in $(seq 8); do
		dd if=/dev/urandom of=$D/w bs=$((j * 37)) count=9; dd if=/dev/urandom of=$D/__stdin bs=$((j * 29)) count=3
		dd if=/dev/urandom of=$D/monitor_control bs=$j count=3; echo $j > $D/monitor_control; echo clear > $D/monitor_control; echo resume > $D/monitor_control
		dd if=$D/a/r of=/dev/null bs=$j skip=$((j % 3)); cat $D/monitor_status; : > $D/w; cat $D/w; echo x >> $D/a/r; dd if=$D/a/r bs=1 skip=1000000000 count=1
	done ) > /dev/null 2>&1 & all="$all $!"
done
for i in $(seq 200); do exec 9<$D/a/r; eval "exec $((i + 9))<$D/monitor_status"; done 2>/dev/null
wait $all; echo resume > $D/monitor_control; chmod 777 $D/w 2>/dev/null; kill -INT $pid; wait $pid; echo $?; tail -1 /tmp/hostile.out | cut -c1-4; rm -f /tmp/hostile.out`)
		r.Timeout = 120
		got := s.do(t, r)
		if out := string(got.Stdout); out != "0\ndown\n" && out != "1\ndown\n" {
			t.Errorf("stdout %q, stderr %.300q", got.Stdout, got.Stderr)
		}
	})
}
