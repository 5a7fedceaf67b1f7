package client

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"stapbox/core/stapopts"
	"stapbox/core/trust"
)

// findServers is stap-find-servers [--all]: one line per compatible server,
// "HOST ADDRESS PORT 'sysinfo=RELEASE ARCH'". Other words are ignored.
func (c *client) findServers(ctx context.Context) int {
	c.opts = &stapopts.Options{}
	s := newServers(c)
	list := s.compatible(ctx)
	if slices.Contains(c.inv.Args, "--all") {
		list = s.findOnline(ctx)
	}
	var printed []string
	for _, r := range list {
		line := fmt.Sprintf("%s %s %d 'sysinfo=%s'", clean(r.host), r.addr, r.port, strings.ReplaceAll(r.sysinfo, "'", "?"))
		if !slices.Contains(printed, line) {
			printed = append(printed, line)
			fmt.Fprintln(c.inv.Stdout, line)
		}
	}
	if len(printed) == 0 {
		return 1
	}
	return 0
}

// stapClient is stap-client [--server=SPEC]... [--ssl=DIR]... STAP-ARGS: stap
// with a server, and with more trust stores, searched first and in this order.
func (c *client) stapClient(ctx context.Context) int {
	var args, use []string
	for i, a := range c.inv.Args {
		if a == "--" {
			args = append(args, c.inv.Args[i:]...)
			break
		}
		name, value, given := strings.Cut(a, "=")
		if name != "--server" && name != "--ssl" {
			args = append(args, a)
			continue
		}
		if !given || value == "" {
			c.say("%s: ERROR: Missing argument to %s", c.inv.Name, name)
			return 1
		}
		if name == "--server" {
			use = append(use, "--use-server="+value)
			continue
		}
		dir := c.path(value)
		c.extra = append(c.extra, store{dir, trust.Rules{Owners: []int{c.uid, 0}, Base: filepath.Dir(dir)}})
	}
	if len(use) == 0 {
		use = []string{"--use-server"}
	}
	c.inv.Args = append(use, args...)
	if c.run(ctx) != 0 {
		return 1
	}
	return 0
}
