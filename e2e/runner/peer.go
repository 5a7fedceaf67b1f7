package main

import (
	"context"
	"os"

	"stapbox/e2e/bench"
	"stapbox/e2e/interop"
	"stapbox/e2e/lab"
)

// interoperate compares with upstream, on its own kernel and over the wire.
func interoperate(e *ending, l *lab.Lab, _ []string) error {
	return withPrograms(l, func(p *lab.Programs) error {
		return e.cancelling(func(ctx context.Context) error { return interop.Run(ctx, l, p, os.Stdout) })
	})
}

// withPrograms builds the executables into a directory of their own.
func withPrograms(l *lab.Lab, do func(*lab.Programs) error) error {
	if err := l.EnsureTools(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "stapbox-e2e-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	p, err := lab.Build(dir)
	if err != nil {
		return err
	}
	return do(p)
}

// benchmark times ours and upstream's side by side.
func benchmark(e *ending, l *lab.Lab, _ []string) error {
	return withPrograms(l, func(p *lab.Programs) error {
		return e.cancelling(func(ctx context.Context) error { return bench.Run(ctx, l, p, os.Stdout) })
	})
}
