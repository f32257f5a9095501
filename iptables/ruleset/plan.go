// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"iter"
	"maps"
	"slices"
)

// plan is the difference between what is wanted and what the kernel has.
type plan struct {
	// write are the chains to create or replace. A shared chain is one of no
	// unit.
	write map[ChainKey]*Chain
	drop  []ChainKey
	// trim are the chains that lose rules and otherwise stay.
	trim map[ChainKey]trim
	// unsettled are the chains that wait for Options.Settle.
	unsettled map[ChainKey]bool
	// create are chains to make that are not ours alone.
	create []ChainKey
	// insert and remove are in the order in which they are to be done.
	insert, remove []Jump
	// deferred are chains that are left as they are because a removal would be
	// needed and is not possible or not allowed now.
	deferred []ChainKey
}

// trim is the removal of rules from a chain.
type trim struct {
	gone []Rule
	left *Chain
}

func (p *plan) empty() bool {
	return len(p.write)+len(p.drop)+len(p.trim)+len(p.create)+len(p.insert)+len(p.remove) == 0
}

// suspects returns the chains that may differ from what is wanted.
func (e *Engine) suspects() iter.Seq[ChainKey] {
	if !e.all {
		return maps.Keys(e.dirty)
	}
	return func(yield func(ChainKey) bool) {
		for k := range e.desired {
			if !yield(k) {
				return
			}
		}
		for k := range e.kernel.chains {
			if e.desired[k] == nil && !yield(k) {
				return
			}
		}
	}
}

// plan compares the chains that may differ, and all jumps.
func (e *Engine) plan(o Options) *plan {
	prune := o.Prune
	p := &plan{write: map[ChainKey]*Chain{}, trim: map[ChainKey]trim{}, unsettled: map[ChainKey]bool{}}
	for k := range e.suspects() {
		want, ok := e.wanted(k)
		have, exists := e.kernel.chains[k]
		switch {
		case ok && !exists:
			p.write[k] = want
		case ok && want == have:
		case ok && want.same(have):
			e.kernel.chains[k] = want // one copy of the text is enough
		case ok:
			e.planChange(p, k, want, have, prune)
		case !ok && exists && e.kernel.pinned[k]:
			p.deferred = append(p.deferred, k) // until nothing leads to it
		case !ok && exists && (e.cleaning || !e.owners.relics[k]):
			if prune {
				p.drop = append(p.drop, k)
			} else {
				p.deferred = append(p.deferred, k)
			}
		}
	}
	e.keepReferred(p)
	e.settle(p, o)
	e.planJumps(p, prune)
	if prune {
		e.planLeaving(p)
	}
	slices.SortFunc(p.drop, compareKeys)
	return p
}

// keepReferred defers the removal of chains to which a chain leads that stays
// as it is: one that rules of others lead to, or one of a refused unit.
func (e *Engine) keepReferred(p *plan) {
	if len(p.drop) == 0 || len(e.kernel.pinned)+len(e.refused.units) == 0 {
		return
	}
	going := map[ChainKey]bool{}
	for _, k := range p.drop {
		going[k] = true
	}
	var keep func(from ChainKey)
	keep = func(from ChainKey) {
		for _, r := range e.kernel.rules(from) {
			if to := (ChainKey{from.Table, r.Target()}); going[to] {
				delete(going, to)
				p.deferred = append(p.deferred, to)
				keep(to)
			}
		}
	}
	for k := range e.kernel.pinned {
		if e.desired[k] == nil {
			keep(k)
		}
	}
	if len(e.refused.units) > 0 {
		for k, c := range e.desired {
			if e.refused.units[c.Unit] != nil {
				keep(k)
			}
		}
	}
	p.drop = slices.DeleteFunc(p.drop, func(k ChainKey) bool { return !going[k] })
}

// planChange plans the replacement of a chain that exists. While nothing may
// be removed, a shared chain only gains rules, and a chain of a unit is left
// alone if it would lose a target: an endpoint, in the end.
func (e *Engine) planChange(p *plan, k ChainKey, want, have *Chain, prune bool) {
	if prune {
		e.planTrim(p, k, want, have)
		return
	}
	if want.Unit != "" {
		if containsAll(targets(want.Rules), targets(have.Rules)) {
			p.write[k] = want
		} else {
			p.deferred = append(p.deferred, k)
		}
		return
	}
	if kept := union(want.Rules, have.Rules); len(kept) > len(want.Rules) {
		p.deferred = append(p.deferred, k)
		if containsAll(setOf(have.Rules), setOf(want.Rules)) {
			return
		}
		want = &Chain{Rules: kept}
	}
	p.write[k] = want
}

// planTrim plans a change as the removal of rules, where it is one or where that
// is enough for a while. On the nft variant the kernel need not validate its
// rules for a removal, which at 10,000 Services takes 350 ms and the removal 19.
func (e *Engine) planTrim(p *plan, k ChainKey, want, have *Chain) {
	if e.trims && !slices.ContainsFunc(have.Rules, Rule.broken) {
		if gone, ok := surplus(have.Rules, want.Rules); ok {
			p.trim[k] = trim{gone, want}
			return
		}
		if gone, left, ok := astray(have, want); ok && want.Patient {
			p.unsettled[k] = true
			if len(gone) > 0 {
				p.trim[k] = trim{gone, left}
			}
			return
		}
	}
	p.write[k] = want
}

// settle lets chains wait no longer that could, if they are to, or if the kernel
// has to validate the rules of their table anyway.
func (e *Engine) settle(p *plan, o Options) {
	additions := map[Table]bool{}
	for k := range p.write {
		additions[k.Table] = true
	}
	for k := range p.unsettled {
		if o.Settle || additions[k.Table] {
			p.write[k], _ = e.wanted(k)
			delete(p.unsettled, k)
			delete(p.trim, k)
		}
	}
}

// surplus returns the rules that have has beyond want, if that is all the
// difference, and each can be told from those that stay.
func surplus(have, want []Rule) (gone []Rule, ok bool) {
	left := want
	for _, r := range have {
		if len(left) > 0 && left[0] == r {
			left = left[1:]
		} else {
			gone = append(gone, r)
		}
	}
	stay := setOf(want)
	return gone, len(left) == 0 && !slices.ContainsFunc(gone, func(r Rule) bool { return stay[r] })
}

// astray returns the rules of have whose targets want does not have any more,
// and have without them; ok is false where they are not all that matters, for
// the targets that are left are not want's, in its order.
func astray(have, want *Chain) (gone []Rule, left *Chain, ok bool) {
	wanted := targets(want.Rules)
	left = &Chain{Unit: want.Unit, Patient: want.Patient}
	for _, r := range have.Rules {
		if wanted[r.end()] {
			left.Rules = append(left.Rules, r)
		} else {
			gone = append(gone, r)
		}
	}
	return gone, left, slices.EqualFunc(left.Rules, want.Rules, func(a, b Rule) bool {
		return a == b || a.conditional() && b.conditional() && a.end() == b.end()
	})
}

// planJumps plans the missing and the surplus rules in built-in chains.
func (e *Engine) planJumps(p *plan, prune bool) {
	surplus := map[ChainKey][]Rule{}
	for k, rules := range e.kernel.jumps {
		surplus[k] = slices.Clone(rules)
	}
	var last []Jump
	for _, j := range e.wantedJumps() {
		if i := slices.Index(surplus[j.ChainKey], j.Rule); i >= 0 {
			surplus[j.ChainKey] = slices.Delete(surplus[j.ChainKey], i, i+1)
		} else if j.Last {
			last = append(last, j)
		} else {
			p.insert = append(p.insert, j)
		}
	}
	e.planGuests(p)
	slices.Reverse(p.insert) // each goes above those before it
	p.insert = append(p.insert, last...)
	if !prune {
		return
	}
	for _, g := range e.guests {
		if rules := surplus[g.Rule.ChainKey]; g.Wanted && len(rules) > 0 {
			surplus[g.Rule.ChainKey] = rules[1:]
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(surplus), compareKeys) {
		for _, r := range surplus[k] {
			p.remove = append(p.remove, Jump{ChainKey: k, Rule: r})
		}
	}
}

// union returns a followed by what b has beyond it.
func union(a, b []Rule) []Rule {
	in := setOf(a)
	out := slices.Clone(a)
	for _, r := range b {
		if !in[r] {
			out = append(out, r)
		}
	}
	return out
}

func setOf(rules []Rule) map[Rule]bool {
	s := make(map[Rule]bool, len(rules))
	for _, r := range rules {
		s[r] = true
	}
	return s
}

func targets(rules []Rule) map[string]bool {
	s := map[string]bool{}
	for _, r := range rules {
		s[r.end()] = true
	}
	return s
}

func containsAll[K comparable](set, subset map[K]bool) bool {
	for k := range subset {
		if !set[k] {
			return false
		}
	}
	return true
}
