// Package diag holds the errors and warnings of passes 1 and 2 and renders
// them the way stap 5.6 does.
package diag

import "stapbox/core/script/token"

// Diagnostic is one error or warning.
type Diagnostic struct {
	Message string
	Tok     *token.Token
	Tok2    *token.Token
}

// Error is the message alone.
func (d *Diagnostic) Error() string { return d.Message }
