package box

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"stapbox/core/invocation"
	"stapbox/core/kmod"
)

func patient(modules []kmod.Loaded, err error) *doctor {
	return &doctor{
		modules: func() ([]kmod.Loaded, error) { return modules, err },
		passwd:  func() ([]byte, error) { return []byte("root:x:0:0::/:/bin/sh\nann:x:7:7::/:/bin/sh\n"), nil },
	}
}

func TestDoctor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		modules []kmod.Loaded
		err     error
		text    string
		status  int
	}{
		{"nothing loaded", nil, nil, "ok     leftover-modules: no module is loaded with nobody attached to it\n", 0},
		{"attached", []kmod.Loaded{{Name: "a", UID: 7, Uses: 1}}, nil, "ok     leftover-modules: no module is loaded with nobody attached to it\n", 0},
		{"left", []kmod.Loaded{{Name: "a", UID: 7}, {Name: "b", UID: 8}, {Name: "c", Uses: 2}}, nil,
			"wrong  leftover-modules: module a, loaded by ann, runs with nobody attached (staprun -A a attaches)\n       cure: staprun -d a\n" +
				"wrong  leftover-modules: module b, loaded by uid 8, runs with nobody attached (staprun -A b attaches)\n       cure: staprun -d b\n", 1},
		{"unreadable", nil, errors.New("no /proc"), "error  leftover-modules: no /proc\n", 1},
	} {
		var out bytes.Buffer
		b := &box{inv: &invocation.Invocation{Stdout: &out}}
		if err := b.examine(patient(tt.modules, tt.err), false); err != nil {
			t.Fatal(err)
		}
		if out.String() != tt.text || b.status != tt.status {
			t.Errorf("%s: status %d, got\n%swant\n%s", tt.name, b.status, out.String(), tt.text)
		}
		out.Reset()
		if err := b.examine(patient(tt.modules, tt.err), true); err != nil {
			t.Fatal(err)
		}
		var got struct {
			OK     bool
			Checks []result
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v\n%s", tt.name, err, out.String())
		}
		if got.OK != (tt.status == 0) || len(got.Checks) != 1 || len(got.Checks[0].Findings) != strings.Count(tt.text, "wrong") || got.Checks[0].Findings == nil {
			t.Errorf("%s: got %+v", tt.name, got)
		}
	}
}

// The command itself, on this host: whatever it finds, it reports.
func TestDoctorCommand(t *testing.T) {
	run := func(args ...string) (string, int) {
		var out, errs bytes.Buffer
		status := Main(context.Background(), &invocation.Invocation{Name: "stapbox", Args: args, Stdout: &out, Stderr: &errs}, nil)
		return out.String() + errs.String(), status
	}
	if out, status := run("doctor"); status > 1 || !strings.Contains(out, "leftover-modules") {
		t.Errorf("status %d, %s", status, out)
	}
	if out, status := run("doctor", "--json"); status > 1 || !json.Valid([]byte(out)) {
		t.Errorf("status %d, %s", status, out)
	}
	if out, status := run("doctor", "--nosuch"); status != exitUsage {
		t.Errorf("status %d, %s", status, out)
	}
	if out, status := run("doctor", "word"); status != exitUsage {
		t.Errorf("status %d, %s", status, out)
	}
}
