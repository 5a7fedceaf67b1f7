package e2e

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"stapbox/core/identity"
	"stapbox/core/trust/edit"
	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// The tests here are named for what went wrong elsewhere: CVE numbers, and the
// entries of loader-relay 10.2 and 10.3, counted in the order they stand there.

// made lists the system calls a command makes, as agent's trace describes them.
func (s *scene) made(t *testing.T, r request.Request) ([]string, request.Answer) {
	t.Helper()
	r.Break = &request.Break{List: true}
	a := s.do(t, r)
	var list []string
	for _, m := range listed.FindAllStringSubmatch(string(a.Stderr), -1) {
		list = append(list, m[1])
	}
	if len(list) < 5 {
		t.Fatalf("the trace has %d calls: %s", len(list), a.Stderr)
	}
	return list, a
}

// The path was checked and then used once more: by swapping a link to an approved
// module the swapped-in one was loaded.
func TestCVE_2009_0784_PathIsUsedOnce(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.approve(t, "good", module(t, s.kernel, "", hello))
		s.put(t, "/tmp/evil.ko", lab.Usr, 0o644, module(t, s.kernel, "", evil))
		link := "ln -sfn " + s.blessed() + "good.ko /home/usr/link.ko"
		s.do(t, lab.Shell(lab.Usr, link))
		r := lab.Command(lab.Usr, "staprun", "/home/usr/link.ko")
		points := s.calls(t, r, "staprun finit_module")
		loaded := 0
		for n := range points {
			if n%4 != 0 && !strings.Contains(points[n], ".ko") && !strings.Contains(points[n], "module") {
				continue
			}
			r := r
			r.Break = &request.Break{Nth: n + 1, Shell: "ln -sfn /tmp/evil.ko /home/usr/link.ko"}
			a := s.do(t, r)
			s.do(t, lab.Shell(lab.Usr, link))
			if strings.Contains(string(a.Stdout), "EVIL") {
				t.Errorf("swapped before %q: the evil module ran", points[n])
			}
			if a.Status == 0 {
				loaded++
			}
		}
		if loaded == 0 {
			t.Error("the approved module was never loaded")
		}
	})
}

// Scripts of users could exhaust the kernel stack and keep a CPU for ever.
func TestCVE_2009_2911_ScriptsAreBounded(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		run := func(script string) request.Answer {
			t.Helper()
			s.putSigned(t, "/tmp/cve.ko", script)
			return s.do(t, lab.Command(lab.Usr, "staprun", "/tmp/cve.ko"))
		}
		want(t, run(`global n probe begin { while (1) n++ } probe end { println(n > 0) }`), 1, "", "MAXACTION exceeded")
		want(t, run(`function f(n) { if (n < 0) return 0 return f(n + 1) } probe begin { println(f(0)) exit() }`), 1, "", "MAXNESTING exceeded")
		args := strings.Repeat(", 1", 200)
		a := run(`probe begin { printf("` + strings.Repeat("%1000d", 200) + `"` + args + `) exit() }`)
		if a.Status > 1 || len(a.Stdout) > 200*1000 {
			t.Errorf("status %d, %d bytes", a.Status, len(a.Stdout))
		}
	})
}

// staprun executed modprobe with the caller's environment.
func TestCVE_2010_4170_NothingIsExecutedButStapio(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/cve.ko", hello)
		for _, words := range [][]string{{"/tmp/cve.ko"}, {"-u", "/tmp/cve.ko"}, {"-u/tmp/uprobes.ko", "/tmp/cve.ko"}} {
			r := lab.Command(lab.Usr, append([]string{"staprun"}, words...)...)
			r.Env = append([]string{"MODPROBE_OPTIONS=-C/tmp/evil -d/tmp/evil", "SYSTEMTAP_RUNTIME=/tmp"}, r.Env...)
			calls, a := s.made(t, r)
			if a.Status != 0 || string(a.Stdout) != "Hello\n" {
				t.Errorf("%q: status %d, stdout %q, stderr %q", words, a.Status, a.Stdout, a.Stderr)
			}
			n := 0
			for _, c := range calls {
				if program, ok := strings.CutPrefix(c, "staprun execve "); ok {
					n++
					if program != "/usr/libexec/stapbox/stapio" {
						t.Errorf("%q: staprun executes %q", words, program)
					}
				}
			}
			if n != 1 {
				t.Errorf("%q: %d programs were executed", words, n)
			}
		}
	})
}

// staprun -d removed any module of the kernel for members of stapusr.
func TestCVE_2010_4171_OnlyOwnModulesAreRemoved(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		before := s.do(t, lab.Shell(lab.Root, "cut -d' ' -f1 /proc/modules | sort"))
		for _, name := range strings.Fields(string(before.Stdout)) {
			calls, a := s.made(t, lab.Command(lab.Usr, "staprun", "-d", name))
			if a.Status != 234 {
				t.Errorf("-d %s: status %d, stderr %q", name, a.Status, a.Stderr)
			}
			for _, c := range calls {
				if strings.Contains(c, "delete_module") {
					t.Errorf("-d %s: %s", name, c)
				}
			}
		}
		after := s.do(t, lab.Shell(lab.Root, "cut -d' ' -f1 /proc/modules | sort"))
		if !bytes.Equal(before.Stdout, after.Stdout) {
			t.Errorf("modules before %q, after %q", before.Stdout, after.Stdout)
		}
	})
}

// Division by zero in the evaluation of expressions brought the kernel down (two
// numbers, for the two places where it happened).
func TestCVE_2011_1769_CVE_2011_1781_DivisionByZero(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		for _, expr := range []string{"1 / z", "1 % z", "(z - 0x7fffffffffffffff - 1) / (z - 1)", "(z - 0x7fffffffffffffff - 1) % (z - 1)"} {
			s.putSigned(t, "/tmp/cve.ko", `global z probe begin { println(`+expr+`) exit() }`)
			a := s.do(t, lab.Command(lab.Usr, "staprun", "/tmp/cve.ko"))
			if strings.HasSuffix(expr, " z") {
				want(t, a, 1, "", "ERROR: division by 0")
			} else if a.Status > 1 { // overflow of the quotient traps on x86 too
				t.Errorf("%s: status %d, stdout %q, stderr %q", expr, a.Status, a.Stdout, a.Stderr)
			}
		}
	})
}

// The path of -u was exempt from every check.
func TestCVE_2011_2502_NoModuleIsLoadedForU(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/cve.ko", hello)
		s.put(t, "/tmp/uprobes.ko", lab.Usr, 0o644, module(t, s.kernel, "", evil))
		calls, a := s.made(t, lab.Command(lab.Usr, "staprun", "-u/tmp/uprobes.ko", "/tmp/cve.ko"))
		if a.Status != 0 || string(a.Stdout) != "Hello\n" || !strings.Contains(string(a.Stderr), "WARNING: Ignoring -u: the kernel has uprobes built in.") {
			t.Errorf("status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
		}
		inserted := 0
		for _, c := range calls {
			if strings.Contains(c, "uprobes.ko") {
				t.Errorf("the file is looked at: %s", c)
			}
			if strings.Contains(c, "finit_module") {
				inserted++
			}
		}
		if inserted != 1 {
			t.Errorf("%d modules were inserted", inserted)
		}
	})
}

// The module was mapped, verified, and then loaded from the map: its content
// could be changed in between.
func TestCVE_2011_2503_LoadedIsWhatWasVerified(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		for _, call := range []string{"openat2 /tmp/cve.ko.sgn", ".pem", "memfd_create", "finit_module"} {
			s.putSigned(t, "/tmp/cve.ko", hello)
			s.put(t, "/tmp/evil.ko", lab.Usr, 0o644, module(t, s.kernel, "stapusr", evil))
			r := lab.Command(lab.Usr, "staprun", "/tmp/cve.ko")
			r.Break = &request.Break{Text: call, Nth: 1, Shell: "cat /tmp/evil.ko >/tmp/cve.ko"}
			a := s.do(t, r)
			if a.Status != 0 || string(a.Stdout) != "Hello\n" || !strings.Contains(string(a.Stderr), "act: ") {
				t.Errorf("changed before %s: status %d, stdout %q, stderr %q", call, a.Status, a.Stdout, a.Stderr)
			}
		}
	})
}

// Malformed unwind data of a probed program brought the kernel down: our modules
// have no unwinder, and a script that wants one is refused where it is compiled.
func TestCVE_2012_0875_NoUnwinder(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		cmd := exec.Command(stage.programs.Applet("stap"), "-p4", "-r", s.kernel.Headers, "-e", `probe begin { print_ubacktrace() }`)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "SYSTEMTAP_DIR="+kernelState())
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "print_ubacktrace") {
			t.Errorf("%v, %s", err, out)
		}
		if m := module(t, s.kernel, "stapusr", hello); bytes.Contains(m, []byte(".eh_frame")) || bytes.Contains(m, []byte(".debug_frame")) {
			t.Error("a module carries unwind data in DWARF")
		}
	})
}

// Code reached from the setuid program wrote a log of a fixed name into a
// directory of everybody's.
func TestDefect_10_2_01_NoFilesOfFixedNames(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/defect.ko", hello)
		names := lab.Shell(lab.Root, "find / -xdev -newer /tmp/mark ! -type d ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*' | sort")
		s.do(t, lab.Shell(lab.Root, "touch /tmp/mark; sleep 1.1"))
		want(t, s.do(t, lab.Command(lab.Usr, "staprun", "/tmp/defect.ko")), 0, "Hello\n")
		want(t, s.do(t, names), 0, "")
	})
}

// Verification could not work for those it was made for: a user who is not root,
// a store as the tools make it, a setuid loader.
func TestDefect_10_2_02_VerificationWorksForUsers(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		s.putSigned(t, "/tmp/defect.ko", hello)
		for _, u := range []lab.User{lab.Usr, lab.Usr2, lab.Sys} {
			want(t, s.do(t, lab.Command(u, "staprun", "/tmp/defect.ko")), 0, "Hello\n")
		}
	})
}

// With several certificates, one that did not match ended the search.
func TestDefect_10_2_03_EveryCertificateIsTried(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		m := module(t, s.kernel, "stapusr", hello)
		var ids []*identity.Identity
		for i, kind := range []identity.KeyType{identity.RSA, identity.Ed25519, identity.ECDSA, identity.Ed25519} {
			id, err := identity.New(identity.Options{NodeName: fmt.Sprintf("n%d.example", i), Now: time.Now(), KeyType: kind})
			if err != nil {
				t.Fatal(err)
			}
			s.trustSigner(t, id)
			ids = append(ids, id)
		}
		for i, id := range ids {
			if got := s.loads(t, lab.Usr, placed{m, sign(t, m, id)}); got.Status != 0 || string(got.Stdout) != "Hello\n" {
				t.Errorf("signer %d: status %d, stderr %q", i, got.Status, got.Stderr)
			}
		}
	})
}

// Expired certificates and SHA-1 were accepted for ever.
func TestDefect_10_2_04_ExpiryAndSHA1ArePolicy(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.forgetSigners(t)
		t.Cleanup(func() {
			s.forgetSigners(t)
			s.do(t, lab.Shell(lab.Root, "rm -f /etc/stapbox/load.conf"))
		})
		m := module(t, s.kernel, "stapusr", hello)
		policy := func(text string, mode uint32) { s.put(t, "/etc/stapbox/load.conf", lab.Root, mode, []byte(text)) }
		for _, tt := range []struct {
			when time.Time
			text string
		}{{time.Now().AddDate(-20, 0, 0), "expired on"}, {time.Now().AddDate(5, 0, 0), "is not valid before"}} {
			id, err := identity.New(identity.Options{NodeName: "x.example", Now: tt.when})
			if err != nil {
				t.Fatal(err)
			}
			s.put(t, signerStore+identity.Fingerprint(id.Certificate)+".pem", lab.Root, 0o644, edit.Format(id.Certificate, edit.Note{Host: "x", When: time.Now(), By: "x", Scope: "x"}))
			policy("", 0o644)
			want(t, s.loads(t, lab.Usr, placed{m, sign(t, m, id)}), 0, "Hello\n", "WARNING: the certificate of signer sha256:", tt.text)
			policy("refuse-expired=yes\n", 0o644)
			want(t, s.loads(t, lab.Usr, placed{m, sign(t, m, id)}), 255, "", textUnverified)
		}
		a, _ := signers(t)
		s.trustSigner(t, a)
		sum := sha1.Sum(m)
		old, err := rsa.SignPKCS1v15(nil, a.Key.(*rsa.PrivateKey), crypto.SHA1, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		policy("", 0o644)
		want(t, s.loads(t, lab.Usr, placed{m, old}), 255, "", textUnverified)
		policy("allow-sha1=yes\n", 0o644)
		want(t, s.loads(t, lab.Usr, placed{m, old}), 0, "Hello\n")
		want(t, s.loads(t, lab.Usr, placed{flip(m, 50), old}), 255, "", textAltered)
		policy("allow-sha1=yes\n", 0o666)
		want(t, s.loads(t, lab.Usr, placed{m, old}), 255, "", "ERROR: Unable to use the load policy: file \"/etc/stapbox/load.conf\" must not be writable by the group")
		policy("allow-sha1=maybe\n", 0o644)
		want(t, s.loads(t, lab.Usr, placed{m, old}), 255, "", "/etc/stapbox/load.conf:1: \"allow-sha1=maybe\" is not a known setting")
	})
}

// An unsigned module of the approved directory was everybody's who could execute
// staprun, in a group or not.
func TestDefect_10_2_05_ApprovedModulesNeedAGroup(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.approve(t, "row", module(t, s.kernel, "", hello))
		s.do(t, lab.Shell(lab.Root, "chmod 04755 /usr/bin/staprun"))
		defer s.do(t, lab.Shell(lab.Root, "chmod 04750 /usr/bin/staprun"))
		a := s.do(t, lab.Command(lab.Nobody, "staprun", "row"))
		want(t, a, 255, "", "You are trying to run systemtap as a normal user.", `group "stapusr"`)
	})
}

// Settings of the whole host were changed and never put back.
func TestDefect_10_2_07_SettingsOfTheHostStay(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", hello))
		r := lab.Shell(lab.Root, `cd /proc/sys; show() { cat kernel/kptr_restrict debug/kprobes-optimization 2>/dev/null; cat /proc/mounts | wc -l; }
			for n in 0 1 2; do echo $n >kernel/kptr_restrict; show >/tmp/1; staprun /tmp/defect.ko; show >/tmp/2; cmp /tmp/1 /tmp/2; done; rm /tmp/1 /tmp/2; echo 0 >kernel/kptr_restrict`)
		want(t, s.do(t, r), 0, "Hello\nHello\nHello\n")
	})
}

// SYSTEMTAP_REAL_UID left root's groups.
func TestDefect_10_2_08_RealUIDTakesTheGroupsToo(t *testing.T) {
	// stapio listens to INT, bit 1 of the last digit. For root it is a process beside
	// staprun.
	const begun = `until p=$(pidof stapio); do kill -0 $q || break; sleep 0.1; done; `
	const listening = `until [ "$(cat /proc/$p/comm)" = stapio ] && grep -q 'SigCgt:.*[2367abef]$' /proc/$p/status; do kill -0 $p || break; sleep 0.1; done`
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
		run := func(env string, groups ...int) request.Answer {
			r := lab.Shell(lab.Root, env+` staprun -o /dev/null /tmp/defect.ko & q=$!; `+begun+listening+`
				stat -c '%u %g' /proc/systemtap/*/.cmd
				grep -E '^(Uid|Gid|Groups|CapEff):' /proc/$p/status; kill -INT $q; wait $q; echo $?`)
			r.Groups = groups
			return s.do(t, r)
		}
		want(t, run("SYSTEMTAP_REAL_UID=1002", 0, 4, 27), 0, "1002 1002\nUid:\t1002\t1002\t1002\t1002\nGid:\t1002\t1002\t1002\t1002\nGroups:\t156 1002 \nCapEff:\t0000000000000000\n0\n")
		want(t, run("SYSTEMTAP_REAL_UID=1002 SYSTEMTAP_REAL_GID=156", 0, 4, 27), 0, "1002 156\nUid:\t1002\t1002\t1002\t1002\nGid:\t156\t156\t156\t156\nGroups:\t156 1002 \nCapEff:\t0000000000000000\n0\n")
		for _, bad := range []string{"x", "-1", "99999999999", ""} {
			r := lab.Shell(lab.Root, "SYSTEMTAP_REAL_UID='"+bad+"' staprun /tmp/defect.ko")
			want(t, s.do(t, r), 1, "", "is not an id")
		}
		want(t, s.do(t, lab.Shell(lab.Root, "SYSTEMTAP_REAL_UID=4711 staprun /tmp/defect.ko")), 1, "", "not in /etc/passwd")
		// Only root's counts.
		r := lab.Shell(lab.Dev, "SYSTEMTAP_REAL_UID=0 staprun -o /dev/null /tmp/defect.ko & p=$!; "+listening+"; grep ^Uid: /proc/$p/status; kill -INT $p; wait $!")
		want(t, s.do(t, r), 0, "Uid:\t1001\t1001\t1001\t1001\n")
	})
}

// Signal handlers did what handlers must not do.
func TestDefect_10_2_09_SignalsInNumbers(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", hello))
		for _, call := range []string{"staprun openat2", "staprun finit_module", "staprun write"} {
			r := lab.Command(lab.Dev, "staprun", "/tmp/defect.ko")
			r.Break = &request.Break{Text: call, Nth: 1, Shell: "for i in $(seq 50); do killall -PIPE staprun; killall -USR1 staprun; killall -USR2 staprun; done", Hold: 100}
			want(t, s.do(t, r), 0, "Hello\n", "act: ")
			r.Break.Shell = "for i in $(seq 50); do killall -HUP staprun; killall -TERM staprun; killall -INT staprun; done"
			want(t, s.do(t, r), 1, "", "act: ")
		}
		r := lab.Command(lab.Dev, "staprun", "/tmp/defect.ko")
		r.Break = &request.Break{Text: "staprun openat2", Nth: 1, Shell: "killall -BUS staprun", Hold: 100}
		want(t, s.do(t, r), 1, "", "\nUNEXPECTED FATAL ERROR in staprun. Please file a bug report.\n")
	})
}

// ELF of unknown origin was read with a large library as root before the verdict.
func TestDefect_10_2_10_MalformedModulesAreRefused(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.onlySigner(t)
		a, _ := signers(t)
		good := module(t, s.kernel, "stapusr", hello)
		at := bytes.Index(good, []byte(".stap_privilege"))
		if at < 0 {
			t.Fatal("no section name .stap_privilege")
		}
		change := func(f func(m []byte)) []byte {
			m := bytes.Clone(good)
			f(m)
			return m
		}
		for name, m := range map[string][]byte{
			"empty":                    {},
			"half":                     good[:len(good)/2],
			"header only":              good[:64],
			"headers far away":         change(func(m []byte) { copy(m[0x28:], "\xff\xff\xff\xff\xff\xff\xff\x7f") }),
			"65535 sections":           change(func(m []byte) { copy(m[0x3c:], "\xff\xff") }),
			"no level section":         change(func(m []byte) { m[at+1] = 'x' }),
			"foreign byte order":       change(func(m []byte) { m[5] = 2 }),
			"32 bit":                   change(func(m []byte) { m[4] = 1 }),
			"string table out of file": change(func(m []byte) { copy(m[0x3e:], "\xfe\xff") }),
		} {
			got := s.loads(t, lab.Usr, placed{m, sign(t, m, a)})
			if got.Status != 1 && got.Status != 255 || len(got.Stdout) > 0 || !strings.HasPrefix(string(got.Stderr), "ERROR: ") {
				t.Errorf("%s: status %d, stdout %q, stderr %q", name, got.Status, got.Stdout, got.Stderr)
			}
		}
	})
}

// The setuid program was linked with name services, ELF and C++ libraries.
func TestDefect_10_2_11_TheLoaderIsStatic(t *testing.T) {
	f, err := elf.Open(stage.programs.Box)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the box has a %v segment", p.Type)
		}
	}
}

// Removal went through sh, found by PATH, with an unquoted path of staprun.
func TestDefect_10_2_12_RemovalWithoutAShell(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", hello))
		s.do(t, lab.Shell(lab.Root, `mkdir -p '/tmp/a b;touch x' /tmp/evil; printf '#!/bin/sh\necho "EVIL $0"\n' >/tmp/evil/sh; chmod 755 /tmp/evil/sh; cp /tmp/evil/sh /tmp/evil/staprun; ln -s /usr/bin/staprun '/tmp/a b;touch x/staprun'`))
		defer s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/a* /tmp/evil"))
		r := lab.Command(lab.Dev, "/usr/bin/staprun", "/tmp/defect.ko")
		r.Argv[0], r.Env = "staprun", []string{"PATH=/tmp/evil"}
		want(t, s.do(t, r), 0, "Hello\n")
		r = lab.Command(lab.Root, "/usr/bin/staprun", "/tmp/defect.ko")
		r.Argv[0], r.Env = "staprun", []string{"PATH=/tmp/evil", "SYSTEMTAP_STAPRUN=/tmp/a b;touch x/staprun"}
		want(t, s.do(t, r), 0, "Hello\n")
	})
}

// The name of the file was taken for the name of the module.
func TestDefect_10_3_01_RenamedFile(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/renamed-by-me.ko", lab.Root, 0o644, module(t, s.kernel, "", hello))
		for _, words := range [][]string{{"/tmp/renamed-by-me.ko"}, {"-R", "/tmp/renamed-by-me.ko"}} {
			want(t, s.do(t, lab.Command(lab.Dev, append([]string{"staprun"}, words...)...)), 0, "Hello\n")
		}
	})
}

// A host without debugfs could not run a module that does not need it.
func TestDefect_10_3_13_NoDebugfsIsNeeded(t *testing.T) {
	onKernels(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", hello))
		mounted := lab.Shell(lab.Root, "grep -c debugfs /proc/mounts")
		want(t, s.do(t, mounted), 1, "0\n")
		want(t, s.do(t, lab.Command(lab.Dev, "staprun", "/tmp/defect.ko")), 0, "Hello\n")
		want(t, s.do(t, mounted), 1, "0\n")
	})
}

// Switching output files removed the device node.
func TestDefect_10_2_06_DevNullStays(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", scriptPages, manyActions, muchTime))
		want(t, s.do(t, lab.Shell(lab.Root, "staprun -S 1,1 -o /dev/null /tmp/defect.ko; echo $?; test -c /dev/null && echo there; ls /dev/null*")), 0, "0\nthere\n/dev/null\n")
	})
}

// A target that ended while begin probes ran was never noticed.
func TestDefect_10_3_02_TargetThatEndsAtOnce(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", scriptBusy, manyActions, muchTime))
		r := lab.Command(lab.Dev, "staprun", "-c", "true", "/tmp/defect.ko")
		want(t, s.do(t, r), 0, "began\nend\n")
		r = lab.Command(lab.Dev, "staprun", "-c", "/proc/nonexistent/program", "/tmp/defect.ko")
		a := s.do(t, r)
		if a.Status != 1 || s.loaded(t) != "" {
			t.Errorf("no such program: status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
		}
	})
}

// Children of system() hid the end of the target.
func TestDefect_10_3_03_TargetAmongOtherChildren(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", `probe timer.ms(50) { system("true") } probe end { println("end") }`))
		a := s.do(t, lab.Command(lab.Dev, "staprun", "-w", "-c", "sleep 1", "/tmp/defect.ko"))
		want(t, a, 0, "end\n")
		a = s.do(t, lab.Command(lab.Dev, "staprun", "-w", "-c", "sh -c 'sleep 1; exit 3'", "/tmp/defect.ko"))
		if a.Status != 1 || string(a.Stdout) != "end\n" {
			t.Errorf("status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
		}
	})
}

// A broken pipe did not end a run, and the end waited for the readers' timeout.
func TestDefect_10_3_04_EndsAtOnce(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", scriptTick))
		want(t, s.do(t, lab.Shell(lab.Dev, "(staprun /tmp/defect.ko; echo $? >&2) | head -n 2")), 0, "begin\n0\n", "1\n")
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", hello))
		plain := s.do(t, lab.Command(lab.Dev, "staprun", "/tmp/defect.ko"))
		slow := s.do(t, lab.Command(lab.Dev, "staprun", "-T", "20000", "/tmp/defect.ko"))
		want(t, slow, 0, "Hello\n")
		if slow.Millis > plain.Millis+10000 {
			t.Errorf("with -T 20000 the run takes %d ms, else %d", slow.Millis, plain.Millis)
		}
	})
}

// What stapio ignored was ignored by what it ran; -V was lost in a pipe.
func TestDefect_10_3_09_NothingIsInherited(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		s.put(t, "/tmp/defect.ko", lab.Root, 0o644, module(t, s.kernel, "", scriptStay))
		a := s.do(t, lab.Command(lab.Dev, "staprun", "-c", "grep -e SigIgn -e SigBlk /proc/self/status", "/tmp/defect.ko"))
		if a.Status != 0 || !strings.Contains(string(a.Stdout), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n") {
			t.Errorf("status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
		}
		want(t, s.do(t, lab.Shell(lab.Dev, "staprun -V | grep -c loader")), 0, "1\n")
		want(t, s.do(t, lab.Shell(lab.Dev, "staprun -M 0 /tmp/defect.ko >/dev/null")), 1, "", "ERROR: Invalid monitor interval")
	})
}
