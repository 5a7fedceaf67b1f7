package main

import (
	"fmt"
	"path/filepath"

	"stapbox/e2e/lab"
)

// build makes the one file, as it is deployed and tested.
func build(_ *ending, _ *lab.Lab, args []string) error {
	path := "stapbox"
	if len(args) > 0 {
		path = args[0]
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if err := lab.BuildBox(path); err != nil {
		return err
	}
	fmt.Println(path)
	return nil
}
