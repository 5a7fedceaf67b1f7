package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/lab"
)

// pinsLoader says what was counted in the sections whose rows are here.
func pinsLoader() []pin {
	return []pin{
		{"2.2", 10, "lines of the list of conflicts"},
		{"4.2", 7, "rows a to g of the decision table"},
		{"4.3", 10, "messages: six about the directory, two about the module, two about path and uname"},
		{"13", 8, "rows 1 to 8 of the 13 of the table, those of staprun"},
		{"15.8", 14, "items between semicolons and commas: the decision table, six of places, five of .sgn, two of the store"},
		{"15.9", 7, "two swaps, FIFO and directory as .ko and as .sgn, the sparse file"},
		{"15.10", 9, "three modules, five names, and the empty result"},
		{"15.11", 8, "environment, descriptors, three limits, SIGCHLD, POSIXLY_CORRECT, --"},
	}
}

func rowsLoader() []row {
	rows := rowsConflicts()
	rows = append(rows, rowsDecision()...)
	rows = append(rows, rowsBlessed()...)
	rows = append(rows, rowsLoaderStatus()...)
	rows = append(rows, rowsFiles()...)
	rows = append(rows, rowsRemoval()...)
	return append(rows, rowsSurroundings()...)
}

// rowsConflicts are those of options (2.2): message, usage on stdout, status 1.
func rowsConflicts() []row {
	var rows []row
	for i, c := range []struct {
		name, options, text string
	}{
		{"-A -L", "-A -L m", "You can't specify the '-A' and '-L' options together."},
		{"-A -b", "-A -b 5 m", "You can't specify the '-A' and '-b' options together.  The '-b'\nbuffer size option only has an effect when the module is inserted."},
		{"-A -c", "-A -c true m", "You can't specify the '-A' and '-c' options together.  The '-c cmd'\noption used to start a command only has an effect when the module\nis inserted."},
		{"-A -x", "-A -x 1 m", "You can't specify the '-A' and '-x' options together.  The '-x pid'\noption only has an effect when the module is inserted."},
		{"-c -x", "-c true -x 1 m", "You can't specify the '-c' and '-x' options together."},
		{"-D -L", "-D -L -o f m", "You can't specify the '-D' and '-L' options together."},
		{"-D -d", "-D -d -o f m", "You can't specify the '-D' and '-d' options together."},
		{"-D -c", "-D -c true -o f m", "You can't specify the '-D' and '-c' options together."},
		{"-D without -o", "-D m", "You have to specify output FILE with '-D' option."},
		{"-S without -o", "-S 1 m", "You have to specify output FILE with '-S' option."},
	} {
		rows = append(rows, row{"2.2", fmt.Sprint(i + 1), c.name + " is refused with its text and the usage", func(t *testing.T, s *scene) {
			a := s.do(t, lab.Command(lab.Usr, append([]string{"staprun"}, strings.Fields(c.options)...)...))
			if a.Status != 1 || string(a.Stderr) != "ERROR: "+c.text+"\n" || !strings.HasPrefix(string(a.Stdout), "\nstaprun [-v]") {
				t.Errorf("status %d, stdout %.60q, stderr %q", a.Status, a.Stdout, a.Stderr)
			}
		}})
	}
	return rows
}

// files of a row that loads a module.
type placed struct {
	module []byte
	sig    []byte // nil: none
}

// loads runs /tmp/row.ko as a user after the files have been put there.
func (s *scene) loads(t *testing.T, u lab.User, p placed) request.Answer {
	t.Helper()
	s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/row.ko /tmp/row.ko.sgn"))
	s.put(t, "/tmp/row.ko", lab.Root, 0o644, p.module)
	if p.sig != nil {
		s.put(t, "/tmp/row.ko.sgn", lab.Root, 0o644, p.sig)
	}
	return s.do(t, lab.Command(u, "staprun", "/tmp/row.ko"))
}

// onlySigner makes a the only trusted signer, until the row ends.
func (s *scene) onlySigner(t *testing.T) {
	t.Helper()
	a, _ := signers(t)
	s.forgetSigners(t)
	s.trustSigner(t, a)
	t.Cleanup(func() { s.forgetSigners(t) })
}

func flip(m []byte, at int) []byte {
	m = bytes.Clone(m)
	m[at] ^= 1
	return m
}

const (
	textAltered    = "ERROR: Unable to verify the signed module /tmp/row.ko. It may have been altered since it was created."
	textElsewhere  = `ERROR: Members of the "stapusr" and "stapsys" groups can only use unsigned modules within`
	textUnverified = "ERROR: Unable to verify the signature for the module"
)

func rowsDecision() []row {
	usr := func(t *testing.T, s *scene) []byte { return module(t, s.kernel, "stapusr", hello) }
	dev := func(t *testing.T, s *scene) []byte { return module(t, s.kernel, "", hello) }
	return []row{
		{"4.2", "a", "an altered module is refused to everybody, also to root", func(t *testing.T, s *scene) {
			s.onlySigner(t)
			a, _ := signers(t)
			m := usr(t, s)
			for _, u := range []lab.User{lab.Root, lab.Dev, lab.Sys, lab.Usr} {
				want(t, s.loads(t, u, placed{flip(m, len(m)/2), sign(t, m, a)}), 255, "", textAltered)
			}
		}},
		{"4.2", "b", "root may load any other module, and gets all credentials", func(t *testing.T, s *scene) {
			want(t, s.loads(t, lab.Root, placed{dev(t, s), nil}), 0, "Hello\n")
			want(t, s.loads(t, lab.Root, placed{dev(t, s), []byte("no signature")}), 0, "Hello\n")
		}},
		{"4.2", "c", "a member of stapdev and stapusr may load any other module", func(t *testing.T, s *scene) {
			want(t, s.loads(t, lab.Dev, placed{dev(t, s), nil}), 0, "Hello\n")
			devOnly := lab.User{Name: "dev", UID: 1001, GID: 1001, Groups: []int{158}}
			a := s.loads(t, devOnly, placed{dev(t, s), nil})
			if a.Status == 0 || len(a.Stdout) > 0 {
				t.Errorf("stapdev without stapusr: status %d, stdout %q", a.Status, a.Stdout)
			}
		}},
		{"4.2", "d", "a signed module is loaded for whoever has its level", func(t *testing.T, s *scene) {
			s.onlySigner(t)
			a, _ := signers(t)
			m, sys := usr(t, s), module(t, s.kernel, "stapsys", hello)
			want(t, s.loads(t, lab.Usr, placed{m, sign(t, m, a)}), 0, "Hello\n")
			want(t, s.loads(t, lab.Sys, placed{m, sign(t, m, a)}), 0, "Hello\n")
			want(t, s.loads(t, lab.Sys, placed{sys, sign(t, sys, a)}), 0, "Hello\n")
		}},
		{"4.2", "e", "a signed module is refused to whoever lacks its level", func(t *testing.T, s *scene) {
			s.onlySigner(t)
			a, _ := signers(t)
			sys, d := module(t, s.kernel, "stapsys", hello), dev(t, s)
			want(t, s.loads(t, lab.Usr, placed{sys, sign(t, sys, a)}), 255, "", "ERROR: Your privilege credentials (stapusr) are insufficient to load the module /tmp/row.ko (stapsys required)\n")
			want(t, s.loads(t, lab.Sys, placed{d, sign(t, d, a)}), 255, "", "ERROR: Your privilege credentials (stapsys) are insufficient to load the module /tmp/row.ko (stapdev required)\n")
		}},
		{"4.2", "f", "an unsigned module of the approved directory is loaded for members of stapusr and stapsys", func(t *testing.T, s *scene) {
			s.approve(t, "row", dev(t, s))
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", "row")), 0, "Hello\n")
			want(t, s.do(t, lab.Command(lab.Sys, "staprun", "row")), 0, "Hello\n")
		}},
		{"4.2", "g", "an unsigned module elsewhere is refused to everybody else, with both messages", func(t *testing.T, s *scene) {
			for _, u := range []lab.User{lab.Usr, lab.Sys} {
				want(t, s.loads(t, u, placed{usr(t, s), nil}), 255, "", textElsewhere, textUnverified+" /tmp/row.ko.\n")
			}
		}},
	}
}

// approve puts a module into the approved directory, until the row ends.
func (s *scene) approve(t *testing.T, name string, module []byte) {
	t.Helper()
	reset := "rm -rf " + strings.TrimSuffix(s.blessed(), "/") + "; mkdir " + s.blessed() + "; chmod 755 " + s.blessed()
	s.do(t, lab.Shell(lab.Root, reset))
	s.put(t, s.blessed()+name+".ko", lab.Root, 0o644, module)
	t.Cleanup(func() { s.do(t, lab.Shell(lab.Root, reset)) })
}

// rowsBlessed are the messages of 4.3, each with the state of the directory that
// causes it.
func rowsBlessed() []row {
	refused := func(prepare, word, text string) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) {
			s.approve(t, "row", module(t, s.kernel, "", hello))
			dir := s.blessed()
			in := func(text string) string { return strings.ReplaceAll(text, "DIR", strings.TrimSuffix(dir, "/")) }
			if a := s.do(t, lab.Shell(lab.Root, in(prepare))); a.Status != 0 {
				t.Fatalf("%s: %s", in(prepare), a.Stderr)
			}
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", in(word))), 255, "", textElsewhere+in("\n  the \"DIR\" directory.\n  "), in(text), textUnverified)
		}
	}
	return []row{
		{"4.3", "1", "the directory is not there: Unable to canonicalize that directory", refused(
			"mv DIR/row.ko /tmp/row.ko; rmdir DIR", "/tmp/row.ko", "\n  Unable to canonicalize that directory: No such file or directory")},
		{"4.3", "2", "no path is asked about twice: a directory that only root may search does not matter", func(t *testing.T, s *scene) {
			s.approve(t, "row", module(t, s.kernel, "", hello))
			s.do(t, lab.Shell(lab.Root, "chmod 700 "+s.blessed()))
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", "row")), 0, "Hello\n")
		}},
		{"4.3", "3", "a file in the directory's place approves nothing", refused(
			"mv DIR/row.ko /tmp/row.ko; rmdir DIR; touch DIR", "/tmp/row.ko", "\n  Module \"/tmp/row.ko\" does not exist within that directory.")},
		{"4.3", "4", "That directory should be owned by root", refused("chown usr DIR", "row", "\n  That directory should be owned by root.")},
		{"4.3", "5", "That directory should not be world writable", refused("chmod 757 DIR", "row", "\n  That directory should not be world writable.")},
		{"4.3", "6", "Module does not exist within that directory", refused("mv DIR/row.ko /tmp/row.ko", "/tmp/row.ko", "\n  Module \"/tmp/row.ko\" does not exist within that directory.")},
		{"4.3", "7", "The module must be owned by root", refused("chown usr DIR/row.ko", "row", "The module \"DIR/row.ko\" must be owned by root.")},
		{"4.3", "8", "The module must not be world writable, printed beside the owner's message", refused("chown usr DIR/row.ko; chmod 666 DIR/row.ko", "row", "The module \"DIR/row.ko\" must be owned by root.\n  The module \"DIR/row.ko\" must not be world writable.")},
		{"4.3", "9", "Unable to canonicalize path of a module that is not there", func(t *testing.T, s *scene) {
			a := s.do(t, lab.Command(lab.Usr, "staprun", s.blessed()+"none.ko"))
			text := fmt.Sprintf("ERROR: Unable to canonicalize path %q: No such file or directory\nERROR: Couldn't insert module '%[1]s': No such file or directory\n", s.blessed()+"none.ko")
			text = strings.ReplaceAll(text, `'"`, "'")
			text = strings.ReplaceAll(text, `"'`, "'")
			if a.Status != 1 || string(a.Stderr) != text {
				t.Errorf("status %d, stderr %q; want %q", a.Status, a.Stderr, text)
			}
		}},
		{"4.3", "10", "the kernel version is the kernel's, whatever personality the caller took", func(t *testing.T, s *scene) {
			s.approve(t, "row", module(t, s.kernel, "", hello))
			r := lab.Command(lab.Usr, "staprun", "row")
			r.Personality = 0x0020000 // UNAME26
			want(t, s.do(t, r), 0, "Hello\n")
		}},
	}
}

// rowsLoaderStatus are the exit statuses of staprun (13).
func rowsLoaderStatus() []row {
	plain := func(s *scene, u lab.User, words ...string) request.Request {
		return lab.Command(u, append([]string{"staprun"}, words...)...)
	}
	return []row{
		{"13", "1", "-h and -V give 0", func(t *testing.T, s *scene) {
			for _, o := range []string{"-h", "-V"} {
				a := s.do(t, plain(s, lab.Usr, o))
				if a.Status != 0 || len(a.Stdout) == 0 || len(a.Stderr) > 0 {
					t.Errorf("%s: status %d, stdout %q, stderr %q", o, a.Status, a.Stdout, a.Stderr)
				}
			}
		}},
		{"13", "2", "usage, option conflict, no module, name too long, not root give 1", func(t *testing.T, s *scene) {
			long := strings.Repeat("n", 57)
			for words, text := range map[string]string{
				"-q":                   "staprun: invalid option -- 'q'\n",
				"-A -L m":              "ERROR: You can't specify",
				"":                     "ERROR: Need a module name or path to load.\n",
				"-F 5 m":               "ERROR: Relay basedir -F option is invalid for staprun\n",
				"-A m g=1":             "ERROR: Cannot have module options with attach (-A).\n",
				"-b 0 m":               "ERROR: Invalid buffer size",
				"-r x m":               "ERROR: Cannot process remote id option 'x'.\n",
				long:                   "ERROR: Module name ('" + long + "') is too long.\n",
				"/tmp/" + long + ".ko": "ERROR: Module name ('" + long + "') is too long.\n",
			} {
				a := s.do(t, plain(s, lab.Usr, strings.Fields(words)...))
				if a.Status != 1 || !strings.HasPrefix(string(a.Stderr), text) {
					t.Errorf("%q: status %d, stderr %q", words, a.Status, a.Stderr)
				}
			}
			s.do(t, lab.Shell(lab.Root, "cp /usr/bin/staprun /tmp/staprun; chmod 755 /tmp/staprun"))
			r := lab.Command(lab.Usr, "/tmp/staprun", "m")
			r.Argv[0] = "staprun"
			want(t, s.do(t, r), 1, "", "ERROR: The effective user ID of staprun must be set to the root user.\n  Check permissions on staprun and ensure it is a setuid root program.\n")
			s.do(t, lab.Shell(lab.Root, "rm /tmp/staprun"))
		}},
		{"13", "3", "a module that cannot be inserted gives 1 and the reason", func(t *testing.T, s *scene) {
			s.put(t, "/tmp/row.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
			a := s.do(t, lab.Shell(lab.Dev, printing("staprun /tmp/row.ko")+"staprun /tmp/row.ko; echo $?; kill -INT $!; wait $!"))
			want(t, a, 0, "1\n", "ERROR: Couldn't insert module '/tmp/row.ko': File exists\nERROR: Rerun with staprun option '-R' to rename this module.\n")
			s.put(t, "/tmp/row.ko", lab.Root, 0o644, []byte("no module"))
			want(t, s.do(t, plain(s, lab.Dev, "/tmp/row.ko")), 1, "", "ERROR: Couldn't insert module '/tmp/row.ko': ")
			s.put(t, "/tmp/row.ko", lab.Root, 0o644, module(t, s.kernel, "", "global g = 5 probe begin { println(g) exit() }"))
			want(t, s.do(t, plain(s, lab.Dev, "/tmp/row.ko", "g=seven")), 1, "", "ERROR: Couldn't insert module '/tmp/row.ko': Invalid parameters\n")
		}},
		{"13", "4", "a refusal gives 255", func(t *testing.T, s *scene) {
			want(t, s.loads(t, lab.Usr, placed{module(t, s.kernel, "stapusr", hello), nil}), 255, "", textUnverified)
		}},
		{"13", "5", "messages need no memory that could be missing: the longest path gives its message", func(t *testing.T, s *scene) {
			long := "/tmp/" + strings.Repeat("d/", 1900) + "m.ko"
			a := s.do(t, plain(s, lab.Usr, long))
			if a.Status != 1 || !strings.Contains(string(a.Stderr), "'"+long+"'") {
				t.Errorf("status %d, stderr %.100q", a.Status, a.Stderr)
			}
		}},
		{"13", "6", "-d gives 0, 234 when nothing can be attached to, 255 for another user's module", func(t *testing.T, s *scene) {
			s.leave(t, lab.Dev)
			want(t, s.do(t, plain(s, lab.Usr, "-d", testModule)), 255, "", "ERROR: '"+testModule+"' is not a zombie systemtap module.\n")
			want(t, s.do(t, plain(s, lab.Dev, "-d", testModule)), 0, "")
			want(t, s.do(t, plain(s, lab.Dev, "-d", testModule)), 234, "", "ERROR: Cannot attach to module "+testModule+" control channel; not running?\nERROR: '"+testModule+"' is not a zombie systemtap module.\n")
		}},
		{"13", "7", "-d '*' gives 0, whatever it finds", func(t *testing.T, s *scene) {
			want(t, s.do(t, plain(s, lab.Usr, "-d", "*")), 0, "")
			s.leave(t, lab.Dev)
			want(t, s.do(t, plain(s, lab.Usr, "-d", "*")), 0, "")
			want(t, s.do(t, plain(s, lab.Dev, "-d", "*")), 0, "Module "+testModule+" removed.\n")
			s.leave(t, lab.Dev)
			want(t, s.do(t, plain(s, lab.Root, "-d", "*")), 0, "Module "+testModule+" removed.\n")
		}},
		{"13", "8", "HUP, INT, TERM and QUIT before the hand-over give 1 and leave no module", func(t *testing.T, s *scene) {
			s.put(t, "/tmp/row.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
			for _, sig := range []string{"HUP", "INT", "TERM", "QUIT"} {
				for _, call := range []string{"staprun memfd_create", "staprun finit_module", "staprun openat .cmd"} {
					r := plain(s, lab.Dev, "/tmp/row.ko")
					r.Break = &request.Break{Text: call, Nth: 1, Shell: "killall -" + sig + " staprun", Hold: 200}
					a := s.do(t, r)
					if a.Status != 1 || !strings.Contains(string(a.Stderr), "act: ") {
						t.Errorf("SIG%s before %q: status %d, stderr %q", sig, call, a.Status, a.Stderr)
					}
					if l := s.loaded(t); l != "" {
						t.Errorf("SIG%s before %q leaves %s", sig, call, l)
					}
				}
			}
		}},
	}
}

// leave leaves a module of a user's loaded and detached.
func (s *scene) leave(t *testing.T, u lab.User) {
	t.Helper()
	s.put(t, "/tmp/left.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
	a := s.leaveFile(t, u, "/tmp/left.ko")
	if s.loaded(t) == "" {
		t.Fatalf("no module is left: status %d, stderr %q", a.Status, a.Stderr)
	}
}

// rowsFiles are what may be wrong with the files (15.8, 15.9).
func rowsFiles() []row {
	signed := func(t *testing.T, s *scene) ([]byte, []byte) {
		a, _ := signers(t)
		m := module(t, s.kernel, "stapusr", hello)
		return m, sign(t, m, a)
	}
	withSig := func(status int, text string, sig func(t *testing.T, s *scene, m, good []byte) []byte) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) {
			s.onlySigner(t)
			m, good := signed(t, s)
			want(t, s.loads(t, lab.Usr, placed{m, sig(t, s, m, good)}), status, "", text)
		}
	}
	blessed := func(prepare, word string, status int, text string) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) {
			s.approve(t, "row", module(t, s.kernel, "", hello))
			in := func(text string) string { return strings.ReplaceAll(text, "DIR", strings.TrimSuffix(s.blessed(), "/")) }
			s.do(t, lab.Shell(lab.Root, in(prepare)))
			defer s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/elsewhere /tmp/row.ko"))
			stdout := ""
			if status == 0 {
				stdout = "Hello\n"
			}
			want(t, s.do(t, lab.Command(lab.Usr, "staprun", in(word))), status, stdout, in(text))
		}
	}
	store := func(change, text string) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) {
			s.onlySigner(t)
			m, good := signed(t, s)
			s.do(t, lab.Shell(lab.Root, "cd "+signerStore+"; "+change))
			want(t, s.loads(t, lab.Usr, placed{m, good}), 255, "", text, textUnverified)
		}
	}
	special := func(prepare string, status int, text string) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) {
			s.onlySigner(t)
			m, good := signed(t, s)
			s.put(t, "/tmp/row.ko", lab.Usr, 0o644, m)
			s.put(t, "/tmp/row.ko.sgn", lab.Usr, 0o644, good)
			s.do(t, lab.Shell(lab.Usr, "cd /tmp; "+prepare))
			defer s.do(t, lab.Shell(lab.Root, "rm -rf /tmp/row.ko /tmp/row.ko.sgn /tmp/other"))
			r := lab.Command(lab.Usr, "staprun", "/tmp/row.ko")
			r.Timeout = 10
			want(t, s.do(t, r), status, "", text)
		}
	}
	swapped := func(n int) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) {
			w := s.swapScene(t)[n]
			defer s.forgetSigners(t)
			for _, call := range []string{"openat2", "finit_module"} {
				r := lab.Command(lab.Usr, "staprun", w.file)
				r.Break = &request.Break{Text: "staprun " + call, Nth: 1, Shell: w.to}
				a := s.do(t, r)
				s.do(t, lab.Shell(lab.Usr, w.back))
				if strings.Contains(string(a.Stdout), "EVIL") || !strings.Contains(string(a.Stderr), "act: ") {
					t.Errorf("swapped before %s: status %d, stdout %q, stderr %q", call, a.Status, a.Stdout, a.Stderr)
				}
			}
		}
	}
	return []row{
		{"15.8", "1", "each row of 4.2 with the groups the kernel gave the process, not those of the files", func(t *testing.T, s *scene) {
			s.onlySigner(t)
			m, good := signed(t, s)
			newgrp := lab.User{Name: "nobody", UID: 65534, GID: 156}
			want(t, s.loads(t, newgrp, placed{m, good}), 0, "Hello\n")
			without := lab.User{Name: "usr", UID: 1002, GID: 1002}
			if a := s.loads(t, without, placed{m, good}); a.Status == 0 || len(a.Stdout) > 0 {
				t.Errorf("a user whose process has no group: status %d, stdout %q", a.Status, a.Stdout)
			}
		}},
		{"15.8", "2", "a world-writable directory approves nothing", blessed("chmod 777 DIR", "row", 255, "should not be world writable")},
		{"15.8", "3", "a world-writable file is not approved", blessed("chmod 646 DIR/row.ko", "row", 255, "must not be world writable")},
		{"15.8", "4", "a link to a directory elsewhere is judged as that directory", blessed("mv DIR /tmp/elsewhere; ln -s /tmp/elsewhere DIR; chown usr /tmp/elsewhere", "row", 255, "should be owned by root")},
		{"15.8", "5", "a hard link to root's file of elsewhere is root's file in the directory", blessed("mv DIR/row.ko /lib/modules/row.ko; ln /lib/modules/row.ko DIR/row.ko; rm /lib/modules/row.ko", "row", 0, "")},
		{"15.8", "6", "a path with .. out of the directory leads out of it", blessed("mv DIR/row.ko /tmp/row.ko", "DIR/../../../../tmp/row.ko", 255, "does not exist within that directory")},
		{"15.8", "7", ".sgn missing: unsigned", withSig(255, textElsewhere, func(t *testing.T, s *scene, m, good []byte) []byte { return nil })},
		{"15.8", "8", ".sgn empty: said, and not verified", withSig(255, "ERROR: EOF reading signature file /tmp/row.ko.sgn.\n", func(t *testing.T, s *scene, m, good []byte) []byte { return []byte{} })},
		{"15.8", "9", ".sgn short: not verified", withSig(255, textUnverified, func(t *testing.T, s *scene, m, good []byte) []byte { return good[:len(good)-1] })},
		{"15.8", "10", ".sgn of a foreign key: not verified", withSig(255, textUnverified, func(t *testing.T, s *scene, m, good []byte) []byte {
			_, b := signers(t)
			return sign(t, m, b)
		})},
		{"15.8", "11", ".sgn over another hash: altered", withSig(255, textAltered, func(t *testing.T, s *scene, m, good []byte) []byte {
			a, _ := signers(t)
			return sign(t, flip(m, 100), a)
		})},
		{"15.8", "12", "a store with a wrong owner, directory or file, trusts nobody", func(t *testing.T, s *scene) {
			store("chown usr .", "ERROR: Certificate database directory /etc/systemtap/staprun must be owned by root.\nERROR: Unable to use certificate database /etc/systemtap/staprun due to errors.\n")(t, s)
			store("chown usr *.pem", "must be owned by root")(t, s)
		}},
		{"15.8", "13", "a store with a wrong mode, directory or file, trusts nobody", func(t *testing.T, s *scene) {
			store("chmod 775 .", "must not be writable by the group.\n")(t, s)
			store("chmod 757 .", "must not be writable by others.\n")(t, s)
			store("chmod 664 *.pem", "must not be writable by the group")(t, s)
			store("chmod 646 *.pem", "must not be writable by others")(t, s)
			store("f=$(echo *.pem); mv $f /tmp/other; ln -s /tmp/other $f", "must not be a link")(t, s)
			store("f=$(echo *.pem); rm $f; mkfifo $f", "must be a regular file")(t, s)
		}},
		{"15.8", "14", "of two certificates only the second matches: verified, whichever it is", func(t *testing.T, s *scene) {
			s.onlySigner(t)
			a, b := signers(t)
			s.trustSigner(t, b)
			m, good := signed(t, s)
			want(t, s.loads(t, lab.Usr, placed{m, good}), 0, "Hello\n")
			want(t, s.loads(t, lab.Usr, placed{m, sign(t, m, b)}), 0, "Hello\n")
			// A key that fits and other bytes decide, however many keys do not fit.
			want(t, s.loads(t, lab.Usr, placed{flip(m, 99), sign(t, m, a)}), 255, "", textAltered)
		}},
		{"15.9", "1", "a file swapped between open and verification is not loaded", swapped(0)},
		{"15.9", "2", "a link swapped during the load is not followed twice", swapped(2)},
		{"15.9", "3", "a FIFO as .ko is refused at once", special("rm row.ko; mkfifo row.ko", 1, "not a regular file")},
		{"15.9", "4", "a directory as .ko is refused", special("rm row.ko; mkdir row.ko", 1, "not a regular file")},
		{"15.9", "5", "a FIFO as .sgn counts as no signature, at once", special("rm row.ko.sgn; mkfifo row.ko.sgn", 255, textUnverified)},
		{"15.9", "6", "a directory as .sgn counts as no signature", special("rm row.ko.sgn; mkdir row.ko.sgn", 255, textUnverified)},
		{"15.9", "7", "a sparse .ko of 4 GiB is refused unread", special("rm row.ko; truncate -s 4G row.ko", 1, "more than the 67108864 allowed")},
	}
}

// rowsRemoval are what -d is asked to remove (15.10).
func rowsRemoval() []row {
	remove := func(t *testing.T, s *scene, u lab.User, word string) request.Answer {
		t.Helper()
		return s.do(t, lab.Command(u, "staprun", "-d", word))
	}
	named := func(word string, status int, text string) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) {
			a := remove(t, s, lab.Usr, word)
			if a.Status != status || !strings.Contains(string(a.Stderr), text) {
				t.Errorf("%q: status %d, stderr %q", word, a.Status, a.Stderr)
			}
		}
	}
	const zombie = "is not a zombie systemtap module."
	return []row{
		{"15.10", "1", "a module that is not SystemTap's stays", func(t *testing.T, s *scene) {
			for _, u := range []lab.User{lab.Usr, lab.Root} {
				want(t, remove(t, s, u, "virtio_net"), 234, "", "'virtio_net' "+zombie)
			}
			want(t, s.do(t, lab.Shell(lab.Root, "lsmod | grep -c ^virtio_net")), 0, "1\n")
		}},
		{"15.10", "2", "another user's module stays", func(t *testing.T, s *scene) {
			s.leave(t, lab.Dev)
			want(t, remove(t, s, lab.Usr, testModule), 255, "", zombie)
			want(t, remove(t, s, lab.Dev, testModule), 0, "")
		}},
		{"15.10", "3", "an attached module stays, also for root", func(t *testing.T, s *scene) {
			s.put(t, "/tmp/row.ko", lab.Root, 0o644, module(t, s.kernel, "", ticker))
			a := s.do(t, lab.Shell(lab.Root, printing("staprun /tmp/row.ko")+"staprun -d "+testModule+"; echo $?; kill -INT $!; wait $!"))
			want(t, a, 0, "234\n", "ERROR: Another process is attached to module "+testModule+".\nERROR: '"+testModule+"' "+zombie)
		}},
		{"15.10", "4", "of a name with / only what follows the last one counts", named("../../sys/module/virtio_net", 234, "'virtio_net' "+zombie)},
		{"15.10", "5", "the name .. is refused", named("..", 234, zombie)},
		{"15.10", "6", "a name with quotes is a name", named("'; reboot; '", 234, "''; reboot; '' "+zombie)},
		{"15.10", "7", "a name of 56 characters is looked for", named(strings.Repeat("n", 56), 234, zombie)},
		{"15.10", "8", "a name of 57 characters is too long", named(strings.Repeat("n", 57), 1, "is too long.")},
		{"15.10", "9", "an empty name is refused", named("/", 1, "is empty")},
	}
}

// rowsSurroundings are those of 15.11: the same module once loaded, once refused.
// TestHostileSurroundings has more, and looks at the files that are opened.
func rowsSurroundings() []row {
	in := func(change func(*request.Request)) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) {
			s.onlySigner(t)
			s.putSigned(t, "/tmp/row.ko", hello)
			s.put(t, "/tmp/unsigned.ko", lab.Usr, 0o644, module(t, s.kernel, "stapusr", hello))
			r := lab.Command(lab.Usr, "staprun", "/tmp/row.ko")
			change(&r)
			a := s.do(t, r)
			if a.Status != 0 || string(a.Stdout) != "Hello\n" && len(r.Closed) == 0 {
				t.Errorf("status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
			}
			r = lab.Command(lab.Usr, "staprun", "/tmp/unsigned.ko")
			change(&r)
			if a := s.do(t, r); a.Status != 255 || len(a.Stdout) > 0 {
				t.Errorf("unsigned: status %d, stdout %q, stderr %q", a.Status, a.Stdout, a.Stderr)
			}
		}
	}
	env := func(set ...string) func(r *request.Request) {
		return func(r *request.Request) { r.Env = append(set, r.Env...) }
	}
	limit := func(name string, n uint64) func(r *request.Request) {
		return func(r *request.Request) { r.Limits = map[string]uint64{name: n} }
	}
	return []row{
		{"15.11", "1", "a hostile environment changes nothing", in(env("IFS=/", "ENV=/tmp/rc", "BASH_ENV=/tmp/rc", "CDPATH=/tmp", "SYSTEMTAP_STAPIO=/bin/false", "SYSTEMTAP_STAPRUN=/bin/false", "SYSTEMTAP_RUNTIME=/tmp", "SYSTEMTAP_REAL_UID=0", "STAP_FIPS_OVERRIDE=1", "TZ=/etc/shadow", "GODEBUG=gctrace=1", "LD_PRELOAD=/tmp/x.so"))},
		{"15.11", "2", "closed descriptors 0 to 2 are opened before anything else", in(func(r *request.Request) { r.Closed = []int{0, 1, 2} })},
		{"15.11", "3", "a low limit of file sizes does not cut the copy of the module", in(limit("fsize", 1000))},
		{"15.11", "4", "a low limit of descriptors does not leave the module behind", in(limit("nofile", 4))},
		{"15.11", "5", "no core files", in(limit("core", 0))},
		{"15.11", "6", "SIGCHLD ignored by the parent: the module is removed all the same", in(func(r *request.Request) { r.Ignored = []int{17} })},
		{"15.11", "7", "POSIXLY_CORRECT does not hide the descriptor from stapio", in(env("POSIXLY_CORRECT=1"))},
		{"15.11", "8", "after -- the descriptor still is an option", in(func(r *request.Request) { r.Argv = []string{"staprun", "--", r.Argv[1]} })},
	}
}
