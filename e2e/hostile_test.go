package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// TestHostileSurroundings runs staprun in surroundings that its caller has
// prepared, once with a module it must load and once with one it must refuse,
// and compares exit status, output and the files opened before stapio takes over
// with a run in clean surroundings.
func TestHostileSurroundings(t *testing.T) {
	// The gate is the same on every kernel: they take turns.
	onKernels(t, func(t *testing.T, s *scene) {
		s.watchOpens(t)
		id, _ := signers(t)
		good := module(t, s.kernel, "stapusr", hello)
		s.forgetSigners(t)
		s.trustSigner(t, id)
		defer s.forgetSigners(t)
		s.put(t, "/tmp/good.ko", lab.Root, 0o644, good)
		s.put(t, "/tmp/good.ko.sgn", lab.Root, 0o644, sign(t, good, id))
		s.put(t, "/tmp/unsigned.ko", lab.Root, 0o644, good)
		s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/elsewhere /tmp/evil; mkdir /tmp/elsewhere /tmp/evil; ln -s /usr/bin/staprun /tmp/elsewhere/staprun; ln /usr/bin/staprun /tmp/evil/staprun 2>/dev/null || ln -s /usr/bin/staprun /tmp/evil/staprun; chmod 777 /tmp/evil; cp /bin/busybox /tmp/evil/stapio; cp /bin/busybox /tmp/evil/sh"))

		staprun := func(file string) request.Request {
			return lab.Command(lab.Usr, "staprun", file)
		}
		clean := map[string]request.Answer{}
		files := map[string][]string{}
		for _, f := range []string{"/tmp/good.ko", "/tmp/unsigned.ko"} {
			clean[f], files[f] = s.opened(t, staprun(f))
		}
		want(t, clean["/tmp/good.ko"], 0, "Hello\n")
		want(t, clean["/tmp/unsigned.ko"], 255, "")
		if n := len(files["/tmp/good.ko"]); n < 5 || !slices.Contains(files["/tmp/good.ko"], "/tmp/good.ko") {
			t.Fatalf("the trace of a clean run shows %d files: %v", n, files["/tmp/good.ko"])
		}

		env := func(set ...string) func(*request.Request) {
			return func(r *request.Request) { r.Env = append(set, r.Env...) }
		}
		all := make([]int, 0, 31)
		for n := 1; n < 32; n++ {
			if n != 9 && n != 19 {
				all = append(all, n)
			}
		}
		for i, tt := range []struct {
			name   string
			change func(*request.Request)
		}{
			{"a link of the same name elsewhere", func(r *request.Request) { r.Path = "/tmp/elsewhere/staprun" }},
			{"a hard link of the same name in a directory of everybody's", func(r *request.Request) { r.Path, r.Argv[0] = "/tmp/evil/staprun", "/tmp/evil/staprun" }},
			{"GODEBUG", env("GODEBUG=inittrace=1,gctrace=1,netdns=cgo,zipinsecurepath=0,x509sha1=1,rsa1024min=0,asyncpreemptoff=1")},
			{"GOMAXPROCS", env("GOMAXPROCS=1")},
			{"GOTRACEBACK and GOGC", env("GOTRACEBACK=crash", "GOGC=1", "GOMEMLIMIT=1")},
			{"PATH", env("PATH=/tmp/evil", "SYSTEMTAP_STAPIO=/tmp/evil/stapio", "SYSTEMTAP_RUNTIME=/tmp/evil")},
			{"IFS, ENV and friends", env("IFS=/", "ENV=/tmp/evil/rc", "BASH_ENV=/tmp/evil/rc", "CDPATH=/tmp/evil", "LD_PRELOAD=/tmp/evil/x.so", "MODPROBE_OPTIONS=-C/tmp/evil")},
			{"TZ", env("TZ=/tmp/evil/zone", "ZONEINFO=/tmp/evil")},
			{"an empty environment", func(r *request.Request) { r.Env = []string{} }},
			{"a variable without a name", env("=x", "novalue", "A=\xff")},
			{"closed descriptor 0", func(r *request.Request) { r.Closed = []int{0} }},
			{"closed descriptors 0 to 2", func(r *request.Request) { r.Closed = []int{0, 1, 2} }},
			{"a low limit of file sizes", func(r *request.Request) { r.Limits = map[string]uint64{"fsize": 30000} }},
			{"few descriptors", func(r *request.Request) { r.Limits = map[string]uint64{"nofile": 16} }},
			{"no descriptor to spare", func(r *request.Request) { r.Limits = map[string]uint64{"nofile": 3} }},
			{"no core file, few processes", func(r *request.Request) { r.Limits = map[string]uint64{"core": 0, "nproc": 40} }},
			{"all signals blocked", func(r *request.Request) { r.Blocked = all }},
			{"all signals ignored", func(r *request.Request) { r.Ignored = all }},
			{"personality UNAME26", func(r *request.Request) { r.Personality = 0x0020000 }},
			{"personality without random addresses, pages executable", func(r *request.Request) { r.Personality = 0x0040000 | 0x0400000 }},
		} {
			if !s.turn(i) {
				continue
			}
			t.Run(tt.name, func(t *testing.T) {
				for file, plain := range clean {
					r := staprun(file)
					tt.change(&r)
					got, names := s.opened(t, r)
					if got.Status != plain.Status {
						t.Errorf("%s: status %d, stderr %q; clean it is %d", file, got.Status, got.Stderr, plain.Status)
					}
					if string(got.Stdout) != string(plain.Stdout) && !slices.Contains(r.Closed, 1) {
						t.Errorf("%s: stdout %q; clean it is %q", file, got.Stdout, plain.Stdout)
					}
					if !slices.Equal(names, files[file]) {
						t.Errorf("%s: opened\n%s\nclean\n%s", file, strings.Join(names, "\n"), strings.Join(files[file], "\n"))
					}
				}
			})
		}

		refused := []struct {
			name   string
			change func(*request.Request)
			stderr string
		}{
			{"argc is 0", func(r *request.Request) { r.Argv = []string{} }, "answers only to the name"},
			{"a link under another name", func(r *request.Request) { r.Argv[0] = "stapbox" }, "answers only to the name"},
			{"the name of another applet", func(r *request.Request) { r.Argv[0] = "stap-serverd" }, "answers only to the name"},
			{"the box's own way to applets", func(r *request.Request) { r.Argv = []string{"stapbox", "staprun", "/tmp/good.ko"} }, "answers only to the name"},
			{"root of a user namespace", func(r *request.Request) { r.UserNamespace = true }, "ERROR: "},
		}
		for _, tt := range refused {
			t.Run(tt.name, func(t *testing.T) {
				r := staprun("/tmp/good.ko")
				tt.change(&r)
				got := s.do(t, r)
				if got.Status == 0 || len(got.Stdout) > 0 || !strings.Contains(string(got.Stderr), tt.stderr) {
					t.Errorf("status %d, stdout %q, stderr %q", got.Status, got.Stdout, got.Stderr)
				}
			})
		}
		t.Run("a user namespace and a refused module", func(t *testing.T) {
			r := staprun("/tmp/unsigned.ko")
			r.UserNamespace = true
			want(t, s.do(t, r), 255, "")
		})
	})
}

// tracing is where the kernel tells what it did.
const tracing = "/sys/kernel/tracing"

// watchOpens has the kernel note every file that is opened, until the test ends.
// A tracer would not do: under one, a setuid bit does not count, a thread that
// executes another program may get lost, and a program behaves otherwise.
func (s *scene) watchOpens(t *testing.T) {
	t.Helper()
	s.do(t, lab.Shell(lab.Root, "mount -t tracefs none "+tracing+` && cd `+tracing+` && echo 'p:e2e/opened do_filp_open name=+0(+0($arg2)):string comm=$comm' >kprobe_events`))
	t.Cleanup(func() {
		s.do(t, lab.Shell(lab.Root, "cd "+tracing+" && echo >kprobe_events; cd /; umount "+tracing))
	})
}

var (
	openLine = regexp.MustCompile(` name="(.*)" comm="staprun"$`)
	// The Go runtime looks at its cgroup and the page size before main; whether
	// it does depends on GOMAXPROCS.
	ofRuntime = regexp.MustCompile(`^/proc/self/(cgroup|mountinfo)$|^/sys/fs/cgroup|^/sys/kernel/mm/|^/dev/null$`)
	number    = regexp.MustCompile(`\d+`)
)

// opened runs staprun and lists the files it opened until it became stapio, in
// order, each once.
func (s *scene) opened(t *testing.T, r request.Request) (answer request.Answer, names []string) {
	t.Helper()
	s.do(t, lab.Shell(lab.Root, "cd "+tracing+" && echo >trace && echo 1 >events/e2e/opened/enable"))
	answer = s.do(t, r)
	text := s.do(t, lab.Shell(lab.Root, "cd "+tracing+" && echo 0 >events/e2e/opened/enable && cat trace"))
	for line := range strings.Lines(string(text.Stdout)) {
		m := openLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || ofRuntime.MatchString(m[1]) {
			continue
		}
		name := m[1]
		if strings.HasPrefix(name, "/proc/") && !strings.HasPrefix(name, "/proc/sys") {
			name = number.ReplaceAllString(name, "N")
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return answer, names
}
