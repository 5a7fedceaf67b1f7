package client

import "stapbox/core/compile"

// builtin is the translator of this program.
func builtin() compile.Backend { return compile.Builtin{} }
