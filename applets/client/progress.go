package client

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"stapbox/core/report"
)

const (
	progressAfter = time.Second // what is quicker shows nothing
	progressEvery = time.Second
)

// progress is one line of a terminal that says what takes so long: where a
// script is compiled, which pass it is in if that is known, and since when. It
// is erased when the work is done, and before anything else is written there. A
// nil progress shows nothing.
type progress struct {
	w     io.Writer
	where string
	width func() int

	mu    sync.Mutex
	start time.Time
	pass  int  // the one that runs, 0 if that is not known
	due   bool // enough time has passed
	shown bool
	stop  chan struct{}
	done  chan struct{}
}

// progress begins to show, on standard error, if that is a terminal and nothing
// asks for another kind of output (-v, -w) or for none.
func (c *client) progress(where string) *progress {
	if c.opts.Verbose > 0 || c.opts.Suppress > 0 || c.opts.ClientOptions || c.inv.Getenv("TERM") == "dumb" || !report.IsTerminal(c.inv.Stderr) {
		return nil
	}
	width := func() int { return 80 }
	if f, ok := c.inv.Stderr.(*os.File); ok {
		width = func() int {
			w, _, err := term.GetSize(int(f.Fd()))
			if err != nil || w < 1 {
				return 80
			}
			return w
		}
	}
	p := &progress{w: c.inv.Stderr, where: where, width: width, start: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

func (p *progress) run() {
	defer close(p.done)
	wait := time.NewTimer(progressAfter)
	defer wait.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-wait.C:
			wait.Reset(progressEvery)
			p.mu.Lock()
			p.due = true
			p.draw()
			p.mu.Unlock()
		}
	}
}

// draw writes the line anew. Before its end it leaves one column free: a
// terminal that is at the last one would go on in the next line.
func (p *progress) draw() {
	text := "Compiling on " + p.where
	if p.pass > 0 {
		text += fmt.Sprintf(", pass %d", p.pass)
	}
	text += fmt.Sprintf(", %d s", int(time.Since(p.start).Seconds()))
	if room := p.width() - 1; len(text) > room {
		text = text[:max(room, 0)]
	}
	fmt.Fprintf(p.w, "\r%s\x1b[K", text)
	p.shown = true
}

func (p *progress) erase() {
	if p.shown {
		io.WriteString(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// passed is told of every pass that is done.
func (p *progress) passed(pass int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pass = min(pass+1, 4) // the fifth is no compilation
	if p.due {
		p.draw()
	}
}

// end erases the line. It may be called twice.
func (p *progress) end() {
	if p == nil {
		return
	}
	select {
	case <-p.stop:
		return
	default:
	}
	close(p.stop)
	<-p.done
	p.erase()
}

// before is a writer for output that may come to the same terminal: the line is
// erased first, and drawn again when its time comes.
func (p *progress) before(w io.Writer) io.Writer {
	if p == nil {
		return w
	}
	return &erasing{p, w}
}

type erasing struct {
	p *progress
	w io.Writer
}

func (e *erasing) Write(b []byte) (int, error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	e.p.erase()
	return e.w.Write(b)
}
