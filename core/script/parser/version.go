package parser

import (
	"path"
	"strconv"
	"strings"
)

func itoa(n int) string { return strconv.Itoa(n) }

// parseNumber reads an integer literal as strtoull(3) with base 0 does;
// values of 2^63 and more wrap around.
func parseNumber(text string) (int64, bool) {
	base, digits := 10, text
	if len(text) > 1 && text[0] == '0' {
		base, digits = 8, text[1:]
		if text[1] == 'x' || text[1] == 'X' {
			base, digits = 16, text[2:]
		}
	}
	v, err := strconv.ParseUint(digits, base, 64)
	return int64(v), err == nil
}

// Match is fnmatch(3) without flags.
func Match(pattern, name string) bool {
	ok, err := path.Match(escapeSlash(pattern), escapeSlash(name))
	return err == nil && ok
}

// escapeSlash replaces "/", which fnmatch without FNM_PATHNAME treats like
// any other character.
func escapeSlash(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '/' {
			b[i] = 1
		}
	}
	return string(b)
}

// CompareVersions is strverscmp(3): digit runs compare as numbers, runs with
// leading zeroes as fractions.
func CompareVersions(a, b string) int {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	if i == len(a) && i == len(b) {
		return 0
	}
	isd := func(s string, k int) bool { return k < len(s) && s[k] >= '0' && s[k] <= '9' }
	at := func(s string, k int) int {
		if k < len(s) {
			return int(s[k])
		}
		return 0
	}
	start := i
	for start > 0 && isd(a, start-1) {
		start--
	}
	bytewise := at(a, i) - at(b, i)
	if !isd(a, start) || !isd(b, start) {
		return bytewise
	}
	if start == i {
		if a[i] == '0' || b[i] == '0' {
			return bytewise
		}
	} else if a[start] == '0' {
		// A fraction. While it is all zeroes, the one that goes on is less.
		if strings.Trim(a[start:i], "0") == "" && isd(a, i) != isd(b, i) {
			if isd(a, i) {
				return -1
			}
			return 1
		}
		return bytewise
	}
	endA, endB := i, i
	for isd(a, endA) {
		endA++
	}
	for isd(b, endB) {
		endB++
	}
	if endA != endB {
		return endA - endB
	}
	return bytewise
}
