package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"stapbox/e2e/lab"
)

// fuzz runs every fuzz target of the tree, one after the other, each for the
// given time. A target that fails does not keep the others from running; what
// it found is in the testdata folder of its package, as go test says.
func fuzz(_ *ending, _ *lab.Lab, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: fuzz TIME (such as 30s)")
	}
	each, err := time.ParseDuration(args[0])
	if err != nil || each <= 0 {
		return fmt.Errorf("%q is not a duration such as 30s", args[0])
	}
	targets, err := fuzzTargets()
	if err != nil {
		return err
	}
	fmt.Printf("%d fuzz targets, %v each\n", len(targets), each)
	var failed []string
	for _, t := range targets {
		fmt.Printf("== %s %s\n", t.pkg, t.name)
		cmd := exec.Command("go", "test", "-run=^$", "-fuzz=^"+t.name+"$", "-fuzztime="+each.String(), minimize, t.pkg)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			failed = append(failed, t.pkg+" "+t.name)
		}
	}
	if failed != nil {
		return fmt.Errorf("%d of %d targets failed:\n  %s", len(failed), len(targets), strings.Join(failed, "\n  "))
	}
	return nil
}

// minimize bounds the time that go test takes to make an input that covers
// something new smaller: by default a minute for each, in which nothing new is
// tried. That was all of the time of targets which unpack archives.
const minimize = "-fuzzminimizetime=100x"

type fuzzTarget struct{ pkg, name string }

// fuzzTargets asks each package with tests for its fuzz targets. That compiles
// the tests, so a package that does not build is an error here.
func fuzzTargets() ([]fuzzTarget, error) {
	packages, err := output("go", "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}", "./...")
	if err != nil {
		return nil, err
	}
	var targets []fuzzTarget
	for _, pkg := range strings.Fields(packages) {
		if strings.HasPrefix(pkg, "stapbox/e2e") {
			continue // its tests need the lab before they can be listed, and it parses nothing
		}
		names, err := output("go", "test", "-list=^Fuzz", pkg)
		if err != nil {
			return nil, err
		}
		for _, name := range strings.Fields(names) {
			if strings.HasPrefix(name, "Fuzz") {
				targets = append(targets, fuzzTarget{pkg, name})
			}
		}
	}
	if targets == nil {
		return nil, errors.New("no package has a fuzz target")
	}
	return targets, nil
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("running %s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), nil
}
