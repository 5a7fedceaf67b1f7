package client

import (
	"fmt"

	"stapbox/core/backend"
)

// standardTapset adds the directory of SYSTEMTAP_TAPSET behind those of -I, where
// SystemTap has its library. Below stapdev a script has the library of this
// program and no other.
func (c *client) standardTapset() error {
	dir := c.inv.Getenv(backend.TapsetVariable)
	switch {
	case dir == "" || c.opts.ClientOptions:
		return nil
	case c.opts.Unprivileged():
		return fmt.Errorf("ERROR: %s must not be set when --privilege=%s is specified", backend.TapsetVariable, c.opts.Privilege)
	}
	c.opts.Tapsets = append(c.opts.Tapsets, dir)
	return nil
}
