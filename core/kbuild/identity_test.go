package kbuild

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Each thing a module is made of and with changes the identity alone.
func TestIdentity(t *testing.T) {
	build, state, bin := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(build, ".config")
	objtool := filepath.Join(build, "tools/objtool/objtool")
	write(config, "CONFIG_X=y\n", 0o644)
	write(objtool, "objtool", 0o755)
	for _, p := range []string{"gcc", "ld", "as", "modpost"} {
		write(filepath.Join(bin, p), p, 0o755)
	}
	k, rt := Kernel{"6.1", build}, Runtime{Version: "1"}
	if a := Identity(state, Kernel{Release: "6.1"}, rt, bin); a == Identity(state, k, rt, bin) || a == Identity(state, Kernel{Release: "6.2"}, rt, bin) {
		t.Error("without headers: the same")
	}
	if a := Identity(state, k, rt, bin); a == Identity(state, k, Runtime{Version: "2"}, bin) {
		t.Error("the runtime changes nothing")
	}
	unprepared := Identity(state, k, rt, bin)
	prepare := func(feature string) {
		m, err := json.Marshal(manifest{Features: []string{feature}, Recipe: recipe{
			Compile: []string{"gcc"}, Link: []string{"ld"}, Objtool: []string{objtool}, Modpost: []string{filepath.Join(bin, "modpost")}, LinkFinal: []string{"ld"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(directory(state, k, rt), manifestName), string(m), 0o644)
	}
	prepare("a")
	now := Identity(state, k, rt, bin)
	if now == unprepared {
		t.Error("preparing changes nothing")
	}
	if Identity(state, k, rt, bin) != now {
		t.Error("two identities of the same")
	}
	if Identity(state, Kernel{"6.2", build}, rt, bin) == now {
		t.Error("the release changes nothing")
	}
	prepare("b")
	if Identity(state, k, rt, bin) == now {
		t.Error("the prepared state changes nothing")
	}
	prepare("a")
	when := time.Now().Add(-time.Hour)
	for _, file := range []string{
		filepath.Join(bin, "gcc"), filepath.Join(bin, "ld"), filepath.Join(bin, "as"), filepath.Join(bin, "modpost"), objtool,
	} {
		before := Identity(state, k, rt, bin)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
		if Identity(state, k, rt, bin) == before {
			t.Errorf("%s changes nothing", file)
		}
	}
	before := Identity(state, k, rt, bin)
	write(config, "CONFIG_X=m\nCONFIG_Y=y\n", 0o644)
	if Identity(state, k, rt, bin) == before {
		t.Error("the configuration changes nothing")
	}
}
