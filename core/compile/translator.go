package compile

import "stapbox/core/stapopts"

// translator is the one for a request: the client's choice as far as the
// server's allows, and below stapdev never one whose modules are not signed
// (decision T6).
func (s *Service) translator(o *stapopts.Options) (string, error) {
	own, asked := s.Translator, o.Translator
	if own == "" {
		own = stapopts.TranslatorBuiltin
	}
	if asked == "" {
		asked = own
	}
	if own != stapopts.TranslatorAuto && asked != own {
		return "", refuse("--translator=%s is refused: this server has --translator=%s, and only with --translator=auto may clients choose", asked, own)
	}
	if asked == stapopts.TranslatorBuiltin || !o.Unprivileged() || s.SignSystemtap {
		return asked, nil
	}
	if o.Translator == stapopts.TranslatorSystemtap || own == stapopts.TranslatorSystemtap {
		return "", refuse("Modules of SystemTap are not signed for %s on this server: its option --sign-systemtap would allow it", o.Privilege)
	}
	return stapopts.TranslatorBuiltin, nil
}
