package main

import (
	"errors"

	"stapbox/e2e/lab"
)

func interoperate(l *lab.Lab, _ []string) error { return errors.New("no") }
func benchmark(l *lab.Lab, _ []string) error    { return errors.New("no") }
