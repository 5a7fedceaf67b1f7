package box

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stapbox/core/cache"
	"stapbox/core/invocation"
	"stapbox/core/wire"
)

// filled is a home with two answers in its cache; the second is the longer unused.
func filled(t *testing.T) (home string, keys []cache.Key) {
	t.Helper()
	home = t.TempDir()
	dir := filepath.Join(home, ".systemtap/answers")
	s, err := cache.Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, name := range []string{"one", "two\x1b"} {
		answer, err := (&wire.Response{Version: "5.6", Stdout: []byte(name), Files: []wire.File{{Name: "m.ko", Data: []byte("module")}}}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		key := cache.Key(sha256.Sum256([]byte(name)))
		if err := s.Put(key, cache.Note{Made: time.Unix(1, 0), Release: "6.1", Level: "stapusr", Module: name, Signature: "signed"}, answer); err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(-time.Duration(i) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, key.String()[:2], key.String()), used, used); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return home, keys
}

func runBox(home string, args ...string) (stdout, stderr string, status int) {
	var out, errOut bytes.Buffer
	status = Main(context.Background(), &invocation.Invocation{
		Name: boxName, Args: args, Environ: []string{"HOME=" + home}, Dir: home, Stdout: &out, Stderr: &errOut,
	}, nil)
	return out.String(), errOut.String(), status
}

func TestCache(t *testing.T) {
	home, keys := filled(t)
	dir := filepath.Join(home, ".systemtap/answers")
	out, errOut, status := runBox(home, "cache", "ls")
	rows := strings.Split(strings.TrimSpace(out), "\n")
	if status != 0 || len(rows) != 2 || !strings.HasPrefix(rows[0], keys[1].Short()) || !strings.HasSuffix(rows[0], " 6.1 stapusr signed two?") || !strings.HasSuffix(rows[1], "one") {
		t.Errorf("ls: %d, %q, %q", status, out, errOut)
	}
	for _, where := range [][]string{nil, {"--dir", dir}, {"--dir=.systemtap/answers"}} {
		out, errOut, status = runBox(home, append([]string{"cache", "ls", "--json"}, where...)...)
		var list []struct{ Key, Module, Level string }
		if err := json.Unmarshal([]byte(out), &list); err != nil || status != 0 || len(list) != 2 || list[1].Key != keys[0].String() || list[1].Module != "one" {
			t.Errorf("ls --json: %d, %v, %q, %q", status, err, out, errOut)
		}
	}
	out, errOut, status = runBox(home, "cache", "show", keys[0].Short())
	if status != 0 || !strings.HasPrefix(out, "key       "+keys[0].String()+"\n") || !strings.Contains(out, "stdout    3 bytes\n") || !strings.Contains(out, "file      m.ko 6 bytes\n") {
		t.Errorf("show: %d, %q, %q", status, out, errOut)
	}
	if out, errOut, status = runBox(home, "cache", "verify"); status != 0 || out != "whole 2, damaged 0\n" {
		t.Errorf("verify: %d, %q, %q", status, out, errOut)
	}
	if err := os.Truncate(filepath.Join(dir, keys[0].String()[:2], keys[0].String()), 100); err != nil {
		t.Fatal(err)
	}
	out, errOut, status = runBox(home, "cache", "verify")
	if status != 1 || !strings.Contains(out, keys[0].String()+" damaged entry: ") || !strings.Contains(out, "whole 1, damaged 1\n") || !strings.HasPrefix(errOut, "hint: ") {
		t.Errorf("verify: %d, %q, %q", status, out, errOut)
	}
	if out, errOut, status = runBox(home, "cache", "prune"); status != 0 || out != "removed 1, 4096 bytes\n" {
		t.Errorf("prune: %d, %q, %q", status, out, errOut)
	}
	if out, errOut, status = runBox(home, "cache", "prune", "--size=4K"); status != 0 || out != "removed 0, 0 bytes\n" {
		t.Errorf("prune: %d, %q, %q", status, out, errOut)
	}
	if out, errOut, status = runBox(home, "cache", "prune", "--size", "0"); status != 0 || out != "removed 1, 4096 bytes\n" {
		t.Errorf("prune: %d, %q, %q", status, out, errOut)
	}
}

func TestCacheRefuses(t *testing.T) {
	home, keys := filled(t)
	for _, tt := range []struct {
		args   []string
		want   string
		status int
	}{
		{nil, "cache needs one of ls, show, verify and prune", exitUsage},
		{[]string{"clean"}, `cache has no command "clean"`, exitUsage},
		{[]string{"ls", "x"}, `unexpected word "x"`, exitUsage},
		{[]string{"ls", "--size=1"}, "unrecognized option '--size'", exitUsage},
		{[]string{"show"}, "cache show needs the first digits of a key", exitUsage},
		{[]string{"show", "zz"}, `no entry has a key that begins with "zz"`, exitError},
		{[]string{"show", keys[0].String(), "b"}, `unexpected word "b"`, exitUsage},
		{[]string{"prune", "--size=1X"}, `size "1X" is not a number of bytes`, exitError},
		{[]string{"ls", "--dir=/proc/nonexistent"}, "no such file", exitError},
	} {
		out, errOut, status := runBox(home, append([]string{"cache"}, tt.args...)...)
		if status != tt.status || !strings.Contains(errOut, tt.want) || out != "" {
			t.Errorf("%q: %d, %q, %q; want %q", tt.args, status, out, errOut, tt.want)
		}
	}
	if _, errOut, status := runBox("", "cache", "ls"); status != exitError || !strings.Contains(errOut, "name the cache with --dir") {
		t.Errorf("no home: %d, %q", status, errOut)
	}
}
