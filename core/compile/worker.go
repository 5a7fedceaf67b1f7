package compile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"stapbox/core/backend"
	"stapbox/core/kbuild"
	"stapbox/core/sandbox"
	"stapbox/core/stapopts"
	"stapbox/core/wire"
)

// translate runs the worker.
func (s *Service) translate(ctx context.Context, r *request) error {
	build := filepath.Join(r.dir, "response", wire.BuildDir)
	kernel := r.release.Name
	if r.release.BuildDir != "" {
		kernel = r.release.BuildDir
	}
	args := append([]string{"-r" + kernel}, s.Options...)
	args = append(args, "--tmpdir="+build)
	if r.translator != stapopts.TranslatorBuiltin {
		args = append(args, "--translator="+r.translator)
	}
	args = append(append(args, "--client-options"), r.argv...)
	w := worker{
		Spec: sandbox.Spec{
			Args: args, Dir: filepath.Join(r.dir, "request"), Private: r.dir,
			Read: append(s.reach(r.release), s.StateDir), Limits: s.Rlimits,
		},
		temp: build, env: r.env,
	}
	for _, l := range s.Rlimits {
		switch l.Name {
		case "fsize": // of one file; all together may not be larger either
			w.Size = l.Value
		case "as":
			w.Memory = l.Value
		}
	}
	var err error
	var stdout, stderr limited
	r.rc, err = s.run(ctx, &w, &stdout, &stderr)
	r.stdout, r.cut = stdout.b.Bytes(), stdout.full || stderr.full
	r.stderr.Write(stderr.b.Bytes())
	return err
}

// Prepare has a worker make what is made once per kernel, from a script of our
// own, so that no client waits for it.
func (s *Service) Prepare(ctx context.Context, k Release) error {
	dir, lock, err := s.makeDir() // locked: another server may look for what is left
	if err != nil {
		return err
	}
	defer lock.Close()
	defer os.RemoveAll(dir)
	kernel := k.Name
	if k.BuildDir != "" {
		kernel = k.BuildDir
	}
	temp := dir
	if !kbuild.Plain(s.StateDir) {
		if temp, err = kbuild.PlainTemp(); err != nil {
			return fmt.Errorf("preparing kernel %s: %w", k.Name, err)
		}
		defer os.RemoveAll(temp)
	}
	args := append([]string{"-r" + kernel}, s.Options...)
	args = append(args, "--tmpdir="+temp, "--client-options", "-p4", "-e", "probe begin { exit() }")
	// Not for others than the owner of the directory above.
	if err := os.MkdirAll(s.StateDir, 0o755); err != nil {
		return fmt.Errorf("preparing kernel %s: %w", k.Name, err)
	}
	// What a request's worker cannot write, it cannot leave for the worker of
	// another: only this one may write here, and it has no words of a client.
	w := worker{
		Spec: sandbox.Spec{Args: args, Dir: dir, Read: s.reach(k), Write: []string{s.StateDir, dir, temp}},
		temp: temp,
	}
	var stdout, stderr limited
	rc, err := s.run(ctx, &w, &stdout, &stderr)
	if err == nil && rc != 0 {
		err = fmt.Errorf("status %d: %s", rc, oneLine(stderr.b.String()))
	}
	if err != nil {
		return fmt.Errorf("preparing kernel %s: %w", k.Name, err)
	}
	return nil
}

// reach is what a worker may read besides the toolchain.
func (s *Service) reach(k Release) []string { return append(headers(k.BuildDir), s.Readable...) }

// Exposes tells whether workers could read one of some places of the server, by
// what the administrator lets them read.
func (s *Service) Exposes(places ...string) error {
	real := func(path string) string {
		if p, err := filepath.EvalSymlinks(path); err == nil {
			return p
		}
		return filepath.Clean(path)
	}
	for _, k := range s.Releases {
		for _, dir := range s.reach(k) {
			for _, place := range places {
				if r, err := filepath.Rel(real(dir), real(place)); err == nil && filepath.IsLocal(r) {
					return fmt.Errorf("scripts may name files in %q, so they could read %q of the server: allow less (--allow-path, -r), or move the other", dir, place)
				}
			}
		}
	}
	return nil
}

// Confinement is the sandbox of the workers: what was set, or else what this host
// allows.
func (s *Service) Confinement() *sandbox.Sandbox {
	s.detect.Do(func() {
		if s.Sandbox == nil {
			s.Sandbox = sandbox.Detect(context.Background(), s.Worker)
		}
	})
	return s.Sandbox
}

// worker is one process of this program, or of another translator, in a sandbox.
type worker struct {
	sandbox.Spec
	temp string   // where modules are left
	env  []string // besides what all workers get
}

func (s *Service) run(ctx context.Context, w *worker, out, errOut *limited) (rc int, err error) {
	confinement := s.Confinement()
	ctx, cancel := context.WithTimeoutCause(ctx, s.WallClock, errWallClock)
	defer cancel()
	w.Env = append(append([]string{
		"PATH=" + backend.Path,
		"TMPDIR=" + w.temp, "PWD=" + w.Dir, sandbox.Variable + "=1", backend.ReadableVariable + "=" + strings.Join(s.Readable, ":"),
	}, s.Environ...), w.env...)
	cmd := confinement.Command(ctx, w.Spec)
	defer cmd.Close()
	cmd.Stdout, cmd.Stderr = out, errOut
	if err := cmd.Start(); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errWallClock) {
			return 1, cause
		}
		return 1, fmt.Errorf("starting a worker: %w", err)
	}
	err = cmd.Wait()
	rc = cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	switch {
	case cmd.Exceeded() != "":
		fmt.Fprintf(&errOut.b, "Server: the translator took %s and was ended\n", cmd.Exceeded())
		rc, err = 1, nil
	case errors.Is(context.Cause(ctx), errWallClock):
		fmt.Fprintf(&errOut.b, "Server: translation took longer than %v and was ended\n", s.WallClock)
		rc, err = 1, nil
	case ctx.Err() != nil:
		return 1, context.Cause(ctx)
	case err == nil, errors.As(err, &exit) && exit.Exited():
		err = nil
	case exit != nil:
		fmt.Fprintf(&errOut.b, "Server: the translator was ended by a signal (%v)\n", exit.ProcessState)
		rc, err = 1, nil
	default:
		return 1, fmt.Errorf("running a worker: %w", err)
	}
	if w.Private == "" {
		return rc, err
	}
	relative, rerr := filepath.Rel(w.Private, w.temp)
	if rerr != nil {
		return 1, rerr
	}
	patterns := []string{backend.PassesFile}
	if rc == 0 {
		patterns = append(patterns, "*.ko", backend.TranslatorFile)
	}
	if s.Keep {
		patterns = []string{"*"}
	}
	for _, p := range patterns {
		if ferr := cmd.Fetch(relative, p, backend.MaxModule); ferr != nil && rc == 0 {
			return 1, ferr
		}
	}
	return rc, err
}

var errWallClock = errors.New("wall-clock limit")

// limited keeps the first maxOutput bytes written to it.
type limited struct {
	b    bytes.Buffer
	full bool
}

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.b.Len(); room < len(p) {
		l.b.Write(p[:max(room, 0)])
		if !l.full {
			l.full = true
			l.b.WriteString("\n[output cut here]\n")
		}
		return len(p), nil
	}
	return l.b.Write(p)
}

// headers are the directories a build tree outside of /usr reaches into: its
// links go to neighbours below the "usr" that holds "src", as in a package of
// headers that was unpacked elsewhere.
func headers(buildDir string) []string {
	if buildDir == "" {
		return nil
	}
	dirs := []string{buildDir}
	if real, err := filepath.EvalSymlinks(buildDir); err == nil && real != buildDir {
		dirs = append(dirs, real)
	}
	for _, d := range slices.Clone(dirs) {
		// A tree in somebody's own src is not one: beside it is all he has.
		if usr := filepath.Dir(filepath.Dir(d)); filepath.Base(usr) == "usr" && filepath.Base(filepath.Dir(d)) == "src" {
			dirs = append(dirs, usr)
		}
	}
	return slices.DeleteFunc(dirs, func(d string) bool {
		_, err := os.Stat(d)
		return err != nil || strings.Contains(d, ":")
	})
}
