package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"stapbox/e2e/lab"
)

var certinfo = regexp.MustCompile(`certinfo="([0-9a-f:]+)"`)

// TestWalk is the walk of a request: an unprivileged user of a host without
// compiler runs a script through a server that the administrator trusts.
// Requirements: R-001-006 R-001-008 R-004-046 R-000-003 R-000-008 R-000-009 R-000-012..018 R-000-023 R-000-027 R-000-035 R-000-038 R-000-041..042 R-000-044..045 R-002-095..096 R-002-100 R-002-103 R-002-106 R-002-108 R-003-096..098 R-003-102..103 R-003-106 R-003-134
func TestWalk(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.forgetSigners(t)
		s.do(t, lab.Shell(lab.Root, "rm -rf /etc/systemtap/ssl/client/* /home/*/.systemtap /root/.systemtap"))
		server := s.startServer(t)
		if err := server.WaitLog("is ready after", 90*time.Second); err != nil {
			t.Fatal(err)
		}
		release := s.kernel.Release
		run := func(u lab.User, args ...string) (stdout, stderr string, status int) {
			t.Helper()
			r := lab.Command(u, append([]string{"stap"}, args...)...)
			r.Timeout = 60
			a := s.do(t, r)
			return string(a.Stdout), string(a.Stderr), a.Status
		}

		t.Run("no compiler here", func(t *testing.T) {
			want(t, s.do(t, lab.Shell(lab.Root, "which gcc cc make ld; ls /usr/src /lib/modules/*/build 2>/dev/null; true")), 0, "")
		})
		var cert string
		t.Run("list-servers finds the server", func(t *testing.T) {
			_, stderr, status := run(lab.Usr, "--list-servers=online,compatible")
			m := certinfo.FindStringSubmatch(stderr)
			if status != 0 || m == nil || !strings.HasPrefix(stderr, "Systemtap Compile Server Status for 'online,compatible'\n") ||
				!strings.Contains(stderr, fmt.Sprintf("port=%d ", server.Port)) || !strings.Contains(stderr, `sysinfo="`+release+` x86_64"`) {
				t.Fatalf("status %d:\n%s", status, stderr)
			}
			cert = m[1]
		})
		if cert == "" {
			return
		}
		t.Run("a server that nobody trusts is not used", func(t *testing.T) {
			stdout, stderr, status := run(lab.Usr, "-e", hello)
			if status != 1 || stdout != "" || !strings.Contains(stderr, "Unable to find a suitable compile server.") ||
				!strings.Contains(stderr, "No servers matched the selection criteria of online,trusted,compatible,signer.") {
				t.Errorf("status %d, stdout %q:\n%s", status, stdout, stderr)
			}
			stdout, stderr, status = run(lab.Usr, fmt.Sprintf("--use-server=%s:%d", lab.HostAddress, server.Port), "-e", hello)
			if status != 1 || stdout != "" || !strings.Contains(stderr, "Unable to connect to a server.") {
				t.Errorf("by address: status %d, stdout %q:\n%s", status, stdout, stderr)
			}
		})
		t.Run("only root may trust a signer", func(t *testing.T) {
			_, stderr, _ := run(lab.Usr, "--trust-servers=signer", "--use-server="+cert)
			if !strings.Contains(stderr, "Only root can specify 'signer' on --trust-servers") {
				t.Errorf("got %q", stderr)
			}
		})
		t.Run("no at the prompt changes nothing", func(t *testing.T) {
			r := lab.Command(lab.Root, "stap", "--trust-servers=ssl,signer,all-users", "--use-server="+cert)
			r.Data = []byte("n\n")
			a := s.do(t, r)
			for _, w := range []string{"Add trust in the following servers as an SSL peer for all users and as a module signer for all users?", "[y/N]", "sha256=", "Server trust unchanged"} {
				if !strings.Contains(string(a.Stderr), w) {
					t.Errorf("%q lacks %q", a.Stderr, w)
				}
			}
			want(t, s.do(t, lab.Shell(lab.Root, "ls "+signerStore+" /etc/systemtap/ssl/client | grep pem; true")), 0, "")
		})
		t.Run("a trusted peer that is no trusted signer", func(t *testing.T) {
			r := lab.Command(lab.Root, "stap", "--trust-servers=ssl,all-users", "--use-server="+cert)
			r.Data = []byte("y\n")
			if a := s.do(t, r); a.Status != 0 {
				t.Fatalf("status %d, stderr %q", a.Status, a.Stderr)
			}
			_, stderr, status := run(lab.Usr, "-e", hello)
			if status != 1 || !strings.Contains(stderr, "online,trusted,compatible,signer") {
				t.Errorf("status %d:\n%s", status, stderr)
			}
			// Asked for by address, it compiles and signs, and the loader refuses.
			stdout, stderr, status := run(lab.Usr, fmt.Sprintf("--use-server=%s:%d", lab.HostAddress, server.Port), "-e", hello)
			if status != 1 || stdout != "" || !strings.Contains(stderr, "Unable to verify the signature for the module") {
				t.Errorf("status %d, stdout %q:\n%s", status, stdout, stderr)
			}
		})
		t.Run("yes at the prompt", func(t *testing.T) {
			r := lab.Command(lab.Root, "stap", "--trust-servers=ssl,signer,all-users", "--use-server="+cert)
			r.Data = []byte("y\n")
			if a := s.do(t, r); a.Status != 0 {
				t.Fatalf("status %d, stderr %q", a.Status, a.Stderr)
			}
			_, stderr, _ := run(lab.Usr, "--list-servers=online,trusted,compatible,signer")
			if !strings.Contains(stderr, cert) {
				t.Errorf("the server is not listed as trusted:\n%s", stderr)
			}
		})
		t.Run("Hello", func(t *testing.T) {
			if stdout, stderr, status := run(lab.Usr, "-e", hello); stdout != "Hello\n" || status != 0 || stderr != "" {
				t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
			}
		})
		t.Run("nonce", func(t *testing.T) {
			b := make([]byte, 16)
			rand.Read(b)
			nonce := hex.EncodeToString(b)
			if stdout, stderr, status := run(lab.Usr, "-e", `probe begin { println(@1, " ", uid()) exit() }`, nonce); stdout != nonce+" 1002\n" || status != 0 {
				t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
			}
		})
		t.Run("stapsys gets its own level", func(t *testing.T) {
			stdout, stderr, status := run(lab.Sys, "-v", "-e", hello)
			if stdout != "Hello\n" || status != 0 || !strings.Contains(stderr, "--privilege=stapsys was automatically selected") || !strings.Contains(stderr, "Using a compile server.") {
				t.Errorf("status %d, stdout %q:\n%s", status, stdout, stderr)
			}
		})
		t.Run("a script from a file, with standard input and arguments", func(t *testing.T) {
			s.put(t, "/home/usr/a.stp", lab.Usr, 0o644, []byte(`probe begin { printf("%s %d\n", @1, $2) exit() }`))
			if stdout, stderr, status := run(lab.Usr, "a.stp", "x", "42"); stdout != "x 42\n" || status != 0 {
				t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
			}
			r := lab.Command(lab.Usr, "stap", "-")
			r.Data = []byte(hello)
			want(t, s.do(t, r), 0, "Hello\n")
		})
		t.Run("-G sets a global", func(t *testing.T) {
			if stdout, stderr, status := run(lab.Usr, "-G", "g=7", "-e", `global g = 1 probe begin { println(g) exit() }`); stdout != "7\n" || status != 0 {
				t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
			}
		})
		t.Run("-p4 leaves a module and its signature for later", func(t *testing.T) {
			stdout, stderr, status := run(lab.Usr, "-p4", "--use-server", "--privilege=stapusr", "-e", hello)
			name := strings.TrimSpace(stdout)
			if status != 0 || !regexp.MustCompile(`^stap_\S+\.ko$`).MatchString(name) {
				t.Fatalf("status %d, stdout %q, stderr %q", status, stdout, stderr)
			}
			want(t, s.do(t, lab.Shell(lab.Usr, "ls -1 "+name+"*; staprun "+name)), 0, name+"\n"+name+".sgn\nHello\n")
			// One byte more, or less, and it is no longer what the server signed.
			want(t, s.do(t, lab.Shell(lab.Usr, "echo >>"+name+"; staprun "+name+"; echo rc=$?")), 0, "rc=255\n", "It may have been altered since it was created.")
			s.do(t, lab.Shell(lab.Usr, "rm stap_*"))
		})
		t.Run("-m runs a developer's script and leaves the module", func(t *testing.T) {
			s.put(t, "/tmp/pmod.stp", lab.Dev, 0o644, []byte(hello))
			r := lab.Shell(lab.Dev, "d=$(mktemp -d) && cd $d && stap --use-server -m pmod /tmp/pmod.stp && ls && staprun ./pmod.ko; rm -r $d /tmp/pmod.stp")
			r.Timeout = 60
			want(t, s.do(t, r), 0, "Hello\npmod.ko\nHello\n")
		})
		t.Run("two users run the same script at the same time", func(t *testing.T) {
			type result struct {
				stdout, stderr string
				status         int
			}
			results := make(chan result, 4)
			for i := range 4 {
				go func() {
					r := lab.Command([]lab.User{lab.Usr, lab.Usr2}[i%2], "stap", "-e", `probe timer.ms(700) { println("both") exit() }`)
					r.Timeout = 60
					a, err := s.guest.Do(r)
					if err != nil {
						a.Stderr = []byte(err.Error())
					}
					results <- result{string(a.Stdout), string(a.Stderr), a.Status}
				}()
			}
			for range 4 {
				if r := <-results; r.stdout != "both\n" || r.status != 0 {
					t.Errorf("%+v", r)
				}
			}
		})
		t.Run("defect 10.3, 11: a run ended at any moment leaves nothing", func(t *testing.T) {
			// staprun is deaf while it becomes stapio; stap removes what that leaves.
			r := lab.Shell(lab.Usr, `states() {
				for q in $(pidof stap staprun stapio); do
					tr '\0' ' ' < /proc/$q/cmdline; echo; grep SigCgt /proc/$q/status
					for t in /proc/$q/task/*; do echo $t $(cat $t/wchan) $(grep 'State\|Pnd\|SigBlk\|Cpus_allowed_list' $t/status); done
				done
			}
			for i in $(seq 30); do
				stap -e 'probe begin { println("on") }' >/dev/null 2>&1 & p=$!
				usleep $((i * 37000)); kill -TERM $p
				n=0; while kill -0 $p 2>/dev/null; do n=$((n+1)); [ $n -gt 400 ] && { echo "goes on after $i of 30"; states; kill -9 $p; break 2; }; usleep 100000; done; wait $p
				n=0; while ls /proc/systemtap/* >/dev/null 2>&1; do n=$((n+1)); [ $n -gt 40 ] && { echo "ended after $i of 30: $(ls /proc/systemtap)"; break 2; }; sleep 0.1; done
			done`)
			r.Timeout = 150
			want(t, s.do(t, r), 0, "")
		})
		t.Run("a target command", func(t *testing.T) {
			stdout, stderr, status := run(lab.Usr, "-c", "echo $((6*7))", "-e", `probe end { println(target() > 0 ? "of a process" : "of none") }`)
			if status != 0 || stdout != "42\nof a process\n" {
				t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
			}
		})
		for _, tt := range []struct {
			name   string
			user   lab.User
			args   []string
			stderr []string
		}{
			{"a probe beyond the privilege", lab.Usr, []string{"-e", `probe kernel.function("vfs_read") { exit() }`},
				[]string{"semantic error: probe point is not allowed for --privilege=stapusr", "Pass 2: analysis failed."}},
			{"a function beyond the privilege", lab.Usr, []string{"-e", `probe begin { println(ctime(0)) exit() }`},
				[]string{"semantic error: function may not be used when --privilege=stapusr is specified", "Pass 2: analysis failed."}},
			{"guru mode", lab.Usr, []string{"-g", "-e", hello}, []string{"You can't specify -g and --privilege=stapusr together."}},
			{"a parse error comes back with its place", lab.Usr, []string{"-e", `probe begin { println( }`},
				[]string{"parse error:", "source: probe begin { println( }", "^", "Pass 1: parse failed."}},
			{"a kernel the server cannot build for", lab.Usr, []string{"-p4", "-r", "9.9.9-none", "--use-server=" + fmt.Sprintf("%s:%d", lab.HostAddress, server.Port), "--privilege=stapusr", "-e", hello},
				[]string{"Target kernel version 9.9.9-none is not supported by this server"}},
			{"a user in no group", lab.Nobody, []string{"-e", hello},
				[]string{"You are trying to run systemtap as a normal user.", `part of the group "stapusr"`, "hint:"}},
		} {
			t.Run("refused: "+tt.name, func(t *testing.T) {
				stdout, stderr, status := run(tt.user, tt.args...)
				if status != 1 || stdout != "" {
					t.Errorf("status %d, stdout %q", status, stdout)
				}
				for _, w := range tt.stderr {
					if !strings.Contains(stderr, w) {
						t.Errorf("%q lacks %q", stderr, w)
					}
				}
			})
		}
		t.Run("the server is as before", func(t *testing.T) {
			if left, err := os.ReadDir(server.Dir + "/tmp"); err != nil || len(left) > 0 {
				t.Errorf("temporary files left: %v, %v", left, err)
			}
		})
		t.Run("the certificate in the host's store is the server's", func(t *testing.T) {
			der, err := os.ReadFile(server.Certificate())
			if err != nil {
				t.Fatal(err)
			}
			want(t, s.do(t, lab.Shell(lab.Root, "ls "+signerStore)), 0, fmt.Sprintf("%x.pem\n", sha256.Sum256(der)))
		})
		t.Run("revoked, the server is used no more", func(t *testing.T) {
			r := lab.Command(lab.Root, "stap", "--trust-servers=ssl,signer,all-users,revoke", "--use-server="+cert)
			r.Data = []byte("y\n")
			if a := s.do(t, r); a.Status != 0 {
				t.Fatalf("status %d, stderr %q", a.Status, a.Stderr)
			}
			if stdout, _, status := run(lab.Usr, "-e", hello); stdout != "" || status != 1 {
				t.Errorf("status %d, stdout %q", status, stdout)
			}
			// Other tests use this server.
			s.forgetSigners(t)
			s.do(t, lab.Shell(lab.Root, "rm -rf /etc/systemtap/ssl/client/*"))
		})
	})
}
