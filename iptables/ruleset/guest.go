// SPDX-License-Identifier: Apache-2.0

package ruleset

import "slices"

// Guest is a rule of ours in a chain that others use too, which is made, with
// the jumps to it, where it is missing.
type Guest struct {
	// Rule is the rule, and the chain that it is in. Nobody else writes the
	// same, so that it can be told whose it is.
	Rule Jump
	// Same is a rule of others that does the same. Where it is, Rule need not
	// be added.
	Same Rule
	// Jumps lead to the chain. They are the same rules as the others'.
	Jumps []Jump
	// Others is a chain whose existence shows that others use the chain still,
	// though it may be empty.
	Others ChainKey
	// Wanted is false where the rule is to be removed.
	Wanted bool
}

// host is what the kernel has of a chain that a Guest is in.
type host struct {
	jumps []Jump
	// rules is the number of rules that are not ours.
	rules int
	// same is set where one of them makes ours unnecessary.
	same bool
}

// guestOf returns the guest whose chain k is.
func (r *reader) guestOf(k ChainKey) *Guest {
	i := slices.IndexFunc(r.guests, func(g Guest) bool { return g.Rule.ChainKey == k })
	if i < 0 {
		return nil
	}
	return &r.guests[i]
}

// guestChain notes a chain that matters for a guest.
func (r *reader) guestChain(k ChainKey) {
	for _, g := range r.guests {
		if k == g.Others {
			r.kernel.others[k] = true
		}
	}
	if r.guestOf(k) != nil {
		r.kernel.hosts[k] = &host{}
	}
}

// guestRule notes a rule that matters for a guest, and tells whether that is
// all that it can be.
func (r *reader) guestRule(k ChainKey, rule Rule) bool {
	if g := r.guestOf(k); g != nil {
		if rule == g.Rule.Rule {
			r.kernel.jumps[k] = append(r.kernel.jumps[k], rule)
			return true
		}
		h := r.kernel.hosts[k]
		h.rules++
		h.same = h.same || rule == g.Same
		return false
	}
	g := r.guestOf(ChainKey{k.Table, rule.Target()})
	if g == nil || !r.builtin[k] {
		return false
	}
	h := r.kernel.hosts[g.Rule.ChainKey]
	h.jumps = append(h.jumps, Jump{ChainKey: k, Rule: rule})
	return true
}

// planGuests plans what is missing of the guests: their chains, the rules, and
// the jumps to the chains.
func (e *Engine) planGuests(p *plan) {
	for _, g := range e.guests {
		k := g.Rule.ChainKey
		h := e.kernel.hosts[k]
		if !g.Wanted {
			continue
		}
		if h == nil {
			p.create = append(p.create, k)
			h = &host{}
		}
		if !h.same && !slices.Contains(e.kernel.jumps[k], g.Rule.Rule) {
			p.insert = append(p.insert, g.Rule)
		}
		for _, j := range g.Jumps {
			if !slices.Contains(h.jumps, j) {
				p.insert = append(p.insert, j)
			}
		}
	}
}

// planLeaving plans the removal of a guest's chain where nobody else uses it. On
// Clean that is so even if there is the same rule as ours: with no sign of
// others, it is a predecessor's.
func (e *Engine) planLeaving(p *plan) {
	for _, g := range e.guests {
		k := g.Rule.ChainKey
		h := e.kernel.hosts[k]
		if h == nil || g.Wanted || e.kernel.others[g.Others] || h.rules > 0 && !(e.cleaning && h.same && h.rules == 1) {
			continue
		}
		p.remove = slices.DeleteFunc(p.remove, func(j Jump) bool { return j.ChainKey == k }) // goes with its chain
		p.remove = append(p.remove, h.jumps...)
		p.drop = append(p.drop, k)
	}
}
