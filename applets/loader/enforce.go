package loader

import (
	"errors"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"stapbox/core/kmod"
)

// rename gives the module a name that is free on this host (-R). A signature for
// the kernel is over the name too. Where the kernel wants one the module keeps
// both; elsewhere it loses both, because a kernel that knows the key refuses a
// false signature even where it takes none.
func (l *loader) rename(m *module) error {
	if kmod.Signed(m.image) {
		if rule, enforced := kmod.SignatureRule("/sys"); enforced {
			l.report.Warningf("Module '%s' is signed for the kernel, which loads no others (%s): ignoring -R.", m.name, rule)
			return nil
		}
		m.image = kmod.WithoutSignature(m.image)
	}
	name, err := kmod.Rename(m.image, m.name, os.Getpid())
	if errors.Is(err, kmod.ErrNameTooShort) {
		l.report.Warningf("Old module name '%s' is too short for renaming, ignoring -R.", name)
		return nil
	}
	if err == nil {
		m.name, m.renamed = name, true
	}
	return err
}

// renameTries is how often another name is tried when one is taken.
const renameTries = 4

// renameAgain gives the module a name that nobody can foresee: the process id is
// one that another container's may have too, or that somebody has waited for.
func (l *loader) renameAgain(m *module) error {
	name, err := kmod.Rename(m.image, m.name, 10000+rand.IntN(90000))
	if err == nil {
		m.name = name
	}
	return err
}

// explainSignature says what can be done where the kernel has refused a module
// for its signature.
func (l *loader) explainSignature(m *module, err error) {
	rule, enforced := kmod.SignatureRule("/sys")
	switch {
	case !errors.Is(err, unix.EKEYREJECTED) && !errors.Is(err, unix.ENOKEY) && !errors.Is(err, unix.EBADMSG) &&
		!(errors.Is(err, unix.EPERM) && enforced):
	case !kmod.Signed(m.image):
		l.report.Errorf("The kernel loads only modules that are signed with a key it trusts (%s), and this one is not signed for it.", rule)
		l.report.Hintf("have it made by a compile server with a machine owner key (MOK), see stap-serverd --mok-dir, or sign it with stap-sign-module --mok")
	default:
		l.report.Errorf("The kernel does not take the signature at the end of the module: no key it trusts made it, or the module was changed since.")
		l.report.Hintf("mokutil --list-enrolled shows the keys of this machine's owner")
	}
}
