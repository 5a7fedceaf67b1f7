package box

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"

	"stapbox/core/getopt"
	"stapbox/core/manpage"
	"stapbox/man"
)

// Widths of lines: of what is no terminal, and the most and least of a terminal.
const (
	plainWidth = 80
	mostWidth  = 110
	leastWidth = 40
)

// manArgs makes the words after "man" canonical.
func manArgs(words []string) ([]string, error) {
	opts, operands, err := getopt.Parse(getopt.Spec{}, words)
	if err == nil && len(operands) > 1 {
		err = fmt.Errorf("unexpected word %q", operands[1])
	}
	return getopt.Canonical(opts, operands), err
}

// man shows the page about a name, or what pages there are.
func (b *box) man(ctx context.Context, name string) error {
	pages, err := man.Pages()
	if err != nil {
		return err
	}
	if name == "" {
		for _, p := range pages {
			fmt.Fprintf(b.inv.Stdout, "%s - %s\n", strings.Join(p.Names, ", "), p.Summary)
		}
		return nil
	}
	p, found := man.Find(pages, name)
	if !found && b.app().Command(name) != nil {
		p, found = man.Find(pages, boxName)
	}
	if !found {
		return fmt.Errorf("there is no manual page about %q; stapbox man lists those there are", name)
	}
	f, _ := b.inv.Stdout.(*os.File)
	if f == nil || !term.IsTerminal(int(f.Fd())) {
		return manpage.Render(b.inv.Stdout, p.Text, manpage.Options{Width: plainWidth})
	}
	o := manpage.Options{Width: plainWidth, Styled: b.inv.Getenv("TERM") != "dumb"}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		o.Width = min(max(width, leastWidth), mostWidth)
	}
	var text bytes.Buffer
	if err := manpage.Render(&text, p.Text, o); err != nil {
		return err
	}
	return b.pageThrough(ctx, f, &text)
}

// pageThrough shows text on a terminal through $PAGER or less, or as it is if
// there is neither.
func (b *box) pageThrough(ctx context.Context, terminal *os.File, text io.Reader) error {
	pager := b.inv.Getenv("PAGER")
	if pager == "" {
		if _, err := exec.LookPath("less"); err != nil {
			_, err := io.Copy(terminal, text)
			return err
		}
		pager = "less"
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", pager)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = text, terminal, b.inv.Stderr
	cmd.Env = b.inv.Environ
	if _, set := b.inv.LookupEnv("LESS"); !set {
		cmd.Env = append(cmd.Env, "LESS=FRX") // styles as they are; a short page without waiting
	}
	// ^C is for the pager, which stops a search with it and goes on; who would end
	// here left it and a shell reading from one terminal.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGQUIT)
	defer signal.Stop(interrupts)
	b.inv.Handles(syscall.SIGQUIT)
	defer b.inv.Handles()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("showing the page through %q: %w", pager, err)
	}
	return nil
}
