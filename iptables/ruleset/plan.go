// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"maps"
	"slices"
)

// plan is the difference between what is wanted and what the kernel has.
type plan struct {
	// write are the chains to create or replace. A shared chain is one of no
	// unit.
	write map[ChainKey]*Chain
	drop  []ChainKey
	// create are chains to make that are not ours alone.
	create []ChainKey
	// insert and remove are in the order in which they are to be done.
	insert, remove []Jump
	// deferred are chains that are left as they are because a removal would be
	// needed and is not possible or not allowed now.
	deferred []ChainKey
}

func (p *plan) empty() bool {
	return len(p.write)+len(p.drop)+len(p.create)+len(p.insert)+len(p.remove) == 0
}

// plan compares the chains in dirty, and all jumps.
func (e *Engine) plan(prune bool) *plan {
	p := &plan{write: map[ChainKey]*Chain{}}
	for k := range e.dirty {
		want, ok := e.wanted(k)
		have, exists := e.kernel.chains[k]
		switch {
		case ok && !exists:
			p.write[k] = want
		case ok && !slices.Equal(want.Rules, have):
			e.planChange(p, k, want, have, prune)
		case !ok && exists && !e.kernel.pinned[k] && (e.cleaning || !e.owners.relics[k]):
			if prune {
				p.drop = append(p.drop, k)
			} else {
				p.deferred = append(p.deferred, k)
			}
		}
	}
	e.keepReferred(p)
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
		for _, r := range e.kernel.chains[from] {
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
func (e *Engine) planChange(p *plan, k ChainKey, want *Chain, have []Rule, prune bool) {
	if prune {
		p.write[k] = want
		return
	}
	if want.Unit != "" {
		if containsAll(targets(want.Rules), targets(have)) {
			p.write[k] = want
		} else {
			p.deferred = append(p.deferred, k)
		}
		return
	}
	if kept := union(want.Rules, have); len(kept) > len(want.Rules) {
		p.deferred = append(p.deferred, k)
		if containsAll(setOf(have), setOf(want.Rules)) {
			return
		}
		want = &Chain{Rules: kept}
	}
	p.write[k] = want
}

// planJumps plans the missing and the surplus rules in built-in chains.
func (e *Engine) planJumps(p *plan, prune bool) {
	surplus := map[ChainKey][]Rule{}
	for k, rules := range e.kernel.jumps {
		surplus[k] = slices.Clone(rules)
	}
	for _, j := range e.jumps {
		if i := slices.Index(surplus[j.ChainKey], j.Rule); i >= 0 {
			surplus[j.ChainKey] = slices.Delete(surplus[j.ChainKey], i, i+1)
		} else {
			p.insert = append(p.insert, j)
		}
	}
	e.planGuests(p)
	slices.Reverse(p.insert) // each goes above those before it
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
			p.remove = append(p.remove, Jump{k, r})
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
		s[r.Target()] = true
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
