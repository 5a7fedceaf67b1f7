package interop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"stapbox/e2e/lab"
)

// systemdTime is for boot, key, the first look at a kernel and its module, all
// of which the emulated machine does itself.
const systemdTime = 20 * time.Minute

// cachesScript compiles scripts where an emulator does not make it slow, as
// systemtap(8) says for hosts without a compiler.
const cachesScript = `
/mnt/stapbox install --systemd >/dev/null || exit
cat >/etc/systemtap/script.d/base.stp <<'END'
global n
probe begin { println("base begins") }
probe timer.ms(100) { n++ }
END
cat >/etc/systemtap/script.d/top.stp <<'END'
probe begin { println("top begins") }
probe timer.s(10) { }
END
echo top_REQ=base >/etc/systemtap/conf.d/both.conf
release=$(ls /lib/modules)
systemtap compile -y -r $release && systemtap export -r $release /mnt/caches.tar && cp -a /etc/systemtap/script.d /etc/systemtap/conf.d /mnt/
`

// asUser runs a command as a member of stapusr, in his home directory.
const asUser = `as_user() { setpriv --reuid=usr --regid=usr --init-groups env HOME=/home/usr USER=usr PATH=/usr/bin:/bin sh -c "cd && $1"; echo "status=$?"; }
`

// A systemdStep is a piece of shell in the guest, and all that it has to print.
type systemdStep struct{ what, script, want string }

var errStep = errors.New("not as it has to be")

// systemdSteps are what an administrator does, and what he sees.
func systemdSteps() []systemdStep {
	return []systemdStep{
		{"the machine is up", `systemctl is-system-running --wait; ps -p 1 -o comm=`, `^running\nsystemd\n$`},
		{
			"stapbox install --systemd",
			`/root/stapbox install --systemd >/dev/null && /root/stapbox install --systemd; getent passwd stap-server | cut -d: -f1,3,4,6; systemctl list-unit-files --no-legend --no-pager 'stap*.s*' 'systemtap*' | awk '{print $1, $2}' | LC_ALL=C sort`,
			`^nothing to do\nstap-server:155:155:/var/lib/stap-server\nstap-server.service disabled\nstap-server@.service disabled\nstap-server@.socket disabled\nsystemtap.service disabled\n$`,
		},
		{
			"systemctl enable --now stap-server@default: ready when it serves, shut in, trusted",
			`systemctl enable -q --now stap-server@default; echo "status=$?"; systemctl is-active stap-server@default; systemctl show -p Type -p StatusText stap-server@default; journalctl -o cat -u stap-server@default --no-pager | grep -E 'starting as|confined|lacks|Using network|trusts|^Started'`,
			`^status=0\nactive\nType=notify\nStatusText=Serving 1 kernels\n` +
				`[^\n]*compile server pid \d+ starting as stap-server =====\n[^\n]*Workers are confined by namespaces, Landlock, seccomp\n[^\n]*Using network address \[::\]:\d+\n` +
				`This host trusts sha256:[0-9a-f]{64} \(peer, all users\)\nThis host trusts sha256:[0-9a-f]{64} \(module signer, all users\)\nStarted stap-server@default[^\n]*\n$`,
		},
		{
			"a member of stapusr compiles through it, and runs the module",
			asUser + `useradd -m -G stapusr usr; as_user "stap -e 'probe begin { println(1234) exit() }' 2>/dev/null"`,
			`^1234\nstatus=0\n$`,
		},
		{
			"what it may not do is refused, and said",
			asUser + `as_user "stap -e 'probe procfs(\"x\").read { }' 2>&1 >/dev/null | grep -o 'not allowed for --privilege=stapusr' | uniq"`,
			`^not allowed for --privilege=stapusr\nstatus=0\n$`,
		},
		{
			"systemctl reload, status",
			`systemctl reload stap-server@default; echo "status=$?"; sleep 1; systemctl is-active stap-server@default; journalctl -o cat -u stap-server@default --no-pager | grep -c 'Received signal 1, reloading'; systemctl status stap-server@default >/dev/null; echo "status=$?"`,
			`^status=0\nactive\n1\nstatus=0\n$`,
		},
		{
			"its log is rotated, and written to again",
			`echo LOG=/var/log/stap-server/log >>/etc/stap-server/conf.d/default.conf; systemctl restart stap-server@default; head -c 40000 /dev/zero >>/var/log/stap-server/log
logrotate /etc/logrotate.d/stapbox; echo "status=$?"; sleep 1; cd /var/log/stap-server; stat -c '%n %U %a' log*; grep -c 'log file opened again' log; sed -i /LOG=/d /etc/stap-server/conf.d/default.conf`,
			`^status=0\nlog stap-server 640\nlog.1 stap-server 640\n1\n$`,
		},
		{
			"killed, it comes back",
			`systemctl restart stap-server@default; systemctl kill -s KILL stap-server@default; for i in $(seq 60); do sleep 1; [ "$(systemctl show -p NRestarts --value stap-server@default)" = 1 ] && systemctl -q is-active stap-server@default && break; done; systemctl is-active stap-server@default`,
			`^active\n$`,
		},
		{
			"systemctl disable --now",
			`systemctl disable -q --now stap-server@default; echo "status=$?"; systemctl is-active stap-server@default; pgrep -c stap-serverd`,
			`^status=0\ninactive\n0\n$`,
		},
		{
			"a connection starts the server of stap-server@default.socket",
			asUser + `systemctl start stap-server@default.socket; systemctl is-active stap-server@default.socket stap-server@default.service
as_user "stap --use-server=debian:65000 -e 'probe begin { println(5678) exit() }' 2>/dev/null"
systemctl is-active stap-server@default.service; systemctl stop stap-server@default.socket stap-server@default.service`,
			`^active\ninactive\n5678\nstatus=0\nactive\n$`,
		},
		{
			"stap-server.service is all servers that files describe",
			`printf 'NICKNAME=second\nPORT=4322\n' >/etc/stap-server/conf.d/second.conf
units="stap-server stap-server@default stap-server@second"
systemctl start stap-server; echo "status=$?"; systemctl is-active $units
systemctl restart stap-server; echo "status=$?"; systemctl is-active $units
systemctl reload stap-server; echo "status=$?"; sleep 2; journalctl -o cat -u stap-server@second --no-pager | grep -c 'Received signal 1, reloading'
systemctl stop stap-server; echo "status=$?"; systemctl is-active $units`,
			`^status=0\nactive\nactive\nactive\nstatus=0\nactive\nactive\nactive\nstatus=0\n1\nstatus=0\ninactive\ninactive\ninactive\n$`,
		},
		{
			"stopped right after a reload, no unit fails",
			`since=$(date +@%s); for delay in 0 0 0.02 0.05 0.1 0.2; do
	systemctl start stap-server; systemctl reload stap-server; sleep $delay; systemctl stop stap-server; echo "status=$?"
	systemctl start stap-server@default; systemctl reload --no-block stap-server@default; sleep $delay; systemctl stop stap-server@default; echo "status=$?"
done
systemctl is-active stap-server stap-server@default stap-server@second; systemctl --failed --no-legend --no-pager; journalctl -o cat --since $since -u 'stap-server*' --no-pager | grep -E 'Failed with result'`,
			`^(?:status=0\n){12}inactive\ninactive\ninactive\n$`,
		},
		{
			"a server that cannot start says why, and is failed",
			`echo USER=nobody >>/etc/stap-server/conf.d/second.conf; systemctl start stap-server@second 2>/dev/null; echo "status=$?"
touch '/etc/stap-server/conf.d/a b.conf'; systemctl start stap-server 2>/dev/null; echo "status=$?"; rm '/etc/stap-server/conf.d/a b.conf'
journalctl -o cat -u stap-server@second -u stap-server --no-pager | grep -E 'as user|does not do' | LC_ALL=C sort -u
systemctl stop stap-server@second; rm /etc/stap-server/conf.d/second.conf; systemctl reset-failed`,
			`^status=1\nstatus=1\nCannot run servers as user nobody: only root can start servers of other users\nThe name of /etc/stap-server/conf.d/a b.conf does not do for a service: [^\n]*\n$`,
		},
		{
			"systemctl enable --now systemtap: scripts from caches that were imported",
			`cp -p /root/scripts/script.d/* /etc/systemtap/script.d/; cp -p /root/scripts/conf.d/* /etc/systemtap/conf.d/; systemtap import /root/scripts/caches.tar >/dev/null
systemctl enable -q --now systemtap; echo "status=$?"; systemctl is-active systemtap; systemtap status; timeout -s QUIT 3 staprun -A base 2>/dev/null
systemctl restart systemtap; echo "status=$?"; systemtap status | grep -c running...
systemctl stop systemtap; echo "status=$?"; systemctl is-active systemtap; grep -c 'Exec: stap ' /var/log/systemtap.log; systemtap status >/dev/null; echo "status=$?"; ls /var/cache/systemtap/*`,
			`^status=0\nactive\n(?s:.*)base is running...\n(?s:.*)top is running...\n(?s:.*)base begins\nstatus=0\n2\nstatus=0\ninactive\n0\nstatus=3\nbase.ko\nbase.opts\ntop.ko\ntop.opts\n$`,
		},
		{
			"no unit has failed, and uninstalling leaves the administrator's files",
			`systemctl --failed --no-legend --no-pager; systemctl disable -q systemtap; stapbox uninstall | grep -c '^remove'
find /etc /usr /lib -newer /agent -path '*stap*' ! -type d 2>/dev/null | grep -v '^/etc/\(systemtap\|systemd\)' | sort; systemctl list-unit-files --no-legend --no-pager 'stap*.s*'`,
			`^[1-9]\d+\n(?:/etc/stap-server/conf.d/default.conf\n)?$`,
		},
	}
}

// Systemd installs on Debian with systemd as process 1, and has systemctl start
// servers and scripts there.
// Requirements: R-000-037 R-002-036 R-002-083 R-003-099 R-003-101 R-003-103
func Systemd(ctx context.Context, l *lab.Lab, programs *lab.Programs, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, systemdTime)
	defer cancel()
	d, err := l.FetchDebian(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(d.Dir, "guest-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	files := filepath.Join(dir, "scripts")
	if err := os.Mkdir(files, 0o755); err != nil {
		return err
	}
	box, err := os.ReadFile(programs.Box)
	if err == nil {
		err = os.WriteFile(filepath.Join(files, "stapbox"), box, 0o755)
	}
	if err != nil {
		return err
	}
	if got, err := d.Scratch(ctx, files, cachesScript); err != nil {
		return fmt.Errorf("compiling scripts: %w\n%s", err, got)
	}
	start := time.Now()
	g, err := l.BootDebian(ctx, d, programs, dir)
	if err != nil {
		return err
	}
	defer g.Kill()
	fmt.Fprintf(out, "interop: Debian with systemd and kernel %s is up after %v\n", d.Kernel.Release, time.Since(start).Round(time.Second))
	var failures error
	for _, s := range systemdSteps() {
		if err := ctx.Err(); err != nil {
			return err
		}
		start := time.Now()
		r := lab.Shell(lab.Root, s.script)
		r.Timeout = 600 // on a busy machine
		a, err := g.Do(r)
		got := string(a.Stdout) + string(a.Stderr)
		if err == nil && a.TimedOut {
			err = errors.New("no end within its time")
		}
		if err == nil && !regexp.MustCompile(s.want).MatchString(got) {
			err = errStep
		}
		outcome := ok
		if err != nil {
			outcome = failed
			failures = errors.Join(failures, fmt.Errorf("%s: %w", s.what, err))
		}
		fmt.Fprintf(out, "%-9s %s (%v)\n", outcome, s.what, time.Since(start).Round(100*time.Millisecond))
		if err != nil {
			fmt.Fprintf(out, "%s\nwanted: %s\n", got, s.want)
		}
	}
	return failures
}
