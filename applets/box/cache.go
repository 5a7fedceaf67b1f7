package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"stapbox/core/cache"
	"stapbox/core/getopt"
	"stapbox/core/hostpaths"
	"stapbox/core/wire"
)

// cacheVerb is one thing stapbox cache can do, and how many words it takes.
type cacheVerb struct {
	name     string
	operands int
	spec     getopt.Spec
}

func cacheVerbs() []cacheVerb {
	dir := getopt.Def{Long: "dir", Arg: getopt.RequiredArg}
	return []cacheVerb{
		{"ls", 0, getopt.Spec{Defs: []getopt.Def{dir, {Long: "json"}}}},
		{"show", 1, getopt.Spec{Defs: []getopt.Def{dir}}},
		{"verify", 0, getopt.Spec{Defs: []getopt.Def{dir}}},
		{"prune", 0, getopt.Spec{Defs: []getopt.Def{dir, {Long: "size", Arg: getopt.RequiredArg}}}},
	}
}

// cacheArgs makes the words after "cache" canonical.
func cacheArgs(words []string) ([]string, error) {
	if len(words) == 0 {
		return nil, errors.New("cache needs one of ls, show, verify and prune")
	}
	for _, v := range cacheVerbs() {
		if v.name != words[0] {
			continue
		}
		opts, operands, err := getopt.Parse(v.spec, words[1:])
		switch {
		case err != nil:
			return nil, err
		case len(operands) > v.operands:
			return nil, fmt.Errorf("unexpected word %q", operands[v.operands])
		case len(operands) < v.operands:
			return nil, fmt.Errorf("cache %s needs the first digits of a key", v.name)
		}
		return append([]string{v.name}, getopt.Canonical(opts, operands)...), nil
	}
	return nil, fmt.Errorf("cache has no command %q, only ls, show, verify and prune", words[0])
}

func (b *box) cacheCommand() *cli.Command {
	dir := &cli.StringFlag{Name: "dir", Usage: "the cache is `DIR` instead of the one of a server of this user"}
	return &cli.Command{
		Name: "cache", Usage: "look at the answers a compile server keeps, and clear them", HideHelpCommand: true,
		Subcommands: []*cli.Command{
			{
				Name: "ls", Usage: "list the answers, longest unused first",
				Flags:  []cli.Flag{dir, &cli.BoolFlag{Name: "json", Usage: "for programs"}},
				Action: b.withCache(func(c *cli.Context, s *cache.Store) error { return b.cacheList(s, c.Bool("json")) }),
			},
			{
				Name: "show", Usage: "show what an answer consists of", ArgsUsage: "KEY",
				Flags:  []cli.Flag{dir},
				Action: b.withCache(func(c *cli.Context, s *cache.Store) error { return b.cacheShow(s, c.Args().First()) }),
			},
			{
				Name: "verify", Usage: "read and check every answer",
				Flags:  []cli.Flag{dir},
				Action: b.withCache(func(_ *cli.Context, s *cache.Store) error { return b.cacheVerify(s) }),
			},
			{
				Name: "prune", Usage: "remove damaged answers, and others that exceed a size",
				Flags:  []cli.Flag{dir, &cli.StringFlag{Name: "size", Usage: "remove the longest unused until at most `NUM[KMG]` bytes are left"}},
				Action: b.withCache(func(c *cli.Context, s *cache.Store) error { return b.cachePrune(s, c.IsSet("size"), c.String("size")) }),
			},
		},
	}
}

// withCache opens the cache that a command is about.
func (b *box) withCache(f func(*cli.Context, *cache.Store) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		dir := c.String("dir")
		if dir == "" {
			data := hostpaths.UserDir(b.inv.Getenv("SYSTEMTAP_DIR"), b.inv.Getenv("HOME"))
			if data == "" {
				return errors.New("there is neither SYSTEMTAP_DIR nor HOME: name the cache with --dir")
			}
			dir = hostpaths.Answers(data)
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(b.inv.Dir, dir)
		}
		s, err := cache.OpenExisting(dir)
		if err != nil {
			return err
		}
		defer s.Close()
		return f(c, s)
	}
}

// cacheEntry is an entry for programs.
type cacheEntry struct {
	Key   string    `json:"key"`
	Bytes int64     `json:"bytes"`
	Used  time.Time `json:"used"`
	cache.Note
	Error string `json:"error,omitempty"`
}

func (b *box) cacheList(s *cache.Store, asJSON bool) error {
	entries, err := s.List()
	if err != nil {
		return err
	}
	if asJSON {
		list := []cacheEntry{}
		for _, e := range entries {
			row := cacheEntry{Key: e.Key.String(), Bytes: e.Size, Used: e.Used.UTC(), Note: e.Note}
			if e.Err != nil {
				row.Error = e.Err.Error()
			}
			list = append(list, row)
		}
		enc := json.NewEncoder(b.inv.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	for _, e := range entries {
		used := e.Used.Local().Format(time.DateTime)
		if e.Err != nil {
			fmt.Fprintf(b.inv.Stdout, "%s %9d %s %v\n", e.Key.Short(), e.Size, used, e.Err)
			continue
		}
		fmt.Fprintf(b.inv.Stdout, "%s %9d %s %s %s %s %s\n", e.Key.Short(), e.Size, used,
			printable(e.Note.Release), printable(e.Note.Level), printable(e.Note.Signature), printable(e.Note.Module))
	}
	return nil
}

// printable is a text of a file as one word for a terminal.
func printable(s string) string {
	out := []rune(s)
	for i, r := range out {
		if r <= ' ' || r >= 0x7f && r < 0xa0 {
			out[i] = '?'
		}
	}
	if len(out) == 0 {
		return "-"
	}
	return string(out)
}

func (b *box) cacheShow(s *cache.Store, prefix string) error {
	key, err := s.Find(prefix)
	if err != nil {
		return err
	}
	note, answer, err := s.Read(key)
	if err != nil {
		return fmt.Errorf("reading answer %s: %w", key.Short(), err)
	}
	r, err := wire.DecodeResponse(answer)
	if err != nil {
		return fmt.Errorf("reading answer %s: %w", key.Short(), err)
	}
	fmt.Fprintf(b.inv.Stdout, "key       %s\nmade      %s\nrelease   %s\nlevel     %s\nsignature %s\nbytes     %d\n",
		key, note.Made.Local().Format(time.DateTime), printable(note.Release), printable(note.Level), printable(note.Signature), len(answer))
	fmt.Fprintf(b.inv.Stdout, "status    %d\nstdout    %d bytes\nstderr    %d bytes\n", r.RC, len(r.Stdout), len(r.Stderr))
	for _, f := range r.Files {
		fmt.Fprintf(b.inv.Stdout, "file      %s %d bytes\n", printable(f.Name), len(f.Data))
	}
	return nil
}

func (b *box) cacheVerify(s *cache.Store) error {
	entries, err := s.Verify()
	if err != nil {
		return err
	}
	bad := 0
	for _, e := range entries {
		if e.Err != nil {
			bad++
			fmt.Fprintf(b.inv.Stdout, "%s %v\n", e.Key, e.Err)
		}
	}
	fmt.Fprintf(b.inv.Stdout, "whole %d, damaged %d\n", len(entries)-bad, bad)
	if bad > 0 {
		b.status = exitError
		fmt.Fprintln(b.inv.Stderr, "hint: stapbox cache prune removes what is damaged; a server does that when it meets it")
	}
	return nil
}

func (b *box) cachePrune(s *cache.Store, limited bool, size string) error {
	target := int64(-1)
	if limited {
		var err error
		if target, err = cache.ParseSize(size); err != nil {
			return err
		}
	}
	removed, bytes, err := s.Prune(target)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.inv.Stdout, "removed %d, %d bytes\n", removed, bytes)
	return nil
}
