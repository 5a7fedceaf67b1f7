package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The test binary is what sandboxes start.
func TestMain(m *testing.M) {
	Enter()
	if os.Getenv(Variable) != "" {
		args, err := Args()
		fmt.Printf("%q %v %q\n", args, err, os.Args[1:])
		os.Exit(7)
	}
	os.Exit(m.Run())
}

var self = []string{"/proc/self/exe", "stap"}

func TestDetect(t *testing.T) {
	start := time.Now()
	s := Detect(context.Background(), self)
	t.Logf("%v, missing %q, after %v", s.Layers, s.Missing, time.Since(start))
}

// sh runs a command in a sandbox.
func sh(t *testing.T, s *Sandbox, spec Spec, command string) (string, error) {
	t.Helper()
	spec.Path, spec.Args = "/bin/sh", []string{"-c", command}
	spec.Env = append(spec.Env, "PATH=/usr/bin:/bin")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := s.Command(ctx, spec)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	c.Close()
	return strings.TrimSpace(out.String()), err
}

func TestRun(t *testing.T) {
	s := Detect(context.Background(), self)
	for l := range AllLayers + 1 {
		if l&^s.Layers != 0 {
			continue
		}
		s := &Sandbox{Program: self, Layers: l}
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "x"), []byte("text"), 0o600)
		start := time.Now()
		out, err := sh(t, s, Spec{Dir: dir, Private: dir}, "cat x; echo y > y && id -u; uname -r; cat /proc/self/status | grep -E 'Cap|NoNew|Secc'; ls / /tmp | wc -l; cat /proc/mounts | grep -v /usr | head -30")
		t.Logf("%v: %v %v\n%s", l, time.Since(start), err, out)
		c := s.Command(context.Background(), Spec{Args: []string{"a", "", "\xff b"}, Dir: dir, Private: dir, Env: []string{Variable + "=1"}})
		var b bytes.Buffer
		c.Stdout, c.Stderr = &b, &b
		err = c.Run()
		t.Logf("%v %s", err, &b)
	}
}
