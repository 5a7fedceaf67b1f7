package e2e

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

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
		s.putStrace(t)
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
			clean[f] = s.do(t, staprun(f))
			files[f] = s.opened(t, staprun(f))
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
					got := s.do(t, r)
					if got.Status != plain.Status {
						t.Errorf("%s: status %d, stderr %q; clean it is %d", file, got.Status, got.Stderr, plain.Status)
					}
					if string(got.Stdout) != string(plain.Stdout) && !slices.Contains(r.Closed, 1) {
						t.Errorf("%s: stdout %q; clean it is %q", file, got.Stdout, plain.Stdout)
					}
					if r.Limits["nofile"] == 3 {
						continue // strace itself needs some
					}
					if names := s.opened(t, r); !slices.Equal(names, files[file]) {
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

// putStrace puts strace and its libraries into the guest.
func (s *scene) putStrace(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("strace, which shows the files a program opens, is missing: %v", err)
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	image := []string{path}
	for _, m := range regexp.MustCompile(`(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
		image = append(image, m[1])
	}
	for _, p := range image {
		s.do(t, lab.Shell(lab.Root, "mkdir -p "+p[:strings.LastIndexByte(p, '/')]))
		s.put(t, p, lab.Root, 0o755, read(t, p))
	}
}

var (
	openCall = regexp.MustCompile(`\bopen(?:at2?)?\((?:AT_FDCWD(?:<[^>]*>)?, |\d+(?:<[^>]*>)?, )?"([^"]*)"`)
	execCall = regexp.MustCompile(`\bexecve\("([^"]*stapio)"`)
	// The Go runtime looks at its cgroup and the page size before main; whether
	// it does depends on GOMAXPROCS.
	ofRuntime = regexp.MustCompile(`^/proc/self/(cgroup|mountinfo)$|^/sys/fs/cgroup|^/sys/kernel/mm/|^/dev/null$`)
	number    = regexp.MustCompile(`\d+`)
)

// opened runs a command under strace and lists the files opened until stapio is
// executed, in order, each once. Status and output of such a run are strace's
// own and prove nothing.
func (s *scene) opened(t *testing.T, r request.Request) (names []string) {
	t.Helper()
	const trace = "/run/trace"
	user := r.UID
	name := map[int]string{lab.Usr.UID: lab.Usr.Name}[user]
	argv := []string{"strace", "-f", "-o", trace, "-s", "300", "-e", "trace=open,openat,openat2,execve", "-u", name}
	r.Argv = append(append(argv, r.Path), r.Argv[1:]...)
	r.Path, r.UID, r.GID, r.Groups = "/usr/bin/strace", 0, 0, []int{}
	s.do(t, lab.Shell(lab.Root, "rm -f "+trace))
	s.do(t, r)
	// strace may give up on a thread that executes another program; what it
	// traced goes on without it.
	for deadline := time.Now().Add(5 * time.Second); s.loaded(t) != "" && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
	}
	text, err := s.guest.Do(request.Request{ReadPath: trace})
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text.Stdout)) {
		if execCall.MatchString(line) {
			break
		}
		m := openCall.FindStringSubmatch(line)
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
	return names
}
