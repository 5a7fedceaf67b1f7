package translate

import (
	"strings"
	"testing"

	"stapbox/core/script"
)

// C of the script makes the unit include the kernel's headers, and stands in it
// as it was written, between macros that are gone after it.
func TestEmbeddedC(t *testing.T) {
	opts := script.Options{Release: "6.1.0", Arch: "x86_64", Guru: true}
	_, p, err := script.Load(script.Source{Name: "t.stp", Text: `%{ static int outer; %} %{ /* pragma:suffix */ static int last; %}
global g, a
function f:string(s:string, n:long) %{ /* pragma:read:a */ /* pragma:write:g */ STAP_GLOBAL_SET_g(STAP_GLOBAL_GET_a(n)); STAP_RETURN("x"); %}
probe begin { g = 1; a[1] = 2; println(f("x", 1), %{ outer %}, %{ /* string */ "s" %}) %{ outer++; %} }`}, opts)
	if err != nil {
		t.Fatal(err)
	}
	if !KernelHeaders(p) {
		t.Error("the unit does not ask for the kernel's headers")
	}
	b, err := Translate(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := string(b)
	for _, w := range []string{
		`#include "embed.h"`, "static int outer;", "#define STAP_ARG_s (l->v_s)", "#define STAP_ARG_n (v_n)", "#define STAP_RETVALUE ret",
		"#define STAP_GLOBAL_GET_a(k0) ", "#define STAP_GLOBAL_SET_g(v) (g_g = (v))", "= ( outer \n);", `stp_strcpy(l->t`, "{\n outer++; \n;}",
	} {
		if !strings.Contains(c, w) {
			t.Errorf("the unit lacks %q", w)
		}
	}
	for line := range strings.Lines(c) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "#define STAP_"); ok {
			name = name[:strings.IndexAny(name, "( ")]
			if !strings.Contains(c, "#undef STAP_"+name+"\n") {
				t.Errorf("STAP_%s stays defined", name)
			}
		}
	}
	if strings.Index(c, "static int outer;") > strings.Index(c, "int64_t g_g") || strings.Index(c, "static int last;") < strings.Index(c, "STP_PRIVILEGE(") {
		t.Error("C of the outermost level is not in its place")
	}
	plain, err := load(t, "t.stp", `probe begin { println(pid()) }`)
	if err != nil || KernelHeaders(plain) {
		t.Errorf("a script without C asks for the kernel's headers (%v)", err)
	}
}
