package upstream

import (
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		what string
		has  func(string) bool
		name string
		want bool
	}{
		{"function", Function, "thread_indent", true}, {"function", Function, "user_string", true},
		{"function", Function, "ansi_clear_screen", true}, {"function", Function, "thread_ident", false}, {"function", Function, "", false},
		{"macro", Macro, "choose_defined", true}, {"macro", Macro, "prometheus_dump_array2_map", true}, {"macro", Macro, "choose", false},
		{"global", Global, "argc", true}, {"global", Global, "argv_7", true}, {"global", Global, "NULL", true}, {"global", Global, "null", false},
		{"class", Class, "kernel", true}, {"class", Class, "syscall", true}, {"class", Class, "kernal", false},
	} {
		if got := tt.has(tt.name); got != tt.want {
			t.Errorf("%s %q: got %t, want %t", tt.what, tt.name, got, tt.want)
		}
	}
}

func TestPoints(t *testing.T) {
	for pattern, want := range map[string]string{
		"syscall.open":         "syscall.open",
		"syscall.opne":         "",
		"syscall.open*.return": "syscall.open.return syscall.open_by_handle_at.return syscall.openat.return",
		"kernel.function":      "kernel.**",
		"timer.*":              "timer.hz timer.jiffies timer.ms timer.msec timer.ns timer.nsec timer.profile timer.s timer.sec timer.us timer.usec",
		"timer.profile.**":     "timer.profile.freq timer.profile.freq.hz timer.profile.tick",
		"*":                    "begin end error init json_data never oneshot prometheus syscall_any",
		"o*":                   "oneshot",
		"tcp.receive.x":        "",
	} {
		if got := strings.Join(Points(strings.Split(pattern, ".")), " "); got != want {
			t.Errorf("%s: got %q, want %q", pattern, got, want)
		}
	}
	if n := len(Points([]string{"**"})); n < 1400 {
		t.Errorf("** is %d points", n)
	}
}

// The list is one that can be read and compared: sorted, each name once.
func TestListIsSorted(t *testing.T) {
	all := map[string][]string{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] == "#" {
			continue
		}
		kind, names := words[0], words[1:]
		if kind == "point" {
			kind, names = "point "+words[1], words[2:]
		}
		all[kind] = append(all[kind], names...)
	}
	for kind, names := range all {
		if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
			t.Errorf("%s: not sorted, or a name is there twice", kind)
		}
	}
	if len(all["function"]) < 500 || len(all) < 40 {
		t.Errorf("%d functions, %d kinds", len(all["function"]), len(all))
	}
}
