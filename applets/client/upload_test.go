package client

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"stapbox/core/privilege"
)

// What -I sends: library files below tapset/ and their real names, through links,
// once each (server-client 3.3, 3.4).
func TestSendsTapsets(t *testing.T) {
	f := newServer(t, good("stap_1"))
	d := newDesk(t, privilege.GroupDev)
	d.trust(t, f, d.peerStore())
	for name, text := range map[string]string{
		"ts/a.stp": "a", "ts/b.stpm": "b", "ts/6.1/x86_64/c.stp": "c", "ts/6.12/not.stp": "for another kernel", "ts/README": "no library file", "ts/sub/none.txt": "", "other/d.stp": "d", "libs/e.stp": "e",
	} {
		path := filepath.Join(d.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"link": "ts", "ts/x86_64": "..", "ts/linux": "../libs", "ts/linked.stp": "../other/d.stp", "ts/dead.stp": "nowhere", "root": "/",
	} {
		if err := os.Symlink(to, filepath.Join(d.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	real, err := filepath.EvalSymlinks(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) int {
		return d.stap(append([]string{"-p4", "-r6.1.0-1", "-ax86_64", "--use-server=" + f.spec()}, args...)...)
	}
	if code := ask("-Ilink", "-I", "nowhere", "-E", "global x", "-e", hello, "arg"); code != 0 {
		t.Fatalf("status %d\n%s", code, d.err.String())
	}
	last := f.requests[len(f.requests)-1]
	want := []string{"-I", "tapset" + real + "/ts", "-I", "tapset" + d.dir + "/nowhere", "-p4", "-r6.1.0-1", "-ax86_64", "-Eglobal x", "-e" + hello, "--", "arg"}
	if !reflect.DeepEqual(last.Args, want) {
		t.Errorf("arguments: got %q, want %q", last.Args, want)
	}
	var names []string
	for _, file := range last.Files {
		names = append(names, strings.TrimPrefix(file.Name, "tapset"+real+"/ts/")+"="+string(file.Data))
	}
	slices.Sort(names)
	for _, w := range []string{"6.1/x86_64/c.stp=c", "a.stp=a", "b.stpm=b", "linked.stp=d", "linux/e.stp=e"} {
		if !slices.Contains(names, w) {
			t.Errorf("files: %q lacks %q", names, w)
		}
	}
	for _, n := range names {
		if strings.Contains(n, "not.stp") || strings.Contains(n, "README") || strings.Contains(n, "dead") {
			t.Errorf("files: %q should not be sent", n)
		}
	}
	sent := len(f.requests)
	if code := ask("-I", "root", "-e", hello); code != 1 || len(f.requests) != sent {
		t.Errorf("status %d, %d requests", code, len(f.requests)-sent)
	}
	contains(t, "stderr", d.err.String(), "root resolves to /\n", "Unable to send / to the server\n")
	many := filepath.Join(d.dir, "many")
	if err := os.Mkdir(many, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range maxTapsetFiles + 1 {
		if err := os.WriteFile(filepath.Join(many, strings.Repeat("x", i%200+1)+strings.Repeat("y", i/200)+".stp"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if code := ask("-I", "many", "-e", hello); code != 1 || len(f.requests) != sent {
		t.Errorf("status %d, %d requests", code, len(f.requests)-sent)
	}
	contains(t, "stderr", d.err.String(), "ERROR: -I many holds more than a request can: 1500 library files")
	// A listing is a request without script, and its status says nothing of passes.
	d.stap("--use-server="+f.spec(), "-l", "begin", "x")
	last = f.requests[len(f.requests)-1]
	if want := []string{"-lbegin", "--", "x"}; !reflect.DeepEqual(last.Args, want) || len(last.Files) != 0 {
		t.Errorf("listing: got %q, %v, want %q", last.Args, last.Files, want)
	}
}
