package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"stapbox/e2e/agent/request"
	"stapbox/e2e/interop"
)

// TestScripts runs every script of the corpus in a guest and wants what
// upstream's SystemTap printed for it (./e2e/run interop records that).
func TestScripts(t *testing.T) {
	scripts, err := interop.Load("testdata/scripts")
	if err != nil {
		t.Fatal(err)
	}
	onKernels(t, func(t *testing.T, s *scene) {
		for i, script := range scripts {
			if !s.turn(i) {
				continue
			}
			t.Run(script.Name, func(t *testing.T) {
				golden, err := script.Golden()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.guest.Do(request.Request{WritePath: "/tmp/" + script.Module() + ".ko", Mode: 0o644, Data: compileScript(t, s, script)}); err != nil {
					t.Fatal(err)
				}
				a := s.do(t, script.Request(interop.OurPair, "/tmp/"+script.Module()+".ko"))
				if d := interop.Difference(script.ResultOf(a), golden); d != "" {
					t.Error(d)
				}
			})
		}
	})
}

// compileScript compiles a script here, for the scene's kernel.
func compileScript(t *testing.T, s *scene, script *interop.Script) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, script.Name+".stp"), script.Text, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(stage.programs.Applet("stap"), script.Compile(s.kernel.Headers)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SYSTEMTAP_DIR="+kernelState())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if out, err := cmd.Output(); err != nil {
		t.Fatalf("compiling: %v\n%s%s", err, out, stderr.Bytes())
	}
	module, err := os.ReadFile(filepath.Join(dir, script.Module()+".ko"))
	if err != nil {
		t.Fatal(err)
	}
	return module
}
