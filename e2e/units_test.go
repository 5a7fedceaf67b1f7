package e2e

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"stapbox/core/hostpaths"
	"stapbox/core/initconf"
	"stapbox/e2e/lab"
)

var debianMaking sync.Mutex // the first test makes the tree

// debian is the tree in which the programs are that read what an installation
// writes for the host.
func debian(t *testing.T) *lab.Debian {
	t.Helper()
	debianMaking.Lock()
	defer debianMaking.Unlock()
	d, err := stage.lab.FetchDebian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// inDebian installs there and runs a script.
func inDebian(t *testing.T, options, script string) string {
	t.Helper()
	d := debian(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := d.Scratch(ctx, stage.programs.Dir, "/mnt/stapbox install "+options+" >/dev/null || exit\n"+script)
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return string(out)
}

// maxExposure is what systemd-analyze may find at most, of 10, in the unit of a
// server.
const maxExposure = 3.0

// systemd has nothing to say against the units, and finds the server well
// enough shut in.
// Requirements: R-002-036 B-56
func TestUnitsVerify(t *testing.T) {
	few(t)
	got := inDebian(t, "--systemd", `
systemd-analyze --man=no --recursive-errors=yes verify stap-server@default.service stap-server@default.socket stap-server.service systemtap.service 2>&1
echo verified $?
systemd-analyze security --offline=true --no-pager --threshold=29 /usr/lib/systemd/system/stap-server@.service 2>&1
echo secure $?
grep -hE '^(After|Before)=' /usr/lib/systemd/system/systemtap.service
`)
	// Scripts are there before what is started for users.
	if !regexp.MustCompile(`(?m)^After=.*\blocal-fs\.target\b`).MatchString(got) || !regexp.MustCompile(`(?m)^Before=.*\bmulti-user\.target\b`).MatchString(got) {
		t.Errorf("systemtap.service has no order:\n%s", got)
	}
	said, rest, ok := strings.Cut(got, "verified 0\n")
	if !ok || said != "" {
		t.Errorf("systemd-analyze verify says\n%s", said)
	}
	m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+) `).FindStringSubmatch(rest)
	if m == nil {
		t.Fatalf("systemd-analyze security says\n%s", rest)
	}
	exposure, err := strconv.ParseFloat(m[1], 64)
	t.Logf("exposure of stap-server@.service: %.1f of 10, less than %.1f wanted", exposure, maxExposure)
	if err != nil || exposure >= maxExposure || !strings.Contains(rest, "secure 0\n") {
		t.Errorf("exposure %s, want less than %.1f:\n%s", m[1], maxExposure, rest)
	}
}

// What sysusers.d and tmpfiles.d describe is what the installation makes by
// itself: the one finds nothing to do after the other, and they make the same.
// Requirements: R-000-010 R-002-077
func TestUnitsUsersAndDirectories(t *testing.T) {
	few(t)
	const show = `
getent passwd stap-server; getent group stapusr stapsys stapdev stap-server; getent shadow stap-server | cut -d: -f1,2
stat -c '%n %a %U:%G' /var/lib/stap-server /var/log/stap-server /var/cache/systemtap`
	const want = `stap-server:x:155:155:SystemTap compile server:/var/lib/stap-server:/usr/sbin/nologin
stapusr:x:156:
stapsys:x:157:
stapdev:x:158:
stap-server:x:155:
stap-server:!
/var/lib/stap-server 750 stap-server:stap-server
/var/log/stap-server 755 stap-server:stap-server
/var/cache/systemtap 755 root:root
`
	const create = `
systemd-sysusers /usr/lib/sysusers.d/stapbox.conf 2>&1; echo sysusers $?
systemd-tmpfiles --create /usr/lib/tmpfiles.d/stapbox.conf 2>&1; echo tmpfiles $?`
	const created = "sysusers 0\ntmpfiles 0\n"
	const more = `
stat -c '%n %a %U:%G' /run/stapbox /run/systemtap /run/stap-server /var/lib/stap-server/.systemtap /var/log/stap-server/log`
	const wantMore = `/run/stapbox 755 root:root
/run/systemtap 755 root:root
/run/stap-server 755 stap-server:stap-server
/var/lib/stap-server/.systemtap 700 stap-server:stap-server
/var/log/stap-server/log 640 stap-server:stap-server
`
	if got := inDebian(t, "--systemd", show+create+show+more); got != want+created+want+wantMore {
		t.Errorf("got\n%s, want\n%s", got, want+created+want+wantMore)
	}
	// Without the programs that add users.
	got := inDebian(t, "--root /unused", `rm /usr/sbin/useradd /usr/sbin/groupadd; /mnt/stapbox install --sysvinit >/dev/null; echo $?`+show)
	if without := "0\n" + strings.Replace(want, "stap-server:!\n", "", 1); got != without {
		t.Errorf("got\n%s, want\n%s", got, without)
	}
	// An image that has the files only: another one, made by these two alone.
	got = inDebian(t, "--systemd --root /image", `
mkdir -p /other/usr/lib /other/etc && cp -r /image/usr/lib/sysusers.d /image/usr/lib/tmpfiles.d /other/usr/lib/
systemd-sysusers --root=/other >/dev/null 2>&1; echo sysusers $?
systemd-tmpfiles --root=/other --create 2>&1; echo tmpfiles $?
for i in image other; do grep -h '^stap' /$i/etc/passwd /$i/etc/group | sort; stat -c '%a %u:%g' /$i/var/lib/stap-server /$i/var/log/stap-server /$i/var/cache/systemtap; echo; done`)
	rest, ok := strings.CutPrefix(got, created)
	image, other, _ := strings.Cut(rest, "\n\n")
	if other = strings.TrimSuffix(other, "\n\n"); !ok || image != other || strings.Count(image, "\n") != 7 {
		t.Errorf("the installation makes\n%s, systemd makes\n%s\n%s", image, other, got)
	}
}

// A new log is written to after rotation.
func TestUnitsLogrotate(t *testing.T) {
	few(t)
	got := inDebian(t, "--systemd", `
head -c 40000 /dev/zero >/var/log/systemtap.log
systemd-tmpfiles --create /usr/lib/tmpfiles.d/stapbox.conf
head -c 40000 /dev/zero >/var/log/stap-server/log
logrotate -d /etc/logrotate.d/stapbox 2>&1 | grep -i error
cp /mnt/stapbox /usr/local/bin/stap-serverd
# A process of that name that says when it is signalled, and one of another name.
cat >/usr/local/bin/waiting.sh <<'END'
trap 'echo signalled >>/tmp/signalled' USR1
while :; do sleep 0.1; done
END
touch /tmp/signalled; chmod 666 /tmp/signalled
cp /bin/bash /tmp/stap-serverd; cp /bin/bash /tmp/other
run() { setpriv --reuid=stap-server --regid=stap-server --clear-groups "$@" /usr/local/bin/waiting.sh >/dev/null 2>&1 & }
run /tmp/stap-serverd; touch /run/stap-server/$!.stat
run /tmp/other; other=$!; touch /run/stap-server/$!.stat
/tmp/other /usr/local/bin/waiting.sh & root=$!; touch /run/stap-server/$!.stat
sleep 0.5
logrotate /etc/logrotate.d/stapbox; echo $?
sleep 0.5
cat /tmp/signalled
kill -0 $other $root && echo others live
cd /var/log; stat -c '%n %s %a %U:%G' stap-server/log* systemtap.log*`)
	const want = `0
signalled
others live
stap-server/log 0 640 stap-server:stap-server
stap-server/log.1 40000 640 stap-server:stap-server
systemtap.log 0 644 root:root
systemtap.log.1 40000 644 root:root
`
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// Hooks compile and clean up, say what would not start, and never fail.
// Requirements: R-002-089
func TestUnitsKernelHooks(t *testing.T) {
	few(t)
	got := inDebian(t, "--systemd", `
r=$(ls /lib/modules)
hook=/usr/lib/kernel/install.d/60-stapbox.install
for f in $hook /etc/kernel/*/zz-stapbox; do sh -n $f || echo $f; done
echo "nothing to compile:"; sh $hook add $r; echo $?
printf 'probe begin { println("good") }' >/etc/systemtap/script.d/good.stp
printf 'probe nosuch { }' >/etc/systemtap/script.d/bad.stp
echo PASSALL=no >>/etc/systemtap/config
echo "one is bad:"; /etc/kernel/postinst.d/zz-stapbox $r /boot/vmlinuz-$r 2>&1; echo $?
(cd /var/cache/systemtap; find . -type f | sort)
/etc/kernel/postrm.d/zz-stapbox $r /boot/vmlinuz-$r; echo $?
(cd /var/cache/systemtap; find . -type f | sort)
echo "strange:"
$hook; echo $?
$hook add; echo $?
$hook add ../../etc; echo $?
$hook add -x; echo $?
$hook strange $r; echo $?
$hook add nosuchkernel >/dev/null 2>&1; echo $?
rm /usr/bin/systemtap; $hook add $r; echo $?
run-parts --test /etc/kernel/postinst.d | grep -c stapbox
`)
	const want = `nothing to compile:
0
one is bad:
  semantic error: while resolving probe point: identifier 'nosuch' at /etc/systemtap/script.d/bad.stp:1:7
  bad: would fail on RELEASE: semantic error: while resolving probe point: identifier 'nosuch' at /etc/systemtap/script.d/bad.stp:1:7
stapbox: scripts of systemtap would not start with kernel RELEASE, see above; this does not stop its installation
0
./RELEASE/good.ko
./RELEASE/good.opts
0
strange:
0
0
0
0
0
0
0
1
`
	if got = strings.ReplaceAll(got, debian(t).Kernel.Release, "RELEASE"); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// Completion offers what the programs have.
func TestUnitsCompletion(t *testing.T) {
	few(t)
	got := inDebian(t, "--systemd", `
mkdir -p /c && cd /c && touch one.stp two.txt
cat >/complete.sh <<'END'
. /usr/share/bash-completion/bash_completion
# complete WORDS...: what is offered for the last one.
complete_line() {
	COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMPREPLY=()
	_completion_loader "$1"
	local f=$(complete -p "$1" | sed 's/.*-F \([^ ]*\).*/\1/')
	$f "$1" "${!#}" "${COMP_WORDS[COMP_CWORD-1]}"
	echo "$*:" ${COMPREPLY[*]}
}
complete_line stap-server st
complete_line stap-server start -n d
complete_line stap-server start --max-t
complete_line systemtap sta
complete_line systemtap start go
complete_line systemtap compile -r ""
complete_line stapbox inst
complete_line stapbox stap-serverd --max-thr
complete_line stapbox trust r
complete_line stapbox install --sys
complete_line stap --privil
complete_line stap o
complete_line staprun -
END
touch /etc/systemtap/script.d/good.stp
bash -n /usr/share/bash-completion/completions/stapbox && bash /complete.sh`)
	const want = `stap-server st: start status stop
stap-server start -n d: default
stap-server start --max-t: --max-threads
systemtap sta: start status
systemtap start go: good
systemtap compile -r : RELEASE
stapbox inst: install
stapbox stap-serverd --max-thr: --max-threads
stapbox trust r: revoke
stapbox install --sys: --systemd --sysvinit
stap --privil: --privilege
stap o: one.stp
staprun -: -A -C -D -L -M -N -R -S -T -V -b -c -d -h -i -o -r -t -u -v -w -x
`
	if got = strings.ReplaceAll(got, debian(t).Kernel.Release, "RELEASE"); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// The init scripts are those of LSB: root only for servers, which run as their
// own user; boot is told by update-rc.d(8).
// Requirements: R-000-025 R-000-026 R-000-029 R-000-031 R-002-037 R-002-083 R-003-118 R-000-024 R-002-036 R-003-100 C-02 C-23
func TestUnitsInitScripts(t *testing.T) {
	few(t)
	got := inDebian(t, "--sysvinit", `
for s in stap-server systemtap; do sh -n /etc/init.d/$s && update-rc.d $s defaults; done 2>&1
ls /etc/rc3.d | grep tap; ls /etc/rc0.d | grep tap
setpriv --reuid=nobody --clear-groups /etc/init.d/stap-server start 2>&1; echo $?
printf 'probe begin { }' >/etc/systemtap/script.d/one.stp
/etc/init.d/systemtap status; echo $?
r=$(uname -r); mkdir -p /lib/modules/$r; ln -sfn $(ls -d /usr/src/linux-headers-*-amd64) /lib/modules/$r/build
cat >/try <<'END'
ip link set lo up
/etc/init.d/stap-server start; echo $?
/etc/init.d/stap-server status; echo $?
ps -C stap-serverd -o user:20=
ls /etc/systemtap/staprun | wc -l
/etc/init.d/stap-server stop; echo $?
/etc/init.d/stap-server status; echo $?
END
unshare --net sh /try 2>&1
stat -c '%U %a' /var/lib/stap-server/.systemtap/ssl/server/stap.key`)
	const want = `S01stap-server
S01systemtap
K01stap-server
K01systemtap
stap-server: must be root to manage the service
4
one is stopped
3
Starting stap-server -a "x86_64" -r "RELEASE" -u "stap-server" -n "default" --log "/var/log/stap-server/log" OK
Server default is process PID and listens on port PORT
This host trusts sha256:DIGEST (peer, all users)
This host trusts sha256:DIGEST (module signer, all users)
0
stap-server -a "x86_64" -r "RELEASE" -u "stap-server" -n "default" --log "/var/log/stap-server/log" running as PID PID
0
stap-server
1
Stopping stap-server -a "x86_64" -r "RELEASE" -u "stap-server" -n "default" --log "/var/log/stap-server/log" OK
0
No managed stap-server is running
3
stap-server 600
`
	for pattern, name := range map[string]string{
		`-r "[^"]*"`: `-r "RELEASE"`, `(process|as PID) \d+`: "$1 PID", `port \d+`: "port PORT", `sha256:[0-9a-f]{64}`: "sha256:DIGEST",
	} {
		got = regexp.MustCompile(pattern).ReplaceAllString(got, name)
	}
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// The page about paths has those that the programs use.
// Requirements: R-003-076 R-003-140
func TestPathsPage(t *testing.T) {
	few(t)
	page := string(read(t, "../man/stappaths.md"))
	settings, _, err := initconf.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	user := hostpaths.UserDir("", "~")
	for _, path := range slices.Concat([]string{
		hostpaths.Bindir, hostpaths.Pkglibdir, hostpaths.SignerStore(), hostpaths.HostPeerStore(), hostpaths.LoadPolicy(),
		hostpaths.GroupIDs(), hostpaths.LoadLock(), hostpaths.InitConfig(), hostpaths.BlessedDir("RELEASE"),
		hostpaths.UserPeerStore(user), hostpaths.ServerIdentity(user), hostpaths.ClientIdentity(user), hostpaths.Kernels(user),
		hostpaths.Answers(user), hostpaths.RememberedServers(user), hostpaths.UserServers(user),
		hostpaths.ServerConfigs(), hostpaths.ServerStatus(), hostpaths.ServerLog(),
		settings.ScriptPath, settings.ConfigPath, settings.CachePath, settings.TempPath, settings.StatPath, settings.LogFile,
	}, hostpaths.ServerSettings()) {
		if !strings.Contains(page, "`"+path+"`") {
			t.Errorf("%s is not on the page", path)
		}
	}
}
