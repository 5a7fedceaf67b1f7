package applets

import (
	"slices"
	"testing"

	"stapbox/man"
)

// Every name the box answers to has a manual page that says so.
func TestPages(t *testing.T) {
	pages, err := man.Pages()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range Table {
		if p, found := man.Find(pages, a.Name); !found || !slices.Contains(p.Names, a.Name) {
			t.Errorf("no manual page is about %s", a.Name)
		}
	}
	if _, found := man.Find(pages, boxName); !found {
		t.Errorf("no manual page is about %s", boxName)
	}
}
