package parser

import "stapbox/core/script/ast"

// ParseFormat splits a printf format (stap(1), PRINTING):
//
//	%[-0+ #]*[WIDTH|*][.PRECISION|.*][l]CONVERSION   with b c d i m M o p s u x X
//
// where the l, which C programmers write, means nothing: all numbers have 64 bits.
// %% stands for a percent sign. A message instead of parts says what is wrong.
func ParseFormat(s string) ([]ast.FormatPart, string) {
	var parts []ast.FormatPart
	lit := []byte{}
	flush := func() {
		if len(lit) > 0 {
			parts = append(parts, ast.FormatPart{Literal: string(lit), Width: -1, Prec: -1, Arg: -1, WidthExpr: -1, PrecExpr: -1})
			lit = nil
		}
	}
	for i := 0; i < len(s); {
		if s[i] != '%' {
			lit = append(lit, s[i])
			i++
			continue
		}
		i++
		if i < len(s) && s[i] == '%' {
			lit = append(lit, '%')
			i++
			continue
		}
		c := ast.FormatPart{Width: -1, Prec: -1, Arg: -1, WidthExpr: -1, PrecExpr: -1}
		// One flag, as upstream: "%-05d" is the flag - and the width 05.
		flag := true
		switch {
		case i >= len(s):
		case s[i] == '-':
			c.Minus = true
		case s[i] == '0':
			c.Zero = true
		case s[i] == '+':
			c.Plus = true
		case s[i] == ' ':
			c.Space = true
		case s[i] == '#':
			c.Alt = true
		default:
			flag = false
		}
		if flag && i < len(s) {
			i++
		}
		number := func() int {
			n := 0
			for i < len(s) && s[i] >= '0' && s[i] <= '9' {
				n = min(n*10+int(s[i]-'0'), 1<<30)
				i++
			}
			return n
		}
		if i < len(s) && s[i] == '*' {
			c.WidthArg = true
			i++
		} else if i < len(s) && s[i] >= '0' && s[i] <= '9' {
			c.Width = number()
		}
		if i < len(s) && s[i] == '.' {
			i++
			if i < len(s) && s[i] == '*' {
				c.PrecArg = true
				i++
			} else {
				c.Prec = number()
			}
		}
		if i+1 < len(s) && s[i] == 'l' {
			i++
		}
		if i >= len(s) {
			if c == (ast.FormatPart{Width: -1, Prec: -1, Arg: -1, WidthExpr: -1, PrecExpr: -1}) {
				return nil, "invalid or missing conversion specifier"
			}
			return nil, "trailing incomplete print format conversion"
		}
		switch s[i] {
		case 'b', 'c', 'd', 'i', 'm', 'M', 'o', 'p', 's', 'u', 'x', 'X':
			c.Conv = s[i]
		default:
			return nil, "invalid or missing conversion specifier"
		}
		i++
		flush()
		parts = append(parts, c)
	}
	flush()
	return parts, ""
}
