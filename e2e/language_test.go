package e2e

import (
	"strings"
	"testing"

	"stapbox/core/wire"
)

// TestServerLibraries has a server build what needs files of the request: a
// script in a file, tapsets with macros, C with the kernel's headers.
func TestServerLibraries(t *testing.T) {
	s := serve(t, "libraries", "--max-request-size=1000000", "--max-compressed-request=1000000")
	ask := func(args []string, files ...wire.File) *wire.Response {
		t.Helper()
		archive, err := (&wire.Request{Version: wire.Version, Release: s.kernel.Release, Arch: "x86_64", HasLocale: true, Args: args, Files: files}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := s.send(frameOf(archive), false)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	file := func(name, text string) wire.File { return wire.File{Name: name, Data: []byte(text)} }
	script := file("script/home/u/main.stp", "probe begin { println(add(@TWO, 3)) exit() }")
	tapset := []wire.File{
		script, file("tapset/home/u/ts/add.stp", "function add:long(a:long, b:long) %{ STAP_RETVALUE = STAP_ARG_a + STAP_ARG_b + (current->pid == 0); %}"),
		file("tapset/home/u/ts/"+s.kernel.Release+"/x86_64/two.stpm", "@define TWO %( 2 %)"),
	}
	two := []string{"script/home/u/main.stp", "-I", "tapset/home/u/ts", "-p4"}
	for _, tt := range []struct {
		name   string
		args   []string
		files  []wire.File
		module bool
		want   string // in stdout or stderr
	}{
		{"two files", two, tapset, true, ""},
		{"guru", []string{"-g", "-p4", "-e%{\n#include <linux/utsname.h>\n%} probe begin { println(%{ /* string */ utsname()->release %}) exit() }"}, nil, true, ""},
		{"guru with a header of the server", []string{"-g", "-p4", "-e%{\n#include \"/etc/shadow\"\n%} probe begin { exit() }"}, nil, false, "/etc/shadow: No such file or directory"},
		{"C without guru", []string{"-p4", "-e%{ int x; %} probe begin { exit() }"}, nil, false, "need stap -g"},
		{"without the macro", two, tapset[:2], false, "unknown operator @TWO"},
		{"without the tapset", two, tapset[:1], false, "unknown operator @TWO"},
		{"error in the script", two, []wire.File{file(script.Name, "probe begin { add( }")}, false, "at script/home/u/main.stp:1:20"},
		{"below stapdev", append(two, "--privilege=stapusr"), tapset, false, "You can't specify -I when --privilege=stapusr is specified."},
		{"tapset of the server", []string{"-I", "/usr/share", "-p2", "-eprobe begin { exit() }"}, nil, false, "is not part of the request"},
		{"missing script", []string{"script/home/u/none.stp", "-p2"}, nil, false, "Input file 'script/home/u/none.stp' is missing."},
		{"listing", []string{"-lbeg*"}, nil, false, "begin\n"},
		{"listing of nothing", []string{"-Lnosuch*"}, nil, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := ask(tt.args, tt.files...)
			modules, _ := r.Modules()
			if (len(modules) == 1) != tt.module || tt.module != (r.RC == 0) && tt.name != "listing" {
				t.Errorf("status %d, %d modules", r.RC, len(modules))
			}
			if !strings.Contains(string(r.Stdout)+string(r.Stderr), tt.want) || t.Failed() {
				t.Errorf("got %q, %q, want %q", r.Stdout, r.Stderr, tt.want)
			}
		})
	}
}
