// Package applets is the dispatch table: which names the box answers to and
// which package does their work. Applets import core, never each other.
package applets

import (
	"context"
	"os"
	"path/filepath"

	"stapbox/applets/box"
	"stapbox/applets/certs"
	"stapbox/applets/client"
	"stapbox/applets/container"
	"stapbox/applets/initmanager"
	"stapbox/applets/loader"
	"stapbox/applets/relay"
	"stapbox/applets/relay/merge"
	"stapbox/applets/relay/stapsh"
	"stapbox/applets/server"
	"stapbox/applets/service"
	"stapbox/core/invocation"
)

// Table is every name the box answers to.
var Table = []box.Applet{
	{Name: "stap", Summary: "compile a script, here or on a server, and run it", Main: client.Main},
	{Name: "stap-client", Summary: "compile a script on a server and run it", Main: client.Main},
	{Name: "stap-find-servers", Summary: "list compile servers", Main: client.Main},
	{Name: "stap-serverd", Summary: "compile and sign scripts for other hosts", Main: server.Main},
	{Name: "stap-server", Summary: "start, stop and watch compile servers", Main: service.Main},
	{Name: "stap-start-server", Summary: "start a compile server", Main: service.Legacy},
	{Name: "stap-stop-server", Summary: "stop a compile server", Main: service.Legacy},
	{Name: "stap-find-or-start-server", Summary: "start a compile server unless there is one", Main: service.Legacy},
	{Name: "stap-gen-cert", Summary: "make the key and the certificate of a compile server", Main: certs.Generate},
	{Name: "stap-sign-module", Summary: "sign a module by hand, for staprun and for the kernel", Main: certs.Sign},
	{Name: "stap-authorize-cert", Summary: "put a certificate into a trust store", Main: certs.Authorize},
	{Name: "stap-authorize-server-cert", Summary: "believe a compile server", Main: certs.Authorize},
	{Name: "stap-authorize-signing-cert", Summary: "believe a signer of modules", Main: certs.Authorize},
	{Name: "stap-add-server-cert", Summary: "the oldest name of stap-authorize-cert", Main: certs.Authorize},
	{Name: "staprun", Summary: "verify and load a module, then hand over to stapio", Main: loader.Main},
	{Name: "stapio", Summary: "relay a loaded module's output", Main: relay.Main},
	{Name: "stap-merge", Summary: "bring the files of bulk mode into one stream", Main: merge.Main},
	{Name: "systemtap", Summary: "run scripts as a service", Main: initmanager.Main},
	{Name: "systemtap-service", Summary: "another name of systemtap", Main: initmanager.Main},
	{Name: "stapsh", Summary: "take a module from another host and run it", Main: stapsh.Main},
}

// boxName is the name under which the box itself runs: stapbox APPLET ...
const boxName = "stapbox"

// Run finds the applet for the invocation's name and runs it.
func Run(ctx context.Context, inv *invocation.Invocation) int {
	inv.Name = filepath.Base(inv.Name)
	if inv.Name == boxName && container.Is(inv.Args, os.Getpid()) {
		return container.Main(ctx, inv)
	}
	for range 2 {
		for _, a := range Table {
			if a.Name == inv.Name {
				return a.Main(ctx, inv)
			}
		}
		if inv.Name != boxName || len(inv.Args) == 0 || !box.IsApplet(Table, inv.Args[0]) {
			break
		}
		inv.Name, inv.Args = inv.Args[0], inv.Args[1:]
	}
	return box.Main(ctx, inv, Table)
}
