// SPDX-License-Identifier: Apache-2.0

package ruleset

import "slices"

// Heir is somebody who goes on with chains that have the names of ours: what is the
// heir's, Clean leaves as it is. The zero value is nobody.
type Heir struct {
	// Chains are the heir's, with the chains that their rules lead to. A name that ends
	// in "*" stands for all names with that prefix.
	Chains []ChainKey
	// Jumps lead there from built-in chains. Others that do, Clean removes.
	Jumps []Jump
}

// owners answers which chains are the heir's.
func (h Heir) owners() owners { return newOwners([]Contribution{{Owns: h.Chains}}) }

// Has tells whether a chain is the heir's.
func (h Heir) Has(k ChainKey) bool { return h.owners().owns(k) }

// bequeath makes what is the heir's somebody else's, so that nothing of it is removed,
// and returns which chains are.
func (e *Engine) bequeath() owners {
	theirs := e.heir.owners()
	for k := range e.kernel.chains {
		if theirs.owns(k) {
			e.kernel.pinned[k] = true
		}
	}
	for k := range e.kernel.hosts {
		if theirs.owns(k) {
			delete(e.kernel.hosts, k)
		}
	}
	for k, rules := range e.kernel.jumps {
		e.kernel.jumps[k] = slices.DeleteFunc(rules, func(r Rule) bool {
			return slices.Contains(e.heir.Jumps, Jump{ChainKey: k, Rule: r})
		})
	}
	return theirs
}
