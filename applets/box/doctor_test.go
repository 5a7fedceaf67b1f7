package box

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"stapbox/core/doctor"
	"stapbox/core/invocation"
)

func TestReport(t *testing.T) {
	for state, want := range map[doctor.State]int{doctor.OK: 0, doctor.Note: 0, doctor.Cure: exitError} {
		var out bytes.Buffer
		b := &box{inv: &invocation.Invocation{Stdout: &out}}
		if err := b.report([]doctor.Finding{{Check: "x", State: state, Text: "text", Cure: "command"}}, false); err != nil {
			t.Fatal(err)
		}
		if b.status != want || !strings.HasSuffix(out.String(), " text\n                       $ command\n") {
			t.Errorf("%s: status %d, %s", state, b.status, out.String())
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
