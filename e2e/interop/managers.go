package interop

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"stapbox/e2e/lab"
)

// managersTime is for starts and stops of some servers.
const managersTime = 3 * time.Minute

// managersScript has SystemTap's own stap-server and ours manage each other's
// servers in one directory of status files. The tree has no ps, which the first
// one asks for processes; what stands in for it lists them as ps -e does.
const managersScript = `
for d in /var/log /run; do mount -t tmpfs -o mode=755 tmpfs $d || exit 99; done
mkdir /var/log/stap-server /run/stap-server /run/ours /run/theirs /run/bin
chown 65534:65534 /var/log/stap-server /run/stap-server /run/ours /run/theirs
cat >/run/bin/ps <<'END'
#!/bin/sh
echo "    PID TTY          TIME CMD"
for d in /proc/[0-9]*; do
	read -r name 2>/dev/null <$d/comm || continue
	grep -q '^State:.Z' $d/status 2>/dev/null && name="$name <defunct>"
	printf '%7d ?        00:00:00 %s\n' "${d#/proc/}" "$name"
done
exit 0
END
chmod 755 /run/bin/ps
user() { home=$1; shift; setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/run/$home USER=nobody PATH=/run/bin:$PATH timeout 60 "$@" 2>&1; echo "status=$?"; }
ours() { echo "[$1]"; shift; user ours /mnt/stap-server "$@"; }
theirs() { echo "[$1]"; shift; user theirs /usr/bin/stap-server "$@"; }
live() { echo "[$1]"; /run/bin/ps -e | grep -c 'stap-serverd$'; }
cd /tmp
ours start start -r 6.1-ours -n ours -D X=1
theirs start start -a i386
ours status status
theirs status status
live both
pid=$(grep -l i386 /run/stap-server/*.stat); pid=${pid##*/}; pid=${pid%.stat}
ours stop stop -p $pid
live one
theirs condrestart status
theirs stop stop
live none
ours end status
theirs again start
theirs restart restart
ours restart restart
live replaced
theirs last stop
live none
ours tidy stop
echo "[files]"
ls -A /run/stap-server
`

// managersWant is what the steps have to show.
const managersWant = `^\[start\]
Starting stap-server -a "x86_64" -r "6.1-ours" -D "X=1" -u "nobody" -n "ours" --log "/var/log/stap-server/log" OK
Server ours is process \d+ and listens on port \d+
status=0
\[start\]
Starting stap-server -a "i386" -u "nobody" --log "/var/log/stap-server/log"
OK
status=0
\[status\]
(?:stap-server -a "(?:x86_64|i386)" [^\n]* running as PID \d+
){2}status=0
\[status\]
(?:stap-server -a "(?:x86_64|i386)" [^\n]* running as PID \d+
){2}status=0
\[both\]
2
\[stop\]
Stopping stap-server -a "i386" [^\n]* OK
status=0
\[one\]
1
\[condrestart\]
stap-server -a "x86_64" -r "6.1-ours" -D "X=1" -u "nobody" -n "ours" [^\n]* running as PID \d+
status=0
\[stop\]
Stopping stap-server -a "x86_64" -r "6.1-ours" [^\n]*
OK
status=0
\[none\]
0
\[end\]
No managed stap-server is running
status=3
\[again\]
Starting stap-server [^\n]*
OK
status=0
\[restart\]
Stopping stap-server [^\n]*
OK
Starting stap-server [^\n]*
OK
status=0
\[restart\]
Stopping stap-server [^\n]* OK
Starting stap-server [^\n]* OK
Server \d+ is process \d+ and listens on port \d+
status=0
\[replaced\]
1
\[last\]
Stopping stap-server [^\n]*
OK
status=0
\[none\]
0
\[tidy\]
Stopping stap-server: OK
status=0
\[files\]
\.lock
$`

// Managers has the managers of servers of SystemTap 4.8 and ours list, stop and
// restart each other's servers.
// Requirements: R-003-004..006 R-003-016 R-003-025
func Managers(ctx context.Context, l *lab.Lab, old *lab.Peer, programs *lab.Programs, out io.Writer) error {
	work, err := os.MkdirTemp(old.Dir, "managers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	box, err := os.ReadFile(programs.Box)
	if err == nil {
		err = os.WriteFile(filepath.Join(work, "stap-server"), box, 0o755)
	}
	if err == nil {
		err = os.Chmod(work, 0o755)
	}
	if err != nil {
		return err
	}
	n, err := l.NewNetwork()
	if err != nil {
		return err
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(ctx, managersTime)
	defer cancel()
	got, err := old.Command(ctx, lab.Inside{Net: n, Work: work}, "sh", "-c", managersScript).CombinedOutput()
	fmt.Fprintf(out, "%s", got)
	if err != nil {
		return fmt.Errorf("managing servers: %w", err)
	}
	if !regexp.MustCompile(managersWant).Match(got) {
		return fmt.Errorf("the managers of %s and of this program do not agree, see above", old.Version)
	}
	return nil
}
