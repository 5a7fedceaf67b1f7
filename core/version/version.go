// Package version knows which version this is and which upstream release it
// speaks the protocol of.
package version

// Version is this build's version.
const Version = "0.1.0"

// Protocol is the SystemTap release whose wire protocol and module ABI we
// speak. It must be dotted decimals: upstream aborts on anything else.
const Protocol = "5.6"

// Handover names the environment variable in which staprun tells stapio its
// version: the two are one program and an upgrade may come between them.
const Handover = "STAPBOX_HANDOVER"

// Interrupted names the environment variable in which staprun tells stapio that
// a signal to end came while it handed over.
const Interrupted = "STAPBOX_INTERRUPTED"
