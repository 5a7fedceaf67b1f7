package box

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"stapbox/core/invocation"
)

func runMan(t *testing.T, args ...string) (string, string, int) {
	t.Helper()
	var out, errs bytes.Buffer
	inv := &invocation.Invocation{Name: boxName, Args: append([]string{"man"}, args...), Stdout: &out, Stderr: &errs}
	status := Main(context.Background(), inv, nil)
	return out.String(), errs.String(), status
}

func TestMan(t *testing.T) {
	list, errs, status := runMan(t)
	if status != 0 || errs != "" || !strings.Contains(list, "\nstap - compile a SystemTap script, here or on a compile server, and run it\n") ||
		!strings.Contains(list, "systemtap, systemtap-service - run scripts as a service\n") {
		t.Errorf("status %d, %s%s", status, list, errs)
	}
	for name, want := range map[string]string{
		"stap": "stap\n\n    stap - compile", "stap-add-server-cert": "stap-authorize-cert\n", "stapbox": "stapbox\n",
		"entrypoint": "stapbox-entrypoint\n", "doctor": "stapbox\n", "trust": "stapbox\n", "uninstall": "stapbox\n",
	} {
		if page, errs, status := runMan(t, name); status != 0 || errs != "" || !strings.HasPrefix(page, want) || strings.Contains(page, "\x1b") {
			t.Errorf("%s: status %d, %.60q %s", name, status, page, errs)
		}
	}
	for want, args := range map[string][]string{
		"stapbox: ERROR: there is no manual page about \"../stap\"; stapbox man lists those there are\n": {"../stap"},
		"stapbox: ERROR: unexpected word \"staprun\"\n":                                                  {"stap", "staprun"},
		"stapbox: ERROR: unrecognized option '--all'\n":                                                  {"--all"},
	} {
		page, errs, status := runMan(t, args...)
		if errs != want || page != "" || status == 0 {
			t.Errorf("%q: status %d, %q", args, status, errs)
		}
	}
	if _, _, status := runMan(t, "nothing"); status != exitError {
		t.Errorf("status %d for a page that there is not", status)
	}
}

func TestManPager(t *testing.T) {
	for pager, want := range map[string]string{
		"tr a-z A-Z":             "TEXT FRX\n",
		"cat; echo $LESS":        "text FRX\nFRX\n",
		"exit 3":                 "",
		"cat >/dev/null; exit 0": "",
		// ^C goes to both; only the pager makes anything of it.
		"kill -INT $PPID; sleep 0.1; cat": "text FRX\n",
	} {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		b := &box{inv: &invocation.Invocation{Environ: []string{"PAGER=" + pager}, Stderr: os.Stderr}}
		err = b.pageThrough(context.Background(), f, strings.NewReader("text FRX\n"))
		if failed := err != nil; failed != (pager == "exit 3") {
			t.Errorf("%q: %v", pager, err)
		}
		got, _ := os.ReadFile(f.Name())
		if string(got) != want {
			t.Errorf("%q shows %q, want %q", pager, got, want)
		}
	}
}
