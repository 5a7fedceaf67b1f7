package backend

import (
	"errors"
	"os"
	"strings"
	"testing"

	"stapbox/core/sandbox"
)

// Requirements: R-000-019
func TestExplainPath(t *testing.T) {
	worker := func(name string) (string, bool) {
		v, ok := map[string]string{sandbox.Variable: "1", ReadableVariable: "/opt/app:/srv"}[name]
		return v, ok
	}
	nobody := func(string) (string, bool) { return "", false }
	for _, tt := range []struct {
		lookup  func(string) (string, bool)
		path    string
		refused bool
	}{
		{worker, "/home/a/prog", true}, {worker, "/opt/application", true}, {worker, "/opt/app/../other", true},
		{worker, "/opt/app/bin/x", false}, {worker, "/usr/bin/nosuch", false}, {worker, "/srv", false}, {nobody, "/home/a/prog", false},
	} {
		err := ExplainPath(tt.lookup, tt.path, os.ErrNotExist)
		var refused *RefusedPath
		if errors.As(err, &refused) != tt.refused || tt.refused && (!strings.Contains(err.Error(), "--allow-path=") || !strings.Contains(err.Error(), "rule")) {
			t.Errorf("%s: got %v", tt.path, err)
		}
	}
	if err := ExplainPath(worker, "/x", nil); err != nil {
		t.Error(err)
	}
}
