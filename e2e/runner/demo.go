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
	"time"

	"stapbox/e2e/lab"
)

// player plays the demo on a guest's console, like a person at a keyboard.
type player struct {
	con     *lab.Console
	prompt  string
	checked int
}

// hello is the script of the unprivileged-mode guide.
const hello = `probe begin { printf ("Hello\n"); exit (); }`

func note(format string, args ...any) {
	fmt.Printf("\n\n\033[1m## %s\033[0m\n", fmt.Sprintf(format, args...))
}

// act types a command and waits for what it must print, and for the prompt.
// What is printed in between is returned.
func (p *player) act(command string, wait time.Duration, expect ...string) (string, error) {
	if err := p.con.Type(command + "\n"); err != nil {
		return "", err
	}
	var text strings.Builder
	if _, err := p.con.Expect("\r\n", 5*time.Second); err != nil { // the echo of what was typed
		return "", err
	}
	for _, e := range expect {
		s, err := p.con.Expect(e, wait)
		text.WriteString(s)
		if err != nil {
			return text.String(), err
		}
		p.checked++
	}
	s, err := p.con.Expect(p.prompt, wait)
	text.WriteString(s)
	return text.String(), err
}

// step is a command, the title of what it shows, and what it must print.
type step struct {
	title   string
	command string
	expect  []string
}

// patience is how long a step may take.
const patience = 40 * time.Second

// as plays steps as a user. Root is who the console belongs to.
func (p *player) as(user string, steps ...step) error {
	if user != "root" {
		p.prompt = user + "@production$ "
		if _, err := p.act("su - "+user, patience); err != nil {
			return err
		}
		defer func() { p.prompt = "root@production$ " }()
	}
	for _, s := range steps {
		if s.title != "" {
			note("%s", s.title)
		}
		if _, err := p.act(s.command, patience, s.expect...); err != nil {
			return err
		}
	}
	if user == "root" {
		return nil
	}
	p.prompt = "root@production$ "
	_, err := p.act("exit", patience)
	return err
}

// trust answers yes to the question of stap --trust-servers, as root.
func (p *player) trust(title, attributes, certinfo, question string) error {
	note("%s", title)
	if err := p.con.Type("stap --trust-servers=" + attributes + " --use-server=" + certinfo + "\n"); err != nil {
		return err
	}
	for _, text := range []string{question, "[y/N]"} {
		if _, err := p.con.Expect(text, patience); err != nil {
			return err
		}
		p.checked++
	}
	_, err := p.act("y", patience)
	return err
}

// visible takes out of the transcript what a terminal does not show: carriage
// returns and the shell's question where the cursor is.
var visible = strings.NewReplacer("\r", "", "\x1b[6n", "")

var certinfo = regexp.MustCompile(`certinfo="([0-9a-f:]+)"`)

// demo plays the walk of a request.
func demo(l *lab.Lab, _ []string) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root, for a network namespace with a tap device: sudo ./e2e/run demo")
	}
	start := time.Now()
	if err := l.EnsureTools(); err != nil {
		return err
	}
	kernel, err := l.FetchKernel("6.1")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "stapbox-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	note("Build the one file: ./e2e/run build")
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
	note("The compile server, as an unprivileged user, on a host with gcc and the headers of kernel %s", kernel.Release)
	server, err := startService(programs, net, filepath.Join(dir, "server"), kernel)
	if server != nil {
		defer server.output("stop")
	}
	if err != nil {
		return err
	}

	note("The production host: kernel %s, stapbox installed by `stapbox install --root`, no compiler", kernel.Release)
	guest, err := l.Boot(lab.GuestConfig{Kernel: kernel, Box: programs.Box, Net: net})
	if err != nil {
		return err
	}
	defer guest.Kill()
	p := &player{con: guest.Console, prompt: "root@production$ "}
	if _, err := p.con.Expect(p.prompt, 60*time.Second); err != nil {
		return err
	}
	p.con.SetEcho(func(b []byte) { os.Stdout.WriteString(visible.Replace(string(b))) })
	if err := p.play(server, net, kernel); err != nil {
		return fmt.Errorf("%w\nserver log:\n%s", err, server.log())
	}
	note("The compile server stops: what it has begun is finished")
	if err := server.stop(); err != nil {
		return err
	}
	note("Done: %d expectations met in %.0f seconds", p.checked+server.checked, time.Since(start).Seconds())
	return nil
}

// play is the transcript, scene by scene.
func (p *player) play(server *service, net *lab.Network, kernel *lab.Kernel) error {
	status := func(n int) string { return fmt.Sprintf("exit status %d", n) }
	const andStatus = "; echo exit status $?"
	run := "stap -e '" + hello + "'" + andStatus
	byAddress := fmt.Sprintf("--use-server=%s:%d", lab.HostAddress, server.port)
	save := func(level, name string) string {
		return "stap -p4 --use-server --privilege=" + level + " -e '" + hello + "' && mv stap_*.ko " + name + ".ko && mv stap_*.ko.sgn " + name + ".ko.sgn; ls -l " + name + "*; staprun " + name + ".ko" + andStatus
	}
	random := make([]byte, 8)
	rand.Read(random)
	nonce := hex.EncodeToString(random)

	if err := p.as("root",
		step{"", "stty cols 400", nil},
		step{"", "uname -r; which gcc ld make || echo no compiler", []string{kernel.Release, "no compiler"}},
		step{"", "ls -l /usr/bin/stap* /usr/libexec/stapbox", []string{"-rwsr-x---", "stapusr"}},
	); err != nil {
		return err
	}
	if err := p.as("usr",
		step{"An unprivileged user, member of stapusr, looks for servers (mDNS)", "id; stap --list-servers=online,compatible",
			[]string{"uid=1002(usr)", "Systemtap Compile Server Status for 'online,compatible'", "certinfo="}},
		step{"REFUSED: nobody trusts this server yet, neither as a peer nor as a signer", run,
			[]string{"Unable to find a suitable compile server.", status(1)}},
	); err != nil {
		return err
	}
	m := certinfo.FindStringSubmatch(p.con.Text())
	if m == nil {
		return errors.New("no certinfo was listed")
	}
	cert := m[1]
	if err := p.trust("The administrator certifies trust, once, after comparing the fingerprint", "ssl,all-users", cert,
		"as an SSL peer for all users?"); err != nil {
		return err
	}
	if err := p.as("usr",
		step{"REFUSED: trusted as a peer but not as a signer: the loader does not believe its signature", "stap " + byAddress + " -e '" + hello + "'" + andStatus,
			[]string{"Unable to verify the signature for the module", status(1)}},
	); err != nil {
		return err
	}
	if err := p.trust("... so the administrator adds that", "ssl,signer,all-users", cert,
		"as an SSL peer for all users and as a module signer for all users?"); err != nil {
		return err
	}
	if err := p.as("usr",
		step{"The main job: compiled and signed there, verified, loaded and unloaded here", run, []string{"Hello\r\n", status(0)}},
		step{"Nothing is left", "lsmod | grep stap_ || echo no module of ours", []string{"no module of ours"}},
		step{"A number the host side has just made up: " + nonce, `stap -e 'probe begin { printf("nonce %s, uid %d\n", @1, uid()) exit() }' ` + nonce, []string{"nonce " + nonce + ", uid 1002\r\n"}},
	); err != nil {
		return err
	}
	if err := p.stream(); err != nil {
		return err
	}
	const altered, unsigned = "It may have been altered since it was created.", "Unable to verify the signature for the module"
	if err := p.as("usr",
		step{"-p4 leaves the module and its signature; staprun runs them later", save("stapusr", "saved"), []string{"saved.ko.sgn", "Hello\r\n", status(0)}},
		step{"REFUSED: one byte of the module altered", "cp saved.ko bad.ko; cp saved.ko.sgn bad.ko.sgn; printf X | dd of=bad.ko bs=1 seek=5000 conv=notrunc 2>/dev/null; staprun bad.ko" + andStatus, []string{altered, status(255)}},
		step{"REFUSED: one byte of the signature altered", "cp saved.ko bad.ko; printf X | dd of=bad.ko.sgn bs=1 seek=50 conv=notrunc 2>/dev/null; staprun bad.ko" + andStatus, []string{unsigned, status(255)}},
		step{"REFUSED: an unsigned module outside the directory of approved ones", "rm bad.ko.sgn; staprun bad.ko" + andStatus, []string{"can only use unsigned modules within", status(255)}},
		step{"REFUSED: a probe beyond the user's privilege", `stap -e 'probe kernel.function("vfs_read") { exit() }'` + andStatus, []string{"not allowed for --privilege=stapusr", status(1)}},
		step{"REFUSED: a function beyond the user's privilege", `stap -e 'probe begin { println(ctime(0)) exit() }'` + andStatus, []string{"--privilege=stapusr", status(1)}},
		step{"REFUSED: a kernel the server has no headers of", "stap -p4 -r 9.9.9-none " + byAddress + " --privilege=stapusr -e '" + hello + "'" + andStatus, []string{"9.9.9-none is not supported by this server", status(1)}},
	); err != nil {
		return err
	}
	if err := p.as("sys",
		step{"A member of stapsys makes a module of his level", "cd /tmp; " + save("stapsys", "sys"), []string{"Hello\r\n", status(0)}},
	); err != nil {
		return err
	}
	if err := p.as("usr",
		step{"REFUSED: ... which a member of stapusr only may not load", "staprun /tmp/sys.ko" + andStatus, []string{"Your privilege credentials (stapusr) are insufficient to load the module", status(255)}},
	); err != nil {
		return err
	}
	if err := p.as("nobody",
		step{"REFUSED: a user in no group cannot execute the setuid copy, and stap says what cures it", "staprun /home/usr/saved.ko" + andStatus + "; " + run,
			[]string{"ermission denied", status(126), "You are trying to run systemtap as a normal user.", "hint:", status(1)}},
	); err != nil {
		return err
	}
	if err := p.malformed(server, net); err != nil {
		return err
	}
	return p.as("root",
		step{"Each verdict of the loader is in the log", `dmesg | grep 'staprun\[' | tail -n 3`, []string{`"allow":`}},
		step{"At the end no module of ours is loaded, and no process is left", "lsmod | grep stap_ || pidof staprun stapio || echo nothing left", []string{"nothing left"}},
	)
}

// stream runs a timer script until ^C is typed.
func (p *player) stream() error {
	if err := p.as("usr", step{"A timer script streams until ^C", "true", nil}); err != nil {
		return err
	}
	if err := p.con.Type(`su usr -c "stap -v -e 'global n probe timer.ms(500) { printf(\"tick %d\n\", ++n) } probe end { println(\"end probe\") }'"` + "\n"); err != nil {
		return err
	}
	if _, err := p.con.Expect("tick 4\r\n", patience); err != nil {
		return err
	}
	if err := p.con.Type("\x03"); err != nil {
		return err
	}
	if _, err := p.con.Expect("end probe\r\n", patience); err != nil {
		return err
	}
	p.checked += 2
	_, err := p.con.Expect(p.prompt, patience)
	return err
}

// malformed sends malformed requests from the host side while a user's scripts
// are served.
func (p *player) malformed(server *service, net *lab.Network) error {
	note("REFUSED: malformed requests, from the host side, while a client is being served")
	if err := p.con.Type(`su usr -c "for i in 1 2 3; do stap -e 'probe timer.s(1) { printf(\"served %d\n\", \$1) exit() }' \$i; done"` + "\n"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := net.Command(0, os.Environ(), self, "malformed", fmt.Sprintf("%s:%d", lab.HostAddress, server.port)).CombinedOutput()
	fmt.Printf("\n%s", out)
	if err != nil {
		return fmt.Errorf("malformed requests: %w", err)
	}
	if _, err := p.con.Expect("served 3\r\n", patience); err != nil {
		return err
	}
	p.checked++
	_, err = p.con.Expect(p.prompt, patience)
	return err
}
