// Package man has the manual pages in the executable.
//
// pages.gz is all *.md of this folder as one gzip stream (RFC 1952), each after a
// line that names it, in the order of their names:
//
//	-- stap.md --
//	# stap
//	...
//
// That is 36 kB instead of 104 kB. A test holds pages.gz against the pages;
// STAPBOX_UPDATE=1 go test ./man writes it again.
package man

import (
	"compress/gzip"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

//go:embed pages.gz
var packed string

// maxSize is more than all pages have.
const maxSize = 4 << 20

// Page is one manual page.
type Page struct {
	File    string   // of this folder
	Names   []string // what it is about, the name of the file first
	Summary string   // in one line
	Text    string   // Markdown
}

// Pages are all pages, in the order of their names.
func Pages() ([]Page, error) { return unpack(packed) }

func unpack(packed string) ([]Page, error) {
	z, err := gzip.NewReader(strings.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("reading the manual pages: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(z, maxSize))
	if err != nil {
		return nil, fmt.Errorf("reading the manual pages: %w", err)
	}
	var all []Page
	for line := range strings.Lines(string(b)) {
		name, isName := strings.CutPrefix(line, "-- ")
		name, ends := strings.CutSuffix(name, " --\n")
		switch {
		case isName && ends:
			all = append(all, Page{File: name})
		case len(all) == 0:
			return nil, errors.New("reading the manual pages: text before the first name")
		default:
			all[len(all)-1].Text += line
		}
	}
	for i := range all {
		if err := all[i].introduce(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// introduce reads names and summary from the paragraph after the title:
//
//	NAME, NAME... - SUMMARY
func (p *Page) introduce() error {
	_, rest, _ := strings.Cut(p.Text, "\n\n")
	intro, _, _ := strings.Cut(rest, "\n\n")
	names, summary, found := strings.Cut(strings.Join(strings.Fields(intro), " "), " - ")
	if !found {
		return fmt.Errorf("manual page %q does not begin with its names and a summary", p.File)
	}
	p.Names, p.Summary = strings.Split(names, ", "), summary
	return nil
}

// Find is the page about a name: of a program, or of a command of stapbox.
func Find(all []Page, name string) (Page, bool) {
	for _, n := range []string{name, "stapbox-" + name} {
		for _, p := range all {
			if slices.Contains(p.Names, n) {
				return p, true
			}
		}
	}
	return Page{}, false
}
