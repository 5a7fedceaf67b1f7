package e2e

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"stapbox/core/trust/edit"
	"stapbox/e2e/lab"
)

// scripts is a configuration of the init manager on this host, with everything in
// one directory.
type scripts struct {
	t   *testing.T
	dir string
}

func newScripts(t *testing.T, config string) *scripts {
	t.Helper()
	s := &scripts{t, t.TempDir()}
	for _, d := range []string{"script.d", "conf.d", "cache", "tmp", "run"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.write("config", fmt.Sprintf("D=%s\nSCRIPT_PATH=$D/script.d/ CONFIG_PATH=${D}/conf.d CACHE_PATH=$D/cache; TEMP_PATH=$D/tmp\nSTAT_PATH=$D/run LOG_FILE=\"$D\"/log\nSERVER_FALLBACK=no\n%s", s.dir, config))
	s.write("staprun", "#!/bin/sh\necho staprun \"$@\" >>"+s.dir+"/calls\ncase \" $* \" in *' -D '*) echo 4242;; esac\n")
	os.Chmod(filepath.Join(s.dir, "staprun"), 0o755)
	return s
}

func (s *scripts) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// do runs a command and checks its status.
func (s *scripts) do(status int, stdin string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(stage.programs.Applet("systemtap"), append(args, "-c", "config")...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "SYSTEMTAP_DIR="+kernelState(), "SYSTEMTAP_STAPRUN="+filepath.Join(s.dir, "staprun"))
	cmd.Stdin = strings.NewReader(stdin)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != status {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		s.t.Errorf("systemtap %q: status %d, want %d\n%s\nlog:\n%s", args, got, status, out, log)
	}
	return string(out)
}

const tick = `probe begin { println("%s is up") } probe timer.s(1) { println("%[1]s lives") }`

// What the compiler's host does: checks 14, 15 and 16 as far as no module is
// loaded.
// Requirements: R-002-020..026 R-002-035 R-002-072 R-002-091 A-14 A-15 A-16 R-002-076 R-002-052..055 R-002-057
func TestInitManagerCompiles(t *testing.T) {
	for _, v := range lab.Versions() {
		t.Run(v, func(t *testing.T) {
			k, err := stage.lab.FetchKernel(v)
			if err != nil {
				t.Fatal(err)
			}
			s := newScripts(t, `a_OPT="-g -DA=1 -o /x -s 4 -S 10,2 -x 42 -vF"`+"\n")
			s.write("script.d/a.stp", fmt.Sprintf(tick, "a"))
			s.write("script.d/bad.stp", "probe begin { println( }")
			cache := filepath.Join(s.dir, "cache", k.Release)
			t.Run("a check before a change of the kernel tells about every script", func(t *testing.T) {
				out := s.do(1, "", "compile", "-r", k.Headers)
				for _, w := range []string{" Compiling a ... done\n", "  a: ready for " + k.Release + "\n", "  bad: would fail on " + k.Release + ": parse error: ", "\nFAILED\n"} {
					if !strings.Contains(out, w) {
						t.Errorf("%q lacks %q", out, w)
					}
				}
			})
			os.Remove(filepath.Join(s.dir, "script.d/bad.stp"))
			t.Run("acceptance 15: the record ends with what was compiled", func(t *testing.T) {
				record := string(read(t, filepath.Join(cache, "a.opts")))
				if !strings.HasSuffix(record, "\n-g -D A=1 -v --\n") || !strings.Contains(record, "\ntarget="+k.Release+" x86_64\n") {
					t.Errorf("got %q", record)
				}
				if log := string(read(t, filepath.Join(s.dir, "log"))); !strings.Contains(log, "-g -D A=1 -v -- "+s.dir+"/script.d/a.stp\n") || !strings.Contains(log, "Exec: stap -E 'probe procfs(") {
					t.Errorf("the log does not show it:\n%s", log)
				}
			})
			t.Run("acceptance 16: no answer is no", func(t *testing.T) {
				before := read(t, filepath.Join(cache, "a.opts"))
				if out := s.do(0, "", "compile", "-r", k.Headers); !strings.Contains(out, "Updating caches: a.ko a.opts\nDo you really want to update above caches [y/N]: ") {
					t.Errorf("got %q", out)
				}
				s.do(0, "\n", "cleanup", "-r", k.Headers)
				if !bytes.Equal(before, read(t, filepath.Join(cache, "a.opts"))) {
					t.Error("no answer was yes")
				}
				os.Remove(filepath.Join(s.dir, "script.d/a.stp"))
				s.do(0, "y\n", "cleanup", "-r", k.Release, "a")
				if _, err := os.Stat(cache); !os.IsNotExist(err) {
					t.Errorf("the cache is still there: %v", err)
				}
			})
		})
	}
}

// peerFile is the file that makes a server one to compile with, for all users.
func peerFile(t *testing.T, server *lab.Server) (path string, pem []byte) {
	t.Helper()
	der := read(t, server.Certificate())
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("/etc/systemtap/ssl/client/%x.pem", sha256.Sum256(der)), edit.Format(cert, edit.Note{Host: "test", When: time.Now(), By: "test", Scope: "SSL peer, all users"})
}

// Checks 11 to 16 with modules, on a host without compiler.
// Requirements: R-002-001..003 R-002-006..026 R-002-046..049 R-002-066 R-002-074 R-002-081..082 R-002-084 R-002-086..087 R-002-094 A-11 A-12 A-13 A-14 A-15 A-16 B-46 C-24
func TestInitManager(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		server := s.startServer(t)
		if err := server.WaitLog("is ready after", 90*time.Second); err != nil {
			t.Fatal(err)
		}
		path, pem := peerFile(t, server)
		s.put(t, path, lab.Root, 0o644, pem)
		const (
			scripts = "/etc/systemtap/script.d/"
			conf    = "/etc/systemtap/conf.d/e2e.conf"
		)
		cache := "/var/cache/systemtap/" + s.kernel.Release + "/"
		sh := func(script string) string {
			t.Helper()
			r := lab.Shell(lab.Root, script)
			r.Timeout = 120
			a := s.do(t, r)
			return string(a.Stdout) + string(a.Stderr)
		}
		config := func(text string) {
			t.Helper()
			all := ""
			for _, n := range []string{"a", "b", "c", "d"} {
				all += fmt.Sprintf("%s_OPT='--use-server=%s:%d'\n", n, lab.HostAddress, server.Port)
			}
			s.put(t, conf, lab.Root, 0o644, []byte(all+text))
		}
		has := func(t *testing.T, text string, parts ...string) {
			t.Helper()
			for _, p := range parts {
				if !strings.Contains(text, p) {
					t.Errorf("%q lacks %q", text, p)
				}
			}
		}
		sh("mkdir -p " + scripts + " /etc/systemtap/conf.d /var/log /var/cache; rm -rf /var/cache/systemtap /var/log/systemtap.log; ln -sfn /run /var/run; date -s @" + fmt.Sprint(time.Now().Unix()))
		for _, n := range []string{"a", "b", "c", "d"} {
			s.put(t, scripts+n+".stp", lab.Root, 0o644, fmt.Appendf(nil, tick, n))
		}
		defer sh("systemtap stop -q; rm -rf /etc/systemtap/script.d /etc/systemtap/conf.d /var/cache/systemtap " + path)
		order := func(what string) string {
			return strings.Join(strings.Fields(sh("grep -o '"+what+"' /var/log/systemtap.log | sed 's/.* //; s/\\.ko$//; s/.*\\///'; : >/var/log/systemtap.log")), " ")
		}
		t.Run("acceptance 11: a diamond", func(t *testing.T) {
			config("a_REQ='b c' b_REQ=d c_REQ=d\n")
			has(t, sh("systemtap start; echo rc=$?"), " Starting d ... done\n", " Starting a ... done\nOK\nrc=0\n")
			if got := order("Exec: staprun .*"); got != "d b c a" {
				t.Errorf("started %q", got)
			}
			has(t, sh("lsmod; systemtap status; echo rc=$?"), "a is running...\n  requires: b (running), c (running)\n", "d is running...\n", "rc=0\n", "\na ")
			has(t, sh("systemtap start; echo rc=$?"), "Starting systemtap: OK\nrc=0\n")
			has(t, sh("systemtap stop; echo rc=$?"), "rc=0\n")
			if got := order("Exec: staprun -d [a-d]"); got != "a c b d" {
				t.Errorf("stopped %q", got)
			}
			has(t, sh("systemtap status; echo rc=$?"), "a is stopped\n", "rc=3\n")
			if l := s.loaded(t); l != "" {
				t.Errorf("loaded after stop: %s", l)
			}
			config("a_REQ='b c' b_REQ=d c_REQ=d d_REQ=a\n")
			has(t, sh("systemtap start; echo rc=$?"), "Dependency loop detected on a", "FAILED\nrc=6\n")
			if l := s.loaded(t); l != "" {
				t.Errorf("loaded in spite of a loop: %s", l)
			}
		})
		t.Run("acceptance 12: PASSALL=no", func(t *testing.T) {
			config("PASSALL=no\nb_REQ=bad\n")
			s.put(t, scripts+"bad.stp", lab.Root, 0o644, []byte("probe begin { println( }"))
			sh("rm -f /tmp/devlog; syslogd -O /tmp/devlog")
			defer sh("killall syslogd; rm -f /dev/log /tmp/devlog")
			has(t, sh("systemtap start b c; systemtap stop; systemtap start -R b c; echo rc=$?"), " Compiling bad ... error\n  parse error: ",
				`Failed to run "bad". (1)`, `Skipping "b": required script "bad" is not running`, " Starting c ... done\nWARNING\nrc=0\n")
			has(t, sh("systemtap stop; rm "+scripts+"bad.stp; grep Failed /var/log/systemtap.log; cat /tmp/devlog"), `Failed to run "bad". (1)`,
				"daemon.err systemtap", "Failed to compile script(bad).\n")
		})
		t.Run("acceptance 13: what compiles again", func(t *testing.T) {
			config("")
			for _, tt := range []struct {
				change string
				want   bool
			}{
				{"true", false}, {"touch " + scripts + "a.stp", true}, {"true", false},
				{"sed -i \"s/a_OPT='/a_OPT='-g /\" " + conf, true}, {"true", false},
				{"sed -i '1s/ #1 / #0 /' " + cache + "a.opts", true}, {"true", false},
			} {
				out := sh("sleep 0.1; " + tt.change + "; systemtap start a; echo rc=$?; systemtap stop -q a")
				if got := strings.Contains(out, " Compiling a ... done\n"); got != tt.want || !strings.Contains(out, " Starting a ... done\nOK\nrc=0\n") {
					t.Errorf("after %q: compiled %v, want %v\n%s", tt.change, got, tt.want, out)
				}
			}
		})
		t.Run("acceptance 14: caches of another host", func(t *testing.T) {
			config("")
			has(t, sh("systemtap compile -q -y; systemtap export /tmp/c.tar.gz; tar -tzf /tmp/c.tar.gz; echo rc=$?"), s.kernel.Release+"/a.ko\n", "rc=0\n")
			sh("mkdir /tmp/keep; mv " + scripts + "* /tmp/keep; systemtap cleanup -q -y; ls /var/cache/systemtap; echo 'AUTOCOMPILE=no ALLOW_CACHEONLY=yes' >/etc/systemtap/conf.d/only.conf")
			has(t, sh("systemtap start; echo rc=$?"), "Warning: No scripts exist.\nWARNING\nrc=0\n")
			has(t, sh("systemtap import /tmp/c.tar.gz; systemtap start; echo rc=$?; systemtap stop"), "no script file("+scripts+"a.stp). Use compiled cache.\n", " Starting a ... done\n", "rc=0\n")
			sh("mv /tmp/keep/* " + scripts + "; rm -r /tmp/keep /etc/systemtap/conf.d/only.conf")
		})
		t.Run("acceptance 15: options", func(t *testing.T) {
			config(`a_OPT="$a_OPT -g -DA=1 -o /tmp/x -s 4 -S 10,2 -x 1 -vF"` + "\n")
			has(t, sh(": >/var/log/systemtap.log; systemtap start a; echo rc=$?; sleep 1.5; cat /tmp/x*; systemtap status a; systemtap logs a; systemtap stop a; systemtap status a; ls /run/systemtap"),
				"rc=0\n", "a is up\n", "a(", ") is running...\n", "a writes to /tmp/x", "a is stopped\n")
			has(t, sh("cat /var/log/systemtap.log; cat "+cache+"a.opts; rm -f /tmp/x*"), " -g -D A=1 -v -- "+scripts+"a.stp\n",
				"Exec: staprun -o /tmp/x -b 4 -S 10,2 -x 1 -D "+cache+"a.ko\n", "-g -D A=1 -v --\n", "Exec: kill -TERM ")
		})
		t.Run("acceptance 16: removed scripts, and questions", func(t *testing.T) {
			config("")
			has(t, sh("systemtap start -q b; rm "+scripts+"b.stp "+conf+"; systemtap stop b; echo rc=$?; systemtap cleanup b </dev/null; echo rc=$?; ls "+cache),
				"Stopping systemtap: OK\nrc=0\n", "[y/N]: \nrc=0\n", "b.ko\n")
			has(t, sh("systemtap cleanup -y b; ls "+cache), "Removing caches: b.ko b.opts\ndone OK\n", "a.ko\n")
			if out := sh("ls " + cache + "b.*"); !strings.Contains(out, "No such file") {
				t.Errorf("left: %s", out)
			}
		})
		t.Run("B-46: stapio was killed", func(t *testing.T) {
			config(`a_OPT="$a_OPT -o /tmp/x"` + "\n")
			has(t, sh("systemtap start -q a; kill -9 $(cat /run/systemtap/a); sleep 0.3; systemtap stop a; echo rc=$?; systemtap status a; rm -f /tmp/x"), "rc=0\n", "a is stopped\n")
		})
		t.Run("logs attaches", func(t *testing.T) {
			config("")
			has(t, sh("systemtap start -q c; systemtap logs c >/tmp/out & until grep -q lives /tmp/out; do kill -0 $! || break; sleep 0.1; done; kill -INT $(pidof stapio); wait; cat /tmp/out; rm /tmp/out; systemtap stop; systemtap status c"), "c is up\nc lives\n", "c is stopped\n")
		})
	})
}

// A host without compiler boots with systemtap enabled, from caches that another
// host has prepared; with another kernel, from the same disk, it compiles through
// a server.
// Requirements: R-001-009 R-002-078..080 R-002-088..094 A-14 B-40
func TestInitManagerBoot(t *testing.T) {
	bootsGuest(t)
	if os.Geteuid() != 0 {
		t.Skip("guests need root, for a network namespace with a tap device")
	}
	versions := lab.Versions()
	if len(versions) < 2 {
		t.Skip("a change of the kernel needs two kernels in the matrix")
	}
	var kernels []*lab.Kernel
	for _, v := range versions[:2] {
		k, err := stage.lab.FetchKernel(v)
		if err != nil {
			t.Fatal(err)
		}
		kernels = append(kernels, k)
	}

	// The compiler's host.
	builder := newScripts(t, "")
	builder.write("conf.d/group1", "mid_REQ=base\ntop_REQ='base mid'\nbase_OPT=-g\n")
	for _, n := range []string{"base", "mid", "top"} {
		builder.write("script.d/"+n+".stp", fmt.Sprintf(tick, n))
	}
	builder.do(0, "", "compile", "-r", kernels[0].Headers, "-y")
	builder.do(0, "", "export", "-r", kernels[0].Headers, "caches.tar.gz")

	// The disk of the production host.
	disk := t.TempDir()
	for _, d := range []string{"etc/systemtap/conf.d", "etc/systemtap/script.d", "var/cache/systemtap", "var/log", "var/run"} {
		if err := os.MkdirAll(filepath.Join(disk, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tar := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
	}
	// As the manual says: unpack into the cache, move the configuration.
	tar("-xzf", filepath.Join(builder.dir, "caches.tar.gz"), "-C", filepath.Join(disk, "var/cache/systemtap"))
	if err := os.Rename(filepath.Join(disk, "var/cache/systemtap/group1"), filepath.Join(disk, "etc/systemtap/conf.d/group1")); err != nil {
		t.Fatal(err)
	}
	tar("-cf", filepath.Join(disk, "s.tar"), "-C", filepath.Join(builder.dir, "script.d"), ".")
	tar("-xf", filepath.Join(disk, "s.tar"), "-C", filepath.Join(disk, "etc/systemtap/script.d"))
	os.Remove(filepath.Join(disk, "s.tar"))

	for i, k := range kernels {
		t.Run([]string{"caches of another host, ", "after a change of the kernel, "}[i]+k.Version, func(t *testing.T) {
			network, err := stage.lab.NewNetwork()
			if err != nil {
				t.Fatal(err)
			}
			defer network.Close()
			server, err := stage.programs.StartServer(network, filepath.Join(stage.dir, "server-init"), kernels)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Stop()
			for _, k := range kernels {
				if err := server.WaitLog(regexp.QuoteMeta(k.Release)+".* is ready after", 90*time.Second); err != nil {
					t.Fatal(err)
				}
			}
			path, pem := peerFile(t, server)
			if err := os.MkdirAll(filepath.Join(disk, filepath.Dir(path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(disk, path), pem, 0o644); err != nil {
				t.Fatal(err)
			}
			image := lab.NewImage()
			if err := image.Tree(disk, "/"); err != nil {
				t.Fatal(err)
			}
			image.File("etc/rc.local", 0o755, []byte("#!/bin/sh\nsystemtap start >/run/boot 2>&1; echo \"rc=$?\" >>/run/boot\n"))
			g, err := stage.lab.Boot(lab.GuestConfig{Kernel: k, Image: image, Agent: stage.programs.Agent, Box: stage.programs.Box, Net: network})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Kill()
			s := &scene{kernel: k, guest: g}
			sh := func(script string) string {
				t.Helper()
				r := lab.Shell(lab.Root, script)
				r.Timeout = 120
				a := s.do(t, r)
				return string(a.Stdout) + string(a.Stderr)
			}
			boot := sh("cat /run/boot; which gcc make cc")
			want := "Starting systemtap:  Starting base ... done\n Starting mid ... done\n Starting top ... done\nOK\nrc=0\n"
			if i > 0 {
				want = "Starting systemtap:  Compiling base ... done\n Starting base ... done\n Compiling mid ... done\n Starting mid ... done\n Compiling top ... done\n Starting top ... done\nOK\nrc=0\n"
			}
			if boot != want {
				t.Errorf("at boot: %q, want %q\nlog:\n%s", boot, want, sh("cat /var/log/systemtap.log"))
			}
			running := "base is running...\nmid is running...\n  requires: base (running)\ntop is running...\n  requires: base (running), mid (running)\nrc=0\n"
			if got := sh("systemtap status; echo rc=$?"); got != running {
				t.Errorf("status %q", got)
			}
			if got := s.loaded(t); !strings.Contains(got, "base") || !strings.Contains(got, "top") {
				t.Errorf("loaded: %q", got)
			}
			stopped := "Stopping systemtap: OK\nbase is stopped\nmid is stopped\n  requires: base (stopped)\ntop is stopped\n  requires: base (stopped), mid (stopped)\nrc=3\n"
			if got := sh("systemtap stop; systemtap status; echo rc=$?"); got != stopped {
				t.Errorf("after stop: %q", got)
			}
			again := "Starting systemtap:  Starting base ... done\n Starting mid ... done\n Starting top ... done\nOK\n" + running
			if got := sh("systemtap start; systemtap status; echo rc=$?"); got != again {
				t.Errorf("after the second start: %q", got)
			}
			if got := sh("systemtap restart -q; echo rc=$?; systemtap stop -q"); got != "rc=0\n" {
				t.Errorf("restart: %q", got)
			}
			if i == 0 {
				// Before the change: what would fail after it, asked of a server.
				next := kernels[1].Release
				s.put(t, "/etc/systemtap/script.d/bad.stp", lab.Root, 0o644, []byte("probe begin { println( }"))
				got := sh("systemtap compile -y -r " + next + "; echo rc=$?; ls /var/cache/systemtap/" + next + "; rm /etc/systemtap/script.d/bad.stp; systemtap cleanup -q -y -r " + next)
				for _, w := range []string{"  base: ready for " + next + "\n", "  bad: would fail on " + next + ": parse error: ", "  top: ready for " + next + "\n", "FAILED\nrc=1\n", "top.ko\n"} {
					if !strings.Contains(got, w) {
						t.Errorf("%q lacks %q", got, w)
					}
				}
			}
			s.checkClean(t)
			// The disk is carried over.
			r := lab.Shell(lab.Root, "tar -cf - -C / var/cache/systemtap etc/systemtap/conf.d etc/systemtap/script.d var/log")
			a := s.do(t, r)
			if err := os.WriteFile(filepath.Join(disk, "d.tar"), a.Stdout, 0o600); err != nil {
				t.Fatal(err)
			}
			tar("-xf", filepath.Join(disk, "d.tar"), "-C", disk)
			os.Remove(filepath.Join(disk, "d.tar"))
		})
	}
}
