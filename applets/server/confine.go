package server

import (
	"context"
	"errors"
	"fmt"

	"stapbox/core/backend"
	"stapbox/core/compile"
	"stapbox/core/sandbox"
	"stapbox/core/stapopts"
)

// detect finds out how workers can be confined.
func (s *server) detect() *sandbox.Sandbox {
	if s.opts.sandbox == sandboxOff {
		return sandbox.Off(compile.Self)
	}
	return sandbox.Detect(context.Background(), compile.Self)
}

// confine takes a sandbox, says what it is, and whether that is enough.
func (s *server) confine(box *sandbox.Sandbox) error {
	s.sandbox = box
	if s.opts.sandbox == sandboxOff {
		s.log.errorf("WARNING: workers are not confined (--sandbox=off): whoever may send requests can reach what this user can")
		return nil
	}
	s.log.printf("Workers are confined by %v", s.sandbox.Layers)
	if s.sandbox.Layers&sandbox.Landlock != 0 {
		s.log.printf("Landlock has version %d", sandbox.LandlockABI())
	}
	if len(s.sandbox.Missing) == 0 {
		return nil
	}
	for _, m := range s.sandbox.Missing {
		s.log.errorf("WARNING: workers are less confined than they could be, this host lacks %s", m)
	}
	if s.opts.sandbox == sandboxRequire {
		return errors.New("this host does not confine workers as --sandbox=require demands")
	}
	return nil
}

// findSystemtap looks for an installed stap when it may translate.
func (s *server) findSystemtap() error {
	if s.opts.backend == stapopts.TranslatorBuiltin {
		return nil
	}
	path, err := backend.FindSystemtap(context.Background(), s.inv.LookupEnv)
	switch {
	case err == nil:
		s.log.printf("SystemTap is %s", path)
		s.systemtap = path
	case s.opts.backend == stapopts.TranslatorSystemtap:
		return fmt.Errorf("--translator=systemtap: %w", err)
	default:
		s.log.printf("Only the built-in translator is here: %v", err)
	}
	return nil
}
