package compile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"stapbox/core/modsig"
	"stapbox/core/mok"
)

// chooseMOK finds the machine owner key for a client whose kernel loads signed
// modules only (server-client 8.5). Where no module is asked for none is needed.
// A module that nobody could load is not built: without a key in common the
// client gets the certificate of one of the server's keys, to enrol it.
func (s *Service) chooseMOK(r *request) error {
	if len(r.wire.MOK) == 0 || r.opts.LastPass < 4 || r.opts.List != 0 {
		return nil
	}
	var keys []*mok.Key
	if s.MOKs != nil {
		keys = s.MOKs()
	}
	var complaints []string
	for _, fingerprint := range r.wire.MOK {
		if fingerprint == mok.Missing {
			continue
		}
		if !mok.IsFingerprint(fingerprint) {
			complaints = append(complaints, fmt.Sprintf("MOK fingerprint value '%.100s' isn't in the correct format", oneLine(fingerprint)))
			continue
		}
		for _, k := range keys {
			if r.mok == nil && k.Is(fingerprint) {
				r.mok = k
			}
		}
	}
	s.complain(r, fewer(complaints))
	switch {
	case r.mok != nil && r.opts.Guru && !s.MOKGuru:
		r.mok = nil
		return refuse("ERROR: -g is refused by the rule that this server signs no guru-mode modules for kernels with a machine owner key (MOK); its option --mok-guru would allow it")
	case r.mok != nil && len(r.opts.ClientTapsets) > 0 && !s.MOKGuru:
		// Library files may hold embedded C, and call functions for guru mode,
		// without -g.
		r.mok = nil
		return refuse("ERROR: -I is refused by the rule that this server signs no guru-mode modules for kernels with a machine owner key (MOK): libraries may do what scripts need -g for; its option --mok-guru would allow it")
	case r.mok != nil:
		return nil
	}
	const none = "Server: No matching machine owner key (MOK) available on the server to sign the\n module.\n"
	if len(keys) == 0 {
		return refuse("%s", none+"Server: The server has no machine owner keys (MOK) in common with this\nsystem. The server could not generate a new MOK.")
	}
	r.offer = keys[0].Certificate.Raw
	return refuse("%s", none+"Server: The server has no machine owner key (MOK) in common with this\nsystem. Use the following command to import a server MOK into this\nsystem, then reboot:\n\n\t# sudo mokutil --import "+mok.CertFile)
}

// mokInfluence names the key that signs for influences: its certificate, which
// the signature names, and its fingerprint, which a message has.
func mokInfluence(k *mok.Key) []string {
	if k == nil {
		return nil
	}
	sum := sha256.Sum256(k.Certificate.Raw)
	return []string{k.Fingerprint(), hex.EncodeToString(sum[:])}
}

// signForKernel appends the kernel's signature. Our own, in the file beside, is
// over the whole file and so made after it.
func (s *Service) signForKernel(r *request, module []byte) ([]byte, error) {
	if r.mok == nil {
		return module, nil
	}
	signed, err := modsig.Append(module, r.mok.Certificate, r.mok.Signer)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(&r.stderr, "Module signed with MOK, fingerprint %q\n", r.mok.Fingerprint())
	return signed, nil
}
