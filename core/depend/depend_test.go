package depend

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// B-41: a requirement that two branches share is there once, before both.
// Requirements: R-002-003 R-002-074 B-41
func TestOrder(t *testing.T) {
	for _, tt := range []struct {
		graph string // a:b,c d:e
		names string
		want  string
		loop  string
	}{
		{"", "c a b", "c a b", ""},
		{"a:b,c b:d c:d", "a", "d b c a", ""},
		{"a:b,c b:d c:d", "a b c d", "d b c a", ""},
		{"a:b,c b:d c:d", "c a", "d c b a", ""},
		{"a:b b:c c:d d:e", "a", "e d c b a", ""},
		{"a:b,b", "a a", "b a", ""},
		{"a:a", "a", "", "a a"},
		{"a:b b:c c:a", "a", "", "a b c a"},
		{"a:b b:c c:b", "a", "", "b c b"},
		{"a:b b:a", "x", "x", ""},
	} {
		requires := func(name string) []string {
			for _, f := range strings.Fields(tt.graph) {
				if n, list, _ := strings.Cut(f, ":"); n == name {
					return strings.Split(list, ",")
				}
			}
			return nil
		}
		got, err := Order(strings.Fields(tt.names), requires)
		var loop *LoopError
		if errors.As(err, &loop) {
			if s := strings.Join(loop.Path, " "); s != tt.loop {
				t.Errorf("%s of %s: loop %q, want %q", tt.names, tt.graph, s, tt.loop)
			}
		} else if s := strings.Join(got, " "); s != tt.want || tt.loop != "" {
			t.Errorf("%s of %s: got %q, want %q", tt.names, tt.graph, s, tt.want)
		}
	}
}

// Many shared requirements take no more time than there are edges.
func TestOrderWide(t *testing.T) {
	requires := func(name string) (list []string) {
		var level, i int
		fmt.Sscanf(name, "n%d_%d", &level, &i)
		for j := 0; j < 10 && level < 30; j++ {
			list = append(list, fmt.Sprintf("n%d_%d", level+1, j))
		}
		return list
	}
	got, err := Order([]string{"n0_0"}, requires)
	if err != nil || len(got) != 301 || !slices.Contains(got, "n30_9") {
		t.Errorf("got %d names, %v", len(got), err)
	}
}
