// Stapbox is one executable that is every program of the SystemTap
// compile-server world: the name it is called by chooses the applet.
package main

import (
	"context"
	"fmt"
	"os"

	"stapbox/applets"
	"stapbox/core/invocation"
	"stapbox/core/setuid"
)

func main() {
	quiet := invocation.EndQuietly()
	caller, err := setuid.Enter(os.Args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "stapbox: ERROR: %v\n", err)
		os.Exit(1)
	}
	if len(os.Args) == 0 {
		fmt.Fprintln(os.Stderr, "stapbox: ERROR: called without a name (argc is 0)")
		os.Exit(1)
	}
	inv := invocation.FromProcess(os.Args[0], os.Args[1:], caller.Environ, quiet)
	inv.Umask = caller.Umask
	os.Exit(applets.Run(context.Background(), inv))
}
