package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"stapbox/e2e/lab"
)

// headersMissing is what a test says that needs to build modules and cannot.
const headersMissing = "no kernel headers: set STAPBOX_KERNEL_HEADERS to a build directory, or use e2e/run test"

func firstHeaders() string {
	dirs := filepath.SplitList(os.Getenv("STAPBOX_KERNEL_HEADERS"))
	if len(dirs) == 0 {
		return ""
	}
	return dirs[0]
}

// TestCLI runs the files of testdata/cli: one behaviour of the built programs
// each, by the names they are called by. Beside the commands of testscript they
// have
//
//	status N COMMAND...   runs a command that must end with status N
//	[root] [headers]      conditions: the test runs as root; $HEADERS is set
//
// and the variables HEADERS and RELEASE (a kernel's build tree), KERNELS (where
// kernels that were prepared are kept between tests) and NOBODY (the words that
// run a command as an unprivileged user in no group).
func TestCLI(t *testing.T) { testScripts(t, "testdata/cli") }

// TestCases runs one file for each misreading that users of public scripts met:
// what the program did with the script was not what the script says.
func TestCases(t *testing.T) { testScripts(t, "testdata/cases") }

func testScripts(t *testing.T, dir string) {
	root := filepath.Join(stage.dir, filepath.Base(dir))
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: dir, WorkdirRoot: root, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", stage.programs.Dir+":"+os.Getenv("PATH"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("HEADERS", firstHeaders())
			e.Setenv("RELEASE", strings.TrimPrefix(filepath.Base(firstHeaders()), "linux-headers-"))
			e.Setenv("KERNELS", kernelState())
			e.Setenv("NOBODY", fmt.Sprintf("setpriv --reuid=%d --regid=%d --clear-groups", lab.ServerUID, lab.ServerUID))
			// The home directory is nobody else's to write; what an unprivileged user
			// writes is in $TMPDIR.
			if err := os.Chmod(e.WorkDir, 0o755); err != nil {
				return err
			}
			if err := os.Chmod(filepath.Join(e.WorkDir, ".tmp"), 0o777|os.ModeSticky); err != nil {
				return err
			}
			return nil
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "root":
				return os.Geteuid() == 0, nil
			case "headers":
				return firstHeaders() != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status},
	})
}

// status is the command "status N COMMAND...".
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		ts.Fatalf("%q is no exit status", args[0])
	}
	// A variable such as $NOBODY holds several words.
	argv := append(strings.Fields(args[1]), args[2:]...)
	err = ts.Exec(argv[0], argv[1:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%q ends with status %d, not %d", argv, got, want)
	}
}

// example is one command of a manual page and what it prints.
type example struct {
	page    string
	line    int
	user    string // in the guest; "" is here
	command string
	want    []string
}

var fence = regexp.MustCompile("^```console(?: guest ([a-z]+))?$")

// examples are the commands in the blocks that start with "```console": lines
// after "$ " are commands, the others what they print. A block that starts with
// "```console guest USER" is about a host like the one of e2e/run demo.
func examples(t *testing.T) []example {
	t.Helper()
	pages, err := filepath.Glob("../man/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("manual pages: %v, %v", pages, err)
	}
	var all []example
	for _, page := range append(pages, "../README.md") {
		inside, user := false, ""
		for n, line := range strings.Split(string(read(t, page)), "\n") {
			m := fence.FindStringSubmatch(line)
			switch {
			case m != nil:
				inside, user = true, m[1]
			case line == "```":
				inside = false
			case !inside:
			case strings.HasPrefix(line, "$ "):
				all = append(all, example{page: filepath.Base(page), line: n + 1, user: user, command: line[2:]})
			case len(all) == 0:
				t.Fatalf("%s:%d: output before the first command", page, n+1)
			default:
				last := &all[len(all)-1]
				last.want = append(last.want, line)
			}
		}
	}
	return all
}

// compare holds the output of an example against what the page shows: "..."
// stands for anything within a line, and alone for any number of lines.
func (e example) compare(t *testing.T, got string) {
	t.Helper()
	pattern := "^"
	for _, line := range e.want {
		if line == "..." {
			pattern += `(?:.*\n)*?`
			continue
		}
		pattern += strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, ".*") + "\n"
	}
	if !regexp.MustCompile(pattern + "$").MatchString(got) {
		t.Errorf("%s:%d: $ %s\nprints\n%s\nthe page shows\n%s", e.page, e.line, e.command, got, strings.Join(e.want, "\n"))
	}
}

// TestExamples runs the examples of the manual pages that need nothing but the
// programs, those of one page after the other in one directory.
func TestExamples(t *testing.T) {
	dirs := map[string]string{}
	for _, e := range examples(t) {
		if e.user != "" {
			continue
		}
		if dirs[e.page] == "" {
			dirs[e.page] = t.TempDir()
		}
		t.Run(fmt.Sprintf("%s:%d", e.page, e.line), func(t *testing.T) {
			if headersDir.MatchString(e.command) && firstHeaders() == "" {
				t.Skip(headersMissing)
			}
			cmd := exec.Command("sh", "-c", headersDir.ReplaceAllString(e.command, firstHeaders()))
			cmd.Dir = dirs[e.page]
			cmd.Env = append(os.Environ(), "PATH="+stage.programs.Dir+":"+os.Getenv("PATH"), "SYSTEMTAP_DIR="+kernelState(), "HOME="+cmd.Dir)
			out, _ := cmd.CombinedOutput() // the status of an example is part of what it shows
			e.compare(t, string(out))
		})
	}
}

// headersDir is the build directory that pages show for the one there is here.
var headersDir = regexp.MustCompile(`/usr/src/linux-headers-\S+`)

// TestGuestExamples runs the examples about an installed host on one: its
// administrator trusts the compile server, usr is a member of stapusr, dev of
// stapdev and stapusr.
func TestGuestExamples(t *testing.T) {
	onOne(t, func(t *testing.T, s *scene) {
		server := s.startServer(t)
		s.forgetSigners(t)
		s.do(t, lab.Shell(lab.Root, "rm -rf /etc/systemtap/ssl/client/* /home/*/.systemtap /root/.systemtap"))
		r := lab.Shell(lab.Root, fmt.Sprintf("echo y | stap --trust-servers=ssl,signer,all-users --use-server=%s:%d", lab.HostAddress, server.Port))
		if a := s.do(t, r); a.Status != 0 {
			t.Fatalf("trusting the server: status %d, %s", a.Status, a.Stderr)
		}
		users := map[string]lab.User{"root": lab.Root, "usr": lab.Usr, "dev": lab.Dev, "sys": lab.Sys, "nobody": lab.Nobody}
		ran := 0
		for _, e := range examples(t) {
			if e.user == "" {
				continue
			}
			u, ok := users[e.user]
			if !ok {
				t.Errorf("%s:%d: the guest has no user %q", e.page, e.line, e.user)
				continue
			}
			ran++
			t.Run(fmt.Sprintf("%s:%d", e.page, e.line), func(t *testing.T) {
				r := lab.Shell(u, "{ "+e.command+"\n} 2>&1")
				r.Timeout = 60
				e.compare(t, string(s.do(t, r).Stdout))
			})
		}
		if ran == 0 {
			t.Error("no page has an example for the guest")
		}
		s.forgetSigners(t)
		s.do(t, lab.Shell(lab.Root, "rm -rf /etc/systemtap/ssl/client/* /root/.systemtap"))
	})
}

// What documents ask the manual to say.
// Requirements: R-002-067 R-003-133..134
func TestManualSays(t *testing.T) {
	for page, want := range map[string]string{
		"systemtap":   `ALLOW_CACHEONLY=no - with .yes. scripts that exist only compiled are run too\. They may be old ones\.`,
		"stap-server": `Behind a firewall give it a fixed one and let that TCP port through, and UDP port 5353`,
	} {
		if text := read(t, "../man/"+page+".md"); !regexp.MustCompile(want).Match(text) {
			t.Errorf("%s does not say %q", page, want)
		}
	}
}
