package e2e

import (
	"regexp"
	"testing"

	"stapbox/e2e/lab"
)

// people are a part of a rooted script: users ann, bob and carol with homes, "as
// NAME COMMAND" for one of them, and "try WHAT NAME COMMAND", which prints the
// status, the output, and what is said besides in one line.
const people = `
umask 0 # what is to be protected is protected anyway
n=12330
for u in ann bob carol; do
	n=$((n+1)); echo "$u:x:$n:$n::$dir/$u:/bin/sh" >>/etc/passwd; echo "$u:x:$n:" >>/etc/group
	mkdir -m 755 $dir/$u; chown $n:$n $dir/$u
done
mkdir -m 755 $dir/root
as() { who=$1; shift; setpriv --reuid=$who --regid=$who --init-groups env -C $dir/$who HOME=$dir/$who "$@"; }
try() { what=$1; shift; as "$@" >/run/out 2>/run/err; rc=$?; echo "$what: $rc <$(cat /run/out)> [$(tr '\n' '~' </run/err)]"; }
`

// The examples of the tools of 2009, one after the other, with the programs as
// they are installed: whom each kind of trust is for, and how long.
// Requirements: R-002-099..101 R-002-107 R-003-138 R-004-001 R-004-021..022 R-004-029..032 R-004-035..037 R-004-039..040 R-004-042..050 R-004-053..058 R-004-061..062 A-17 R-000-046 C-04
func TestLegacyExamples(t *testing.T) {
	k, err := stage.lab.FetchKernel(lab.Versions()[0])
	if err != nil {
		t.Fatal(err)
	}
	out, rc := rooted(t, people+`
		mkdir -m 755 /etc/systemtap
		try nobody ann stap-find-servers
		# The first start makes the key, and the user's own store.
		try start ann stap-start-server -r `+k.Headers+`
		pid=$(cat /run/out)
		try find ann stap-find-servers --all
		set -- $(cat /run/out); host=$1 addr=$2 port=$3
		echo "made: $(cd $dir/ann/.systemtap/ssl; stat -c '%a %U %n' server server/* client client/* | tr '\n' ' ')"
		cp $dir/ann/.systemtap/ssl/server/stap.cert /run/stap-server.cert
		cert=/run/stap-server.cert
		set -- -r `+k.Release+` -p4 -e 'probe begin { exit() }'
		# Its user's clients trust it, nobody else's do.
		try own ann stap-client -m own "$@"
		try stranger bob stap-client --server=$addr:$port -m x "$@"
		# For one run.
		try extra bob stap-add-server-cert $cert $dir/bob/extra
		try once bob stap-client --server=$addr:$port --ssl=extra -m once "$@"
		try again bob stap-client --server=$addr:$port -m x "$@"
		# For oneself.
		try self bob stap-add-server-cert $cert $dir/bob/.systemtap/ssl/client
		try any bob stap-client -m any "$@"
		try named bob stap-client --server=$host -m named "$@"
		try address bob stap-client --server=$host:$port -m address "$@"
		try other carol stap-client --server=$addr:$port -m x "$@"
		# For everybody, also with root's umask.
		umask 077
		try notroot bob stap-add-server-cert $cert /etc/systemtap/ssl/client
		try all root stap-add-server-cert $cert /etc/systemtap/ssl/client
		try everybody carol stap-client --server=$addr:$port -m everybody "$@"
		echo "stores: $(stat -c '%a %U' $dir/bob/extra $dir/bob/extra/* $dir/bob/.systemtap/ssl/client $dir/bob/.systemtap/ssl/client/* /etc/systemtap/ssl/client /etc/systemtap/ssl/client/* | tr '\n' ' ')"
		umask 0
		# The commands of 0.9.8, which know the stores.
		try server root stap-authorize-server-cert $cert
		try signer root stap-authorize-signing-cert $cert
		try user carol stap-authorize-server-cert $cert
		# A member of stapusr has servers compile, and sign, without saying so.
		try alone carol stap -v -r `+k.Release+` -e 'probe begin { exit() }'
		getent group stapusr || groupadd stapusr; usermod -a -G stapusr carol
		try member carol stap -v -r `+k.Release+` -e 'probe begin { exit() }'
		# A store that others may write to is nobody's; they are looked into in this order.
		mkdir $dir/bob/A $dir/bob/B; cp $dir/bob/extra/* $dir/bob/A; cp $dir/bob/extra/* $dir/bob/B
		chown -R bob:bob $dir/bob/A $dir/bob/B
		chmod 777 $dir/bob/A $dir/bob/B $dir/bob/.systemtap/ssl/client /etc/systemtap/ssl/client
		try open bob stap-client --server=$addr:$port --ssl=A --ssl=B -m x "$@"
		# The server looks at its own likewise.
		try theirs bob stap-stop-server $pid
		try stop ann stap-stop-server --wait $pid
		chmod 644 $dir/ann/.systemtap/ssl/server/stap.key
		try readable ann stap-start-server
	`)
	file := regexp.MustCompile(`[0-9a-f]{64}`)
	out = file.ReplaceAllString(out, "SHA256")
	const (
		untrusted = `1 <> \[.*is not trusted as a peer`
		home      = `\S*/rooted-\d+`
	)
	for _, want := range []string{
		`nobody: 1 <> \[\]`, `start: 0 <\d+> \[\]`, `find: 0 <\S+\.local 10\.77\.0\.1 \d+ 'sysinfo=` + regexp.QuoteMeta(k.Release) + ` x86_64'> \[\]`,
		`made: 7\d\d ann server 644 ann server/stap.cert 600 ann server/stap.key 755 ann client 644 ann client/SHA256.pem `,
		`own: 0 <own.ko> \[\]`, `stranger: ` + untrusted,
		`extra: 0 <Certificate /run/stap-server.cert added to database ` + home + `/bob/extra> \[\]`, `once: 0 <once.ko> \[\]`, `again: ` + untrusted,
		`self: 0 <Certificate /run/stap-server.cert added to database ` + home + `/bob/.systemtap/ssl/client> \[\]`,
		`any: 0 <any.ko> \[\]`, `named: 0 <named.ko> \[\]`, `address: 0 <address.ko> \[\]`, `other: ` + untrusted,
		`notroot: 1 <> \[.*ermission denied`,
		`all: 0 <Certificate /run/stap-server.cert added to database /etc/systemtap/ssl/client> \[\]`, `everybody: 0 <everybody.ko> \[\]`,
		`stores: 755 bob 644 bob 755 bob 644 bob 755 root 644 root `,
		`server: 0 <Certificate /run/stap-server.cert added to database /etc/systemtap/ssl/client> \[\]`,
		`signer: 0 <Certificate /run/stap-server.cert added to database /etc/systemtap/staprun> \[\]`,
		`user: 0 <Certificate /run/stap-server.cert added to database ` + home + `/carol/.systemtap/ssl/client> \[\]`,
		`alone: 1 <> \[.*You should either be root, or be part of the group "stapusr".*hint: sudo usermod -a -G stapusr carol`,
		`member: 1 <> \[Using a compile server\..*--privilege=stapusr was automatically selected because you are a member of the group stapusr\..*--use-server was automatically selected.*The effective user ID of staprun must be set to the root user`,
		`open: 1 <> \[[^\n]*` + home + `/bob/A"? must not be writable[^\n]*` + home + `/bob/B"? must not be writable[^\n]*` + home + `/bob/.systemtap/ssl/client"? must not be writable[^\n]*/etc/systemtap/ssl/client"? must not be writable`,
		`theirs: 1 <> \[.*not permitted`, `stop: 0 <> \[\]`,
		`readable: 1 <> \[.*stap.key`,
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(out) {
			t.Errorf("no %q", want)
		}
	}
	if t.Failed() {
		t.Logf("status %d:\n%s", rc, out)
	}
}
