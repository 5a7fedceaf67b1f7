package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/signing"
	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// Requirements: R-000-001 R-000-009 R-000-012 R-000-036 R-001-002..003 R-001-006..007 R-002-102..103 R-002-106 R-002-109 R-003-105 R-000-010 R-000-011 R-000-034 C-06 C-07
func TestLoaderDecides(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		a, b := signers(t)
		usr := module(t, s.kernel, "stapusr", hello)
		sys := module(t, s.kernel, "stapsys", hello)
		dev := module(t, s.kernel, "", hello)
		flip := func(m []byte, at int) []byte {
			m = bytes.Clone(m)
			m[at] ^= 1
			return m
		}
		sigUsr, sigSys, sigDev := sign(t, usr, a), sign(t, sys, a), sign(t, dev, a)
		const (
			altered  = "It may have been altered since it was created."
			elsewere = "groups can only use unsigned modules within"
			noSig    = "Unable to verify the signature for the module"
			lacking  = "are insufficient to load the module"
		)
		for i, tt := range []struct {
			name   string
			user   lab.User
			module []byte
			sig    []byte // nil: no file
			status int
			stderr string
		}{
			{"root runs an unsigned module", lab.Root, dev, nil, 0, ""},
			{"a developer runs an unsigned module", lab.Dev, dev, nil, 0, ""},
			{"a user runs a signed module", lab.Usr, usr, sigUsr, 0, ""},
			{"stapsys runs a signed stapusr module", lab.Sys, usr, sigUsr, 0, ""},
			{"stapsys runs a signed stapsys module", lab.Sys, sys, sigSys, 0, ""},
			{"a user is refused an unsigned module", lab.Usr, usr, nil, 255, elsewere},
			{"stapsys is refused an unsigned module", lab.Sys, usr, nil, 255, elsewere},
			{"a user is refused a module of a higher level", lab.Usr, sys, sigSys, 255, "(stapusr) " + lacking},
			{"stapsys is refused a module of the highest level", lab.Sys, dev, sigDev, 255, "(stapsys) " + lacking},
			{"a user is refused a signer nobody trusts", lab.Usr, usr, sign(t, usr, b), 255, noSig},
			{"a user is refused an empty signature", lab.Usr, usr, []byte{}, 255, noSig},
			{"a user is refused a cut signature", lab.Usr, usr, sigUsr[:100], 255, noSig},
			{"a user is refused an altered signature", lab.Usr, usr, flip(sigUsr, 17), 255, noSig},
			{"a user is refused the signature of another module", lab.Usr, usr, sigSys, 255, altered},
			{"a user is refused an altered module", lab.Usr, flip(usr, len(usr)/2), sigUsr, 255, altered},
			{"root is refused an altered module", lab.Root, flip(usr, len(usr)/2), sigUsr, 255, altered},
			{"a developer is refused an altered module", lab.Dev, flip(usr, len(usr)/2), sigUsr, 255, altered},
		} {
			if !s.turn(i) {
				continue
			}
			t.Run(tt.name, func(t *testing.T) {
				s.forgetSigners(t)
				s.trustSigner(t, a)
				s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/m.ko /tmp/m.ko.sgn"))
				s.put(t, "/tmp/m.ko", lab.Root, 0o644, tt.module)
				if tt.sig != nil {
					s.put(t, "/tmp/m.ko.sgn", lab.Root, 0o644, tt.sig)
				}
				got := s.do(t, lab.Command(tt.user, "staprun", "/tmp/m.ko"))
				stdout := ""
				if tt.status == 0 {
					stdout = "Hello\n"
				}
				want(t, got, tt.status, stdout, tt.stderr)
			})
		}

		t.Run("a user outside all groups cannot execute the setuid copy", func(t *testing.T) {
			got := s.do(t, lab.Shell(lab.Nobody, "staprun /tmp/m.ko"))
			want(t, got, 126, "", "Permission denied")
		})
		t.Run("a user counts from the log-in after he is enrolled, or at once with newgrp", func(t *testing.T) {
			s.forgetSigners(t)
			s.trustSigner(t, a)
			s.put(t, "/tmp/m.ko", lab.Root, 0o644, usr)
			s.put(t, "/tmp/m.ko.sgn", lab.Root, 0o644, sigUsr)
			// One line a try: the groups of the process, and what the loader makes of them.
			const try = `su -s /bin/sh nobody -c 'id -G; staprun /tmp/m.ko; echo rc=$?' 2>&1; true`
			before := "65534\nsh: staprun: Permission denied\nrc=126\n"
			want(t, s.do(t, lab.Shell(lab.Root, try)), 0, before)
			s.do(t, lab.Shell(lab.Root, "cp /etc/group /tmp/group; sed -i /^stapusr:/s/$/,nobody/ /etc/group"))
			defer s.do(t, lab.Shell(lab.Root, "cat /tmp/group >/etc/group"))
			want(t, s.do(t, lab.Shell(lab.Root, "grep ^stapusr: /etc/group; "+try)), 0, "stapusr:x:156:dev,usr,usr2,sys,nobody\n65534 156\nHello\nrc=0\n")
			// And newgrp of a process that is running: credentials count, not the file.
			newgrp := lab.Nobody
			newgrp.GID = 156
			s.do(t, lab.Shell(lab.Root, "cat /tmp/group >/etc/group"))
			want(t, s.do(t, lab.Command(newgrp, "staprun", "/tmp/m.ko")), 0, "Hello\n")
			want(t, s.do(t, lab.Shell(lab.Root, try)), 0, before)
		})
		t.Run("an Ed25519 signature is as good", func(t *testing.T) {
			s.trustSigner(t, b)
			s.put(t, "/tmp/m.ko", lab.Root, 0o644, usr)
			s.put(t, "/tmp/m.ko.sgn", lab.Root, 0o644, sign(t, usr, b))
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", "/tmp/m.ko")), 0, "Hello\n")
		})
		t.Run("a revoked signer is refused, also to root", func(t *testing.T) {
			s.put(t, signerStore+"revoked", lab.Root, 0o644, []byte(identity.Fingerprint(a.Certificate)+"\n"))
			s.put(t, "/tmp/m.ko.sgn", lab.Root, 0o644, sigUsr)
			for _, u := range []lab.User{lab.Usr, lab.Root} {
				want(t, s.do(t, lab.Command(u, "staprun", "/tmp/m.ko")), 255, "", altered, "is revoked")
			}
		})
		t.Run("a denied module is refused, also to root and unsigned", func(t *testing.T) {
			s.forgetSigners(t)
			s.put(t, signerStore+"denied", lab.Root, 0o644, []byte(digest(usr)+" # bad\n"))
			s.do(t, lab.Shell(lab.Root, "rm /tmp/m.ko.sgn"))
			want(t, s.do(t, lab.Command(lab.Root, "staprun", "/tmp/m.ko")), 255, "", "is on the list of denied modules")
		})
		t.Run("a signer store that others may write to trusts nobody", func(t *testing.T) {
			s.forgetSigners(t)
			s.trustSigner(t, a)
			s.put(t, "/tmp/m.ko.sgn", lab.Root, 0o644, sigUsr)
			s.do(t, lab.Shell(lab.Root, "chmod 777 "+signerStore))
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", "/tmp/m.ko")), 255, "", "Unable to use certificate database", noSig)
			s.do(t, lab.Shell(lab.Root, "chmod 755 "+signerStore+"; chown usr "+signerStore))
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", "/tmp/m.ko")), 255, "", "must be owned by root", noSig)
			s.forgetSigners(t)
		})
	})
}

func digest(b []byte) string {
	return fmt.Sprintf("%x", signing.Verify(b, nil, nil, signing.Policy{}).Digest)
}

// The directory of the modules that members of stapusr may load unsigned, in both
// scenarios of the security guide: root's, and the developers'.
// Requirements: R-001-003..005 R-001-007 R-001-010..012
func TestBlessedDirectory(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		dev := module(t, s.kernel, "", hello)
		dir := s.blessed()
		reset := func() {
			s.do(t, lab.Shell(lab.Root, "rm -rf "+dir+"*; chown root:root "+dir+"; chmod 755 "+dir))
			s.put(t, dir+"pmod.ko", lab.Root, 0o644, dev)
		}
		run := func(word string) request.Answer { return s.do(t, lab.Command(lab.Usr, "staprun", word)) }
		defer s.do(t, lab.Shell(lab.Root, "true"))
		for i, tt := range []struct {
			name, prepare, word string
			status              int
			stderr              string
		}{
			{"by name", "true", "pmod", 0, ""},
			{"by path", "true", dir + "pmod.ko", 0, ""},
			{"readable by root only", "chmod 600 " + dir + "pmod.ko", "pmod", 0, ""},
			{"a developer's module in a directory for developers", "chgrp stapdev " + dir + "; chmod 775 " + dir + "; chown dev " + dir + "pmod.ko", "pmod", 0, ""},
			{"a developer's module in root's directory", "chown dev " + dir + "pmod.ko", "pmod", 255, "must be owned by root"},
			{"a user's module in a directory for developers", "chgrp stapdev " + dir + "; chmod 775 " + dir + "; chown usr " + dir + "pmod.ko", "pmod", 255, "must be owned by root"},
			{"world-writable directory", "chmod 777 " + dir, "pmod", 255, "That directory should not be world writable."},
			{"world-writable module", "chmod 666 " + dir + "pmod.ko", "pmod", 255, "must not be world writable."},
			{"somebody else's directory", "chown usr " + dir, "pmod", 255, "That directory should be owned by root."},
			{"a link from the directory to elsewhere", "mv " + dir + "pmod.ko /tmp/; ln -s /tmp/pmod.ko " + dir + "pmod.ko", "pmod", 255, "does not exist within that directory."},
			{"deeper down", "mkdir " + dir + "sub; mv " + dir + "pmod.ko " + dir + "sub", dir + "sub/pmod.ko", 255, "does not exist within that directory."},
			{"that of another kernel", "mkdir -p /lib/modules/9.9.9/systemtap; mv " + dir + "pmod.ko /lib/modules/9.9.9/systemtap/", "/lib/modules/9.9.9/systemtap/pmod.ko", 255, "does not exist within that directory."},
			{"by name, of another kernel", "mkdir -p /lib/modules/9.9.9/systemtap; mv " + dir + "pmod.ko /lib/modules/9.9.9/systemtap/", "pmod", 1, "No such file"},
			{"through ..", "mkdir " + dir + "sub; mv " + dir + "pmod.ko /tmp/", dir + "sub/../../../../../tmp/pmod.ko", 255, "does not exist within that directory."},
			{"no such module", "rm " + dir + "pmod.ko", "pmod", 1, "No such file"},
		} {
			if !s.turn(i) {
				continue
			}
			t.Run(tt.name, func(t *testing.T) {
				reset()
				s.do(t, lab.Shell(lab.Root, tt.prepare))
				stdout := ""
				if tt.status == 0 {
					stdout = "Hello\n"
				}
				want(t, run(tt.word), tt.status, stdout, tt.stderr)
			})
		}
		reset()
		t.Run("only root and developers put modules there", func(t *testing.T) {
			add := func(u lab.User) request.Answer {
				return s.do(t, lab.Shell(u, "cp /tmp/own.ko "+dir+"own.ko && staprun "+dir+"own.ko; echo rc=$?; rm -f "+dir+"own.ko"))
			}
			s.put(t, "/tmp/own.ko", lab.Root, 0o644, dev)
			want(t, add(lab.Usr), 0, "rc=1\n", "Permission denied")
			want(t, add(lab.Dev), 0, "rc=1\n", "Permission denied")
			want(t, add(lab.Root), 0, "Hello\nrc=0\n")
			s.do(t, lab.Shell(lab.Root, "chgrp stapdev "+dir+"; chmod 775 "+dir))
			want(t, add(lab.Usr), 0, "rc=1\n", "Permission denied")
			want(t, add(lab.Dev), 0, "Hello\nrc=0\n")
		})
		reset()
		s.do(t, lab.Shell(lab.Root, "rm -rf /lib/modules/9.9.9 "+dir+"*"))
	})
}

const ticker = `probe begin { println("up") } probe timer.ms(100) { println("tick") } probe end { println("down") }`

func TestRelayEnds(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/ticker.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
		for name, sig := range map[string]int{"INT": 2, "TERM": 15, "HUP": 1} {
			t.Run(name, func(t *testing.T) {
				r := lab.Shell(lab.Dev, shellHead+fmt.Sprintf(`cd $(mktemp -d); staprun /tmp/ticker.ko >out & p=$!
await "grep -q tick out"; kill -%d $p; wait $p; status=$?; cat out; rm -r $PWD; exit $status`, sig))
				r.Timeout = 60
				got := s.do(t, r)
				text := string(got.Stdout)
				if got.Status != 0 || !strings.HasPrefix(text, "up\ntick\n") || !strings.HasSuffix(text, "tick\ndown\n") {
					t.Errorf("status %d, stdout %q, stderr %q", got.Status, got.Stdout, got.Stderr)
				}
				if l := s.loaded(t); l != "" {
					t.Errorf("still loaded: %s", l)
				}
			})
		}
		t.Run("an error in the script gives status 1", func(t *testing.T) {
			s.put(t, "/tmp/error.ko", lab.Root, 0o644, module(t, s.kernel, "", `probe begin { error("no luck") }`))
			want(t, s.do(t, lab.Command(lab.Dev, "staprun", "/tmp/error.ko")), 1, "", "ERROR: no luck")
		})
		t.Run("a warning does not", func(t *testing.T) {
			s.put(t, "/tmp/warn.ko", lab.Root, 0o644, module(t, s.kernel, "", `probe begin { warn("careful") warn("careful") exit() }`))
			got := s.do(t, lab.Command(lab.Dev, "staprun", "/tmp/warn.ko"))
			want(t, got, 0, "", "WARNING: careful\n")
			if n := strings.Count(string(got.Stderr), "careful"); n != 1 {
				t.Errorf("the warning is shown %d times", n)
			}
			want(t, s.do(t, lab.Command(lab.Dev, "staprun", "-w", "/tmp/warn.ko")), 0, "")
		})
		t.Run("output to a file", func(t *testing.T) {
			s.put(t, "/tmp/hello.ko", lab.Root, 0o644, module(t, s.kernel, "", hello))
			want(t, s.do(t, lab.Shell(lab.Dev, "cd /tmp && staprun -o out-%Y.txt hello.ko && cat out-$(date +%Y).txt")), 0, "Hello\n")
		})
		t.Run("a full disk is reported once and ends the run", func(t *testing.T) {
			got := s.do(t, lab.Shell(lab.Dev, "staprun /tmp/ticker.ko >/dev/full"))
			want(t, got, 1, "", "ERROR: error writing output:")
			if n := strings.Count(string(got.Stderr), "ERROR"); n != 1 {
				t.Errorf("%d errors: %q", n, got.Stderr)
			}
		})
		t.Run("a closed pipe ends the run", func(t *testing.T) {
			got := s.do(t, lab.Shell(lab.Dev, "(staprun /tmp/ticker.ko; echo rc=$? >&2) | head -n 1"))
			want(t, got, 0, "up\n", "error writing output:", "rc=1")
		})
		t.Run("a file renamed by the user still has its own name inside", func(t *testing.T) {
			want(t, s.do(t, lab.Shell(lab.Dev, "cp /tmp/hello.ko /tmp/other.ko && staprun /tmp/other.ko")), 0, "Hello\n")
		})
		t.Run("the same module twice needs -R", func(t *testing.T) {
			got := s.do(t, lab.Shell(lab.Dev, shellHead+`cd $(mktemp -d); staprun /tmp/ticker.ko >out & await "grep -q tick out"
staprun /tmp/ticker.ko; echo rc=$?; kill -INT $!; wait $!; rm -r $PWD`))
			want(t, got, 0, "rc=1\n", "File exists", "Rerun with staprun option '-R' to rename this module.")
		})
		t.Run("two users run the same module at the same time", func(t *testing.T) {
			id, _ := signers(t)
			m := module(t, s.kernel, "stapusr", `probe timer.ms(800) { printf("%d\n", uid()) exit() }`)
			s.trustSigner(t, id)
			s.put(t, "/tmp/shared.ko", lab.Root, 0o644, m)
			s.put(t, "/tmp/shared.ko.sgn", lab.Root, 0o644, sign(t, m, id))
			answers := make(chan request.Answer, 8)
			for i := range 8 {
				go func() {
					a, err := s.guest.Do(lab.Command([]lab.User{lab.Usr, lab.Usr2}[i%2], "staprun", "-R", "/tmp/shared.ko"))
					if err != nil {
						a.Stderr = []byte(err.Error())
						a.Status = -1
					}
					answers <- a
				}()
			}
			for range 8 {
				if a := <-answers; a.Status != 0 || len(a.Stdout) < 2 {
					t.Errorf("status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
				}
			}
			s.forgetSigners(t)
		})
		t.Run("a flood arrives complete and in order", func(t *testing.T) {
			s.put(t, "/tmp/flood.ko", lab.Root, 0o644, module(t, s.kernel, "", `probe begin { for (i = 0; i < 150000; i++) printf("%d:%056d\n", i, i) exit() }`, "-DMAXACTION=10000000", "-DMAXACTION_INTERRUPTIBLE=10000000", muchTime))
			got := s.do(t, lab.Shell(lab.Dev, `staprun -o /tmp/flood.txt /tmp/flood.ko; echo rc=$?; awk -F: '$1 != NR-1 || length($2) != 56 {bad++} END {print NR, bad+0}' /tmp/flood.txt; rm /tmp/flood.txt`))
			want(t, got, 0, "rc=0\n150000 0\n")
		})
	})
}

func TestRemove(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/ticker.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
		const name = "e2e_test_module_with_long_name"
		remove := func(u lab.User, word string) request.Answer { return s.do(t, lab.Command(u, "staprun", "-d", word)) }
		t.Run("no such module", func(t *testing.T) { want(t, remove(lab.Dev, "nosuch"), 234, "", "is not a zombie systemtap module.") })
		// CVE-2010-4171: staprun -d removed any module of the kernel.
		t.Run("CVE-2010-4171: a module that is not ours", func(t *testing.T) {
			want(t, remove(lab.Usr, "virtio_net"), 234, "", "'virtio_net' is not a zombie systemtap module.")
			got := s.do(t, lab.Shell(lab.Root, "lsmod | grep -c ^virtio_net"))
			want(t, got, 0, "1\n")
		})
		for _, bad := range []string{"..", ".", "/", "a b", "'; reboot; '"} {
			t.Run("bad name "+bad, func(t *testing.T) {
				if got := remove(lab.Usr, bad); got.Status == 0 || len(got.Stderr) == 0 {
					t.Errorf("status %d, stderr %q", got.Status, got.Stderr)
				}
			})
		}
		t.Run("attached, somebody else's, then one's own", func(t *testing.T) {
			r := lab.Shell(lab.Dev, printing("staprun /tmp/ticker.ko")+"kill -STOP $!; staprun -d "+name+"; echo $?; kill -KILL $!; sleep 0.3")
			want(t, s.do(t, r), 0, "234\n", "Another process is attached")
			want(t, remove(lab.Usr, name), 255, "", "is not a zombie systemtap module.")
			want(t, remove(lab.Dev, name), 0, "")
		})
	})
}

// Decision L5: who is root in a namespace of his own stays who he is.
func TestUserNamespaceCannotRaiseItsLevel(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		id, _ := signers(t)
		s.trustSigner(t, id)
		defer s.forgetSigners(t)
		m := module(t, s.kernel, "stapusr", ticker)
		s.put(t, "/tmp/ns.ko", lab.Root, 0o644, m)
		s.put(t, "/tmp/ns.ko.sgn", lab.Root, 0o644, sign(t, m, id))
		started := make(chan request.Answer, 1)
		r := lab.Command(lab.Usr, "staprun", "/tmp/ns.ko")
		r.Signals = []request.Signal{{Number: 19, After: 200}, {Number: 9, After: 400}} // leave it detached
		go func() {
			a, _ := s.guest.Do(r)
			started <- a
		}()
		<-started
		time.Sleep(200 * time.Millisecond)
		cmd := "/proc/systemtap/e2e_test_module_with_long_name/.cmd"
		ns := lab.Shell(lab.Usr, `id -u; printf '\130\0\0\0' >`+cmd+` && echo ready; printf '\137\0\0\0\016\0\0\0' >`+cmd)
		ns.UserNamespace = true
		got := s.do(t, ns)
		if string(got.Stdout) != "0\nready\n" || got.Status == 0 {
			t.Errorf("credentials from a user namespace: status %d, stdout %q, stderr %q", got.Status, got.Stdout, got.Stderr)
		}
		want(t, s.do(t, lab.Command(lab.Usr, "staprun", "-d", "e2e_test_module_with_long_name")), 0, "")
	})
}

// detached leaves a started module of a user's in the kernel, with nobody
// attached.
func (s *scene) detached(t *testing.T, u lab.User, words ...string) {
	t.Helper()
	r := lab.Command(u, append([]string{"staprun"}, words...)...)
	r.Signals = []request.Signal{{Number: 19, After: 200}, {Number: 9, After: 300}}
	s.do(t, r)
	if s.loaded(t) == "" {
		t.Fatal("no module is left")
	}
}

func TestAttach(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/ticker.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
		attach := func(u lab.User) request.Answer {
			t.Helper()
			r := lab.Command(u, "staprun", "-A", testModule)
			r.Signals = []request.Signal{{Number: 2, After: 1500}}
			return s.do(t, r)
		}
		const cannot = "ERROR: Cannot attach to module " + testModule + " control channel; not running?\n"
		t.Run("nothing is loaded", func(t *testing.T) { want(t, attach(lab.Dev), 1, "", cannot) })
		t.Run("another user's, then one's own", func(t *testing.T) {
			s.detached(t, lab.Dev, "/tmp/ticker.ko")
			want(t, attach(lab.Usr), 1, "", cannot)
			got := attach(lab.Dev)
			if text := string(got.Stdout); got.Status != 0 || !strings.Contains(text, "tick\ntick\n") || !strings.HasSuffix(text, "down\n") {
				t.Errorf("status %d, stdout %q, stderr %q", got.Status, got.Stdout, got.Stderr)
			}
		})
		// Decision L8: what a script makes stapio do is its owner's doing.
		t.Run("root goes on as the owner", func(t *testing.T) {
			s.detached(t, lab.Dev, "/tmp/ticker.ko")
			r := lab.Shell(lab.Root, "umask 022; cd /tmp; "+printing("staprun -A "+testModule)+"grep -E '^(Uid|Gid|Groups|CapEff):' /proc/$(pidof stapio)/status; kill -INT $(pidof stapio); wait $!; echo $?")
			r.Groups = []int{0, 4, 27}
			want(t, s.do(t, r), 0, "Uid:\t1001\t1001\t1001\t1001\nGid:\t1001\t1001\t1001\t1001\nGroups:\t156 158 1001 \nCapEff:\t0000000000000000\n0\n")
		})
		t.Run("while somebody is attached", func(t *testing.T) {
			r := lab.Shell(lab.Dev, printing("staprun /tmp/ticker.ko")+"staprun -A "+testModule+"; echo $?; kill -INT $!; wait $!")
			want(t, s.do(t, r), 0, "1\n", "ERROR: Another process is attached to module "+testModule+".\n"+cannot)
		})
	})
}

func TestRemoveAll(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/ticker.ko", ticker)
		for range 2 {
			s.detached(t, lab.Usr, "-R", "/tmp/ticker.ko")
			s.detached(t, lab.Dev, "-R", "/tmp/ticker.ko")
		}
		running := lab.Shell(lab.Usr, printing("staprun -R /tmp/ticker.ko")+"staprun -d '*'; echo $?; kill -INT $!; wait $!")
		a := s.do(t, running)
		if a.Status != 0 || strings.Count(string(a.Stdout), " removed.\n") != 2 || !strings.HasSuffix(string(a.Stdout), "\n0\n") || len(a.Stderr) > 0 {
			t.Errorf("status %d, stdout %q, stderr %q; two modules are usr's and detached", a.Status, a.Stdout, a.Stderr)
		}
		a = s.do(t, lab.Command(lab.Usr, "staprun", "-v", "-d", "*"))
		if a.Status != 0 || len(a.Stdout) > 0 || strings.Count(string(a.Stderr), "is not removed") != 2 {
			t.Errorf("status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
		}
		a = s.do(t, lab.Command(lab.Root, "staprun", "-d", "*"))
		if a.Status != 0 || strings.Count(string(a.Stdout), " removed.\n") != 2 {
			t.Errorf("root: status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
		}
		if l := s.loaded(t); l != "" {
			t.Errorf("still loaded: %s", l)
		}
	})
}

func TestMaxModules(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/ticker.ko", ticker)
		s.put(t, "/etc/stapbox/load.conf", lab.Root, 0o644, []byte("max-modules=2\n"))
		defer s.do(t, lab.Shell(lab.Root, "rm /etc/stapbox/load.conf; staprun -d '*'"))
		for range 2 {
			s.detached(t, lab.Usr, "-R", "/tmp/ticker.ko")
		}
		want(t, s.do(t, lab.Command(lab.Usr, "staprun", "-R", "/tmp/ticker.ko")), 255, "",
			"ERROR: You have 2 modules loaded, which is all that max-modules=2 allows a user (/etc/stapbox/load.conf).\nhint: staprun -d '*' removes those that nobody is attached to\n")
		s.detached(t, lab.Usr2, "-R", "/tmp/ticker.ko")
		for range 3 {
			s.detached(t, lab.Root, "-R", "/tmp/ticker.ko")
		}
		a := s.do(t, lab.Command(lab.Usr, "stapbox", "doctor"))
		if a.Status != 1 || strings.Count(string(a.Stdout), "cure  leftover-modules module ") != 6 || !strings.Contains(string(a.Stdout), ", loaded by usr2, ") {
			t.Errorf("doctor: status %d, %s%s", a.Status, a.Stdout, a.Stderr)
		}
		want(t, s.do(t, lab.Shell(lab.Usr, "staprun -d '*' | wc -l")), 0, "2\n")
	})
}

func TestAuditTrail(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/audit.ko", ticker)
		s.do(t, lab.Shell(lab.Root, "dmesg -c >/dev/null"))
		expect := func(what string, parts ...string) {
			t.Helper()
			a := s.do(t, lab.Shell(lab.Root, "dmesg -c | grep 'staprun\\['"))
			if strings.Count(string(a.Stdout), "\n") != 1 {
				t.Errorf("%s: the audit trail has\n%s", what, a.Stdout)
			}
			for _, p := range parts {
				if !strings.Contains(string(a.Stdout), p) {
					t.Errorf("%s: %s lacks %s", what, a.Stdout, p)
				}
			}
		}
		s.leaveFile(t, lab.Usr, "/tmp/audit.ko")
		expect("load", `"action":"load","allow":true,"rule":"d","uid":1002,"levels":"stapusr","module":"`+testModule+`","path":"/tmp/audit.ko","sha256":"`, `"required":"stapusr","signature":"ok","signer":"`)
		s.do(t, lab.Command(lab.Usr2, "staprun", "-A", testModule))
		expect("attaching refused", `"action":"attach","allow":false,"rule":"owner","uid":1005,"module":"`+testModule+`"`)
		s.do(t, lab.Command(lab.Usr2, "staprun", "-d", testModule))
		expect("removal refused", `"action":"remove","allow":false,"rule":"owner","uid":1005`)
		s.do(t, lab.Command(lab.Usr, "staprun", "-d", testModule))
		expect("removal", `"action":"remove","allow":true,"rule":"owner","uid":1002`)
		s.do(t, lab.Command(lab.Usr, "staprun", "/tmp/none.ko"))
		expect("no file", `"action":"load","allow":false,"rule":"unreadable","uid":1002`, `"path":"/tmp/none.ko"`)
		s.put(t, "/root/secret.ko", lab.Root, 0o600, []byte("x"))
		s.do(t, lab.Command(lab.Usr, "staprun", "/root/secret.ko"))
		expect("unreadable file", `"rule":"unreadable","uid":1002`)
		s.do(t, lab.Command(lab.Usr, "staprun", "/tmp/"+strings.Repeat("\"/", 1500)+"n.ko"))
		expect("a path that would not fit", `"rule":"unreadable"`, "...")
		s.do(t, lab.Shell(lab.Usr, "rm /tmp/audit.ko.sgn; staprun /tmp/audit.ko"))
		expect("refusal", `"allow":false,"rule":"g","uid":1002`, `"signature":"untrusted"`, `"why":"the module is not signed"`)
	})
}

// leaveFile is leave for a file that is there: staprun is killed when all is done
// but the hand-over.
func (s *scene) leaveFile(t *testing.T, u lab.User, path string) request.Answer {
	t.Helper()
	r := lab.Command(u, "staprun", path)
	r.Break = &request.Break{Text: "staprun execve", Nth: 1}
	return s.do(t, r)
}

func TestLoaderParameters(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/param.ko", lab.Root, 0o644, module(t, s.kernel, "", `global n = 1, text = "none" probe begin { printf("%d <%s>\n", n, text) exit() }`))
		for _, tt := range []struct {
			words          []string
			stdout, stderr string
		}{
			{nil, "1 <none>\n", ""},
			{[]string{"n=-7"}, "-7 <none>\n", ""},
			{[]string{"text=two  words", "n=0x10"}, "16 <two  words>\n", ""},
			{[]string{`text="two words"`}, "1 <two words>\n", ""},
			{[]string{"text=it's à la carte"}, "1 <it's à la carte>\n", ""},
			{[]string{`text=a" n="5`}, "", "has a double quote"},
			{[]string{"n"}, "", "is not NAME=VALUE"},
			{[]string{"text=" + strings.Repeat("x", 17000)}, "", "more than the 16384 allowed"},
		} {
			status := 0
			if tt.stderr != "" {
				status = 1
			}
			want(t, s.do(t, lab.Command(lab.Dev, append([]string{"staprun", "/tmp/param.ko"}, tt.words...)...)), status, tt.stdout, tt.stderr)
		}
		want(t, s.do(t, lab.Command(lab.Dev, "staprun", "-r", "3:unix://x", "/tmp/param.ko")), 0, "1 <none>\n")
	})
}
