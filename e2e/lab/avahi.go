package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Avahi is a tree with the programs of Avahi, and what they need beyond the base
// system.
type Avahi struct{ root string }

var avahiPackages = []string{
	"avahi-daemon", "avahi-utils", "libavahi-core7", "libavahi-common3", "libavahi-client3", "libdaemon0", "libgdbm6",
	"dbus-daemon", "libdbus-1-3", "libexpat1", "libapparmor1", "libaudit1", "libcap-ng0",
}

// FetchAvahi unpacks the tree, or finds it where an earlier run left it.
func (l *Lab) FetchAvahi() (*Avahi, error) {
	a := &Avahi{filepath.Join(l.Dir, "avahi")}
	if a.complete() == nil {
		return a, nil
	}
	if err := l.unpackThese(a.root, avahiPackages...); err != nil {
		return nil, err
	}
	return a, a.complete()
}

func (a *Avahi) complete() error {
	for _, name := range []string{"usr/sbin/avahi-daemon", "usr/bin/avahi-browse", "usr/bin/avahi-publish", "usr/bin/dbus-daemon"} {
		if !exists(filepath.Join(a.root, name)) {
			return fmt.Errorf("%q holds no %s", a.root, name)
		}
	}
	return nil
}

// busConfig lets everybody who can reach the socket do everything: it lies in a
// directory of root's.
const busConfig = `<busconfig><type>session</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/></policy></busconfig>
`

const daemonConfig = `[server]
host-name=%s
use-ipv4=yes
use-ipv6=yes
[wide-area]
enable-wide-area=no
[publish]
publish-workstation=no
publish-hinfo=no
`

// daemon runs the bus and avahi-daemon, whose directories are fixed: /run and
// the list of users are its own. It is process 1 of a namespace, so that nothing
// survives it.
const daemon = `dir=$1 root=$2
mount -t tmpfs tmpfs /run && mount --bind "$dir/passwd" /etc/passwd && mount --bind "$dir/group" /etc/group || exit
"$root/usr/bin/dbus-daemon" --config-file="$dir/bus.conf" --nofork --nopidfile &
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do [ -S "$dir/bus" ] && break; sleep 0.1; done
"$root/usr/sbin/avahi-daemon" -f "$dir/daemon.conf" --no-drop-root --no-chroot --no-rlimits
exit $?`

// AvahiHost is a host of a segment on which avahi-daemon runs.
type AvahiHost struct {
	*Host
	avahi *Avahi
	dir   string
	cmd   *exec.Cmd
	log   lockedBuffer
}

// Start runs avahi-daemon on a host, with its files in a directory, and waits
// until it is up.
func (a *Avahi) Start(h *Host, dir string) (*AvahiHost, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	const users = "root:x:0:0:root:/:/bin/sh\nmessagebus:x:998:998::/:/bin/false\navahi:x:999:999::/:/bin/false\n"
	const groups = "root:x:0:\nnetdev:x:997:\nmessagebus:x:998:\navahi:x:999:\n"
	for name, text := range map[string]string{
		"passwd": users, "group": groups, "bus.conf": fmt.Sprintf(busConfig, filepath.Join(dir, "bus")),
		"daemon.conf": fmt.Sprintf(daemonConfig, h.Name),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	ah := &AvahiHost{Host: h, avahi: a, dir: dir}
	ah.cmd = h.Command(0, nil, "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", daemon, "sh", dir, a.root)
	ah.cmd.Env = append(os.Environ(), ah.environ()...)
	ah.cmd.Stdout, ah.cmd.Stderr = &ah.log, &ah.log
	if err := startLocked(ah.cmd); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if strings.Contains(ah.log.String(), "Server startup complete.") {
			return ah, nil
		}
	}
	ah.Stop()
	return nil, fmt.Errorf("avahi-daemon does not start:\n%s", ah.log.String())
}

func (ah *AvahiHost) environ() []string {
	lib := filepath.Join(ah.avahi.root, "usr/lib/x86_64-linux-gnu") + ":" + filepath.Join(ah.avahi.root, "lib/x86_64-linux-gnu")
	return []string{"LD_LIBRARY_PATH=" + lib, "DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + filepath.Join(ah.dir, "bus"), "LANG=C.UTF-8"}
}

// Stop ends the daemon and everything that was started with it.
func (ah *AvahiHost) Stop() {
	ah.cmd.Process.Signal(syscall.SIGKILL)
	ah.cmd.Wait()
}

// Tool is one of Avahi's programs, ready to be started on the host.
func (ah *AvahiHost) Tool(name string, args ...string) *exec.Cmd {
	return ah.Command(0, append(os.Environ(), ah.environ()...), append([]string{filepath.Join(ah.avahi.root, "usr/bin", name)}, args...)...)
}

// Resolved is a line of "avahi-browse --parsable --resolve": a service on one
// interface, by one protocol.
type Resolved struct {
	Interface, Protocol, Instance, Type, Domain string
	Host, Address, Port                         string
	TXT                                         []string
}

// Browse is avahi-browse -rpt TYPE.
func (ah *AvahiHost) Browse(service string) ([]Resolved, error) {
	cmd := ah.Tool("avahi-browse", "-rpt", service)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("running avahi-browse: %w: %s", err, said.Bytes())
	}
	return parseBrowse(string(out))
}

// parseBrowse reads the lines that begin with "=": nine fields parted by ";",
// in which "\DDD" and "\C" stand for octets, then the TXT strings, each in
// quotes. Its order is that of Avahi: the last string of the record first.
func parseBrowse(out string) ([]Resolved, error) {
	var list []Resolved
	lines := bufio.NewScanner(strings.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f := strings.SplitN(lines.Text(), ";", 10)
		if f[0] != "=" {
			continue
		}
		if len(f) != 10 {
			return nil, fmt.Errorf("avahi-browse: line %q", lines.Text())
		}
		r := Resolved{Interface: f[1], Protocol: f[2], Instance: unescapeAvahi(f[3]), Type: f[4], Domain: f[5], Host: f[6], Address: f[7], Port: f[8]}
		for _, s := range strings.Split(strings.TrimSuffix(strings.TrimPrefix(f[9], `"`), `"`), `" "`) {
			if s != "" {
				r.TXT = append(r.TXT, s)
			}
		}
		list = append(list, r)
	}
	return list, lines.Err()
}

func unescapeAvahi(s string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && strings.Trim(s[i+1:i+4], "0123456789") == "" {
			b = append(b, (s[i+1]-'0')*100+(s[i+2]-'0')*10+s[i+3]-'0')
			i += 3
			continue
		}
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b = append(b, s[i])
	}
	return string(b)
}

// Publish is avahi-publish -s, which keeps the service until stop is called. It
// returns when the service is established.
func (ah *AvahiHost) Publish(name, service string, port int, txt ...string) (stop func(), err error) {
	cmd := ah.Tool("avahi-publish", append([]string{"-s", name, service, fmt.Sprint(port)}, txt...)...)
	var said lockedBuffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := startLocked(cmd); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if strings.Contains(said.String(), "Established under name") {
			return stop, nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("avahi-publish ended: %s", said.String())
		default:
		}
	}
	stop()
	return nil, errors.New("avahi-publish does not establish its service: " + said.String())
}
