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
	"time"

	"stapbox/core/wire"
)

// translate runs the worker.
func (s *Service) translate(ctx context.Context, r *request) error {
	build := filepath.Join(r.dir, "response", wire.BuildDir)
	kernel := r.release.Name
	if r.release.BuildDir != "" {
		kernel = r.release.BuildDir
	}
	args := []string{"-r" + kernel}
	args = append(args, s.Options...)
	for _, l := range s.Rlimits {
		args = append(args, fmt.Sprintf("--rlimit-%s=%d", l.Name, l.Value))
	}
	args = append(args, "--tmpdir="+build, "--client-options")
	args = append(args, r.argv...)
	env := append(slices.Clone(r.env), s.access(r.release, []string{s.StateDir}, []string{r.dir})...)
	var err error
	var stdout, stderr limited
	r.rc, err = s.run(ctx, args, filepath.Join(r.dir, "request"), build, env, &stdout, &stderr)
	r.stdout, r.cut = stdout.b.Bytes(), stdout.full || stderr.full
	r.stderr.Write(stderr.b.Bytes())
	return err
}

// Prepare has a worker make what is made once per kernel, from a script of our
// own, so that no client waits for it.
func (s *Service) Prepare(ctx context.Context, k Release) error {
	dir, err := os.MkdirTemp(s.TempDir, "stap-server.")
	if err != nil {
		return fmt.Errorf("making a request directory: %w", err)
	}
	defer os.RemoveAll(dir)
	kernel := k.Name
	if k.BuildDir != "" {
		kernel = k.BuildDir
	}
	args := append([]string{"-r" + kernel}, s.Options...)
	args = append(args, "--tmpdir="+dir, "--client-options", "-p4", "-e", "probe begin { exit() }")
	if err := os.MkdirAll(s.StateDir, 0o700); err != nil {
		return fmt.Errorf("preparing kernel %s: %w", k.Name, err)
	}
	var stdout, stderr limited
	rc, err := s.run(ctx, args, dir, dir, s.access(k, nil, []string{s.StateDir, dir}), &stdout, &stderr)
	if err == nil && rc != 0 {
		err = fmt.Errorf("status %d: %s", rc, oneLine(stderr.b.String()))
	}
	if err != nil {
		return fmt.Errorf("preparing kernel %s: %w", k.Name, err)
	}
	return nil
}

// access tells a worker what it may reach. What a request's worker cannot
// write, it cannot leave for the worker of another.
func (s *Service) access(k Release, read, write []string) []string {
	return []string{
		ReadVariable + "=" + strings.Join(append(headers(k.BuildDir), read...), ":"),
		WriteVariable + "=" + strings.Join(write, ":"),
	}
}

func (s *Service) run(ctx context.Context, args []string, dir, temp string, env []string, out, errOut *limited) (rc int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.WallClock, errWallClock)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Worker[0])
	cmd.Args = append(slices.Clone(s.Worker[1:]), args...)
	cmd.Dir = dir
	cmd.Env = append(append([]string{
		"PATH=" + workerPath,
		"TMPDIR=" + temp, "PWD=" + dir, WorkerVariable + "=1",
	}, s.Environ...), env...)
	cmd.Stdout, cmd.Stderr = out, errOut
	cmd.SysProcAttr = workerAttr()
	cmd.Cancel = func() error { return killGroup(cmd.Process) }
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("starting a worker: %w", err)
	}
	err = cmd.Wait()
	// Whatever the worker left behind ends with it.
	killGroup(cmd.Process)
	rc = cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	switch {
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
