package initmanager

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/invocation"
	"stapbox/core/scriptcache"
)

const release = "6.1.0-1-test"

// host is a directory that stands for a host: configuration, scripts, and two
// programs that do as stap and staprun do, and write down how they were called.
type host struct {
	t      *testing.T
	dir    string
	kernel scriptcache.Kernel
	stdin  string
	config string // the file that -c names, "" for config
}

func newHost(t *testing.T, config string) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), kernel: scriptcache.Kernel{
		Uname: "Linux here " + release + " #1 SMP x86_64 GNU/Linux", Release: release, Machine: "x86_64", Node: "here", Version: "#1 SMP",
	}}
	for _, d := range []string{"script.d", "conf.d", "cache", "tmp", "run", "proc", "bin"} {
		if err := os.Mkdir(filepath.Join(h.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.write("config", strings.NewReplacer("DIR", h.dir).Replace("SCRIPT_PATH=DIR/script.d\nCONFIG_PATH=DIR/conf.d\nCACHE_PATH=DIR/cache\nTEMP_PATH=DIR/tmp\nSTAT_PATH=DIR/run\nLOG_FILE=DIR/log\n"+config))
	h.write("proc/modules", "")
	h.write("module", string(moduleFor(release)))
	h.program("stap", `while [ $# -gt 1 ]; do
	case $1 in -m) name=$2; shift;; -r) ;; esac
	shift
done
grep -q broken "$1" && { echo "parse error: broken at $1" >&2; echo "Pass 1: parse failed.  [man error::pass1]" >&2; exit 1; }
cat DIR/module >$name.ko
echo $name.ko`)
	// Modules are lines of proc/modules; -D leaves a process whose comm is stapio.
	h.program("staprun", `case $1 in
-d) grep -v "^$2 " DIR/proc/modules >DIR/tmp/m; cat DIR/tmp/m >DIR/proc/modules; exit 0;;
-A) echo "attached to $2"; exit 0;;
esac
mode=-L
for a; do
	case $a in -D) mode=-D;; *.ko) name=${a##*/}; name=${name%.ko};; esac
done
[ -e DIR/refuse.$name ] && { echo "ERROR: Couldn't insert module: Key was rejected by service" >&2; echo "hint: mokutil --import signing.der" >&2; exit 3; }
echo "$name 16384 0 - Live 0x0" >>DIR/proc/modules
[ $mode = -D ] && { mkdir -p DIR/proc/4242; echo stapio >DIR/proc/4242/comm; printf 'stapio\000-o\000x\000/c/%s.ko\000' $name >DIR/proc/4242/cmdline; echo 4242; }
exit 0`)
	return h
}

// moduleFor is an ELF file with the one field of .modinfo that counts.
func moduleFor(release string) []byte {
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	info := []byte("vermagic=" + release + " SMP mod_unload\x00")
	order := binary.NativeEndian
	image := make([]byte, 64)
	copy(image, "\x7fELF\x02\x01\x01")
	headers := make([]byte, 64)
	for _, s := range []struct {
		name uint32
		data []byte
	}{{1, info}, {10, names}} {
		h := make([]byte, 64)
		order.PutUint32(h, s.name)
		order.PutUint32(h[4:], 1)
		order.PutUint64(h[0x18:], uint64(len(image)))
		order.PutUint64(h[0x20:], uint64(len(s.data)))
		image, headers = append(image, s.data...), append(headers, h...)
	}
	order.PutUint64(image[0x28:], uint64(len(image)))
	order.PutUint16(image[0x3a:], 64)
	order.PutUint16(image[0x3c:], 3)
	order.PutUint16(image[0x3e:], 2)
	return append(image, headers...)
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(name string) string {
	b, err := os.ReadFile(h.path(name))
	if err != nil {
		return ""
	}
	return string(b)
}

func (h *host) program(name, body string) {
	h.t.Helper()
	text := "#!/bin/sh\necho " + name + " \"$@\" >>DIR/calls\n" + body + "\n"
	h.write("bin/"+name, strings.ReplaceAll(text, "DIR", h.dir))
	os.Chmod(h.path("bin/"+name), 0o755)
}

// scripts writes empty scripts, older than anything that is compiled.
func (h *host) scripts(names ...string) {
	for _, n := range names {
		h.write("script.d/"+n+".stp", "probe begin {}")
		h.age(n)
	}
}

func (h *host) age(name string) {
	old := time.Now().Add(-time.Hour)
	os.Chtimes(h.path("script.d/"+name+".stp"), old, old)
}

// do runs a command and checks its exit code. It returns what it printed, and
// which programs it called since the last time.
func (h *host) do(code int, args ...string) (out, calls string) {
	h.t.Helper()
	os.Remove(h.path("calls"))
	config := h.config
	if config == "" {
		config = "config"
	}
	var stdout, stderr bytes.Buffer
	m := &manager{
		inv: &invocation.Invocation{
			Name: "systemtap", Args: append(args, "-c", h.path(config)), Environ: []string{"PATH=" + os.Getenv("PATH"), "HOME=/root"},
			Dir: h.dir, Stdin: strings.NewReader(h.stdin), Stdout: &stdout, Stderr: &stderr,
		},
		proc: h.path("proc"), stap: []string{h.path("bin/stap"), "stap"}, staprun: h.path("bin/staprun"),
		pause: 100 * time.Millisecond, now: time.Now, kernel: h.kernel,
		kill: func(pid int, _ unix.Signal) error {
			h.write("calls", h.read("calls")+fmt.Sprintf("kill %d\n", pid))
			os.RemoveAll(h.path(fmt.Sprintf("proc/%d", pid)))
			h.write("proc/modules", "")
			return nil
		},
	}
	got := m.run(context.Background())
	out = stdout.String() + stderr.String()
	if got != code {
		h.t.Errorf("systemtap %q: status %d, want %d\n%s", args, got, code, out)
	}
	return out, strings.ReplaceAll(h.read("calls"), h.dir, "DIR")
}

// started are the scripts that a list of calls starts, in order.
func started(calls string) string { return words(calls, "staprun -L ") }

func words(calls, prefix string) string {
	var out []string
	for line := range strings.Lines(calls) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			rest = strings.TrimSpace(rest[strings.LastIndex(rest, "/")+1:])
			out = append(out, strings.TrimSuffix(rest, ".ko"))
		}
	}
	return strings.Join(out, " ")
}

func (h *host) wants(what, got string, parts ...string) {
	h.t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			h.t.Errorf("%s lacks %q:\n%s", what, p, got)
		}
	}
}

// Check 11, B-41.
// Requirements: R-002-001..003 R-002-006..007 R-002-013..014 R-002-017..018 R-002-031..032 R-002-042 R-002-061 R-002-074..076 A-11 B-41
func TestDependencies(t *testing.T) {
	h := newHost(t, "a_REQ='b c'\nb_REQ=d\nc_REQ=d\n")
	h.scripts("a", "b", "c", "d")
	_, calls := h.do(0, "start")
	if got := started(calls); got != "d b c a" {
		t.Errorf("started %q, want d b c a", got)
	}
	if _, calls := h.do(0, "start"); calls != "" {
		t.Errorf("the second start does something:\n%s", calls)
	}
	_, calls = h.do(0, "stop")
	if got := words(calls, "staprun -d "); got != "a c b d" {
		t.Errorf("stopped %q, want a c b d", got)
	}
	_, calls = h.do(0, "start", "-R", "b")
	if got := started(calls); got != "d b" {
		t.Errorf("started %q, want d b", got)
	}
	_, calls = h.do(0, "start", "a.stp")
	if got := started(calls); got != "a" {
		t.Errorf("started %q, want a", got)
	}
	// b and its requirement d, which a needs no more than c does.
	h.do(0, "start", "c")
	_, calls = h.do(0, "stop", "-R", "b")
	if got := words(calls, "staprun -d "); got != "b" {
		t.Errorf("stopped %q, want b; c requires d", got)
	}
	// Named, it stops, whoever requires it.
	if _, calls = h.do(0, "stop", "d.stp"); words(calls, "staprun -d ") != "d" {
		t.Errorf("got %q, want d", calls)
	}
	h.do(0, "start", "d")
	_, calls = h.do(0, "restart")
	if got := words(calls, "staprun -d ") + " / " + started(calls); got != "a c d / d b c a" {
		t.Errorf("restart: %q", got)
	}
	h.write("conf.d/loop.conf", "d_REQ=a\n")
	if out, _ := h.do(0, "status"); !strings.Contains(out, "d is running...\n  requires: a (running)\n") {
		t.Errorf("status with a loop:\n%s", out)
	}
	if out, calls := h.do(0, "stop"); strings.Count(calls, "staprun -d") != 4 || !strings.Contains(out, "Warning: Dependency loop detected on a") {
		t.Errorf("stop with a loop: %q\n%s", calls, out)
	}
	out, calls := h.do(6, "start")
	if calls != "" {
		t.Errorf("in spite of a loop:\n%s", calls)
	}
	h.wants("output", out, "Dependency loop detected on a (a -> b -> d -> a)", "Failed to sort dependency\nFAILED\n")
}

// Check 12, B-42, B-43.
// Requirements: R-002-008 R-002-016 R-002-058..059 R-002-081 A-12 B-42 B-43
func TestPassAll(t *testing.T) {
	for _, passall := range []string{"no", "yes"} {
		h := newHost(t, "PASSALL="+passall+"\nb_REQ=a\nc_REQ=b\n")
		h.scripts("a", "b", "c", "d")
		h.write("refuse.a", "")
		if passall == "yes" {
			out, calls := h.do(1, "start")
			if got := started(calls); got != "a" {
				t.Errorf("started %q", got)
			}
			h.wants("output", out, "Key was rejected by service; hint: mokutil", `Failed to run "a". (3)`, "\nFAILED\n")
			continue
		}
		out, calls := h.do(0, "start")
		if got := started(calls); got != "a d" {
			t.Errorf("started %q, want a (in vain) and d", got)
		}
		h.wants("output", out, ` Starting a ... error`, `Skipping "b": required script "a" is not running`, `Skipping "c": required script "b" is not running`, "\nWARNING\n")
		h.wants("log", h.read("log"), `Failed to run "a". (3)`, "Warning: 1 failure occurred.", "Warning: systemtap startup", "Key was rejected")
		if out, _ := h.do(0, "status"); !strings.Contains(out, "d is running...\n") || !strings.Contains(out, "b is stopped\n  requires: a (stopped)\n") {
			t.Errorf("status:\n%s", out)
		}
	}
}

// Check 13.
// Requirements: R-002-009..012 R-002-062..063 R-002-088 A-13
func TestRecompile(t *testing.T) {
	h := newHost(t, "a_OPT=-g\n")
	h.scripts("a")
	compiles := func(want bool, why string) {
		t.Helper()
		_, calls := h.do(0, "start")
		if got := strings.Contains(calls, "stap -E"); got != want || started(calls) != "a" {
			t.Errorf("%s: compiled %v, want %v:\n%s", why, got, want, calls)
		}
		h.do(0, "stop")
	}
	compiles(true, "no cache")
	compiles(false, "nothing changed")
	now := time.Now().Add(time.Minute)
	os.Chtimes(h.path("script.d/a.stp"), now, now)
	compiles(true, "a newer script")
	h.age("a")
	compiles(false, "an older script")
	h.write("conf.d/a.conf", "a_OPT='-g -DX=1'\n")
	compiles(true, "other options")
	compiles(false, "the same options")
	h.write("conf.d/a.conf", "a_OPT='-g -DX=1 -s 4 -x 1'\n")
	if _, calls := h.do(0, "start"); strings.Contains(calls, "stap -E") {
		t.Errorf("options of staprun compile:\n%s", calls)
	}
	h.do(0, "stop")
	h.kernel.Uname, h.kernel.Version = strings.Replace(h.kernel.Uname, "#1", "#2", 1), "#2 SMP"
	h.write("conf.d/a.conf", "a_OPT='-g -DX=1'\n")
	compiles(true, "a kernel that was built again")
	compiles(false, "the same kernel")
	os.Remove(h.path("cache/" + release + "/a.opts"))
	compiles(true, "no record")
	h.write("cache/"+release+"/a.ko", string(moduleFor("5.10")))
	compiles(true, "a module of another kernel")
	h.write("conf.d/a.conf", "a_OPT=-u\nAUTOCOMPILE=no\n")
	out, calls := h.do(1, "start")
	if calls != "" {
		t.Errorf("in spite of AUTOCOMPILE=no:\n%s", calls)
	}
	h.wants("output", out, "No valid cache for a: the options were \"-g -D X=1 --\" and are \"-u --\"", `Failed to run "a". (1)`)
}

// Check 14, B-40. The other kernel's module is of the release that stap is asked
// for.
// Requirements: R-002-020..021 R-002-044 R-002-066 R-002-089..094 A-14 B-40
func TestPrepareForKernel(t *testing.T) {
	const next = "6.2.0-1-test"
	h := newHost(t, "conf_OPT=-g\nb_REQ=a\n")
	h.scripts("a", "b")
	h.write("module", string(moduleFor(next)))
	out, calls := h.do(0, "compile", "-r", next, "-y")
	h.wants("output", out, "  a: ready for "+next+"\n", "  b: ready for "+next+"\n", "OK\n")
	h.wants("calls", calls, "-m a -p4 -r "+next)
	h.wants("record", h.read("cache/"+next+"/a.opts"), h.kernel.Uname+"\ntarget="+next+" x86_64\nstap=", "\n--\n")

	h.write("conf.d/group1", "a_OPT=-g\nb_REQ=a\n")
	h.do(0, "compile", "-r", next, "-y", "a")
	out, _ = h.do(0, "export", "-r", next, "caches.tar.gz")
	h.wants("output", out, next+"/a.ko\n", next+"/b.opts\n", "group1\n")

	other := newHost(t, "AUTOCOMPILE=no\nALLOW_CACHEONLY=yes\n")
	other.kernel = scriptcache.Kernel{Uname: "Linux there " + next + " #9 x86_64 GNU/Linux", Release: next, Machine: "x86_64", Node: "there", Version: "#9"}
	other.write("in.tar.gz", h.read("caches.tar.gz"))
	other.do(0, "import", "in.tar.gz")
	out, calls = other.do(0, "start")
	if calls := started(calls); calls != "a b" {
		t.Errorf("started %q:\n%s", calls, out)
	}
	other.wants("output", out, "Warning: no script file("+other.path("script.d/a.stp")+"). Use compiled cache.\n")

	// The same host after the change of its kernel.
	h.kernel = scriptcache.Kernel{Uname: "Linux here " + next + " #2 x86_64 GNU/Linux", Release: next, Machine: "x86_64", Node: "here", Version: "#2"}
	if _, calls = h.do(0, "start"); strings.Contains(calls, "stap -E") || started(calls) != "a b" {
		t.Errorf("after the change of the kernel:\n%s", calls)
	}
	if out, _ := h.do(3, "start", "-r", release); !strings.Contains(out, "-r selects another one for compile, cleanup, export and import only") {
		t.Errorf("C-30: %s", out)
	}
	h.do(0, "stop", "-r", next)
}

func TestCompileTellsWhatWouldFail(t *testing.T) {
	const next = "6.2.0-1-test"
	h := newHost(t, "DEFAULT_START='b c'\nc_OPT='-o /x -c ls'\nd_OPT=--nothing\n")
	h.scripts("a", "b", "c", "d")
	h.write("script.d/b.stp", "broken")
	h.write("module", string(moduleFor(next)))
	out, _ := h.do(1, "compile", "-r", next, "-y")
	h.wants("output", out, "  a: ready for "+next+" (not started by default)\n",
		"  b: would fail on "+next+": parse error: broken at", "  c: would fail on "+next+": Failed to parse parameters. (-o needs",
		"  d: would fail on "+next+": Failed to parse parameters. (unrecognized option '--nothing') (not started by default)\n", "\nFAILED\n")
	h.write("conf.d/a.conf", "DEFAULT_START=a\n")
	h.do(0, "compile", "-r", next, "-y")
	h.write("module", string(moduleFor(release)))
	if out, _ := h.do(1, "compile", "-r", next, "-y", "a"); !strings.Contains(out, `stap made a module for kernel "`+release+`", not "`+next+`"`) {
		t.Errorf("got %s", out)
	}
	if out, _ := h.do(3, "compile", "-r", "../x"); !strings.Contains(out, "FAILED") {
		t.Errorf("got %s", out)
	}
}

// Check 15, B-44, B-48, B-51.
// Requirements: R-002-047 R-002-050..051 R-002-068..073 A-15 B-44 B-45 B-48 B-51 C-18
func TestOptionsReachPrograms(t *testing.T) {
	h := newHost(t, `a_OPT="-g -DA=1 -o /x -s 4 -S 10,2 -x 42 -vF"`+"\n"+`b_OPT='-c "echo \$x" -D "S=a b" -- p=1'`+"\nc_OPT='-o out-%Y --use-server=h:1 --save-uprobes'\nSERVER_FALLBACK=no\n")
	h.scripts("a", "b", "c")
	_, calls := h.do(0, "start", "a")
	h.wants("calls", calls, "-m a -p4 -r "+release+" -g -D A=1 -v -- DIR/script.d/a.stp\n", "\nstaprun -o /x -b 4 -S 10,2 -x 42 -D DIR/cache/"+release+"/a.ko\n")
	if got := h.read("cache/" + release + "/a.opts"); !strings.HasSuffix(got, "\n-g -D A=1 -v --\n") {
		t.Errorf("record %q", got)
	}
	if got := h.read("run/a"); got != "4242\n" {
		t.Errorf("status file %q", got)
	}
	_, calls = h.do(0, "start", "b", "c")
	h.wants("calls", calls, "-D S=a b -- DIR", "staprun -c echo $x -L DIR/cache/"+release+"/b.ko p=1\n",
		"-p4 -r "+release+" --use-server=h:1 -- DIR", "staprun -o DIR/systemtap/out-%Y -D DIR/cache")
	h.wants("log", h.read("log"), `Exec: `, `'S=a b'`, `'echo $x'`)
	h.write("conf.d/x.conf", "SERVER_FALLBACK=yes SRVSTAT=no\nb_OPT=--privilege=stapusr\n")
	_, calls = h.do(0, "compile", "-y", "a", "b")
	h.wants("calls", calls, "stap -m a -p4 -r "+release+" --use-server-on-error -g", "stap -m b -p4 -r "+release+" --use-server-on-error --privilege stapusr --")
	// NAME.options in place of NAME_OPT.
	h.write("script.d/e.options", "STAP_OPTIONS=\"-g -DX='1 2'\"\nSTAPRUN_OPTIONS='-b 8 -o /e'\n")
	h.scripts("e")
	_, calls = h.do(0, "start", "e")
	h.wants("calls", calls, "-g -D X=1 2 -- DIR", "staprun -b 8 -o /e -D DIR")
	// B-45: refused before anything starts.
	h.write("conf.d/x.conf", "d_OPT='-o /x -c ls'\n")
	h.scripts("d")
	out, calls := h.do(1, "start", "d")
	if calls != "" {
		t.Errorf("calls:\n%s", calls)
	}
	h.wants("output", out, "'-D' and '-c'", `Failed to run "d". (2)`)
}

// Check 16.
// Requirements: R-002-022..026 R-002-035 R-002-085..087 A-16 C-22
func TestRemovedScripts(t *testing.T) {
	h := newHost(t, "a_REQ=b\n")
	h.scripts("a", "b")
	h.do(0, "start")
	os.Remove(h.path("script.d/a.stp"))
	h.write("config", strings.Replace(h.read("config"), "a_REQ=b\n", "", 1))
	_, calls := h.do(0, "stop", "a")
	if got := words(calls, "staprun -d "); got != "a" {
		t.Errorf("stopped %q", got)
	}
	before := h.read("cache/" + release + "/a.ko")
	out, _ := h.do(0, "cleanup", "a") // standard input is at its end
	if !strings.HasPrefix(out, "Cleaning up systemtap scripts: Removing caches: a.ko a.opts\nDo you really want to remove above caches [y/N]: ") || h.read("cache/"+release+"/a.ko") != before {
		t.Errorf("the end of the input is no answer:\n%s", out)
	}
	for _, answer := range []string{"\n", "n\n", "perhaps\nno\n"} {
		h.stdin = answer
		if h.do(0, "cleanup", "a"); h.read("cache/"+release+"/a.ko") == "" {
			t.Errorf("%q removes", answer)
		}
	}
	h.stdin = "perhaps\nYes\n"
	out, _ = h.do(0, "cleanup", "a")
	if h.read("cache/"+release+"/a.ko") != "" || strings.Count(out, "[y/N]") != 2 || !strings.HasSuffix(out, "done OK\n") {
		t.Errorf("yes does not remove:\n%s", out)
	}
	h.stdin = ""
	if out, _ := h.do(0, "compile", "b"); !strings.Contains(out, "Updating caches: b.ko b.opts\nDo you really want to update above caches [y/N]: ") {
		t.Errorf("compile does not ask:\n%s", out)
	}
	if out, calls := h.do(0, "compile", "-y"); strings.Contains(out, "[y/N]") || !strings.Contains(calls, "-m b") {
		t.Errorf("-y asks:\n%s", out)
	}
	// C-22: what has no script is removed too.
	h.write("cache/"+release+"/orphan.ko", "x")
	if out, _ := h.do(0, "cleanup", "-y"); strings.Contains(out, "[y/N]") || h.read("cache/"+release+"/orphan.ko") != "" {
		t.Errorf("got %s", out)
	}
	if out, _ := h.do(0, "cleanup", "-y"); out != "Cleaning up systemtap scripts: no cache OK\n" {
		t.Errorf("got %q", out)
	}
}

// B-49: the module of old releases stays while a script needs it.
// Requirements: B-49
func TestCleanupKeepsUprobes(t *testing.T) {
	h := newHost(t, "")
	dir := "cache/" + release + "/"
	for _, f := range []string{"a.ko", "a.uprobes", "b.ko", "b.uprobes", "uprobes/uprobes.ko"} {
		h.write(dir+f, "x")
	}
	h.do(0, "cleanup", "-y", "a")
	if h.read(dir+"uprobes/uprobes.ko") == "" || h.read(dir+"a.uprobes") != "" {
		t.Error("b needs it")
	}
	h.do(0, "cleanup", "-y", "b")
	if h.read(dir+"uprobes/uprobes.ko") != "" {
		t.Error("nobody needs it")
	}
}

// B-46: what stop does when things are not as they were left.
// Requirements: B-46
func TestStop(t *testing.T) {
	h := newHost(t, "a_OPT='-o /x'\n")
	h.scripts("a", "b")
	h.do(0, "start", "a")
	if _, calls := h.do(0, "stop", "a"); calls != "kill 4242\n" || h.read("run/a") != "" {
		t.Errorf("calls %q", calls)
	}
	// stapio was killed, the module stays.
	h.do(0, "start", "a")
	os.RemoveAll(h.path("proc/4242"))
	if _, calls := h.do(0, "stop", "a"); calls != "staprun -d a\n" {
		t.Errorf("calls %q", calls)
	}
	// The pid is another process's by now.
	h.do(0, "start", "a")
	h.write("proc/4242/comm", "sshd\n")
	if _, calls := h.do(0, "stop", "a"); calls != "staprun -d a\n" {
		t.Errorf("calls %q", calls)
	}
	// It is another script's stapio.
	h.do(0, "start", "a")
	h.write("proc/4242/cmdline", "stapio\x00-o\x00x\x00/c/b.ko\x00")
	if _, calls := h.do(0, "stop", "a"); calls != "staprun -d a\n" {
		t.Errorf("calls %q", calls)
	}
	// Somebody else's module.
	h.write("proc/modules", "b 1 0 - Live\n")
	if out, calls := h.do(1, "stop", "b"); calls != "" || !strings.Contains(out, "the service did not start it") {
		t.Errorf("calls %q:\n%s", calls, out)
	}
	if out, _ := h.do(1, "start", "b"); !strings.Contains(out, "b is dead, but another script is running.") {
		t.Errorf("got %s", out)
	}
	if out, _ := h.do(4, "status", "b"); out != "b is dead, but another script is running.\n" {
		t.Errorf("got %q", out)
	}
	if _, calls := h.do(0, "stop", "-y", "b"); calls != "staprun -d b\n" {
		t.Errorf("calls %q", calls)
	}
	// A module that does not go.
	h.do(0, "start", "b")
	h.program("staprun", "exit 0")
	out, calls := h.do(1, "stop", "b")
	h.wants("output", out, `Failed to stop script "b" after 10 attempts`, `Failed to stop "b". `)
	if n := strings.Count(calls, "staprun -d b"); n != 10 {
		t.Errorf("%d attempts", n)
	}
	h.do(0, "stop", "nothing")
}

// Requirements: R-002-015 R-002-019 R-002-049 C-21
func TestStatus(t *testing.T) {
	h := newHost(t, "a_REQ='b c'\na_OPT='-o /tmp/x'\n")
	if out, _ := h.do(3, "status"); out != "No systemtap scripts are present\n" {
		t.Errorf("got %q", out)
	}
	h.scripts("a", "b", "c")
	if out, _ := h.do(3, "status"); out != "a is stopped\n  requires: b (stopped), c (stopped)\nb is stopped\nc is stopped\n" {
		t.Errorf("got %q", out)
	}
	h.do(0, "start", "a", "b")
	if out, _ := h.do(0, "status"); out != "a(4242) is running...\n  requires: b (running), c (stopped)\nb is running...\nc is stopped\n" {
		t.Errorf("got %q", out)
	}
	out, _ := h.do(0, "status", "--json", "a")
	h.wants("json", out, `"name": "a"`, `"state": "running"`, `"pid": 4242`, `"output": "/tmp/x"`, `"requires": [`)
	h.write("proc/modules", "")
	h.do(1, "status", "a")
	h.do(3, "status", "c")
	h.do(0, "stop", "c")
}

// B-53.
// Requirements: B-53
func TestCondrestart(t *testing.T) {
	h := newHost(t, "b_REQ=a\n")
	h.scripts("a", "b", "c")
	if out, calls := h.do(0, "condrestart"); out != "" || calls != "" {
		t.Errorf("got %q, %q", out, calls)
	}
	h.do(0, "start", "a", "b")
	_, calls := h.do(0, "try-restart")
	if got := words(calls, "staprun -d ") + " / " + started(calls); got != "b a / a b" {
		t.Errorf("got %q", got)
	}
	if _, calls := h.do(0, "condrestart", "c"); calls != "" {
		t.Errorf("got %q", calls)
	}
}

func TestLogs(t *testing.T) {
	h := newHost(t, "b_OPT='-o /x'\n")
	h.scripts("a", "b")
	if out, _ := h.do(3, "logs", "a"); !strings.Contains(out, "a is not running") {
		t.Errorf("got %q", out)
	}
	h.do(0, "start")
	if out, _ := h.do(0, "logs", "a"); out != "attached to a\n" {
		t.Errorf("got %q", out)
	}
	if out, _ := h.do(1, "logs", "b"); !strings.Contains(out, "b writes to /x") {
		t.Errorf("got %q", out)
	}
	h.do(3, "logs")
}

// Requirements: R-002-064
func TestEnable(t *testing.T) {
	h := newHost(t, "")
	h.scripts("a", "b")
	for _, tt := range []struct{ command, want string }{
		{"enable a", "nothing to do: all scripts start by default\n"},
		{"disable a", "by default start: b\n"},
		{"disable a", "nothing to do: by default start: b\n"},
		{"disable b", "no script starts by default\n"},
		{"enable b", "by default start: b\n"},
		{"enable a", "by default start: b a\n"},
	} {
		if out, _ := h.do(0, strings.Fields(tt.command)...); out != tt.want {
			t.Errorf("%s: got %q, want %q", tt.command, out, tt.want)
		}
		if tt.command == "disable b" {
			if out, _ := h.do(0, "start"); out != "Starting systemtap: Warning: No scripts exist.\nWARNING\n" {
				t.Errorf("got %q", out)
			}
		}
	}
	if out, _ := h.do(1, "enable", "none"); !strings.Contains(out, "no script file(") {
		t.Errorf("got %q", out)
	}
	h.do(3, "enable")
	_, calls := h.do(0, "start", "-n")
	if calls != "" {
		t.Errorf("-n calls %q", calls)
	}
	if _, calls := h.do(0, "start"); started(calls) != "b a" {
		t.Errorf("got %q", calls)
	}
}

// Requirements: R-002-004..005
func TestUsage(t *testing.T) {
	h := newHost(t, "")
	for _, args := range [][]string{{}, {"fly"}, {"onboot"}, {"start", "--nothing"}, {"start", "-r"}, {"start", "-o", "x"}} {
		out, _ := h.do(3, args...)
		h.wants("output", out, "Usage: systemtap {start|stop|status|restart|compile|", "FAILED\n")
	}
	if out, _ := h.do(0, "--help"); !strings.HasPrefix(out, "Usage: ") {
		t.Errorf("got %q", out)
	}
	// The acceptance set of an empty installation.
	for _, tt := range []struct {
		code int
		args string
	}{{0, "stop"}, {0, "cleanup -y"}, {0, "start"}, {3, "status"}, {0, "restart"}, {0, "compile"}} {
		h.do(tt.code, strings.Fields(tt.args)...)
	}
}

// What is said without options counts as what they would say; -r and -c say it
// where the boot cannot, and names limit a command to them.
// Requirements: R-002-013 R-002-027..030 R-002-033..034 R-002-040 R-002-058 R-002-060..062 R-002-064..066 R-002-078 R-002-080 R-002-084
func TestNamesAndDefaults(t *testing.T) {
	h := newHost(t, "")
	h.write("conf.d/group.conf", "a_OPT='-DN=1'\nb_REQ=a b_OPT=-g\n")
	h.scripts("a", "b", "c")
	// Without names: all, with what they require first. Scripts are there when their
	// file is, options when theirs is.
	_, calls := h.do(0, "compile", "-y")
	if got := strings.Count(calls, "stap -E"); got != 3 {
		t.Errorf("compile is about %d scripts:\n%s", got, calls)
	}
	h.wants("calls", calls, "-m a -p4 -r "+release+" --use-server-on-error -D N=1 -- ", "-m b -p4 -r "+release+" --use-server-on-error -g -- ")
	h.do(0, "start", "b")
	if out, _ := h.do(0, "status"); !strings.Contains(out, "a is stopped\n") || !strings.Contains(out, "c is stopped\n") {
		t.Errorf("b alone was named: %s", out)
	}
	h.scripts("later")
	if _, calls := h.do(0, "start", "later"); started(calls) != "later" {
		t.Errorf("a script that came later: %s", calls)
	}
	for _, tt := range []struct {
		args, want string
		code       int
	}{
		{"status b", "b is running...\n  requires: a (stopped)\n", 0}, {"compile -y c", "-m c ", 0}, {"restart b", "staprun -d b\n", 0},
		{"stop later", "staprun -d later\n", 0}, {"cleanup -y c", "Removing caches: c.ko c.opts\n", 0},
	} {
		out, calls := h.do(tt.code, strings.Fields(tt.args)...)
		h.wants(tt.args, out+calls, tt.want)
		for _, other := range []string{"-m a ", "-m b ", "-d a", "a.ko", "later is", " b.opts"} {
			if strings.Contains(out, other) || strings.Contains(calls, other) && other != "-m b " {
				t.Errorf("%s is about %q too:\n%s%s", tt.args, other, out, calls)
			}
		}
	}
	h.do(0, "stop")
	// Every option of start has a setting that does as it does.
	for _, tt := range []struct{ config, start string }{
		{"", "a b c later"}, {"DEFAULT_START='c b'", "c a b"}, {"DEFAULT_START=", "a b c later"},
	} {
		h.write("conf.d/boot.conf", tt.config+"\n")
		if _, calls := h.do(0, "start"); started(calls) != tt.start {
			t.Errorf("%s: started %q, want %q", tt.config, started(calls), tt.start)
		}
		h.do(0, "stop")
	}
	for _, tt := range []struct{ config, start string }{{"RECURSIVE=yes", "a b"}, {"RECURSIVE=no", "b"}, {"", "b"}} {
		h.write("conf.d/boot.conf", tt.config+"\n")
		if _, calls := h.do(0, "start", "b"); started(calls) != tt.start {
			t.Errorf("%s: started %q, want %q", tt.config, started(calls), tt.start)
		}
		h.do(0, "stop")
	}
	os.Remove(h.path("script.d/later.stp"))
	for _, tt := range []struct{ config, start string }{{"ALLOW_CACHEONLY=yes", "a b c later"}, {"ALLOW_CACHEONLY=no", "a b c"}, {"", "a b c"}} {
		h.write("conf.d/boot.conf", tt.config+"\n")
		if _, calls := h.do(0, "start"); started(calls) != tt.start {
			t.Errorf("%s: started %q, want %q", tt.config, started(calls), tt.start)
		}
		h.do(0, "stop")
	}
	// -r is for compile and cleanup; elsewhere it may say what is so anyway.
	h.write("module", string(moduleFor("2.6.26.1")))
	if _, calls := h.do(0, "compile", "-r", "2.6.26.1", "a"); !strings.Contains(calls, "-p4 -r 2.6.26.1 ") || h.read("cache/2.6.26.1/a.ko") == "" {
		t.Errorf("compile -r: %s", calls)
	}
	h.do(0, "cleanup", "-y", "-r", "2.6.26.1")
	if h.read("cache/2.6.26.1/a.ko") != "" || h.read("cache/"+release+"/a.ko") == "" {
		t.Error("cleanup -r is about another kernel")
	}
	h.write("module", string(moduleFor(release)))
	for _, command := range []string{"start", "stop", "restart", "status", "condrestart"} {
		h.do(3, command, "-r", "2.6.26.1")
	}
	h.do(0, "start", "-r", release, "c")
	h.do(0, "stop", "-r", release)
	// -c takes the place of the other file, it does not come after it.
	h.write("other", strings.Replace(h.read("config"), "/run\n", "/else\n", 1)+"c_OPT=-u\n")
	h.config = "other"
	if _, calls := h.do(0, "start", "c"); !strings.Contains(calls, " -u -- ") || h.read("else/c") != "0\n" || h.read("run/c") != "" {
		t.Errorf("with -c: %s", calls)
	}
}

// B-47, B-50, B-52.
// Requirements: B-47 B-50 B-52
func TestHostileNamesAndConfiguration(t *testing.T) {
	h := newHost(t, "")
	h.scripts("a")
	h.write("script.d/-x.stp", "")
	h.write("script.d/Upper.stp", "")
	h.write("script.d/$(touch x).stp", "")
	for _, args := range [][]string{{"start", "--", "-x"}, {"start", "../a"}, {"start", "A"}, {"stop", "a b"}, {"cleanup", "-y", "../../x"}, {"start", "$(touch DIR)"}} {
		if out, calls := h.do(1, args...); calls != "" || !strings.Contains(out, "is not a valid script name") {
			t.Errorf("%q: %q\n%s", args, calls, out)
		}
	}
	if _, calls := h.do(0, "start"); started(calls) != "a" {
		t.Errorf("started %q", started(calls))
	}
	h.wants("log", h.read("log"), "-x is not a valid script name (must match [a-zA-Z_][a-zA-Z0-9_]*)", "Upper is not a valid script name (stap -m")
	h.write("conf.d/bad.conf", "a_REQ='../x'\n")
	h.do(6, "start", "-R", "a")
	for text, want := range map[string]string{
		"A=$(touch " + h.path("pwned") + ")\n": "belongs to root", "STAT_PATH=run\n": "not an absolute path", "A='\n": "line 1",
	} {
		h.write("conf.d/bad.conf", text)
		os.Chmod(h.path("conf.d/bad.conf"), 0o644)
		if want == "belongs to root" {
			os.Chmod(h.path("conf.d/bad.conf"), 0o666)
			if os.Geteuid() == 0 {
				want = "can be written by everybody"
			}
		}
		out, _ := h.do(6, "start")
		h.wants("output", out, want, "FAILED\n")
	}
	if h.read("pwned") != "" {
		t.Error("a configuration that others may write to was executed")
	}
	os.Remove(h.path("conf.d/bad.conf"))
	// C-14
	h.write("conf.d/group1", "a_OPT=-g # x\n")
	h.write("conf.d/group2", "PASSALL=no\n")
	h.write("conf.d/README.txt", "hello\n")
	if out, _ := h.do(0, "stop"); !strings.Contains(out, "group2 is not read: its name does not end in .conf") || strings.Contains(out, "group1") {
		t.Errorf("got %s", out)
	}
	os.Remove(h.path("config"))
	if out, _ := h.do(6, "status"); !strings.Contains(out, "Cannot read configuration file "+h.path("config")) {
		t.Errorf("got %s", out)
	}
}

// C-15: a shell reads what only a shell can, if root alone can have written it.
// Requirements: R-002-038 C-15
func TestShellConfiguration(t *testing.T) {
	if _, err := os.Stat(bash); err != nil {
		t.Skip("there is no " + bash)
	}
	vars := map[string]string{"A": "before", "Q": "it's"}
	if err := shellConfig(context.Background(), []byte("echo noise\nif true; then B=$(echo b); fi\nA+=\" $Q\"\na_OPT='-c \"x y\"\n'\n"), vars); err != nil {
		t.Fatal(err)
	}
	if vars["A"] != "before it's" || vars["B"] != "b" || vars["a_OPT"] != "-c \"x y\"\n" {
		t.Errorf("got %q %q %q", vars["A"], vars["B"], vars["a_OPT"])
	}
	for _, text := range []string{"exit 0", "if true"} {
		if err := shellConfig(context.Background(), []byte(text), vars); err == nil && text == "exit 0" {
			t.Errorf("%q is accepted", text)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs files of root")
	}
	h := newHost(t, "")
	h.scripts("a")
	h.write("conf.d/sh.conf", "for n in a; do eval ${n}_OPT=-g; done\n")
	_, calls := h.do(0, "start")
	h.wants("calls", calls, " -g -- ")
}

// Requirements: R-002-046..048
func TestLogLines(t *testing.T) {
	h := newHost(t, "PASSALL=perhaps\n")
	h.scripts("a")
	out, _ := h.do(0, "start")
	h.wants("output", out, `WARNING: PASSALL: "perhaps" is neither yes nor no, yes is used`, "Starting systemtap:  Compiling a ... done\n Starting a ... done\nOK\n")
	for line := range strings.Lines(h.read("log")) {
		if _, err := time.Parse("Jan _2 15:04:05", line[:min(15, len(line))]); err != nil && line != "a.ko\n" {
			t.Errorf("line %q: %v", line, err)
		}
	}
	h.wants("log", h.read("log"), ": Exec: stap -E 'probe procfs", ": Starting systemtap:  Compiling a ... done\n", ":  Starting a ... done\n", ": Pass: systemtap startup\n")
	if out, _ := h.do(0, "stop", "-q"); out != "" && !strings.HasPrefix(out, "systemtap: WARNING") {
		t.Errorf("-q says %q", out)
	}
}

// A module that was started before the service, such as by an initramfs.
func TestAdopt(t *testing.T) {
	h := newHost(t, "")
	h.scripts("a")
	h.do(0, "compile")
	h.write("proc/modules", "a 1 0 - Live\nb 1 0 - Live\n")
	h.write("proc/systemtap/a/srvstat", "running\n")
	h.write("proc/systemtap/b/srvstat", "running\n")
	if out, _ := h.do(0, "status", "a"); out != "a is running...\n" {
		t.Errorf("got %q", out)
	}
	h.do(4, "status", "b") // it has no cache: it is not ours
}

// Two commands at once work one after the other.
func TestLock(t *testing.T) {
	h := newHost(t, "")
	h.scripts("a", "b", "c", "d")
	done := make(chan bool)
	for range 3 {
		go func() {
			h.do(0, "start")
			done <- true
		}()
	}
	for range 3 {
		<-done
	}
	if got := strings.Count(h.read("proc/modules"), "\n"); got != 4 {
		t.Errorf("%d modules:\n%s", got, h.read("proc/modules"))
	}
}

// -n leaves nothing behind, neither a log nor a directory.
func TestDryRunLeavesNothing(t *testing.T) {
	h := newHost(t, "")
	h.scripts("a")
	if err := os.Remove(h.path("run")); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"start -n", "stop -n", "compile -n", "cleanup -n", "restart -n a", "enable -n a"} {
		h.do(0, strings.Fields(args)...)
	}
	for _, name := range []string{"run", "log", "conf.d/zz-default-start.conf", "cache/" + release} {
		if exists(h.path(name)) {
			t.Errorf("%s is there", name)
		}
	}
}

// Root loads no module that somebody else can have put into the cache.
func TestForeignCache(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a file of another user")
	}
	h := newHost(t, "")
	h.scripts("a")
	h.do(0, "compile")
	ko := h.path("cache/" + release + "/a.ko")
	dir := filepath.Dir(ko)
	for what, undo := range map[string]func(){
		"file":            func() { os.Chown(ko, 12345, 0) },
		"directory":       func() { os.Chown(dir, 12345, 0) },
		"world":           func() { os.Chmod(h.path("cache"), 0o777) },
		"group":           func() { os.Chown(dir, 0, 12345); os.Chmod(dir, 0o775) },
		"writable module": func() { os.Chmod(ko, 0o666) },
	} {
		undo()
		out, calls := h.do(1, "start", "a")
		if calls != "" || !strings.Contains(out, "is not loaded: ") || !strings.Contains(out, "hint: ch") {
			t.Errorf("%s: calls %q:\n%s", what, calls, out)
		}
		for path, mode := range map[string]os.FileMode{ko: 0o644, dir: 0o755, h.path("cache"): 0o755} {
			os.Chown(path, 0, 0)
			os.Chmod(path, mode)
		}
	}
	h.do(0, "start", "a")
}

// Root compiles no script, and reads no options and no configuration, that somebody
// else may have written: the module would be root's, with the other's code in it.
func TestSecurity06ForeignInputs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a file of another user")
	}
	h := newHost(t, "")
	h.scripts("a")
	h.write("script.d/a.options", "STAP_OPTIONS=\"-g\"\n")
	h.write("conf.d/zz.conf", "a_REQ=\n")
	h.write("conf.d/group1", "a_OPT=-w\n")
	link := h.path("script.d/b.stp")
	h.write("elsewhere/b.stp", "")
	if err := os.Symlink(h.path("elsewhere/b.stp"), link); err != nil {
		t.Fatal(err)
	}
	foreign := func(path string) func() { return func() { os.Chown(path, 12345, 0) } }
	open := func(path string) func() { return func() { os.Chmod(path, 0o666) } }
	for _, tt := range []struct {
		name string
		make func()
		file string // named by the message
		code int
		args string
		want string
	}{
		{"script", foreign(h.path("script.d/a.stp")), "script.d/a.stp", 1, "compile -y a", "is not compiled: "},
		{"script for all to write", open(h.path("script.d/a.stp")), "script.d/a.stp", 1, "compile -y a", "is not compiled: "},
		{"script, by start", foreign(h.path("script.d/a.stp")), "script.d/a.stp", 1, "start -R a", "is not compiled: "},
		{"directory of scripts", foreign(h.path("script.d")), "script.d", 1, "compile -y a", "is not "},
		{"target of a link", foreign(h.path("elsewhere/b.stp")), "elsewhere/b.stp", 1, "compile -y b", "is not compiled: "},
		{"options", foreign(h.path("script.d/a.options")), "script.d/a.options", 1, "compile -y a", "is not read: "},
		{"options for all to write", open(h.path("script.d/a.options")), "script.d/a.options", 1, "compile -y a", "is not read: "},
		{"config", foreign(h.path("config")), "config", 6, "compile -y a", "Cannot read configuration file "},
		{"conf.d", foreign(h.path("conf.d/zz.conf")), "conf.d/zz.conf", 6, "compile -y a", "Cannot read configuration file "},
		{"conf.d for all to write", open(h.path("conf.d/zz.conf")), "conf.d/zz.conf", 6, "compile -y a", "Cannot read configuration file "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.file == "script.d/a.options" {
				os.Rename(h.path("conf.d/group1"), h.path("group1"))
				defer os.Rename(h.path("group1"), h.path("conf.d/group1"))
			}
			path := h.path(tt.file)
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			defer os.Chmod(path, st.Mode())
			defer os.Chown(path, 0, 0)
			tt.make()
			out, calls := h.do(tt.code, strings.Fields(tt.args)...)
			if calls != "" || !strings.Contains(out, tt.want) || !strings.Contains(out, path) || !strings.Contains(out, "hint: ch") {
				t.Errorf("calls %q, want %q:\n%s", calls, tt.want, out)
			}
			if exists(h.path("cache/" + release + "/a.ko")) {
				t.Error("there is a module")
			}
		})
	}
	// A file of options without .conf is left out.
	group := h.path("conf.d/group1")
	if err := os.Chown(group, 12345, 0); err != nil {
		t.Fatal(err)
	}
	if out, calls := h.do(0, "compile", "-y", "a"); strings.Contains(calls, " -w") || !strings.Contains(out, group+" is not read: ") || !strings.Contains(out, "hint: ch") {
		t.Errorf("calls %q:\n%s", calls, out)
	}
	if err := os.Chown(group, 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, calls := h.do(0, "compile", "-y", "a"); !strings.Contains(calls, " -w") {
		t.Errorf("root's options are not used: calls %q", calls)
	}
	// Nothing of it leaves the host either.
	defer os.Chown(h.path("cache/"+release+"/a.ko"), 0, 0)
	os.Chown(h.path("cache/"+release+"/a.ko"), 12345, 0)
	if out, _ := h.do(1, "export", h.path("archive")); !strings.Contains(out, "is not exported: ") || exists(h.path("archive")) {
		t.Errorf("export:\n%s", out)
	}
}

// An archive takes no device's place.
func TestExportToNoFile(t *testing.T) {
	h := newHost(t, "")
	h.scripts("a")
	h.do(0, "compile")
	if err := unix.Mkfifo(h.path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := h.do(1, "export", h.path("fifo")); !strings.Contains(out, "is no regular file") {
		t.Errorf("got %q", out)
	}
	if st, err := os.Lstat(h.path("fifo")); err != nil || st.Mode().IsRegular() {
		t.Errorf("replaced: %v, %v", st, err)
	}
}

func TestImportRefuses(t *testing.T) {
	h := newHost(t, "")
	for name, files := range map[string][]scriptcache.File{
		"is for kernel":    {{Release: "6.9", Name: "a.ko", Data: moduleFor("5.10")}},
		"not a kernel mod": {{Release: "6.9", Name: "a.ko", Data: []byte("x")}},
		"two lines":        {{Release: "6.9", Name: "a.opts", Data: []byte("x")}},
		"shell":            {{Name: "a.conf", Data: []byte("A=$(id)")}},
	} {
		var b bytes.Buffer
		if err := scriptcache.WriteArchive(&b, files); err != nil {
			t.Fatal(err)
		}
		h.write("in", b.String())
		if out, _ := h.do(1, "import", "in"); !strings.Contains(out, name) {
			t.Errorf("%s: got %q", name, out)
		}
	}
	h.write("in", "no archive")
	h.do(1, "import", "in")
	h.do(1, "import", "none")
	h.do(3, "import")
	h.do(1, "export", "out")
	var b bytes.Buffer
	if err := scriptcache.WriteArchive(&b, []scriptcache.File{{Name: "a.conf", Data: []byte("a_OPT=-g\n"), Time: time.Now()}}); err != nil {
		t.Fatal(err)
	}
	h.write("in", b.String())
	h.write("conf.d/a.conf", "a_OPT=-u\n")
	h.do(0, "import", "in") // the end of the input is no
	if got := h.read("conf.d/a.conf"); got != "a_OPT=-u\n" {
		t.Errorf("overwritten without an answer: %q", got)
	}
	h.do(0, "import", "-y", "in")
	if got := h.read("conf.d/a.conf"); got != "a_OPT=-g\n" {
		t.Errorf("got %q", got)
	}
}
