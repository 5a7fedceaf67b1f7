package service

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/getopt"
)

var home Home = func(user string) (string, error) {
	switch user {
	case "":
		return "/home/me", nil
	case "fred":
		return "/home/fred", nil
	}
	return "", errors.New("no such user")
}

// Lines are literal (B-05): nothing is evaluated. The last line may lack its end
// (B-21).
// Requirements: R-003-063..067 R-003-073..074 R-003-078..095 B-01 B-05 B-21
func TestParseSpec(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       Spec
	}{
		{"no end of the last line", "ARCH=i386", Spec{Arch: "i386"}},
		{"carriage returns", "ARCH=i386\r\nPORT=1\r\n", Spec{Arch: "i386", Port: "1"}},
		{"blanks around, comments", " \t# X\n\n \tARCH=i386 \t\n", Spec{Arch: "i386"}},
		{"not evaluated (B-05)", "ARCH=$(touch /tmp/p)\nNICKNAME=`id`\nLOG=$HOME/x\n", Spec{Arch: "$(touch /tmp/p)", Nickname: "`id`", Log: "$HOME/x"}},
		{"lists", "BUILD=a\nBUILD+=b\nINCLUDE+=/x\nINCLUDE+=/y\n", Spec{Build: []string{"a", "b"}, Include: []string{"/x", "/y"}}},
		{"a list begins anew", "DEFINE+=a\nDEFINE=b\n", Spec{Define: []string{"b"}}},
		{"emptied", "BUILD=a\nBUILD=\nDEFINE=a\nDEFINE=()\n", Spec{}},
		{"nothing added (B-21)", "INCLUDE=/a\nINCLUDE+=\nINCLUDE+=()\nRELEASE+=\n", Spec{Include: []string{"/a"}}},
		{"empty values", "ARCH=\nUSER=\nRELEASE=\nNICKNAME=native\n", Spec{Nickname: "native"}},
		{"nickname in front (B-01)", "NICKNAME=x\nARCH=i386\nLOG=/l\n", Spec{Nickname: "x", Arch: "i386", Log: "/l"}},
		{"one pair of quotes", "BUILD='VARIABLE1=A \"b\"'\nDEFINE=\"X=1\"\nNICKNAME='x\"\n", Spec{Build: []string{`VARIABLE1=A "b"`}, Define: []string{"X=1"}, Nickname: `'x"`}},
		{"home directories (B-21)", "LOG=~/l\nSSL=~fred/ssl\nINCLUDE=~\nRUNTIME=/x/~\nARCH=~\n", Spec{Log: "/home/me/l", SSL: "/home/fred/ssl", Include: []string{"/home/me"}, Runtime: "/x/~", Arch: "~"}},
		{"a quoted tilde is one", `LOG="~/l"`, Spec{Log: "~/l"}},
		{"the rest", "RELEASE=/build\nMAXTHREADS=0\nMAXREQSIZE=9\nMAXCOMPRESSEDREQ=8\nPORT=5001\n", Spec{Releases: []string{"/build"}, MaxThreads: "0", MaxRequest: "9", MaxArchive: "8", Port: "5001"}},
	} {
		got, err := ParseSpec([]byte(tt.text), "f", home)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, %v, want %+v", tt.name, got, err, tt.want)
		}
	}
	for _, bad := range []string{"X=1", "ARCH", "ARCH+=x", "ARCH =x", "export ARCH=x", "rm -rf /", "=x", "arch=x", "PORT=1\x01", "+=x"} {
		var line *InvalidLine
		_, err := ParseSpec([]byte("PORT=1\n"+bad+"\n"), "/f", home)
		if !errors.As(err, &line) || line.Error() != `Invalid input, "`+bad+`", in /f` && !strings.Contains(bad, "\x01") {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	if _, err := ParseSpec([]byte("LOG=~nobody-there/x"), "f", home); err == nil {
		t.Error("the home of nobody")
	}
}

// Requirements: R-003-061..071 C-16
func TestParseGlobal(t *testing.T) {
	g := Global{LogFile: "/before", User: "u"}
	err := g.ParseGlobal([]byte("# x\nCONFIG_PATH=~fred/conf\nSTAT_PATH=/s\nLOG_FILE=\nSTAP_USER=$(id)\nCOMBINE=yes"), "f", home)
	if want := (Global{"/home/fred/conf", "/s", "/before", "$(id)", "yes"}); err != nil || g != want {
		t.Errorf("got %+v, %v, want %+v", g, err, want)
	}
	for _, bad := range []string{"FOO=1", "COMBINE=maybe", "STAT_PATH+=/x", "touch /tmp/x", "STAP_USER"} {
		before := g
		if err := g.ParseGlobal([]byte("LOG_FILE=/other\n"+bad), "/f", home); err == nil || err.Error() != `Invalid input, "`+bad+`", in /f` || g != before {
			t.Errorf("%q: got %v, %+v", bad, err, g)
		}
	}
	if err := g.Read(filepath.Join(t.TempDir(), "none"), home, true); err == nil || !strings.HasPrefix(err.Error(), "Cannot read configuration file ") {
		t.Errorf("a missing file: got %v", err)
	}
	if err := g.Read(t.TempDir(), home, false); err != nil {
		t.Errorf("a directory of that name: got %v", err)
	}
}

// What is written is read again as it was, whatever the values look like.
func TestFormat(t *testing.T) {
	s := Spec{
		Arch: "x86_64", User: "u", Nickname: `"q"`, Runtime: "~x", Releases: []string{"6.1", "/b"}, Include: []string{"/a b"},
		Build: []string{`"x"`, " y ", "'"}, Define: []string{"A=$(x)"}, Log: "/l", Port: "1", SSL: "/s", MaxThreads: "2", MaxRequest: "3", MaxArchive: "4",
	}
	got, err := ParseSpec(s.Format(), "f", nil)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("got %+v, %v of\n%s", got, err, s.Format())
	}
	s = Spec{Arch: "x86_64", User: "me", Nickname: "12", Releases: []string{"6.1", "6.2"}, Log: "/l"}
	want := "ARCH=x86_64\nUSER=me\nNICKNAME=12\nRUNTIME=\nRELEASE+=6.1\nRELEASE+=6.2\nLOG=/l\nPORT=\nSSL=\nMAXTHREADS=\nMAXREQSIZE=\nMAXCOMPRESSEDREQ=\n"
	if string(s.Format()) != want {
		t.Errorf("got %q, want %q", s.Format(), want)
	}
}

// Requirements: R-000-026 R-003-035..036 R-003-092 C-10
func TestWords(t *testing.T) {
	s := Spec{
		Arch: "i386", User: "u", Nickname: "n", Runtime: "/R", Releases: []string{"1", "2"}, Include: []string{"/i"},
		Build: []string{`V="x"`}, Define: []string{`D=\`}, Log: "/l", Port: "5", SSL: "/s", MaxThreads: "6", MaxRequest: "7", MaxArchive: "8",
	}
	want := `-a "i386" -r "1" -r "2" -R "/R" -D "D=\\" -I "/i" -B "V=\"x\"" -u "u" -n "n" --log "/l" --port "5" --ssl "/s" --max-threads "6" --max-request-size "7" --max-compressed-request "8"`
	if got := s.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	args := []string{"-a", "i386", "-k", "-P", "-r", "1", "-r", "2", "-B", `V="x"`, "-I", "/i", "-D", `D=\`, "-R", "/R", "--log=/l", "--port", "5", "--ssl", "/s", "--max-threads", "6", "--max-request-size", "7", "--max-compressed-request", "8"}
	if got := s.Args(Flags{true, true}); !slices.Equal(got, args) {
		t.Errorf("got  %q\nwant %q", got, args)
	}
}

// Whole lists count (B-06), and what is handed out only where it was written
// (B-03).
// Requirements: R-003-010 B-03 B-06
func TestMatches(t *testing.T) {
	d := Defaults{Arch: "x86_64", Release: "6.1", User: "me", Log: "/l"}
	run := Spec{Arch: "x86_64", User: "me", Releases: []string{"6.1", "6.2"}, Log: "/other", Port: "5", Nickname: "x"}
	for _, tt := range []struct {
		name string
		spec Spec
		want bool
	}{
		{"the same, log and port left open", Spec{Releases: []string{"6.1", "6.2"}}, true},
		{"the first release only (B-06)", Spec{Releases: []string{"6.1"}}, false},
		{"the default release only", Spec{}, false},
		{"another order", Spec{Releases: []string{"6.2", "6.1"}}, false},
		{"another port", Spec{Releases: []string{"6.1", "6.2"}, Port: "6"}, false},
		{"this port", Spec{Releases: []string{"6.1", "6.2"}, Port: "5"}, true},
		{"another nickname", Spec{Releases: []string{"6.1", "6.2"}, Nickname: "y"}, true},
		{"another user", Spec{Releases: []string{"6.1", "6.2"}, User: "you"}, false},
		{"a macro", Spec{Releases: []string{"6.1", "6.2"}, Define: []string{"A"}}, false},
	} {
		if got := tt.spec.Matches(&run, d); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
	if !(&Spec{}).Matches(&Spec{Arch: "x86_64", User: "me"}, d) {
		t.Error("no release is the running one on both sides")
	}
}

// known is a host with two configured and two running servers.
func known(t *testing.T) Known {
	dir := t.TempDir()
	for _, r := range []string{"6.2", "6.1", "nobuild"} {
		if err := os.MkdirAll(filepath.Join(dir, r), 0o755); err != nil {
			t.Fatal(err)
		}
		if r != "nobuild" {
			if err := os.Mkdir(filepath.Join(dir, r, "build"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return Known{
		Running: []*Running{
			{PID: 11, Spec: Spec{Arch: "x86_64", User: "u", Nickname: "run", Releases: []string{"6.1"}, Log: "/r", Port: "5"}},
			{PID: 12, Spec: Spec{Arch: "x86_64", User: "u", Nickname: "12", Releases: []string{"6.1"}, Log: "/l"}},
		},
		Configs: []*Config{{Spec{Nickname: "conf", Releases: []string{"6.1", "6.2"}, Build: []string{"b"}}, "c.conf"}},
		Modules: dir, Dir: "/cwd",
	}
}

// Requirements: R-003-030..048 R-003-050 R-003-052..057 R-003-110..112 B-19 C-08
func TestChoose(t *testing.T) {
	spec := getopt.Short("a:r:R:I:B:D:u:n:p:i")
	for _, n := range Distributed() {
		spec.Defs = append(spec.Defs, getopt.Def{Long: n, Arg: getopt.RequiredArg})
	}
	spec.Defs = append(spec.Defs, getopt.Def{Long: "combine"})
	run := Spec{Arch: "x86_64", User: "u", Nickname: "run", Releases: []string{"6.1"}, Log: "/r", Port: "5"}
	twelve := Spec{Arch: "x86_64", User: "u", Nickname: "12", Releases: []string{"6.1"}, Log: "/l"}
	changed := func(s Spec, f func(*Spec)) Spec { c := s.Clone(); f(c); return *c }
	type want struct {
		spec     Spec
		pid      int
		modified bool
		unknown  string
	}
	for args, wants := range map[string][]want{
		"":                               nil,
		"--port 1":                       nil,
		"-a i386 -I t -I /u -R r -r 1":   {{spec: Spec{Arch: "i386", Include: []string{"/cwd/t", "/u"}, Runtime: "/cwd/r", Releases: []string{"1"}}}},
		"-r A -r B":                      {{spec: Spec{Releases: []string{"A", "B"}}}},
		"-a x -a y -u v -u w":            {{spec: Spec{Arch: "y", User: "w"}}},
		"-n new -a i386":                 {{spec: Spec{Nickname: "new", Arch: "i386"}, unknown: "new"}},
		"-a i386 -n new":                 {{spec: Spec{Nickname: "new", Arch: "i386"}, unknown: "new"}},
		"-n run":                         {{spec: run, pid: 11}},
		"-p 11":                          {{spec: run, pid: 11}},
		"-n 12":                          {{spec: twelve, pid: 12}},
		"-n run -a i386":                 {{spec: changed(run, func(s *Spec) { s.Arch, s.Nickname = "i386", "" }), pid: 11, modified: true}},
		"-a i386 -n run":                 {{spec: run, pid: 11}},
		"-n run -r 7":                    {{spec: changed(run, func(s *Spec) { s.Releases, s.Nickname = []string{"7"}, "" }), pid: 11, modified: true}},
		"-n run -r 7 -r 8":               {{spec: changed(run, func(s *Spec) { s.Releases, s.Nickname = []string{"7", "8"}, "" }), pid: 11, modified: true}},
		"-n run -a i386 -n new":          {{spec: changed(run, func(s *Spec) { s.Arch, s.Nickname = "i386", "new" }), pid: 11, modified: true, unknown: "new"}},
		"-n run -n new":                  {{spec: run, pid: 11}, {spec: Spec{Nickname: "new"}, unknown: "new"}},
		"-p 11 -p 12":                    {{spec: run, pid: 11}, {spec: twelve, pid: 12}},
		"-n conf":                        {{spec: Spec{Nickname: "conf", Releases: []string{"6.1", "6.2"}, Build: []string{"b"}}}},
		"-n conf -B c":                   {{spec: Spec{Nickname: "conf", Releases: []string{"6.1", "6.2"}, Build: []string{"b", "c"}}, modified: true}},
		"-p 11 --log /x":                 {{spec: changed(run, func(s *Spec) { s.Log, s.Nickname = "/x", "" }), pid: 11, modified: true}},
		"-p 11 --port 5":                 {{spec: run, pid: 11}},
		"-i":                             {{spec: Spec{Releases: []string{"6.1"}}}, {spec: Spec{Releases: []string{"6.2"}}}},
		"-i --combine":                   {{spec: Spec{Releases: []string{"6.1", "6.2"}}}},
		"-a i386 -u w -I /t -i -a s390":  {{spec: Spec{User: "w", Include: []string{"/t"}, Releases: []string{"6.1"}}}, {spec: Spec{User: "w", Include: []string{"/t"}, Releases: []string{"6.2"}}}, {spec: Spec{Arch: "s390"}}},
		"-r 9 -i":                        {{spec: Spec{Releases: []string{"9"}}}, {spec: Spec{Releases: []string{"6.1"}}}, {spec: Spec{Releases: []string{"6.2"}}}},
		"-i --port 1 --port 2 --log l":   {{spec: Spec{Releases: []string{"6.1"}, Port: "1", Log: "/cwd/l"}}, {spec: Spec{Releases: []string{"6.2"}, Port: "2"}}},
		"--ssl s -p 11 -n conf --port 7": {{spec: changed(run, func(s *Spec) { s.SSL, s.Port, s.Nickname = "/cwd/s", "7", "" }), pid: 11, modified: true}, {spec: Spec{Nickname: "conf", Releases: []string{"6.1", "6.2"}, Build: []string{"b"}}}},
	} {
		opts, _, err := getopt.Parse(spec, strings.Fields(args))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Choose(opts, known(t))
		if err != nil || len(got.Choices) != len(wants) {
			t.Errorf("%q: got %+v, %v", args, got, err)
			continue
		}
		for i, w := range wants {
			c := got.Choices[i]
			pid := 0
			if c.Base != nil {
				pid = c.Base.PID
			}
			if !reflect.DeepEqual(c.Spec, w.spec) || pid != w.pid || c.Modified != w.modified || c.Unknown != w.unknown {
				t.Errorf("%q: server %d is %+v of %d, %v, %q, want %+v", args, i, c.Spec, pid, c.Modified, c.Unknown, w)
			}
		}
		if strings.Contains(args, "-i") && !slices.Equal(got.Left, []string{"nobuild"}) {
			t.Errorf("%q: left out %q (B-19)", args, got.Left)
		}
	}

	for args, want := range map[string]string{
		"-p 1": "No stap-server running as pid 1", "-p 1x": "No stap-server running as pid 1x", "-p 011": "No stap-server running as pid 011",
		"-r /proc/nonexistent": "Missing /proc/nonexistent/include/config/kernel.release",
	} {
		opts, _, _ := getopt.Parse(spec, strings.Fields(args))
		if _, err := Choose(opts, known(t)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %q", args, err, want)
		}
	}
	k := known(t)
	k.Modules = t.TempDir()
	if _, err := Choose([]getopt.Option{{Name: "i"}}, k); err == nil || err.Error() != "No kernel releases found in "+k.Modules {
		t.Errorf("-i without kernels (B-19): got %v", err)
	}
	if _, err := Choose([]getopt.Option{{Name: "a", Value: "x\nUSER=root"}}, k); !errors.Is(err, ErrUsage) {
		t.Errorf("a line end in a value: got %v", err)
	}
}

// Only lists (B-08): they go to configured servers, or select running ones.
// Requirements: B-08
func TestOnlyLists(t *testing.T) {
	k := known(t)
	c, err := Choose([]getopt.Option{{Name: Port, Value: "7"}, {Name: Port, Value: "8"}}, k)
	if err != nil || len(c.Choices) != 0 {
		t.Fatal(c, err)
	}
	got := c.Configured([]*Config{{Spec: Spec{Nickname: "a"}}, {Spec: Spec{Nickname: "b", Port: "1"}}, {Spec: Spec{Nickname: "c"}}})
	if got[0].Port != "7" || got[1].Port != "1" || got[2].Port != "8" {
		t.Errorf("got %+v", got)
	}
	if got := c.Configured(nil); len(got) != 1 || got[0].Port != "7" {
		t.Errorf("without files: got %+v", got)
	}
	for r, want := range map[*Running]bool{
		{Spec: Spec{Port: "8"}}: true, {Spec: Spec{Port: "5"}}: false, {}: false, {Facts: Facts{Port: 7}}: true,
	} {
		if c.Selects(r) != want {
			t.Errorf("%+v: got %v", r, !want)
		}
	}
}

// process makes /proc/PID/stat.
func process(t *testing.T, proc string, pid, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(proc, pid), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, pid, "stat"), []byte(pid+" "+text+" 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 6 0 777 1 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Requirements: R-003-025..026 B-11 B-22
func TestDir(t *testing.T) {
	d := Dir{t.TempDir(), t.TempDir()}
	process(t, d.Proc, "12", "(stap-serverd) S")
	process(t, d.Proc, "4123", "(stap-serverd) S")
	process(t, d.Proc, "13", "(a) (stap-serverd) S")
	process(t, d.Proc, "14", "(stap-serverd) Z")
	for _, pid := range []int{12, 13, 14, 4124} {
		if err := d.Write(&Running{PID: pid, Spec: Spec{Arch: "x", Nickname: "n"}, Facts: Facts{Port: pid, StartTime: 777}}); err != nil {
			t.Fatal(err)
		}
	}
	// Others' files (B-22).
	for name, text := range map[string]string{"readme": "x", "20": "ARCH=x", "x21.stat": "", "022.stat": "", "23.stat": "FOO=1\n", "24.stat.old": ""} {
		if err := os.WriteFile(filepath.Join(d.Path, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("12.stat", filepath.Join(d.Path, "25.stat")); err != nil {
		t.Fatal(err)
	}
	list, bad := d.Read()
	if len(list) != 4 || len(bad) != 2 || !strings.Contains(bad[0].Error(), `"FOO=1"`) {
		t.Fatalf("got %+v, %v", list, bad)
	}
	for i, want := range []bool{true, false, false, false} { // B-11: 412 is not 4124
		if got := d.Alive(list[i]); got != want || list[i].Facts.Port != list[i].PID {
			t.Errorf("%d: got %v, %+v", list[i].PID, got, list[i].Facts)
		}
	}
	list[0].Facts.StartTime = 778
	if d.Alive(list[0]) {
		t.Error("another process with this number")
	}
	// Another manager replaces the status file: our facts are not about its server.
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(d.Path, "12.stat"), later, later); err != nil {
		t.Fatal(err)
	}
	if r, err := d.read(12); err != nil || r.Facts != (Facts{}) {
		t.Errorf("got %+v, %v", r, err)
	}
	if err := d.Remove(12); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(d.Path, "12.*")); len(left) != 0 {
		t.Errorf("left %q", left)
	}
	if err := os.Remove(filepath.Join(d.Path, "13.stat")); err != nil {
		t.Fatal(err)
	}
	d.Tidy()
	if left, _ := filepath.Glob(filepath.Join(d.Path, ".*.json")); len(left) != 2 {
		t.Errorf("facts of 14 and 4124 and no others: %q", left)
	}
	if list, bad := (Dir{filepath.Join(d.Path, "none"), d.Proc}).Read(); list != nil || bad != nil {
		t.Errorf("no directory: %v, %v", list, bad)
	}
	if err := (Dir{filepath.Join(d.Path, "none"), d.Proc}).Write(&Running{PID: 3}); err == nil {
		t.Error("a server nobody could find again (B-15)")
	}
	unlock, err := d.Lock(func() bool { t.Error("somebody else has the lock"); return true })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(func() bool { return false }); err != ErrLocked {
		t.Errorf("somebody has the lock, who is not waited for: %v", err)
	}
	// Who can open it can lock it, to keep root from stopping servers.
	if st, err := os.Stat(filepath.Join(d.Path, ".lock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the lock is everybody's: %v, %v", st, err)
	}
	asked := 0
	if _, err := d.Lock(func() bool { asked++; return asked < 3 }); err != ErrLocked || asked != 3 {
		t.Errorf("the wait does not end: asked %d times, %v", asked, err)
	}
	waited := make(chan bool)
	done := make(chan bool)
	go func() {
		again, err := d.Lock(sync.OnceValue(func() bool { close(waited); return true }))
		if err == nil {
			again()
		}
		close(done)
	}()
	<-waited // B-25
	unlock()
	<-done
}

// The lock that root makes is of who owns the directory.
func TestLockOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a directory of another user")
	}
	d := Dir{t.TempDir(), "/proc"}
	if err := os.Chown(d.Path, 12345, 12346); err != nil {
		t.Fatal(err)
	}
	unlock, err := d.Lock(func() bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(d.Path, ".lock"), &st); err != nil || st.Uid != 12345 || st.Gid != 12346 || st.Mode&0o777 != 0o600 {
		t.Errorf("%+v, %v", st, err)
	}
	// Another file's link is not given away, only what was made.
	if err := os.Remove(filepath.Join(d.Path, ".lock")); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(other, filepath.Join(d.Path, ".lock")); err != nil {
		t.Fatal(err)
	}
	if unlock, err := d.Lock(func() bool { return false }); err == nil {
		unlock()
	}
	if err := unix.Stat(other, &st); err != nil || st.Uid != 0 {
		t.Errorf("given away: %+v, %v", st, err)
	}
}

func TestReadConfigs(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"b.conf": "NICKNAME=b", "a.conf": "NICKNAME=a\n", ".c.conf": "X", "d": "X", "e.conf.old": "X"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "f.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	list, err := ReadConfigs(dir, home)
	if err != nil || len(list) != 2 || list[0].Nickname != "a" || list[1].Nickname != "b" {
		t.Errorf("got %+v, %v", list, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "z.conf"), []byte("X=1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfigs(dir, home); err == nil || err.Error() != `Invalid input, "X=1", in `+filepath.Join(dir, "z.conf") {
		t.Errorf("got %v", err)
	}
	if list, err := ReadConfigs(filepath.Join(dir, "none"), home); list != nil || err != nil {
		t.Errorf("got %v, %v", list, err)
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte("ARCH=\nUSER=\nNICKNAME=native\nBUILD='VARIABLE1=VALUE1 VARIABLE2=VALUE2'\nDEFINE+=X=\"1\"\nINCLUDE+=\n"))
	f.Add([]byte("LOG=~/x\r\nSSL=\"~\"\n#\nPORT= 1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSpec(data, "f", home)
		if err != nil {
			return
		}
		again, err := ParseSpec(s.Format(), "f", nil)
		if err != nil || !reflect.DeepEqual(again.String(), s.String()) {
			t.Errorf("%q: got %+v, %v, want %+v", data, again, err, s)
		}
		var g Global
		g.ParseGlobal(data, "f", home)
	})
}

func FuzzParseFacts(f *testing.F) {
	f.Add([]byte(`{"port":4321,"start_time":7,"status_time":"1970-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, err := ParseFacts(data, time.Unix(0, 0)); err == nil && (got.Port < 0 || got.Port > 65535) {
			t.Errorf("got %+v", got)
		}
	})
}

func FuzzParseProc(f *testing.F) {
	f.Add([]byte("12 (stap-serverd) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 6 0 777 1 1\n"))
	f.Add([]byte("1 (a) b) R"))
	f.Fuzz(func(t *testing.T, data []byte) { ParseProc(data) })
}

// What a file or a command line says is shown on terminals.
func TestCheckValue(t *testing.T) {
	for value, good := range map[string]bool{
		"": true, "a\tb": true, "/ü/\xe4 z": true, "\u00a0": true,
		"a\nb": false, "\x1b[2J": false, "\x7f": false, "\u009b2J": false, "\u0080": false,
	} {
		if err := CheckValue("-x", value); (err == nil) != good {
			t.Errorf("%q: %v", value, err)
		}
	}
}
