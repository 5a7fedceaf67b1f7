package box

import (
	"context"
	"os"

	"stapbox/core/doctor"
	"stapbox/core/getopt"
)

func doctorSpec() getopt.Spec {
	return getopt.Spec{Defs: []getopt.Def{{Long: "json"}, {Long: "online"}}}
}

// examine runs the doctor on this host.
func (b *box) examine(ctx context.Context, asJSON, online bool) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	a := doctor.Asker{Self: self, Data: b.dataDir(), Path: b.inv.Getenv("PATH"), Online: online}
	for _, applet := range b.table {
		a.Names = append(a.Names, applet.Name)
	}
	return b.report(doctor.Examine(doctor.Look(ctx, a)), asJSON)
}

func (b *box) report(all []doctor.Finding, asJSON bool) error {
	if doctor.Refused(all) {
		b.status = exitError
	}
	if asJSON {
		return doctor.WriteJSON(b.inv.Stdout, all)
	}
	doctor.WriteText(b.inv.Stdout, all)
	return nil
}
