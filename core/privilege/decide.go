package privilege

import "fmt"

// Signature is what is known about a module's signature.
type Signature int

// The outcomes of a signature check, from worst to best. The zero value is the
// worst, so that a forgotten check cannot allow anything.
const (
	Altered    Signature = iota // a trusted key signed something else, or the signer or module is revoked
	CheckError                  // the signature or the store could not be used
	Untrusted                   // unsigned, or signed by nobody we trust
	Verified                    // signed by a trusted signer
)

// String names the outcome for the audit log.
func (s Signature) String() string {
	switch s {
	case Verified:
		return "ok"
	case Untrusted:
		return "untrusted"
	case CheckError:
		return "error"
	}
	return "altered"
}

// Verdict is the loader's decision about one module.
type Verdict struct {
	Allow bool
	// Credentials are sent to an allowed module, which checks them against the
	// level it was compiled for.
	Credentials Level
	// Rule names the row of the decision table, for the audit log: "a" to "g".
	Rule string
	// Reason is the text for the user when the module is refused.
	Reason string
	// Hint is a cure, or "".
	Hint string
}

// Module is what the decision needs to know about a module.
type Module struct {
	Path      string // as the messages show it
	Signature Signature
	Why       string // what the signature check found, "" if there is nothing to say
	Required  Level
	// Blessed is nil if the module lies in the blessed directory and the rules
	// for it hold, otherwise the reason why not (see BlessedError).
	Blessed error
}

// Decide is the decision table of loader-relay 4.2 with decisions L1 and L2 of
// the design. It looks at nothing but its arguments.
//
//	row  signature    user                    module            verdict
//	a    altered      anyone, also root       anywhere          refuse
//	b    any other    root                    anywhere          allow, 0xE
//	c    any other    stapdev and stapusr     anywhere          allow, 0xE
//	d    verified     level sufficient        anywhere          allow, his levels
//	e    verified     level insufficient      anywhere          refuse
//	f    untrusted    stapusr or stapsys      blessed           allow, 0xE
//	g    untrusted    others                  elsewhere         refuse
func Decide(u User, m Module) Verdict {
	levels := u.Levels()
	switch {
	case m.Signature == Altered:
		v := Verdict{Rule: "a", Reason: fmt.Sprintf("Unable to verify the signed module %s. It may have been altered since it was created.", m.Path)}
		if m.Why != "" {
			v.Reason += "\n  " + m.Why
		}
		return v
	case u.UID == 0:
		return Verdict{Allow: true, Credentials: All, Rule: "b"}
	case u.In(GroupDev) && u.In(GroupUsr):
		return Verdict{Allow: true, Credentials: All, Rule: "c"}
	}
	if u.In(GroupDev) { // without stapusr: L2
		levels = None
		if u.In(GroupSys) {
			levels = StapSys | StapUsr
		}
	}
	if m.Signature == Verified {
		if levels != None && levels.Contains(m.Required) {
			return Verdict{Allow: true, Credentials: levels, Rule: "d"}
		}
		v := Verdict{Rule: "e", Reason: fmt.Sprintf("Your privilege credentials (%s) are insufficient to load the module %s (%s required)", levels, m.Path, m.Required)}
		if levels == None {
			v.Reason += "\n" + normalUser
		}
		v.Hint = missingGroup(u, m.Required)
		return v
	}
	if m.Blessed == nil && (u.In(GroupUsr) || u.In(GroupSys)) {
		return Verdict{Allow: true, Credentials: All, Rule: "f"}
	}
	v := Verdict{Rule: "g"}
	if m.Blessed != nil {
		v.Reason = m.Blessed.Error()
	} else {
		v.Reason = normalUser
	}
	v.Reason += fmt.Sprintf("\nUnable to verify the signature for the module %s.", m.Path)
	if !u.In(GroupUsr) {
		v.Hint = missingGroup(u, StapUsr)
	}
	return v
}

const normalUser = `You are trying to run systemtap as a normal user.
You should either be root, or be part of group "stapusr" and possibly the groups "stapsys" or "stapdev".`

// missingGroup names the group that would have allowed what was refused.
func missingGroup(u User, required Level) string {
	switch {
	case u.In(GroupDev) && !u.In(GroupUsr):
		return `group "stapdev" counts only together with group "stapusr"`
	case required == StapDev:
		return `the module needs membership of the groups "stapusr" and "stapdev"`
	case required == StapSys:
		return `the module needs membership of group "stapsys"`
	}
	return `the module needs membership of group "stapusr"`
}
