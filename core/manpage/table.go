package manpage

import (
	"slices"
	"strings"
)

// columnGap is the space between columns.
const columnGap = 2

// isTable reports whether lines begin with the head of a table and the dashes
// below it.
func isTable(lines []string) bool {
	return len(lines) > 1 && strings.HasPrefix(lines[0], "|") && strings.HasPrefix(lines[1], "|") &&
		strings.Contains(lines[1], "-") && strings.Trim(lines[1], "|-: ") == ""
}

// cells are those of a row; \| is no border.
func cells(line string) []string {
	var out []string
	line = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "|"), "|")
	cell, code := 0, false
	for i := range len(line) {
		switch {
		case line[i] == '`':
			code = !code
		case line[i] == '|' && !code && (i == 0 || line[i-1] != '\\'):
			out = append(out, strings.TrimSpace(line[cell:i]))
			cell = i + 1
		}
	}
	return append(out, strings.TrimSpace(line[cell:]))
}

func (r *renderer) table(lines []string, indent int) {
	var rows [][][]word
	columns := 0
	for i, l := range lines {
		if i == 1 {
			continue
		}
		var row [][]word
		for _, c := range cells(l) {
			runs := inline(c)
			if i == 0 {
				for k := range runs {
					runs[k].style = bold
				}
			}
			row = append(row, words(runs))
		}
		columns = max(columns, len(row))
		rows = append(rows, row)
	}
	widths := columnWidths(rows, columns, r.width-indent-columnGap*(columns-1))
	r.gap()
	for i, row := range rows {
		r.row(row, widths, indent)
		if i == 0 && len(rows) > 1 {
			var dashes [][]word
			for _, w := range widths {
				dashes = append(dashes, []word{{{plain, strings.Repeat("-", w)}}})
			}
			if !r.styled { // bold tells the head as well
				r.row(dashes, widths, indent)
			}
		}
	}
}

// columnWidths takes from the widest columns what the line has not, down to the
// longest word.
func columnWidths(rows [][][]word, columns, room int) []int {
	natural, least := make([]int, columns), make([]int, columns)
	for _, row := range rows {
		for c, cell := range row {
			n := max(len(cell)-1, 0)
			for _, w := range cell {
				n += w.width()
				least[c] = max(least[c], w.width())
			}
			natural[c] = max(natural[c], n)
		}
	}
	widths := slices.Clone(natural)
	for total(widths) > room {
		widest := -1
		for c := range widths {
			if widths[c] > least[c] && (widest < 0 || widths[c] > widths[widest]) {
				widest = c
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths
}

func total(widths []int) (n int) {
	for _, w := range widths {
		n += w
	}
	return n
}

func (r *renderer) row(row [][]word, widths []int, indent int) {
	filled := make([][][]word, len(row))
	height := 0
	for c := range row {
		filled[c] = fill(row[c], widths[c])
		height = max(height, len(filled[c]))
	}
	for y := range height {
		blank := indent // written only when something comes after it
		for c := range row {
			used := 0
			if y < len(filled[c]) {
				r.w.WriteString(strings.Repeat(" ", blank))
				blank = 0
				used = r.words(filled[c][y])
			}
			blank += max(widths[c]-used, 0) + columnGap
		}
		r.w.WriteByte('\n')
	}
}
