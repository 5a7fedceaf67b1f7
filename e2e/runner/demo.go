package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"stapbox/e2e/lab"
)

// player plays the demo in a guest, each command on a terminal of its own, as
// the user who would type it. What is printed is the transcript.
type player struct {
	guest   *lab.Guest
	checked int
	text    string // of the last step
	color   bool
}

// hello is the script of the unprivileged-mode guide.
const hello = `probe begin { printf ("Hello\n"); exit (); }`

// step is a command, and what it must print, in this order.
type step struct {
	title   string // what is shown, and why it matters; "" for what belongs to the step before
	user    string
	command string
	answers []answer
	status  int
	expect  []string
	rule    string // of a refusal
}

// answer is what is typed when a text has been printed.
type answer struct{ to, typed string }

// note prints a heading.
func (p *player) note(format string, args ...any) { heading(p.color, format, args...) }

func heading(color bool, format string, args ...any) {
	bold, plain := "", ""
	if color {
		bold, plain = "\033[1m", "\033[0m"
	}
	fmt.Printf("\n%s## %s%s\n", bold, fmt.Sprintf(format, args...), plain)
}

// patience is how long a step may take.
const patience = 60 * time.Second

// play plays steps one after another.
func (p *player) play(steps ...step) error {
	for _, s := range steps {
		wait, err := p.begin(s)
		if err == nil {
			err = wait()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// begin starts a step. wait waits for its end and checks it.
func (p *player) begin(s step) (wait func() error, err error) {
	if s.title != "" {
		p.note("%s", s.title)
	}
	sign := "$"
	if s.user == "root" {
		sign = "#"
	}
	fmt.Printf("%s@production%s %s\n", s.user, sign, s.command)
	r := lab.Command(lab.Root, "/bin/su", "-", s.user, "-c", s.command)
	r.Terminal, r.Rows, r.Columns = true, 24, 400
	out := &transcript{color: p.color, news: make(chan struct{}, 1)}
	running, err := p.guest.Stream(r, out, out)
	if err != nil {
		return nil, err
	}
	return func() error {
		late := time.AfterFunc(patience, func() { running.Signal(9) })
		defer late.Stop()
		ended := make(chan error, 1)
		status := 0
		go func() {
			var err error
			status, err = running.Wait()
			ended <- err
		}()
		answers := s.answers
		for done := false; !done; {
			select {
			case err := <-ended:
				if err != nil {
					return err
				}
				done = true
			case <-out.news:
				for len(answers) > 0 && strings.Contains(out.String(), answers[0].to) {
					if err := running.Type(answers[0].typed); err != nil {
						return err
					}
					answers = answers[1:]
				}
			}
		}
		out.end()
		p.text = out.String()
		if status != 0 {
			fmt.Printf("exit status %d\n", status)
		}
		if s.rule != "" {
			fmt.Printf("   The rule: %s\n", s.rule)
		}
		if len(answers) > 0 {
			return fmt.Errorf("%q does not print %q", s.command, answers[0].to)
		}
		if status != s.status {
			return fmt.Errorf("%q ends with status %d, not %d", s.command, status, s.status)
		}
		rest := p.text
		for _, e := range s.expect {
			_, after, ok := strings.Cut(rest, e)
			if !ok {
				return fmt.Errorf("%q does not print %q", s.command, e)
			}
			rest = after
			p.checked++
		}
		p.checked += 1 + len(s.answers)
		return nil
	}, nil
}

// transcript prints what a command prints, as it comes.
type transcript struct {
	color bool
	news  chan struct{}

	mu   sync.Mutex
	text strings.Builder
}

// sequences are those by which programs control a terminal.
var sequences = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

func (t *transcript) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	shown := strings.ReplaceAll(string(b), "\r", "")
	plain := sequences.ReplaceAllString(shown, "")
	if !t.color {
		shown = plain
	}
	os.Stdout.WriteString(shown)
	t.text.WriteString(plain)
	select {
	case t.news <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// end ends the last line.
func (t *transcript) end() {
	if s := t.String(); s != "" && !strings.HasSuffix(s, "\n") {
		fmt.Println()
	}
}

var (
	certinfo     = regexp.MustCompile(`certinfo="([0-9a-f:]+)"`)
	trustCommand = regexp.MustCompile(`\$ sudo (stap --trust-servers=\S+ --use-server=\S+)`)
)

// demo plays the walk of a request. With --short it ends at the first Hello.
func demo(_ *ending, l *lab.Lab, args []string) (err error) {
	short := len(args) == 1 && args[0] == "--short"
	if len(args) > 0 && !short {
		return fmt.Errorf("%q: demo has no option but --short", args)
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, for a network namespace with a tap device: sudo ./e2e/run demo")
	}
	start := time.Now()
	if err := l.EnsureTools(); err != nil {
		return err
	}
	kernel, err := l.FetchKernel("6.1")
	if err != nil {
		return err
	}
	if _, err := l.FetchBusybox(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "stapbox-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	color := isTerminal(os.Stdout)
	heading(color, "The product is one file: ./e2e/run build")
	programs, err := lab.Build(dir)
	if err != nil {
		return err
	}
	st, err := os.Stat(programs.Box)
	if err != nil {
		return err
	}
	fmt.Printf("%.1f MB\n", float64(st.Size())/1e6)

	net, err := l.NewNetwork()
	if err != nil {
		return err
	}
	defer net.Close()
	heading(color, "A compile server runs as an unprivileged user, on the one host that has gcc and the headers of kernel %s", kernel.Release)
	server, err := startService(programs, net, filepath.Join(dir, "server"), kernel)
	if server != nil {
		defer server.output("stop")
	}
	if err != nil {
		return err
	}
	heading(color, "The production host boots: kernel %s, stapbox installed by `stapbox install --root`, no compiler", kernel.Release)
	guest, err := l.Boot(lab.GuestConfig{Kernel: kernel, Agent: programs.Agent, Box: programs.Box, Net: net})
	if err != nil {
		return err
	}
	defer guest.Kill()
	p := &player{guest: guest, color: color}
	err = p.toHello(kernel)
	if err == nil && !short {
		err = p.rest(server, net)
	}
	if err != nil {
		return fmt.Errorf("%w\nserver log:\n%s", err, server.log())
	}
	p.note("The compile server stops: what it has begun is finished")
	if err := server.stop(); err != nil {
		return err
	}
	p.note("Done: %d expectations met in %.0f seconds", p.checked+server.checked, time.Since(start).Seconds())
	if short {
		fmt.Println("./e2e/run demo shows the rest: what is refused, and the cure of a broken host.\nYour own script: ./e2e/run guest --server -- stap -e 'probe timer.s(1) { println(execname()) exit() }'")
	}
	return nil
}

// run is the main job.
const run = "stap -e '" + hello + "'"

// The questions of stap --trust-servers.
const (
	asPeer = "as an SSL peer for all users?"
	asBoth = "as an SSL peer for all users and as a module signer for all users?"
)

// yes answers the question.
func yes(question string) []answer { return []answer{{question, ""}, {"[y/N]", "y\n"}} }

// toHello is the way from an installed host to the output of a user without
// privilege.
func (p *player) toHello(kernel *lab.Kernel) error {
	err := p.play(
		step{user: "root", command: "uname -r; which gcc ld make || echo no compiler", expect: []string{kernel.Release, "no compiler"}},
		step{user: "root", command: "ls -l /usr/bin/stap /usr/bin/staprun /usr/libexec/stapbox/*", expect: []string{"-rwsr-x---", "stapusr"}},
		step{title: "An unprivileged user, member of stapusr, looks for servers: they announce themselves by multicast DNS", user: "usr",
			command: "id; stap --list-servers=online,compatible", expect: []string{"uid=1002(usr)", "Systemtap Compile Server Status for 'online,compatible'", "certinfo="}},
		step{title: "REFUSED: a server that is merely there gets no script and signs no module for this host", user: "usr", command: run, status: 1,
			expect: []string{"Unable to find a suitable compile server."},
			rule:   "a server must be trusted as a peer (to get the script) and as a signer (to have its module loaded), by an administrator's decision."},
	)
	if err != nil {
		return err
	}
	m := certinfo.FindStringSubmatch(p.text)
	if m == nil {
		return errors.New("no certinfo was listed")
	}
	return p.play(
		step{title: "The administrator trusts the server as a peer, once, after comparing the fingerprint with that in its log", user: "root",
			command: "stap --trust-servers=ssl,all-users --use-server=" + m[1], answers: yes(asPeer)},
		step{title: "REFUSED: a peer compiles, but its signature alone loads nothing into the kernel", user: "usr",
			command: fmt.Sprintf("stap --use-server=%s -e '%s'", lab.HostAddress+":"+port(p.text), hello), status: 1,
			expect: []string{"Unable to verify the signature for the module"},
			rule:   "staprun loads for a member of stapusr only what a signer signed that root trusts, or what lies in root's directory of approved modules."},
		step{title: "So the administrator trusts it as a signer too", user: "root",
			command: "stap --trust-servers=ssl,signer,all-users --use-server=" + m[1], answers: yes(asBoth)},
		step{title: "The main job: a user without privilege runs his script in the kernel. Compiled and signed there; verified, loaded, streamed and unloaded here", user: "usr",
			command: run, expect: []string{"Hello\n"}},
		step{title: "Nothing is left behind", user: "usr", command: "lsmod | grep stap_ || echo no module of ours", expect: []string{"no module of ours"}},
	)
}

// portField is the port of a listed server.
var portField = regexp.MustCompile(`port=(\d+)`)

func port(text string) string {
	if m := portField.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return "0"
}

// rest is what an operator wants to know beyond Hello.
func (p *player) rest(server *service, net *lab.Network) error {
	random := make([]byte, 8)
	rand.Read(random)
	nonce := hex.EncodeToString(random)
	byAddress := fmt.Sprintf("--use-server=%s:%d", lab.HostAddress, server.port)
	save := func(level, name string) string {
		return "stap -p4 --use-server --privilege=" + level + " -e '" + hello + "' && mv stap_*.ko " + name + ".ko && mv stap_*.ko.sgn " + name + ".ko.sgn; ls -l " + name + "*; staprun " + name + ".ko"
	}
	const altered, unsigned = "It may have been altered since it was created.", "Unable to verify the signature for the module"
	const signed = "what staprun loads for a user is, to the byte, what a trusted signer signed."
	const level = "a server translates for the level of the user; each probe and function names the lowest level that may use it."
	err := p.play(
		step{title: "It is no recording: a number that the host side has just made up is " + nonce, user: "usr",
			command: `stap -e 'probe begin { printf("nonce %s, uid %d\n", @1, uid()) exit() }' ` + nonce, expect: []string{"nonce " + nonce + ", uid 1002\n"}},
		step{title: "A timer streams until ^C; the end probe still runs, and the module goes", user: "usr",
			command: `stap -e 'global n probe timer.ms(500) { printf("tick %d\n", ++n) } probe end { println("end probe") }'`,
			answers: []answer{{"tick 4\n", "\x03"}}, expect: []string{"end probe\n"}},
		step{title: "A module can be kept with its signature and run later, without a server", user: "usr", command: save("stapusr", "saved"), expect: []string{"saved.ko.sgn", "Hello\n"}},
		step{title: "REFUSED: one byte of the module altered", user: "usr", status: 255,
			command: "cp saved.ko bad.ko; cp saved.ko.sgn bad.ko.sgn; printf X | dd of=bad.ko bs=1 seek=5000 conv=notrunc 2>/dev/null; staprun bad.ko", expect: []string{altered}, rule: signed},
		step{title: "REFUSED: one byte of the signature altered", user: "usr", status: 255,
			command: "cp saved.ko bad.ko; printf X | dd of=bad.ko.sgn bs=1 seek=50 conv=notrunc 2>/dev/null; staprun bad.ko", expect: []string{unsigned}, rule: signed},
		step{title: "REFUSED: an unsigned module outside the directory of approved ones", user: "usr", status: 255,
			command: "rm bad.ko.sgn; staprun bad.ko", expect: []string{"can only use unsigned modules within"},
			rule: "without a signature it must lie in /lib/modules/RELEASE/systemtap, where only root (or stapdev) puts modules."},
		step{title: "REFUSED: a probe beyond the user's privilege", user: "usr", status: 1,
			command: `stap -e 'probe kernel.function("vfs_read") { exit() }'`, expect: []string{"not allowed for --privilege=stapusr"}, rule: level},
		step{title: "REFUSED: a function beyond the user's privilege", user: "usr", status: 1,
			command: `stap -e 'probe begin { println(ctime(0)) exit() }'`, expect: []string{"--privilege=stapusr"}, rule: level},
		step{title: "REFUSED: a kernel the server has no headers of", user: "usr", status: 1,
			command: "stap -p4 -r 9.9.9-none " + byAddress + " --privilege=stapusr -e '" + hello + "'", expect: []string{"9.9.9-none is not supported by this server"},
			rule: "a module is built for exactly one kernel; a server builds for those whose headers it has (-r)."},
		step{title: "A member of stapsys makes a module of his level", user: "sys", command: "cd /tmp; " + save("stapsys", "sys"), expect: []string{"Hello\n"}},
		step{title: "REFUSED: which somebody who is only in stapusr may not load", user: "usr", status: 255,
			command: "staprun /tmp/sys.ko", expect: []string{"Your privilege credentials (stapusr) are insufficient to load the module"},
			rule: "the level is in the module, under the signature; whoever loads it must be a member of that group."},
		step{title: "REFUSED: a user in no group may not execute the setuid copy; stap says what cures it", user: "nobody", status: 126,
			command: "staprun /home/usr/saved.ko", expect: []string{"ermission denied"}, rule: "staprun is 4750 root:stapusr: the kernel refuses, before any code of ours."},
		step{user: "nobody", command: run, status: 1, expect: []string{"You are trying to run systemtap as a normal user.", "hint:"}},
	)
	if err == nil {
		err = p.malformed(server, net)
	}
	if err == nil {
		err = p.cure()
	}
	if err != nil {
		return err
	}
	return p.play(
		step{title: "Each verdict of the loader is in the log: who, which module, by which rule", user: "root", command: `dmesg | grep 'staprun\[' | tail -n 3`, expect: []string{`"allow":`}},
		step{title: "At the end no module of ours is loaded, and no process is left", user: "root", command: "lsmod | grep stap_ || pidof staprun stapio || echo nothing left", expect: []string{"nothing left"}},
	)
}

// cure breaks the host, asks stapbox doctor, and does what it says.
func (p *player) cure() error {
	err := p.play(
		step{title: "The host breaks: staprun is no setuid program any more, and the signer is forgotten", user: "root", command: "chmod 0755 /usr/bin/staprun; rm -r /etc/systemtap/staprun"},
		step{user: "usr", command: run, status: 1},
		step{title: "stapbox doctor, as the user: what would refuse a run, and the command that cures each thing", user: "usr", command: "stapbox doctor", status: 1, expect: []string{"cure", "staprun"}},
	)
	if err != nil {
		return err
	}
	m := trustCommand.FindStringSubmatch(p.text)
	if m == nil {
		return errors.New("stapbox doctor names no command that adds trust")
	}
	return p.play(
		step{title: "The administrator gives those commands", user: "root", command: "stapbox install", expect: []string{"mode 4750"}},
		step{user: "root", command: m[1], answers: yes(asBoth)},
		step{title: "Cured", user: "usr", command: "stapbox doctor"},
		step{user: "usr", command: run, expect: []string{"Hello\n"}},
	)
}

// malformed sends malformed requests from the host side while a user's scripts
// are served.
func (p *player) malformed(server *service, net *lab.Network) error {
	wait, err := p.begin(step{
		title: "REFUSED: malformed requests, from the host side, while a client is being served", user: "usr",
		command: `for i in 1 2 3; do stap -e 'probe timer.s(1) { printf("served %d\n", $1) exit() }' $i; done`, expect: []string{"served 1\n", "served 2\n", "served 3\n"},
		rule: "a server unpacks under limits of size, count, ratio and path, and answers each client by itself.",
	})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := net.Command(0, os.Environ(), self, "malformed", fmt.Sprintf("%s:%d", lab.HostAddress, server.port)).CombinedOutput()
	fmt.Printf("%s", out)
	if err != nil {
		return fmt.Errorf("malformed requests: %w", err)
	}
	return wait()
}
