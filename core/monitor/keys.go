package monitor

import (
	"bytes"
	"fmt"
	"math"
)

// key is one key: a byte, or one of these.
type key int

const (
	keyUp key = 256 + iota
	keyDown
	keyPageUp
	keyPageDown
	keyHome
	keyEnd
	keyEscape
)

// keys reads what a terminal sent at once. Escape sequences that are not known
// are skipped.
func keys(b []byte) (all []key) {
	for len(b) > 0 {
		if b[0] != 0x1b {
			all = append(all, key(b[0]))
			b = b[1:]
			continue
		}
		if len(b) == 1 || b[1] != '[' && b[1] != 'O' {
			all = append(all, keyEscape)
			b = b[1:]
			continue
		}
		end := 2
		for end < len(b) && (b[end] < 0x40 || b[end] > 0x7e) {
			end++
		}
		if end == len(b) {
			return all
		}
		switch seq := b[2 : end+1]; {
		case bytes.Equal(seq, []byte("A")):
			all = append(all, keyUp)
		case bytes.Equal(seq, []byte("B")):
			all = append(all, keyDown)
		case bytes.Equal(seq, []byte("H")), bytes.Equal(seq, []byte("1~")), bytes.Equal(seq, []byte("7~")):
			all = append(all, keyHome)
		case bytes.Equal(seq, []byte("F")), bytes.Equal(seq, []byte("4~")), bytes.Equal(seq, []byte("8~")):
			all = append(all, keyEnd)
		case bytes.Equal(seq, []byte("5~")):
			all = append(all, keyPageUp)
		case bytes.Equal(seq, []byte("6~")):
			all = append(all, keyPageDown)
		}
		b = b[end+1:]
	}
	return all
}

// maxPrompt is the length of a probe index that can be typed.
const maxPrompt = 5

// press acts on a key: it changes the state, and gives the word for the module,
// if any, and whether the view is over. page is the height of a window.
func (s *state) press(k key, page int) (control string, over bool) {
	if s.prompting {
		switch {
		case k == '\r' || k == '\n':
			s.prompting = false
			return s.prompt, false
		case k == keyEscape:
			s.prompting = false
		case (k == 0x7f || k == 8) && s.prompt != "":
			s.prompt = s.prompt[:len(s.prompt)-1]
		case '0' <= k && k <= '9' && len(s.prompt) < maxPrompt:
			s.prompt += string(rune(k))
		}
		return "", false
	}
	s.notice = ""
	switch k {
	case 'h':
		s.help = !s.help
	case 'c':
		return "clear", false
	case 's':
		s.sort = (s.sort + 1) % columns
	case 't':
		s.prompting, s.prompt = !s.exited, ""
	case 'p':
		s.paused = true
		return "pause", false
	case 'r':
		s.paused = false
		return "resume", false
	case 'x':
		s.hidden = !s.hidden
		s.focus = outputWindow
	case 'q':
		if s.exited {
			return "", true
		}
		s.stopping = true
		return "quit", false
	case '\t':
		if !s.hidden {
			s.focus = probeWindow - s.focus
		}
	case 'k', keyUp:
		s.scroll(-1)
	case 'j', keyDown:
		s.scroll(1)
	case keyPageUp:
		s.scroll(-page)
	case keyPageDown:
		s.scroll(page)
	case keyHome:
		s.scroll(math.MinInt32)
	case keyEnd:
		s.scroll(math.MaxInt32)
	}
	return "", false
}

// scroll moves the window that has the focus; render brings it back into its
// bounds.
func (s *state) scroll(rows int) {
	if s.focus == probeWindow {
		s.top = max(s.top+rows, 0)
	} else {
		s.back = max(s.back-rows, 0)
	}
}

// update takes a new status.
func (s *state) update(b []byte, err error) {
	if err == nil {
		var st Status
		if st, err = Parse(b); err == nil {
			s.status = st
			return
		}
	}
	s.notice = visible(fmt.Sprint(err))
}
