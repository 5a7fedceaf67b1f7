// Package depend puts names into an order in which each comes after those that
// it requires.
//
// The order is topological: requirements first, depth first, in the order they
// are written, every name once. For a(b c), b(d), c(d) it is d b c a; stopping
// goes the other way.
package depend

import "strings"

// LoopError is returned for names that require each other.
type LoopError struct{ Path []string } // from a name back to it

func (e *LoopError) Error() string {
	return "Dependency loop detected on " + e.Path[0] + " (" + strings.Join(e.Path, " -> ") + ")"
}

// Order returns the names and all they require, directly or not.
func Order(names []string, requires func(string) []string) ([]string, error) {
	const (
		open = 1 + iota
		done
	)
	state := map[string]int{}
	var order, path []string
	var visit func(string) error
	visit = func(name string) error {
		switch state[name] {
		case done:
			return nil
		case open:
			for i, p := range path {
				if p == name {
					return &LoopError{append(append([]string{}, path[i:]...), name)}
				}
			}
		}
		state[name] = open
		path = append(path, name)
		for _, r := range requires(name) {
			if err := visit(r); err != nil {
				return err
			}
		}
		path = path[:len(path)-1]
		state[name] = done
		order = append(order, name)
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}
