package translate

import (
	"strings"

	"stapbox/core/script/token"
)

// What code costs whenever it runs, in sixteenths of a unit (stp.h): operators on
// integers, and the calls, conversions and copies whose work is bounded. A
// statement may hold thousands of them, and counts as one.
const (
	costOperator = 1
	costCall     = 16
	unitCost     = 16

	// A charge is written when as many units have gathered; a few of a
	// statement are left out, so that ordinary handlers pay nothing. In loops
	// and functions fewer are: what is left out there comes again and again.
	costCharge = 64 * unitCost
	costOnce   = 8 * unitCost
	costAgain  = 2 * unitCost
)

// work adds to what the code written so far costs.
func (b *body) work(cost int, tok *token.Token) {
	b.cost += cost
	if b.cost >= costCharge {
		b.charge(tok)
	}
}

// perhaps is capture for a part of an expression that may not run. The charges in it
// are for its own work; what is left of that is charged with the code around it,
// which runs whenever the charge does.
func (b *body) perhaps(f func()) string {
	outside := b.cost
	b.cost = 0
	text := b.capture(f)
	b.cost += outside
	return text
}

// settle charges what has gathered, unless it is little. It stands where control
// flow divides or joins: the code before has run as often as the charge.
func (b *body) settle(tok *token.Token) {
	least := costOnce
	if b.fn != nil || len(b.loops) > 0 {
		least = costAgain
	}
	if b.cost >= least {
		b.charge(tok)
	}
	b.cost = 0
}

func (b *body) charge(tok *token.Token) {
	b.line("if (stp_charge_at(c, %d, %s))\n%s\t%s", b.cost/unitCost, quote(where(tok)), strings.Repeat("\t", b.indent), b.goTo(b.onError))
	b.cost %= unitCost
}

// failedAt leaves when a function of the runtime has failed that does not know
// where it was called from.
func (b *body) failedAt(tok *token.Token) {
	b.line("if (stp_unlikely(c->error)) {")
	b.indent++
	b.line("c->where = %s;", quote(where(tok)))
	b.line("%s", b.goTo(b.onError))
	b.indent--
	b.line("}")
}
