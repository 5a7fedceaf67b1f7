package wire

// LocaleNames are the variables a client sends with its request, in the order
// it sends them.
var LocaleNames = []string{
	"LANG", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME",
}
