// Package upstream knows what SystemTap has by name: the functions, macros and
// variables of its library and its probe points. It tells a script that uses
// what this translator lacks from one with a slip of the pen; what any of it
// means is not known here.
package upstream

import (
	_ "embed" // names.txt
	"path"
	"slices"
	"strings"
	"sync"
)

//go:embed names.txt
var text string

// table is the list, read once somebody asks.
type table struct {
	words  map[string][]string            // function, global, macro: names, in which "*" stands for anything
	points map[string]map[string][]string // first word of a point: what may follow, and its words
}

var (
	once  sync.Once
	names table
)

func read() table {
	once.Do(func() { names = parse() })
	return names
}

func parse() table {
	t := table{words: map[string][]string{}, points: map[string]map[string][]string{}}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) < 2 || words[0] == "#":
		case words[0] == "point":
			rest := t.points[words[1]]
			if rest == nil {
				rest = map[string][]string{}
				t.points[words[1]] = rest
			}
			for _, w := range words[2:] {
				rest[w] = strings.Split(w, ".")
			}
		default:
			t.words[words[0]] = append(t.words[words[0]], words[1:]...)
		}
	}
	return t
}

func has(kind, name string) bool {
	return slices.ContainsFunc(read().words[kind], func(p string) bool {
		prefix, pattern := strings.CutSuffix(p, "*")
		return p == name || pattern && strings.HasPrefix(name, prefix)
	})
}

// Function reports whether the library has a function of this name.
func Function(name string) bool { return has("function", name) }

// Macro reports whether the library has a macro of this name, which is without @.
func Macro(name string) bool { return has("macro", name) }

// Global reports whether the library has a variable of this name.
func Global(name string) bool { return has("global", name) }

// Class reports whether probe points begin with this word.
func Class(word string) bool { return read().points[word] != nil }

// Points are the probe points, without arguments, that words with * ? and [] in
// them stand for, sorted. "**" at the end stands for any number of words. Where
// the rest of a point may be anything it is "**".
func Points(words []string) []string {
	var out []string
	for class, rests := range read().points {
		first, rest := words[0], words[1:]
		if first == "**" {
			first, rest = "*", []string{"**"}
		}
		if !match(first, class) {
			continue
		}
		for r, words := range rests {
			switch {
			case r == "-":
				if len(rest) == 0 || len(rest) == 1 && rest[0] == "**" {
					out = append(out, class)
				}
			case r == "**":
				// A pattern that is not for this class does not mean it.
				if first == class || len(rest) == 1 && rest[0] == "**" {
					out = append(out, class+".**")
				}
			case follows(rest, words):
				out = append(out, class+"."+r)
			}
		}
	}
	slices.Sort(out)
	return out
}

func follows(pattern, words []string) bool {
	for i, p := range pattern {
		if p == "**" && i == len(pattern)-1 {
			return len(words) > i
		}
		if i >= len(words) || !match(p, words[i]) {
			return false
		}
	}
	return len(pattern) == len(words)
}

func match(pattern, word string) bool {
	ok, err := path.Match(pattern, word)
	return ok && err == nil
}
