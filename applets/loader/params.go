package loader

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"stapbox/core/kmod"
)

// maxParamBytes bounds all parameters together, joined as the kernel gets them.
// It leaves room for 63 strings of the usual length.
const maxParamBytes = 16 << 10

// joinParams makes the text for finit_module(2) of the words after MODULE, behind
// the parameter that every module has. The kernel splits the text at white space
// outside double quotes, takes the quotes away and knows no escape:
//
//	g=7           as it stands
//	h="a b"       as it stands: the caller has quoted it for the kernel
//	h=a b         h="a b": the caller's shell has taken the quotes
//	h="a  h=a"b   refused: what the kernel made of it is not what was meant
//
// Each word is one parameter to the kernel too, so none can add another.
func joinParams(bufferMB int, words []string) (string, error) {
	text := fmt.Sprintf("_stp_bufsize=%d", bufferMB)
	for _, w := range words {
		p, err := quoteParam(w)
		if err != nil {
			return "", err
		}
		text += " " + p
	}
	if len(text) > maxParamBytes {
		return "", fmt.Errorf("Module parameters of %d bytes are more than the %d allowed.", len(text), maxParamBytes)
	}
	return text, nil
}

func quoteParam(word string) (string, error) {
	// The kernel repeats parameters it does not know in its log.
	if strings.ContainsFunc(word, unicode.IsControl) {
		return "", fmt.Errorf("Module parameter %q has control characters.", word)
	}
	name, value, ok := strings.Cut(word, "=")
	if !ok || name == "" || hasSpace(name) || strings.Contains(name, `"`) {
		return "", fmt.Errorf("Module parameter %q is not NAME=VALUE.", word)
	}
	inner := value
	if len(value) >= 2 && strings.HasPrefix(value, `"`) && strings.HasSuffix(value, `"`) {
		inner = value[1 : len(value)-1]
	}
	switch {
	case strings.Contains(inner, `"`):
		return "", fmt.Errorf("Module parameter %q has a double quote, which the kernel cannot pass on.", word)
	case inner != value || !hasSpace(value):
		return word, nil
	}
	return name + `="` + value + `"`, nil
}

// checkParams refuses what the kernel would ignore: a parameter that the module
// does not have. To the kernel '-' in a name is '_'.
func checkParams(image []byte, words []string) error {
	if len(words) == 0 {
		return nil
	}
	known, err := kmod.Parameters(image)
	if err != nil {
		return err
	}
	for _, w := range words {
		name, _, _ := strings.Cut(w, "=")
		if !slices.Contains(known, strings.ReplaceAll(name, "-", "_")) {
			return fmt.Errorf("the script has no global scalar %q, which %q is to set", name, w)
		}
	}
	return nil
}

// hasSpace finds white space as the kernel sees it: bytes, in Latin-1, so that
// 0xa0 counts, which is also the second byte of some letters in UTF-8.
func hasSpace(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c == ' ' || c >= 9 && c <= 13 || c == 0xa0 {
			return true
		}
	}
	return false
}
