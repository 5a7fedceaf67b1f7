package compile

import (
	"fmt"
	"slices"
	"strings"

	"stapbox/core/wire"
)

// isLocaleValue accepts [a-zA-Z0-9@_.=-]*.
func isLocaleValue(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@_.=-", r))
	}) < 0
}

// maxComplaints is how many lines about settings of a client go to him and to the
// log: a few hundred octets that were packed hold ten thousands of them.
const maxComplaints = 8

// fewer cuts a list of complaints.
func fewer(complaints []string) []string {
	if more := len(complaints) - maxComplaints; more > 0 {
		complaints = append(complaints[:maxComplaints:maxComplaints], fmt.Sprintf("%d more lines are like these", more))
	}
	return complaints
}

// checkLocale sorts the lines of a request into settings and complaints
// (server-client 4.5).
func checkLocale(lines []string) (env, complaints []string) {
	for _, line := range lines {
		name, value, ok := strings.Cut(line, "=")
		switch {
		case !ok:
			complaints = append(complaints, fmt.Sprintf("Localization key=value line '%s' cannot be parsed", oneLine(line)))
		case !slices.Contains(wire.LocaleNames, name):
			complaints = append(complaints, fmt.Sprintf("Localization key '%s' not found in global list", oneLine(name)))
		case !isLocaleValue(value):
			complaints = append(complaints, fmt.Sprintf("Localization value '%s' contains illegal characters", oneLine(value)))
		default:
			env = append(env, line)
		}
	}
	return env, fewer(complaints)
}

// oneLine makes text of a client harmless in a log: no line ends, no terminal
// sequences, bounded.
func oneLine(s string) string {
	const limit = 4096
	var b strings.Builder
	for _, r := range s {
		switch {
		case b.Len() > limit:
			return b.String() + "..."
		case r == '\n':
			b.WriteString(`\n`)
		case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
