// SPDX-License-Identifier: Apache-2.0

package idiom

import (
	"slices"

	"fairlead/iptables/dispatch"
	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// Portal is a kind of destination that has rules in a chain that Services share.
type Portal struct {
	// Root is the chain, and Prefix how the names of the chains below it start.
	Root   ruleset.ChainKey
	Prefix string
	// Ports is set where destinations have a port and no address.
	Ports bool
	// Match is what rules that lead to chains below the root match besides, with a
	// space at the end.
	Match string
}

// Place is what one owner has in the chain of a portal for one destination: rules,
// or none to keep the place.
type Place struct {
	In    int // the number of the portal
	Key   dispatch.Key
	Rules []ruleset.Rule
}

// Portals are the rules of all Services in the chains that they share: the chain
// of each portal, and what is below it, is a tree.
type Portals struct {
	kinds []Portal
	trees []*dispatch.Tree
}

// NewPortals returns portals for a family. Those of one chain are in it in their
// order.
func NewPortals(f model.Family, kinds ...Portal) *Portals {
	out := &Portals{kinds: kinds}
	for _, k := range kinds {
		bits := 32
		switch {
		case k.Ports:
			bits = 0
		case f == model.IPv6:
			bits = 128
		}
		out.trees = append(out.trees, dispatch.New(bits, k.Prefix, k.Match))
	}
	return out
}

// Replace puts what an owner has now in the place of what it had.
func (p *Portals) Replace(owner string, old, now []Place) {
	for _, o := range old {
		if !slices.ContainsFunc(now, func(n Place) bool { return n.In == o.In && n.Key == o.Key }) {
			p.trees[o.In].Remove(o.Key, owner)
		}
	}
	for _, n := range now {
		p.trees[n.In].Put(n.Key, owner, n.Rules)
	}
}

// Len returns how many places a portal has.
func (p *Portals) Len(portal int) int { return p.trees[portal].Len() }

// Stage stages the chains that have changed, and the roots in again. last
// returns the rules that end a root.
func (p *Portals) Stage(staged map[ruleset.ChainKey]*ruleset.Chain, again map[ruleset.ChainKey]bool, last func(ruleset.ChainKey) []ruleset.Rule) {
	for i, tree := range p.trees {
		root := p.kinds[i].Root
		tree.Changed(func(name string, rules []ruleset.Rule, ok bool) {
			switch key := (ruleset.ChainKey{Table: root.Table, Name: name}); {
			case name == "":
				again[root] = true
			case ok:
				staged[key] = &ruleset.Chain{Rules: rules}
			default:
				staged[key] = nil
			}
		})
	}
	for root := range again {
		c := &ruleset.Chain{}
		for i, tree := range p.trees {
			if p.kinds[i].Root == root {
				c.Rules = append(c.Rules, tree.Root()...)
			}
		}
		c.Rules = append(c.Rules, last(root)...)
		staged[root] = c
	}
}
