package relay

import (
	"fmt"
	"strings"
	"time"
)

// strftime expands the conversions of strftime(3) in the C locale.
func strftime(format string, t time.Time) (string, error) {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		i++
		if i == len(format) {
			return "", fmt.Errorf("Invalid FILE name format: %q ends in '%%'", format)
		}
		text, ok := convert(format[i], t)
		if !ok {
			return "", fmt.Errorf("Invalid FILE name format: %q has no meaning", "%"+format[i:i+1])
		}
		b.WriteString(text)
	}
	return b.String(), nil
}

// layout gives the conversions that are a layout of package time.
func layout(c byte) string {
	return [...]string{
		'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January",
		'c': "Mon Jan _2 15:04:05 2006", 'D': "01/02/06", 'd': "02", 'e': "_2",
		'F': "2006-01-02", 'H': "15", 'I': "03", 'M': "04", 'm': "01", 'p': "PM",
		'R': "15:04", 'r': "03:04:05 PM", 'S': "05", 'T': "15:04:05", 'X': "15:04:05",
		'x': "01/02/06", 'Y': "2006", 'y': "06", 'Z': "MST", 'z': "-0700", 255: "",
	}[c]
}

func convert(c byte, t time.Time) (string, bool) {
	if l := layout(c); l != "" {
		return t.Format(l), true
	}
	weekday := int(t.Weekday())
	isoYear, isoWeek := t.ISOWeek()
	switch c {
	case '%':
		return "%", true
	case 'n':
		return "\n", true
	case 't':
		return "\t", true
	case 'C':
		return fmt.Sprintf("%02d", t.Year()/100), true
	case 'G':
		return fmt.Sprintf("%04d", isoYear), true
	case 'g':
		return fmt.Sprintf("%02d", isoYear%100), true
	case 'j':
		return fmt.Sprintf("%03d", t.YearDay()), true
	case 'k':
		return fmt.Sprintf("%2d", t.Hour()), true
	case 'l':
		return fmt.Sprintf("%2d", (t.Hour()+11)%12+1), true
	case 's':
		return fmt.Sprintf("%d", t.Unix()), true
	case 'u':
		return fmt.Sprintf("%d", (weekday+6)%7+1), true
	case 'w':
		return fmt.Sprintf("%d", weekday), true
	case 'U':
		return fmt.Sprintf("%02d", (t.YearDay()+6-weekday)/7), true
	case 'W':
		return fmt.Sprintf("%02d", (t.YearDay()+6-(weekday+6)%7)/7), true
	case 'V':
		return fmt.Sprintf("%02d", isoWeek), true
	}
	return "", false
}
