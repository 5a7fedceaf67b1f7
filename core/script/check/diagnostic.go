package check

import "stapbox/core/script/diag"

// Diagnostic is an error or warning with the places it is about.
type Diagnostic = diag.Diagnostic
