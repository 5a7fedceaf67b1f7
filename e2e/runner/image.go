package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"stapbox/e2e/image"
	"stapbox/e2e/lab"
)

// images builds the images of client and server into a directory.
func images(_ *ending, l *lab.Lab, args []string) error {
	dir := "."
	if len(args) > 0 {
		dir = args[0]
	}
	work, err := os.MkdirTemp("", "stapbox-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	box := filepath.Join(work, "stapbox")
	if err := lab.BuildBox(box); err != nil {
		return err
	}
	list, err := exec.Command(box, "--list").Output()
	if err != nil {
		return err
	}
	tools, err := l.FetchPackages("toolchain", image.Packages())
	if err != nil {
		return err
	}
	for _, im := range []image.Image{{Name: "client"}, {Name: "server", Toolchain: tools}} {
		im.Box, im.Applets = box, strings.Fields(string(list))
		file := filepath.Join(dir, "stapbox-"+im.Name+".oci.tar")
		if err := im.Write(file); err != nil {
			return err
		}
		fmt.Println(file)
	}
	return nil
}
