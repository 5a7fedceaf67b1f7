package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"stapbox/e2e/lab"
)

// documented is a command line of one of the documents.
type documented struct {
	line     int
	document string
	place    string // "-" if it is of other programs
	status   int
	command  string
	want     *regexp.Regexp
}

const documentsFile = "testdata/documents.txt"

func documentedCommands(t *testing.T) (commands []documented) {
	t.Helper()
	n := 0
	for line := range strings.Lines(string(read(t, documentsFile))) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.SplitN(line, " ", 4)
		if f[1] == "-" {
			commands = append(commands, documented{line: n, document: f[0], place: "-", command: strings.Join(f[2:], " ")})
			continue
		}
		status, err := strconv.Atoi(f[2])
		command, want, ok := strings.Cut(f[3], " =>")
		if err != nil || !ok {
			t.Fatalf("%s:%d: %q is no document, place, status, command => output", documentsFile, n, line)
		}
		commands = append(commands, documented{n, f[0], f[1], status, command, regexp.MustCompile(strings.TrimSpace(want))})
	}
	return commands
}

// written replaces what stands for something in a command.
func written(command string, values map[string]string) string {
	var pairs []string
	for from, to := range values {
		pairs = append(pairs, from, to)
	}
	command = strings.ReplaceAll(strings.ReplaceAll(command, "sudo ", ""), "service stap-server", "STAP_USER=stap-server stap-server")
	command = strings.ReplaceAll(command, "service systemtap", "systemtap")
	return strings.NewReplacer(pairs...).Replace(command)
}

// Every command line of the five documents is run as it stands there.
// Requirements: A-01 A-17 C-05 C-10 C-14 C-20
func TestDocumentedCommands(t *testing.T) {
	besidesOthers(t)
	commands := documentedCommands(t)
	ran, others := 0, 0
	for _, c := range commands {
		if c.place == "-" {
			others++
		} else {
			ran++
		}
	}
	t.Run("server", func(t *testing.T) { documentedOnServer(t, commands) })
	t.Run("host", func(t *testing.T) { onOne(t, func(t *testing.T, s *scene) { documentedOnHost(t, s, commands) }) })
	t.Logf("%d command lines run, %d of other programs", ran, others)
	fmt.Printf("documents: %d command lines of the five documents are run, %d are those of other programs\n", ran, others)
}

// documentedOnServer runs those of the host with kernel headers, which are all
// for its root and for a user of it.
func documentedOnServer(t *testing.T, commands []documented) {
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString(people + `
# The kernel's packages where Debian puts them, and for the running kernel the same under its name.
{ mkdir -p /usr/src && mount --bind "$tree/usr/src" /usr/src && over /usr/src; } || exit 99
for d in "$tree"/usr/lib/linux-kbuild-*; do { mkdir -p /usr/lib/${d##*/} && mount --bind "$d" /usr/lib/${d##*/}; } || exit 99; done
{ mkdir -p /lib/modules && mount -t tmpfs -o mode=755 tmpfs /lib/modules; } || exit 99
running=$(uname -r); cp -a /usr/src/linux-headers-$release /usr/src/linux-headers-$running
echo "#define UTS_RELEASE \"$running\"" >/usr/src/linux-headers-$running/include/generated/utsrelease.h
for r in $release $running; do mkdir -p /lib/modules/$r; ln -s /usr/src/linux-headers-$r /lib/modules/$r/build; done
headers=/usr/src/linux-headers-$release
mkdir -m 755 /etc/systemtap
cd $dir/ann
n() { stap-server status 2>/dev/null | sed -n 's/.*PID \([0-9]*\).*/\1/p' | head -n 1; }
`)
	var here []documented
	for _, c := range commands {
		if c.place != "server" && c.place != "ann" {
			continue
		}
		command := written(c.command, map[string]string{
			"2.6.34.7-61.fc13.x86_64": k.Release, "/BUILDDIR": `"$headers"`, "PID": "$pid", "HOSTNAME": "$host", "PORT": "$port",
			"DIRNAME": "$HOME/.systemtap/ssl/client", "CERTFILE": "$dir/ann/.systemtap/ssl/server/stap.cert",
		})
		who := "env HOME=/root "
		if c.place == "ann" {
			who = "as ann "
		}
		fmt.Fprintf(&script, "pid=$(pgrep -u ann -o stap-serverd); set -- $(as ann stap-find-servers --all 2>/dev/null | head -n 1); host=$1 port=$3\n")
		fmt.Fprintf(&script, "echo '@@begin %d'\n%s host=$host port=$port pid=$pid dir=$dir headers=\"$headers\" sh -c %s 2>&1 </dev/null\necho \"@@end $?\"\n", c.line, who, quoted(command))
		here = append(here, c)
	}
	script.WriteString("echo @@log; tail -n 100 $dir/ann/.systemtap/stap-server/log\n")
	out, rc := rooted(t, script.String(), "tree="+filepath.Join(k.Headers, "../../.."), "release="+k.Release)
	if rc != 0 {
		t.Errorf("status %d", rc)
	}
	results := regexp.MustCompile(`(?s)@@begin (\d+)\n(.*?)@@end (\d+)\n`).FindAllStringSubmatch(out, -1)
	if len(results) != len(here) {
		t.Fatalf("%d of %d commands were run:\n%s", len(results), len(here), out)
	}
	_, log, _ := strings.Cut(out, "@@log\n")
	defer func() {
		if t.Failed() {
			t.Log(log)
		}
	}()
	for i, c := range here {
		status, _ := strconv.Atoi(results[i][3])
		c.check(t, status, results[i][2])
	}
}

// quoted is a text as one word of sh.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func (c documented) check(t *testing.T, status int, out string) {
	t.Helper()
	if status != c.status || !c.want.MatchString(out) {
		t.Errorf("%s:%d: %s: status %d, want %d; printed %q, want %q", documentsFile, c.line, c.command, status, c.status, out, c.want)
	}
}

// exampleServer is the certificate of the documents' server.
const exampleServer = "00:93:49:be:2a"

var certField = regexp.MustCompile(`certinfo="([0-9a-f:]+)"`)

// documentedOnHost runs those of the production host, with a server in its
// network.
func documentedOnHost(t *testing.T, s *scene, commands []documented) {
	server := s.startServer(t)
	if err := server.WaitLog("is ready after", 90*time.Second); err != nil {
		t.Fatal(err)
	}
	s.forgetSigners(t)
	s.do(t, lab.Shell(lab.Root, "rm -rf /etc/systemtap/ssl /home/usr/.systemtap /root/.systemtap /home/usr/*.ko*; mkdir -p /root/.systemtap /etc/systemtap/script.d /etc/systemtap/conf.d /var/log"))
	const pmod = `probe begin { println("pmod") exit() }`
	long := func(name string) string {
		return fmt.Sprintf(`probe begin { println(%q) } probe timer.s(100) { exit() }`, name)
	}
	for path, text := range map[string]string{
		"/root/pmod.stp": pmod, "/root/script1.stp": long("script1"), "/root/script2.stp": long("script2"), "/root/script3.stp": long("script3"),
		"/etc/systemtap/conf.d/group1": "script1_OPT=\"-o /var/log/group1.log -DRELAYHOST=group1\"\nscript2_OPT=\"-DRELAYGUEST=group1\"\nscript2_REQ=script1\nscript3_OPT=\"-DRELAYGUEST=group1\"\nscript3_REQ=\"script1\"\n",
		"/tmp/stap.cert":               string(read(t, server.Certificate())),
	} {
		s.put(t, path, lab.Root, 0o644, []byte(text))
	}
	s.put(t, "/home/usr/pmod.stp", lab.Usr, 0o644, []byte(pmod))
	values := map[string]string{
		"<new kernel version>": s.kernel.Release, "<kernel-version>": s.kernel.Release, "<config>": "group1", "<certfile>": "/tmp/stap.cert", "SCRIPT": "pmod.stp",
	}
	for _, c := range commands {
		user := lab.Root
		switch c.place {
		case "usr":
			user = lab.Usr
		case "root":
		default:
			continue
		}
		if c.document == "001" {
			// The development machine and the production host are one: with a server in place of a compiler.
			s.put(t, "/root/.systemtap/rc", lab.Root, 0o644, []byte("--use-server\n"))
		}
		r := lab.Shell(user, written(c.command, values))
		r.Timeout = 120
		a := s.do(t, r)
		printed := string(a.Stdout)
		if !c.want.MatchString(printed) {
			printed += string(a.Stderr)
		}
		if m := certField.FindStringSubmatch(printed); m != nil && values[exampleServer] == "" {
			values[exampleServer] = m[1]
		}
		c.check(t, a.Status, printed)
	}
	s.do(t, lab.Shell(lab.Root, "rm -rf /root/.systemtap /root/*.stp /root/*.ko* /etc/systemtap/script.d/* /etc/systemtap/conf.d/* /etc/systemtap/config /var/cache/systemtap /stap-scripts-* /lib/modules/*/systemtap/pmod.ko /home/usr/*.ko* /home/usr/pmod.stp /tmp/stap.cert"))
}
