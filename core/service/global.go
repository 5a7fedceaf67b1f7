package service

import (
	"fmt"
	"os"
)

// Global are the settings of the manager. What is empty is not set.
type Global struct {
	ConfigPath string // CONFIG_PATH: directory of the files of servers
	StatPath   string // STAT_PATH: directory of running servers
	LogFile    string // LOG_FILE
	User       string // STAP_USER
	Combine    string // COMBINE: yes for one server of -i, no for one for each kernel
}

// ParseGlobal reads a file of settings over those that are there. An empty value
// leaves what was set before.
func (g *Global) ParseGlobal(data []byte, file string, home Home) error {
	lines, err := parseLines(data, file)
	if err != nil {
		return err
	}
	next := *g
	for _, l := range lines {
		field := map[string]*string{
			"CONFIG_PATH": &next.ConfigPath, "STAT_PATH": &next.StatPath, "LOG_FILE": &next.LogFile, "STAP_USER": &next.User, "COMBINE": &next.Combine,
		}[l.name]
		if field == nil || l.add || l.name == "COMBINE" && l.value != "yes" && l.value != "no" && l.value != "" {
			return &InvalidLine{l.text, file}
		}
		value := l.value
		if l.name != "STAP_USER" && l.name != "COMBINE" {
			if value, err = l.expand(home); err != nil {
				return err
			}
		}
		if value != "" {
			*field = value
		}
	}
	*g = next
	return nil
}

// Read reads a file of settings. One that is not there is an error only if it is
// required.
func (g *Global) Read(file string, home Home, required bool) error {
	st, err := os.Stat(file)
	if !required && (err != nil || !st.Mode().IsRegular()) {
		return nil
	}
	data, _, err := readFile(file, 0)
	if err != nil {
		return fmt.Errorf("Cannot read configuration file %s: %w", file, err)
	}
	return g.ParseGlobal(data, file, home)
}
